//! One hold from the client's side, as straight-line code: create it, perhaps send it again, perhaps cancel it, and watch it
//! until it is final.
//!
//! Every hold lives in a task of its own. How many creations and how many other calls go out at a time is bounded, so that
//! what waits for a dead tccd are a few calls of each kind, as with any client that has a pool of connections. What the
//! answers mean is judged elsewhere; here they are only collected.

use crate::{
    client::{Answer, Body, Client, No, Taken},
    flight::Flight,
    plan::{BEAT, Order, Plan, Repeat},
    story::{Cancel, Created, Seen, Story},
};
use anyhow::{Context as _, ensure};
use std::{sync::Arc, time::Duration};
use tcc_core::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Code;
use uuid::Uuid;

/// So many creations go out at a time.
const CREATORS: usize = 64;
/// And so many other calls.
const WATCHERS: usize = 64;
/// Holds fall due so many milliseconds after a beat, or fewer.
const STREWN_MS: u32 = 40;
/// A hold is first looked at so long after it was due. Looking at once would only be in the way of its payment.
const FIRST_LOOK: Duration = Duration::from_millis(150);
/// And then this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A hold that is not final this long after it was due never will be. The downtime is in it.
const FINAL_WITHIN: Duration = Duration::from_secs(60);

/// What all lives share.
pub struct World {
    /// What is to be done.
    pub plan: Plan,
    /// How it is asked for.
    pub client: Client,
    /// What is on its way.
    pub flight: Flight,
    creators: Semaphore,
    watchers: Semaphore,
}

impl World {
    /// Nothing is done yet.
    #[must_use]
    pub fn new(plan: Plan, client: Client, flight: Flight) -> Arc<Self> {
        let (creators, watchers) = (Semaphore::new(CREATORS), Semaphore::new(WATCHERS));
        Arc::new(Self { plan, client, flight, creators, watchers })
    }

    /// The accounts of an order: payer and payee.
    #[must_use]
    pub fn parties(&self, order: &Order) -> (&str, &str) {
        let id = |index: usize| self.plan.accounts[index].id.as_str();
        (id(order.payer), id(order.payee))
    }
}

/// The whole life of one order's hold. `born` is called when its creation is answered.
///
/// # Errors
///
/// If a call gets no answer, or one that cannot be, or the hold is not final in time.
pub async fn live(world: &World, order: &Order, born: impl FnOnce()) -> anyhow::Result<Story> {
    let id = Uuid::now_v7().to_string();
    let mut wrong = Vec::new();
    let (due_at, created) = {
        let _creator = permit(&world.creators).await?;
        world.flight.begin_creation();
        let (due_at, answer) = create(world, order, &id, &mut wrong).await?;
        world.flight.end_creation();
        born();
        repeat(world, order, &id, due_at, &answer, &mut wrong).await?;
        (due_at, read(&id, answer)?)
    };

    let mut cancel = None;
    if let (Created::Held, Some(lead)) = (&created, order.cancel_lead) {
        sleep_until(due_at - lead).await;
        let _watcher = permit(&world.watchers).await?;
        cancel = Some(world.client.cancel(&id).await?);
    }
    if created == Created::Held && cancel != Some(Cancel::Cancelled) {
        sleep_until(due_at + FIRST_LOOK).await;
    }
    let end = watch(world, &id).await?;
    Ok(Story { id, due_at, created, cancel, end, wrong })
}

/// Creates it, to be paid after its delay.
async fn create(
    world: &World,
    order: &Order,
    id: &str,
    wrong: &mut Vec<String>,
) -> anyhow::Result<(Timestamp, Answer<Taken>)> {
    let (payer, payee) = world.parties(order);
    loop {
        let due_at = due_at(Timestamp::now(), order.delay);
        let body = Body::new(order, payer, payee, due_at);
        let answer = if order.repeat == Repeat::AtOnce {
            let (one, other) =
                tokio::try_join!(world.client.create(id, &body), world.client.create(id, &body))?;
            if is_past_due(&one) {
                other
            } else {
                if !is_past_due(&other) {
                    compare("sent twice at once", &one, &other, wrong);
                }
                one
            }
        } else {
            world.client.create(id, &body).await?
        };
        // There was no answer until it was too late, and now it is certain that the hold does not exist: ask anew.
        if !is_past_due(&answer) {
            return Ok((due_at, answer));
        }
    }
}

/// Sends it again, if it is one of those, and compares the answers.
async fn repeat(
    world: &World,
    order: &Order,
    id: &str,
    due_at: Timestamp,
    answer: &Answer<Taken>,
    wrong: &mut Vec<String>,
) -> anyhow::Result<()> {
    let (payer, payee) = world.parties(order);
    let mut body = Body::new(order, payer, payee, due_at);
    match order.repeat {
        Repeat::Never | Repeat::AtOnce => {}
        Repeat::Later => {
            let again = world.client.create(id, &body).await?;
            compare("sent again", answer, &again, wrong);
            if matches!(&again, Answer::Yes(taken) if !taken.replayed) {
                wrong.push("sent again, it was not told as known".into());
            }
        }
        Repeat::OtherBody => {
            body.amount += 1;
            match world.client.create(id, &body).await? {
                Answer::No(No { code: Code::AlreadyExists, reason, .. }) if reason == "ID_REUSED" => {}
                other => wrong.push(format!("sent again with another amount, the answer is {other:?}")),
            }
        }
    }
    Ok(())
}

fn compare(how: &str, one: &Answer<Taken>, other: &Answer<Taken>, wrong: &mut Vec<String>) {
    let is_same = match (one, other) {
        (Answer::Yes(one), Answer::Yes(other)) => one.seen.is_same(&other.seen),
        (Answer::No(one), Answer::No(other)) => (one.code, &one.reason) == (other.code, &other.reason),
        _ => false,
    };
    if !is_same {
        wrong.push(format!("{how}, it was answered {one:?} and {other:?}"));
    }
}

fn read(id: &str, answer: Answer<Taken>) -> anyhow::Result<Created> {
    match answer {
        Answer::Yes(_) => Ok(Created::Held),
        Answer::No(no) if no.code == Code::FailedPrecondition || no.reason == "ACCOUNT_NOT_FOUND" => {
            Ok(Created::Refused(no.reason))
        }
        Answer::No(no) => Err(no.into_error(|| format!("creating hold {id}"))),
    }
}

fn is_past_due(answer: &Answer<Taken>) -> bool {
    matches!(answer, Answer::No(no) if no.code == Code::InvalidArgument && no.reason == "DUE_TIME_IN_PAST")
}

/// Looks at it until it is final.
async fn watch(world: &World, id: &str) -> anyhow::Result<Seen> {
    loop {
        let seen = {
            let _watcher = permit(&world.watchers).await?;
            world.client.look(id).await?
        };
        if seen.is_final() {
            return Ok(seen);
        }
        let phase = seen.phase.as_str_name();
        ensure!(
            Timestamp::now() < seen.due_at + FINAL_WITHIN,
            "hold {id} is {phase} {FINAL_WITHIN:?} after it was due at {}",
            seen.due_at
        );
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn permit(semaphore: &Semaphore) -> anyhow::Result<SemaphorePermit<'_>> {
    semaphore.acquire().await.context("the demo is ending")
}

async fn sleep_until(time: Timestamp) {
    let wait = time.duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
}

/// Just after the first beat that follows the delay: so payments meet the next wave of creations. They are strewn a little, so
/// that during the wave there is no moment at which all of them are made or none is begun.
fn due_at(now: Timestamp, delay: Duration) -> Timestamp {
    next_beat(now + delay) + Duration::from_millis(u64::from(delay.subsec_millis() % STREWN_MS))
}

/// The first beat of the wall clock that is not before `time`.
#[must_use]
pub fn next_beat(time: Timestamp) -> Timestamp {
    let beat = BEAT.as_micros() as i64;
    let beats = (time.as_microsecond() + beat).div_euclid(beat);
    Timestamp::from_microsecond(beats * beat).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_falls_due_after_its_delay_close_to_a_beat() {
        let now = Timestamp::from_millisecond(1_790_000_000_123).unwrap();

        for delay in (1_000..2_000).map(Duration::from_millis) {
            let due_at = due_at(now, delay);

            assert!(due_at >= now + delay);
            assert!(due_at.as_millisecond() % 500 < 40);
        }
    }

    #[test]
    fn the_next_beat_is_a_half_second_that_is_not_before() {
        let at = |ms: i64| Timestamp::from_millisecond(1_790_000_000_000 + ms).unwrap();

        assert_eq!(next_beat(at(1)), at(500));
        assert_eq!(next_beat(at(499)), at(500));
        assert_eq!(next_beat(at(501)), at(1_000));
        assert!(next_beat(at(500)) >= at(500));
    }
}
