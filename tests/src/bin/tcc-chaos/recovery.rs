//! How long it takes until all is as before: one fault at a time, each of them several times, while clients go on wanting transfers.
//!
//! - **Take-over:** one of two `tccd` is killed, and stays away. How long did its transactions stand still: those that were being tried,
//!   from the kill on, and those that fell due in the seconds after it, from their due time on?
//! - **Crash:** a server is killed and started again. How long after its return does the first client that needs it succeed?
//! - **Promotion:** a server is lost for good. How long after its standby takes writes does the first client succeed? (A shard's
//!   acknowledges nothing before it has a standby of its own.)
//! - **Others:** while a shard is away, how long do creations take that need only the others, against a while before?
//!
//! All of it shares one machine: a server that recovers, and one that is copied, take their processor from the others.

use crate::{
    check, clients,
    system::{SHARDS, Setup, System},
};
use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tcc_core::Timestamp;
use tcc_tests::{hold_due_in, try_connect};
use tokio::{
    task::{JoinSet, block_in_place},
    time::{MissedTickBehavior, interval, sleep},
};

/// How often everything fails.
const ROUNDS: usize = 5;
/// How many clients there are for each pair of shards, and how often each of them wants something.
const CLIENTS: usize = 2;
const PACE: Duration = Duration::from_millis(40);
/// How long nothing is measured after a fault is over, and how long is then measured what is normal.
const SETTLE: Duration = Duration::from_secs(4);
const NORMAL: Duration = Duration::from_secs(6);
/// How long a server is away that crashed, and an instance that was killed.
const AWAY: Duration = Duration::from_secs(3);
const KILLED: Duration = Duration::from_secs(10);
/// How long an asynchronous standby has received nothing when it takes over.
const HELD_BACK: Duration = Duration::from_secs(1);
/// How long anything may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// The goals: in seconds, and in percent.
const TAKEOVER_S: f64 = 6.0;
const CRASH_S: f64 = 2.0;
const PROMOTION_S: f64 = 10.0;
const OTHERS_PERCENT: f64 = 20.0;

/// What stood still when an instance was killed: holds that fell due in the seconds after, and what was just being tried.
const STOOD_STILL: &str = "
SELECT count(*) FILTER (WHERE phase IN (1, 2, 3, 5)),
       count(*),
       coalesce(max(extract(epoch FROM CASE WHEN coalesce(held_at, decided_at) > $1
                                            THEN coalesce(held_at, decided_at) - $1
                                            ELSE settled_at - greatest(due_at, $1) END)), 0)::float8
FROM transaction
WHERE created_at < $1 AND due_at < $2 AND (settled_at IS NULL OR settled_at > $1)";

/// One creation.
#[derive(Debug, Clone, Copy)]
struct Shot {
    /// The shards that it needs.
    shards: [usize; 2],
    began: Instant,
    ended: Instant,
    is_held: bool,
}

impl Shot {
    fn needs(&self, server: usize) -> bool {
        server == 0 || self.shards.contains(&(server - 1))
    }
}

/// Durations in seconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (quantile * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    fn row(&self, what: &str) -> String {
        format!("{what:<44} {:>3}  {:>6.2} s  {:>6.2} s", self.0.len(), self.quantile(0.5), self.max())
    }
}

#[derive(Default)]
struct Measured {
    takeover: Times,
    /// Of the coordinator's server and of the shards'.
    crash: [Times; 2],
    promotion: [Times; 2],
    /// Creations that do not need the shard that failed: before it did, and meanwhile.
    before: Times,
    meanwhile: Times,
    /// How many of those were not held.
    failed: usize,
}

/// Measures everything. Answers the last line.
pub async fn measure() -> anyhow::Result<String> {
    println!("starting 4 PostgreSQL servers, their standbys and 2 tccd");
    let system = System::start(Setup { instances: 2, is_rough: false }).await?;
    clients::open_accounts(&system).await.context("opening accounts")?;
    let mut run = Run { load: Load::start(&system), system, measured: Measured::default() };
    for round in 0..ROUNDS {
        let shard = 1 + round % SHARDS;
        println!("round {} of {ROUNDS}", round + 1);
        run.take_over(round % 2).await.context("killing an instance")?;
        for server in [shard, 0] {
            run.crash(server).await.context("crashing a server")?;
            run.promote(server).await.context("promoting a standby")?;
        }
    }
    let Run { load, system, measured } = run;
    load.stop();
    system.mend().await?;
    check::until_final(&system, PATIENCE).await?;
    let (findings, _) = system.client(0).audit().await;
    ensure!(findings.is_empty(), "the auditor has found something: {:?}", findings.first());
    Ok(measured.tell())
}

struct Run {
    system: System,
    load: Load,
    measured: Measured,
}

impl Run {
    /// Waits until all is as it should be, and measures that. Answers since when it did.
    async fn normal(&self) -> Instant {
        sleep(SETTLE).await;
        let since = Instant::now();
        sleep(NORMAL).await;
        since
    }

    async fn take_over(&mut self, instance: usize) -> anyhow::Result<()> {
        self.both_serve().await?;
        self.normal().await;
        let sql = try_connect(&self.system.urls[0]).await?;
        let killed_at: Timestamp = sql.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
        let mut tccd = self.system.instances[instance].lock().await;
        tccd.kill().await?;
        sleep(KILLED).await;
        let until = killed_at + SignedDuration::try_from(KILLED).context("a short while")?;
        let began = Instant::now();
        loop {
            let row = sql.query_one(STOOD_STILL, &[&killed_at, &until]).await?;
            let (open, all): (i64, i64) = (row.get(0), row.get(1));
            if open == 0 {
                ensure!(all > 0, "nothing was under way when it was killed");
                self.measured.takeover.0.push(row.get(2));
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "{open} transactions stand still");
            sleep(Duration::from_millis(200)).await;
        }
        tccd.restart().await
    }

    /// Waits until each instance serves about half of the slots.
    async fn both_serve(&self) -> anyhow::Result<()> {
        let sql = try_connect(&self.system.urls[0]).await?;
        let began = Instant::now();
        let shares = "SELECT count(*) FROM (SELECT FROM slot WHERE owner IS NOT NULL GROUP BY owner HAVING count(*) > 100) AS s";
        while sql.query_one(shares, &[]).await?.get::<_, i64>(0) != 2 {
            ensure!(began.elapsed() < PATIENCE, "the instances do not share the slots");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn crash(&mut self, server: usize) -> anyhow::Result<()> {
        let normal_since = self.normal().await;
        let failed_at = Instant::now();
        let mut taken = self.system.sites[server].server.lock().await;
        block_in_place(|| taken.cluster.crash())?;
        sleep(AWAY).await;
        block_in_place(|| taken.cluster.launch())?;
        let returned_at = Instant::now();
        drop(taken);
        let succeeded_at = self.load.first_success(server, failed_at, returned_at).await?;
        let took = (succeeded_at - returned_at).as_secs_f64();
        self.measured.crash[usize::from(server > 0)].0.push(took);
        self.others(server, normal_since, failed_at, succeeded_at);
        Ok(())
    }

    async fn promote(&mut self, server: usize) -> anyhow::Result<()> {
        let normal_since = self.normal().await;
        let failed_at = Instant::now();
        let failover = self.system.sites[server].fail_over(HELD_BACK).await?;
        let succeeded_at = self.load.first_success(server, failed_at, failover.served_at).await?;
        let took = (succeeded_at - failover.served_at).as_secs_f64();
        self.measured.promotion[usize::from(server > 0)].0.push(took);
        self.others(server, normal_since, failed_at, succeeded_at);
        Ok(())
    }

    /// Creations that do not need a shard. (All of them need the coordinator's server.)
    fn others(&mut self, server: usize, normal_since: Instant, failed_at: Instant, until: Instant) {
        if server == 0 {
            return;
        }
        for shot in self.load.shots().iter().filter(|shot| !shot.needs(server)) {
            let is_before = (normal_since..failed_at).contains(&shot.began);
            let is_meanwhile = (failed_at..until).contains(&shot.began);
            if shot.is_held && is_before {
                self.measured.before.0.push((shot.ended - shot.began).as_secs_f64());
            }
            if shot.is_held && is_meanwhile {
                self.measured.meanwhile.0.push((shot.ended - shot.began).as_secs_f64());
            }
            self.measured.failed += usize::from(!shot.is_held && is_meanwhile);
        }
    }
}

impl Measured {
    fn tell(&self) -> String {
        println!("{:<44} {:>3}  {:>8}  {:>8}", "", "", "median", "worst");
        println!("{}", self.takeover.row("take-over of what a killed tccd had"));
        for (n, of) in ["the coordinator's", "a shard's"].into_iter().enumerate() {
            println!("{}", self.crash[n].row(&format!("first success after {of} crash")));
            println!("{}", self.promotion[n].row(&format!("first success after {of} promotion")));
        }
        let (before, meanwhile) = (self.before.quantile(0.99), self.meanwhile.quantile(0.99));
        let change = (meanwhile / before - 1.0) * 100.0;
        println!(
            "creations that need other shards only: p99 {:.1} ms of {} before, {:.1} ms of {} meanwhile, {} of them not held",
            before * 1e3,
            self.before.0.len(),
            meanwhile * 1e3,
            self.meanwhile.0.len(),
            self.failed,
        );
        let worst = |times: &[Times; 2]| times.iter().map(Times::max).fold(0.0, f64::max);
        let (takeover, crash, promotion) = (self.takeover.max(), worst(&self.crash), worst(&self.promotion));
        let is_ok = takeover <= TAKEOVER_S
            && crash <= CRASH_S
            && promotion <= PROMOTION_S
            && change <= OTHERS_PERCENT
            && self.failed == 0;
        format!(
            "recovery: {} takeover_max_s={takeover:.2} crash_max_s={crash:.2} promotion_max_s={promotion:.2} \
             others_p99_change={change:+.0}% others_failed={}",
            if is_ok { "ok" } else { "MISSED" },
            self.failed,
        )
    }
}

/// Clients that want transfers at a moderate pace, some for each pair of shards.
struct Load {
    shots: Arc<Mutex<Vec<Shot>>>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(system: &System) -> Self {
        let shots = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let pairs = (0..SHARDS).flat_map(|payer| (0..SHARDS).map(move |payee| [payer, payee]));
        for shards in pairs {
            for n in 0..CLIENTS {
                tasks.spawn(shoot(system.clone(), shards, n, Arc::clone(&shots)));
            }
        }
        Self { shots, tasks }
    }

    /// What has been done so far, in the order of its ends.
    fn shots(&self) -> MutexGuard<'_, Vec<Shot>> {
        self.shots.lock().expect("no holder panics")
    }

    /// When, after a server had come back, the first creation succeeded that needs it and was asked for after it had failed.
    async fn first_success(
        &self,
        server: usize,
        failed_at: Instant,
        returned_at: Instant,
    ) -> anyhow::Result<Instant> {
        let began = Instant::now();
        loop {
            let first = {
                let shots = self.shots();
                let since = shots.iter().rev().take_while(|shot| shot.ended > returned_at);
                since
                    .filter(|shot| shot.is_held && shot.needs(server) && shot.began > failed_at)
                    .map(|shot| shot.ended)
                    .min()
            };
            if let Some(first) = first {
                return Ok(first);
            }
            ensure!(began.elapsed() < PATIENCE, "no client has succeeded");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn stop(mut self) {
        self.tasks.abort_all();
    }
}

async fn shoot(system: System, shards: [usize; 2], n: usize, shots: Arc<Mutex<Vec<Shot>>>) {
    let mut rng = fastrand::Rng::new();
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (payer, payee) = (clients::account(shards[0], 2 * n), clients::account(shards[1], 2 * n + 1));
    loop {
        ticks.tick().await;
        let due_in = SignedDuration::from_millis(rng.i64(1_000..6_000));
        let mut client = system.client(rng.usize(0..system.instances.len()));
        let began = Instant::now();
        let created = client.create(&hold_due_in(&payer, &payee, 1, due_in)).await;
        let is_held = created.is_ok();
        let mut shots = shots.lock().expect("no holder panics");
        shots.push(Shot { shards, began, ended: Instant::now(), is_held });
    }
}
