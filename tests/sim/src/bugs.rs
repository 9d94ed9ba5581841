//! Mistakes that others have made, put into the stand-ins one at a time: whoever checks must notice each of them.
//!
//! They stand where the product's SQL and its participants do, so the product itself has no switch for them.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A payment that is asked for again is made again.
    NoFenceOnPay,
    /// A fence commits, and its effect now and then does not.
    FenceApartFromEffect,
    /// A Cancel that comes before its Try leaves nothing.
    CancelWithoutTombstone,
    /// A phase is moved whatever it is.
    MoveWithoutGuard,
    /// A transaction is held and leaves no wake-up.
    HeldWithoutWakeUp,
    /// No answer is taken for success.
    UnknownIsDone,
    /// What is due is told by a clock that is ahead.
    DueByAnotherClock,
    /// What was vetoed is paid when it is asked for again.
    VetoIsNotSticky,
    /// Somebody releases what has been frozen for long, and does not ask the pivot.
    ReleaseByTimeOut,
    /// An amount loses its upper bits.
    AmountIsCut,
    /// An id that is known is taken for another body.
    IdIgnoresBody,
    /// One's answer is given to another.
    AnswersAreMixedUp,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::NoFenceOnPay,
        Self::FenceApartFromEffect,
        Self::CancelWithoutTombstone,
        Self::MoveWithoutGuard,
        Self::HeldWithoutWakeUp,
        Self::UnknownIsDone,
        Self::DueByAnotherClock,
        Self::VetoIsNotSticky,
        Self::ReleaseByTimeOut,
        Self::AmountIsCut,
        Self::IdIgnoresBody,
        Self::AnswersAreMixedUp,
    ];
}
