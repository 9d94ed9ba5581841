//! The books of one shard against themselves, in three ways.
//!
//! All of them at once; what moved in a slice of time, so that an audit can go on for ever; and the balances rebuilt from
//! the postings alone. What is compared is always read in one snapshot, so each invariant must hold exactly, even while the
//! shard works. Pairing with the other shards is the coordinator's part of the audit.

mod full;
mod moved;
mod replay;

pub use full::ShardAudit;
pub use moved::{Moved, Slice};
pub use replay::{Replay, Total};

pub(crate) use full::run;
pub(crate) use moved::{accounts, count, moved, start};
pub(crate) use replay::replay;

use tokio_postgres::{Client, Error, IsolationLevel, Transaction};

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardFinding {
    /// Which invariant.
    pub kind: &'static str,
    /// Which transaction, if one.
    pub transaction: Option<String>,
    /// Which account, if one.
    pub account: Option<String>,
    /// What should be.
    pub expected: String,
    /// What is.
    pub found: String,
}

/// At most this many findings of one check, or of one slice, are reported: the first ones tell the story.
pub const LIMIT: i64 = 100;

/// Begins to read in one snapshot. What is dropped before its end is rolled back.
async fn snapshot(client: &mut Client) -> Result<Transaction<'_>, Error> {
    client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await
}
