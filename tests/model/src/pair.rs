//! Two holds of one payer, who can pay for one of them.
//!
//! What the one hold does to the other goes through the payer's account alone, which a shard locks. So each is searched as if
//! it were alone, but for one thing: whether Try freezes the unit or is refused is not chosen freely, it follows from what
//! both have done to the account before. Kept small by one coordinator for each hold, which reads the row as it is.

use crate::world::{At, DEBIT, World};
use crate::{Search, Step};
use stateright::{Model, Property};
use tcc_core::{Admission, FenceState, OnMaturity, Operation, Phase, fence};

/// The search of both.
#[derive(Debug, Clone, Copy)]
pub struct Pair;

/// What each of them would do alone.
const ALONE: Search = Search { pivot_rule: true, commits_are_lost: false, cancel_waits: true };

/// What the payer can spend: one unit, without what either hold has frozen or taken.
fn available(holds: &[World; 2]) -> i8 {
    holds.iter().fold(1, |available, hold| available - (1 - hold.books.payer_available))
}

/// Whether the account allows a step of a hold.
fn is_allowed(holds: &[World; 2], hold: usize, step: Step) -> bool {
    match step {
        Step::TakeUp(coordinator, phase) => {
            coordinator == 0 && holds[hold].row.is_some_and(|row| row.phase == phase)
        }
        Step::Arrive { at: At::Both, .. } => false,
        Step::Arrive { operation: Operation::Try, at: At::Branch(DEBIT), no, .. }
            if fence::admit(holds[hold].fences[DEBIT], Operation::Try) == Admission::Run =>
        {
            no.is_some() == (available(holds) == 0)
        }
        _ => true,
    }
}

impl Model for Pair {
    type State = [World; 2];
    type Action = (usize, Step);

    fn init_states(&self) -> Vec<[World; 2]> {
        let hold = |then| World::created(then, None);
        vec![
            [hold(OnMaturity::Confirm), hold(OnMaturity::Confirm)],
            [hold(OnMaturity::Confirm), hold(OnMaturity::Cancel)],
        ]
    }

    fn actions(&self, holds: &[World; 2], steps: &mut Vec<(usize, Step)>) {
        for (hold, world) in holds.iter().enumerate() {
            let mut alone = Vec::new();
            ALONE.actions(world, &mut alone);
            steps.extend(
                alone.into_iter().filter(|step| is_allowed(holds, hold, *step)).map(|step| (hold, step)),
            );
        }
    }

    fn next_state(&self, before: &[World; 2], (hold, step): (usize, Step)) -> Option<[World; 2]> {
        let mut holds = before.clone();
        holds[hold] = ALONE.next_state(&before[hold], step)?;
        Some(holds)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the payer never spends more than there is", |_, holds| available(holds) >= 0),
            Property::always("each keeps its own books", |_, holds: &[World; 2]| {
                holds.iter().all(|hold| hold.books.are_kept() && !hold.parked)
            }),
            Property::always(
                "never are both held, or one held and the other paid",
                |_, holds: &[World; 2]| {
                    let has_unit = |hold: &&World| {
                        matches!(hold.fences[DEBIT], Some(FenceState::Tried | FenceState::Confirmed))
                    };
                    holds.iter().filter(has_unit).count() <= 1
                },
            ),
            Property::sometimes("one is paid and the other refused", |_, [a, b]: &[World; 2]| {
                in_phase(a, Phase::Confirmed) && matches!(b.fences[DEBIT], Some(FenceState::Refused(_)))
            }),
            Property::sometimes("one is paid with what the other has released", |_, [a, b]: &[World; 2]| {
                in_phase(a, Phase::Cancelled)
                    && a.fences[DEBIT] == Some(FenceState::Cancelled)
                    && in_phase(b, Phase::Confirmed)
            }),
        ]
    }
}

fn in_phase(hold: &World, phase: Phase) -> bool {
    hold.row.is_some_and(|row| row.phase == phase)
}
