//! Whether cancelling a transaction would create or lose units, by what the participants say.
//!
//! This explains and prevents mistakes; it is not what makes a forced cancel safe. That is the pivot's fence, which answers
//! Cancel and Confirm once and for all, whatever was seen here a moment before.

use super::picture::{Picture, Says};
use tcc_core::{FenceState, Role};

/// A cancel that must not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsafe {
    /// How many units it would create or lose.
    pub amount: i64,
    /// Of what.
    pub currency: String,
    /// What would happen, for people.
    pub why: String,
}

/// Why a transaction must not be cancelled; `None` if nobody has said anything against it.
#[must_use]
pub fn judge(picture: &Picture) -> Option<Unsafe> {
    let confirmed = |says: &Says| says.state() == Some(FenceState::Confirmed);
    let mut reported = picture.branches.iter().filter(|reported| confirmed(&reported.says));
    let leg = reported.find_map(|reported| reported.branch.leg())?;
    let (account, currency) = (&leg.account, leg.currency.to_string());
    let amount = leg.amount.get();
    let why = match leg.role {
        Role::Credit | Role::Issue => {
            format!(
                "{account} was paid {amount} {currency}: releasing them to the payer would create them again"
            )
        }
        Role::Debit | Role::Burn => {
            format!("{amount} {currency} were taken from {account}: cancelling the payment would lose them")
        }
    };
    Some(Unsafe { amount, currency, why })
}
