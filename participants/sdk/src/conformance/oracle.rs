//! What a participant must answer: the fence table itself, and a count of what is left to reserve.
//!
//! After operations that met, several worlds may be possible: one for each order in which they can have happened. An answer
//! that fits none of them is wrong.

use super::schedule::{Ask, Body, SLOTS};
use std::collections::HashSet;
use tcc_core::{Admission, FenceState, Operation, Outcome, fence::admit};

/// What is known of a participant's fences, and of what is left.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// The body that made each fence, and its state.
    pub fences: [Option<(Body, FenceState)>; SLOTS.len()],
    /// How many can still be reserved, if that is known.
    pub free: Option<i64>,
}

/// The worlds that fit all answers so far.
#[derive(Debug, Clone)]
pub(super) struct Oracle {
    worlds: HashSet<World>,
    may_veto: bool,
    /// It takes part only as the pivot.
    is_outside: bool,
    pivot: usize,
}

impl Oracle {
    /// Nothing has been asked yet. `pivot` is the slot of A's.
    pub(super) fn new(free: Option<i64>, may_veto: bool, is_outside: bool, pivot: usize) -> Self {
        let nothing = World { fences: [None; SLOTS.len()], free };
        Self { worlds: HashSet::from([nothing]), may_veto, is_outside, pivot }
    }

    /// Takes the answers to what was asked at the same time. `false` if they fit no order of it.
    pub(super) fn take(&mut self, answers: &[(Ask, Outcome)]) -> bool {
        let mut next = HashSet::new();
        for order in orders(answers.len()) {
            for world in &self.worlds {
                let world = order.iter().try_fold(world.clone(), |world, index| {
                    let (ask, outcome) = &answers[*index];
                    self.after(&world, *ask, outcome)
                });
                next.extend(world);
            }
        }
        let fits = !next.is_empty();
        if fits {
            self.worlds = next;
        }
        fits
    }

    /// The state of a fence, if it is certain: `None` if it is not, `Some(None)` if the fence is absent.
    pub(super) fn fence(&self, slot: usize) -> Option<Option<(Body, FenceState)>> {
        let mut states = self.worlds.iter().map(|world| world.fences[slot]);
        let first = states.next()?;
        states.all(|state| state == first).then_some(first)
    }

    /// What may be left.
    pub(super) fn free(&self) -> Vec<i64> {
        let mut free: Vec<i64> = self.worlds.iter().filter_map(|world| world.free).collect();
        free.sort_unstable();
        free.dedup();
        free
    }

    /// What would be right answers to one ask, for people.
    pub(super) fn expected(&self, ask: Ask) -> String {
        let mut names: Vec<&str> = self.worlds.iter().flat_map(|world| self.right(world, ask)).collect();
        names.sort_unstable();
        names.dedup();
        names.join(" or ")
    }

    fn right(&self, world: &World, ask: Ask) -> Vec<&'static str> {
        let state = match world.fences[ask.slot] {
            Some((body, _)) if body != ask.body => return vec!["OTHER_DESCRIPTOR"],
            fence => fence.map(|(_, state)| state),
        };
        match (admit(state, ask.operation), ask.operation) {
            (Admission::Answer(outcome), _) => vec![name(&outcome)],
            (Admission::Run, Operation::Try) if self.is_out_of_place(ask) => vec!["REFUSED"],
            (Admission::Run, Operation::Try) => match world.free {
                Some(0) => vec!["REFUSED"],
                Some(_) => vec!["DONE"],
                None => vec!["DONE", "REFUSED"],
            },
            (Admission::Run, Operation::Confirm) if self.vetoes(ask) => vec!["DONE", "VETOED"],
            (Admission::Run | Admission::Stop, _) => vec!["DONE"],
        }
    }

    /// The world after an ask with this answer, if the answer is right.
    fn after(&self, world: &World, ask: Ask, outcome: &Outcome) -> Option<World> {
        let state = match world.fences[ask.slot] {
            Some((body, _)) if body != ask.body => {
                return (*outcome == Outcome::OtherDescriptor).then(|| world.clone());
            }
            fence => fence.map(|(_, state)| state),
        };
        let (state, change) = match admit(state, ask.operation) {
            Admission::Answer(expected) => return (expected == *outcome).then(|| world.clone()),
            Admission::Stop => (*outcome == Outcome::Done).then_some((FenceState::Stopped, 0))?,
            Admission::Run => match (ask.operation, outcome) {
                (Operation::Try, Outcome::Refused(refusal)) if self.is_out_of_place(ask) => {
                    (FenceState::Refused(*refusal), 0)
                }
                (Operation::Try, _) if self.is_out_of_place(ask) => return None,
                (Operation::Try, Outcome::Done) if world.free != Some(0) => (FenceState::Tried, -1),
                (Operation::Try, Outcome::Refused(refusal)) if world.free.is_none_or(|free| free == 0) => {
                    (FenceState::Refused(*refusal), 0)
                }
                (Operation::Confirm, Outcome::Done) => (FenceState::Confirmed, 0),
                (Operation::Confirm, Outcome::Vetoed(refusal)) if self.vetoes(ask) => {
                    (FenceState::Vetoed(*refusal), 1)
                }
                (Operation::Cancel, Outcome::Done) => (FenceState::Cancelled, 1),
                _ => return None,
            },
        };
        let mut world = world.clone();
        world.fences[ask.slot] = Some((ask.body, state));
        world.free = world.free.map(|free| free + change);
        Some(world)
    }

    /// Only a pivot may veto, of a participant that declares it. B's only branch is one.
    fn vetoes(&self, ask: Ask) -> bool {
        self.may_veto && self.is_pivot(ask)
    }

    /// Whether it may not even reserve.
    fn is_out_of_place(&self, ask: Ask) -> bool {
        self.is_outside && !self.is_pivot(ask)
    }

    fn is_pivot(&self, ask: Ask) -> bool {
        ask.slot == self.pivot || SLOTS[ask.slot].0 == "B"
    }
}

/// The name of an outcome on the wire.
pub(super) fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "DONE",
        Outcome::Refused(_) => "REFUSED",
        Outcome::Vetoed(_) => "VETOED",
        Outcome::AlreadyConfirmed => "ALREADY_CONFIRMED",
        Outcome::AlreadyCancelled => "ALREADY_CANCELLED",
        Outcome::NotTried => "NOT_TRIED",
        Outcome::OtherDescriptor => "OTHER_DESCRIPTOR",
        Outcome::Unknown(_) => "UNKNOWN",
        Outcome::Failed(_) => "FAILED",
    }
}

/// Every order of so many things.
fn orders(things: usize) -> Vec<Vec<usize>> {
    match things {
        0 => vec![vec![]],
        _ => orders(things - 1)
            .into_iter()
            .flat_map(|order| {
                (0..things).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, things - 1);
                    order
                })
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcc_core::Refusal;

    const NO: Outcome = Outcome::Refused(Refusal::InsufficientFunds);

    fn ask(operation: Operation) -> Ask {
        Ask { slot: 0, operation, body: Body::First }
    }

    use Operation::{Cancel, Confirm, Try};

    #[test]
    fn of_operations_that_met_some_order_must_explain_all_answers() {
        let mut tried = Oracle::new(Some(1), false, false, 0);
        assert!(tried.take(&[(ask(Try), Outcome::Done)]));
        let both = |confirm, cancel| tried.clone().take(&[(ask(Confirm), confirm), (ask(Cancel), cancel)]);

        assert!(both(Outcome::Done, Outcome::AlreadyConfirmed));
        assert!(both(Outcome::AlreadyCancelled, Outcome::Done));
        assert!(!both(Outcome::Done, Outcome::Done));
        assert!(!both(Outcome::AlreadyCancelled, Outcome::AlreadyConfirmed));
    }

    #[test]
    fn what_there_is_one_of_is_reserved_once() {
        let other = Ask { slot: 2, ..ask(Try) };
        let both = |one, two| Oracle::new(Some(1), false, false, 0).take(&[(ask(Try), one), (other, two)]);

        assert!(both(Outcome::Done, NO) && both(NO, Outcome::Done));
        assert!(!both(Outcome::Done, Outcome::Done) && !both(NO, NO));
    }

    #[test]
    fn a_veto_is_for_a_pivot_that_declares_it() {
        let veto = Outcome::Vetoed(Refusal::own("NOT_NOW"));
        let fits = |may_veto, slot| {
            let mut oracle = Oracle::new(None, may_veto, false, 0);
            let at = |operation| Ask { slot, ..ask(operation) };
            oracle.take(&[(at(Try), Outcome::Done)]) && oracle.take(&[(at(Confirm), veto.clone())])
        };

        assert!(fits(true, 0));
        assert!(!fits(true, 1) && !fits(false, 0));
    }

    #[test]
    fn an_effect_outside_is_the_pivots_alone() {
        let fits =
            |slot, answer| Oracle::new(None, true, true, 0).take(&[(Ask { slot, ..ask(Try) }, answer)]);

        assert!(fits(0, Outcome::Done) && fits(2, Outcome::Done) && fits(1, NO));
        assert!(!fits(1, Outcome::Done));
    }

    #[test]
    fn a_wrong_answer_is_told_beside_the_right_one() {
        let mut oracle = Oracle::new(None, false, false, 0);
        oracle.take(&[(ask(Cancel), Outcome::Done)]);

        assert!(!oracle.take(&[(ask(Try), Outcome::Done)]));
        assert_eq!(oracle.expected(ask(Try)), "ALREADY_CANCELLED");
        assert_eq!(oracle.expected(Ask { body: Body::Second, ..ask(Try) }), "OTHER_DESCRIPTOR");
    }
}
