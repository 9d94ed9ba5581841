//! Lifecycles at saturation, alternating with the baseline.
//!
//! A lifecycle is a hold that was answered HELD, matured, and is CONFIRMED; payer and payee live on different shards. The
//! rate counts over the entire span from the first call to the last confirmation, with nothing left out. The holds mature
//! while others are still being created, as they would in service. Baseline and lifecycles take turns on the same machine
//! in the same run, and each lifecycle round is compared with the baseline round just before it.

use crate::{
    Scale,
    baseline::{self, Baseline, Round},
    counters::{self, Meter, Usage},
    fleet::Payees,
    latency::Latency,
    load::{self, Due, Holds},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use anyhow::ensure;
use std::time::Duration;
use tcc_core::Timestamp;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many holds each round creates.
    #[arg(long, default_value_t = 200_000)]
    pub holds: u64,
    /// How often baseline and lifecycles take turns.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// How long pgbench runs with each number of clients, in seconds; 0: no baseline.
    #[arg(long, default_value_t = 10)]
    pub seconds: u32,
    /// How long after it is asked for a hold falls due, in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    pub due_ms: u64,
}

/// What a round of lifecycles found.
pub struct Lifecycles {
    /// How many there were.
    pub count: u64,
    /// From the first call to the last confirmation, in seconds.
    pub span: f64,
    /// How long the creations took, in seconds.
    pub created_in: f64,
    /// Of the creations.
    pub latency: Latency,
    /// What it cost.
    pub usage: Usage,
    /// Answers HELD per second.
    pub created: Vec<(f64, f64)>,
    /// Confirmations per second.
    pub confirmed: Vec<(f64, f64)>,
}

impl Lifecycles {
    /// Lifecycles per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.span
    }

    /// CPU of servers and tccd for each, in microseconds.
    #[must_use]
    pub fn cpu_us(&self) -> f64 {
        (self.usage.cpu.postgres + self.usage.cpu.tccd) * 1e6 / self.count as f64
    }

    /// In one line.
    #[must_use]
    pub fn text(&self) -> String {
        let each = |sum: f64| sum / self.count as f64;
        let cpu = self.usage.cpu;
        format!(
            "{:.0} lifecycles/s ({} in {:.1} s; created at {:.0}/s, p99 {:.0} ms); each {:.3} commits, {:.2} kB WAL, \
             CPU {:.0} us of PostgreSQL, {:.0} of tccd, {:.0} of the load generator",
            self.rate(),
            self.count,
            self.span,
            self.count as f64 / self.created_in,
            self.latency.percentile_ms(99.0),
            each(self.usage.commits as f64),
            each(self.usage.wal_bytes as f64) / 1e3,
            each(cpu.postgres * 1e6),
            each(cpu.tccd * 1e6),
            each(cpu.load * 1e6),
        )
    }
}

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let baseline = Baseline::start(scale.accounts, progress).await?;
    let mut system = System::start(2, scale, progress).await?;
    let due = Due::In(Duration::from_millis(options.due_ms), Duration::ZERO);
    let (mut rounds, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        if options.seconds > 0 {
            rounds.push(baseline.round(Duration::from_secs(u64::from(options.seconds)), progress).await?);
        }
        let lifecycles = measure(&system, scale.callers, options.holds, due, progress).await?;
        progress.say(&format!("   {:.0} lifecycles/s", lifecycles.rate()));
        ours.push(lifecycles);
    }
    system.audit(progress).await?;
    system.stop_tccd().await?;
    let hot = counters::hot_share(&system.sql, "transaction").await?;
    let mut part = describe(&ours, &rounds);
    part.fact("updates of transaction that stayed on their page (HOT)", format!("{hot:.1} %"));
    Ok(part)
}

/// Creates so many holds and waits until each is CONFIRMED.
///
/// # Errors
///
/// If one is not, or a call fails.
pub async fn measure(
    system: &System,
    callers: u32,
    holds: u64,
    due: Due,
    progress: &Progress,
) -> anyhow::Result<Lifecycles> {
    let template = Holds { due, ..Holds::far(&system.accounts, Payees::Any) };
    let watch = progress.watch("lifecycles", holds);
    let meter = Meter::start(system).await?;
    let started = Timestamp::now();
    let closed = load::closed(&system.fleet, callers, holds, &template, &watch).await?;
    let settled = system.settle(started, closed.due_until, |_| {}).await?;
    let usage = meter.stop(system).await?;
    ensure!(settled.confirmed == holds, "{} of {holds} holds are CONFIRMED", settled.confirmed);
    Ok(Lifecycles {
        count: holds,
        span: settled.last.duration_since(started).as_secs_f64(),
        created_in: closed.took.as_secs_f64(),
        latency: closed.latency,
        usage,
        created: closed.per_second,
        confirmed: settled.per_second,
    })
}

fn describe(ours: &[Lifecycles], rounds: &[Round]) -> Part {
    let mut part = Part::default();
    let all = ours.iter().map(|round| round.usage).fold(Usage::default(), Usage::plus);
    let count: f64 = ours.iter().map(|round| round.count as f64).sum();
    part.figure("P8", all.commits as f64 / count);
    part.figure("P12", all.wal_bytes as f64 / count / 1e3);

    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let ratios = |best: fn(&Round) -> f64| -> Vec<f64> {
        ours.iter().zip(rounds).map(|(ours, round)| ours.rate() / best(round)).collect()
    };
    let names = [
        ("P1", "local", ratios(|round| round.local.best())),
        ("P2", "prepared", ratios(|round| round.prepared.best())),
    ];
    for (goal, name, ratios) in names {
        if !ratios.is_empty() {
            part.figure(goal, mean(&ratios));
            let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
            part.fact(format!("against {name}, each round"), each.join(", "));
        }
    }
    for (n, round) in ours.iter().enumerate() {
        part.fact(format!("lifecycles, round {}", n + 1), round.text());
    }
    baseline::describe(&mut part, rounds);
    if let Some(last) = ours.last() {
        let series =
            |name: &str, points: &[(f64, f64)]| Series { name: name.to_owned(), points: points.to_vec() };
        part.plots.push(Plot {
            title: "Lifecycles: throughput over time, last round".into(),
            x: "seconds".into(),
            y: "holds/s".into(),
            form: Form::Lines,
            series: vec![series("answered HELD", &last.created), series("CONFIRMED", &last.confirmed)],
            bars: Vec::new(),
        });
        let layer = |name: &str, seconds: f64| series(name, &[(0.0, seconds * 1e6 / count)]);
        part.plots.push(Plot {
            title: "CPU per lifecycle".into(),
            x: String::new(),
            y: "microseconds".into(),
            form: Form::Stack,
            series: vec![
                layer("PostgreSQL", all.cpu.postgres),
                layer("tccd", all.cpu.tccd),
                layer("load generator", all.cpu.load),
            ],
            bars: vec!["lifecycle".into()],
        });
    }
    part
}
