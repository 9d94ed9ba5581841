//! Two ways of sending load.
//!
//! *Closed loop*: so many callers, each of whom waits for an answer before the next call. It finds the rate at saturation;
//! its latencies say how long callers wait then. *Open loop*: calls begin at fixed times whether or not earlier ones were
//! answered, and their latency is counted from the time at which they should have begun. So a stall is paid for by
//! everybody who would have come in it, and is not omitted by a generator that waits along (coordinated omission).

use crate::{
    fleet::{Accounts, Chance, Fleet, Payees, Wire, from_now},
    latency::Latency,
    progress::Watch,
};
use anyhow::{Context as _, bail};
use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tcc_core::Timestamp;
use tcc_proto::v1;
use tokio::{task::LocalSet, time::Instant};
use tonic::{Status, metadata::MetadataValue};

/// What a closed loop did.
pub struct Closed {
    /// From the first call to the last answer.
    pub took: Duration,
    /// Of each call.
    pub latency: Latency,
    /// Answers per second of the run.
    pub per_second: Vec<(f64, f64)>,
    /// When the last of the holds is due.
    pub due_until: Timestamp,
}

/// What holds a load creates.
#[derive(Clone)]
pub struct Holds {
    /// Between these.
    pub accounts: Accounts,
    /// To whom.
    pub payees: Payees,
    /// And when they fall due.
    pub due: Due,
    /// Who asks for them.
    pub caller: &'static str,
}

/// Holds that stay held fall due after this.
const FAR: Duration = Duration::from_secs(3_600);

/// When holds fall due.
#[derive(Clone, Copy)]
pub enum Due {
    /// So long after each is asked for, and by chance up to the second duration longer.
    In(Duration, Duration),
    /// By chance between two times.
    Between(Timestamp, Duration),
}

impl Holds {
    /// Holds that stay held during any run.
    #[must_use]
    pub fn far(accounts: &Accounts, payees: Payees) -> Self {
        Self { accounts: accounts.clone(), payees, due: Due::In(FAR, Duration::ZERO), caller: "bench" }
    }

    /// The next request.
    pub fn next(&self, chance: &mut Chance) -> v1::CreateHoldRequest {
        let mut jitter = |within: Duration| {
            Duration::from_micros(chance.below((within.as_micros() as usize).max(1)) as u64)
        };
        let due_at = match self.due {
            Due::In(delay, within) => from_now(delay + jitter(within)),
            Due::Between(from, within) => from + jitter(within),
        };
        self.accounts.hold(chance, &self.payees, due_at)
    }

    /// When the last one that is asked for now is due.
    #[must_use]
    pub fn due_until(&self) -> Timestamp {
        match self.due {
            Due::In(delay, within) => from_now(delay + within),
            Due::Between(from, within) => from + within,
        }
    }
}

/// Creates `total` holds with so many callers. Every one must be answered HELD.
///
/// # Errors
///
/// If one is not.
pub async fn closed(
    fleet: &Fleet,
    callers: u32,
    total: u64,
    holds: &Holds,
    watch: &Watch,
) -> anyhow::Result<Closed> {
    closed_until(fleet, callers, total, None, holds, watch).await
}

/// Creates holds with so many callers for so long.
///
/// # Errors
///
/// If one is not answered HELD.
pub async fn closed_for(
    fleet: &Fleet,
    callers: u32,
    lasts: Duration,
    holds: &Holds,
    watch: &Watch,
) -> anyhow::Result<Closed> {
    closed_until(fleet, callers, u64::MAX, Some(Instant::now() + lasts), holds, watch).await
}

async fn closed_until(
    fleet: &Fleet,
    callers: u32,
    total: u64,
    until: Option<Instant>,
    holds: &Holds,
    watch: &Watch,
) -> anyhow::Result<Closed> {
    let left = Arc::new(AtomicU64::new(total));
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers as usize {
        let (mut client, holds) = (fleet.holds(caller), holds.clone());
        let (left, done) = (Arc::clone(&left), watch.counter());
        tasks.spawn(async move {
            let mut chance = Chance::new(caller as u64 + 1);
            let mut answers = Vec::new();
            let is_left =
                || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            while until.is_none_or(|until| Instant::now() < until) && is_left().is_ok() {
                let request = holds.next(&mut chance);
                let called = Instant::now();
                create(&mut client, request, holds.caller).await?;
                let answered = Instant::now();
                answers.push((answered - called, answered - started));
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(answers)
        });
    }
    let mut latency = Latency::new();
    let mut seconds = Vec::new();
    let mut took = Duration::ZERO;
    while let Some(answers) = tasks.join_next().await {
        for (waited, at) in answers.context("a caller panicked")?? {
            latency.record(waited);
            count(&mut seconds, at);
            took = took.max(at);
        }
    }
    Ok(Closed { took, latency, per_second: points(&seconds), due_until: holds.due_until() })
}

/// What an open loop sends.
#[derive(Clone, Copy)]
pub struct Rate {
    /// Creations per second.
    pub creates: u32,
    /// Every so many-th hold is cancelled a second after it was asked for; 0: none.
    pub cancel_every: u64,
    /// For how long.
    pub lasts: Duration,
}

/// What an open loop found.
#[derive(Default)]
pub struct Open {
    /// Of creations.
    pub creates: Option<Latency>,
    /// Of cancels.
    pub cancels: Option<Latency>,
    /// Calls that were not answered as they should be.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
}

/// A cancel comes so long after the creation was due to be sent.
const CANCEL_AFTER: Duration = Duration::from_secs(1);
/// How finely calls are paced: the timer's grain. What it costs is in the latencies.
const PACE: Duration = Duration::from_millis(1);

/// Sends at a fixed rate.
///
/// # Errors
///
/// If a task of the load generator dies.
pub async fn open(fleet: &Fleet, rate: Rate, holds: &Holds, watch: &Watch) -> anyhow::Result<Open> {
    let found = Rc::new(RefCell::new(Open {
        creates: Some(Latency::new()),
        cancels: Some(Latency::new()),
        ..Open::default()
    }));
    let total = (f64::from(rate.creates) * rate.lasts.as_secs_f64()) as u64;
    let local = LocalSet::new();
    let (sent, holds, fleet) = (Rc::clone(&found), holds.clone(), fleet.clone());
    let done = watch.counter();
    local
        .run_until(async move {
            let mut chance = Chance::new(7);
            let mut tasks = tokio::task::JoinSet::new();
            let begin = Instant::now() + PACE;
            let mut ticks = tokio::time::interval(PACE);
            let mut next = 0_u64;
            while next < total {
                ticks.tick().await;
                let now = Instant::now();
                loop {
                    let scheduled = begin + Duration::from_secs_f64(next as f64 / f64::from(rate.creates));
                    if scheduled > now || next == total {
                        break;
                    }
                    let request = holds.next(&mut chance);
                    let cancels = rate.cancel_every > 0 && next.is_multiple_of(rate.cancel_every);
                    let (client, found, done) =
                        (fleet.holds(next as usize), Rc::clone(&sent), Arc::clone(&done));
                    let caller = holds.caller;
                    tasks.spawn_local(async move {
                        one(client, request, caller, scheduled, cancels, &found).await;
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                    next += 1;
                }
                while tasks.try_join_next().is_some() {}
            }
            while let Some(ended) = tasks.join_next().await {
                ended.context("a call's task died")?;
            }
            anyhow::Ok(())
        })
        .await?;
    Rc::into_inner(found).map(RefCell::into_inner).context("a call is still under way")
}

/// One hold of an open loop.
async fn one(
    mut client: v1::hold_service_client::HoldServiceClient<Wire>,
    request: v1::CreateHoldRequest,
    caller: &'static str,
    scheduled: Instant,
    cancels: bool,
    found: &RefCell<Open>,
) {
    let id = request.id.clone();
    let created = create(&mut client, request, caller).await;
    found.borrow_mut().count(created, scheduled, |open| &mut open.creates);
    if cancels {
        let scheduled = scheduled + CANCEL_AFTER;
        tokio::time::sleep_until(scheduled).await;
        let cancelled = cancel(&mut client, id).await;
        found.borrow_mut().count(cancelled, scheduled, |open| &mut open.cancels);
    }
}

impl Open {
    fn count(
        &mut self,
        answer: anyhow::Result<()>,
        scheduled: Instant,
        latency: impl FnOnce(&mut Self) -> &mut Option<Latency>,
    ) {
        if let Err(error) = answer {
            self.errors += 1;
            self.first_error.get_or_insert_with(|| format!("{error:#}"));
        }
        // An error counts with the time that it took: it must not make the distribution look better.
        if let Some(latency) = latency(self) {
            latency.record(scheduled.elapsed());
        }
    }
}

async fn create(
    client: &mut v1::hold_service_client::HoldServiceClient<Wire>,
    request: v1::CreateHoldRequest,
    caller: &'static str,
) -> anyhow::Result<()> {
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("tcc-caller", MetadataValue::from_static(caller));
    let response = client.create_hold(request).await.map_err(|status| told("creating a hold", &status))?;
    match response.into_inner().hold.map(|hold| hold.phase()) {
        // One that falls due at once may be answered a little later.
        Some(v1::Phase::Held | v1::Phase::Confirming | v1::Phase::Confirmed) => Ok(()),
        other => bail!("a hold was answered {other:?} instead of HELD"),
    }
}

async fn cancel(
    client: &mut v1::hold_service_client::HoldServiceClient<Wire>,
    id: String,
) -> anyhow::Result<()> {
    let response = client.cancel_hold(v1::CancelHoldRequest { id, etag: String::new() }).await;
    let response = response.map_err(|status| told("cancelling a hold", &status))?;
    match response.into_inner().hold.map(|hold| hold.phase()) {
        Some(v1::Phase::Cancelled) => Ok(()),
        other => bail!("a cancel was answered {other:?} instead of CANCELLED"),
    }
}

/// A status with its details is long.
fn told(what: &str, status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{what}: {:?}: {}", status.code(), status.message())
}

/// One more in the second in which it happened.
fn count(seconds: &mut Vec<u64>, at: Duration) {
    let second = at.as_secs() as usize;
    if seconds.len() <= second {
        seconds.resize(second + 1, 0);
    }
    seconds[second] += 1;
}

fn points(seconds: &[u64]) -> Vec<(f64, f64)> {
    seconds.iter().enumerate().map(|(second, count)| (second as f64, *count as f64)).collect()
}
