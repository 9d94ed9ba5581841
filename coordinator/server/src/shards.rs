//! The ledger shards that this coordinator embeds, by account.

use std::collections::{HashMap, HashSet};
use tcc_core::{AccountId, BUCKETS, Descriptor, Refusal, bucket_of};
use tcc_ledger::{ReadError, Shard};

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

    /// Which branch an account would say no to, and why, if one would at this moment.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn refusal(&self, descriptor: &Descriptor) -> Result<Option<(u16, Refusal)>, ReadError> {
        for (index, leg) in descriptor.legs() {
            let account = self.of(&leg.account).account(&leg.account).await?;
            if let Some(refusal) = tcc_ledger::refusal(account.as_ref(), leg) {
                return Ok(Some((index, refusal)));
            }
        }
        Ok(None)
    }

    /// The one that keeps an account.
    #[must_use]
    pub fn of(&self, account: &AccountId) -> &Shard {
        &self.all[self.by_bucket[usize::from(bucket_of(account))]]
    }
}
