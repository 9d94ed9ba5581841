//! The handle of one shard: what the engine, the API and the audit call.

use crate::{
    audit::{self, Moved, Replay, ShardAudit, ShardFinding, Slice},
    books::{Account, AccountState, Answer, Op},
    executor::ShardExecutor,
    heads::Heads,
    reads::{
        self, BalanceRow, BranchRow, Branches, FenceRow, Holdings, Listed, Listing, PostingRow, Postings,
        ReadError,
    },
};
use deadpool_postgres::{Object, Pool, PoolError, Status};
use futures::future::BoxFuture;
use jiff::SignedDuration;
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tcc_core::{AccountId, Currency, Outcome, Timestamp, Transaction};
use tcc_participant::{
    Batcher, BreakerState, Call, Participant, Postgres,
    batch::{Limits, Unknown},
};
use uuid::Uuid;

/// What a client asks for may take the server so long.
const LONGEST_READ: Duration = Duration::from_secs(10);
/// How often a read of a balance looks whether what was under way is written, and how long it waits in between.
const HORIZON_LOOKS: u32 = 100;
const HORIZON_PAUSE: Duration = Duration::from_millis(20);
/// What began so shortly before the horizon may not be known yet.
const UNTOLD: SignedDuration = SignedDuration::from_millis(250);

/// One shard, in-process. Clones share it.
#[derive(Clone)]
pub struct Shard {
    name: Arc<str>,
    operations: Batcher<Op, Answer>,
    /// For what a client waits for: it ends at the server, too, when nobody can be waiting any more.
    reads: Pool,
    /// For the audit and the sweep.
    long_reads: Pool,
    buckets: usize,
    heads: Heads,
    drained: Arc<AtomicBool>,
}

/// Why an account could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// It may have happened; do it again.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// It cannot happen here; nothing was changed.
    #[error("shard {shard} cannot do this: {why}")]
    Broken {
        /// Which.
        shard: String,
        /// Why, for people.
        why: String,
    },
}

impl Shard {
    /// Starts the shard's executors, which connect by themselves and keep trying. They work only on a server that has these
    /// heads.
    #[must_use]
    pub fn start(name: &str, database: &Postgres, buckets: HashSet<u16>, heads: Heads) -> Self {
        let served = buckets.len();
        let buckets = Arc::new(buckets);
        // A second one would mostly wait for the accounts that the first one has locked.
        let executors = vec![ShardExecutor::new(name, database, buckets, heads.clone())];
        let operations =
            Batcher::start(&format!("shard {name}"), executors, Limits { breaks: true, ..Limits::default() });
        let reads = database.pool("tcc-shard-reads", Some(LONGEST_READ));
        let long_reads = database.pool("tcc-shard-audit", None);
        let drained = Arc::default();
        Self { name: name.into(), operations, reads, long_reads, buckets: served, heads, drained }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it must have, and whether it has lost any of it.
    #[must_use]
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// Looks whether the shard has what it answered, as far as this process knows.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn check_heads(&self) -> Result<(), ReadError> {
        let client = self.reader().await?;
        if let Some(what) = self.heads.check(&client).await.map_err(|e| self.unreachable(e.to_string()))? {
            tracing::error!(shard = self.name(), what, "a shard has lost commits; work on it is stopped");
        }
        Ok(())
    }

    /// How its connections for reading are used.
    #[must_use]
    pub fn reading(&self) -> Status {
        self.reads.status()
    }

    /// Whether an operator has stopped work on it.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// An operator stops work on it, or lets it go on. What is under way ends as it would.
    pub fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::Relaxed);
    }

    /// Tells somebody how long each batch of operations takes from now on.
    pub fn timed_by(&self, timer: impl Fn(Duration) + Send + Sync + 'static) {
        self.operations.timed_by(timer);
    }

    /// How many operations wait for their batch.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.operations.queued()
    }

    /// How many buckets of accounts it serves.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.buckets
    }

    /// Opens an account, or answers the one there is, whatever its currency.
    ///
    /// # Errors
    ///
    /// [`ShardError`].
    pub async fn open(&self, id: AccountId, currency: Currency) -> Result<Account, ShardError> {
        match self.operations.call(Op::Open(id, currency)).await? {
            Answer::Account(account) => Ok(account),
            Answer::LeftOut => Err(self.left_out()),
            other => Err(self.broken(other)),
        }
    }

    /// Blocks, unblocks or closes an account, and answers it as it stands then: if that is in another state, it cannot be in this
    /// one. `None`: there is no such account.
    ///
    /// # Errors
    ///
    /// [`ShardError`].
    pub async fn set_state(&self, id: AccountId, state: AccountState) -> Result<Option<Account>, ShardError> {
        match self.operations.call(Op::SetState(id, state)).await? {
            Answer::Stands(account) => Ok(account),
            Answer::LeftOut => Err(self.left_out()),
            other => Err(self.broken(other)),
        }
    }

    /// Issues units to an account or burns them, once for the transaction's id. Answers the account as it is after that.
    ///
    /// # Errors
    ///
    /// [`ShardError`]. A refusal is an outcome.
    pub async fn issue(
        &self,
        transaction: Arc<Transaction>,
    ) -> Result<(Outcome, Option<Account>), ShardError> {
        match self.operations.call(Op::Issue(transaction)).await? {
            Answer::Issued(outcome, account) => Ok((outcome, account)),
            Answer::LeftOut => Err(self.left_out()),
            other => Err(self.broken(other)),
        }
    }

    /// Reads an account.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn account(&self, id: &AccountId) -> Result<Option<Account>, ReadError> {
        let client = self.reader().await?;
        reads::account(&client, id).await.map_err(|cause| self.unreachable(cause))
    }

    /// Reads postings of an account, oldest first.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn postings(&self, id: &AccountId, which: Postings) -> Result<Vec<PostingRow>, ReadError> {
        let client = self.reader().await?;
        reads::postings(&client, id, which).await.map_err(|cause| self.unreachable(cause))
    }

    /// What an account had at a time, by the shard's clock, for good: waits until nothing can be recorded any more at that time
    /// or before it. The inner `None`: there was no posting. The outer one: something that began before that time is still being
    /// written, or the time has not come.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn balance_at(
        &self,
        id: &AccountId,
        at: Timestamp,
    ) -> Result<Option<Option<BalanceRow>>, ReadError> {
        let mut looks = 0;
        while self.horizon().await? - UNTOLD <= at {
            looks += 1;
            if looks > HORIZON_LOOKS {
                return Ok(None);
            }
            tokio::time::sleep(HORIZON_PAUSE).await;
        }
        let client = self.reader().await?;
        reads::balance_at(&client, id, at).await.map(Some).map_err(|cause| self.unreachable(cause))
    }

    /// Reads an account and at most `limit` of the open debits that make up what it holds, in one snapshot.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn holdings(&self, id: &AccountId, limit: usize) -> Result<Option<Holdings>, ReadError> {
        let mut client = self.reader().await?;
        reads::holdings(&mut client, id, limit).await.map_err(|cause| self.unreachable(cause))
    }

    /// Lists the transactions of an account, the newest ids first, as far as there is time.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn listed(&self, which: Listing<'_>) -> Result<Listed, ReadError> {
        let mut client = self.reader().await?;
        reads::listed(&mut client, which).await.map_err(|cause| self.unreachable(cause))
    }

    /// Reads fences, in the order of their keys.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn branches(&self, which: Branches<'_>) -> Result<Vec<BranchRow>, ReadError> {
        let mut client = self.long_reader().await?;
        reads::branches(&mut client, which).await.map_err(|cause| self.unreachable(cause))
    }

    /// Reads a transaction's fences, in the order of its branches.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn fences(&self, transaction: Uuid) -> Result<Vec<FenceRow>, ReadError> {
        let client = self.reader().await?;
        reads::fences(&client, transaction).await.map_err(|cause| self.unreachable(cause))
    }

    /// Reads a transaction's postings on an account that were recorded within seconds of these times.
    ///
    /// # Errors
    ///
    /// [`ReadError`], also if that takes longer than two seconds.
    pub async fn postings_near(
        &self,
        id: &AccountId,
        transaction: Uuid,
        times: [Timestamp; 2],
    ) -> Result<Vec<PostingRow>, ReadError> {
        let mut client = self.reader().await?;
        reads::postings_near(&mut client, id, transaction, times)
            .await
            .map_err(|cause| self.unreachable(cause))
    }

    /// Checks the shard's books against themselves, in one consistent snapshot. Tells how many of how many checks are done.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn audit(&self, told: impl Fn(usize, usize)) -> Result<ShardAudit, ReadError> {
        let mut client = self.long_reader().await?;
        audit::run(&mut client, told).await.map_err(|cause| self.unreachable(cause.to_string()))
    }

    /// A time before the first posting.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn first_posting(&self) -> Result<Timestamp, ReadError> {
        let client = self.long_reader().await?;
        audit::start(&client).await.map_err(|cause| self.unreachable(cause))
    }

    /// How many postings and fences were written after one time, up to another, by the shard's clock.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn count_moved(&self, from: Timestamp, until: Timestamp) -> Result<i64, ReadError> {
        let mut client = self.long_reader().await?;
        audit::count(&mut client, from, until).await.map_err(|cause| self.unreachable(cause))
    }

    /// Checks what moved in a slice of time that lies behind the [horizon](Self::horizon).
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn audit_moved(&self, slice: Slice) -> Result<Moved, ReadError> {
        let mut client = self.long_reader().await?;
        audit::moved(&mut client, slice).await.map_err(|cause| self.unreachable(cause))
    }

    /// Checks accounts against their newest postings and the map of buckets.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn audit_accounts(&self, ids: &[String]) -> Result<Vec<ShardFinding>, ReadError> {
        let mut client = self.long_reader().await?;
        audit::accounts(&mut client, ids).await.map_err(|cause| self.unreachable(cause))
    }

    /// Rebuilds every balance as it was at a time, or as it is now, from postings alone, and compares. Tells how many of how
    /// many accounts are done.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn replay(
        &self,
        at: Option<Timestamp>,
        told: impl Fn(usize, usize),
    ) -> Result<Replay, ReadError> {
        let mut client = self.long_reader().await?;
        audit::replay(&mut client, at, told).await.map_err(|cause| self.unreachable(cause))
    }

    /// Makes reads of what was written since a time read few pages.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn summarize(&self, since: Timestamp) -> Result<(), ReadError> {
        let client = self.long_reader().await?;
        let summarized = async {
            reads::summarize(&client, "posting", since).await?;
            reads::summarize(&client, "branch", since).await
        };
        summarized.await.map_err(|e| self.unreachable(e.to_string()))
    }

    /// The shard's clock.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn now(&self) -> Result<Timestamp, ReadError> {
        let client = self.reader().await?;
        reads::now(&client).await.map_err(|cause| self.unreachable(cause))
    }

    /// A time, by the shard's clock, from which on fences and postings may be written that are not visible yet.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn horizon(&self) -> Result<Timestamp, ReadError> {
        let client = self.long_reader().await?;
        reads::horizon(&client).await.map_err(|cause| self.unreachable(cause))
    }

    /// The transactions of fences that were written from one time on and before another, by the shard's clock: one for each
    /// fence.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn fenced_between(&self, from: Timestamp, until: Timestamp) -> Result<Vec<Uuid>, ReadError> {
        let mut client = self.long_reader().await?;
        reads::fenced_between(&mut client, from, until).await.map_err(|cause| self.unreachable(cause))
    }

    /// The transactions of fences with ids below one, the highest first: at most `limit`, one for each fence.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub async fn fenced_before(&self, until: Uuid, limit: i64) -> Result<Vec<Uuid>, ReadError> {
        let client = self.long_reader().await?;
        reads::fenced_before(&client, until, limit).await.map_err(|cause| self.unreachable(cause))
    }

    /// A connection for reading, of a server whose identity the executors have checked. What has lost commits can be read.
    async fn reader(&self) -> Result<Object, ReadError> {
        self.connection(&self.reads).await
    }

    async fn long_reader(&self) -> Result<Object, ReadError> {
        self.connection(&self.long_reads).await
    }

    async fn connection(&self, pool: &Pool) -> Result<Object, ReadError> {
        if !self.operations.is_connected() && self.heads.lost().is_none() {
            return Err(self.unreachable("it is not reachable".into()));
        }
        pool.get().await.map_err(|e: PoolError| self.unreachable(e.to_string()))
    }

    fn unreachable(&self, cause: String) -> ReadError {
        ReadError::Unreachable { shard: self.name.to_string(), cause }
    }

    fn left_out(&self) -> ShardError {
        let why = "somebody else has held a row that it needs for long".to_owned();
        Unknown { target: Arc::clone(&self.name), why, is_rejected: false }.into()
    }

    fn broken(&self, answer: Answer) -> ShardError {
        let why = match answer {
            Answer::Broken(why) => why,
            other => format!("an answer to another question: {other:?}"),
        };
        ShardError::Broken { shard: self.name.to_string(), why }
    }
}

impl Participant for Shard {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_reachable(&self) -> bool {
        self.operations.is_reachable() && self.heads.lost().is_none() && !self.is_drained()
    }

    fn trouble(&self) -> Option<String> {
        self.operations.trouble()
    }

    fn breaker(&self) -> BreakerState {
        if self.is_reachable() { self.operations.breaker() } else { BreakerState::Open }
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            match self.operations.call(Op::Call(call)).await {
                Ok(Answer::Outcomes(outcomes)) => outcomes,
                Ok(Answer::LeftOut) => vec![Outcome::Unknown(self.left_out().to_string())],
                Ok(other) => vec![Outcome::Failed(self.broken(other).to_string())],
                Err(unknown) if unknown.is_rejected => vec![Outcome::Failed(unknown.to_string())],
                Err(unknown) => vec![Outcome::Unknown(unknown.to_string())],
            }
        })
    }
}
