//! A shard's tables: migrations under a lock, its name and buckets written once, partitions ahead of time.

use std::collections::HashSet;
use tcc_core::Timestamp;
use tcc_participant::{
    crash,
    partitions::{Key, Scheme, WEEK},
    roles::{self, MAINTAINER, MIGRATOR},
};
use tokio_postgres::Client;

mod embedded {
    refinery::embed_migrations!("../../migrations/ledger");
}

/// Why a shard cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A statement failed.
    #[error("shard database: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// A migration failed, or one that was applied has changed.
    #[error("migrating the shard's database: {0}")]
    Migration(#[from] refinery::Error),
    /// The database belongs to another shard.
    #[error("this database is shard {found:?}, but the configuration calls it {expected:?}; check the urls")]
    OtherShard {
        /// As configured.
        expected: String,
        /// As the database says.
        found: String,
    },
    /// The database serves other buckets than the coordinator's map says.
    #[error(
        "shard {0:?} serves other buckets than the coordinator's map says; check that both databases belong together"
    )]
    OtherBuckets(String),
}

/// What each role may do.
const GRANTS: &str = include_str!("../../../migrations/roles/ledger.sql");

/// The advisory lock that keeps two migrations apart.
const MIGRATION_LOCK: i64 = 0x7463_635f_6c64_6772;

/// The fences.
pub(crate) const BRANCH: Scheme =
    Scheme { parent: "branch", key: Key::Id, width: WEEK, fillfactor: 70, index: None };
/// The journal, by the time at which it was written.
pub(crate) const POSTING: Scheme =
    Scheme { parent: "posting", key: Key::Time, width: WEEK, fillfactor: 100, index: None };

/// Written once.
const NAME_SHARD: &str = "\
-- name_shard
WITH named AS (INSERT INTO shard (name) VALUES ($1))
INSERT INTO bucket SELECT unnest($2::int2[])";

/// Migrates the database, and makes sure that it is this shard and serves these buckets. Safe to run by several at once.
///
/// # Errors
///
/// [`SchemaError`].
pub async fn prepare(client: &mut Client, name: &str, buckets: &HashSet<u16>) -> Result<(), SchemaError> {
    roles::act_as(client, MIGRATOR).await?;
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
    let prepared = prepare_locked(client, name, buckets).await;
    client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
    prepared
}

async fn prepare_locked(client: &mut Client, name: &str, buckets: &HashSet<u16>) -> Result<(), SchemaError> {
    let report = embedded::migrations::runner().set_abort_divergent(true).run_async(client).await?;
    roles::grant(client, "account", !report.applied_migrations().is_empty(), GRANTS).await?;
    let mut numbers: Vec<i16> = buckets.iter().map(|bucket| *bucket as i16).collect();
    numbers.sort_unstable();
    // Asked first: only who may write it needs to.
    if client.query_opt("SELECT FROM shard", &[]).await?.is_none() {
        crash::statement(NAME_SHARD);
        client.execute(NAME_SHARD, &[&name, &numbers]).await?;
    }
    let found: String = client.query_one("SELECT name FROM shard", &[]).await?.get(0);
    if found != name {
        return Err(SchemaError::OtherShard { expected: name.to_owned(), found });
    }
    let rows = client.query("SELECT bucket FROM bucket ORDER BY bucket", &[]).await?;
    let served: Vec<i16> = rows.iter().map(|row| row.get(0)).collect();
    if served != numbers {
        return Err(SchemaError::OtherBuckets(name.to_owned()));
    }

    let now: Timestamp = client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
    roles::act_as(client, MAINTAINER).await?;
    ensure_partitions(client, now).await?;
    Ok(())
}

/// Creates the partitions of the next weeks. Ids may be a day old and five minutes ahead.
///
/// # Errors
///
/// PostgreSQL's.
pub async fn ensure_partitions(client: &Client, now: Timestamp) -> Result<usize, tokio_postgres::Error> {
    let (before, after) = (jiff::SignedDuration::from_hours(25), WEEK + WEEK);
    Ok(BRANCH.create(client, now, before, after).await? + POSTING.create(client, now, before, after).await?)
}
