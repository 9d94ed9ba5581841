//! The phases of a transaction, and the one table that changes them.
//!
//! ```text
//!  TRYING      every branch tried -> HELD         refused, timed out, cancel -> CANCELLING
//!  HELD        confirm -> CONFIRMING              cancel -> CANCELLING
//!              due: pivot first, then the rest -> CONFIRMED, or CANCELLED if it was to be released
//!              due, and the pivot had decided otherwise -> CANCELLING, or CONFIRMING
//!  CONFIRMING  pivot confirmed, then the rest -> CONFIRMED
//!              an operator asks for the release -> CANCELLING, as from TRYING and HELD
//!              a veto, or a cancel that won at the pivot -> CANCELLING
//!  CANCELLING  pivot cancelled, then the rest -> CANCELLED
//!              a confirm that won at the pivot -> CONFIRMING
//! ```
//!
//! CONFIRMING and CANCELLING mean "asked, the pivot has not answered yet". Each may flip to the other once, when the pivot
//! says so. A hold that is due needs no phase of its own for being asked: its due time says what is asked, for ever, and the
//! pivot decides between that and a cancel that was admitted in time. So it goes from HELD to its end in one write. The
//! store turns this table into the guards of its SQL, so it holds there, too.

use std::fmt;

/// Where a transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Accepted; not every branch has answered Try.
    Trying,
    /// Every branch is tried; waits for maturity, a confirm or a cancel.
    Held,
    /// Asked to confirm; the pivot decides.
    Confirming,
    /// Final: every branch is confirmed.
    Confirmed,
    /// Asked to cancel; the pivot decides.
    Cancelling,
    /// Final: every branch is cancelled.
    Cancelled,
}

/// What happens to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Every branch answered Try with DONE.
    Tried,
    /// A branch refused Try.
    Refused,
    /// The Try deadline passed, and one more Try left a branch without an answer.
    TimedOut,
    /// A client asks for the release, before the due time.
    CancelRequested,
    /// A client asks for the payment.
    ConfirmRequested,
    /// The pivot had confirmed when it was asked to cancel.
    PivotConfirmed,
    /// The pivot had cancelled when it was asked to confirm.
    PivotCancelled,
    /// The pivot could not confirm.
    PivotVetoed,
    /// Pivot first, every branch has confirmed.
    AllConfirmed,
    /// Pivot first, every branch has cancelled.
    AllCancelled,
    /// An operator asks for the release, whatever the time. The pivot decides, as always.
    CancelForced,
}

/// Why a transaction was decided as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A branch refused Try.
    Refused,
    /// The pivot vetoed Confirm.
    Vetoed,
    /// A client asked.
    Requested,
    /// Not every branch had answered Try in time.
    TimedOut,
    /// The due time came.
    Matured,
    /// An operator asked.
    Operator,
}

/// Whether a transaction needs looking at; orthogonal to its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attention {
    /// No.
    None,
    /// It failed at least once; retries go on.
    Retrying,
    /// No success for two minutes; retries go on.
    Stuck,
    /// An answer that the protocol forbids; waits for an operator.
    Parked,
    /// An operator stopped its retries.
    Paused,
}

impl Phase {
    /// Every phase, in the order of its number in the tables.
    pub const ALL: [Self; 6] =
        [Self::Trying, Self::Held, Self::Confirming, Self::Confirmed, Self::Cancelling, Self::Cancelled];

    /// The table: the phase after an event, or `None` if the event has no meaning in this phase.
    #[must_use]
    pub fn after(self, event: Event) -> Option<Self> {
        use Event::{
            AllCancelled, AllConfirmed, CancelForced, CancelRequested, ConfirmRequested, PivotCancelled,
            PivotConfirmed, PivotVetoed, Refused, TimedOut, Tried,
        };
        match (self, event) {
            (Self::Trying, Tried) => Some(Self::Held),
            (Self::Trying, Refused | TimedOut | CancelRequested) => Some(Self::Cancelling),
            (Self::Trying | Self::Held | Self::Confirming, CancelForced) => Some(Self::Cancelling),

            // What is held is asked by a client, or by its due time.
            (Self::Held, ConfirmRequested | PivotConfirmed) => Some(Self::Confirming),
            (Self::Held, CancelRequested | PivotCancelled | PivotVetoed) => Some(Self::Cancelling),

            (Self::Confirming, PivotCancelled | PivotVetoed) => Some(Self::Cancelling),
            (Self::Held | Self::Confirming, AllConfirmed) => Some(Self::Confirmed),

            (Self::Cancelling, PivotConfirmed) => Some(Self::Confirming),
            (Self::Held | Self::Cancelling, AllCancelled) => Some(Self::Cancelled),

            _ => None,
        }
    }

    /// Whether nothing can happen to it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Confirmed | Self::Cancelled)
    }

    /// The number in the tables: 1 to 6.
    #[must_use]
    pub fn number(self) -> i16 {
        self as i16 + 1
    }

    /// The reverse of [`Phase::number`].
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.number() == number)
    }
}

/// As the API names it, without prefix: `CONFIRMED`.
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trying => "TRYING",
            Self::Held => "HELD",
            Self::Confirming => "CONFIRMING",
            Self::Confirmed => "CONFIRMED",
            Self::Cancelling => "CANCELLING",
            Self::Cancelled => "CANCELLED",
        })
    }
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 11] = [
        Self::Tried,
        Self::Refused,
        Self::TimedOut,
        Self::CancelRequested,
        Self::ConfirmRequested,
        Self::PivotConfirmed,
        Self::PivotCancelled,
        Self::PivotVetoed,
        Self::AllConfirmed,
        Self::AllCancelled,
        Self::CancelForced,
    ];

    /// The phases in which it has a meaning.
    pub fn sources(self) -> impl Iterator<Item = Phase> {
        Phase::ALL.into_iter().filter(move |phase| phase.after(self).is_some())
    }

    /// The phase that it leads to: the same from wherever it comes.
    #[must_use]
    pub fn target(self) -> Phase {
        self.sources().find_map(|phase| phase.after(self)).expect("every event has a meaning in some phase")
    }

    /// Whether the pivot turned the decision round. That may happen to a transaction once.
    #[must_use]
    pub fn is_flip(self) -> bool {
        matches!(self, Self::PivotConfirmed | Self::PivotCancelled | Self::PivotVetoed)
    }

    /// The cause that it leaves, if it has one. What leaves HELD without one has [`Cause::Matured`].
    #[must_use]
    pub fn cause(self) -> Option<Cause> {
        match self {
            Self::Refused => Some(Cause::Refused),
            Self::TimedOut => Some(Cause::TimedOut),
            Self::CancelRequested | Self::ConfirmRequested => Some(Cause::Requested),
            Self::PivotVetoed => Some(Cause::Vetoed),
            Self::CancelForced => Some(Cause::Operator),
            Self::Tried
            | Self::PivotConfirmed
            | Self::PivotCancelled
            | Self::AllConfirmed
            | Self::AllCancelled => None,
        }
    }
}

impl Cause {
    /// Every cause, in the order of its number in the tables.
    pub const ALL: [Self; 6] =
        [Self::Refused, Self::Vetoed, Self::Requested, Self::TimedOut, Self::Matured, Self::Operator];

    /// The number in the tables: 1 to 6.
    #[must_use]
    pub fn number(self) -> i16 {
        self as i16 + 1
    }

    /// The reverse of [`Cause::number`].
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.number() == number)
    }
}

impl Attention {
    /// Every value, in the order of its number in the tables.
    pub const ALL: [Self; 5] = [Self::None, Self::Retrying, Self::Stuck, Self::Parked, Self::Paused];

    /// The number in the tables: 0 to 4.
    #[must_use]
    pub fn number(self) -> i16 {
        self as i16
    }

    /// The reverse of [`Attention::number`].
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|attention| attention.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_allows_this_and_nothing_else() {
        use Event::{
            AllCancelled, AllConfirmed, CancelForced, CancelRequested, ConfirmRequested, PivotCancelled,
            PivotConfirmed, PivotVetoed, Refused, TimedOut, Tried,
        };
        use Phase::{Cancelled, Cancelling, Confirmed, Confirming, Held, Trying};
        let allowed = |from, event| match from {
            Trying => match event {
                Tried => Some(Held),
                Refused | TimedOut | CancelRequested | CancelForced => Some(Cancelling),
                _ => None,
            },
            Held => match event {
                ConfirmRequested | PivotConfirmed => Some(Confirming),
                CancelRequested | CancelForced | PivotCancelled | PivotVetoed => Some(Cancelling),
                AllConfirmed => Some(Confirmed),
                AllCancelled => Some(Cancelled),
                _ => None,
            },
            Confirming => match event {
                AllConfirmed => Some(Confirmed),
                CancelForced | PivotCancelled | PivotVetoed => Some(Cancelling),
                _ => None,
            },
            Cancelling => match event {
                AllCancelled => Some(Cancelled),
                PivotConfirmed => Some(Confirming),
                _ => None,
            },
            Confirmed | Cancelled => None,
        };

        for phase in Phase::ALL {
            for event in Event::ALL {
                assert_eq!(phase.after(event), allowed(phase, event), "{phase} {event:?}");
            }
        }
    }

    #[test]
    fn only_the_pivot_turns_round_and_whoever_asks_leaves_a_cause() {
        let flips: Vec<_> = Event::ALL.into_iter().filter(|event| event.is_flip()).collect();
        let causes: Vec<_> = Event::ALL.into_iter().filter_map(Event::cause).collect();

        assert_eq!(flips, [Event::PivotConfirmed, Event::PivotCancelled, Event::PivotVetoed]);
        assert_eq!(
            causes,
            [
                Cause::Refused,
                Cause::TimedOut,
                Cause::Requested,
                Cause::Requested,
                Cause::Vetoed,
                Cause::Operator
            ]
        );
    }

    #[test]
    fn every_event_leads_to_one_phase() {
        for event in Event::ALL {
            let targets: std::collections::HashSet<_> =
                event.sources().map(|phase| phase.after(event)).collect();

            assert_eq!(targets.len(), 1, "{event:?}");
            assert_eq!(targets.into_iter().next().flatten(), Some(event.target()));
        }
    }

    #[test]
    fn a_final_phase_is_left_by_no_event() {
        for phase in Phase::ALL {
            let leaves = Event::ALL.into_iter().any(|event| phase.after(event).is_some());

            assert_eq!(phase.is_final(), !leaves, "{phase:?}");
        }
    }

    #[test]
    fn held_and_trying_are_never_returned_to() {
        for event in Event::ALL {
            assert_ne!(event.target(), Phase::Trying);
            assert_eq!(event.target() == Phase::Held, event == Event::Tried);
        }
    }

    #[test]
    fn numbers_read_back() {
        assert!(Phase::ALL.into_iter().all(|p| Phase::from_number(p.number()) == Some(p)));
        assert!(Cause::ALL.into_iter().all(|c| Cause::from_number(c.number()) == Some(c)));
        assert!(Attention::ALL.into_iter().all(|a| Attention::from_number(a.number()) == Some(a)));
        assert_eq!((Phase::Trying.number(), Phase::Cancelled.number()), (1, 6));
        assert_eq!((Cause::Refused.number(), Cause::Operator.number()), (1, 6));
        assert_eq!((Attention::None.number(), Attention::Paused.number()), (0, 4));
        assert_eq!(Phase::from_number(7), None);
    }
}
