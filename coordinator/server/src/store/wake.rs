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
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
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
    SELECT *, NULL::timestamptz AS rearmed FROM matured
    UNION ALL
    -- What is held and not due yet has its wake-up, except that of a far due time, which is set once more.
    SELECT open.*, CASE WHEN phase = 2 AND held_at + $8::float8 * interval '1 second' <= clock.now
                   THEN least(due_at, clock.now + $8::float8 * interval '1 second') END
    FROM open, clock
),
timed AS (
    SELECT f.id, CASE WHEN f.phase = 2 THEN f.rearmed ELSE clock.now + $7::float8 * interval '1 second' END AS wake_at
    FROM found f, clock
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot)
    SELECT timed.wake_at, timed.id, i.slot
    FROM timed JOIN unnest($1::uuid[], $2::int2[]) AS i (id, slot) USING (id) WHERE timed.wake_at IS NOT NULL
)
SELECT ",
    standing!(),
    ", t.id, t.due_at, t.descriptor, timed.wake_at, a.attempts, clock.now, a.since
FROM found t JOIN timed ON timed.id = t.id CROSS JOIN clock LEFT JOIN attention a ON a.transaction_id = t.id"
);

/// A transaction that is not final, as it stands after its wake-up. (`None` instead of it: final, parked or unknown.)
#[derive(Debug, Clone)]
pub struct Woken {
    /// The whole row.
    pub record: Record,
    /// Of the next wake-up; `None` for what is held and already has one.
    pub wake_at: Option<Timestamp>,
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

        let mut woken = HashMap::new();
        for row in rows {
            let record = Record::read(&row).map_err(|e| Failure::Rejected(e.to_string()))?;
            let attempts: Option<i32> = row.get("attempts");
            let id = record.id();
            let found = Woken {
                record,
                wake_at: row.get("wake_at"),
                attempts: attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
                failing_since: row.get("since"),
                now: row.get("now"),
            };
            woken.insert(id, found);
        }
        Ok(items.iter().map(|id| woken.remove(id)).collect())
    }
}
