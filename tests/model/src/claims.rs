//! What must hold in every state, and what must happen in some, so that the former is no empty promise.
//!
//! A claim is its name and a predicate on one state. How a state came about is not known here; what of the past matters
//! to a claim, the state carries.

use crate::Search;
use crate::world::{Attempt, DEBIT, Effect, Loss, PIVOT, World};
use stateright::{Checker, Property};
use tcc_core::FenceState::{Cancelled, Confirmed, Confirming, Refused, Stopped, Tried, Vetoed};
use tcc_core::{FenceState, OnMaturity, Operation, Outcome, Phase};

/// The claim that the pivot is there for.
pub const NO_UNIT_IS_CREATED: &str = "the payee is never paid while the payer's unit is free";

/// Every claim.
#[must_use]
pub fn all() -> Vec<Property<Search>> {
    let mut claims = must_hold();
    claims.extend(must_happen());
    claims
}

/// The claims that some state breaks.
#[must_use]
pub fn broken(checker: &impl Checker<Search>) -> Vec<&'static str> {
    let found = checker.discoveries();
    must_hold().iter().map(|claim| claim.name).filter(|name| found.contains_key(name)).collect()
}

/// The claims about some state that no state fulfils.
#[must_use]
pub fn unseen(checker: &impl Checker<Search>) -> Vec<&'static str> {
    let found = checker.discoveries();
    must_happen().iter().map(|claim| claim.name).filter(|name| !found.contains_key(name)).collect()
}

fn must_hold() -> Vec<Property<Search>> {
    vec![
        always(NO_UNIT_IS_CREATED, |_, w| w.books.payee_available == 0 || w.books.payer_available == 0),
        always("the payer's unit is never taken before the payee is paid", |_, w| {
            w.fences[DEBIT] != Some(Confirmed) || w.books.payee_available == 1
        }),
        always("there is one unit, and no balance is below zero", |_, w| w.books.are_kept()),
        always("an accepted cancel is never paid", |_, w| {
            !w.cancel_accepted || (w.fences[PIVOT] != Some(Confirmed) && w.books.payee_available == 0)
        }),
        always("whoever was told HELD keeps the hold", |_, w| {
            let gone = matches!(w.fences[PIVOT], Some(Cancelled | Stopped | Refused(_)));
            !w.told_held || w.cancel_admitted || w.on_maturity == OnMaturity::Cancel || !gone
        }),
        always("nothing is paid before it is due, unless a client asked", |_, w| {
            let matured = w.due && w.on_maturity == OnMaturity::Confirm;
            w.books.payee_available == 0 || matured || w.confirm_accepted
        }),
        always("nothing parks", |_, w| !w.parked),
        // The two cells of the fence table that no operation may meet.
        always("Confirm never meets a branch that was not tried, or said no", |_, w| {
            let confirmed = |branch: &usize| w.sent[Operation::Confirm as usize][*branch];
            [DEBIT, PIVOT].into_iter().filter(confirmed).all(|branch| w.fences[branch].is_some_and(was_tried))
        }),
        always("HELD says that both branches were tried", |_, w| {
            !in_phase(w, Phase::Held) || w.fences.into_iter().all(|f| f.is_some_and(was_tried))
        }),
        always("CONFIRMED says that both branches are confirmed", |_, w| {
            !in_phase(w, Phase::Confirmed) || w.fences == [Some(Confirmed); 2]
        }),
        always("CANCELLED says that no branch is or will be confirmed", |_, w| {
            !in_phase(w, Phase::Cancelled) || w.fences.into_iter().all(|f| f.is_some_and(is_cancelled))
        }),
        always("recovery alone leaves nothing open and nothing frozen", |search, w| {
            let end = search.recovered(w);
            let is_open = |fence: &Option<FenceState>| matches!(fence, Some(Tried | Confirming));
            let open = end.fences.iter().any(is_open) || end.row.is_some_and(|row| !row.phase.is_final());
            !open && !end.parked && end.books.payer_escrow == 0 && end.books.clearing == 0
        }),
    ]
}

/// Whether an operation may arrive at a fence in some state, on either branch.
macro_rules! meets {
    ($operation:literal, $sent:ident, $state:literal, $fence:pat) => {
        sometimes(concat!($operation, " meets a fence that is ", $state), |_, w| {
            [DEBIT, PIVOT]
                .into_iter()
                .any(|branch| w.sent[Operation::$sent as usize][branch] && matches!(w.fences[branch], $fence))
        })
    };
}

// One of the patterns is `None`.
#[allow(clippy::redundant_pattern_matching)]
fn must_happen() -> Vec<Property<Search>> {
    vec![
        // Every phase.
        sometimes("TRYING again", |_, w| in_phase(w, Phase::Trying) && w.versions().count() > 1),
        sometimes("HELD", |_, w| in_phase(w, Phase::Held)),
        sometimes("CONFIRMING", |_, w| in_phase(w, Phase::Confirming)),
        sometimes("CONFIRMED", |_, w| in_phase(w, Phase::Confirmed)),
        sometimes("CANCELLING", |_, w| in_phase(w, Phase::Cancelling)),
        sometimes("CANCELLED", |_, w| in_phase(w, Phase::Cancelled)),
        // Every state of every fence.
        sometimes("the debit is tried", |_, w| w.fences[DEBIT] == Some(Tried)),
        sometimes("the debit is refused", |_, w| matches!(w.fences[DEBIT], Some(Refused(_)))),
        sometimes("the debit is confirmed", |_, w| w.fences[DEBIT] == Some(Confirmed)),
        sometimes("the debit is cancelled", |_, w| w.fences[DEBIT] == Some(Cancelled)),
        sometimes("the debit has a tombstone", |_, w| w.fences[DEBIT] == Some(Stopped)),
        sometimes("the pivot is tried", |_, w| w.fences[PIVOT] == Some(Tried)),
        sometimes("the pivot is refused", |_, w| matches!(w.fences[PIVOT], Some(Refused(_)))),
        sometimes("the pivot is confirmed", |_, w| w.fences[PIVOT] == Some(Confirmed)),
        sometimes("the pivot is confirming", |_, w| w.fences[PIVOT] == Some(Confirming)),
        sometimes("the pivot is cancelled", |_, w| w.fences[PIVOT] == Some(Cancelled)),
        sometimes("the pivot is vetoed", |_, w| matches!(w.fences[PIVOT], Some(Vetoed(_)))),
        sometimes("the pivot has a tombstone", |_, w| w.fences[PIVOT] == Some(Stopped)),
        // Every cell of the fence table that an operation can meet: it was sent, so it may arrive now.
        meets!("Try", Try, "absent", None),
        meets!("Try", Try, "tried", Some(Tried)),
        meets!("Try", Try, "refused", Some(Refused(_))),
        meets!("Try", Try, "confirming", Some(Confirming)),
        meets!("Try", Try, "confirmed", Some(Confirmed)),
        meets!("Try", Try, "cancelled", Some(Cancelled)),
        meets!("Try", Try, "vetoed", Some(Vetoed(_))),
        meets!("Try", Try, "stopped", Some(Stopped)),
        meets!("Confirm", Confirm, "tried", Some(Tried)),
        meets!("Confirm", Confirm, "confirming", Some(Confirming)),
        meets!("Confirm", Confirm, "confirmed", Some(Confirmed)),
        meets!("Confirm", Confirm, "cancelled", Some(Cancelled)),
        meets!("Confirm", Confirm, "vetoed", Some(Vetoed(_))),
        meets!("Cancel", Cancel, "absent", None),
        meets!("Cancel", Cancel, "tried", Some(Tried)),
        meets!("Cancel", Cancel, "refused", Some(Refused(_))),
        meets!("Cancel", Cancel, "confirming", Some(Confirming)),
        meets!("Cancel", Cancel, "confirmed", Some(Confirmed)),
        meets!("Cancel", Cancel, "cancelled", Some(Cancelled)),
        meets!("Cancel", Cancel, "vetoed", Some(Vetoed(_))),
        meets!("Cancel", Cancel, "stopped", Some(Stopped)),
        // Ends.
        sometimes("paid when due", |_, w| {
            in_phase(w, Phase::Confirmed) && w.due && !w.confirm_accepted && w.loss == Loss::Nothing
        }),
        sometimes("paid on request, before it is due", |_, w| in_phase(w, Phase::Confirmed) && !w.due),
        sometimes("a hold that was to be released is paid on request", |_, w| {
            in_phase(w, Phase::Confirmed) && w.on_maturity == OnMaturity::Cancel
        }),
        sometimes("released after it was held", |_, w| {
            in_phase(w, Phase::Cancelled) && w.fences == [Some(Cancelled); 2]
        }),
        sometimes("released after a veto", |_, w| {
            in_phase(w, Phase::Cancelled) && matches!(w.fences[PIVOT], Some(Vetoed(_)))
        }),
        sometimes("paid by somebody else", |_, w| {
            in_phase(w, Phase::Confirmed) && w.outside == Some(Effect::Done)
        }),
        sometimes("refused by somebody else, and released", |_, w| {
            in_phase(w, Phase::Cancelled) && w.outside == Some(Effect::Never)
        }),
        sometimes("somebody else has paid, and the pivot does not know", |_, w| {
            w.fences[PIVOT] == Some(Confirming) && w.outside == Some(Effect::Done)
        }),
        // Races.
        sometimes("one coordinator confirms what the other cancels", |_, w| {
            let at =
                |operation| w.coordinators.iter().flatten().any(|attempt| attempt.operation == operation);
            at(Operation::Confirm) && at(Operation::Cancel)
        }),
        sometimes("of Confirm and Cancel at the pivot, Confirm wins", |_, w| {
            asked_both_ways(w) && w.fences == [Some(Confirmed); 2]
        }),
        sometimes("of Confirm and Cancel at the pivot, Cancel wins", |_, w| {
            asked_both_ways(w) && w.fences == [Some(Cancelled); 2]
        }),
        sometimes("the pivot turns CANCELLING round", |_, w| {
            w.row.is_some_and(|row| row.flipped && row.phase == Phase::Confirming)
        }),
        sometimes("the pivot turns CONFIRMING round, by a cancel", |_, w| {
            w.row.is_some_and(|row| row.flipped && row.phase == Phase::Cancelling)
                && w.fences[PIVOT] == Some(Cancelled)
        }),
        sometimes("the pivot turns CONFIRMING round, by a veto", |_, w| {
            w.row.is_some_and(|row| row.flipped && row.phase == Phase::Cancelling)
                && matches!(w.fences[PIVOT], Some(Vetoed(_)))
        }),
        sometimes("a Try that comes after the Cancel is told so", |_, w| {
            w.fences[DEBIT] == Some(Stopped) && answered(w, Operation::Try, DEBIT, &Outcome::AlreadyCancelled)
        }),
        sometimes("a Try that comes after the Confirm is told so", |_, w| {
            answered(w, Operation::Try, PIVOT, &Outcome::AlreadyConfirmed)
        }),
        // Lost commits.
        sometimes("paid although commits were lost", |_, w| {
            in_phase(w, Phase::Confirmed) && w.loss == Loss::LastCommits
        }),
        sometimes("released although commits were lost", |_, w| {
            in_phase(w, Phase::Cancelled) && w.loss == Loss::LastCommits
        }),
        sometimes("paid after the row was lost and swept", |_, w| {
            in_phase(w, Phase::Confirmed) && w.loss == Loss::RowThenSwept
        }),
        sometimes("released after the row was lost and swept", |_, w| {
            in_phase(w, Phase::Cancelled) && w.loss == Loss::RowThenSwept
        }),
        sometimes("held again after the row was lost and swept", |_, w| {
            in_phase(w, Phase::Held) && w.loss == Loss::RowThenSwept
        }),
        sometimes("paid by somebody else after the row was lost and swept", |_, w| {
            in_phase(w, Phase::Confirmed) && w.outside == Some(Effect::Done) && w.loss == Loss::RowThenSwept
        }),
        sometimes("paid after the row was lost and created again", |_, w| {
            in_phase(w, Phase::Confirmed) && w.loss == Loss::RowThenCreated
        }),
    ]
}

fn in_phase(world: &World, phase: Phase) -> bool {
    world.row.is_some_and(|row| row.phase == phase)
}

fn was_tried(fence: FenceState) -> bool {
    matches!(fence, Tried | Confirming | Confirmed | Cancelled | Vetoed(_))
}

/// Whether nothing can confirm the branch any more.
fn is_cancelled(fence: FenceState) -> bool {
    matches!(fence, Refused(_) | Cancelled | Vetoed(_) | Stopped)
}

fn asked_both_ways(world: &World) -> bool {
    [Operation::Confirm, Operation::Cancel].into_iter().all(|operation| world.sent[operation as usize][PIVOT])
}

fn answered(world: &World, operation: Operation, branch: usize, answer: &Outcome) -> bool {
    let has = |attempt: &Attempt| attempt.operation == operation && attempt.answer(branch) == answer;
    world.coordinators.iter().flatten().any(has)
}

fn always(name: &'static str, holds: fn(&Search, &World) -> bool) -> Property<Search> {
    Property::always(name, holds)
}

fn sometimes(name: &'static str, holds: fn(&Search, &World) -> bool) -> Property<Search> {
    Property::sometimes(name, holds)
}
