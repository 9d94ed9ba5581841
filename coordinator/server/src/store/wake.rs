//! Looking at what a wake-up names: whether there is anything to do, and whether it is due.
//!
//! Due-ness is decided here and nowhere else, by this database's clock: never early. Nothing is written. That a hold is due
//! holds for ever, and between its due time and a cancel that was admitted before it the pivot decides; so there is nothing
//! to claim. The wake-up that led here stays open until its transaction is final, or another one stands in its place.

use super::{Record, record::standing};
use std::collections::HashMap;
use tcc_core::{Timestamp, TransactionId};
use tcc_participant::{
    Executor, Failure, Postgres, Session,
    session::{Plans, sort},
};
use uuid::Uuid;

const WAKE: &str = concat!(
    "\
-- wake
SELECT ",
    standing!(),
    ", t.id, t.slot, t.lane, t.descriptor, clock_timestamp() AS now,
       coalesce(a.next_try > clock_timestamp(), false) AS is_put_off, a.attempts, a.since
FROM unnest($1::uuid[]) AS i (id)
JOIN transaction t ON t.id = i.id
LEFT JOIN attention a ON a.transaction_id = t.id AND t.attention <> 0
WHERE t.phase IN (1, 2, 3, 5) AND t.attention < 3"
);

/// A transaction that is not final, as it stands. (`None` instead of it: final, parked or unknown.)
#[derive(Debug, Clone)]
pub struct Woken {
    /// The whole row.
    pub record: Record,
    /// Its due time has come.
    pub is_due: bool,
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
    pub fn new(database: &Postgres) -> Self {
        Self { session: Session::new(database, "tccd-wake", Plans::Generic) }
    }
}

impl Executor for WakeExecutor {
    type Item = TransactionId;
    type Answer = Option<Woken>;

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[WAKE]).await
    }

    async fn run(&mut self, items: &[TransactionId]) -> Result<Vec<Option<Woken>>, Failure> {
        let mut ids: Vec<Uuid> = items.iter().map(|id| id.uuid()).collect();
        ids.sort_unstable();
        ids.dedup();
        let statement = self.session.statement(WAKE)?;
        let rows = self.session.client()?.query(statement, &[&ids]).await.map_err(|e| sort(&e))?;

        let mut woken: HashMap<TransactionId, Woken> = HashMap::with_capacity(rows.len());
        for row in rows {
            let record = Record::read(&row).map_err(|e| Failure::Rejected(e.to_string()))?;
            let attempts: Option<i32> = row.get("attempts");
            let id = record.id();
            let now: Timestamp = row.get("now");
            let found = Woken {
                is_due: record.transaction.descriptor.due_at <= now,
                record,
                is_put_off: row.get("is_put_off"),
                attempts: attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
                failing_since: row.get("since"),
                now,
            };
            woken.insert(id, found);
        }
        // The same id may be there twice, by two of its wake-ups.
        Ok(items.iter().map(|id| woken.get(id).cloned()).collect())
    }
}
