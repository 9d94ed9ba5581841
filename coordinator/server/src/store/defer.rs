//! Putting off what could not be done: what is wrong, since when, and the wake-up that tries it again.

use std::{collections::HashMap, time::Duration};
use tcc_core::{Attention, Timestamp, TransactionId};
use tcc_participant::{
    Executor, Failure, Session,
    session::{Plans, sort},
};
use tokio_postgres::Config;
use uuid::Uuid;

const DEFER: &str = "\
-- defer
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
put_off AS (
    UPDATE transaction t SET attention = i.attention
    FROM unnest($1::uuid[], $2::int2[], $3::float8[], $4::text[], $5::int2[]) AS i (id, attention, delay, error, slot)
    WHERE t.id = i.id AND t.phase IN (1, 2, 3, 5) AND t.attention < 3
    RETURNING t.id, i.attention, i.delay, i.error, i.slot
),
noted AS (
    INSERT INTO attention AS a (transaction_id, kind, since, attempts, last_error, next_try)
    SELECT p.id, p.attention, clock.now, 1, p.error, clock.now + p.delay * interval '1 second' FROM put_off p, clock
    ON CONFLICT (transaction_id) DO UPDATE
    SET kind = excluded.kind, attempts = a.attempts + 1, last_error = excluded.last_error, next_try = excluded.next_try
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot)
    SELECT clock.now + p.delay * interval '1 second', p.id, p.slot FROM put_off p, clock WHERE p.delay IS NOT NULL
)
SELECT p.id, clock.now + p.delay * interval '1 second' AS wake_at FROM put_off p, clock";

/// Asks for a transaction to be tried again later, or not at all.
#[derive(Debug, Clone)]
pub struct Defer {
    /// Which.
    pub id: TransactionId,
    /// What to show: RETRYING, STUCK or PARKED.
    pub attention: Attention,
    /// When to try again; `None` for what is parked.
    pub delay: Option<Duration>,
    /// What went wrong, for people.
    pub error: String,
}

/// When it will be tried again: `None` if it is parked, or became final meanwhile.
pub type Deferred = Option<Timestamp>;

/// Puts off batches.
pub struct DeferExecutor {
    session: Session,
}

impl DeferExecutor {
    /// Not connected yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { session: Session::new(config, "tccd-defer", Plans::Generic) }
    }
}

impl Executor for DeferExecutor {
    type Item = Defer;
    type Answer = Deferred;

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[DEFER]).await
    }

    async fn run(&mut self, items: &[Defer]) -> Result<Vec<Deferred>, Failure> {
        // Of several for one id the last one counts.
        let last: HashMap<TransactionId, &Defer> = items.iter().map(|item| (item.id, item)).collect();
        let mut sorted: Vec<&Defer> = last.into_values().collect();
        sorted.sort_by_key(|item| item.id);
        let ids: Vec<Uuid> = sorted.iter().map(|item| item.id.uuid()).collect();
        let attention: Vec<i16> = sorted.iter().map(|item| item.attention.number()).collect();
        let delays: Vec<Option<f64>> =
            sorted.iter().map(|item| item.delay.map(|d| d.as_secs_f64())).collect();
        let errors: Vec<&str> = sorted.iter().map(|item| item.error.as_str()).collect();
        let slots: Vec<i16> = sorted.iter().map(|item| i16::from(item.id.slot())).collect();

        let statement = self.session.statement(DEFER)?;
        let rows = self
            .session
            .client()?
            .query(statement, &[&ids, &attention, &delays, &errors, &slots])
            .await
            .map_err(|e| sort(&e))?;
        self.session.settle()?;

        let wake_at: HashMap<Uuid, Option<Timestamp>> =
            rows.iter().map(|row| (row.get("id"), row.get("wake_at"))).collect();
        Ok(items.iter().map(|item| wake_at.get(&item.id.uuid()).copied().flatten()).collect())
    }
}
