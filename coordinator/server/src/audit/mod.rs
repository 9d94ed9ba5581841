//! The auditor: the books of every shard against themselves, each other and the coordinator. Reads only.
//!
//! It runs while everything works, in two ways. [`run`] reads everything once, when it is asked to. [`follow`] is the task that
//! never sleeps: it takes up what has moved since it last looked, slice after slice, and keeps what it finds. Each shard
//! checks its own books in one snapshot; this compares the shards with each other and with the coordinator, and says what
//! that rests on where it does so.

pub mod follow;
mod full;
mod pairs;

pub use crate::store::audited::Finding;
pub use full::run;

use crate::store::StoreError;
use tcc_ledger::{ReadError, audit::ShardFinding};

/// What an audit tells while it runs.
#[derive(Debug, Clone)]
pub enum AuditEvent {
    /// How far a step is.
    Progress {
        /// Which step.
        step: String,
        /// How much of it is done.
        done: u64,
        /// How much there is to do.
        total: u64,
    },
    /// Something that must not be.
    Finding(Finding),
    /// The end.
    Summary(Summary),
}

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of the coordinator.
    pub transactions: u64,
    /// Fences of all shards.
    pub branches: u64,
    /// Accounts of all shards.
    pub accounts: u64,
    /// Postings of all shards.
    pub postings: u64,
    /// How many findings were reported.
    pub findings: u64,
    /// Issued minus burned, by currency, in minor units.
    pub issued: Vec<(String, i64)>,
}

/// Why an audit could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The coordinator's database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A shard does not answer.
    #[error(transparent)]
    Shard(#[from] ReadError),
    /// Nobody listens any more.
    #[error("the audit was given up by whoever asked for it")]
    GivenUp,
}

/// What a shard has found in its own books.
#[must_use]
pub fn of_shard(shard: &str, found: ShardFinding) -> Finding {
    Finding {
        kind: found.kind.to_owned(),
        shard: shard.to_owned(),
        transaction: found.transaction.unwrap_or_default(),
        account: found.account.unwrap_or_default(),
        expected: found.expected,
        found: found.found,
    }
}
