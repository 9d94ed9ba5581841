//! Three instances under load, of which one is killed, stopped or told to leave, again and again.
//!
//! What counts is how late the holds were that stood in its slots and fell due in the seconds after. Creations that it did not
//! answer are repeated at another instance with the same id, as a careful client does. In the end every hold that was promised
//! must be paid, and the auditor looks for what was paid twice.

use crate::{
    Scale,
    fleet::{Chance, Fleet, Payees},
    latency::Latency,
    load::{self, Due, Holds},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::{Instance, System},
};
use anyhow::{Context as _, ensure};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tcc_core::Timestamp;
use tcc_proto::v1;
use tokio::{task::JoinSet, time::Instant};
use uuid::Uuid;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How often an instance is killed or stopped, in turns.
    #[arg(long, default_value_t = 20)]
    pub rounds: u32,
    /// How often an instance is told to leave.
    #[arg(long, default_value_t = 5)]
    pub drains: u32,
    /// Creations per second; fewer if that is more than [`SHARE`] of what the three instances can take.
    #[arg(long, default_value_t = 3_000)]
    pub rate: u32,
}

/// Holds fall due so soon after they were asked for, or up to so much later.
const DUE: Due = Due::In(Duration::from_secs(1), Duration::from_secs(8));
/// Holds that fall due within this after the event are looked at.
const LOOKED_AT: Duration = Duration::from_secs(6);
/// From the event until the instance comes back.
const GONE: Duration = Duration::from_secs(9);
/// A call that is not answered within this is made again elsewhere.
const CALL: Duration = Duration::from_secs(3);
/// So many calls may be under way before the rate is taken to be too high.
const UNDER_WAY: usize = 60_000;
/// Calls that were held up by one event have this long to be answered before the next one.
const CALM: Duration = Duration::from_secs(30);
/// So many accounts there are at least: batches of several instances that meet at an account wait for each other, and with few
/// accounts most of them do.
const ACCOUNTS: u32 = 60_000;
/// So many lifecycles tell what the instances can take, created by so many callers at each of them.
const PROBE: (u64, u32) = (20_000, 128);
/// Of what they can take, so much is asked of them: what an event held up must be made good beside the rest.
const SHARE: f64 = 0.7;
/// In seconds, after a kill or a stop, and after a drain.
const GOALS: [f64; 2] = [5.5, 1.0];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Kill,
    Stop,
    Drain,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Stop => "SIGSTOP, SIGCONT",
            Self::Drain => "SIGTERM",
        }
    }
}

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let scale = Scale { accounts: scale.accounts.max(ACCOUNTS), ..scale.clone() };
    let system = System::start(2, &scale, progress).await?;
    let mut victims = [system.join().await?, system.join().await?];
    balanced(&system, 3).await?;
    let holds = Holds { due: DUE, ..Holds::far(&system.accounts, Payees::Any) };
    let fleets = [system.fleet.clone(), victims[0].fleet.clone(), victims[1].fleet.clone()];
    let capacity = capacity(&system, &fleets, &holds, progress).await?;
    let rate = options.rate.min((capacity * SHARE) as u32);
    progress.say(&format!("   {capacity:.0} lifecycles/s at three instances; load: {rate} creations/s"));
    let started = Timestamp::now();
    let ends = Arc::new(AtomicBool::new(false));
    let under_way = Arc::new(AtomicUsize::new(0));
    let load = tokio::spawn(feed(fleets, rate, holds.clone(), Arc::clone(&ends), Arc::clone(&under_way)));

    let kinds = [Event::Kill, Event::Stop].into_iter().cycle().take(options.rounds as usize);
    let events: Vec<Event> = kinds.chain((0..options.drains).map(|_| Event::Drain)).collect();
    let watch = progress.watch("take-overs", events.len() as u64);
    let mut measured = Vec::new();
    for (round, event) in events.into_iter().enumerate() {
        ensure!(!load.is_finished(), "the load has ended: {:?}", load.await);
        tokio::time::sleep(Duration::from_secs(3)).await;
        // What was held up by the event before is another event's matter.
        let calm = Instant::now() + CALM;
        while under_way.load(Ordering::Relaxed) > rate as usize / 2 && Instant::now() < calm {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        measured.push(one(&system, &mut victims[round % 2], event).await?);
        watch.step();
    }
    drop(watch);
    ends.store(true, Ordering::Relaxed);
    let (promised, too_late) = load.await.context("the load's task died")??;
    system.settle(started, holds.due_until(), |_| {}).await?;

    let mut part = Part::default();
    let mut worst = [0.0_f64; 2];
    for event in [Event::Kill, Event::Stop, Event::Drain] {
        let mut late = Latency::new();
        for (_, at, slots) in measured.iter().filter(|(kind, ..)| *kind == event) {
            system.lateness_in(slots, *at, LOOKED_AT, &mut late).await?;
        }
        part.fact(format!("lateness after {}", event.name()), late.summary());
        let worst = &mut worst[usize::from(event == Event::Drain)];
        *worst = worst.max(late.percentile_ms(99.0) / 1e3);
        let series = Series { name: event.name().to_owned(), points: late.curve() };
        match part.plots.first_mut() {
            Some(plot) => plot.series.push(series),
            None => part.plots.push(Plot {
                title: "Lateness of an instance's holds after it was".into(),
                x: "percentile".into(),
                y: "milliseconds".into(),
                form: Form::Percentiles,
                series: vec![series],
                bars: Vec::new(),
            }),
        }
    }
    let (_, early) = system.lateness(started).await?;
    let (unpaid, twice) = (system.unpaid(&promised).await?, system.paid_twice().await?);
    part.fact("lifecycles per second that three instances could take", format!("{capacity:.0}"));
    part.fact("holds promised, not paid", format!("{}, {unpaid}", promised.len()));
    part.fact("creations that were repeated until their due time was past", too_late.to_string());
    system.audit(progress).await?;
    let is_met = worst[0] <= GOALS[0] && worst[1] <= GOALS[1] && early == 0 && unpaid == 0 && twice == 0;
    part.line = Some(format!(
        "takeover: {} events={} rate={rate} holds={} p99_after_kill_s={:.2} p99_after_drain_s={:.2} paid_twice={twice} early={early} unpaid={unpaid}",
        if is_met { "ok" } else { "MISSED" },
        measured.len(),
        promised.len(),
        worst[0],
        worst[1],
    ));
    Ok(part)
}

/// How many lifecycles per second the three instances make between them.
async fn capacity(
    system: &System,
    fleets: &[Fleet; 3],
    holds: &Holds,
    progress: &Progress,
) -> anyhow::Result<f64> {
    let (each, callers) = PROBE;
    let watch = progress.watch("lifecycles at three instances", 3 * each);
    let due = Due::In(Duration::from_secs(1), Duration::ZERO);
    let holds = Holds { due, ..holds.clone() };
    let started = Timestamp::now();
    let closed = fleets.iter().map(|fleet| load::closed(fleet, callers, each, &holds, &watch));
    let closed = futures::future::try_join_all(closed).await?;
    let due_until = closed.iter().map(|closed| closed.due_until).max().unwrap_or(started);
    let settled = system.settle(started, due_until, |_| {}).await?;
    Ok((3 * each) as f64 / settled.last.duration_since(started).as_secs_f64())
}

/// One event: when, and the slots that the instance served then.
async fn one(
    system: &System,
    victim: &mut Instance,
    event: Event,
) -> anyhow::Result<(Event, Timestamp, Vec<i16>)> {
    let id = Uuid::parse_str(&victim.status().await?.instance)?;
    let slots = system.sql.query("SELECT slot FROM slot WHERE owner = $1", &[&id]).await?;
    let slots: Vec<i16> = slots.iter().map(|row| row.get(0)).collect();
    ensure!(!slots.is_empty(), "an instance serves no slot");
    let at = Timestamp::now();
    match event {
        Event::Kill => victim.tccd.kill().await?,
        Event::Stop => victim.tccd.signal("STOP").await?,
        Event::Drain => {
            victim.tccd.terminate(Duration::from_secs(60)).await?;
        }
    }
    tokio::time::sleep(GONE).await;
    match event {
        Event::Stop => victim.tccd.signal("CONT").await?,
        Event::Kill | Event::Drain => victim.tccd.restart().await?,
    }
    balanced(system, 3).await?;
    Ok((event, at, slots))
}

/// Waits until so many instances share the slots.
async fn balanced(system: &System, instances: i64) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    let sql = "SELECT count(*), max(slots) FROM (SELECT count(*) AS slots FROM slot WHERE owner IS NOT NULL GROUP BY owner) AS s";
    loop {
        let row = system.sql.query_one(sql, &[]).await?;
        let (owners, most): (i64, Option<i64>) = (row.get(0), row.get(1));
        if owners == instances && most == Some(86) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{owners} instances share the slots, not {instances}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Creates holds at a fixed rate, at any instance that answers, until told to stop. Answers the ids that were
/// promised, and how many creations came to their instance too late.
async fn feed(
    fleets: [Fleet; 3],
    rate: u32,
    holds: Holds,
    ends: Arc<AtomicBool>,
    under_way: Arc<AtomicUsize>,
) -> anyhow::Result<(Vec<Uuid>, usize)> {
    // An instance that has not answered is left alone for a while.
    let avoided = Arc::new(Mutex::new([Instant::now(); 3]));
    let mut chance = Chance::new(11);
    let mut tasks = JoinSet::new();
    let (mut promised, mut asked) = (Vec::new(), 0);
    let begin = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    for next in 0_u64.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        while begin + Duration::from_secs_f64(next as f64 / f64::from(rate)) > Instant::now() {
            ticks.tick().await;
        }
        let (request, fleets, avoided) = (holds.next(&mut chance), fleets.clone(), Arc::clone(&avoided));
        let first = chance.below(3);
        tasks.spawn(async move { insist(&fleets, first, &avoided, request).await });
        while let Some(done) = tasks.try_join_next() {
            promised.extend(done.context("a call's task died")??);
            asked += 1;
        }
        under_way.store(tasks.len(), Ordering::Relaxed);
        ensure!(tasks.len() < UNDER_WAY, "{rate} creations per second are too many");
    }
    while let Some(done) = tasks.join_next().await {
        promised.extend(done.context("a call's task died")??);
        asked += 1;
    }
    let too_late = asked - promised.len();
    Ok((promised, too_late))
}

/// Creates one hold, with the same id until it is answered. Answers its id, unless it was too late for its due time.
async fn insist(
    fleets: &[Fleet; 3],
    first: usize,
    avoided: &Mutex<[Instant; 3]>,
    request: v1::CreateHoldRequest,
) -> anyhow::Result<Option<Uuid>> {
    let id = Uuid::parse_str(&request.id)?;
    let (mut last, mut again) = (String::new(), 0);
    let mut chance = Chance::new(id.as_u64_pair().1);
    for attempt in first..first + 60 {
        let now = Instant::now();
        let is_avoided = |index: usize| avoided.lock().expect("no holder panics")[index] > now;
        let Some(index) = (attempt..attempt + 3).map(|n| n % 3).find(|index| !is_avoided(*index)) else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut call = tonic::Request::new(request.clone());
        call.set_timeout(CALL);
        let answer =
            tokio::time::timeout(CALL, fleets[index].holds(id.as_bytes()[14].into()).create_hold(call)).await;
        match answer {
            Ok(Ok(_)) => return Ok(Some(id)),
            // Nobody had recorded it before it was due: it was not promised.
            Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => return Ok(None),
            // It is alive; what became of the hold is asked for again.
            Ok(Err(status))
                if matches!(
                    status.code(),
                    tonic::Code::ResourceExhausted | tonic::Code::DeadlineExceeded
                ) =>
            {
                last = status.message().to_owned();
                // Ever more slowly, so that those who come again do not leave no room for the rest.
                tokio::time::sleep(Duration::from_millis(chance.below(400 << again.min(4)) as u64)).await;
                again += 1;
            }
            Ok(Err(status)) => {
                last = status.message().to_owned();
                avoided.lock().expect("no holder panics")[index] =
                    Instant::now() + Duration::from_millis(500);
            }
            Err(_) => {
                last = "no answer".into();
                avoided.lock().expect("no holder panics")[index] = Instant::now() + CALL;
            }
        }
    }
    anyhow::bail!("hold {id} was refused by every instance for long: {last}")
}
