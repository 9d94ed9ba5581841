//! The orphan sweep: what the coordinator's database has lost is rebuilt from the fences.
//!
//! A database that fails over to a standby that had not received everything, or is restored, forgets its last commits. The
//! fences do not: each keeps the whole transaction, and the pivot's says what was decided. So the fences of every shard are
//! read, and where one has no row a row is written, as [`rebuilt`] says: the engine then goes on with it as with any other.
//!
//! Up to when a shard's fences were looked at is written into the coordinator's database itself, after the rows. A database
//! that went back has forgotten that together with the rows: every fence whose row it lost was written after what it
//! remembers. So it is always enough to go on from there, at a start, after a loss, and every half minute: a Try that was sent
//! before a loss may arrive after it. All fences are read when nothing is remembered, or when the shard's clock went back.
//!
//! The order of reading is what it rests on. A row is committed before the first fence is asked for, so a fence that is seen
//! before its row is looked for has one, unless that was lost. And the fences of what is missing are read once more after
//! that, all of them: whoever was told HELD before the loss had every branch tried by then.
//!
//! Fences of participants that are no shards cannot be read. A transaction with such branches, of which the ledger knows no
//! end, is written as TRYING: each participant is asked to try once more, which says how it stands, and until all have
//! answered it is not given up. What has no branch in the ledger comes back only when its creator repeats it.

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
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tcc_core::{
    Cause, FenceState, Phase, Timestamp, Transaction, TransactionId,
    decision::{rebuilt, rebuilt_in_part},
};
use tcc_ledger::{BranchRow, Branches, ReadError, Shard};
use tcc_participant::{Failure, Postgres};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How many fences are read at a time.
const CHUNK: i64 = 5_000;
/// After a chunk it rests for so many times as long as that took: holds go first.
const REST: u32 = 2;
/// What was written in so long is read at a time; longer where little was.
const WINDOW: Duration = Duration::from_secs(60);
/// A shard's clock may go back by so much when another server takes its place.
const MARGIN: Duration = Duration::from_secs(60);
/// What was written so shortly before the horizon is looked at twice: a server process says when its transaction began just after
/// it has noted that time.
const UNTOLD: Duration = Duration::from_secs(1);
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

/// Sweeps every shard, at once after each time that the coordinator's database may have gone back, until asked to stop.
pub async fn keep(
    coordinator: Postgres,
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    mut unbroken: Unbroken,
    progress: Progress,
    stop: CancellationToken,
) {
    let rebuilder = Rebuilder::new(&coordinator);
    let mut sweep =
        Sweep { rebuilder, engine, shards, progress, swept_on: HashMap::new(), failing: HashSet::new() };
    sweep.start_again();
    while !stop.is_cancelled() {
        unbroken.borrow_and_update();
        tokio::select! {
            () = sweep.all() => {}
            () = stop.cancelled() => return,
        }
        sweep.rebuilder.disconnect();
        let is_done = sweep.progress.swept_on().is_some();
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
    /// When the server of the coordinator's database started on which each shard has been swept, if it has been.
    swept_on: HashMap<String, Timestamp>,
    /// The shards at which it failed last: each outage is told once.
    failing: HashSet<String>,
}

impl Sweep {
    fn start_again(&mut self) {
        self.swept_on.clear();
        self.tell();
    }

    /// Tells how it stands.
    fn tell(&self) {
        let all = self.shards.all();
        let server = self.swept_on.values().next();
        let is_done = all.iter().all(|shard| server.is_some() && self.swept_on.get(shard.name()) == server);
        self.progress.set_swept_on(server.copied().filter(|_| is_done));
        self.progress.unfinished.store((all.len() - self.swept_on.len()) as u64, Ordering::Relaxed);
    }

    /// Goes on with every shard.
    async fn all(&mut self) {
        let shards = Arc::clone(&self.shards);
        for shard in shards.all() {
            match self.one(shard).await {
                Ok(()) => {
                    self.failing.remove(shard.name());
                }
                Err(error) if self.failing.insert(shard.name().to_owned()) => {
                    tracing::warn!(shard = shard.name(), %error, "the orphan sweep is not finished; trying again");
                }
                Err(_) => {}
            }
            self.tell();
        }
    }

    /// Goes on with one shard, unless another instance does.
    async fn one(&mut self, shard: &Shard) -> Result<(), SweepError> {
        let is_alone = self.rebuilder.lock(shard.name()).await?;
        let Swept { server, seen_until, is_here } = self.rebuilder.swept(shard.name()).await?;
        if is_here {
            // Nothing was lost since, whether or not the shard answers now.
            self.swept_on.insert(shard.name().to_owned(), server);
        }
        if !is_alone {
            return Ok(());
        }
        let before = self.progress.rebuilt();
        let horizon = shard.horizon().await?;
        match seen_until {
            Some(seen) if seen - MARGIN <= horizon => {
                let from = seen - if is_here { UNTOLD } else { MARGIN };
                self.between(shard, from, horizon).await?;
            }
            _ => self.everything(shard).await?,
        }
        self.rebuilder.set_swept(shard.name(), horizon).await?;
        self.swept_on.insert(shard.name().to_owned(), server);
        let rebuilt = self.progress.rebuilt() - before;
        if rebuilt > 0 {
            tracing::warn!(
                shard = shard.name(),
                rebuilt,
                "the coordinator's database had lost transactions; they were rebuilt from their fences"
            );
        }
        Ok(())
    }

    /// What was fenced from one time on and before another, by the shard's clock.
    async fn between(
        &mut self,
        shard: &Shard,
        mut from: Timestamp,
        until: Timestamp,
    ) -> Result<(), SweepError> {
        let mut window = WINDOW;
        while from < until {
            let began = Instant::now();
            let to = from.checked_add(window).unwrap_or(until).min(until);
            let fenced = shard.fenced_between(from, to).await?;
            for ids in fenced.chunks(CHUNK as usize) {
                self.chunk(ids.to_vec()).await?;
            }
            window = if fenced.len() < CHUNK as usize { window * 2 } else { WINDOW };
            from = to;
            if from < until {
                tokio::time::sleep(began.elapsed() * REST).await;
            }
        }
        Ok(())
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
    // Of what has branches elsewhere, the ledger's lead knows what the pivot has decided, or nobody here does.
    let lead = transaction.descriptor.lead();
    let pivot = lead.and_then(state);
    let others =
        transaction.descriptor.legs().map(|(index, _)| index).filter(|index| Some(*index) != lead).map(state);
    let is_in_part = transaction.descriptor.branches.iter().any(|branch| branch.leg().is_none());
    let phase = if is_in_part { rebuilt_in_part(pivot, others) } else { rebuilt(pivot, others) };
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
        phase,
        cause: cause.filter(|_| phase != Phase::Trying),
        reason: refusal.map(|refusal| refusal.code().to_owned()),
        is_decided: pivot.is_some_and(FenceState::is_final),
        transaction: Arc::new(transaction),
    })
}
