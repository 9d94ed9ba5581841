//! What a run costs: durable commits, WAL, and CPU time.
//!
//! *Durable commits* are the commit records in the write-ahead logs of all servers between the two ends of a run. Each
//! transaction that wrote something leaves exactly one, and its client waited for it to be flushed; read-only transactions
//! leave none. (`pg_stat_database.xact_commit` would count those, too, and is told seconds late.) They are counted by
//! `pg_walinspect` after the run and outside its time. *WAL bytes* are what the logs grew by, with
//! full-page images. *CPU* is user and system time of all processes of all servers, of tccd, and of this load generator.

use crate::{processes, system::System};
use anyhow::Context as _;
use std::process;

/// Taken at the beginning of a run.
pub struct Meter {
    logs: Vec<String>,
    cpu: Cpu,
}

/// CPU seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// Of all PostgreSQL servers.
    pub postgres: f64,
    /// Of tccd.
    pub tccd: f64,
    /// Of the load generator.
    pub load: f64,
}

/// What a run cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Commit records, over all servers.
    pub commits: u64,
    /// Bytes of log, over all servers.
    pub wal_bytes: u64,
    /// CPU seconds.
    pub cpu: Cpu,
}

impl Meter {
    /// Begins to count.
    ///
    /// # Errors
    ///
    /// If a server or a process does not answer.
    pub async fn start(system: &System) -> anyhow::Result<Self> {
        Ok(Self { logs: ends(system).await?, cpu: cpu(system)? })
    }

    /// Ends, and answers what was used.
    ///
    /// # Errors
    ///
    /// If a server or a process does not answer, or `pg_walinspect` is not installed.
    pub async fn stop(self, system: &System) -> anyhow::Result<Usage> {
        let now = cpu(system)?;
        let mut usage = Usage {
            cpu: Cpu {
                postgres: now.postgres - self.cpu.postgres,
                tccd: now.tccd - self.cpu.tccd,
                load: now.load - self.cpu.load,
            },
            ..Usage::default()
        };
        let logs = self.logs.iter().zip(ends(system).await?);
        for (sql, (from, to)) in system.databases().zip(logs) {
            sql.batch_execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
                .await
                .context("counting commits needs pg_walinspect, of postgresql-contrib")?;
            let row = sql
                .query_one(
                    "SELECT ($2::text::pg_lsn - $1::text::pg_lsn)::int8,
                            coalesce(sum(count) FILTER (WHERE \"resource_manager/record_type\" = 'Transaction/COMMIT'), 0)::int8
                     FROM pg_get_wal_stats($1::text::pg_lsn, $2::text::pg_lsn, true)",
                    &[from, &to],
                )
                .await
                .context("reading the write-ahead log")?;
            usage.wal_bytes += row.get::<_, i64>(0).unsigned_abs();
            usage.commits += row.get::<_, i64>(1).unsigned_abs();
        }
        Ok(usage)
    }
}

impl Usage {
    /// The sum of two runs.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            commits: self.commits + other.commits,
            wal_bytes: self.wal_bytes + other.wal_bytes,
            cpu: Cpu {
                postgres: self.cpu.postgres + other.cpu.postgres,
                tccd: self.cpu.tccd + other.cpu.tccd,
                load: self.cpu.load + other.cpu.load,
            },
        }
    }
}

/// The share of row updates in a table that stayed on their page, in percent. PostgreSQL tells it seconds late, so ask after
/// tccd has stopped.
///
/// # Errors
///
/// If the server does not answer.
pub async fn hot_share(sql: &tokio_postgres::Client, table: &str) -> anyhow::Result<f64> {
    let sum = "SELECT coalesce(100 * sum(n_tup_hot_upd) / nullif(sum(n_tup_upd), 0), 0)::float8
               FROM pg_stat_user_tables WHERE relname LIKE $1";
    Ok(sql.query_one(sum, &[&format!("{table}%")]).await?.get(0))
}

fn cpu(system: &System) -> anyhow::Result<Cpu> {
    Ok(Cpu {
        postgres: processes::cpu_of_servers(&system.postmasters()?)?,
        tccd: system.tccd_cpu()?,
        load: processes::cpu_of(process::id())?,
    })
}

/// Up to where each log is flushed.
async fn ends(system: &System) -> anyhow::Result<Vec<String>> {
    let mut ends = Vec::new();
    for sql in system.databases() {
        ends.push(sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?.get(0));
    }
    Ok(ends)
}
