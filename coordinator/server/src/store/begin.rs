//! A transaction's first row, and the wake-up that finds it again if everything else is lost.

use super::{
    Place, RETRY_INTERVAL, Record, TraceContext,
    open::{TAKE_STRIPE, take_stripe},
};
use std::{collections::HashMap, sync::Arc};
use tcc_core::{Timestamp, Transaction};
use tcc_participant::{
    Executor, Failure, Postgres, Session,
    session::{Plans, sort},
};
use uuid::Uuid;

/// A hold that is due before the next retry needs one wake-up only: the one at its due time finds it, whatever its phase.
const BEGIN: &str = "\
-- begin
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
),
begun AS (
    INSERT INTO transaction (id, phase, on_maturity, slot, lane, due_at, created_at, descriptor, trace, owner, counted_for)
    SELECT i.id, 1, i.on_maturity, i.slot, i.lane, i.due_at, clock.now, i.descriptor, i.trace, i.owner, i.counted_for
    FROM clock, unnest($1::uuid[], $2::int2[], $3::timestamptz[], $4::bytea[], $6::int2[], $7::int2[], $8::timestamptz[],
                       $9::bytea[], $10::text[], $11::text[])
        AS i (id, on_maturity, due_at, descriptor, slot, lane, keyed_on, trace, owner, counted_for)
    WHERE i.keyed_on IS NULL OR i.keyed_on = pg_postmaster_start_time()
    ON CONFLICT (id) DO NOTHING
    RETURNING id, slot, lane, created_at, counted_for,
        least(greatest(due_at, created_at), created_at + $5::float8 * interval '1 second') AS wake_at
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot, lane) SELECT wake_at, id, slot, lane FROM begun
),
counted AS (
    INSERT INTO open_count AS o (caller, stripe, open)
    SELECT counted_for, $12::int2, count(*) FROM begun WHERE counted_for IS NOT NULL GROUP BY counted_for
    ON CONFLICT (caller, stripe) DO UPDATE SET open = o.open + excluded.open
)
SELECT id, created_at, wake_at FROM begun";

/// Asks for a transaction to be recorded as TRYING.
#[derive(Debug, Clone)]
pub struct Begin {
    /// What it is.
    pub transaction: Arc<Transaction>,
    /// Where its wake-ups are to stand.
    pub place: Place,
    /// When the server started that has its caller's key, if it is created by one. Another one may have lost the key, so it is not
    /// begun there.
    pub keyed_on: Option<Timestamp>,
    /// The caller in whose quota it counts while it is open, if it has one.
    pub counted_for: Option<String>,
    /// Where it came from.
    pub trace: Option<TraceContext>,
}

/// It was recorded. (`None` instead of it: the id was there before, or its key is on another server.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// By the database's clock.
    pub created_at: Timestamp,
    /// Of its wake-up.
    pub wake_at: Timestamp,
}

/// When the wake-up stands that the statement left for a row.
#[must_use]
pub fn wake_at(record: &Record) -> Timestamp {
    let created_at = record.standing.created_at;
    record.transaction.descriptor.due_at.max(created_at).min(created_at + RETRY_INTERVAL)
}

/// Inserts batches.
pub struct BeginExecutor {
    session: Session,
    stripe: i16,
}

impl BeginExecutor {
    /// Not connected yet.
    #[must_use]
    pub fn new(database: &Postgres) -> Self {
        Self { session: Session::new(database, "tccd-begin", Plans::Generic), stripe: 0 }
    }
}

impl Executor for BeginExecutor {
    type Item = Begin;
    type Answer = Option<Begun>;

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[BEGIN, TAKE_STRIPE]).await?;
        self.stripe = take_stripe(&self.session).await?;
        Ok(())
    }

    async fn run(&mut self, items: &[Begin]) -> Result<Vec<Option<Begun>>, Failure> {
        // The same id twice in one batch is inserted once; sorted, so that two batches cannot deadlock.
        let mut sorted: Vec<&Begin> = items.iter().collect();
        sorted.sort_by_key(|begin| begin.transaction.id);
        sorted.dedup_by_key(|begin| begin.transaction.id);
        let transactions = || sorted.iter().map(|begin| &*begin.transaction);
        let ids: Vec<Uuid> = transactions().map(|t| t.id.uuid()).collect();
        let on_maturity: Vec<i16> = transactions().map(|t| t.descriptor.on_maturity.number()).collect();
        let due_at: Vec<Timestamp> = transactions().map(|t| t.descriptor.due_at).collect();
        let descriptors: Vec<&[u8]> = transactions().map(|t| t.encoded.as_slice()).collect();
        let slots: Vec<i16> = sorted.iter().map(|begin| i16::from(begin.place.slot)).collect();
        let lanes: Vec<i16> = sorted.iter().map(|begin| i16::from(begin.place.lane)).collect();
        let owners: Vec<Option<&str>> = transactions().map(|t| t.descriptor.owner.as_deref()).collect();
        let keyed_on: Vec<Option<Timestamp>> = sorted.iter().map(|begin| begin.keyed_on).collect();
        let counted_for: Vec<Option<&str>> =
            sorted.iter().map(|begin| begin.counted_for.as_deref()).collect();
        let traces: Vec<Option<Vec<u8>>> =
            sorted.iter().map(|begin| begin.trace.map(TraceContext::to_bytes)).collect();

        let statement = self.session.statement(BEGIN)?;
        let rows = self
            .session
            .client()?
            .query(
                statement,
                &[
                    &ids,
                    &on_maturity,
                    &due_at,
                    &descriptors,
                    &RETRY_INTERVAL.as_secs_f64(),
                    &slots,
                    &lanes,
                    &keyed_on,
                    &traces,
                    &owners,
                    &counted_for,
                    &self.stripe,
                ],
            )
            .await
            .map_err(|e| sort(&e))?;
        self.session.settle()?;

        let mut begun: HashMap<Uuid, Begun> = rows
            .iter()
            .map(|row| {
                (row.get("id"), Begun { created_at: row.get("created_at"), wake_at: row.get("wake_at") })
            })
            .collect();
        // Of several callers with one id, the first one began it.
        Ok(items.iter().map(|item| begun.remove(&item.transaction.id.uuid())).collect())
    }
}
