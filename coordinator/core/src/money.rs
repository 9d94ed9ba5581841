//! Amounts, currencies and account ids, checked once and trusted afterwards.

use std::{fmt, sync::Arc};

/// Why a value is no amount, currency or account id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// 0 or less.
    #[error("an amount is at least 1")]
    NotPositive,
    /// More than the limit in force.
    #[error("the amount is over the limit of {0}")]
    TooLarge(i64),
    /// Not an upper-case letter followed by up to 15 of `A-Z`, `0-9`, `_`.
    #[error("a currency is an upper-case letter, then up to 15 of A-Z, 0-9 and _")]
    Currency,
    /// Empty, longer than 64 bytes, or with other characters than printable ASCII without space.
    #[error("an account id is 1 to 64 printable ASCII characters without spaces")]
    Account,
}

/// Minor units of a currency: 1 to [`Amount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

impl Amount {
    /// The largest amount of one branch: 10^15. More than 4,000 of them fit into a balance above [`BALANCE_LIMIT`].
    pub const MAX: i64 = 1_000_000_000_000_000;

    /// Checks a value against 1 and [`Amount::MAX`].
    ///
    /// # Errors
    ///
    /// [`MoneyError::NotPositive`], [`MoneyError::TooLarge`].
    pub fn new(value: i64) -> Result<Self, MoneyError> {
        match value {
            ..=0 => Err(MoneyError::NotPositive),
            1..=Self::MAX => Ok(Self(value)),
            _ => Err(MoneyError::TooLarge(Self::MAX)),
        }
    }

    /// In minor units.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

/// An account that would own more than this refuses Try of a credit, and vetoes at the pivot. Half of what `bigint`
/// holds, so that credits which must not fail any more still fit.
pub const BALANCE_LIMIT: i64 = i64::MAX / 2;

/// The name of a virtual currency, such as `GOLD`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency(Arc<str>);

impl Currency {
    /// Checks the form.
    ///
    /// # Errors
    ///
    /// [`MoneyError::Currency`].
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        let form = |(i, byte): (usize, u8)| match byte {
            b'A'..=b'Z' => true,
            b'0'..=b'9' | b'_' => i > 0,
            _ => false,
        };
        if (1..=16).contains(&text.len()) && text.bytes().enumerate().all(form) {
            Ok(Self(text.into()))
        } else {
            Err(MoneyError::Currency)
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of an account. It decides, by [`crate::bucket_of`], on which shard the account lives.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// Checks the form.
    ///
    /// # Errors
    ///
    /// [`MoneyError::Account`].
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        if (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(MoneyError::Account)
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_positive_and_limited() {
        assert_eq!(Amount::new(0), Err(MoneyError::NotPositive));
        assert_eq!(Amount::new(i64::MIN), Err(MoneyError::NotPositive));
        assert_eq!(Amount::new(1).map(Amount::get), Ok(1));
        assert_eq!(Amount::new(Amount::MAX).map(Amount::get), Ok(Amount::MAX));
        assert_eq!(Amount::new(Amount::MAX + 1), Err(MoneyError::TooLarge(Amount::MAX)));
        let fit_above = |limit| (i64::MAX - limit) / Amount::MAX;
        assert!(BALANCE_LIMIT > 4_000 * Amount::MAX && fit_above(BALANCE_LIMIT) > 4_000);
    }

    #[test]
    fn currencies_and_account_ids_have_one_form() {
        for good in ["G", "GOLD", "A1_", "ABCDEFGHIJKLMNOP"] {
            assert!(Currency::parse(good).is_ok(), "{good}");
        }
        for wrong in ["", "gold", "1A", "_A", "A-B", "ABCDEFGHIJKLMNOPQ", "Ä"] {
            assert_eq!(Currency::parse(wrong), Err(MoneyError::Currency), "{wrong}");
        }
        for good in ["a", "cz-1", "user:4711/main", &"x".repeat(64)] {
            assert!(AccountId::parse(good).is_ok(), "{good}");
        }
        for wrong in ["", " a", "a b", "a\n", "a\0", "ä", &"x".repeat(65)] {
            assert_eq!(AccountId::parse(wrong), Err(MoneyError::Account), "{wrong}");
        }
    }
}
