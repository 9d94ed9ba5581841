//! What a participant answers. A refusal is a value; no answer is its own answer.

use std::{fmt, str::FromStr};

/// The answer of one branch to one operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is so now, by this operation or an earlier one.
    Done,
    /// Try only: no, and for ever no. Nothing was changed but the fence.
    Refused(Refusal),
    /// Confirm at the pivot only: the effect cannot take place any more; sticky.
    Vetoed(Refusal),
    /// The branch was confirmed before.
    AlreadyConfirmed,
    /// The branch was cancelled before, or never will be tried.
    AlreadyCancelled,
    /// Confirm of a branch that was never tried: somebody forgot something.
    NotTried,
    /// The fence was made by a transaction of the same id and another body.
    OtherDescriptor,
    /// No answer. It may have happened. The text says why, for people.
    Unknown(String),
    /// The participant serves others and failed at this operation, which did not happen. The text says why, for people.
    Failed(String),
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal),* $(,)?) => {
        /// Why a participant said no: what only it can know.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal { $($(#[$doc])* $name),* }

        impl Refusal {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name in the API and in the tables.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }
        }
    };
}

refusals! {
    /// The shard has no such account.
    AccountNotFound = "ACCOUNT_NOT_FOUND",
    /// The account has another currency.
    CurrencyMismatch = "CURRENCY_MISMATCH",
    /// The account is blocked.
    AccountBlocked = "ACCOUNT_BLOCKED",
    /// The account is closed for good.
    AccountClosed = "ACCOUNT_CLOSED",
    /// Less is available than the amount.
    InsufficientFunds = "INSUFFICIENT_FUNDS",
    /// The account would own more than the limit of balances.
    BalanceOverflow = "BALANCE_OVERFLOW",
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A text that names no refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown refusal {0:?}")]
pub struct UnknownRefusal(pub String);

impl FromStr for Refusal {
    type Err = UnknownRefusal;

    fn from_str(code: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().find(|r| r.code() == code).copied().ok_or_else(|| UnknownRefusal(code.to_owned()))
    }
}
