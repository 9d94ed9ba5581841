//! Looking at what a wake-up names: claims what is due, and loads what is under way.
//!
//! Due-ness is decided here and nowhere else, by this database's clock, in the statement that claims: never early. What is
//! final is skipped. Whatever is left non-final gets its next wake-up in the same statement, so that the one which led
//! here is done with.

use super::{RETRY_INTERVAL, Record, WAKE_HORIZON, record::standing};
use std::collections::HashMap;
use tcc_core::{Cause, Event, Phase, Timestamp, TransactionId};
use tcc_participant::{
    Executor, Failure, Session,
    session::{Plans, sort},
};
use tokio_postgres::Config;
use uuid::Uuid;

const WAKE: &str = concat!(
    "\
-- wake
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
),
matured AS (
    UPDATE transaction t
    SET phase = CASE t.on_maturity WHEN 1 THEN $3::int2 ELSE $4::int2 END, cause = $5::int2, decided_at = clock.now
    FROM clock, unnest($1::uuid[]) AS i (id)
    WHERE t.id = i.id AND t.phase = $6::int2 AND t.due_at <= clock.now AND t.attention < 3
    RETURNING ",
    standing!(),
    ", t.id, t.due_at, t.descriptor
),
open AS (
    SELECT ",
    standing!(),
    ", t.id, t.due_at, t.descriptor
    FROM unnest($1::uuid[]) AS i (id) JOIN transaction t ON t.id = i.id
    WHERE t.phase IN (1, 2, 3, 5) AND t.attention < 3 AND NOT EXISTS (SELECT FROM matured m WHERE m.id = t.id)
),
found AS (
    SELECT matured.*, false AS is_put_off, NULL::int4 AS attempts, NULL::timestamptz AS since FROM matured
    UNION ALL
    -- What was put off has a later wake-up of its own: looking at it now would begin a second chain of them.
    SELECT open.*, coalesce(a.next_try > clock.now, false), a.attempts, a.since
    FROM clock, open LEFT JOIN attention a ON a.transaction_id = open.id AND open.attention <> 0
),
timed AS (
    SELECT f.id,
           CASE WHEN f.is_put_off THEN NULL
                WHEN f.phase <> 2 THEN clock.now + $7::float8 * interval '1 second'
                -- What is held has its wake-up, except that of a far due time, which is set once more.
                WHEN f.held_at + $8::float8 * interval '1 second' <= clock.now
                    THEN least(f.due_at, clock.now + $8::float8 * interval '1 second')
           END AS wake_at
    FROM found f, clock
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot)
    SELECT timed.wake_at, timed.id, i.slot
    FROM timed JOIN unnest($1::uuid[], $2::int2[]) AS i (id, slot) USING (id) WHERE timed.wake_at IS NOT NULL
)
SELECT ",
    standing!(),
    ", t.id, t.descriptor, t.is_put_off, t.attempts, t.since, timed.wake_at, clock.now
FROM found t JOIN timed ON timed.id = t.id CROSS JOIN clock"
);

/// A transaction that is not final, as it stands after its wake-up. (`None` instead of it: final, parked or unknown.)
#[derive(Debug, Clone)]
pub struct Woken {
    /// The whole row.
    pub record: Record,
    /// Of the next wake-up; `None` for what is held or put off, and already has one.
    pub wake_at: Option<Timestamp>,
    /// It was put off until later than now.
    pub is_put_off: bool,
    /// How often it failed in its present phase.
    pub attempts: u32,
    /// Since when it has been failing.
    pub failing_since: Option<Timestamp>,
    /// The database's clock.
    pub now: Timestamp,
}

/// Looks at batches.
pub struct WakeExecutor {
    session: Session,
}

impl WakeExecutor {
    /// Not connected yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { session: Session::new(config, "tccd-wake", Plans::Generic) }
    }
}

impl Executor for WakeExecutor {
    type Item = TransactionId;
    type Answer = Option<Woken>;

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[WAKE]).await
    }

    async fn run(&mut self, items: &[TransactionId]) -> Result<Vec<Option<Woken>>, Failure> {
        let mut ids: Vec<TransactionId> = items.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let slots: Vec<i16> = ids.iter().map(|id| i16::from(id.slot())).collect();
        let ids: Vec<Uuid> = ids.into_iter().map(TransactionId::uuid).collect();

        let statement = self.session.statement(WAKE)?;
        #[rustfmt::skip]
        let rows = self.session.client()?.query(statement, &[
            &ids, &slots, &Event::MaturedToConfirm.target().number(), &Event::MaturedToCancel.target().number(),
            &Cause::Matured.number(), &Phase::Held.number(),
            &RETRY_INTERVAL.as_secs_f64(), &WAKE_HORIZON.as_secs_f64(),
        ]).await.map_err(|e| sort(&e))?;
        self.session.settle()?;

        let mut woken: HashMap<TransactionId, Woken> = HashMap::new();
        for row in rows {
            let record = Record::read(&row).map_err(|e| Failure::Rejected(e.to_string()))?;
            let attempts: Option<i32> = row.get("attempts");
            let id = record.id();
            let found = Woken {
                record,
                wake_at: row.get("wake_at"),
                is_put_off: row.get("is_put_off"),
                attempts: attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
                failing_since: row.get("since"),
                now: row.get("now"),
            };
            woken.insert(id, found);
        }
        // The same id may be there twice, by two of its wake-ups.
        Ok(items.iter().map(|id| woken.get(id).cloned()).collect())
    }
}
