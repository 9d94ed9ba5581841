//! What a payment provider's API must be able to do, and what it may say.
//!
//! [`Generic`](crate::generic::Generic) is one that a configuration describes. A provider whose API does not fit in there
//! (signatures over the body, several calls for one payout, webhooks) gets an adapter of its own here: a type that
//! implements [`Provider`], handed to [`serve::start_with`](crate::serve::start_with). It decides nothing: what is done
//! with an answer, when it is asked again, and whether an answer can be believed, is the [`worker`](crate::worker)'s.

use futures::future::BoxFuture;
use std::time::Duration;
use tcc_core::{Refusal, TransactionId};

/// Which payout: the transaction and its branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PayoutId {
    /// The transaction.
    pub transaction: TransactionId,
    /// Which of its branches.
    pub branch: u16,
}

impl PayoutId {
    /// The idempotency key: made of transaction, branch and phase. It never changes.
    #[must_use]
    pub fn key(self) -> String {
        format!("{}-{}-confirm", self.transaction, self.branch)
    }

    /// The payout that has this key.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        let (transaction, branch) = key.strip_suffix("-confirm")?.rsplit_once('-')?;
        Some(Self { transaction: TransactionId::parse(transaction).ok()?, branch: branch.parse().ok()? })
    }
}

/// What is to be paid to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Which payout it is.
    pub id: PayoutId,
    /// Whom, as the payload names it.
    pub recipient: String,
    /// Whom, as the provider knows it.
    pub destination: String,
    /// In minor units.
    pub amount: i64,
    /// Of what.
    pub currency: String,
}

/// What a provider said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It is paid.
    Paid {
        /// The provider's own name for it; empty if it told none.
        reference: String,
    },
    /// It knows of it, and has not paid it yet.
    Pending,
    /// It has not done it, and never will: the answer proves that.
    Never(Refusal),
    /// When looked up: it knows nothing of it.
    NotThere,
    /// It does not take more requests for so long.
    TooMany(Option<Duration>),
    /// Anything else, no answer above all: it may have been done, or not. Why, for people.
    Unknown(String),
}

/// A payment provider.
pub trait Provider: Send + Sync + 'static {
    /// Asks for a payout, with its key. Whoever asks twice with the same key must not be paid for twice.
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Said>;

    /// Whether [`Provider::look_up`] can be asked.
    fn can_look_up(&self) -> bool;

    /// Asks what became of a payout, by its key, without asking for it. That it is not there must be true at the time of the
    /// answer, and not of some copy that is behind.
    fn look_up<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Said>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_back_to_its_payout() {
        let transaction = TransactionId::from_uuid(uuid::Uuid::now_v7()).unwrap();
        let id = PayoutId { transaction, branch: 2 };

        assert_eq!(id.key(), format!("{transaction}-2-confirm"));
        assert_eq!(PayoutId::from_key(&id.key()), Some(id));
        for other in ["", "x-0-confirm", &format!("{transaction}-2"), &format!("{transaction}-2-try")] {
            assert_eq!(PayoutId::from_key(other), None, "{other}");
        }
    }
}
