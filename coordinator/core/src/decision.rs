//! What the coordinator makes of participants' answers.
//!
//! Both Confirm and Cancel go to the pivot first. Only what the pivot's fence answered permits the other branches to
//! follow: if the coordinator's row alone decided, a database that lost its last commits could make it cancel one branch
//! of a payment and have confirmed the other.

use crate::{Event, FenceState, Operation, Outcome, Phase, Refusal};

/// An operation that has no answer and is to be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Why, for people.
    pub why: String,
    /// The participant serves others and failed at this one. Being unreachable is nobody's fault, and never parks.
    pub is_fault: bool,
}

impl Unanswered {
    fn silence(why: &str) -> Self {
        Self { why: why.to_owned(), is_fault: false }
    }

    fn fault(why: &str) -> Self {
        Self { why: why.to_owned(), is_fault: true }
    }
}

/// What the answers to Try of every branch add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// Every branch holds.
    All,
    /// At least one said no, for good.
    Refused(Refusal),
    /// At least one had been cancelled before. This Try came late.
    Cancelled,
    /// At least one gave no answer, and none said no.
    Unanswered(Unanswered),
    /// At least one gave an answer that the protocol forbids.
    Lie(String),
}

/// Reads the answers to Try, in the order of the branches. A refusal outweighs silence, a lie outweighs all.
#[must_use]
pub fn read_tries<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Tried {
    let mut sum = Tried::All;
    for outcome in outcomes {
        let read = match outcome {
            // After its row was lost and made anew, a transaction may find branches that were confirmed. They were tried.
            Outcome::Done | Outcome::AlreadyConfirmed => Tried::All,
            Outcome::Refused(refusal) => Tried::Refused(*refusal),
            Outcome::AlreadyCancelled => Tried::Cancelled,
            Outcome::Unknown(why) => Tried::Unanswered(Unanswered::silence(why)),
            Outcome::Failed(why) => Tried::Unanswered(Unanswered::fault(why)),
            lie @ (Outcome::Vetoed(_) | Outcome::NotTried | Outcome::OtherDescriptor) => {
                Tried::Lie(format!("{lie:?} to Try"))
            }
        };
        if weight(&read) > weight(&sum) {
            sum = read;
        }
    }
    sum
}

fn weight(tried: &Tried) -> u8 {
    match tried {
        Tried::All => 0,
        Tried::Unanswered(_) => 1,
        Tried::Cancelled => 2,
        Tried::Refused(_) => 3,
        Tried::Lie(_) => 4,
    }
}

/// What an answer to Confirm or Cancel permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on to the next branch; after the last one, the transaction is final.
    Proceed,
    /// The pivot had decided otherwise: turn round.
    Flip(Event, Option<Refusal>),
    /// No answer: do the operation again, later.
    Again(Unanswered),
    /// An answer that the protocol forbids: a person is needed.
    Park(String),
}

/// Reads the pivot's answer to Confirm or Cancel.
#[must_use]
pub fn read_pivot(operation: Operation, outcome: &Outcome) -> Verdict {
    match (operation, outcome) {
        (_, Outcome::Done) => Verdict::Proceed,
        (_, Outcome::Unknown(why)) => Verdict::Again(Unanswered::silence(why)),
        (_, Outcome::Failed(why)) => Verdict::Again(Unanswered::fault(why)),
        (Operation::Confirm, Outcome::AlreadyCancelled) => Verdict::Flip(Event::PivotCancelled, None),
        (Operation::Confirm, Outcome::Vetoed(refusal)) => Verdict::Flip(Event::PivotVetoed, Some(*refusal)),
        (Operation::Cancel, Outcome::AlreadyConfirmed) => Verdict::Flip(Event::PivotConfirmed, None),
        (_, lie) => Verdict::Park(format!("the pivot answered {lie:?} to {operation:?}")),
    }
}

/// Reads another branch's answer to Confirm or Cancel. It has no say: the pivot has decided.
#[must_use]
pub fn read_follower(operation: Operation, outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Done => Verdict::Proceed,
        Outcome::Unknown(why) => Verdict::Again(Unanswered::silence(why)),
        Outcome::Failed(why) => Verdict::Again(Unanswered::fault(why)),
        lie => Verdict::Park(format!(
            "a branch answered {lie:?} to {operation:?} after the pivot had answered DONE"
        )),
    }
}

/// Whether the branch after this one, in the order pivot first, may be asked in the same local transaction.
#[must_use]
pub fn permits_next(operation: Operation, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done => true,
        Outcome::AlreadyConfirmed => operation == Operation::Try,
        _ => false,
    }
}

/// Where a transaction of the ledger alone stands whose row was lost, by what its fences were seen to be. The pivot has decided,
/// or everything waits, or what is there is to be undone; and if more has happened since they were seen, the pivot says so when
/// it is asked.
#[must_use]
pub fn rebuilt(pivot: Option<FenceState>, mut others: impl Iterator<Item = Option<FenceState>>) -> Phase {
    match pivot {
        Some(FenceState::Confirmed | FenceState::Confirming) => Phase::Confirming,
        Some(FenceState::Tried) if others.all(|state| state == Some(FenceState::Tried)) => Phase::Held,
        _ => Phase::Cancelling,
    }
}

/// As [`rebuilt`], if some of its branches are other participants', whose fences nobody can see: `lead` is the ledger's branch
/// that goes before its others, and it has followed the pivot or is it. If nothing is decided there, all are asked to try once
/// more: whoever has has its answer ready, and one that was cancelled says so.
#[must_use]
pub fn rebuilt_in_part(
    lead: Option<FenceState>,
    mut others: impl Iterator<Item = Option<FenceState>>,
) -> Phase {
    match lead {
        Some(FenceState::Confirmed | FenceState::Confirming) => Phase::Confirming,
        None | Some(FenceState::Tried)
            if others.all(|state| matches!(state, None | Some(FenceState::Tried))) =>
        {
            Phase::Trying
        }
        _ => Phase::Cancelling,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_outweighs_silence_and_a_lie_outweighs_all() {
        let silence = Outcome::Unknown("cut".into());
        let refusal = Outcome::Refused(Refusal::InsufficientFunds);

        assert_eq!(read_tries([&Outcome::Done, &Outcome::Done].into_iter()), Tried::All);
        assert_eq!(
            read_tries([&Outcome::Done, &silence].into_iter()),
            Tried::Unanswered(Unanswered::silence("cut"))
        );
        assert_eq!(read_tries([&refusal, &silence].into_iter()), Tried::Refused(Refusal::InsufficientFunds));
        assert_eq!(read_tries([&silence, &Outcome::AlreadyCancelled].into_iter()), Tried::Cancelled);
        assert!(matches!(read_tries([&refusal, &Outcome::OtherDescriptor].into_iter()), Tried::Lie(_)));
    }

    #[test]
    fn of_two_refusals_the_first_branch_s_counts() {
        let [first, second] = [Refusal::AccountNotFound, Refusal::InsufficientFunds].map(Outcome::Refused);

        assert_eq!(read_tries([&first, &second].into_iter()), Tried::Refused(Refusal::AccountNotFound));
    }

    #[test]
    fn the_next_branch_follows_what_is_done_and_a_try_what_was_confirmed() {
        for operation in [Operation::Try, Operation::Confirm, Operation::Cancel] {
            let is_try = operation == Operation::Try;

            assert!(permits_next(operation, &Outcome::Done));
            assert_eq!(permits_next(operation, &Outcome::AlreadyConfirmed), is_try, "{operation:?}");
            for other in [Outcome::AlreadyCancelled, Outcome::NotTried, Outcome::Unknown(String::new())] {
                assert!(!permits_next(operation, &other), "{operation:?} {other:?}");
            }
        }
    }

    #[test]
    fn only_the_pivot_may_turn_a_decision_round() {
        let veto = Outcome::Vetoed(Refusal::AccountBlocked);

        assert_eq!(
            read_pivot(Operation::Confirm, &veto),
            Verdict::Flip(Event::PivotVetoed, Some(Refusal::AccountBlocked))
        );
        assert_eq!(
            read_pivot(Operation::Cancel, &Outcome::AlreadyConfirmed),
            Verdict::Flip(Event::PivotConfirmed, None)
        );
        for lie in [veto, Outcome::AlreadyCancelled, Outcome::NotTried, Outcome::OtherDescriptor] {
            assert!(matches!(read_follower(Operation::Confirm, &lie), Verdict::Park(_)), "{lie:?}");
        }
        assert!(matches!(read_follower(Operation::Cancel, &Outcome::AlreadyConfirmed), Verdict::Park(_)));
        assert!(matches!(read_pivot(Operation::Confirm, &Outcome::NotTried), Verdict::Park(_)));
    }

    #[test]
    fn a_lost_row_is_rebuilt_as_the_pivot_has_decided() {
        use FenceState::{Cancelled, Confirmed, Confirming, Tried};
        let phase = |pivot, other| rebuilt(pivot, [other].into_iter());

        assert_eq!(phase(Some(Confirmed), Some(Tried)), Phase::Confirming);
        assert_eq!(phase(Some(Confirming), Some(Tried)), Phase::Confirming);
        assert_eq!(phase(Some(Tried), Some(Tried)), Phase::Held);
        assert_eq!(phase(Some(Tried), None), Phase::Cancelling);
        assert_eq!(phase(None, Some(Tried)), Phase::Cancelling);
        assert_eq!(phase(Some(Cancelled), Some(Cancelled)), Phase::Cancelling);
    }

    #[test]
    fn a_lost_row_with_branches_elsewhere_is_tried_again_unless_the_ledger_knows_more() {
        use FenceState::{Cancelled, Confirmed, Stopped, Tried};
        let phase = |lead, other| rebuilt_in_part(lead, [other].into_iter());

        assert_eq!(phase(Some(Confirmed), Some(Tried)), Phase::Confirming);
        assert_eq!(phase(Some(Tried), Some(Tried)), Phase::Trying);
        assert_eq!(phase(Some(Tried), None), Phase::Trying);
        assert_eq!(phase(None, Some(Tried)), Phase::Trying);
        assert_eq!(phase(Some(Tried), Some(Stopped)), Phase::Cancelling);
        assert_eq!(phase(Some(Cancelled), Some(Tried)), Phase::Cancelling);
    }
}
