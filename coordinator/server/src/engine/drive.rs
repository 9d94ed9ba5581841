//! One transaction, from where it stands to where it rests: held, final, put off or parked.

use super::{
    ALREADY_CANCELLED, Engine, STUCK_AFTER,
    participants::{Part, Parts},
};
use crate::schedule::Continuity;
use crate::store::{Advance, Defer, Record, Woken};
use futures::future::{join, join_all};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tcc_core::{
    Attention, Branch, Cause, Event, OnMaturity, Operation, Outcome, Phase, Timestamp,
    decision::{Tried, Unanswered, Verdict, permits_next, read_follower, read_pivot, read_tries},
};
use tcc_participant::{Call, retry::Backoff};

/// When Try has been without an answer for this long, it is sent once more, and then the transaction is cancelled.
const TRY_DEADLINE_US: i64 = 60_000_000;
/// So many failures of one transaction, while its participant serves others, park it.
const PARK_AFTER: u32 = 50;

/// A transaction that is being worked on.
pub(super) struct Life<'a> {
    engine: &'a Arc<Engine>,
    record: Record,
    /// As the database was when this life began.
    continuity: Continuity,
    /// The wake-up that would find this transaction if this life ended here, unless it needs none.
    safety: Option<Timestamp>,
    /// When the store found it due, if it is held and due.
    found_due_at: Option<Timestamp>,
    faults: u32,
    failing_since: Option<Timestamp>,
}

/// How a life ended.
pub(super) struct Rest {
    /// The transaction as this life knows it.
    pub record: Record,
    /// The wake-up that is open still, unless the transaction needs none.
    pub open: Option<Timestamp>,
    /// Whether this life has written what comes next. If not, that wake-up must fire again.
    pub is_written: bool,
}

/// How a step ended that did not move the transaction.
enum Stop {
    /// Someone else moved it, or the store does not answer. Its row says how it goes; whoever moved it may count on the very
    /// wake-up that this life came by, so that stays open, and is looked at again.
    LookAgain,
    /// Try it again later.
    Again(Unanswered),
    /// A person is needed.
    Park(String),
}

impl Stop {
    fn too_few() -> Self {
        let why = "a participant answered for fewer branches than it was asked".to_owned();
        Self::Again(Unanswered { why, is_fault: true })
    }
}

impl<'a> Life<'a> {
    /// A life that begins with a row just written, which left this wake-up.
    pub(super) fn new(engine: &'a Arc<Engine>, record: Record, safety: Timestamp) -> Self {
        let continuity = *engine.unbroken.borrow();
        let safety = Some(safety);
        Self { engine, record, continuity, safety, found_due_at: None, faults: 0, failing_since: None }
    }

    /// A life that goes on after a wake-up.
    pub(super) fn woken(engine: &'a Arc<Engine>, woken: Woken, safety: Timestamp) -> Self {
        let Woken { record, is_due, now, attempts, failing_since, .. } = woken;
        let found_due_at = is_due.then_some(now);
        let (continuity, safety) = (*engine.unbroken.borrow(), Some(safety));
        Self { engine, record, continuity, safety, found_due_at, faults: attempts, failing_since }
    }

    /// As it stands.
    pub(super) fn record(&self) -> Record {
        self.record.clone()
    }

    /// Step by step until it rests.
    pub(super) async fn drive(mut self) -> Rest {
        loop {
            let step = match self.record.standing.phase {
                Phase::Trying => self.try_step().await,
                Phase::Held if self.found_due_at.is_some() => {
                    self.decide_step(self.record.transaction.descriptor.on_maturity.operation()).await
                }
                Phase::Confirming => self.decide_step(Operation::Confirm).await,
                Phase::Cancelling => self.decide_step(Operation::Cancel).await,
                Phase::Held | Phase::Confirmed | Phase::Cancelled => {
                    return self.at_rest(true);
                }
            };
            if let Err(stop) = step {
                return self.rest(stop).await;
            }
        }
    }

    /// The first step alone, so that a client can be answered before the rest. `None` if it came to rest.
    pub(super) async fn try_branches(mut self) -> Option<Self> {
        match self.try_step().await {
            Ok(()) => Some(self),
            Err(stop) => {
                self.rest(stop).await;
                None
            }
        }
    }

    /// TRYING: every branch, all at once.
    async fn try_step(&mut self) -> Result<(), Stop> {
        let parts = self.engine.participants.parts(&self.record.transaction);
        let answers = join_all(parts.iter().map(|part| self.ask(part, Operation::Try))).await;
        let answered: usize = answers.iter().map(Vec::len).sum();
        match read_tries(answers.iter().flatten()) {
            Tried::All if answered < self.record.transaction.descriptor.branches.len() => {
                Err(Stop::too_few())
            }
            Tried::All => {
                // Its row was lost after it was decided, and made anew.
                let is_confirmed = self.record.standing.held_at.is_some()
                    && answers[0].first() == Some(&Outcome::AlreadyConfirmed);
                self.advance(Event::Tried, None).await?;
                if is_confirmed {
                    return self.advance(Event::PivotConfirmed, None).await;
                }
                if self.record.transaction.descriptor.is_due_at_once() {
                    self.found_due_at = self.record.standing.held_at;
                }
                Ok(())
            }
            Tried::Refused(refusal) => self.advance(Event::Refused, Some(refusal.code())).await,
            // Only a row that was lost and made anew is still TRYING when its fences are cancelled.
            Tried::Cancelled => self.advance(Event::Refused, Some(ALREADY_CANCELLED)).await,
            Tried::Unanswered(_) if self.is_past_try_deadline() => self.advance(Event::TimedOut, None).await,
            Tried::Unanswered(unanswered) => Err(Stop::Again(unanswered)),
            Tried::Lie(what) => Err(Stop::Park(what)),
        }
    }

    /// CONFIRMING or CANCELLING: the pivot first. Only its answer permits the others to follow; and where the pivot is not the
    /// ledger's, the ledger's branches follow one of their own.
    async fn decide_step(&mut self, operation: Operation) -> Result<(), Stop> {
        let Parts { pivot, lead, ledger, others } = self.engine.participants.parts(&self.record.transaction);

        let mut answers = self.ask(&pivot, operation).await.into_iter();
        let decision = answers.next().unwrap_or_else(|| Outcome::Failed("no answer for the pivot".into()));
        match read_pivot(operation, &decision) {
            Verdict::Proceed => {}
            Verdict::Flip(event, _) if !self.is_credible(event, &pivot) => {
                let name = pivot.participant.name();
                return Err(Stop::Park(format!(
                    "{name} answered {decision:?} to {operation:?}, which cannot be"
                )));
            }
            Verdict::Flip(event, reason) => {
                return self.advance(event, reason.as_ref().map(tcc_core::Refusal::code)).await;
            }
            Verdict::Again(unanswered) => return Err(Stop::Again(unanswered)),
            Verdict::Park(what) => return Err(Stop::Park(what)),
        }

        let beside: Vec<Outcome> = answers.collect();
        let in_ledger = async {
            let mut followed = Vec::new();
            if let Some(lead) = &lead {
                let led = self.ask(lead, operation).await;
                let permits = led.first().is_some_and(|outcome| permits_next(operation, outcome));
                followed.push(led);
                if !permits {
                    return followed;
                }
            }
            followed.extend(join_all(ledger.iter().map(|part| self.ask(part, operation))).await);
            followed
        };
        let elsewhere = join_all(others.iter().map(|part| self.ask(part, operation)));
        let (in_ledger, elsewhere) = join(in_ledger, elsewhere).await;
        let followed = || in_ledger.iter().chain(&elsewhere).flatten();
        let mut again = None;
        for outcome in beside.iter().chain(followed()) {
            match read_follower(operation, outcome) {
                Verdict::Proceed => {}
                Verdict::Again(unanswered) => again = Some(unanswered),
                Verdict::Flip(..) => {
                    return Err(Stop::Park(format!("{outcome:?} from a branch that has no say")));
                }
                Verdict::Park(what) => return Err(Stop::Park(what)),
            }
        }
        let answered = 1 + beside.len() + followed().count();
        if let Some(unanswered) = again {
            return Err(Stop::Again(unanswered));
        }
        if answered < self.record.transaction.descriptor.branches.len() {
            return Err(Stop::too_few());
        }
        let event = match operation {
            Operation::Confirm => Event::AllConfirmed,
            Operation::Cancel | Operation::Try => Event::AllCancelled,
        };
        self.advance(event, None).await?;
        self.engine.metrics.settled(pivot.index, pivot.participant.name(), &self.record);
        Ok(())
    }

    /// Whether the pivot can have decided otherwise than it is asked. A shard's fence says what is so. Of others it is not
    /// believed that they have confirmed what nobody has asked them to, or that they veto without being known to.
    fn is_credible(&self, event: Event, pivot: &Part) -> bool {
        let Record { transaction, standing, .. } = &self.record;
        let Branch::Other(request) = transaction.branch(transaction.descriptor.pivot) else { return true };
        debug_assert_eq!(request.participant.as_str(), pivot.participant.name());
        match event {
            Event::PivotVetoed => {
                self.engine.participants.terms(&request.participant).is_some_and(|terms| terms.may_veto)
            }
            Event::PivotConfirmed => {
                let may_be_forgotten = standing.created_at < self.continuity.since;
                let was_due = transaction.descriptor.on_maturity == OnMaturity::Confirm
                    && transaction.descriptor.due_at.as_microsecond() <= self.engine.clock.now_us();
                may_be_forgotten || was_due || standing.cause == Some(Cause::Operator)
            }
            _ => true,
        }
    }

    async fn ask(&self, part: &Part, operation: Operation) -> Vec<Outcome> {
        let began = Instant::now();
        let transaction = Arc::clone(&self.record.transaction);
        let call = Call { operation, transaction, branches: part.branches.clone() };
        let outcomes = part.participant.call(call).await;
        let name = part.participant.name();
        self.engine.metrics.called(part.index, name, operation, began.elapsed(), &outcomes);
        outcomes
    }

    /// Moves the row, if nobody else has.
    async fn advance(&mut self, event: Event, reason: Option<&str>) -> Result<(), Stop> {
        let advance = Advance {
            reason: reason.map(str::to_owned),
            found_due_at: self.found_due_at,
            failed: self.failing_since.is_some() || self.record.standing.attention != Attention::None,
            open: self.safety,
            server: Some(self.continuity.server),
            ..Advance::new(self.record.id(), event)
        };
        match self.engine.store.advance.call(advance).await {
            Ok(Some(advanced)) => {
                self.engine.metrics.moved(self.record.standing.phase, &advanced.standing);
                self.record.standing = advanced.standing;
                if let Some(traces) = self.engine.traces.get()
                    && self.record.standing.phase.is_final()
                {
                    traces.ended_later(&self.engine.store, &self.record);
                }
                self.replace_safety(advanced.wake_at);
                (self.faults, self.failing_since) = (0, None);
                Ok(())
            }
            Ok(None) if event.is_flip() && self.record.standing.flipped => {
                Err(Stop::Park(format!("the pivot turned the decision round twice: {event:?}")))
            }
            Ok(None) | Err(_) => Err(Stop::LookAgain),
        }
    }

    async fn rest(mut self, stop: Stop) -> Rest {
        let (id, phase) = (self.record.id(), self.record.standing.phase);
        let now_us = self.engine.clock.now_us();
        let failing_us = self.failing_since.map_or(0, |since| (now_us - since.as_microsecond()).max(0));
        let failing_for = Duration::from_micros(failing_us.unsigned_abs());
        let (attention, delay, error, is_fault) = match stop {
            Stop::LookAgain => return self.at_rest(false),
            Stop::Park(what) => (Attention::Parked, None, what, true),
            Stop::Again(Unanswered { why, is_fault: true }) if self.faults + 1 >= PARK_AFTER => {
                (Attention::Parked, None, format!("{PARK_AFTER} failures, the last one: {why}"), true)
            }
            Stop::Again(Unanswered { why, is_fault }) => {
                let attention =
                    if failing_for >= STUCK_AFTER { Attention::Stuck } else { Attention::Retrying };
                let delay = Backoff::TRANSACTION.delay_after(failing_for);
                (attention, Some(delay), why, is_fault)
            }
        };
        if attention == Attention::Parked {
            tracing::error!(%id, ?phase, error, "parked: an operator is needed");
        } else {
            tracing::debug!(%id, ?phase, error, "put off");
        }
        let defer = Defer { id, phase: Some(phase), is_fault, attention, delay, error };
        match self.engine.store.defer.call(defer).await {
            Ok(Some(wake_at)) => {
                self.engine.metrics.put_off(attention);
                self.replace_safety(wake_at);
                self.at_rest(true)
            }
            Ok(None) | Err(_) => self.at_rest(false),
        }
    }

    fn at_rest(self, is_written: bool) -> Rest {
        Rest { record: self.record, open: self.safety, is_written }
    }

    /// The next wake-up takes the place of the one before.
    fn replace_safety(&mut self, wake_at: Option<Timestamp>) {
        let (id, place) = (self.record.id(), self.record.place);
        if let Some(at) = wake_at {
            self.engine.timers.arm(at, id, place);
        }
        if let Some(at) = std::mem::replace(&mut self.safety, wake_at).filter(|at| Some(*at) != wake_at) {
            self.engine.timers.settle(at, id, place);
        }
    }

    /// What may have been held before the database went back waits until every branch has answered: what was there by then, and
    /// what the sweep has made anew since, which it tells by a time at which it was held.
    fn is_past_try_deadline(&self) -> bool {
        let created_at = self.record.standing.created_at;
        let may_have_been_held = created_at < self.continuity.since || self.record.standing.held_at.is_some();
        !may_have_been_held && self.engine.clock.now_us() - created_at.as_microsecond() >= TRY_DEADLINE_US
    }
}
