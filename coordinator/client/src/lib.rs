//! A client of tcc for applications in Rust.
//!
//! No answer is its own answer: a call that broke off, timed out or was turned away may or may not have
//! happened. So each call is made again, with the same id or key, until there is an answer or the patience
//! ends; the server takes it once. What comes back is what the call promises (a hold that is held, a transfer
//! that is paid, a cancel that can never be paid any more), a [`No`], which is final, or [`Error::Unknown`],
//! which is neither.
//!
//! Ids, accounts, amounts and times are checked when they are made, and a hold has no way to be sent before
//! it was said what happens when it falls due: [`Draft::pay_out_at`] or [`Draft::release_at`]. Generated
//! types stay inside.
//!
//! ```no_run
#![doc = include_str!("../examples/schedule.rs")]
//! ```
//!
//! A hold is one debit and one credit. Whatever else must happen together, or not at all, is a transaction of
//! up to 64 branches, with other participants than the ledger, too ([`Client::transaction`]):
//!
//! ```no_run
#![doc = include_str!("../examples/ticket.rs")]
//! ```
//!
//! Holds that are sent at the same time share connections and commits: many tasks with one [`Client`] each,
//! which is cheap to clone, are as good as a batch. [`Client::send_all`] sends those that are there at once, with an outcome
//! for each.

mod accounts;
mod ask;
mod batch;
mod connect;
mod convert;
mod holds;
mod list;
mod transactions;
mod watch;

pub use accounts::{Account, AccountState, Balance};
pub use ask::{Error, No};
pub use connect::{Connect, ConnectError, Way};
pub use convert::Money;
pub use holds::{Created, Draft, Hold, NewHold, NewTransfer};
pub use list::List;
pub use tcc_core::{
    AccountId, Amount, Attention, Cause, Currency, IdError, LabelError, Labels, MoneyError, OnMaturity,
    ParticipantName, Phase, Timestamp, TransactionId,
};
pub use tcc_proto::Reason;
pub use transactions::{Begun, Branch, NewTransaction, Parts, Transaction};
pub use watch::Watch;

use connect::Shared;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// A connection that mends itself. Clones share it.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    patience: Duration,
}

impl Client {
    /// How to reach a server: `https://tcc.internal:7070`.
    #[must_use]
    pub fn at(url: &str) -> Connect {
        Connect::to(url)
    }

    /// The same connection, for calls that are made again for so long and no longer.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), patience }
    }
}

/// A new id for a hold, a transfer, an issue or a burn. Write it down before it is used: it finds what became
/// of the call.
///
/// # Panics
///
/// Never: what it makes is a UUID of version 7.
#[must_use]
pub fn new_id() -> TransactionId {
    TransactionId::from_uuid(Uuid::now_v7()).expect("a UUID of version 7")
}
