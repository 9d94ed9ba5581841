//! Lets things fail: processes, servers, connections, wires, rows, disks, clocks, and several of them at a time.

use crate::{
    clients::account,
    clock::Clock,
    disk::Disk,
    party::{APART, Parties, Party},
    site::{FailOver, Server, Site, taken},
    system::{SHARDS, System},
};
use anyhow::{Context as _, ensure};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, HashSet},
    process::Command,
    time::{Duration, Instant},
};
use tcc_tests::{proxy::Mode, try_connect};
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    KillInstance,
    StopInstance,
    DrainInstance,
    CrashServer { coordinator: bool },
    FailOver { coordinator: bool },
    CrashStandby,
    FillDisk { coordinator: bool },
    StepServersClock,
    StepInstancesClock,
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
    KillParty(Party),
    FreezeParty(Party),
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
            Self::KillParty(Party::Ledgerd),
            Self::KillParty(Party::Seats),
            Self::KillParty(Party::Coupons),
            Self::FreezeParty(Party::Ledgerd),
            Self::FreezeParty(Party::Seats),
            Self::FreezeParty(Party::Coupons),
            Self::CrashStandby,
            Self::StepServersClock,
            Self::StepInstancesClock,
        ]
        .into_iter()
        .chain(both(|coordinator| Self::CrashServer { coordinator }))
        .chain(both(|coordinator| Self::FailOver { coordinator }))
        .chain(both(|coordinator| Self::FillDisk { coordinator }))
        .chain(both(|coordinator| Self::KillBackend { coordinator }))
        .chain(both(|coordinator| Self::TerminateConnections { coordinator }))
        .chain(both(|coordinator| Self::FreezeServer { coordinator }))
        .chain(both(|coordinator| Self::ExhaustConnections { coordinator }))
        .chain(both(|coordinator| Self::CutAfterCommit { coordinator }))
        .chain(both(|coordinator| Self::IsolateServer { coordinator }))
        .chain(wires)
        .collect()
    }

    /// Whether this machine allows it.
    fn is_possible(self, system: &System) -> bool {
        match self {
            Self::FillDisk { .. } => system.has_small_disks,
            Self::StepServersClock => system.clock().is_some(),
            Self::StepInstancesClock => system.clocks.iter().all(Option::is_some),
            _ => true,
        }
    }

    /// How many processes and servers it kills.
    fn kills(self) -> u64 {
        let kills = matches!(
            self,
            Self::KillInstance
                | Self::CrashServer { .. }
                | Self::CrashStandby
                | Self::FailOver { .. }
                | Self::KillBackend { .. }
                | Self::KillParty(_)
        );
        kills.into()
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
            Self::KillParty(Party::Ledgerd) => "tcc-ledgerd killed",
            Self::KillParty(Party::Seats) => "seats killed",
            Self::KillParty(Party::Coupons) => "coupons killed",
            Self::FreezeParty(Party::Ledgerd) => "tcc-ledgerd frozen",
            Self::FreezeParty(Party::Seats) => "seats frozen",
            Self::FreezeParty(Party::Coupons) => "coupons frozen",
            Self::CrashServer { coordinator } => {
                of(coordinator, "coordinator's server crashed", "shard's server crashed")
            }
            Self::FailOver { coordinator } => of(
                coordinator,
                "coordinator's server lost, its late standby promoted",
                "shard's server lost, its standby promoted",
            ),
            Self::CrashStandby => "shard's standby crashed",
            Self::FillDisk { coordinator } => of(coordinator, "coordinator's disk full", "shard's disk full"),
            Self::StepServersClock => "coordinator's server's clock set",
            Self::StepInstancesClock => "tccd's clock set",
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

/// What went wrong.
#[derive(Default)]
pub struct Torment {
    /// How often each kind did.
    pub kinds: BTreeMap<&'static str, u64>,
    /// How many processes and servers were killed.
    pub kills: u64,
    /// How often a standby took over: of a shard, and of the coordinator.
    pub failovers: [u64; 2],
    /// The transactions whose rows the coordinator's database lost.
    pub lost: HashSet<String>,
    /// How many rows went back to an earlier phase.
    pub went_back: usize,
}

/// Lets things fail for so long. Answers what did, when everything that was under way is over.
pub async fn torment(system: &System, lasts: Duration, seed: u64) -> Torment {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut deck, mut faults) = (Vec::new(), Vec::new());
    let (started, mut told) = (Instant::now(), Instant::now());
    while started.elapsed() < lasts {
        if deck.is_empty() {
            deck = Kind::all();
            rng.shuffle(&mut deck);
            // Even the shortest run has a fail-over of each sort.
            if faults.is_empty() {
                deck.sort_by_key(|kind| matches!(kind, Kind::FailOver { .. }));
            }
        }
        let kind = deck.pop().expect("it was just filled");
        let seconds = rng.f64() * 4.0 + 0.2;
        let fault = Fault {
            system: system.clone(),
            instance: rng.usize(0..system.instances.len()),
            shard: rng.usize(0..SHARDS),
            account: rng.usize(0..20),
            is_forward: rng.bool(),
            lasts: Duration::from_secs_f64(seconds),
        };
        if kind.is_possible(system) {
            faults.push(tokio::spawn(async move { (kind, fault.happen(kind).await) }));
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            println!("{:>4} s  {} faults, now: {}", started.elapsed().as_secs(), faults.len(), kind.name());
        }
        sleep(Duration::from_secs_f64(rng.f64() * 2.8 + 0.2)).await;
    }
    let mut torment = Torment::default();
    for fault in faults {
        let (kind, happened) = fault.await.expect("a fault does not panic");
        match happened {
            Ok(failover) => torment.count(kind, failover),
            // One that met another one did not happen.
            Err(error) => println!("      did not happen: {}: {error:#}", kind.name()),
        }
    }
    torment
}

impl Torment {
    fn count(&mut self, kind: Kind, failover: Option<FailOver>) {
        *self.kinds.entry(kind.name()).or_default() += 1;
        self.kills += kind.kills();
        if let (Kind::FailOver { coordinator }, Some(failover)) = (kind, failover) {
            self.failovers[usize::from(coordinator)] += 1;
            self.lost.extend(failover.lost.iter().map(ToString::to_string));
            self.went_back += failover.went_back;
        }
    }
}

struct Fault {
    system: System,
    instance: usize,
    shard: usize,
    account: usize,
    /// Which way a clock is set.
    is_forward: bool,
    lasts: Duration,
}

impl Fault {
    /// From its beginning to its end, when it is mended. An error: it could not happen.
    async fn happen(&self, kind: Kind) -> anyhow::Result<Option<FailOver>> {
        match kind {
            Kind::FailOver { coordinator } => {
                let held_back = Duration::from_secs(1) + self.lasts / 2;
                self.site(coordinator).fail_over(held_back).await.map(Some)
            }
            kind => self.pass(kind).await.map(|()| None),
        }
    }

    async fn lock_transactions(&self) -> anyhow::Result<()> {
        let mut sql = try_connect(&self.system.urls[0]).await?;
        let lock = sql.transaction().await?;
        let some = "SELECT FROM transaction WHERE phase IN (1, 2, 3, 5) ORDER BY id DESC LIMIT 20 FOR UPDATE";
        lock.execute(some, &[]).await?;
        sleep(self.lasts.min(Duration::from_secs(3))).await;
        lock.rollback().await?;
        Ok(())
    }

    fn site(&self, coordinator: bool) -> &Site {
        &self.system.sites[self.server(coordinator)]
    }

    fn parties(&self) -> anyhow::Result<&Parties> {
        self.system.parties.as_deref().context("nobody takes part beside the shards")
    }

    fn server(&self, coordinator: bool) -> usize {
        if coordinator { 0 } else { self.shard + 1 }
    }

    async fn pass(&self, kind: Kind) -> anyhow::Result<()> {
        let server = |coordinator| self.server(coordinator);
        match kind {
            Kind::FailOver { .. } => unreachable!("it does not pass"),
            Kind::KillInstance => {
                let mut tccd = taken(&self.system.instances[self.instance]).await?;
                tccd.kill().await?;
                sleep(self.lasts / 2).await;
                self.restart(&mut tccd).await
            }
            Kind::StopInstance => {
                let tccd = taken(&self.system.instances[self.instance]).await?;
                tccd.signal("STOP").await?;
                sleep(self.lasts * 2).await;
                tccd.signal("CONT").await
            }
            Kind::DrainInstance => {
                let mut tccd = taken(&self.system.instances[self.instance]).await?;
                // What does not end in time is killed.
                let _ = tccd.terminate(Duration::from_secs(20)).await;
                self.restart(&mut tccd).await
            }
            Kind::CrashServer { coordinator } => {
                let mut server = taken(&self.site(coordinator).server).await?;
                crash(&mut server, self.lasts / 2).await
            }
            Kind::CrashStandby => {
                let mut standby = taken(&self.site(false).standby).await?;
                crash(standby.as_mut().context("there is none")?, self.lasts).await
            }
            Kind::FillDisk { coordinator } => self.fill_disk(coordinator).await,
            Kind::StepServersClock => {
                let step = SignedDuration::from_secs(if self.is_forward { 2 } else { -2 });
                let clock = self.system.clock().context("it cannot be set")?;
                self.step_clock(clock, step, Some(&self.system.urls[0])).await
            }
            Kind::StepInstancesClock => {
                let minutes = 1 + self.account as i64;
                let step = SignedDuration::from_mins(if self.is_forward { minutes } else { -minutes });
                let clock = self.system.clocks[self.instance].as_deref().context("it cannot be set")?;
                self.step_clock(clock, step, None).await
            }
            Kind::KillBackend { coordinator } => {
                let server = taken(&self.site(coordinator).server).await?;
                let backends = server.cluster.processes();
                // The first is the server itself; it starts everything anew when one of the others dies.
                let last =
                    backends.last().filter(|_| backends.len() > 6).ok_or_else(|| anyhow::anyhow!("none"))?;
                let _ = Command::new("kill").args(["-KILL", last]).status();
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
                let server = taken(&self.site(coordinator).server).await?;
                server.signal("STOP");
                sleep(self.lasts).await;
                server.signal("CONT");
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
            Kind::KillParty(party) => self.parties()?.kill(party, self.lasts / 2).await,
            Kind::FreezeParty(party) => self.parties()?.freeze(party, self.lasts * 2).await,
            Kind::CutAfterCommit { coordinator } => {
                // Nothing is committed over the wires to the shard on which somebody else works.
                let server = if coordinator { 0 } else { self.shard % APART + 1 };
                let wire = &self.system.wires[self.instance][server];
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
                // Whoever does not get in because something else fails comes again.
                let mut tries = 5;
                loop {
                    match self.lock_transactions().await {
                        Err(_) if tries > 0 => tries -= 1,
                        locked => return locked,
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Kind::BlockPayee => {
                let sql = try_connect(&self.system.urls[self.shard + 1]).await?;
                let account = account(self.shard, self.account);
                let set = "UPDATE account SET state = $2 WHERE id = $1";
                // Without an answer it may be blocked all the same, and it must not stay so, whatever else happens.
                let blocked = sql.execute(set, &[&account, &2_i16]).await;
                sleep(self.lasts / 2).await;
                loop {
                    if let Ok(sql) = try_connect(&self.system.urls[self.shard + 1]).await
                        && sql.execute(set, &[&account, &1_i16]).await.is_ok()
                    {
                        return Ok(blocked.map(drop)?);
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// A server's log finds no room. It ends by itself then, and is started as an init system would, until there is room again.
    async fn fill_disk(&self, coordinator: bool) -> anyhow::Result<()> {
        // Of the shards the first one has such a disk.
        let site = &self.system.sites[usize::from(!coordinator)];
        let mut server = taken(&site.server).await?;
        let disk = || server.disk.as_ref().context("its log is not on a small disk");
        block_in_place(|| disk()?.fill())?;
        let (until, mut has_failed) = (Instant::now() + self.lasts, false);
        while Instant::now() < until {
            if server.cluster.runs() {
                // Its log goes on in a new file each time.
                has_failed |= switch_log(&site.url()).await.is_err();
            } else {
                has_failed = true;
                let _ = block_in_place(|| server.cluster.launch());
            }
            sleep(Duration::from_millis(200)).await;
        }
        server.disk.iter().try_for_each(Disk::free)?;
        for _ in 0..100 {
            if !server.cluster.runs() {
                let _ = block_in_place(|| server.cluster.launch());
            }
            if switch_log(&site.url()).await.is_ok() {
                ensure!(has_failed, "it did not need any room");
                return Ok(());
            }
            sleep(Duration::from_millis(200)).await;
        }
        anyhow::bail!("it does not come back")
    }

    /// A clock is off for a while. That of a server must be seen to be.
    async fn step_clock(&self, clock: &Clock, step: SignedDuration, url: Option<&str>) -> anyhow::Result<()> {
        let _turn = taken(&clock.turn).await?;
        clock.set(step)?;
        sleep(self.lasts + Duration::from_secs(2)).await;
        let seen = match url {
            Some(url) => offset(url).await.ok(),
            None => None,
        };
        clock.set(SignedDuration::ZERO)?;
        let is_seen = |seen: SignedDuration| (seen - step).abs() < SignedDuration::from_millis(500);
        ensure!(seen.is_none_or(is_seen), "the clock was to be off by {step:#}, and was by {seen:?}");
        Ok(())
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

async fn crash(server: &mut Server, lasts: Duration) -> anyhow::Result<()> {
    block_in_place(|| server.cluster.crash())?;
    sleep(lasts).await;
    block_in_place(|| server.cluster.launch())?;
    Ok(())
}

async fn switch_log(url: &str) -> anyhow::Result<()> {
    let sql = try_connect(url).await?;
    timeout(Duration::from_secs(2), sql.query("SELECT pg_switch_wal()", &[])).await??;
    Ok(())
}

/// How far off the clock of a server is.
async fn offset(url: &str) -> anyhow::Result<SignedDuration> {
    let sql = try_connect(url).await?;
    let row = timeout(Duration::from_secs(2), sql.query_one("SELECT clock_timestamp()", &[])).await??;
    Ok(row.get::<_, Timestamp>(0).duration_since(Timestamp::now()))
}
