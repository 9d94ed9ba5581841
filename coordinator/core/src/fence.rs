//! The fence: a participant's memory of one branch, which admits each operation at most once.
//!
//! [`admit`] is the whole table. It answers the three classical mistakes by construction: a Cancel that comes before its
//! Try leaves a tombstone (`Stopped`), a Try that comes after it changes nothing and does not look like success, and a
//! repeated operation has no second effect.
//!
//! | fence is | Try | Confirm | Cancel |
//! |---|---|---|---|
//! | absent | run | NOT_TRIED | tombstone, DONE |
//! | `tried` | DONE | run | run |
//! | `confirming` | DONE | run | unknown |
//! | `refused` | REFUSED | ALREADY_CANCELLED | DONE |
//! | `confirmed` | ALREADY_CONFIRMED | DONE | ALREADY_CONFIRMED |
//! | `cancelled` | ALREADY_CANCELLED | ALREADY_CANCELLED | DONE |
//! | `vetoed` | ALREADY_CANCELLED | VETOED | DONE |
//! | `stopped` | ALREADY_CANCELLED | ALREADY_CANCELLED | DONE |
//!
//! Running an operation that is admitted, and writing what it left, happens in one local transaction that locked the
//! fence first. That is the participant's part.
//!
//! `confirming` is for effects outside a database, which cannot commit together with their fence: it is committed before the
//! effect is asked for, and until it is known whether that took place, nobody may cancel. The participant finds that out by
//! itself: a coordinator whose database went back may have forgotten that it asked, and want a Cancel for ever.

use crate::{Outcome, Refusal};

/// What a coordinator may ask of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Check and reserve.
    Try,
    /// Make the effect final.
    Confirm,
    /// Undo the reservation, or prevent it.
    Cancel,
}

/// The state of a fence that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FenceState {
    /// Try took effect; the branch waits.
    Tried,
    /// Try said no.
    Refused(Refusal),
    /// The effect is final.
    Confirmed,
    /// The reservation was undone.
    Cancelled,
    /// The pivot could not confirm; the reservation was undone.
    Vetoed(Refusal),
    /// Cancelled before it was tried: a tombstone.
    Stopped,
    /// The effect, which is outside the participant's database, is asked for. Whether it took place is not known.
    Confirming,
}

impl FenceState {
    /// Every state, in the order of its number in the tables.
    pub const CODES: [&str; 7] =
        ["tried", "refused", "confirmed", "cancelled", "vetoed", "stopped", "confirming"];

    /// The number in the tables: 1 to 7, the position in [`FenceState::CODES`].
    #[must_use]
    pub fn number(self) -> i16 {
        match self {
            Self::Tried => 1,
            Self::Refused(_) => 2,
            Self::Confirmed => 3,
            Self::Cancelled => 4,
            Self::Vetoed(_) => 5,
            Self::Stopped => 6,
            Self::Confirming => 7,
        }
    }

    /// Why it said no, if it did.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) | Self::Vetoed(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The reverse of [`FenceState::number`] and [`FenceState::refusal`]; `None` if the two do not fit together.
    #[must_use]
    pub fn from_number(number: i16, refusal: Option<Refusal>) -> Option<Self> {
        match (number, refusal) {
            (1, None) => Some(Self::Tried),
            (2, Some(refusal)) => Some(Self::Refused(refusal)),
            (3, None) => Some(Self::Confirmed),
            (4, None) => Some(Self::Cancelled),
            (5, Some(refusal)) => Some(Self::Vetoed(refusal)),
            (6, None) => Some(Self::Stopped),
            (7, None) => Some(Self::Confirming),
            _ => None,
        }
    }

    /// Whether no operation can change it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Tried | Self::Confirming)
    }
}

/// What to do with an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Do it, and write the state that it leaves.
    Run,
    /// Write [`FenceState::Stopped`] and answer DONE.
    Stop,
    /// It was decided before: change nothing, answer this.
    Answer(Outcome),
}

/// The table: what a fence says to an operation. `None` is an absent fence.
#[must_use]
pub fn admit(fence: Option<FenceState>, operation: Operation) -> Admission {
    use Admission::{Answer, Run, Stop};
    use Operation::{Cancel, Confirm, Try};
    match (fence, operation) {
        (None, Try) => Run,
        (None, Confirm) => Answer(Outcome::NotTried),
        (None, Cancel) => Stop,

        (Some(FenceState::Tried | FenceState::Confirming), Try) => Answer(Outcome::Done),
        (Some(FenceState::Tried), Confirm | Cancel) | (Some(FenceState::Confirming), Confirm) => Run,
        (Some(FenceState::Confirming), Cancel) => {
            Answer(Outcome::Unknown("it is being confirmed, and whether that took place is not known".into()))
        }

        (Some(FenceState::Refused(refusal)), Try) => Answer(Outcome::Refused(refusal)),
        (Some(FenceState::Vetoed(refusal)), Confirm) => Answer(Outcome::Vetoed(refusal)),

        (Some(FenceState::Confirmed), Confirm) => Answer(Outcome::Done),
        (Some(FenceState::Confirmed), Try | Cancel) => Answer(Outcome::AlreadyConfirmed),

        (Some(_), Cancel) => Answer(Outcome::Done),
        (Some(_), Try | Confirm) => Answer(Outcome::AlreadyCancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: Refusal = Refusal::InsufficientFunds;

    /// The table of the module's documentation, row by row.
    fn documented() -> Vec<(String, [String; 3])> {
        include_str!("fence.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | "))
            .skip(1)
            .map(|line| {
                let cells: Vec<_> = line.trim_end_matches(" |").split(" | ").map(str::to_owned).collect();
                (
                    cells[0].trim_matches('`').to_owned(),
                    [cells[1].clone(), cells[2].clone(), cells[3].clone()],
                )
            })
            .collect()
    }

    fn shown(admission: &Admission) -> &'static str {
        match admission {
            Admission::Run => "run",
            Admission::Stop => "tombstone, DONE",
            Admission::Answer(Outcome::Done) => "DONE",
            Admission::Answer(Outcome::Refused(_)) => "REFUSED",
            Admission::Answer(Outcome::Vetoed(_)) => "VETOED",
            Admission::Answer(Outcome::AlreadyConfirmed) => "ALREADY_CONFIRMED",
            Admission::Answer(Outcome::AlreadyCancelled) => "ALREADY_CANCELLED",
            Admission::Answer(Outcome::NotTried) => "NOT_TRIED",
            Admission::Answer(Outcome::Unknown(_)) => "unknown",
            Admission::Answer(other) => panic!("the table never answers {other:?}"),
        }
    }

    #[test]
    fn the_documented_table_is_the_code() {
        let table = documented();
        assert_eq!(table.len(), 8);

        for (state, cells) in table {
            let number = FenceState::CODES.iter().position(|code| *code == state).map(|i| i as i16 + 1);
            let fence = number.map(|n| {
                FenceState::from_number(n, None).or_else(|| FenceState::from_number(n, Some(NO))).unwrap()
            });
            assert!(fence.is_some() || state == "absent");
            for (operation, cell) in
                [Operation::Try, Operation::Confirm, Operation::Cancel].into_iter().zip(cells)
            {
                assert_eq!(shown(&admit(fence, operation)), cell, "{state} {operation:?}");
            }
        }
    }

    #[test]
    fn what_is_tried_or_being_confirmed_is_open() {
        use FenceState::{Cancelled, Confirmed, Confirming, Refused, Stopped, Tried, Vetoed};

        assert!([Tried, Confirming].into_iter().all(|state| !state.is_final()));
        assert!(
            [Refused(NO), Confirmed, Cancelled, Vetoed(NO), Stopped].into_iter().all(FenceState::is_final)
        );
    }

    #[test]
    fn states_read_back_from_their_numbers() {
        for number in 1..=7 {
            let state =
                FenceState::from_number(number, None).or(FenceState::from_number(number, Some(NO))).unwrap();

            assert_eq!(state.number(), number);
            assert_eq!(FenceState::from_number(state.number(), state.refusal().copied()), Some(state));
        }
        assert_eq!(FenceState::from_number(0, None), None);
        assert_eq!(FenceState::from_number(2, None), None);
        assert_eq!(FenceState::from_number(1, Some(NO)), None);
    }
}
