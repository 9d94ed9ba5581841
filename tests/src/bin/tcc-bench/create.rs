//! How long a creation takes: for one caller on an idle system, at a fixed rate, and at saturation.

use crate::{
    Scale,
    fleet::Payees,
    latency::Latency,
    load::{self, Holds, Rate},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use anyhow::Context as _;
use std::time::Duration;

/// The goal's rate.
const RATE: u32 = 5_000;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How long the open loop lasts, in seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// Creations per second of the open loop.
    #[arg(long, default_value_t = RATE)]
    pub rate: u32,
    /// How many holds the closed loop creates.
    #[arg(long, default_value_t = 200_000)]
    pub holds: u64,
    /// How many holds one idle caller creates.
    #[arg(long, default_value_t = 2_000)]
    pub idle: u64,
}

/// Every second hold is cancelled: half the rate of the creations.
const CANCEL_EVERY: u64 = 2;

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let system = System::start(2, scale, progress).await?;
    let holds = Holds::far(&system.accounts, Payees::Any);
    let mut part = Part::default();

    let watch = progress.watch("one idle caller", options.idle);
    let idle = load::closed(&system.fleet, 1, options.idle, &holds, &watch).await?;
    drop(watch);
    part.figure("P4", idle.latency.percentile_ms(50.0));
    part.fact("create, one idle caller", idle.latency.summary());

    let lasts = Duration::from_secs(u64::from(options.seconds));
    let rate = Rate { creates: options.rate, cancel_every: CANCEL_EVERY, lasts };
    let watch = progress.watch("open loop", u64::from(options.rate) * u64::from(options.seconds));
    let open = load::open(&system.fleet, rate, &holds, &watch).await?;
    drop(watch);
    let creates = open.creates.context("an open loop has latencies")?;
    let cancels = open.cancels.context("an open loop has latencies")?;
    // At another rate it says nothing about the goal.
    if options.rate >= RATE {
        part.figure("P3 p99", creates.percentile_ms(99.0));
        part.figure("P3 errors", open.errors as f64);
    }
    part.fact(format!("create, open loop at {}/s", options.rate), creates.summary());
    part.fact("cancel, open loop at half that rate", cancels.summary());
    if let Some(error) = open.first_error {
        part.fact(format!("the first of {} errors", open.errors), error);
    }

    let watch = progress.watch("closed loop", options.holds);
    let closed = load::closed(&system.fleet, scale.callers, options.holds, &holds, &watch).await?;
    drop(watch);
    let rate = options.holds as f64 / closed.took.as_secs_f64();
    part.fact(
        format!("create, closed loop of {} callers: {rate:.0}/s", scale.callers),
        closed.latency.summary(),
    );

    let curve = |name: &str, latency: &Latency| Series { name: name.to_owned(), points: latency.curve() };
    part.plots.push(Plot {
        title: "Latency of creations and cancels".into(),
        x: "percentile".into(),
        y: "milliseconds".into(),
        form: Form::Percentiles,
        series: vec![
            curve("create, idle", &idle.latency),
            curve("create, open loop", &creates),
            curve("cancel, open loop", &cancels),
            curve("create, closed loop", &closed.latency),
        ],
        bars: Vec::new(),
    });
    part.plots.push(Plot {
        title: "Creations per second, closed loop".into(),
        x: "seconds".into(),
        y: "holds/s".into(),
        form: Form::Lines,
        series: vec![Series { name: "answered HELD".into(), points: closed.per_second }],
        bars: Vec::new(),
    });
    system.audit(progress).await?;
    Ok(part)
}
