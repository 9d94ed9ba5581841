//! One hold from the client's side, as straight-line code: create it, perhaps send it again, perhaps cancel it, and watch it
//! until it is final.
//!
//! Every hold lives in a task of its own. How many creations and how many other calls go out at a time is bounded, so that
//! what waits for a dead tccd are a few calls of each kind, as with any client that has a pool of connections. What the
//! answers mean is judged elsewhere; here they are only collected.

use crate::{
    client::{Answer, answer},
    flight::Flight,
    plan::{BEAT, Order, Plan, Repeat},
    story::{Cancel, Created, Story, is_same},
};
use anyhow::{Context as _, bail, ensure};
use std::{sync::Arc, time::Duration};
use tcc_client::{AccountId, Client, Currency, Hold, Money, NewHold, Reason, TransactionId, new_id};
use tcc_core::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Code;

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
    /// The ids of the accounts, in the order of the plan.
    pub accounts: Vec<AccountId>,
    creators: Semaphore,
    watchers: Semaphore,
}

impl World {
    /// Nothing is done yet.
    ///
    /// # Errors
    ///
    /// If the id of an account is none.
    pub fn new(plan: Plan, client: Client, flight: Flight) -> anyhow::Result<Arc<Self>> {
        let (creators, watchers) = (Semaphore::new(CREATORS), Semaphore::new(WATCHERS));
        let ids = plan.accounts.iter().map(|account| AccountId::parse(&account.id));
        let accounts = ids.collect::<Result<_, _>>().context("reading the ids of accounts")?;
        Ok(Arc::new(Self { plan, client, flight, accounts, creators, watchers }))
    }

    /// The accounts of an order: payer and payee.
    #[must_use]
    pub fn parties(&self, order: &Order) -> (&AccountId, &AccountId) {
        (&self.accounts[order.payer], &self.accounts[order.payee])
    }

    /// The plan's currency.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn currency(&self) -> anyhow::Result<Currency> {
        Currency::parse(self.plan.currency).context("reading the currency")
    }

    /// So much of it.
    ///
    /// # Errors
    ///
    /// If it is no amount.
    pub fn money(&self, value: i64) -> anyhow::Result<Money> {
        Money::new(value, self.plan.currency).context("reading an amount")
    }

    /// An order's hold, to be paid then.
    fn hold(
        &self,
        order: &Order,
        amount: i64,
        id: TransactionId,
        due_at: Timestamp,
    ) -> anyhow::Result<NewHold> {
        let (payer, payee) = self.parties(order);
        Ok(self.client.hold(payer, payee, self.money(amount)?).pay_out_at(due_at).id(id))
    }
}

/// The whole life of one order's hold. `born` is called when its creation is answered.
///
/// # Errors
///
/// If a call gets no answer, or one that cannot be, or the hold is not final in time.
pub async fn live(world: &World, order: &Order, born: impl FnOnce()) -> anyhow::Result<Story> {
    let id = new_id();
    let mut wrong = Vec::new();
    let (due_at, created) = {
        let _creator = permit(&world.creators).await?;
        world.flight.begin_creation();
        let (due_at, answer) = create(world, order, id, &mut wrong).await?;
        world.flight.end_creation();
        born();
        repeat(world, order, id, due_at, &answer, &mut wrong).await?;
        (due_at, read(id, answer)?)
    };

    let mut cancel = None;
    if let (Created::Held, Some(lead)) = (&created, order.cancel_lead) {
        sleep_until(due_at - lead).await;
        let _watcher = permit(&world.watchers).await?;
        cancel = Some(ask_for_release(world, id).await?);
    }
    if created == Created::Held && cancel != Some(Cancel::Cancelled) {
        sleep_until(due_at + FIRST_LOOK).await;
    }
    let end = watch(world, id).await?;
    Ok(Story { id, due_at, created, cancel, end, wrong })
}

/// Creates it, to be paid after its delay.
async fn create(
    world: &World,
    order: &Order,
    id: TransactionId,
    wrong: &mut Vec<String>,
) -> anyhow::Result<(Timestamp, Answer)> {
    loop {
        let due_at = due_at(Timestamp::now(), order.delay);
        let hold = world.hold(order, order.amount, id, due_at)?;
        let answered = if order.repeat == Repeat::AtOnce {
            let (one, other) = tokio::join!(hold.send(), hold.send());
            let (one, other) = (answer(one)?, answer(other)?);
            if is_past_due(&one) {
                other
            } else {
                if !is_past_due(&other) {
                    compare("sent twice at once", &one, &other, wrong);
                }
                one
            }
        } else {
            answer(hold.send().await)?
        };
        // There was no answer until it was too late, and now it is certain that the hold does not exist: ask anew.
        if !is_past_due(&answered) {
            return Ok((due_at, answered));
        }
    }
}

/// Sends it again, if it is one of those, and compares the answers.
async fn repeat(
    world: &World,
    order: &Order,
    id: TransactionId,
    due_at: Timestamp,
    answered: &Answer,
    wrong: &mut Vec<String>,
) -> anyhow::Result<()> {
    match order.repeat {
        Repeat::Never | Repeat::AtOnce => {}
        Repeat::Later => {
            let again = answer(world.hold(order, order.amount, id, due_at)?.send().await)?;
            compare("sent again", answered, &again, wrong);
            if matches!(&again, Ok(created) if !created.replayed) {
                wrong.push("sent again, it was not told as known".into());
            }
        }
        Repeat::OtherBody => {
            let other = answer(world.hold(order, order.amount + 1, id, due_at)?.send().await)?;
            if !matches!(&other, Err(no) if no.reason() == Some(Reason::IdReused)) {
                wrong.push(format!("sent again with another amount, the answer is {other:?}"));
            }
        }
    }
    Ok(())
}

fn compare(how: &str, one: &Answer, other: &Answer, wrong: &mut Vec<String>) {
    let same = match (one, other) {
        (Ok(one), Ok(other)) => is_same(&one.hold, &other.hold),
        (Err(one), Err(other)) => one.name() == other.name(),
        _ => false,
    };
    if !same {
        wrong.push(format!("{how}, it was answered {one:?} and {other:?}"));
    }
}

fn read(id: TransactionId, answer: Answer) -> anyhow::Result<Created> {
    match answer {
        Ok(_) => Ok(Created::Held),
        Err(no) => {
            let refusal = no.reason().filter(|reason| {
                reason.code() == Code::FailedPrecondition || *reason == Reason::AccountNotFound
            });
            match refusal {
                Some(reason) => Ok(Created::Refused(reason)),
                None => bail!("creating hold {id}: {no}"),
            }
        }
    }
}

fn is_past_due(answer: &Answer) -> bool {
    matches!(answer, Err(no) if no.reason() == Some(Reason::DueTimeInPast))
}

async fn ask_for_release(world: &World, id: TransactionId) -> anyhow::Result<Cancel> {
    match world.client.cancel(id).await {
        Ok(_) => Ok(Cancel::Cancelled),
        Err(error) if error.reason() == Some(Reason::HoldNotCancellable) => Ok(Cancel::TooLate),
        Err(error) => Err(error).with_context(|| format!("cancelling hold {id}")),
    }
}

/// Looks at it until it is final.
async fn watch(world: &World, id: TransactionId) -> anyhow::Result<Hold> {
    loop {
        let seen = {
            let _watcher = permit(&world.watchers).await?;
            world.client.get(id).await?
        };
        if seen.is_final() {
            return Ok(seen);
        }
        let phase = seen.phase;
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
