//! Putting off what could not be done, or is not due yet: what is wrong, since when, and the wake-up that tries it again.

use std::{collections::HashMap, time::Duration};
use tcc_core::{Attention, Phase, Timestamp, TransactionId};
use tcc_participant::{
    Executor, Failure, Postgres, Session,
    session::{Plans, sort},
};
use uuid::Uuid;

const DEFER: &str = "\
-- defer
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
),
put_off AS (
    UPDATE transaction t SET attention = i.attention
    FROM clock, unnest($1::uuid[], $2::int2[], $3::float8[], $4::text[], $5::int2[], $6::int4[])
        AS i (id, attention, delay, error, phase, faults)
    WHERE t.id = i.id AND t.phase IN (1, 2, 3, 5) AND t.attention < 3
      AND (t.phase = i.phase OR i.phase = 0 AND NOT (t.phase = 2 AND t.due_at > clock.now))
    RETURNING t.id, t.slot, t.lane, i.phase, i.attention, i.error, i.faults,
        -- What is only not due yet needs no later look than that.
        least(clock.now + i.delay * interval '1 second', CASE WHEN t.phase = 2 AND t.due_at > clock.now THEN t.due_at END) AS wake_at
),
noted AS (
    INSERT INTO attention AS a (transaction_id, kind, since, attempts, last_error, next_try)
    SELECT p.id, p.attention, clock.now, p.faults, p.error, p.wake_at FROM put_off p, clock WHERE p.attention <> 0
    ON CONFLICT (transaction_id) DO UPDATE
    SET kind = excluded.kind, attempts = a.attempts + excluded.attempts, last_error = excluded.last_error, next_try = excluded.next_try
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot, lane)
    SELECT wake_at, id, slot, lane FROM put_off WHERE wake_at IS NOT NULL
)
SELECT id, phase, wake_at FROM put_off";

/// Asks for a transaction to be tried again later, or not at all.
#[derive(Debug, Clone)]
pub struct Defer {
    /// Which.
    pub id: TransactionId,
    /// The phase in which it could not go on: if somebody else has moved it, there is nothing to put off. `None`: whichever
    /// it is, unless it is final, or held and not due.
    pub phase: Option<Phase>,
    /// Whether it was the fault of this transaction alone, which is counted.
    pub is_fault: bool,
    /// What to show: RETRYING, STUCK or PARKED; NONE for what is only not due yet.
    pub attention: Attention,
    /// When to try again; `None` for what is parked.
    pub delay: Option<Duration>,
    /// What went wrong, for people.
    pub error: String,
}

impl Defer {
    /// As the statement has it: 0 is any.
    fn phase_number(&self) -> i16 {
        self.phase.map_or(0, Phase::number)
    }
}

/// It was put off, and this is when it will be tried again, unless it is parked. (`None` instead of it: somebody else has
/// moved or parked it meanwhile.)
pub type Deferred = Option<Option<Timestamp>>;

/// Puts off batches.
pub struct DeferExecutor {
    session: Session,
}

impl DeferExecutor {
    /// Not connected yet.
    #[must_use]
    pub fn new(database: &Postgres) -> Self {
        Self { session: Session::new(database, "tccd-defer", Plans::Generic) }
    }
}

impl Executor for DeferExecutor {
    type Item = Defer;
    type Answer = Deferred;

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[DEFER]).await
    }

    async fn run(&mut self, items: &[Defer]) -> Result<Vec<Deferred>, Failure> {
        // Of several for one id in one phase the last one counts; of several phases, the one that it is in.
        let last: HashMap<(TransactionId, i16), &Defer> =
            items.iter().map(|item| ((item.id, item.phase_number()), item)).collect();
        let mut sorted: Vec<&Defer> = last.into_values().collect();
        sorted.sort_by_key(|item| item.id);
        let ids: Vec<Uuid> = sorted.iter().map(|item| item.id.uuid()).collect();
        let attention: Vec<i16> = sorted.iter().map(|item| item.attention.number()).collect();
        let delays: Vec<Option<f64>> =
            sorted.iter().map(|item| item.delay.map(|d| d.as_secs_f64())).collect();
        let errors: Vec<&str> = sorted.iter().map(|item| item.error.as_str()).collect();
        let phases: Vec<i16> = sorted.iter().map(|item| item.phase_number()).collect();
        let faults: Vec<i32> = sorted.iter().map(|item| i32::from(item.is_fault)).collect();

        let statement = self.session.statement(DEFER)?;
        let rows = self
            .session
            .client()?
            .query(statement, &[&ids, &attention, &delays, &errors, &phases, &faults])
            .await
            .map_err(|e| sort(&e))?;
        self.session.settle()?;

        let put_off: HashMap<(Uuid, i16), Option<Timestamp>> =
            rows.iter().map(|row| ((row.get("id"), row.get("phase")), row.get("wake_at"))).collect();
        Ok(items.iter().map(|item| put_off.get(&(item.id.uuid(), item.phase_number())).copied()).collect())
    }
}
