//! An exhaustive search of one hold: everything that can happen to it, in every order.
//!
//! The search calls the real protocol (`Phase::after`, `fence::admit`, `decision`), so a mistake in those tables is found
//! here and not in production. Around them it makes the world as bad as it gets: messages that are lost, late for ever,
//! repeated and out of order; two coordinators, either of which may act on a row that it read long ago, and crash at any
//! point; a client that asks for anything at any time; a payee who is blocked and unblocked; and a coordinator database
//! that loses its last commits, or the whole row, any number of times. [`claims`] says what must hold in every state that
//! this leads to.
//!
//! It is kept small by leaving memory out wherever leaving it out only adds behaviour:
//!
//! - The network is the set of operations ever sent. Each may arrive at any later time, any number of times, or never. Its
//!   answer goes to a coordinator that waits for it, or to nobody.
//! - A stale read returns any version that the row ever had. So two coordinators stand for any number of them, each asleep
//!   for any time.
//! - Time is one bit: whether the hold is due. The Try deadline may pass whenever a coordinator has asked every branch and
//!   waits for an answer.
//! - Whether an account has the funds, or is blocked, is chosen anew whenever it matters.
//!
//! It keeps out SQL and locks (a fence and its effect change in one step here; that they do is tested on PostgreSQL), a
//! shard that loses commits (which no order of messages survives), leases, retention, what else operators do, another hold
//! under the same id, and transactions of more branches. Of an effect outside a database it knows that asking again with the
//! same key does not repeat it, and not that an API forgets its keys.

pub mod claims;
pub mod pair;
pub mod world;

use stateright::{Checker as _, HasDiscoveries, Model, Path, Property};
use tcc_core::decision::{self, Verdict};
use tcc_core::{Event, FenceState, OnMaturity, Operation, Outcome, Phase};
use world::{At, Attempt, Conclusion, DEBIT, Effect, Loss, PIVOT, Row, World};

/// What is searched.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// Whether Confirm and Cancel go to the pivot first, and only its answer permits the other branch to follow. If not,
    /// the coordinator's row alone decides, and both branches are asked at once.
    pub pivot_rule: bool,
    /// Whether the coordinators' database may lose its last commits, or the row.
    pub commits_are_lost: bool,
    /// Whether a pivot that has asked for an effect outside refuses to be cancelled until it knows what became of it.
    pub cancel_waits: bool,
}

/// Something that happens. Coordinators have the numbers that they have in the world before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The hold becomes due.
    TimePasses,
    /// The client asks for the release.
    CancelHold,
    /// The client asks for the payment.
    ConfirmHold,
    /// An operator asks for the release, whatever the time.
    ForceCancel,
    /// The client repeats its CreateHold, with the same id, and the row is new.
    CreateHold,
    /// A coordinator takes up the transaction in a phase that it read, now or long ago. What is held it takes up when due.
    TakeUp(usize, Phase),
    /// An operation that was sent arrives.
    Arrive {
        /// What is asked.
        operation: Operation,
        /// Of which branches.
        at: At,
        /// The branch that says no.
        no: Option<usize>,
        /// The coordinator that hears the answers.
        heard_by: Option<usize>,
    },
    /// What the pivot has asked for outside of all databases takes place.
    TakeEffect,
    /// The pivot asks again by itself, and learns what has become of that; or that it is refused, for good.
    Learn {
        /// It is refused.
        is_no: bool,
    },
    /// A coordinator writes to the row what the answers add up to.
    Write(usize),
    /// A coordinator writes that the Try deadline has passed.
    TimeOut(usize),
    /// A coordinator crashes, or gives up waiting: it forgets what it heard.
    Crash(usize),
    /// The coordinators' database goes back to an earlier version of the row.
    Rewind(Row),
    /// The coordinators' database loses the row.
    Vanish,
    /// The orphan sweep, which has found that there is no row, reads a branch's fence.
    Look(usize),
    /// The orphan sweep rebuilds the row from the fences as it has read them.
    Sweep,
}

impl Search {
    /// The protocol as the product has it, in a world where everything fails that may.
    #[must_use]
    pub fn product() -> Self {
        Self { pivot_rule: true, commits_are_lost: true, cancel_waits: true }
    }

    /// The shortest way to a state that breaks a claim, if there is any.
    ///
    /// # Panics
    ///
    /// If the search itself does.
    #[must_use]
    pub fn shortest_way_to_break(self, claim: &'static str) -> Option<Path<World, Step>> {
        let mut shortest: Option<Path<World, Step>> = None;
        loop {
            let mut builder = self.checker().finish_when(HasDiscoveries::AnyOf([claim].into()));
            // The checker keeps the last way that it finds, not the first. So look for a shorter one until there is none.
            if let Some(path) = &shortest {
                builder = builder.target_max_depth(path.clone().into_states().len());
            }
            match builder.spawn_bfs().join().discovery(claim) {
                Some(path) => shortest = Some(path),
                None => return shortest,
            }
        }
    }

    /// What becomes of a world in which nothing more goes wrong: every message is lost, every coordinator has crashed, and
    /// then one of them finds the transaction and goes on with it until there is nothing to do.
    #[must_use]
    pub fn recovered(&self, world: &World) -> World {
        let mut world = World {
            due: true,
            coordinators: [None, None],
            sent: Default::default(),
            swept: [None, None],
            ..world.clone()
        };
        // The longest way has four turns: sweep, confirm what is due, turn round, cancel.
        for _ in 0..4 {
            let steps = match world.row.map(|row| row.phase) {
                None => vec![Step::Look(DEBIT), Step::Look(PIVOT), Step::Sweep],
                Some(phase) => {
                    let Some(Attempt { operation, .. }) = Attempt::at(phase, &world) else { break };
                    let ask = |branch| {
                        let (at, no, heard_by) = (At::Branch(branch), None, Some(0));
                        Step::Arrive { operation, at, no, heard_by }
                    };
                    let pivot = [ask(PIVOT), Step::TakeEffect, Step::Learn { is_no: false }, ask(PIVOT)];
                    let steps = [Step::TakeUp(0, phase)].into_iter().chain(pivot);
                    steps.chain([ask(DEBIT), Step::Write(0)]).collect()
                }
            };
            for step in steps {
                self.happen(&mut world, step);
            }
        }
        world
    }
}

impl Model for Search {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let each = [OnMaturity::Confirm, OnMaturity::Cancel].into_iter();
        each.flat_map(|then| [None, Some(Effect::NotYet)].map(|outside| World::created(then, outside)))
            .collect()
    }

    /// Everything that might happen. Some of it cannot, which `Search::happen` knows.
    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        // Broken already; and with books that are not kept, there would be no end of states.
        if world.parked || !world.books.are_kept() {
            return;
        }
        steps.extend([
            Step::TimePasses,
            Step::CancelHold,
            Step::ConfirmHold,
            Step::ForceCancel,
            Step::CreateHold,
            Step::TakeEffect,
        ]);
        for (operation, branch) in world.sent() {
            arrivals(world, operation, At::Branch(branch), &[branch], steps);
            // Where the row alone decides, there is no order for one local transaction to keep.
            if branch == PIVOT && self.pivot_rule && world.outside.is_none() {
                arrivals(world, operation, At::Both, &[PIVOT, DEBIT], steps);
            }
        }
        for (i, coordinator) in world.coordinators.iter().enumerate() {
            match coordinator {
                None => steps.extend(world.versions().map(|row| Step::TakeUp(i, row.phase))),
                Some(_) => steps.extend([Step::Write(i), Step::TimeOut(i), Step::Crash(i)]),
            }
        }
        if self.commits_are_lost {
            steps.extend(world.versions().map(Step::Rewind));
            steps.extend([Step::Vanish, Step::Look(DEBIT), Step::Look(PIVOT), Step::Sweep]);
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        self.happen(&mut world, step);
        world.sort_coordinators();
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        claims::all()
    }
}

impl Search {
    /// Changes nothing, if the step cannot happen.
    fn happen(&self, world: &mut World, step: Step) {
        match step {
            Step::TimePasses => world.due = true,
            // The store compares the time in the statement that writes, so a client is never admitted late.
            Step::CancelHold if !world.due => world.cancel_admitted |= world.apply(Event::CancelRequested),
            Step::ConfirmHold if !world.due || world.on_maturity == OnMaturity::Confirm => {
                world.confirm_accepted |= world.apply(Event::ConfirmRequested);
            }
            // What the pivot has turned to a payment no operator turns back.
            Step::ForceCancel
                if world.row.is_some_and(|row| !(row.phase == Phase::Confirming && row.flipped)) =>
            {
                world.cancel_admitted |= world.apply(Event::CancelForced);
            }
            Step::CreateHold if world.row.is_none() => {
                world.write(Phase::Trying, false);
                world.loss = Loss::RowThenCreated;
                // What it is told counts from now on.
                world.told_held = false;
            }
            Step::TakeUp(coordinator, phase) if world.coordinators[coordinator].is_none() => {
                world.coordinators[coordinator] = Attempt::at(phase, world);
                self.send(world, coordinator);
            }
            Step::Arrive { operation, at, no, heard_by } if world.was_sent(operation, at) => {
                if !self.cancel_waits
                    && operation == Operation::Cancel
                    && world.fences[PIVOT] == Some(FenceState::Confirming)
                {
                    world.fences[PIVOT] = Some(FenceState::Tried);
                }
                let answers = world.arrive(operation, at, no).into_iter();
                if let Some(coordinator) = heard_by {
                    // No answer changes nothing.
                    let heard = answers.filter(|(_, answer)| !matches!(answer, Outcome::Unknown(_)));
                    heard.for_each(|answer| self.hear(world, coordinator, operation, answer));
                }
            }
            Step::TakeEffect => world.take_effect(),
            Step::Learn { is_no } => world.learn(is_no),
            Step::Write(coordinator) => self.write(world, coordinator),
            // What may have been held before commits were lost waits until every branch has answered.
            Step::TimeOut(coordinator) if matches!(world.loss, Loss::Nothing | Loss::RowThenCreated) => {
                let waits = |attempt: &mut Attempt| {
                    attempt.operation == Operation::Try && attempt.conclusion() == Conclusion::Wait
                };
                if world.coordinators[coordinator].take_if(waits).is_some() {
                    world.apply(Event::TimedOut);
                }
            }
            Step::Crash(coordinator) => world.coordinators[coordinator] = None,
            Step::Rewind(row) => {
                world.row = Some(row);
                world.lose(Loss::LastCommits);
            }
            Step::Vanish => {
                world.row = None;
                world.lose(Loss::Row);
            }
            // It looks because of a fence that it has seen.
            Step::Look(branch) if world.fences != [None, None] => {
                let has_begun = world.swept != [None, None];
                if world.row.is_none() || has_begun {
                    world.swept[branch] = Some(world.fences[branch]);
                }
            }
            Step::Sweep => {
                if let ([Some(debit), Some(pivot)], None) = (world.swept, world.row) {
                    world.write(decision::rebuilt(pivot, [debit].into_iter()), false);
                    world.loss = Loss::RowThenSwept;
                }
                world.swept = [None, None];
            }
            _ => {}
        }
    }

    /// Whether a coordinator has asked this branch and not heard from it.
    fn awaits(&self, attempt: &Attempt, branch: usize) -> bool {
        let asked = attempt.operation == Operation::Try
            || branch == PIVOT
            || !self.pivot_rule
            || decision::read_pivot(attempt.operation, attempt.answer(PIVOT)) == Verdict::Proceed;
        asked && attempt.answers[branch].is_none()
    }

    /// Sends what a coordinator waits for. What was sent before is sent again, which changes nothing here.
    fn send(&self, world: &mut World, coordinator: usize) {
        if let Some(attempt) = &world.coordinators[coordinator] {
            for branch in [PIVOT, DEBIT].into_iter().filter(|branch| self.awaits(attempt, *branch)) {
                world.sent[attempt.operation as usize][branch] = true;
            }
        }
    }

    /// An answer that its coordinator does not wait for is lost.
    fn hear(
        &self,
        world: &mut World,
        coordinator: usize,
        operation: Operation,
        (branch, answer): (usize, Outcome),
    ) {
        if let Some(attempt) = &mut world.coordinators[coordinator]
            && attempt.operation == operation
            && self.awaits(attempt, branch)
        {
            attempt.answers[branch] = Some(answer);
            self.send(world, coordinator);
        }
    }

    /// A coordinator is done with what it took up. It will read the row again.
    fn write(&self, world: &mut World, coordinator: usize) {
        let concluded = |attempt: &mut Attempt| attempt.conclusion() != Conclusion::Wait;
        let Some(attempt) = world.coordinators[coordinator].take_if(concluded) else { return };
        match attempt.conclusion() {
            Conclusion::Wait => {}
            Conclusion::Write(event) => {
                // Of what was cancelled before and then forgotten, a late Cancel may still be under way.
                let was_cancelled = world.versions[Phase::Cancelling as usize] != [false; 2];
                let is_written = world.apply(event);
                world.told_held |= is_written && event == Event::Tried && !was_cancelled;
            }
            Conclusion::Park => world.parked = true,
        }
    }
}

/// The ways in which an operation can arrive: a branch may say no, and a coordinator may hear the answers.
fn arrivals(world: &World, operation: Operation, at: At, asked: &[usize], steps: &mut Vec<Step>) {
    let may_say_no = asked.iter().copied().filter(|branch| world.may_say_no(operation, *branch));
    for no in may_say_no.map(Some).chain([None]) {
        let works = |i: &usize| world.coordinators[*i].as_ref().is_some_and(|a| a.operation == operation);
        let hearers = (0..world.coordinators.len()).filter(works).map(Some).chain([None]);
        steps.extend(hearers.map(|heard_by| Step::Arrive { operation, at, no, heard_by }));
    }
}

#[cfg(test)]
mod tests;
