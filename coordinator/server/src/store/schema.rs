//! The coordinator's tables: migrations under a lock, the map of buckets written once, partitions ahead of time.

use super::WAKE_HORIZON;
use jiff::SignedDuration;
use std::collections::{HashMap, HashSet};
use tcc_core::{BUCKETS, Timestamp};
use tcc_participant::{
    crash,
    partitions::{Index, Key, Scheme, WEEK},
    roles::{self, MAINTAINER, MIGRATOR},
};
use tokio_postgres::Client;

mod embedded {
    refinery::embed_migrations!("../../migrations/coordinator");
}

/// Why the coordinator's database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A statement failed.
    #[error("coordinator database: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// A migration failed, or one that was applied has changed.
    #[error("migrating the coordinator's database: {0}")]
    Migration(#[from] refinery::Error),
    /// The configuration names other shards than the map, which is fixed.
    #[error(
        "the configuration names the shards {configured:?}, but accounts are mapped to {mapped:?}; \
         the map is fixed when a coordinator first starts, because moving accounts means moving their fences"
    )]
    OtherShards {
        /// As configured, sorted.
        configured: Vec<String>,
        /// As the map has them, sorted.
        mapped: Vec<String>,
    },
    /// The server is older than this program can use.
    #[error("PostgreSQL {0} is too old: tcc needs version 15 or newer")]
    TooOld(String),
}

/// What each role may do.
const GRANTS: &str = include_str!("../../../../migrations/roles/coordinator.sql");

/// The advisory lock that keeps two migrations apart.
const MIGRATION_LOCK: i64 = 0x7463_635f_636f_6f72;

const TRANSACTION: Scheme =
    Scheme { parent: "transaction", key: Key::Id, width: WEEK, fillfactor: 50, index: None };
/// The wake-ups. Their index holds all that is read of them, so that reading ahead does not touch the rows.
pub const WAKEUP: Scheme = Scheme {
    parent: "wakeup",
    key: Key::Time,
    width: SignedDuration::from_hours(6),
    fillfactor: 100,
    index: Some(Index {
        suffix: "by_slot",
        columns: "(slot, wake_at, transaction_id) INCLUDE (lane)",
        ahead: SignedDuration::from_hours(12),
    }),
};

/// Written once.
const MAP_BUCKETS: &str = "\
-- map_buckets
WITH named AS (INSERT INTO shard (name) SELECT unnest($1::text[]))
INSERT INTO bucket SELECT n, ($1::text[])[n % cardinality($1::text[]) + 1]
FROM generate_series(0, $2::int4 - 1) AS n";

/// Migrates the database, and reads the map of buckets, which is written when there is none. Safe to run by several at once.
///
/// # Errors
///
/// [`SchemaError`].
pub async fn prepare(
    client: &mut Client,
    shards: &[String],
) -> Result<HashMap<String, HashSet<u16>>, SchemaError> {
    check_version(client).await?;
    roles::act_as(client, MIGRATOR).await?;
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
    let prepared = prepare_locked(client, shards).await;
    client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
    prepared
}

/// Makes sure that a server is new enough.
///
/// # Errors
///
/// [`SchemaError::TooOld`].
pub async fn check_version(client: &Client) -> Result<(), SchemaError> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, current_setting('server_version')",
            &[],
        )
        .await?;
    if row.get::<_, i32>(0) < 150_000 {
        return Err(SchemaError::TooOld(row.get(1)));
    }
    Ok(())
}

async fn prepare_locked(
    client: &mut Client,
    shards: &[String],
) -> Result<HashMap<String, HashSet<u16>>, SchemaError> {
    let report = embedded::migrations::runner().set_abort_divergent(true).run_async(client).await?;
    roles::grant(client, "instance", !report.applied_migrations().is_empty(), GRANTS).await?;
    // Asked first: only who may write it needs to.
    if client.query_opt("SELECT FROM shard LIMIT 1", &[]).await?.is_none() {
        crash::statement(MAP_BUCKETS);
        client.execute(MAP_BUCKETS, &[&shards, &i32::from(BUCKETS)]).await?;
    }
    let map = map(client, shards).await?;
    let now: Timestamp = client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
    roles::act_as(client, MAINTAINER).await?;
    ensure_partitions(client, now).await?;
    Ok(map)
}

/// Reads the map of buckets, which must be of these shards.
///
/// # Errors
///
/// [`SchemaError`].
pub async fn map(client: &Client, shards: &[String]) -> Result<HashMap<String, HashSet<u16>>, SchemaError> {
    let mut map: HashMap<String, HashSet<u16>> = HashMap::new();
    for row in client.query("SELECT shard, bucket FROM bucket", &[]).await? {
        map.entry(row.get(0)).or_default().insert(row.get::<_, i16>(1) as u16);
    }
    let mut mapped: Vec<String> = map.keys().cloned().collect();
    let mut configured = shards.to_vec();
    mapped.sort();
    configured.sort();
    if mapped == configured { Ok(map) } else { Err(SchemaError::OtherShards { configured, mapped }) }
}

/// Creates the partitions of the next weeks, and those of the wake-ups as far as they may lie ahead.
///
/// # Errors
///
/// PostgreSQL's.
pub async fn ensure_partitions(client: &Client, now: Timestamp) -> Result<usize, tokio_postgres::Error> {
    let day = SignedDuration::from_hours(24);
    let ids = TRANSACTION.create(client, now, day * 2, WEEK * 2).await?;
    Ok(ids + WAKEUP.create(client, now, SignedDuration::ZERO, WAKE_HORIZON + day * 3).await?)
}
