//! What the API, the status and the audit read.

use super::{Record, Store, StoreError, WAKE_HORIZON, record::standing};
use tcc_core::{Attention, Timestamp, TransactionId};
use uuid::Uuid;

const GET: &str =
    concat!("-- get\nSELECT ", standing!(), ", t.id, t.descriptor FROM transaction t WHERE t.id = $1");

const PAGE: &str = concat!(
    "-- page\nSELECT ",
    standing!(),
    ", t.id, t.descriptor FROM transaction t WHERE t.id > $1 ORDER BY t.id LIMIT $2"
);

const GET_ALL: &str = concat!(
    "-- get_all\nSELECT ",
    standing!(),
    ", t.id, t.descriptor FROM unnest($1::uuid[]) AS i (id) JOIN transaction t ON t.id = i.id ORDER BY t.id"
);

const ATTENTION: &str = "\
-- attention
SELECT DISTINCT ON (kind) kind, count(*) OVER (PARTITION BY kind) AS transactions, since,
       extract(epoch FROM clock_timestamp() - since)::float8 AS age_s, transaction_id, last_error
FROM attention a
-- A row that was written while its transaction became final says nothing any more.
WHERE EXISTS (SELECT FROM transaction t WHERE t.id = a.transaction_id AND t.attention = a.kind)
ORDER BY kind, since";

/// Which of some wake-ups, whose times are known, are not there or lie behind the watermark.
const NOT_ARMED_AT: &str = "\
-- not_armed_at
SELECT i.id
FROM unnest($1::uuid[], $2::int2[], $3::timestamptz[]) AS i (id, slot, wake_at)
JOIN slot s ON s.slot = i.slot
WHERE i.wake_at < s.watermark
   OR NOT EXISTS (
       SELECT FROM wakeup w WHERE w.slot = i.slot AND w.wake_at = i.wake_at AND w.transaction_id = i.id)";

/// Which of some transactions have no wake-up in a range of times.
const NOT_ARMED_WITHIN: &str = "\
-- not_armed_within
SELECT i.id
FROM unnest($1::uuid[], $2::int2[]) AS i (id, slot)
WHERE NOT EXISTS (
    SELECT FROM wakeup w
    WHERE w.slot = i.slot AND w.transaction_id = i.id AND w.wake_at >= $3 AND w.wake_at < $4)";

/// The transactions with one kind of attention.
#[derive(Debug, Clone)]
pub struct AttentionSummary {
    /// Which kind.
    pub kind: Attention,
    /// How many.
    pub transactions: i64,
    /// Since when the oldest of them has been failing, in seconds.
    pub oldest_s: f64,
    /// The oldest of them.
    pub example: Uuid,
    /// What is wrong with it.
    pub error: String,
}

impl Store {
    /// One transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn get(&self, id: TransactionId) -> Result<Option<Record>, StoreError> {
        let client = self.reader().await?;
        let statement = client.prepare_cached(GET).await?;
        client.query_opt(&statement, &[&id.uuid()]).await?.map(|row| Record::read(&row)).transpose()
    }

    /// One transaction, by a commit of its own: when it answers, the row is where a synchronous standby has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn get_committed(&self, id: TransactionId) -> Result<Option<Record>, StoreError> {
        let client = self.reader().await?;
        let locking = format!("{GET} FOR NO KEY UPDATE");
        client.query_opt(&locking, &[&id.uuid()]).await?.map(|row| Record::read(&row)).transpose()
    }

    /// Transactions after an id, at most `limit`, in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn page(&self, after: Uuid, limit: i64) -> Result<Vec<Record>, StoreError> {
        let client = self.reader().await?;
        client.query(PAGE, &[&after, &limit]).await?.iter().map(Record::read).collect()
    }

    /// Those of the given transactions that there are.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn get_all(&self, ids: &[Uuid]) -> Result<Vec<Record>, StoreError> {
        let client = self.reader().await?;
        client.query(GET_ALL, &[&ids]).await?.iter().map(Record::read).collect()
    }

    /// Those of the given transactions that no wake-up would ever find again. There must be none.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn forgotten(&self, records: &[Record]) -> Result<Vec<Uuid>, StoreError> {
        let waits = |record: &&Record| {
            !record.standing.phase.is_final() && record.standing.attention < Attention::Parked
        };
        let client = self.reader().await?;
        let row = client.query_one("SELECT min(watermark), clock_timestamp() FROM slot", &[]).await?;
        let (watermark, now): (Timestamp, Timestamp) = (row.get(0), row.get(1));

        // What is held has its wake-up at one known time, unless that is past and it was armed again for a far due time.
        // Everything else, and what has failed, has one within the next moments.
        let (mut known, mut near, mut far) = (Vec::new(), Vec::new(), Vec::new());
        for record in records.iter().filter(waits) {
            match record.maturity_wake_up().filter(|_| record.standing.attention == Attention::None) {
                Some(at) if at > now || at >= record.transaction.descriptor.due_at => {
                    known.push((record.id(), at))
                }
                Some(_) => far.push(record.id()),
                None => near.push(record.id()),
            }
        }
        let uuids = |ids: &[TransactionId]| ids.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>();
        let slots = |ids: &[TransactionId]| ids.iter().map(|id| i16::from(id.slot())).collect::<Vec<i16>>();
        let (ids, times): (Vec<TransactionId>, Vec<Timestamp>) = known.into_iter().unzip();
        let mut rows = client.query(NOT_ARMED_AT, &[&uuids(&ids), &slots(&ids), &times]).await?;
        let ranges = [(near, now + jiff::SignedDuration::from_mins(1)), (far, now + WAKE_HORIZON)];
        for (ids, until) in ranges.into_iter().filter(|(ids, _)| !ids.is_empty()) {
            rows.extend(
                client.query(NOT_ARMED_WITHIN, &[&uuids(&ids), &slots(&ids), &watermark, &until]).await?,
            );
        }
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The database's clock.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        Ok(self.reader().await?.query_one("SELECT clock_timestamp()", &[]).await?.get(0))
    }

    /// What needs looking at, by kind.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn attention(&self) -> Result<Vec<AttentionSummary>, StoreError> {
        let client = self.reader().await?;
        let summary = |row: &tokio_postgres::Row| {
            Ok(AttentionSummary {
                kind: Attention::from_number(row.get("kind"))
                    .ok_or_else(|| StoreError::Damaged("unknown attention".into()))?,
                transactions: row.get("transactions"),
                oldest_s: row.get("age_s"),
                example: row.get("transaction_id"),
                error: row.get("last_error"),
            })
        };
        client.query(ATTENTION, &[]).await?.iter().map(summary).collect()
    }
}
