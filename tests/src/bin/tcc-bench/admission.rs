//! Ten times as many callers as saturate the system, all of whom obey RetryInfo.
//!
//! What is admitted must go on at the rate of before, what is not must be turned away at once, and holds that fall due or are
//! cancelled meanwhile must not wait behind those who want to come in.

use crate::{
    Scale,
    fleet::{Chance, Payees, Wire},
    latency::Latency,
    load::{self, Due, Holds},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use anyhow::{Context as _, ensure};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tcc_core::Timestamp;
use tcc_proto::v1::{self, hold_service_client::HoldServiceClient};
use tokio::{task::JoinSet, time::Instant};
use tonic::Code;
use tonic_types::StatusExt as _;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many holds the callers that saturate the system create.
    #[arg(long, default_value_t = 100_000)]
    pub holds: u64,
    /// For how many seconds ten times as many callers want to come in.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(6..))]
    pub seconds: u32,
}

/// So many times the callers that saturate the system.
const TIMES: u32 = 10;
/// Callers who cancel meanwhile, one hold after the other.
const CANCELLERS: usize = 16;
/// Of each of them, at most.
const CANCELS: usize = 64;
/// Admitted work may move by so much.
const MOVES: f64 = 0.15;
/// Some fall due meanwhile: so many, spread over so long.
const DUE_MEANWHILE: u64 = 2_000;
const DUE_WITHIN: Duration = Duration::from_secs(8);

/// What a caller met.
#[derive(Default)]
struct Met {
    /// How long each answer took.
    turned_away: Vec<Duration>,
    /// How long each answer took, and when it came.
    admitted: Vec<(Duration, Duration)>,
}

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let system = System::start(2, scale, progress).await?;
    let far = Holds::far(&system.accounts, Payees::Any);

    let watch = progress.watch("as many callers as saturate", options.holds);
    let usual = load::closed(&system.fleet, scale.callers, options.holds, &far, &watch).await?;
    drop(watch);
    let usual_rate = steady(&usual.per_second);

    // Some holds to be cancelled, and some that fall due, while everybody wants to come in.
    let before = Timestamp::now();
    let due = Holds { due: Due::In(Duration::from_secs(5), DUE_WITHIN), ..far.clone() };
    let watch = progress.watch("holds that fall due meanwhile", DUE_MEANWHILE);
    load::closed(&system.fleet, scale.callers, DUE_MEANWHILE, &due, &watch).await?;
    drop(watch);
    let to_cancel = to_cancel(&system, &far).await?;
    let ends = Arc::new(AtomicBool::new(false));
    let cancelling = cancel_until(&ends, &system, to_cancel);
    let flooding = async {
        let lasts = Duration::from_secs(u64::from(options.seconds));
        let flood = flood(&system, TIMES * scale.callers, lasts, &far, progress).await;
        ends.store(true, Ordering::Relaxed);
        flood
    };
    let (cancels, flood) = tokio::join!(cancelling, flooding);
    let ((per_second, admitted, turned_away), cancels) = (flood?, cancels?);
    let rate = steady(&per_second);
    system.settle(before, due.due_until(), |_| {}).await?;
    let (late, early) = system.lateness(before).await?;
    ensure!(early == 0, "{early} holds were paid early");

    let mut part = Part::default();
    let moved = (rate / usual_rate - 1.0).abs();
    part.fact(
        format!("admitted with {TIMES} times the callers"),
        format!(
            "{:.2} of the rate before ({rate:.0}/s, {usual_rate:.0}/s): {}",
            rate / usual_rate,
            if moved <= MOVES { "within 15 %" } else { "NOT within 15 %" }
        ),
    );
    part.fact("admitted creations", admitted.summary());
    part.fact("turned away with RetryInfo", turned_away.summary());
    part.fact("cancels meanwhile", cancels.summary());
    part.fact("lateness meanwhile", late.summary());
    let curve = |name: &str, latency: &Latency| Series { name: name.to_owned(), points: latency.curve() };
    part.plots.push(Plot {
        title: format!("{TIMES} times the callers that saturate"),
        x: "percentile".into(),
        y: "milliseconds".into(),
        form: Form::Percentiles,
        series: vec![
            curve("admitted", &admitted),
            curve("turned away", &turned_away),
            curve("cancel", &cancels),
            curve("lateness", &late),
        ],
        bars: Vec::new(),
    });
    system.audit(progress).await?;
    Ok(part)
}

/// The rate of the whole seconds between the first and the last two, in which not everybody is there.
fn steady(per_second: &[(f64, f64)]) -> f64 {
    let inner = &per_second[1..per_second.len().saturating_sub(2).max(2)];
    inner.iter().map(|(_, count)| count).sum::<f64>() / inner.len() as f64
}

/// Creates holds with so many callers, who come back when they are told to. Answers how many were admitted in each second,
/// how long those waited since they were admitted, and how long it took to be turned away.
async fn flood(
    system: &System,
    callers: u32,
    lasts: Duration,
    holds: &Holds,
    progress: &Progress,
) -> anyhow::Result<(Vec<(f64, f64)>, Latency, Latency)> {
    let watch = progress.watch("ten times the callers, seconds", lasts.as_secs());
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in 0..callers as usize {
        let (client, holds) = (system.fleet.holds(caller), holds.clone());
        tasks.spawn(come_in(client, holds, Chance::new(1_000_000 + caller as u64), started, started + lasts));
    }
    for _ in 0..lasts.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        watch.step();
    }
    let (mut admitted, mut turned_away) = (Latency::new(), Latency::new());
    let mut seconds = vec![0_u64; lasts.as_secs() as usize];
    while let Some(met) = tasks.join_next().await {
        let met = met.context("a caller panicked")??;
        for (latency, at) in met.admitted {
            admitted.record(latency);
            if let Some(second) = seconds.get_mut(at.as_secs() as usize) {
                *second += 1;
            }
        }
        met.turned_away.into_iter().for_each(|latency| turned_away.record(latency));
    }
    let points = seconds.iter().enumerate().map(|(second, count)| (second as f64, *count as f64));
    Ok((points.collect(), admitted, turned_away))
}

/// One caller, until the time is over.
async fn come_in(
    mut client: HoldServiceClient<Wire>,
    holds: Holds,
    mut chance: Chance,
    started: Instant,
    until: Instant,
) -> anyhow::Result<Met> {
    let mut met = Met::default();
    let mut request = holds.next(&mut chance);
    while Instant::now() < until {
        let called = Instant::now();
        match client.create_hold(request.clone()).await {
            Ok(_) => {
                met.admitted.push((called.elapsed(), started.elapsed()));
                request = holds.next(&mut chance);
            }
            Err(status) if status.code() == Code::ResourceExhausted => {
                met.turned_away.push(called.elapsed());
                let told = status.get_details_retry_info().and_then(|info| info.retry_delay);
                let delay = told.context("RESOURCE_EXHAUSTED without RetryInfo")?;
                // A little later, by chance, so that they do not come back all at once.
                tokio::time::sleep(delay.mul_f64(1.0 + chance.below(1_000) as f64 / 1_000.0)).await;
            }
            Err(status) => return Err(status).context("creating a hold"),
        }
    }
    Ok(met)
}

/// Holds for each canceller.
async fn to_cancel(system: &System, holds: &Holds) -> anyhow::Result<Vec<Vec<String>>> {
    let mut chance = Chance::new(2_000_000);
    let mut all = Vec::new();
    for caller in 0..CANCELLERS {
        let mut client = system.fleet.holds(caller);
        let requests: Vec<_> = (0..CANCELS).map(|_| holds.next(&mut chance)).collect();
        for request in &requests {
            client.create_hold(request.clone()).await.context("creating a hold to be cancelled")?;
        }
        all.push(requests.into_iter().map(|request| request.id).collect());
    }
    Ok(all)
}

/// Cancels holds, each caller one after the other, until there are no more or it is told to stop.
async fn cancel_until(
    ends: &Arc<AtomicBool>,
    system: &System,
    holds: Vec<Vec<String>>,
) -> anyhow::Result<Latency> {
    let mut tasks = JoinSet::new();
    for (caller, ids) in holds.into_iter().enumerate() {
        let (mut client, ends) = (system.fleet.holds(caller), Arc::clone(ends));
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            for id in ids {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                let called = Instant::now();
                let request = v1::CancelHoldRequest { id, etag: String::new() };
                let answer = client.cancel_hold(request).await.context("cancelling")?;
                let phase = answer.into_inner().hold.map(|hold| hold.phase());
                ensure!(phase == Some(v1::Phase::Cancelled), "a cancel was answered {phase:?}");
                latencies.push(called.elapsed());
            }
            Ok(latencies)
        });
    }
    let mut all = Latency::new();
    while let Some(latencies) = tasks.join_next().await {
        latencies.context("a caller panicked")??.into_iter().for_each(|latency| all.record(latency));
    }
    Ok(all)
}
