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
    /// The participant serves others and failed at this operation: the operation's own fault, and done again like what is
    /// unknown. The text says why, for people.
    Failed(String),
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal),* $(,)?) => {
        /// Why a participant said no: what only it can know.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
            /// A reason of a participant's own.
            Other(Reason),
        }

        impl Refusal {
            /// Every reason that is not a participant's own.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name in the API and in the tables.
            #[must_use]
            pub fn code(&self) -> &str {
                match self { $(Self::$name => $code,)* Self::Other(reason) => reason.as_str() }
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

impl Refusal {
    /// A participant's own reason: 1 to 47 of `A` to `Z`, `0` to `9` and `_`, a letter first, such as `SEAT_TAKEN`.
    ///
    /// # Panics
    ///
    /// If it is anything else. In a constant, that is an error of the compiler.
    #[must_use]
    pub const fn own(code: &str) -> Self {
        match Reason::read(code) {
            Some(reason) => Self::Other(reason),
            None => panic!("a reason is 1 to 47 of A-Z, 0-9 and _, a letter first"),
        }
    }

    /// The reason of that name, a participant's own or not.
    ///
    /// # Errors
    ///
    /// [`UnknownRefusal`] if it has not the form of a reason.
    pub fn from_code(code: &str) -> Result<Self, UnknownRefusal> {
        code.parse().or_else(|unknown| Reason::read(code).map(Self::Other).ok_or(unknown))
    }
}

/// The text of a participant's own reason, in place: a fence's state stays a plain value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason {
    /// Zero behind the text.
    bytes: [u8; Self::MAX],
    length: u8,
}

impl Reason {
    /// Its greatest length in bytes.
    pub const MAX: usize = 47;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("a reason is ASCII")
    }

    const fn read(code: &str) -> Option<Self> {
        let code = code.as_bytes();
        if code.is_empty() || code.len() > Self::MAX || !code[0].is_ascii_uppercase() {
            return None;
        }
        let mut bytes = [0; Self::MAX];
        let mut index = 0;
        while index < code.len() {
            if !matches!(code[index], b'A'..=b'Z' | b'0'..=b'9' | b'_') {
                return None;
            }
            bytes[index] = code[index];
            index += 1;
        }
        Some(Self { bytes, length: code.len() as u8 })
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no refusal known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown refusal {0:?}")]
pub struct UnknownRefusal(pub String);

impl FromStr for Refusal {
    type Err = UnknownRefusal;

    fn from_str(code: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().find(|r| r.code() == code).copied().ok_or_else(|| UnknownRefusal(code.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_a_participants_own_reads_back_and_has_a_form() {
        const TAKEN: Refusal = Refusal::own("SEAT_TAKEN");
        let longest = "X".repeat(Reason::MAX);

        assert_eq!(TAKEN.code(), "SEAT_TAKEN");
        assert_eq!(Refusal::from_code("SEAT_TAKEN"), Ok(TAKEN));
        assert_eq!(Refusal::from_code(&longest).unwrap().code(), longest);
        for wrong in ["", "seat_taken", "_X", "9X", "SEAT TAKEN", "SÉAT", &format!("{longest}X")] {
            assert_eq!(Refusal::from_code(wrong), Err(UnknownRefusal(wrong.to_owned())));
        }
    }

    #[test]
    fn a_known_reason_is_never_a_participants_own() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), Ok(*refusal));
        }
        assert!("SEAT_TAKEN".parse::<Refusal>().is_err());
    }
}
