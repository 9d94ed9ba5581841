//! Somebody holds a snapshot open for minutes, so that PostgreSQL can clean nothing up.
//!
//! Lifecycles are measured before, meanwhile and afterwards, with the snapshot on the coordinator's database, where the wake-ups are. For
//! comparison a queue as it is often written (SKIP LOCKED and DELETE) on a server of its own gets the same treatment.

use crate::{
    Scale,
    fleet::Payees,
    load::{self, Due, Holds},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::{self, System},
};
use anyhow::Context as _;
use std::time::{Duration, Instant};
use tcc_coordinator::dev::{Cluster, Options as ClusterOptions};
use tcc_core::Timestamp;
use tokio_postgres::Client;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// For how many seconds the snapshot is held, and as long before and after it.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(10..))]
    pub seconds: u32,
}

/// Holds fall due so soon.
const DUE: Due = Due::In(Duration::from_secs(1), Duration::ZERO);
/// The throughput may change by so much.
const CHANGE: f64 = 0.05;
/// Throughput is told per so many seconds.
const STEP: u64 = 10;
/// A snapshot that is held as long as its connection lives.
const PIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let lasts = Duration::from_secs(u64::from(options.seconds));
    let system = System::start(2, scale, progress).await?;
    let holds = Holds { due: DUE, ..Holds::far(&system.accounts, Payees::Any) };
    let pin = system::connect(system.coordinator()).await?;
    let half = |name: &'static str| {
        let (system, holds) = (&system, &holds);
        async move {
            let watch = progress.watch(name, 0);
            let since = Timestamp::now();
            load::closed_for(&system.fleet, scale.callers, lasts, holds, &watch).await?;
            drop(watch);
            let settled = system.settle(since, holds.due_until(), |_| {}).await?;
            anyhow::Ok(steps(&settled.per_second, options.seconds))
        }
    };
    // Once to warm up: the first updates of every page make room.
    half("warming up").await?;
    let free = half("lifecycles").await?;
    pin.batch_execute(PIN).await.context("holding a snapshot")?;
    let pinned = half("lifecycles, snapshot").await?;
    pin.batch_execute("COMMIT").await?;
    // Tables have grown meanwhile, and machines drift: what is compared with is the mean of before and after.
    let after = half("lifecycles, after").await?;
    system.audit(progress).await?;
    drop(system);
    let (queue_free, queue_pinned) = queue(lasts, progress).await?;

    let mut part = Part::default();
    let usual = (mean(&free) + mean(&after)) / 2.0;
    let change = mean(&pinned) / usual - 1.0;
    let queue_change = last(&queue_pinned) / mean(&queue_free) - 1.0;
    part.fact(
        "lifecycles/s before, with the snapshot, after",
        format!("{:.0}, {:.0}, {:.0}", mean(&free), mean(&pinned), mean(&after)),
    );
    part.fact(
        "SKIP LOCKED queue, jobs/s before, at the end with the snapshot",
        format!("{:.0}, {:.0}", mean(&queue_free), last(&queue_pinned)),
    );
    let series = |name: &str, first: &[f64], second: &[f64]| {
        let base = mean(first);
        let both = first.iter().chain(second).enumerate();
        Series {
            name: name.to_owned(),
            points: both.map(|(n, rate)| ((n as u64 * STEP) as f64, 100.0 * rate / base)).collect(),
        }
    };
    part.plots.push(Plot {
        title: format!("Throughput; a snapshot is held from second {} on", options.seconds),
        x: "seconds".into(),
        y: "percent of the rate before".into(),
        form: Form::Lines,
        series: vec![series("tcc", &free, &pinned), series("SKIP LOCKED queue", &queue_free, &queue_pinned)],
        bars: Vec::new(),
    });
    part.line = Some(format!(
        "pinned: {} seconds={} change_percent={:.1} skip_locked_queue_change_percent={:.1}",
        if change.abs() <= CHANGE { "ok" } else { "MISSED" },
        options.seconds,
        change * 100.0,
        queue_change * 100.0,
    ));
    Ok(part)
}

/// Means over whole steps of a run.
fn steps(per_second: &[(f64, f64)], seconds: u32) -> Vec<f64> {
    let count = u64::from(seconds) / STEP;
    let sum = |step: u64| {
        let within = |at: f64| (step * STEP) as f64 <= at && at < ((step + 1) * STEP) as f64;
        per_second.iter().filter(|(at, _)| within(*at)).map(|(_, count)| count).sum::<f64>()
    };
    (0..count).map(|step| sum(step) / STEP as f64).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or_default()
}

/// A queue of its own server: jobs per second in steps, before and with a snapshot held.
async fn queue(lasts: Duration, progress: &Progress) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    progress.say("   the same for a SKIP LOCKED queue");
    let settings = system::SETTINGS.iter().map(|&setting| setting.into()).collect();
    let options = ClusterOptions { settings, ..ClusterOptions::default() };
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(&options)).await??;
    let (producer, consumer) = (system::connect(&cluster).await?, system::connect(&cluster).await?);
    let pin = system::connect(&cluster).await?;
    let schema = "CREATE TABLE job (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, run_at timestamptz NOT NULL, payload bytea NOT NULL);
                  CREATE INDEX ON job (run_at)";
    producer.batch_execute(schema).await?;
    let free = work(&producer, &consumer, lasts, progress).await?;
    pin.batch_execute(PIN).await.context("holding a snapshot")?;
    let pinned = work(&producer, &consumer, lasts, progress).await?;
    Ok((free, pinned))
}

async fn work(
    producer: &Client,
    consumer: &Client,
    lasts: Duration,
    progress: &Progress,
) -> anyhow::Result<Vec<f64>> {
    let put = producer
        .prepare("INSERT INTO job (run_at, payload) SELECT clock_timestamp(), '\\x00' FROM generate_series(1, 256)")
        .await?;
    let take = consumer
        .prepare(
            "DELETE FROM job WHERE id IN (SELECT id FROM job WHERE run_at <= clock_timestamp() ORDER BY run_at LIMIT 256
             FOR UPDATE SKIP LOCKED)",
        )
        .await?;
    let watch = progress.watch("jobs", 0);
    let mut steps = Vec::new();
    let started = Instant::now();
    while started.elapsed() < lasts {
        let (step, mut done) = (Instant::now(), 0);
        while step.elapsed() < Duration::from_secs(STEP) {
            let (made, taken) = tokio::try_join!(producer.execute(&put, &[]), consumer.execute(&take, &[]))?;
            done += taken;
            (0..made.min(1)).for_each(|_| watch.step());
        }
        steps.push(done as f64 / step.elapsed().as_secs_f64());
    }
    Ok(steps)
}
