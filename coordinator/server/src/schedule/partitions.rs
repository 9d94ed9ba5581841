//! Partitions: made ahead of time, and those of the wake-ups indexed when they are near and dropped when they are drained.
//!
//! Nothing here may hold up creation. So partitions are attached and never made in place, indexes are built and partitions
//! are detached CONCURRENTLY, and whatever waits for a lock gives up after 200 ms and is tried again a minute later. What a
//! crash leaves half done is found in the catalog: there is no table of states.
//!
//! A partition of wake-ups is drained when every slot's watermark has passed its end. Before it is dropped it is compared
//! with the transactions: what is not final and should be is looked at again. There is never anything, and if there is, it is
//! an error in this program.

use super::Timers;
use crate::store::schema;
use jiff::SignedDuration;
use std::time::Duration;
use tcc_core::Timestamp;
use tcc_participant::{
    Failure, Postgres, crash,
    partitions::Index,
    roles::{self, MAINTAINER},
    session::sort,
};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often there is a look at what is to be done.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long after its end a partition is kept at least.
const KEPT: SignedDuration = SignedDuration::from_mins(10);
/// Of larger partitions a part is compared with the transactions before they are dropped: so many rows.
const COMPARED: f64 = 1e7;

/// The partitions of the wake-ups, whether they are attached or left over.
const LEAVES: &str = "\
-- leaves
SELECT c.relname::text AS name, greatest(c.reltuples, 0)::float8 AS rows,
       i.inhrelid IS NOT NULL AS is_attached, coalesce(i.inhdetachpending, false) AS is_half_detached,
       coalesce((SELECT bool_and(x.indisvalid) FROM pg_index x WHERE x.indrelid = c.oid), false) AS is_indexed
FROM pg_class c
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'wakeup'::regclass
WHERE c.relkind = 'r' AND c.relname LIKE 'wakeup\\_%'
  AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'wakeup'::regclass)
ORDER BY c.relname";

const WAKE_NOW: &str = "\
-- wake_now
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
)
INSERT INTO wakeup (wake_at, transaction_id, slot, lane)
SELECT clock.now, t.id, t.slot, t.lane FROM clock, unnest($1::uuid[]) AS i (id) JOIN transaction t ON t.id = i.id";

/// What has been done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Partitions that were made.
    pub created: usize,
    /// Partitions that were indexed.
    pub indexed: usize,
    /// Partitions that were dropped.
    pub dropped: usize,
    /// Transactions that only the comparison before a drop has found. Must be none.
    pub stragglers: u64,
}

/// A partition of the wake-ups.
struct Leaf {
    name: String,
    rows: f64,
    low: Timestamp,
    high: Timestamp,
    is_attached: bool,
    is_half_detached: bool,
    is_indexed: bool,
}

/// Looks after the partitions of all databases once a minute, in the instance that serves slot 0: of the coordinator's, and of
/// each shard's, which come with their names.
pub async fn keep(
    database: Postgres,
    shards: Vec<(String, Postgres)>,
    timers: Timers,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        if timers.lock().serves(0) {
            match maintain(&database, None).await {
                Ok(done) if done == Done::default() => {}
                Ok(done) => tracing::info!(?done, "looked after the partitions"),
                Err(failure) => {
                    tracing::warn!(%failure, "cannot look after the partitions; trying again in a minute")
                }
            }
            for (shard, database) in &shards {
                if let Err(failure) = make_ahead(database).await {
                    tracing::warn!(shard, %failure, "cannot make partitions ahead of time; trying again in a minute");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Does what is to be done in the coordinator's database: now, or as if it were another time, which is for tests.
///
/// # Errors
///
/// [`Failure`]: what was done stays done, and the next call goes on.
pub async fn maintain(database: &Postgres, at: Option<Timestamp>) -> Result<Done, Failure> {
    let client = open(database).await.map_err(|e| sort(&e))?;
    Keeper { client }.maintain(at).await.map_err(|e| sort(&e))
}

/// A connection of whoever owns the partitions.
async fn open(database: &Postgres) -> Result<Client, tokio_postgres::Error> {
    let client = database.bounded("tccd-partitions").open().await?;
    roles::act_as(&client, MAINTAINER).await?;
    Ok(client)
}

/// Makes the partitions of a shard.
async fn make_ahead(database: &Postgres) -> Result<(), Failure> {
    let made = async {
        let client = open(database).await?;
        let now = client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
        tcc_ledger::ensure_partitions(&client, now).await
    };
    made.await.map(drop).map_err(|e: tokio_postgres::Error| sort(&e))
}

struct Keeper {
    client: Client,
}

impl Keeper {
    async fn maintain(&self, at: Option<Timestamp>) -> Result<Done, tokio_postgres::Error> {
        let row = self.client.query_one("SELECT clock_timestamp(), min(watermark) FROM slot", &[]).await?;
        let (now, watermark): (Timestamp, Timestamp) = (at.unwrap_or(row.get(0)), row.get(1));
        // Nobody waits for any of this, so it is not worth more than one processor, nor the whole disk.
        self.run(
            "SET max_parallel_maintenance_workers = 0;
             SET max_parallel_workers_per_gather = 0;
             SET vacuum_cost_delay = '2ms'",
        )
        .await?;
        self.wait_at_most("200ms").await?;
        let mut done =
            Done { created: schema::ensure_partitions(&self.client, now).await?, ..Done::default() };

        // These wait until nobody uses what was there before, however long that takes, and nobody waits for them.
        self.wait_at_most("0").await?;
        for leaf in self.leaves().await?.iter().filter(|leaf| leaf.is_half_detached) {
            self.run(&format!("ALTER TABLE wakeup DETACH PARTITION {} FINALIZE", leaf.name)).await?;
        }
        let leaves = self.leaves().await?;
        let is_past = |leaf: &&Leaf| leaf.high + KEPT < watermark;
        if let Some(index) = schema::WAKEUP.index {
            let is_near = |leaf: &&Leaf| leaf.is_attached && !leaf.is_indexed && leaf.low < now + index.ahead;
            for leaf in leaves.iter().filter(|leaf| is_near(leaf) && !is_past(leaf)) {
                self.index(leaf, &index).await?;
                done.indexed += 1;
            }
        }
        for leaf in leaves.iter().filter(is_past) {
            if leaf.is_attached {
                done.stragglers += self.look_again(leaf).await?;
                self.run(&format!("ALTER TABLE wakeup DETACH PARTITION {} CONCURRENTLY", leaf.name)).await?;
            }
            self.run(&format!("DROP TABLE {}", leaf.name)).await?;
            done.dropped += 1;
        }
        Ok(done)
    }

    async fn leaves(&self) -> Result<Vec<Leaf>, tokio_postgres::Error> {
        let rows = self.client.query(LEAVES, &[]).await?;
        let leaf = |row: &tokio_postgres::Row| {
            let name: String = row.get("name");
            let (low, high) = schema::WAKEUP.range(&name)?;
            Some(Leaf {
                name,
                rows: row.get("rows"),
                low,
                high,
                is_attached: row.get("is_attached"),
                is_half_detached: row.get("is_half_detached"),
                is_indexed: row.get("is_indexed"),
            })
        };
        Ok(rows.iter().filter_map(leaf).collect())
    }

    /// Builds the index of a partition while wake-ups come in, and marks its pages as visible to all, so that reading ahead
    /// needs the index alone.
    async fn index(&self, leaf: &Leaf, index: &Index) -> Result<(), tokio_postgres::Error> {
        let (name, index_name) = (&leaf.name, index.name(&leaf.name));
        // One that is half built is of no use.
        self.run(&format!("DROP INDEX CONCURRENTLY IF EXISTS {index_name}")).await?;
        self.run(&format!("CREATE INDEX CONCURRENTLY {index_name} ON {name} {}", index.columns)).await?;
        self.run(&format!("VACUUM (FREEZE) {name}")).await
    }

    /// Leaves a wake-up now for what a drained partition names and is not final although it is due, unless it was put off.
    async fn look_again(&self, leaf: &Leaf) -> Result<u64, tokio_postgres::Error> {
        let sample = if leaf.rows > COMPARED {
            format!("TABLESAMPLE SYSTEM ({})", 100.0 * COMPARED / leaf.rows)
        } else {
            String::new()
        };
        let late = format!(
            "-- late
             SELECT DISTINCT t.id FROM {} AS w {sample}
             JOIN transaction t ON t.id = w.transaction_id
             LEFT JOIN attention a ON a.transaction_id = t.id AND t.attention <> 0
             WHERE t.phase IN (1, 2, 3, 5) AND t.attention < 3
               AND (t.phase <> 2 OR t.due_at < clock_timestamp() - interval '1 minute')
               AND (a.next_try IS NULL OR a.next_try < clock_timestamp() - interval '1 minute')",
            leaf.name
        );
        let late: Vec<Uuid> = self.client.query(&late, &[]).await?.iter().map(|row| row.get(0)).collect();
        // In a statement of its own: that one may have taken minutes, and windows are closed within seconds.
        crash::statement(WAKE_NOW);
        let found = self.client.execute(WAKE_NOW, &[&late]).await?;
        if found > 0 {
            tracing::error!(
                found,
                partition = leaf.name,
                "transactions were not final when their wake-ups were dropped"
            );
        }
        Ok(found)
    }

    async fn wait_at_most(&self, time: &str) -> Result<(), tokio_postgres::Error> {
        self.run(&format!("SET lock_timeout = '{time}'")).await
    }

    async fn run(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        crash::point("partitions");
        self.client.batch_execute(sql).await
    }
}
