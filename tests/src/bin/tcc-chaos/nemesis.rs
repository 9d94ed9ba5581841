//! Lets things fail: processes, servers, connections, wires, rows, and several of them at a time.

use crate::{
    clients::account,
    system::{INSTANCES, SHARDS, System},
};
use std::{
    collections::BTreeMap,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tcc_tests::{proxy::Mode, try_connect};
use tokio::time::sleep;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    KillInstance,
    StopInstance,
    DrainInstance,
    CrashServer { coordinator: bool },
    KillBackend { coordinator: bool },
    TerminateConnections { coordinator: bool },
    FreezeServer { coordinator: bool },
    ExhaustConnections { coordinator: bool },
    CutAfterCommit { coordinator: bool },
    Wire { mode: Mode, coordinator: bool },
    IsolateInstance,
    IsolateServer { coordinator: bool },
    LockAccount,
    LockTransactions,
    BlockPayee,
}

impl Kind {
    fn all() -> Vec<Self> {
        let both = |kind: fn(bool) -> Self| [kind(true), kind(false)];
        let wires = [Mode::Stalled, Mode::Deaf, Mode::Slow, Mode::Cut];
        let wires = wires
            .into_iter()
            .flat_map(|mode| [true, false].map(|coordinator| Self::Wire { mode, coordinator }));
        [
            Self::KillInstance,
            Self::KillInstance,
            Self::StopInstance,
            Self::DrainInstance,
            Self::IsolateInstance,
            Self::LockAccount,
            Self::LockTransactions,
            Self::BlockPayee,
        ]
        .into_iter()
        .chain(both(|coordinator| Self::CrashServer { coordinator }))
        .chain(both(|coordinator| Self::KillBackend { coordinator }))
        .chain(both(|coordinator| Self::TerminateConnections { coordinator }))
        .chain(both(|coordinator| Self::FreezeServer { coordinator }))
        .chain(both(|coordinator| Self::ExhaustConnections { coordinator }))
        .chain(both(|coordinator| Self::CutAfterCommit { coordinator }))
        .chain(both(|coordinator| Self::IsolateServer { coordinator }))
        .chain(wires)
        .collect()
    }

    fn name(self) -> &'static str {
        let of =
            |coordinator: bool, of_coordinator, of_shard| if coordinator { of_coordinator } else { of_shard };
        match self {
            Self::KillInstance => "tccd killed",
            Self::StopInstance => "tccd stopped for a while",
            Self::DrainInstance => "tccd told to leave",
            Self::IsolateInstance => "tccd without any server",
            Self::LockAccount => "account locked by a person",
            Self::LockTransactions => "transactions locked by a person",
            Self::BlockPayee => "account blocked for a while",
            Self::CrashServer { coordinator } => {
                of(coordinator, "coordinator's server crashed", "shard's server crashed")
            }
            Self::KillBackend { coordinator } => {
                of(coordinator, "coordinator's backend killed", "shard's backend killed")
            }
            Self::TerminateConnections { coordinator } => {
                of(coordinator, "coordinator's connections terminated", "shard's connections terminated")
            }
            Self::FreezeServer { coordinator } => {
                of(coordinator, "coordinator's server frozen", "shard's server frozen")
            }
            Self::ExhaustConnections { coordinator } => {
                of(coordinator, "coordinator without free connections", "shard without free connections")
            }
            Self::CutAfterCommit { coordinator } => {
                of(coordinator, "wire to coordinator cut after a commit", "wire to shard cut after a commit")
            }
            Self::IsolateServer { coordinator } => {
                of(coordinator, "coordinator's server without any tccd", "shard's server without any tccd")
            }
            Self::Wire { mode, coordinator } => match mode {
                Mode::Stalled => of(coordinator, "wire to coordinator stalled", "wire to shard stalled"),
                Mode::Deaf => of(coordinator, "wire from coordinator lost", "wire from shard lost"),
                Mode::Slow => of(coordinator, "wire to coordinator slow", "wire to shard slow"),
                Mode::Cut | Mode::Whole => of(coordinator, "wire to coordinator cut", "wire to shard cut"),
            },
        }
    }
}

/// Lets things fail for so long. Answers how often each kind did, when everything that was under way is over.
pub async fn torment(system: &System, lasts: Duration, seed: u64) -> BTreeMap<&'static str, u64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut deck, mut kinds, mut faults) = (Vec::new(), BTreeMap::new(), Vec::new());
    let (started, mut told) = (Instant::now(), Instant::now());
    while started.elapsed() < lasts {
        if deck.is_empty() {
            deck = Kind::all();
            rng.shuffle(&mut deck);
        }
        let kind = deck.pop().expect("it was just filled");
        let seconds = rng.f64() * 4.0 + 0.2;
        let fault = Fault {
            system: system.clone(),
            instance: rng.usize(0..INSTANCES),
            shard: rng.usize(0..SHARDS),
            account: rng.usize(0..20),
            lasts: Duration::from_secs_f64(seconds),
        };
        faults.push(tokio::spawn(async move { (kind, fault.happen(kind).await) }));
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            println!("{:>4} s  {} faults, now: {}", started.elapsed().as_secs(), faults.len(), kind.name());
        }
        sleep(Duration::from_secs_f64(rng.f64() * 1.5 + 0.1)).await;
    }
    for fault in faults {
        let (kind, happened) = fault.await.expect("a fault does not panic");
        // One that met another one did not happen.
        if happened.is_ok() {
            *kinds.entry(kind.name()).or_default() += 1;
        }
    }
    kinds
}

struct Fault {
    system: System,
    instance: usize,
    shard: usize,
    account: usize,
    lasts: Duration,
}

impl Fault {
    /// From its beginning to its end, when it is mended. An error: it could not happen.
    async fn happen(&self, kind: Kind) -> anyhow::Result<()> {
        let server = |coordinator: bool| if coordinator { 0 } else { self.shard + 1 };
        match kind {
            Kind::KillInstance => {
                let mut tccd = self.system.instances[self.instance].try_lock()?;
                tccd.kill().await?;
                sleep(self.lasts / 2).await;
                self.restart(&mut tccd).await
            }
            Kind::StopInstance => {
                let tccd = self.system.instances[self.instance].try_lock()?;
                tccd.signal("STOP").await?;
                sleep(self.lasts * 2).await;
                tccd.signal("CONT").await
            }
            Kind::DrainInstance => {
                let mut tccd = self.system.instances[self.instance].try_lock()?;
                // What does not end in time is killed.
                let _ = tccd.terminate(Duration::from_secs(20)).await;
                self.restart(&mut tccd).await
            }
            Kind::CrashServer { coordinator } => {
                let server = Arc::clone(&self.system.servers[server(coordinator)]);
                let lasts = self.lasts / 2;
                tokio::task::spawn_blocking(move || {
                    let mut server = server.try_lock()?;
                    server.crash()?;
                    std::thread::sleep(lasts);
                    server.launch()?;
                    anyhow::Ok(())
                })
                .await?
            }
            Kind::KillBackend { coordinator } => {
                let server = self.system.servers[server(coordinator)].try_lock()?;
                let backends = server.processes();
                // The first is the server itself; it starts everything anew when one of the others dies.
                let last =
                    backends.last().filter(|_| backends.len() > 6).ok_or_else(|| anyhow::anyhow!("none"))?;
                kill("KILL", std::slice::from_ref(last));
                sleep(Duration::from_secs(1)).await;
                Ok(())
            }
            Kind::TerminateConnections { coordinator } => {
                let sql = try_connect(&self.system.urls[server(coordinator)]).await?;
                let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tcc%'";
                sql.query(all, &[]).await?;
                Ok(())
            }
            Kind::FreezeServer { coordinator } => {
                let server = self.system.servers[server(coordinator)].try_lock()?;
                let processes = server.processes();
                kill("STOP", &processes);
                sleep(self.lasts).await;
                kill("CONT", &processes);
                Ok(())
            }
            Kind::ExhaustConnections { coordinator } => {
                let url = &self.system.urls[server(coordinator)];
                let mut taken = Vec::new();
                while let Ok(sql) = try_connect(url).await {
                    taken.push(sql);
                    if taken.len() > 200 {
                        break;
                    }
                }
                sleep(self.lasts).await;
                Ok(())
            }
            Kind::CutAfterCommit { coordinator } => {
                let wire = &self.system.wires[self.instance][server(coordinator)];
                wire.cut_next_commit();
                let began = Instant::now();
                while wire.cuts_next_commit() {
                    anyhow::ensure!(began.elapsed() < Duration::from_secs(20), "no commit came");
                    sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            }
            Kind::Wire { mode, coordinator } => {
                let wire = &self.system.wires[self.instance][server(coordinator)];
                wire.set(mode);
                sleep(self.lasts).await;
                wire.set(Mode::Whole);
                Ok(())
            }
            Kind::IsolateInstance => {
                self.system.wires[self.instance].iter().for_each(|wire| wire.set(Mode::Cut));
                sleep(self.lasts * 2).await;
                self.system.wires[self.instance].iter().for_each(|wire| wire.set(Mode::Whole));
                Ok(())
            }
            Kind::IsolateServer { coordinator } => {
                let wires = || self.system.wires.iter().map(|wires| &wires[server(coordinator)]);
                wires().for_each(|wire| wire.set(Mode::Cut));
                sleep(self.lasts).await;
                wires().for_each(|wire| wire.set(Mode::Whole));
                Ok(())
            }
            Kind::LockAccount => {
                let mut sql = try_connect(&self.system.urls[self.shard + 1]).await?;
                let lock = sql.transaction().await?;
                let account = account(self.shard, self.account);
                lock.execute("SELECT FROM account WHERE id = $1 FOR UPDATE", &[&account]).await?;
                sleep(self.lasts).await;
                lock.rollback().await?;
                Ok(())
            }
            Kind::LockTransactions => {
                let mut sql = try_connect(&self.system.urls[0]).await?;
                let lock = sql.transaction().await?;
                let some = "SELECT FROM transaction WHERE phase IN (1, 2, 3, 5) ORDER BY id DESC LIMIT 20 FOR UPDATE";
                lock.execute(some, &[]).await?;
                sleep(self.lasts.min(Duration::from_secs(3))).await;
                lock.rollback().await?;
                Ok(())
            }
            Kind::BlockPayee => {
                let sql = try_connect(&self.system.urls[self.shard + 1]).await?;
                let account = account(self.shard, self.account);
                let set = "UPDATE account SET state = $2 WHERE id = $1";
                sql.execute(set, &[&account, &2_i16]).await?;
                sleep(self.lasts / 2).await;
                // It must not stay blocked, whatever else happens.
                loop {
                    if let Ok(sql) = try_connect(&self.system.urls[self.shard + 1]).await
                        && sql.execute(set, &[&account, &1_i16]).await.is_ok()
                    {
                        return Ok(());
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// It may not find what it needs at the start, as an init system sees it: it is started until it serves.
    async fn restart(&self, tccd: &mut tcc_tests::process::Tccd) -> anyhow::Result<()> {
        for _ in 0..60 {
            match tccd.restart().await {
                Ok(()) => return Ok(()),
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
        anyhow::bail!("tccd does not start any more")
    }
}

fn kill(signal: &str, pids: &[String]) {
    let _ = Command::new("kill").arg(format!("-{signal}")).args(pids).status();
}
