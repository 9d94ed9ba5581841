//! From due to paid: how late payments are, on an idle system and while 5,000 holds are created per second.
//!
//! Both times stand in the rows, by the coordinator database's clock: `settled_at` against `due_at`. A payment is early if
//! its decision or its settlement is older than its due time.

use crate::{
    Scale,
    fleet::Payees,
    load::{self, Due, Holds, Rate},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use std::time::Duration;
use tcc_core::Timestamp;

/// The goal's rate.
const RATE: u32 = 5_000;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How long each of the two runs lasts, in seconds.
    #[arg(long, default_value_t = 30)]
    pub seconds: u32,
    /// Creations per second of the loaded run.
    #[arg(long, default_value_t = RATE)]
    pub rate: u32,
}

/// Creations per second of the idle run: enough to have a 99th percentile, too few to be a load.
const IDLE_RATE: u32 = 20;
/// Holds fall due one second after they were asked for, or up to two seconds later.
const DUE: Due = Due::In(Duration::from_secs(1), Duration::from_secs(2));

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let system = System::start(2, scale, progress).await?;
    let holds = Holds { due: DUE, ..Holds::far(&system.accounts, Payees::Any) };
    let mut part = Part::default();
    let mut series = Vec::new();
    let (mut all_early, mut errors, mut p99) = (0, 0, Vec::new());
    for (figure, name, creates) in [("P7 idle", "idle", IDLE_RATE), ("P7 loaded", "loaded", options.rate)] {
        let rate = Rate { creates, cancel_every: 0, lasts: Duration::from_secs(u64::from(options.seconds)) };
        let watch = progress.watch("holds", u64::from(creates) * u64::from(options.seconds));
        let started = Timestamp::now();
        let open = load::open(&system.fleet, rate, &holds, &watch).await?;
        drop(watch);
        // A machine that cannot do so much turns some of it away: what it took has its lateness all the same.
        if open.errors > 0 {
            part.fact(
                format!("creations that failed, {name}"),
                format!("{}, the first: {:?}", open.errors, open.first_error),
            );
        }
        errors += open.errors;
        system.settle(started, holds.due_until(), |_| {}).await?;
        let (late, early) = system.lateness(started).await?;
        // At another rate it says nothing about the goal.
        if options.rate >= RATE {
            part.figure(figure, late.percentile_ms(99.0));
        }
        part.fact(
            format!("lateness, {name} ({creates} create/s)"),
            format!("{}; {early} early", late.summary()),
        );
        series.push(Series { name: name.to_owned(), points: late.curve() });
        p99.push(late.percentile_ms(99.0));
        all_early += early;
    }
    part.figure("P7 early", all_early as f64);
    part.line = Some(format!(
        "lateness: {} p99_idle_ms={:.1} p99_loaded_ms={:.1} rate={} early={all_early} errors={errors}",
        if p99[0] <= 50.0 && p99[1] <= 250.0 && (all_early, errors) == (0, 0) { "ok" } else { "MISSED" },
        p99[0],
        p99[1],
        options.rate,
    ));
    part.plots.push(Plot {
        title: "Lateness: from due to paid".into(),
        x: "percentile".into(),
        y: "milliseconds".into(),
        form: Form::Percentiles,
        series,
        bars: Vec::new(),
    });
    system.audit(progress).await?;
    Ok(part)
}
