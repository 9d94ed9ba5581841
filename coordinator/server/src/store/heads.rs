//! The heads of the shards, kept where a shard's loss does not reach: see [`tcc_ledger::heads`].

use super::{Store, StoreError};
use tcc_ledger::heads::Head;
use tcc_participant::crash;
use tokio_postgres::Client;
use uuid::Uuid;

/// Each shard's state and heads; those of the last 16 instances that worked on it.
const HEADS: &str = "\
-- heads
SELECT s.name, s.lost, s.resumed, s.drained, h.transaction_id, h.branch, h.state
FROM shard s
LEFT JOIN LATERAL (SELECT * FROM head WHERE shard = s.name ORDER BY kept_at DESC LIMIT 16) AS h ON true";

const KEEP: &str = "\
-- keep_head
WITH old AS (
    DELETE FROM head WHERE shard = $1 AND instance <> $2
       AND kept_at < (SELECT kept_at FROM head WHERE shard = $1 ORDER BY kept_at DESC OFFSET 15 LIMIT 1)
)
INSERT INTO head (shard, instance, transaction_id, branch, state, kept_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp())
ON CONFLICT (shard, instance) DO UPDATE
SET transaction_id = excluded.transaction_id, branch = excluded.branch, state = excluded.state, kept_at = excluded.kept_at";

const STOP: &str = "\
-- stop_shard
UPDATE shard SET lost = $2 WHERE name = $1 AND resumed = $3 AND lost IS NULL";

/// What is kept of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub shard: String,
    /// What it has lost, if work on it is stopped.
    pub lost: Option<String>,
    /// How often an operator has let work go on.
    pub resumed: i32,
    /// Whether an operator has stopped work on it.
    pub drained: bool,
    /// What it must have.
    pub heads: Vec<Head>,
}

/// Reads what is kept of all shards.
///
/// # Errors
///
/// PostgreSQL's.
pub async fn kept(client: &Client) -> Result<Vec<Kept>, tokio_postgres::Error> {
    let mut all: Vec<Kept> = Vec::new();
    for row in client.query(HEADS, &[]).await? {
        let shard: String = row.get("name");
        let known = all.iter().position(|kept| kept.shard == shard);
        let index = known.unwrap_or_else(|| {
            let (lost, resumed, drained) = (row.get("lost"), row.get("resumed"), row.get("drained"));
            all.push(Kept { shard, lost, resumed, drained, heads: Vec::new() });
            all.len() - 1
        });
        if let Some(transaction) = row.get::<_, Option<Uuid>>("transaction_id") {
            let (branch, state) = (row.get("branch"), row.get("state"));
            all[index].heads.push(Head { transaction, branch, state });
        }
    }
    Ok(all)
}

impl Store {
    /// Reads what is kept of all shards.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn kept(&self) -> Result<Vec<Kept>, StoreError> {
        Ok(kept(&*self.reader().await?).await?)
    }

    /// Keeps an instance's head of a shard.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn keep_head(&self, shard: &str, instance: Uuid, head: Head) -> Result<(), StoreError> {
        let Head { transaction, branch, state } = head;
        let client = self.reader().await?;
        crash::statement(KEEP);
        client.execute(KEEP, &[&shard, &instance, &transaction, &branch, &state]).await?;
        Ok(())
    }

    /// Tells all instances to stop work on a shard, unless an operator has let it go on since.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn stop_shard(&self, shard: &str, lost: &str, resumed: i32) -> Result<(), StoreError> {
        crash::statement(STOP);
        self.reader().await?.execute(STOP, &[&shard, &lost, &resumed]).await?;
        Ok(())
    }
}
