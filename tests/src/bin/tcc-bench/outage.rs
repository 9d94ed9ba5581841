//! A shard that is down for minutes while very many of its holds fall due.
//!
//! The other shards have a load of their own, of which nobody should notice anything: tccd's memory and CPU time before and
//! during the outage are compared, and the load's latency. When the shard is back its holds are paid, the oldest first.

use crate::{
    Scale,
    fleet::{Accounts, Payees, from_now},
    load::{self, Due, Holds, Rate},
    processes,
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use anyhow::{Context as _, ensure};
use std::time::Duration;
use tcc_core::Timestamp;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many holds of the shard fall due meanwhile.
    #[arg(long, default_value_t = 200_000)]
    pub holds: u64,
    /// For how many seconds it is down.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(30..))]
    pub seconds: u32,
    /// Creations per second between the other shards.
    #[arg(long, default_value_t = 2_000)]
    pub rate: u32,
}

/// The shard that goes down, of so many.
const DOWN: usize = 3;
const SHARDS: usize = 4;
/// Creations per second that are counted on.
const SLOWEST: u64 = 3_000;
/// How long the load between the other shards is measured before.
const BEFORE: Duration = Duration::from_secs(30);
/// The holds of the shard fall due within this, from a moment after it went down.
const SPREAD: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_secs(5);
/// More than so many times what it needed before is too much.
const MORE: f64 = 1.2;
/// From the shard's return until its last hold is paid.
const PAID_WITHIN: f64 = 60.0;

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let mut system = System::start(SHARDS, scale, progress).await?;
    let shard = |n: usize| system.accounts.0[n].clone();
    let with_it = Accounts([shard(0), shard(DOWN)].into());
    let without = Accounts((0..DOWN).map(shard).collect());

    let due = from_now(BEFORE + MOMENT * 3 + Duration::from_secs(options.holds / SLOWEST));
    let waiting = Holds { due: Due::Between(due, SPREAD), ..Holds::far(&with_it, Payees::Any) };
    let watch = progress.watch("holds of the shard", options.holds);
    let started = Timestamp::now();
    load::closed(&system.fleet, scale.callers, options.holds, &waiting, &watch).await?;
    drop(watch);

    let soon =
        Holds { due: Due::In(Duration::from_secs(1), Duration::ZERO), ..Holds::far(&without, Payees::Any) };
    let rate = |lasts| Rate { creates: options.rate, cancel_every: 0, lasts };
    let watch = progress.watch("before", u64::from(options.rate) * BEFORE.as_secs());
    let cpu = processes::cpu_of(system.tccd_process()?)?;
    let before = load::open(&system.fleet, rate(BEFORE), &soon, &watch).await?;
    drop(watch);
    let cpu_before = (processes::cpu_of(system.tccd_process()?)? - cpu) / BEFORE.as_secs_f64();
    let (memory_before, _) = system.tccd_memory()?;
    ensure!(Timestamp::now() < due, "creating {} holds took until they were due", options.holds);

    system.crash_shard(DOWN)?;
    let lasts = Duration::from_secs(u64::from(options.seconds));
    let watch = progress.watch("while it is down", u64::from(options.rate) * lasts.as_secs());
    let cpu = processes::cpu_of(system.tccd_process()?)?;
    let began = Timestamp::now();
    let during = load::open(&system.fleet, rate(lasts), &soon, &watch).await?;
    drop(watch);
    let took = Timestamp::now().duration_since(began).as_secs_f64();
    let cpu_during = (processes::cpu_of(system.tccd_process()?)? - cpu) / took;
    let (memory_during, _) = system.tccd_memory()?;
    let waits = system.status().await?.shards[DOWN].waiting.unsigned_abs();

    system.launch_shard(DOWN).await?;
    let back = Timestamp::now();
    let settled = system.settle(started, waiting.due_until(), |_| {}).await?;
    let paid_within = system.last_paid(started, began).await?.duration_since(back).as_secs_f64();
    ensure!(
        before.errors + during.errors == 0,
        "creations between the other shards failed: {:?}",
        during.first_error
    );
    system.audit(progress).await?;

    let (before, during) = (
        before.creates.context("an open loop has latencies")?,
        during.creates.context("an open loop has latencies")?,
    );
    let (memory, cpu) = (memory_during as f64 / memory_before as f64, cpu_during / cpu_before);
    let mut part = Part::default();
    part.fact(
        "tccd's memory before, during",
        format!("{:.1} MB, {:.1} MB", memory_before as f64 / 1e6, memory_during as f64 / 1e6),
    );
    part.fact(
        "tccd's CPU before, during",
        format!("{:.1} %, {:.1} % of a core", cpu_before * 100.0, cpu_during * 100.0),
    );
    part.fact("wake-ups that waited at the end", waits.to_string());
    part.fact("creation between the other shards, before", before.summary());
    part.fact("creation between the other shards, during", during.summary());
    part.fact("paid in all", settled.confirmed.to_string());
    part.plots.push(Plot {
        title: "Creation between the other shards".into(),
        x: "percentile".into(),
        y: "milliseconds".into(),
        form: Form::Percentiles,
        series: vec![
            Series { name: "before".into(), points: before.curve() },
            Series { name: "while a shard is down".into(), points: during.curve() },
        ],
        bars: Vec::new(),
    });
    let is_met = memory <= MORE && cpu <= MORE && paid_within <= PAID_WITHIN;
    part.line = Some(format!(
        "outage: {} holds={} down_s={} waited={waits} memory_x={memory:.2} cpu_x={cpu:.2} paid_after_return_s={paid_within:.1} p99_before_ms={:.1} p99_during_ms={:.1}",
        if is_met { "ok" } else { "MISSED" },
        options.holds,
        options.seconds,
        before.percentile_ms(99.0),
        during.percentile_ms(99.0),
    ));
    Ok(part)
}
