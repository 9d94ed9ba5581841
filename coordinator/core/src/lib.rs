//! The protocol of tcc as pure functions on plain values.
//!
//! Two tables stand at its heart: [`Phase::after`], which alone changes the phase of a transaction, and [`fence::admit`],
//! which alone says what a participant does with an operation. [`decision`] reads participants' answers. The engine, the
//! ledger shards and the exhaustive model all call them.
//!
//! It keeps out everything that could make the same call give another answer: no async runtime, SQL, network, clock or
//! randomness.

pub mod bucket;
pub mod caller;
pub mod decision;
pub mod descriptor;
pub mod fence;
pub mod id;
pub mod money;
pub mod outcome;
pub mod phase;

pub use bucket::{BUCKETS, bucket_of};
pub use caller::{IdempotencyKey, LabelError, Labels};
pub use descriptor::{Branch, Descriptor, Leg, OnMaturity, ParticipantName, Request, Role, Transaction};
pub use fence::{Admission, FenceState, Operation};
pub use id::{IdError, TransactionId};
pub use money::{AccountId, Amount, Currency, MoneyError};
pub use outcome::{Outcome, Reason, Refusal};
pub use phase::{Attention, Cause, Event, Phase};

/// The time type used throughout. Stored times have microseconds; see [`round_up`].
pub use jiff::Timestamp;

/// Rounds up to a whole microsecond, the resolution of PostgreSQL's `timestamptz`: up, so that nothing is ever due early.
///
/// # Errors
///
/// None: the last microsecond of the supported range (year 9999) saturates.
#[must_use]
pub fn round_up(time: Timestamp) -> Timestamp {
    let micros =
        time.as_nanosecond().div_euclid(1_000) + i128::from(time.as_nanosecond().rem_euclid(1_000) != 0);
    Timestamp::from_nanosecond(micros * 1_000).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_between_two_microseconds_becomes_the_later_one() {
        let time = Timestamp::from_nanosecond(1_001).unwrap();

        assert_eq!(round_up(time), Timestamp::from_nanosecond(2_000).unwrap());
        assert_eq!(round_up(round_up(time)), round_up(time));
    }
}
