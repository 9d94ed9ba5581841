//! A whole system: PostgreSQL servers, a `tccd` process, connections to it, and the accounts.
//!
//! The servers have the settings of `tccd dev`, and more memory: fsync, synchronous_commit and full_page_writes are on.

use crate::{
    Scale,
    fleet::{Accounts, Fleet},
    latency::Latency,
    processes,
    progress::Progress,
};
use anyhow::{Context as _, ensure};
use std::{fs, time::Duration};
use tcc_coordinator::{
    auth::Role,
    config::{Config, Traffic},
    dev::{Cluster, Servers},
};
use tcc_core::Timestamp;
use tcc_proto::v1;
use tcc_tests::{process::Tccd, secure::Known};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// What the servers get beyond the settings of `tccd dev`, the baseline's too: memory like that of a server of its own.
pub const SETTINGS: [&str; 1] = ["shared_buffers=1GB"];

/// How often is asked whether everything is paid. Rarely enough to cost nothing.
const LOOK: Duration = Duration::from_millis(200);
/// Nothing takes longer than this to be paid after it is due.
const PATIENCE: Duration = Duration::from_secs(600);

/// A system that runs.
pub struct System {
    servers: Servers,
    tccd: Tccd,
    /// What works on the shards, if tccd does not.
    ledgers: Vec<Tccd>,
    /// What its tccd is configured with.
    config: Config,
    callers: Option<Callers>,
    connections: u32,
    /// Connections to its tccd.
    pub fleet: Fleet,
    /// Its accounts, which are open and funded.
    pub accounts: Accounts,
    /// To the coordinator's database.
    pub sql: Client,
    /// To the shards' databases.
    pub shard_sql: Vec<Client>,
}

/// One more tccd on the same servers.
pub struct Instance {
    /// The process.
    pub tccd: Tccd,
    /// Connections to it, which open anew by themselves.
    pub fleet: Fleet,
}

impl Instance {
    /// How it is.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn status(&self) -> anyhow::Result<v1::GetStatusResponse> {
        status(&self.fleet).await
    }
}

async fn status(fleet: &Fleet) -> anyhow::Result<v1::GetStatusResponse> {
    let response = fleet.operator().get_status(v1::GetStatusRequest {}).await;
    Ok(response.context("asking for the status")?.into_inner())
}

/// What became of the holds of a run.
pub struct Settled {
    /// How many are CONFIRMED.
    pub confirmed: u64,
    /// When the last one was.
    pub last: Timestamp,
    /// How many were per second, from `since` on.
    pub per_second: Vec<(f64, f64)>,
}

/// The one caller that tccd knows, and its API key.
struct Callers {
    known: Known,
    key: String,
}

impl Callers {
    fn new() -> Self {
        let mut known = Known::new();
        let key = known.caller("bench", &Role::ALL.map(Role::name), &["*"]);
        Self { known, key }
    }
}

/// What a tccd is configured with. One caller does what many would: its rate is not bounded.
fn configured(servers: &Servers, callers: Option<&Callers>) -> Config {
    let config = servers.config("127.0.0.1:0");
    let Some(callers) = callers else { return config };
    let most = 1_000_000;
    let traffic = Traffic {
        caller_requests_per_second: most,
        caller_burst: most,
        caller_requests: most,
        ..Traffic::default()
    };
    Config { insecure_dev: false, auth: callers.known.auth(), traffic, ..config }
}

impl System {
    /// Starts it, and opens its accounts.
    ///
    /// # Errors
    ///
    /// If PostgreSQL or tccd does not start, or a server is not durable.
    pub async fn start(shards: usize, scale: &Scale, progress: &Progress) -> anyhow::Result<Self> {
        let processes = if scale.remote { "tccd, a tcc-ledgerd for each shard" } else { "tccd" };
        progress.say(&format!(
            "   starting {} servers, {processes}, {} accounts",
            shards + 1,
            scale.accounts
        ));
        let servers = tokio::task::spawn_blocking(move || Servers::start(shards, None, &SETTINGS)).await??;
        let callers = scale.api_key.then(Callers::new);
        let mut config = configured(&servers, callers.as_ref());
        let (asked, mut ledgers) = (config.clone(), Vec::new());
        for shard in config.shards.iter_mut().filter(|_| scale.remote) {
            let ledger = Tccd::ledgerd(&asked, &shard.name).await?;
            ledger.url().clone_into(&mut shard.address);
            ledgers.push(ledger);
        }
        let tccd = Tccd::start(&config).await?;
        let key = callers.as_ref().map(|callers| callers.key.as_str());
        let fleet = Fleet::connect(tccd.url(), scale.connections, key).await?;
        let sql = connect(&servers.coordinator).await?;
        let mut shard_sql = Vec::new();
        for shard in &servers.shards {
            shard_sql.push(connect(shard).await?);
        }
        let accounts = Accounts::spread(scale.accounts, shards);
        let connections = scale.connections;
        let system =
            Self { servers, tccd, ledgers, config, callers, connections, fleet, accounts, sql, shard_sql };
        let watch = progress.watch("accounts", system.accounts.count());
        system.fleet.open(&system.accounts, || watch.step()).await?;
        Ok(system)
    }

    fn key(&self) -> Option<&str> {
        self.callers.as_ref().map(|callers| callers.key.as_str())
    }

    /// Connections to all its databases, the coordinator's first.
    pub fn databases(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(&self.sql).chain(&self.shard_sql)
    }

    /// The process ids of its servers.
    ///
    /// # Errors
    ///
    /// If a server is gone.
    pub fn postmasters(&self) -> anyhow::Result<Vec<u32>> {
        std::iter::once(&self.servers.coordinator).chain(&self.servers.shards).map(postmaster).collect()
    }

    /// What the coordinator's server has logged since it started.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn coordinator_log(&self) -> anyhow::Result<String> {
        let path = self.servers.coordinator.home().join("log");
        fs::read_to_string(path).context("reading the log of the coordinator's server")
    }

    /// One more connection to the coordinator's database.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        connect(&self.servers.coordinator).await
    }

    /// The process id of its tccd.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn tccd_process(&self) -> anyhow::Result<u32> {
        self.tccd.id().context("tccd has ended by itself")
    }

    /// CPU seconds of its tccd, and of what works on the shards instead of it.
    ///
    /// # Errors
    ///
    /// If one has ended.
    pub fn tccd_cpu(&self) -> anyhow::Result<f64> {
        let ledgers =
            self.ledgers.iter().map(|ledger| ledger.id().context("a tcc-ledgerd has ended by itself"));
        let mut sum = processes::cpu_of(self.tccd_process()?)?;
        for ledger in ledgers {
            sum += processes::cpu_of(ledger?)?;
        }
        Ok(sum)
    }

    /// Memory of tccd in bytes: now, and at most.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn tccd_memory(&self) -> anyhow::Result<(u64, u64)> {
        processes::resident(self.tccd_process()?)
    }

    /// How it is.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn status(&self) -> anyhow::Result<v1::GetStatusResponse> {
        status(&self.fleet).await
    }

    /// Starts one more tccd.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub async fn join(&self) -> anyhow::Result<Instance> {
        let tccd = Tccd::start(&self.config).await?;
        let fleet = Fleet::connect(tccd.url(), self.connections, self.key()).await?;
        Ok(Instance { tccd, fleet })
    }

    /// The coordinator's server.
    #[must_use]
    pub fn coordinator(&self) -> &Cluster {
        &self.servers.coordinator
    }

    /// Stops a shard's server without letting it finish.
    ///
    /// # Errors
    ///
    /// If it cannot be stopped.
    pub fn crash_shard(&mut self, shard: usize) -> anyhow::Result<()> {
        Ok(self.servers.shards[shard].crash()?)
    }

    /// Starts it again.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub async fn launch_shard(&mut self, shard: usize) -> anyhow::Result<()> {
        self.servers.shards[shard].launch()?;
        self.shard_sql[shard] = connect(&self.servers.shards[shard]).await?;
        Ok(())
    }

    /// Waits until every hold that falls due until `due_until` is final, then reads from the rows what became of those that
    /// were created since `since`. The times in the rows are the database's, which has this machine's clock.
    ///
    /// # Errors
    ///
    /// If it takes longer than ten minutes.
    pub async fn settle(
        &self,
        since: Timestamp,
        due_until: Timestamp,
        watch: impl Fn(u64),
    ) -> anyhow::Result<Settled> {
        let wait = due_until.duration_since(Timestamp::now());
        tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Cheap to ask; only when nothing is being worked on are the rows looked at.
            if self.status().await?.active == 0 {
                let open = self.open_until(due_until).await?;
                watch(open);
                if open == 0 {
                    break;
                }
            }
            ensure!(
                tokio::time::Instant::now() < until,
                "holds are not final {PATIENCE:?} after they were due"
            );
            tokio::time::sleep(LOOK).await;
        }
        self.settled(since).await
    }

    /// How many holds that are due by then are not final.
    async fn open_until(&self, due_until: Timestamp) -> anyhow::Result<u64> {
        let sql = "SELECT count(*) FROM transaction WHERE phase NOT IN (4, 6) AND due_at <= $1";
        Ok(self.sql.query_one(sql, &[&due_until]).await?.get::<_, i64>(0).unsigned_abs())
    }

    async fn settled(&self, since: Timestamp) -> anyhow::Result<Settled> {
        let sql = "SELECT count(*), coalesce(max(settled_at), $1) FROM transaction WHERE phase = 4 AND created_at >= $1";
        let row = self.sql.query_one(sql, &[&since]).await?;
        let rows = self
            .sql
            .query(
                "SELECT floor(extract(epoch FROM settled_at - $1))::float8 AS second, count(*)::float8
                 FROM transaction WHERE phase = 4 AND created_at >= $1 GROUP BY second ORDER BY second",
                &[&since],
            )
            .await?;
        Ok(Settled {
            confirmed: row.get::<_, i64>(0).unsigned_abs(),
            last: row.get(1),
            per_second: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        })
    }

    /// When the last of the holds was paid that were created between two times.
    ///
    /// # Errors
    ///
    /// If the coordinator's database does not answer.
    pub async fn last_paid(&self, since: Timestamp, before: Timestamp) -> anyhow::Result<Timestamp> {
        let sql = "SELECT coalesce(max(settled_at), $1) FROM transaction WHERE phase = 4 AND created_at BETWEEN $1 AND $2";
        Ok(self.sql.query_one(sql, &[&since, &before]).await?.get(0))
    }

    /// How many of these are not paid.
    ///
    /// # Errors
    ///
    /// If the coordinator's database does not answer.
    pub async fn unpaid(&self, promised: &[Uuid]) -> anyhow::Result<usize> {
        let mut unpaid = 0;
        for ids in promised.chunks(10_000) {
            let sql = "SELECT count(*) FROM transaction WHERE id = ANY ($1) AND phase = 4";
            let paid: i64 = self.sql.query_one(sql, &[&ids]).await?.get(0);
            unpaid += ids.len() - paid.unsigned_abs() as usize;
        }
        Ok(unpaid)
    }

    /// How many transactions have more than one payment in the postings of the shards.
    ///
    /// # Errors
    ///
    /// If a shard does not answer.
    pub async fn paid_twice(&self) -> anyhow::Result<i64> {
        let sql = "SELECT count(*) FROM (SELECT FROM posting WHERE kind = 6 GROUP BY transaction_id HAVING count(*) > 1) AS p";
        let mut twice = 0;
        for shard in &self.shard_sql {
            twice += shard.query_one(sql, &[]).await?.get::<_, i64>(0);
        }
        Ok(twice)
    }

    /// How late holds of some slots were paid that were there at a time and fell due within a while after it.
    ///
    /// # Errors
    ///
    /// If the coordinator's database does not answer.
    pub async fn lateness_in(
        &self,
        slots: &[i16],
        at: Timestamp,
        within: Duration,
        late: &mut Latency,
    ) -> anyhow::Result<()> {
        let sql = "SELECT (extract(epoch FROM settled_at - due_at) * 1000000)::int8 FROM transaction
                   WHERE phase = 4 AND slot = ANY ($1) AND created_at <= $2 AND due_at BETWEEN $2 AND $3";
        for row in self.sql.query(sql, &[&slots, &at, &(at + within)]).await? {
            late.record_us(row.get::<_, i64>(0).max(0).unsigned_abs());
        }
        Ok(())
    }

    /// Of all holds that were created since then: how late each was paid, and how many were early.
    ///
    /// # Errors
    ///
    /// If the coordinator's database does not answer.
    pub async fn lateness(&self, since: Timestamp) -> anyhow::Result<(Latency, u64)> {
        let sql = "SELECT (extract(epoch FROM settled_at - due_at) * 1000000)::int8, decided_at < due_at
                   FROM transaction WHERE phase = 4 AND created_at >= $1";
        let (mut late, mut early) = (Latency::new(), 0);
        for row in self.sql.query(sql, &[&since]).await? {
            let us: i64 = row.get(0);
            early += u64::from(us < 0 || row.get(1));
            late.record_us(us.max(0).unsigned_abs());
        }
        Ok((late, early))
    }

    /// Lets the auditor look, who must find nothing.
    ///
    /// # Errors
    ///
    /// If he does.
    pub async fn audit(&self, progress: &Progress) -> anyhow::Result<()> {
        let watch = progress.watch("audit", 0);
        let postings = self.fleet.audit(|done| watch.set(done)).await?;
        drop(watch);
        progress.say(&format!("   the auditor read {postings} postings: 0 findings"));
        Ok(())
    }

    /// Stops tccd, in order.
    ///
    /// # Errors
    ///
    /// If it does not end in order within a minute.
    pub async fn stop_tccd(&mut self) -> anyhow::Result<()> {
        let status = self.tccd.terminate(Duration::from_secs(60)).await?;
        ensure!(status.success(), "tccd ended with {status}. Its log ends:\n{}", self.tccd.log_tail());
        Ok(())
    }

    /// Starts tccd again, and connects to it.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub async fn start_tccd(&mut self) -> anyhow::Result<()> {
        self.tccd.restart().await?;
        self.fleet = Fleet::connect(self.tccd.url(), self.connections, self.key()).await?;
        Ok(())
    }

    /// Bytes of all tables and indexes, over all servers. The log is not in it: it is recycled.
    ///
    /// # Errors
    ///
    /// If a server does not answer.
    pub async fn bytes_on_disk(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for sql in self.databases() {
            let size = "SELECT pg_database_size(current_database())";
            bytes += sql.query_one(size, &[]).await?.get::<_, i64>(0).unsigned_abs();
        }
        Ok(bytes)
    }
}

/// A connection to a server, which must be durable.
///
/// # Errors
///
/// If it does not answer, or is not.
pub async fn connect(cluster: &Cluster) -> anyhow::Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(&cluster.url(), NoTls).await.context("connecting to PostgreSQL")?;
    tokio::spawn(connection);
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let value: String = client.query_one(&format!("SHOW {setting}"), &[]).await?.get(0);
        ensure!(value == "on", "{setting} is {value}: such figures mean nothing");
    }
    Ok(client)
}

fn postmaster(cluster: &Cluster) -> anyhow::Result<u32> {
    let path = cluster.home().join("data").join("postmaster.pid");
    let text = fs::read_to_string(&path).context("reading a server's process id")?;
    text.lines().next().and_then(|line| line.trim().parse().ok()).context("a server has no process id")
}
