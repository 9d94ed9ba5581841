//! Keeps the shards' heads, and stops work on a shard that has lost some: on every instance, until an operator lets it go on.
//! An operator may stop it, too.

use crate::{store::Store, store::StoreError};
use std::{collections::HashMap, time::Duration};
use tcc_ledger::{Shard, heads::Head};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the heads are kept and looked at: what is lost is noticed after this, or when the next batch connects.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Keeps and looks, until asked to stop.
pub async fn keep(store: Store, shards: Vec<Shard>, instance: Uuid, stop: CancellationToken) {
    let mut keeper = Keeper { store, shards, instance, kept: HashMap::new(), resumed: HashMap::new() };
    while !stop.is_cancelled() {
        if let Err(error) = keeper.tick().await {
            tracing::debug!(%error, "cannot keep the shards' heads; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
}

struct Keeper {
    store: Store,
    shards: Vec<Shard>,
    instance: Uuid,
    /// What was kept last.
    kept: HashMap<String, Head>,
    /// How often an operator had let each shard go on when that was last seen.
    resumed: HashMap<String, i32>,
}

impl Keeper {
    async fn tick(&mut self) -> Result<(), StoreError> {
        let all = self.store.kept().await?;
        let shards = self.shards.clone();
        for shard in &shards {
            let Some(kept) = all.iter().find(|kept| kept.shard == shard.name()) else { continue };
            let seen = self.resumed.insert(kept.shard.clone(), kept.resumed);
            if seen.is_some_and(|seen| seen != kept.resumed) {
                tracing::warn!(shard = shard.name(), "an operator lets work on a shard go on");
                shard.heads().resume();
                self.kept.remove(shard.name());
            }
            if let Some(lost) = &kept.lost {
                shard.heads().stop(lost.clone());
            }
            if kept.drained != shard.is_drained() {
                tracing::warn!(
                    shard = shard.name(),
                    drained = kept.drained,
                    "an operator decides about work on a shard"
                );
                shard.set_drained(kept.drained);
            }
            self.look(shard).await;
            match (shard.heads().lost(), shard.heads().newest()) {
                (Some(lost), _) if kept.lost.is_none() => {
                    self.store.stop_shard(shard.name(), &lost, kept.resumed).await?;
                }
                (None, Some(newest)) if self.kept.get(shard.name()) != Some(&newest) => {
                    self.store.keep_head(shard.name(), self.instance, newest).await?;
                    self.kept.insert(shard.name().to_owned(), newest);
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn look(&self, shard: &Shard) {
        // One that does not answer is looked at when it does.
        if let Err(error) = shard.check_heads().await {
            tracing::debug!(shard = shard.name(), %error, "cannot look at a shard's heads");
        }
    }
}
