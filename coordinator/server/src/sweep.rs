//! The orphan sweep: what the coordinator's database has lost is rebuilt from the fences.
//!
//! A database that fails over to a standby that had not received everything, or is restored, forgets its last commits. The
//! fences do not: each keeps the whole transaction, and the pivot's says what was decided. So after every start, and whenever
//! the database may have gone back, the fences of every shard are read, the newest first, and where one has no row a row is
//! written, as [`rebuilt`] says: the engine then goes on with it as with any other. From then on what is new is looked at
//! likewise, since a Try that was sent before the loss may arrive after it.
//!
//! The order of reading is what it rests on. A row is committed before the first fence is asked for, so a fence that is seen
//! before its row is looked for has one, unless that was lost. And the fences of what is missing are read once more after
//! that, all of them: whoever was told HELD before the loss had every branch tried by then.

use crate::{
    engine::Engine,
    schedule::Unbroken,
    shards::Shards,
    store::{
        Place,
        rebuild::{Rebuild, Rebuilder, Swept},
    },
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tcc_core::{Cause, FenceState, Timestamp, Transaction, TransactionId, decision::rebuilt};
use tcc_ledger::{BranchRow, Branches, ReadError, Shard};
use tcc_participant::Failure;
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How many fences are read at a time.
const CHUNK: i64 = 5_000;
/// After a chunk it rests for so many times as long as that took: holds go first.
const REST: u32 = 2;
/// How often there is a look at what is new.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// A shard or a database that does not answer is asked again after this; so is whether another instance has finished.
const AGAIN: Duration = Duration::from_secs(5);

/// Why a sweep was not finished.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("coordinator database: {0}")]
    Store(#[from] Failure),
    #[error(transparent)]
    Shard(#[from] ReadError),
}

/// How the sweep stands, for the status. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    rebuilt: Arc<AtomicU64>,
    unfinished: Arc<AtomicU64>,
    swept_on: Arc<Mutex<Option<Timestamp>>>,
}

impl Progress {
    /// How many rows this instance has rebuilt. Normally none.
    #[must_use]
    pub fn rebuilt(&self) -> u64 {
        self.rebuilt.load(Ordering::Relaxed)
    }

    /// How many shards have not been swept since the database may last have gone back.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// When the server of the coordinator's database started of which every shard has been swept: nothing is missing on it that
    /// a client was told of.
    #[must_use]
    pub fn swept_on(&self) -> Option<Timestamp> {
        *self.swept_on.lock().expect("no holder panics")
    }

    fn set_swept_on(&self, server: Option<Timestamp>) {
        *self.swept_on.lock().expect("no holder panics") = server;
    }
}

/// Sweeps every shard after each time that the coordinator's database may have gone back, until asked to stop.
pub async fn keep(
    coordinator: Config,
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    mut unbroken: Unbroken,
    progress: Progress,
    stop: CancellationToken,
) {
    let rebuilder = Rebuilder::new(&coordinator);
    let mut sweep =
        Sweep { rebuilder, engine, shards, progress, unswept: HashSet::new(), failing: HashSet::new() };
    sweep.start_again();
    while !stop.is_cancelled() {
        let continuity = *unbroken.borrow_and_update();
        let is_done = tokio::select! {
            is_done = sweep.all(continuity.since) => is_done,
            () = stop.cancelled() => return,
        };
        if is_done {
            sweep.progress.set_swept_on(Some(continuity.server));
        }
        sweep.rebuilder.disconnect();
        tokio::select! {
            changed = unbroken.changed() => match changed {
                Ok(()) => sweep.start_again(),
                Err(_) => return,
            },
            () = tokio::time::sleep(if is_done { LOOK_EVERY } else { AGAIN }) => {}
            () = stop.cancelled() => {}
        }
    }
}

struct Sweep {
    rebuilder: Rebuilder,
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    progress: Progress,
    /// The shards that have not been swept since the database may last have gone back.
    unswept: HashSet<String>,
    /// The shards at which it failed last: each outage is told once.
    failing: HashSet<String>,
}

impl Sweep {
    fn start_again(&mut self) {
        self.unswept = self.shards.all().iter().map(|shard| shard.name().to_owned()).collect();
        self.progress.unfinished.store(self.unswept.len() as u64, Ordering::Relaxed);
        self.progress.set_swept_on(None);
    }

    /// Whether all shards have been swept since then, by this instance or another.
    async fn all(&mut self, since: Timestamp) -> bool {
        let shards = Arc::clone(&self.shards);
        for shard in shards.all() {
            match self.one(shard, since).await {
                Ok(is_swept) => {
                    self.failing.remove(shard.name());
                    if is_swept {
                        self.unswept.remove(shard.name());
                    }
                }
                Err(error) if self.failing.insert(shard.name().to_owned()) => {
                    tracing::warn!(shard = shard.name(), %error, "the orphan sweep is not finished; trying again");
                }
                Err(_) => {}
            }
            self.progress.unfinished.store(self.unswept.len() as u64, Ordering::Relaxed);
        }
        self.unswept.is_empty()
    }

    /// Whether a shard has been swept. If not, another instance is at it.
    async fn one(&mut self, shard: &Shard, since: Timestamp) -> Result<bool, SweepError> {
        let is_alone = self.rebuilder.lock(shard.name()).await?;
        let (swept, now) = self.rebuilder.swept(shard.name()).await?;
        let swept = swept.filter(|swept| swept.started_at >= since);
        if !is_alone {
            return Ok(swept.is_some());
        }
        let before = self.progress.rebuilt();
        let horizon = shard.horizon().await?;
        match swept {
            Some(swept) => {
                for ids in shard.fenced_since(swept.seen_until).await?.chunks(CHUNK as usize) {
                    self.chunk(ids.to_vec()).await?;
                }
            }
            None => self.everything(shard).await?,
        }
        let started_at = swept.map_or(now, |swept| swept.started_at);
        self.rebuilder.set_swept(shard.name(), Swept { started_at, seen_until: horizon }).await?;
        let rebuilt = self.progress.rebuilt() - before;
        if rebuilt > 0 {
            tracing::warn!(
                shard = shard.name(),
                rebuilt,
                "the coordinator's database had lost transactions; they were rebuilt from their fences"
            );
        }
        Ok(true)
    }

    /// Every fence of a shard, the newest ids first.
    async fn everything(&mut self, shard: &Shard) -> Result<(), SweepError> {
        let mut until = Uuid::max();
        loop {
            let began = Instant::now();
            let fenced = shard.fenced_before(until, CHUNK).await?;
            let Some(last) = fenced.last() else { return Ok(()) };
            until = *last;
            self.chunk(fenced).await?;
            tokio::time::sleep(began.elapsed() * REST).await;
        }
    }

    /// Rebuilds what is missing among the transactions of some fences.
    async fn chunk(&mut self, mut ids: Vec<Uuid>) -> Result<(), SweepError> {
        ids.sort_unstable();
        ids.dedup();
        let missing = self.rebuilder.missing(&ids).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let rows = self.fences(&missing).await?;
        let rebuilds: Vec<Rebuild> = rows
            .iter()
            .filter_map(|(id, fences)| {
                rebuild(*id, fences, Place { slot: self.engine.timers().pick_slot(), lane: 0 })
            })
            .collect();
        for rebuilt in self.rebuilder.rebuild(&rebuilds).await? {
            self.progress.rebuilt.fetch_add(1, Ordering::Relaxed);
            self.engine.timers().arm(rebuilt.wake_at, rebuilt.id, rebuilt.place);
        }
        Ok(())
    }

    /// All fences of some transactions, on every shard. One that does not answer may have some, so there is no going on without.
    async fn fences(
        &self,
        ids: &HashSet<Uuid>,
    ) -> Result<BTreeMap<TransactionId, Vec<BranchRow>>, SweepError> {
        let ids: Vec<Uuid> = ids.iter().copied().collect();
        let mut fences: BTreeMap<TransactionId, Vec<BranchRow>> = BTreeMap::new();
        for shard in self.shards.all() {
            for row in shard.branches(Branches::Of(&ids)).await? {
                if !row.role.is_at_once() {
                    fences.entry(row.transaction).or_default().push(row);
                }
            }
        }
        Ok(fences)
    }
}

/// The row of a transaction with these fences; `None` if they do not belong together.
#[must_use]
pub fn rebuild(id: TransactionId, fences: &[BranchRow], place: Place) -> Option<Rebuild> {
    let descriptor = &fences.first()?.descriptor;
    let transaction = Transaction::decode(id, descriptor.clone());
    let transaction = match transaction {
        Ok(transaction) if fences.iter().all(|fence| fence.descriptor == *descriptor) => transaction,
        _ => {
            tracing::error!(%id, "fences of a transaction that has no row do not agree what it is; run tccctl audit run");
            return None;
        }
    };
    let state = |index: u16| fences.iter().find(|fence| fence.branch == index).map(|fence| fence.state);
    let pivot = state(transaction.descriptor.pivot);
    let others = (0..transaction.descriptor.branches.len() as u16)
        .filter(|index| *index != transaction.descriptor.pivot)
        .map(state);
    let refusal = fences.iter().find_map(|fence| fence.state.refusal());
    let cause = match pivot {
        Some(FenceState::Vetoed(_)) => Some(Cause::Vetoed),
        _ if refusal.is_some() => Some(Cause::Refused),
        // Somebody has asked for it, or the due time has come.
        Some(FenceState::Confirmed | FenceState::Confirming | FenceState::Cancelled) => None,
        // Some branch was not tried, or undone before it was.
        _ => Some(Cause::TimedOut),
    };
    Some(Rebuild {
        place,
        phase: rebuilt(pivot, others),
        cause,
        reason: refusal.map(|refusal| refusal.code().to_owned()),
        is_decided: pivot.is_some_and(FenceState::is_final),
        transaction: Arc::new(transaction),
    })
}
