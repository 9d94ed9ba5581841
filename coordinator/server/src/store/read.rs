//! What the API, the status and the audit read.

use super::{Get, Record, Store, StoreError, record::standing};
use tcc_core::{Attention, Timestamp, TransactionId};
use tcc_participant::session::BY_ID;
use uuid::Uuid;

const PAGE: &str = concat!(
    "-- page\nSELECT ",
    standing!(),
    ", t.id, t.slot, t.lane, t.descriptor FROM transaction t WHERE t.id > $1 ORDER BY t.id LIMIT $2"
);

const GET_ALL: &str = concat!(
    "-- get_all\nSELECT ",
    standing!(),
    ", t.id, t.slot, t.lane, t.descriptor FROM unnest($1::uuid[]) AS i (id) JOIN transaction t ON t.id = i.id ORDER BY t.id"
);

const OWNED: &str = concat!(
    "-- owned\nSELECT ",
    standing!(),
    ", t.id, t.slot, t.lane, t.descriptor FROM transaction t
WHERE t.owner = $1 AND t.id >= $2 AND t.id < $3 ORDER BY t.id DESC LIMIT $4"
);

const ATTENTION: &str = "\
-- attention
SELECT DISTINCT ON (kind) kind, count(*) OVER (PARTITION BY kind) AS transactions, since,
       extract(epoch FROM clock_timestamp() - since)::float8 AS age_s, transaction_id, last_error
FROM attention a
-- A row that was written while its transaction became final says nothing any more.
WHERE NOT a.acknowledged
  AND EXISTS (SELECT FROM transaction t WHERE t.id = a.transaction_id AND t.attention = a.kind)
ORDER BY kind, since";

/// What is not final and has no wake-up that is still to be looked at, or none in time. One snapshot sees it all.
const FORGOTTEN: &str = "\
-- forgotten
SELECT t.id
FROM transaction t JOIN slot s ON s.slot = t.slot
WHERE t.phase IN (1, 2, 3, 5) AND t.attention < 3
  AND NOT EXISTS (
      SELECT FROM wakeup w
      WHERE w.transaction_id = t.id AND w.slot = t.slot AND w.wake_at >= s.watermark
        -- What is held and never failed has one at its due time, or on the way there.
        AND (t.phase <> 2 OR t.attention <> 0 OR w.wake_at <= greatest(t.due_at, t.held_at)))
LIMIT $1";

const WATERMARK: &str = "\
-- watermark
SELECT min(watermark) FROM slot";

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
        Ok(self.get.call(Get { id, is_committed: false }).await?)
    }

    /// One transaction, by a commit of its own: when it answers, the row is where a synchronous standby has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn get_committed(&self, id: TransactionId) -> Result<Option<Record>, StoreError> {
        Ok(self.get.call(Get { id, is_committed: true }).await?)
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

    /// How many transactions there are.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn count(&self) -> Result<i64, StoreError> {
        Ok(self.reader().await?.query_one("SELECT count(*) FROM transaction", &[]).await?.get(0))
    }

    /// Those of the given transactions that there are.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn get_all(&self, ids: &[Uuid]) -> Result<Vec<Record>, StoreError> {
        let mut client = self.reader().await?;
        let reading = client.transaction().await?;
        reading.batch_execute(BY_ID).await?;
        let rows = reading.query(GET_ALL, &[&ids]).await?;
        reading.commit().await?;
        rows.iter().map(Record::read).collect()
    }

    /// Transactions of a caller with ids from one on and below another, the highest first, at most `limit`. None of them is a hold.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn owned(
        &self,
        owner: &str,
        from: Uuid,
        before: Uuid,
        limit: i64,
    ) -> Result<Vec<Record>, StoreError> {
        let client = self.reader().await?;
        client.query(OWNED, &[&owner, &from, &before, &limit]).await?.iter().map(Record::read).collect()
    }

    /// Transactions that no wake-up would ever find again, at most `limit`. There must be none.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn forgotten(&self, limit: i64) -> Result<Vec<Uuid>, StoreError> {
        let client = self.reader().await?;
        Ok(client.query(FORGOTTEN, &[&limit]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// The database's clock.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        Ok(self.reader().await?.query_one("SELECT clock_timestamp()", &[]).await?.get(0))
    }

    /// Up to when everything due has been looked at, by whatever instances there are.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn watermark(&self) -> Result<Timestamp, StoreError> {
        Ok(self.reader().await?.query_one(WATERMARK, &[]).await?.get(0))
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
