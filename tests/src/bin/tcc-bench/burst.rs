//! Many holds due in the same second: once between all accounts, once all to one payee.
//!
//! Each run has a system of its own, so that the second one does not carry the first one's rows. The clock starts at the
//! beginning of the second in which all of them fall due.

use crate::{
    Scale,
    fleet::{Payees, from_now},
    load::{self, Due, Holds},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use anyhow::ensure;
use std::time::Duration;
use tcc_core::Timestamp;

/// The goal's number of holds.
const HOLDS: u64 = 300_000;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many holds fall due in the same second.
    #[arg(long, default_value_t = HOLDS)]
    pub holds: u64,
}

/// Creations per second that are counted on, so that all are held before the second begins.
const SLOWEST: u64 = 3_000;
/// Between the last creation and the second in which all fall due.
const PAUSE: Duration = Duration::from_secs(10);

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let mut part = Part::default();
    let (many, paid) = burst(options.holds, None, scale, progress).await?;
    let mut series = vec![Series { name: "to everybody".into(), points: paid }];
    let (one, paid) = burst(options.holds, Some(0), scale, progress).await?;
    // With fewer it says nothing about the goals.
    if options.holds >= HOLDS {
        part.figure("P5", many);
        part.figure("P6", one / many);
    }
    series.push(Series { name: "to one payee".into(), points: paid });
    for (name, seconds) in [("to everybody", many), ("to one payee", one)] {
        let rate = options.holds as f64 / seconds;
        part.fact(
            format!("{} holds due in one second, {name}", options.holds),
            format!("the last one paid after {seconds:.1} s, {rate:.0}/s"),
        );
    }
    part.plots.push(Plot {
        title: format!("{} holds due in the same second: payments per second", options.holds),
        x: "seconds after the due second began".into(),
        y: "payments/s".into(),
        form: Form::Lines,
        series,
        bars: Vec::new(),
    });
    Ok(part)
}

/// Answers how long after the second began the last one was paid, and the payments per second.
async fn burst(
    count: u64,
    payee_shard: Option<usize>,
    scale: &Scale,
    progress: &Progress,
) -> anyhow::Result<(f64, Vec<(f64, f64)>)> {
    let system = System::start(2, scale, progress).await?;
    let accounts = system.accounts.clone();
    let payees = match payee_shard {
        None => Payees::Any,
        Some(shard) => Payees::One { id: accounts.0[shard][0].clone(), shard },
    };
    let second = from_now(PAUSE + Duration::from_secs(count / SLOWEST)).as_second();
    let second = Timestamp::from_second(second)?;
    let holds = Holds { accounts, payees, due: Due::Between(second, Duration::from_secs(1)) };
    let watch = progress.watch("holds for the burst", count);
    let started = Timestamp::now();
    load::closed(&system.fleet, scale.callers, count, &holds, &watch).await?;
    drop(watch);
    ensure!(Timestamp::now() < second, "creating {count} holds took until they were due");

    let settled = system.settle(started, holds.due_until(), |_| {}).await?;
    ensure!(settled.confirmed == count, "{} of {count} holds are CONFIRMED", settled.confirmed);
    system.audit(progress).await?;
    let offset = second.duration_since(started).as_secs_f64();
    let paid = settled.per_second.into_iter().map(|(at, count)| ((at - offset).max(0.0), count)).collect();
    let last = settled.last.duration_since(second).as_secs_f64();
    progress.say(&format!("   {count} holds due in one second: the last one paid after {last:.1} s"));
    Ok((last, paid))
}
