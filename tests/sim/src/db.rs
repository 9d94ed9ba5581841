//! The coordinators' database in memory: its statements as they are written in SQL, row by row, and its log, of which the
//! end can be lost.

use crate::{
    bugs::Bug,
    faults::{Fault, Step},
    world::World,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tcc_coordinator::store::{
    Advance, Advanced, Begin, Defer, Get, Place, RETRY_INTERVAL, Record, WAKE_HORIZON, Woken,
    begin::Begun,
    defer::Deferred,
    rebuild::{Rebuild, Rebuilt},
    record::Standing,
};
use tcc_core::{Attention, Cause, Event, OnMaturity, Phase, Timestamp, TransactionId};
use tcc_participant::{Executor, Failure};
use tokio::time::sleep;

/// A row of `wakeup`, in the order of its time.
pub type Wakeup = (i64, TransactionId, u8);

/// The tables.
pub struct Db {
    /// `transaction`.
    pub rows: BTreeMap<TransactionId, Record>,
    /// `wakeup`.
    pub wakeups: BTreeSet<Wakeup>,
    /// `slot`.
    pub slots: Vec<SlotRow>,
    /// `instance`: until when each lease lasts.
    pub leases: BTreeMap<usize, Timestamp>,
    /// `sweep`, of each shard.
    pub swept: Vec<Option<Timestamp>>,
    /// `attention`.
    attention: BTreeMap<TransactionId, Note>,
    bug: Option<Bug>,
    /// When its server started.
    pub server: Timestamp,
    /// How to take back each commit, the latest last.
    log: Vec<Vec<Undo>>,
    /// Which transactions were ever CANCELLING or CANCELLED: not a table, so it is not lost.
    pub ever_cancelled: BTreeSet<TransactionId>,
}

/// A row of `slot`.
#[derive(Debug, Clone, Copy)]
pub struct SlotRow {
    /// Who serves it.
    pub owner: Option<usize>,
    /// How often it has changed hands.
    pub epoch: i64,
    /// Up to when everything was looked at.
    pub watermark_us: i64,
}

#[derive(Debug, Clone, Copy)]
struct Note {
    since: Timestamp,
    attempts: u32,
    next_try: Option<Timestamp>,
}

enum Undo {
    Row(TransactionId, Option<Record>),
    Wakeup(Wakeup),
    Attention(TransactionId, Option<Note>),
    Slot(u8, SlotRow),
    Swept(usize, Option<Timestamp>),
}

/// So many commits can be lost at most.
const LOG: usize = 500;

impl Db {
    /// Empty tables.
    #[must_use]
    pub fn new(now: Timestamp, bug: Option<Bug>) -> Self {
        let slot = SlotRow { owner: None, epoch: 0, watermark_us: now.as_microsecond() };
        Self {
            rows: BTreeMap::new(),
            wakeups: BTreeSet::new(),
            slots: vec![slot; 256],
            leases: BTreeMap::new(),
            swept: vec![None; 2],
            attention: BTreeMap::new(),
            bug,
            server: now,
            log: Vec::new(),
            ever_cancelled: BTreeSet::new(),
        }
    }

    /// Forgets the last commits, as another server that takes over.
    pub fn lose(&mut self, commits: usize, now: Timestamp) {
        for commit in self.log.split_off(self.log.len().saturating_sub(commits)).into_iter().rev() {
            for undo in commit.into_iter().rev() {
                match undo {
                    Undo::Row(id, Some(row)) => drop(self.rows.insert(id, row)),
                    Undo::Row(id, None) => drop(self.rows.remove(&id)),
                    Undo::Wakeup(wakeup) => drop(self.wakeups.remove(&wakeup)),
                    Undo::Attention(id, Some(note)) => drop(self.attention.insert(id, note)),
                    Undo::Attention(id, None) => drop(self.attention.remove(&id)),
                    Undo::Slot(slot, row) => self.slots[usize::from(slot)] = row,
                    Undo::Swept(shard, at) => self.swept[shard] = at,
                }
            }
        }
        self.server = now;
    }

    /// A commit begins. One that wrote nothing is none.
    pub fn begin_commit(&mut self) {
        if self.log.last().is_some_and(Vec::is_empty) {
            return;
        }
        if self.log.len() >= LOG {
            self.log.remove(0);
        }
        self.log.push(Vec::new());
    }

    fn logged(&mut self, undo: Undo) {
        self.log.last_mut().expect("a commit has begun").push(undo);
    }

    fn write(&mut self, record: Record) {
        let id = record.id();
        if matches!(record.standing.phase, Phase::Cancelling | Phase::Cancelled) {
            self.ever_cancelled.insert(id);
        }
        let before = self.rows.insert(id, record);
        self.logged(Undo::Row(id, before));
    }

    fn wake(&mut self, at: Timestamp, id: TransactionId, place: Place) {
        let wakeup = (at.as_microsecond(), id, place.slot);
        if self.wakeups.insert(wakeup) {
            self.logged(Undo::Wakeup(wakeup));
        }
    }

    fn annotate(&mut self, id: TransactionId, note: Option<Note>) {
        let before = match note {
            Some(note) => self.attention.insert(id, note),
            None => self.attention.remove(&id),
        };
        self.logged(Undo::Attention(id, before));
    }

    /// Writes a row of `slot`.
    pub fn set_slot(&mut self, slot: u8, row: SlotRow) {
        let before = std::mem::replace(&mut self.slots[usize::from(slot)], row);
        self.logged(Undo::Slot(slot, before));
    }

    /// Writes a row of `sweep`.
    pub fn set_swept(&mut self, shard: usize, at: Timestamp) {
        let before = self.swept[shard].replace(at);
        self.logged(Undo::Swept(shard, before));
    }

    /// Wake-ups of some slots from a time on.
    #[must_use]
    pub fn wakeups_of(&self, slot: u8, from_us: i64, until_us: i64) -> Vec<Wakeup> {
        let nil = TransactionId::mint(Timestamp::UNIX_EPOCH, [0; 10]);
        let range = self.wakeups.range((from_us, nil, 0)..(until_us, nil, 0));
        range.filter(|(_, _, of)| *of == slot).copied().collect()
    }

    fn rebuild_one(&mut self, rebuild: &Rebuild, now: Timestamp) -> Option<Rebuilt> {
        let id = rebuild.transaction.id;
        if self.rows.contains_key(&id) {
            return None;
        }
        let phase = rebuild.phase;
        let descriptor = &rebuild.transaction.descriptor;
        let is_natural = matches!(
            (phase, descriptor.on_maturity),
            (Phase::Confirming, OnMaturity::Confirm) | (Phase::Cancelling, OnMaturity::Cancel)
        );
        let guess = if is_natural && descriptor.due_at <= now { Cause::Matured } else { Cause::Requested };
        let standing = Standing {
            phase,
            cause: (phase != Phase::Held).then_some(rebuild.cause.unwrap_or(guess)),
            reason: rebuild.reason.clone(),
            attention: Attention::None,
            flipped: rebuild.is_decided,
            created_at: now,
            held_at: matches!(phase, Phase::Held | Phase::Confirming).then_some(now),
            decided_at: (phase != Phase::Held).then_some(now),
            settled_at: None,
        };
        let (transaction, place) = (Arc::clone(&rebuild.transaction), rebuild.place);
        let wake_at =
            if phase == Phase::Held { descriptor.due_at.max(now).min(now + WAKE_HORIZON) } else { now };
        self.write(Record { transaction, place, standing });
        self.wake(wake_at, id, place);
        Some(Rebuilt { id, place, wake_at })
    }
}

/// A statement on the tables.
pub trait Statement: Clone + Send + Sync + 'static {
    /// What it answers.
    type Answer: Send + 'static;

    /// Which step it is.
    fn step(&self) -> Step;

    /// Does it.
    fn run(&self, db: &mut Db, now: Timestamp) -> Self::Answer;
}

impl Statement for Begin {
    type Answer = Option<Begun>;

    fn step(&self) -> Step {
        Step::Begin
    }

    fn run(&self, db: &mut Db, now: Timestamp) -> Option<Begun> {
        let id = self.transaction.id;
        let is_other = |row: &Record| row.transaction.encoded != self.transaction.encoded;
        let overwrites = db.bug == Some(Bug::IdIgnoresBody) && db.rows.get(&id).is_some_and(is_other);
        if db.rows.contains_key(&id) && !overwrites {
            return None;
        }
        let wake_at = self.transaction.descriptor.due_at.max(now).min(now + RETRY_INTERVAL);
        let (transaction, place) = (Arc::clone(&self.transaction), self.place);
        db.write(Record { transaction, place, standing: Standing::begun(now) });
        db.wake(wake_at, id, place);
        Some(Begun { created_at: now, wake_at })
    }
}

impl Statement for Advance {
    type Answer = Option<Advanced>;

    fn step(&self) -> Step {
        Step::Advance(self.event)
    }

    fn run(&self, db: &mut Db, now: Timestamp) -> Option<Advanced> {
        let Record { transaction, place, standing: before } = db.rows.get(&self.id)?.clone();
        let target = match db.bug {
            Some(Bug::MoveWithoutGuard) => self.event.target(),
            _ => before.phase.after(self.event)?,
        };
        let flip = self.event.is_flip();
        let (due_at, on_maturity) = (transaction.descriptor.due_at, transaction.descriptor.on_maturity);
        let is_in_time = due_at > now;
        let may = match self.event {
            Event::CancelRequested => is_in_time,
            Event::ConfirmRequested => {
                before.attention < Attention::Parked && (on_maturity == OnMaturity::Confirm || is_in_time)
            }
            Event::Tried | Event::TimedOut => self.server == Some(db.server),
            _ => true,
        };
        let is_elsewhere = self.only_from.is_some_and(|phase| phase != before.phase);
        if !may || is_elsewhere || (flip && before.flipped) {
            return None;
        }
        let matured = (target != Phase::Held).then_some(Cause::Matured);
        let standing = Standing {
            phase: target,
            cause: self.event.cause().or(before.cause).or(matured),
            reason: self.reason.clone().or(before.reason),
            attention: Attention::None,
            flipped: before.flipped || flip,
            created_at: before.created_at,
            held_at: if target == Phase::Held { Some(now) } else { before.held_at },
            decided_at: match target {
                Phase::Confirming | Phase::Cancelling => Some(now),
                _ if target.is_final() => before.decided_at.or(self.found_due_at).or(Some(now)),
                _ => None,
            },
            settled_at: target.is_final().then_some(now),
        };
        let wake_at = match target {
            Phase::Held => Some(due_at.max(now).min(now + WAKE_HORIZON)),
            Phase::Confirming | Phase::Cancelling => Some(now + RETRY_INTERVAL),
            _ => None,
        };
        db.write(Record { transaction: Arc::clone(&transaction), place, standing: standing.clone() });
        let is_forgotten = db.bug == Some(Bug::HeldWithoutWakeUp) && target == Phase::Held;
        if let Some(at) = wake_at.filter(|at| Some(*at) != self.open && !is_forgotten) {
            db.wake(at, self.id, place);
        }
        if self.failed {
            db.annotate(self.id, None);
        }
        let asked = matches!(self.event, Event::CancelRequested | Event::ConfirmRequested);
        Some(Advanced { standing, place, transaction: asked.then_some(transaction), wake_at })
    }
}

impl Statement for TransactionId {
    type Answer = Option<Woken>;

    fn step(&self) -> Step {
        Step::Wake
    }

    fn run(&self, db: &mut Db, now: Timestamp) -> Option<Woken> {
        let record = db.rows.get(self)?.clone();
        let standing = &record.standing;
        if standing.phase.is_final() || standing.attention >= Attention::Parked {
            return None;
        }
        let note = db.attention.get(self).filter(|_| standing.attention != Attention::None);
        let ahead = Duration::from_secs(if db.bug == Some(Bug::DueByAnotherClock) { 2 } else { 0 });
        Some(Woken {
            is_due: record.transaction.descriptor.due_at <= now + ahead,
            is_put_off: note.and_then(|note| note.next_try).is_some_and(|next| next > now),
            attempts: note.map_or(0, |note| note.attempts),
            failing_since: note.map(|note| note.since),
            now,
            record,
        })
    }
}

impl Statement for Defer {
    type Answer = Deferred;

    fn step(&self) -> Step {
        Step::Defer
    }

    fn run(&self, db: &mut Db, now: Timestamp) -> Deferred {
        let record = db.rows.get(&self.id)?.clone();
        let standing = record.standing.clone();
        let due_at = record.transaction.descriptor.due_at;
        let waits = standing.phase == Phase::Held && due_at > now;
        let is_meant = self.phase.map_or(!waits, |phase| phase == standing.phase);
        if standing.phase.is_final() || standing.attention >= Attention::Parked || !is_meant {
            return None;
        }
        let wake_at = self.delay.map(|delay| now + delay);
        let wake_at = wake_at.map(|at| if waits { at.min(due_at) } else { at });
        let (id, place) = (record.id(), record.place);
        db.write(Record { standing: Standing { attention: self.attention, ..standing }, ..record });
        if self.attention != Attention::None {
            let before = db.attention.get(&id).copied();
            let note = Note {
                since: before.map_or(now, |note| note.since),
                attempts: before.map_or(0, |note| note.attempts) + u32::from(self.is_fault),
                next_try: wake_at,
            };
            db.annotate(id, Some(note));
        }
        if let Some(at) = wake_at {
            db.wake(at, id, place);
        }
        Some(wake_at)
    }
}

impl Statement for Get {
    type Answer = Option<Record>;

    fn step(&self) -> Step {
        Step::Get
    }

    fn run(&self, db: &mut Db, _: Timestamp) -> Option<Record> {
        db.rows.get(&self.id).cloned()
    }
}

impl Statement for Rebuild {
    type Answer = Option<Rebuilt>;

    fn step(&self) -> Step {
        Step::Rebuild
    }

    fn run(&self, db: &mut Db, now: Timestamp) -> Option<Rebuilt> {
        db.rebuild_one(self, now)
    }
}

/// One connection of an instance to the tables, over which everything can go wrong.
pub struct Connection<S> {
    world: Arc<World>,
    instance: usize,
    /// The server that it is connected to.
    server: Timestamp,
    statement: std::marker::PhantomData<fn() -> S>,
}

impl<S: Statement> Connection<S> {
    /// Of an instance.
    #[must_use]
    pub fn new(world: &Arc<World>, instance: usize) -> Self {
        let server = world.db().server;
        Self { world: Arc::clone(world), instance, server, statement: std::marker::PhantomData }
    }

    /// Does a batch in one commit, unless the server has changed: then it was never sent.
    fn commit(world: &World, server: Timestamp, batch: &[S]) -> Option<Vec<S::Answer>> {
        let now = world.now();
        let mut db = world.db();
        if db.server != server {
            return None;
        }
        db.begin_commit();
        Some(batch.iter().map(|statement| statement.run(&mut db, now)).collect())
    }
}

impl<S: Statement> Executor for Connection<S> {
    type Item = S;
    type Answer = S::Answer;

    async fn connect(&mut self) -> Result<(), Failure> {
        self.world.alive(self.instance).await;
        if !self.world.db_answers() {
            return Err(Failure::Disconnected("the database is down".into()));
        }
        self.server = self.world.db().server;
        Ok(())
    }

    async fn run(&mut self, batch: &[S]) -> Result<Vec<S::Answer>, Failure> {
        let (world, server) = (Arc::clone(&self.world), self.server);
        let lost = || Failure::Disconnected("no answer".into());
        world.alive(self.instance).await;
        world.while_up_to(3).await;
        if !world.db_answers() || world.db().server != server {
            return Err(lost());
        }
        // The first one that fails fails them all.
        let mut fault = None;
        for statement in batch {
            fault = fault.or(world.fault(statement.step()));
        }
        match fault {
            None | Some(Fault::Twice) => {}
            Some(Fault::Before) => return Err(lost()),
            Some(Fault::After) => {
                Self::commit(&world, server, batch);
                return Err(lost());
            }
            Some(Fault::Late) => {
                let batch = batch.to_vec();
                tokio::spawn(async move {
                    world.while_up_to(8_000).await;
                    Self::commit(&world, server, &batch);
                });
                return Err(lost());
            }
            Some(Fault::Slow) => {
                let seconds = world.chance(|rng| rng.u64(1..12));
                sleep(Duration::from_secs(seconds)).await;
            }
            Some(Fault::CrashBefore) => {
                world.kill(self.instance);
                std::future::pending::<()>().await;
            }
            Some(Fault::CrashAfter) => {
                Self::commit(&world, server, batch);
                world.kill(self.instance);
                std::future::pending::<()>().await;
            }
        }
        let mut answers = Self::commit(&world, server, batch).ok_or_else(lost)?;
        if world.has(Bug::AnswersAreMixedUp) {
            answers.reverse();
        }
        world.note("commit", None);
        world.while_up_to(2).await;
        world.alive(self.instance).await;
        Ok(answers)
    }
}
