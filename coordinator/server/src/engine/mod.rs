//! A transaction's life, as straight-line code: [`create`](Engine::create), [`cancel`](Engine::cancel),
//! [`confirm_now`](Engine::confirm_now), and [`look`](Engine::look), which goes on with whatever a wake-up finds.
//!
//! What these await (a move of the store, a call to a participant) goes through batchers, so that a thousand lives share
//! one commit. Every life runs in a task of the engine: a client that hangs up stops nothing. There is one recovery path,
//! and it is the normal one: load the row, ask the protocol what is next, do it. What cannot be done now is put off with a
//! wake-up. Only the first row is tried for in a loop, since before it there is nothing to put off.
//!
//! The engine holds no truth. It may be killed between any two lines, and two of them may work on one transaction.

mod drive;
mod gates;
mod operate;
pub mod participants;
mod wake;

pub use participants::Participants;

use crate::{
    schedule::{Clock, Timers, Unbroken},
    store::{
        Advance, Advanced, Begin, Place, Record, Seen, Store, StoreError, TraceContext, begin,
        record::Standing,
    },
    telemetry::{Metrics, Traces},
};
use gates::Gates;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tcc_core::{Event, OnMaturity, Phase, Timestamp, Transaction, TransactionId};
use tcc_participant::{BreakerState, batch::Unknown, retry::Backoff};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

/// How many creations may be under way before further ones are turned away.
const CREATIONS: usize = 4_096;
/// How many wake-ups may be on their way from the ring to the gates at a time. The rest of what is due waits in the ring.
const LOOKS: usize = 4_096;
/// Recorded as the reason of a transaction whose branches were cancelled before they could be tried.
pub const ALREADY_CANCELLED: &str = "ALREADY_CANCELLED";
/// Work that has been failing for this long is shown as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// The engine. Shared by everything that serves.
pub struct Engine {
    store: Store,
    participants: Participants,
    timers: Timers,
    clock: Clock,
    unbroken: Unbroken,
    creations: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    gates: Arc<Gates>,
    tasks: TaskTracker,
    draining: AtomicBool,
    active: Mutex<HashMap<TransactionId, usize>>,
    metrics: Metrics,
    traces: OnceLock<Traces>,
}

/// Where a creation comes from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The server that has its key, if it has one.
    pub keyed_on: Option<Timestamp>,
    /// Where it waits in a burst.
    pub lane: u8,
    /// The caller in whose quota it counts, if it has one.
    pub counted_for: Option<String>,
    /// The request that it came with, if that is traced.
    pub trace: Option<TraceContext>,
}

/// What became of a creation.
#[derive(Debug, Clone)]
pub struct Created {
    /// The transaction as it stands: held, or decided already.
    pub record: Record,
    /// Its id was known before, with the same body.
    pub replayed: bool,
}

/// Why the engine did not do what a client asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Too much is under way. Nothing was done.
    #[error("too many creations are under way")]
    Overloaded,
    /// It is shutting down. Nothing was done.
    #[error("this instance is shutting down")]
    Draining,
    /// A participant that the transaction needs does not answer. Nothing was done.
    #[error("{participant} is not reachable")]
    Unreachable {
        /// Which.
        participant: String,
        /// Whether it is a shard of the ledger.
        is_shard: bool,
    },
    /// The id belongs to a transaction with another body.
    #[error("id {id} was used before with another {field}")]
    IdReused {
        /// Which id.
        id: TransactionId,
        /// The first field that differs.
        field: &'static str,
    },
    /// There is no such transaction.
    #[error("there is no hold {0}")]
    NotFound(TransactionId),
    /// The transaction is in a phase in which this cannot be asked any more.
    #[error("hold {} is {}", .record.id(), .record.standing.phase)]
    TooLate {
        /// What was asked.
        asked: Event,
        /// As it stands.
        record: Box<Record>,
    },
    /// The transaction has changed since the client saw it.
    #[error("hold {} has changed: it is {} now", .record.id(), .record.standing.phase)]
    Changed {
        /// As it stands.
        record: Box<Record>,
    },
    /// The time for waiting is over. It goes on.
    #[error("no answer in time; the outcome of {0} is not known yet")]
    OutcomeUnknown(TransactionId),
    /// The coordinator's database does not answer. What was asked may have been done.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Engine {
    /// Puts an engine together. It works once its timers fire into [`Engine::look`].
    #[must_use]
    pub fn new(
        store: Store,
        participants: Participants,
        timers: Timers,
        clock: Clock,
        unbroken: Unbroken,
    ) -> Arc<Self> {
        let gates = Gates::new(participants.len());
        let names: Vec<String> = (0..participants.len()).map(|index| participants.name(index)).collect();
        let metrics = Metrics::new(names.iter().map(String::as_str));
        Arc::new(Self {
            store,
            participants,
            timers,
            clock,
            unbroken,
            creations: Arc::new(Semaphore::new(CREATIONS)),
            looks: Arc::new(Semaphore::new(LOOKS)),
            gates,
            tasks: TaskTracker::new(),
            draining: AtomicBool::new(false),
            active: Mutex::default(),
            metrics,
            traces: OnceLock::new(),
        })
    }

    /// Tells what it does to somebody who traces, from now on.
    pub fn trace_to(&self, traces: Traces) {
        let _ = self.traces.set(traces);
    }

    /// The coordinator database's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The ring, for what others commit.
    #[must_use]
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// The store, for reads.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Who takes part.
    #[must_use]
    pub fn participants(&self) -> &Participants {
        &self.participants
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How many transactions are being worked on.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active.lock().expect("no holder panics").len()
    }

    /// How many wake-ups wait at a participant's gate.
    #[must_use]
    pub fn waiting(&self, participant: usize) -> usize {
        self.gates.waiting(participant)
    }

    /// How the breaker of a participant stands.
    #[must_use]
    pub fn breaker(&self, participant: usize) -> BreakerState {
        self.participants.breaker(participant)
    }

    /// Whether it takes no new work.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes no new work from now on.
    pub fn refuse_work(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Waits for what is under way, at most `patience`. What is left is found by its wake-ups.
    pub async fn drain(&self, patience: Duration) {
        self.refuse_work();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                active = self.active(),
                "stopping with work under way; it is resumed at the next start"
            );
        }
    }

    /// Records a transaction, tries its branches, and answers once it is held or refused.
    ///
    /// # Errors
    ///
    /// [`EngineError`]. After [`EngineError::OutcomeUnknown`] and [`EngineError::Store`] it may go on all the same; the same
    /// id finds it.
    pub async fn create(
        self: &Arc<Self>,
        transaction: Transaction,
        origin: Origin,
        patience: Duration,
    ) -> Result<Created, EngineError> {
        let created = self.create_at_once(transaction, origin, patience).await;
        self.metrics.created(&created);
        created
    }

    async fn create_at_once(
        self: &Arc<Self>,
        transaction: Transaction,
        origin: Origin,
        patience: Duration,
    ) -> Result<Created, EngineError> {
        if self.is_draining() {
            return Err(EngineError::Draining);
        }
        if !self.store.begin.is_reachable() {
            return Err(StoreError::Unreachable("it is not reachable".into()).into());
        }
        let admitted =
            Arc::clone(&self.creations).try_acquire_owned().map_err(|_| EngineError::Overloaded)?;
        let room = self.participants.enter(&transaction).ok_or(EngineError::Overloaded)?;
        if let Some((participant, is_shard)) = self.participants.unreachable(&transaction) {
            // What is known is answered whatever its participants do.
            return match self.store.get(transaction.id).await? {
                Some(record) => self.replay(&transaction, record, patience).await,
                None => Err(EngineError::Unreachable { participant, is_shard }),
            };
        }
        let transaction = Arc::new(transaction);
        let (answer, answered) = oneshot::channel();
        let Origin { keyed_on, lane, counted_for, trace } = origin;
        let place = Place { slot: self.timers.pick_slot(), lane };
        let begin = Begin { transaction: Arc::clone(&transaction), place, keyed_on, counted_for, trace };
        self.spawn(Arc::clone(self).begin(begin, (admitted, room), answer));
        let deadline = tokio::time::Instant::now() + patience;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(Begun::Stands(record))) => Ok(Created { record, replayed: false }),
            // From here on its row says how it goes.
            Ok(Ok(Begun::Slow)) => {
                let record = self.watch_try(transaction.id, deadline - tokio::time::Instant::now()).await?;
                Ok(Created { record, replayed: false })
            }
            Ok(Ok(Begun::Known)) => {
                let id = transaction.id;
                let record = self.store.get(id).await?.ok_or(EngineError::OutcomeUnknown(id))?;
                self.replay(&transaction, record, deadline - tokio::time::Instant::now()).await
            }
            Ok(Err(_)) | Err(_) => Err(EngineError::OutcomeUnknown(transaction.id)),
        }
    }

    /// Cancels before the due time, if it is `owner`'s (`None`: a hold), and still is as `seen` says. Answers CANCELLED only when it is; otherwise as it stands when
    /// `patience` ends.
    ///
    /// # Errors
    ///
    /// [`EngineError::NotFound`], [`EngineError::TooLate`], [`EngineError::Changed`], [`EngineError::Draining`],
    /// [`EngineError::Store`].
    pub async fn cancel(
        self: &Arc<Self>,
        id: TransactionId,
        owner: Option<&str>,
        seen: Option<Seen>,
        patience: Duration,
    ) -> Result<Record, EngineError> {
        let record = self.decide(id, owner, Event::CancelRequested, seen, patience).await?;
        match record.standing.phase {
            Phase::Cancelling | Phase::Cancelled => Ok(record),
            // Due, and to be released anyway: that is on its way.
            Phase::Trying | Phase::Held
                if record.transaction.descriptor.on_maturity == OnMaturity::Cancel =>
            {
                let at_rest = self.watch(id, patience, |standing| standing.phase.is_final()).await?;
                let record = at_rest.ok_or(EngineError::NotFound(id))?;
                match record.standing.phase {
                    Phase::Confirming | Phase::Confirmed => {
                        Err(EngineError::TooLate { asked: Event::CancelRequested, record: Box::new(record) })
                    }
                    _ => Ok(record),
                }
            }
            _ => Err(EngineError::TooLate { asked: Event::CancelRequested, record: Box::new(record) }),
        }
    }

    /// Confirms now, if it is `owner`'s (`None`: a hold), and still is as `seen` says. Answers CONFIRMED only when it is; otherwise as it stands when `patience` ends.
    ///
    /// # Errors
    ///
    /// As [`Engine::cancel`].
    pub async fn confirm_now(
        self: &Arc<Self>,
        id: TransactionId,
        owner: Option<&str>,
        seen: Option<Seen>,
        patience: Duration,
    ) -> Result<Record, EngineError> {
        let record = self.decide(id, owner, Event::ConfirmRequested, seen, patience).await?;
        match record.standing.phase {
            Phase::Confirming | Phase::Confirmed => Ok(record),
            _ => Err(EngineError::TooLate { asked: Event::ConfirmRequested, record: Box::new(record) }),
        }
    }

    /// A transaction when it is final, or as it stands when `patience` ends.
    ///
    /// # Errors
    ///
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn until_final(&self, id: TransactionId, patience: Duration) -> Result<Record, EngineError> {
        let record = self.watch(id, patience, |standing| standing.phase.is_final()).await?;
        record.ok_or(EngineError::NotFound(id))
    }

    /// From the first row to HELD or a refusal, and on from there.
    async fn begin(
        self: Arc<Self>,
        begin: Begin,
        admitted: (OwnedSemaphorePermit, Vec<OwnedSemaphorePermit>),
        answer: oneshot::Sender<Begun>,
    ) {
        let Begin { transaction, place, trace, .. } = begin.clone();
        let id = transaction.id;
        let _active = self.activate(id);
        let mut attempts = 0;
        let begun = loop {
            match self.store.begin.call(begin.clone()).await {
                Ok(begun) => break begun,
                // Nobody waits any more, and whether it was recorded is not known: if so, its wake-up finds it.
                Err(_) if answer.is_closed() => return,
                Err(unknown) => tracing::debug!(%id, %unknown, "beginning again"),
            }
            tokio::time::sleep(Backoff::CONNECTION.delay(attempts)).await;
            attempts += 1;
        };
        let (record, wake_at) = match begun {
            Some(begun) => {
                (Record { transaction, place, standing: Standing::begun(begun.created_at) }, begun.wake_at)
            }
            // An attempt without an answer had recorded it after all. Nothing is asked of a participant before that is sure.
            None if attempts > 0 => match self.store.get_committed(id).await {
                Ok(Some(record))
                    if record.transaction == transaction && record.standing.phase == Phase::Trying =>
                {
                    let wake_at = begin::wake_at(&record);
                    (record, wake_at)
                }
                _ => {
                    let _ = answer.send(Begun::Known);
                    return;
                }
            },
            None => {
                let _ = answer.send(Begun::Known);
                return;
            }
        };
        self.timers.arm(wake_at, id, record.place);
        let life = drive::Life::new(&self, record, wake_at);
        let life = life.try_branches().await;
        drop(admitted);
        if let (Some(traces), Some(life), Some(request)) = (self.traces.get(), &life, trace) {
            traces.tried(&life.record(), request);
        }
        // A client that no longer waits is no reason to stop.
        let _ = answer.send(life.as_ref().map_or(Begun::Slow, |life| Begun::Stands(life.record())));
        if let Some(life) = life {
            life.drive().await;
        }
    }

    /// Asks the row for an event on a client's behalf, and sees it through.
    async fn decide(
        self: &Arc<Self>,
        id: TransactionId,
        owner: Option<&str>,
        event: Event,
        seen: Option<Seen>,
        patience: Duration,
    ) -> Result<Record, EngineError> {
        if self.is_draining() {
            return Err(EngineError::Draining);
        }
        let deadline = tokio::time::Instant::now() + patience;
        let (answer, answered) = oneshot::channel();
        let advance = Advance {
            failed: true,
            only_from: seen.map(|seen| seen.phase),
            owner: owner.map(str::to_owned),
            ..Advance::new(id, event)
        };
        self.spawn(Arc::clone(self).move_on_request(advance, answer));
        let is_owned = |record: &Record| record.transaction.descriptor.owner.as_deref() == owner;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(Ok(Some(record)))) if record.standing.phase.is_final() => return Ok(record),
            Ok(Ok(Ok(None))) => {
                if let Some(seen) = seen {
                    let record =
                        self.store.get(id).await?.filter(is_owned).ok_or(EngineError::NotFound(id))?;
                    if record.standing.seen() != seen {
                        return Err(EngineError::Changed { record: Box::new(record) });
                    }
                }
            }
            // It was moved by this request, but not to its end, or not in time: its row says how it goes.
            Ok(Ok(Ok(Some(_)))) | Err(_) => {}
            Ok(Ok(Err(unknown))) => return Err(StoreError::Unreachable(unknown.to_string()).into()),
            Ok(Err(_)) => return Err(EngineError::OutcomeUnknown(id)),
        }
        let goes_on = |standing: &Standing| !matches!(standing.phase, Phase::Confirming | Phase::Cancelling);
        let record = self.watch(id, deadline - tokio::time::Instant::now(), goes_on).await?;
        record.filter(is_owned).ok_or(EngineError::NotFound(id))
    }

    /// Moves a row on a client's behalf, and sees it through, whether or not the client still waits. Answers the row as it
    /// left it, if it moved it.
    async fn move_on_request(
        self: Arc<Self>,
        advance: Advance,
        answer: oneshot::Sender<Result<Option<Record>, Unknown>>,
    ) {
        let id = advance.id;
        let _active = self.activate(id);
        let moved = match self.store.advance.call(advance).await {
            Ok(Some(Advanced { standing, place, transaction: Some(transaction), wake_at: Some(at) })) => {
                let from = if standing.held_at.is_some() { Phase::Held } else { Phase::Trying };
                self.metrics.moved(from, &standing);
                self.timers.arm(at, id, place);
                let life = drive::Life::new(&self, Record { transaction, place, standing }, at);
                Ok(Some(life.drive().await.record))
            }
            Ok(_) => Ok(None),
            Err(unknown) => Err(unknown),
        };
        let _ = answer.send(moved);
    }

    /// What is there under a creation's id: the same body is answered as it stands, another one is refused.
    async fn replay(
        &self,
        asked: &Transaction,
        found: Record,
        patience: Duration,
    ) -> Result<Created, EngineError> {
        let id = asked.id;
        if let Some(field) = asked.descriptor.first_difference(&found.transaction.descriptor) {
            return Err(EngineError::IdReused { id, field });
        }
        let record = self.watch_try(id, patience).await?;
        Ok(Created { record, replayed: true })
    }

    /// Waits until Try has an answer.
    async fn watch_try(&self, id: TransactionId, patience: Duration) -> Result<Record, EngineError> {
        let record = self.watch(id, patience, |standing| standing.phase != Phase::Trying).await?;
        record.filter(|record| record.standing.phase != Phase::Trying).ok_or(EngineError::OutcomeUnknown(id))
    }

    /// Reads a row until it is as wanted or the patience ends, less and less often.
    async fn watch(
        &self,
        id: TransactionId,
        patience: Duration,
        wanted: impl Fn(&Standing) -> bool,
    ) -> Result<Option<Record>, EngineError> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut pause = Duration::from_millis(2);
        loop {
            let record = self.store.get(id).await?;
            let now = tokio::time::Instant::now();
            match record {
                Some(record) if !wanted(&record.standing) && now < deadline => {
                    tokio::time::sleep(pause.min(deadline - now)).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                record => return Ok(record),
            }
        }
    }

    fn spawn(&self, life: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(life);
    }

    fn is_active(&self, id: TransactionId) -> bool {
        self.active.lock().expect("no holder panics").contains_key(&id)
    }

    fn activate(self: &Arc<Self>, id: TransactionId) -> Active {
        *self.active.lock().expect("no holder panics").entry(id).or_default() += 1;
        Active { engine: Arc::clone(self), id }
    }
}

/// How a creation began.
enum Begun {
    /// Try has an answer: as it stands.
    Stands(Record),
    /// Try has no answer yet.
    Slow,
    /// The id was there before.
    Known,
}

/// A transaction is being worked on as long as this lives.
struct Active {
    engine: Arc<Engine>,
    id: TransactionId,
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut active = self.engine.active.lock().expect("no holder panics");
        if let Some(count) = active.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                active.remove(&self.id);
            }
        }
    }
}
