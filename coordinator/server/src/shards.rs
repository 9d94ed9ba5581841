//! The ledger shards that this coordinator embeds, by account.

use std::collections::{HashMap, HashSet};
use tcc_core::{AccountId, BUCKETS, bucket_of};
use tcc_ledger::Shard;

/// The shards and the map of buckets, for what goes to one shard alone: accounts, issues, the audit.
pub struct Shards {
    all: Vec<Shard>,
    by_bucket: Vec<usize>,
}

impl Shards {
    /// Puts shards on the map.
    ///
    /// # Panics
    ///
    /// If a bucket is mapped to no shard.
    #[must_use]
    pub fn new(all: Vec<Shard>, map: &HashMap<String, HashSet<u16>>) -> Self {
        let owner = |bucket| {
            all.iter().position(|shard| map.get(shard.name()).is_some_and(|own| own.contains(&bucket)))
        };
        let by_bucket = (0..BUCKETS).map(|bucket| owner(bucket).expect("every bucket has a shard")).collect();
        Self { all, by_bucket }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Shard] {
        &self.all
    }

    /// The one that keeps an account.
    #[must_use]
    pub fn of(&self, account: &AccountId) -> &Shard {
        &self.all[self.by_bucket[usize::from(bucket_of(account))]]
    }
}
