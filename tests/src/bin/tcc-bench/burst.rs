//! Many holds due in the same second: once between all accounts, once all to one payee.
//!
//! Each run has a system of its own, so that the second one does not carry the first one's rows. The clock starts at the
//! beginning of the second in which all of them fall due. From then on another caller creates a few short holds; how late
//! those are paid tells what the burst costs whoever has nothing to do with it.

use crate::{
    Scale,
    fleet::{Payees, from_now},
    latency::Latency,
    load::{self, Due, Holds, Rate},
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

/// The other caller's creations: per second, for how long, and how soon they fall due.
const OTHERS: (u32, Duration, Duration) = (50, Duration::from_secs(20), Duration::from_millis(500));
/// What the burst may cost the other caller, in milliseconds.
const OTHERS_LATE: f64 = 500.0;

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let mut part = Part::default();
    let (many, paid, others) = burst(options.holds, None, scale, progress).await?;
    let mut series = vec![Series { name: "to everybody".into(), points: paid }];
    let (one, paid, others_of_one) = burst(options.holds, Some(0), scale, progress).await?;
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
    part.fact("another caller's lateness meanwhile, to everybody", others.summary());
    part.fact("another caller's lateness meanwhile, to one payee", others_of_one.summary());
    let late = [&others, &others_of_one].map(|others| others.percentile_ms(99.0));
    part.line = Some(format!(
        "burst: {} holds={} last_paid_s={many:.1} to_one_payee_s={one:.1} others_p99_ms={:.0}/{:.0}",
        if many <= 15.0 && one <= 1.15 * many && late.iter().all(|ms| *ms <= OTHERS_LATE) {
            "ok"
        } else {
            "MISSED"
        },
        options.holds,
        late[0],
        late[1],
    ));
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

/// Answers how long after the second began the last one was paid, the payments per second, and how late the other caller's
/// were.
async fn burst(
    count: u64,
    payee_shard: Option<usize>,
    scale: &Scale,
    progress: &Progress,
) -> anyhow::Result<(f64, Vec<(f64, f64)>, Latency)> {
    let system = System::start(2, scale, progress).await?;
    let accounts = system.accounts.clone();
    let payees = match payee_shard {
        None => Payees::Any,
        Some(shard) => Payees::One { id: accounts.0[shard][0].clone(), shard },
    };
    let second = from_now(PAUSE + Duration::from_secs(count / SLOWEST)).as_second();
    let second = Timestamp::from_second(second)?;
    let due = Due::Between(second, Duration::from_secs(1));
    let holds = Holds { due, caller: "burst", ..Holds::far(&accounts, payees) };
    let watch = progress.watch("holds for the burst", count);
    let started = Timestamp::now();
    load::closed(&system.fleet, scale.callers, count, &holds, &watch).await?;
    drop(watch);
    ensure!(Timestamp::now() < second, "creating {count} holds took until they were due");

    let wait = second.duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
    let (creates, lasts, delay) = OTHERS;
    let others = Holds {
        due: Due::In(delay, Duration::ZERO),
        caller: "another",
        ..Holds::far(&accounts, Payees::Any)
    };
    let watch = progress.watch("another caller's holds", u64::from(creates) * lasts.as_secs());
    let rate = Rate { creates, cancel_every: 0, lasts };
    let open = load::open(&system.fleet, rate, &others, &watch).await?;
    drop(watch);
    ensure!(open.errors == 0, "the other caller's creations failed: {:?}", open.first_error);

    let settled = system.settle(started, others.due_until(), |_| {}).await?;
    let all = count + u64::from(creates) * lasts.as_secs();
    ensure!(settled.confirmed == all, "{} of {all} holds are CONFIRMED", settled.confirmed);
    let (late, early) = system.lateness(second).await?;
    ensure!(early == 0, "{early} holds were paid early");
    let last = system.last_paid(started, second).await?.duration_since(second).as_secs_f64();
    system.audit(progress).await?;
    let offset = second.duration_since(started).as_secs_f64();
    let paid = settled.per_second.into_iter().map(|(at, count)| ((at - offset).max(0.0), count)).collect();
    progress.say(&format!("   {count} holds due in one second: the last one paid after {last:.1} s"));
    Ok((last, paid, late))
}
