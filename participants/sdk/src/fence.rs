//! Fences in a participant's own database, and the local transactions in which resources work.
//!
//! A batch of steps is one local transaction. In an order that is the same for everybody, each in its own statement: existing
//! fences are locked, by (transaction, branch); then it is decided, by [`tcc_core::fence::admit`]; then fences are written,
//! existing ones guarded by the state that was read, absent ones by a plain insert; then the resource works; then fences of
//! what it refused are corrected; then COMMIT. A duplicate key, or a guard that misses, means that somebody else came first:
//! all is rolled back and decided anew.
//!
//! Every answer is given after that COMMIT, by a transaction that wrote or locked the fence. A COMMIT without a certain
//! answer is [`Outcome::Unknown`], and resolved by doing the operation again.

use crate::{
    batch::{Batcher, Executor, Failure, Limits},
    postgres::Postgres,
    resource::{BatchResource, Effect, Step, run_guarded},
    serve::Served,
    session::{Plans, Session, sort},
    telemetry::{FenceCounts, Met},
    tx::{Statements, Tx},
    wire::Description,
};
use futures::future::{BoxFuture, join};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tcc_core::{Admission, FenceState, Operation, Outcome, Refusal, TransactionId, fence::admit};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

mod embedded {
    refinery::embed_migrations!("../../migrations/participant");
}

/// Why a database cannot be a participant's.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A statement failed.
    #[error("the participant's database: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// A migration failed, or one that was applied has changed.
    #[error("migrating the participant's database: {0}")]
    Migration(#[from] refinery::Error),
    /// It belongs to another participant.
    #[error("this database is participant {found:?}, and not {expected:?}; check its url")]
    OtherParticipant {
        /// As configured.
        expected: String,
        /// As the database says.
        found: String,
    },
}

/// How long one batch may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The advisory lock that keeps two migrations apart.
const MIGRATION_LOCK: i64 = 0x7463_635f_6665_6e63;

/// Written once.
const NAME_PARTICIPANT: &str = "\
-- name_participant
INSERT INTO tcc_participant (name) SELECT $1 WHERE NOT EXISTS (SELECT FROM tcc_participant)";

/// Creates the SDK's tables where they are missing, and makes sure that the database is this participant's. Safe to run by
/// several at once. The server does this when it starts; the role that it connects as must be allowed to create tables.
///
/// # Errors
///
/// [`SchemaError`].
pub async fn prepare(client: &mut Client, name: &str) -> Result<(), SchemaError> {
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
    let prepared = prepare_locked(client, name).await;
    client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
    prepared
}

async fn prepare_locked(client: &mut Client, name: &str) -> Result<(), SchemaError> {
    let mut runner = embedded::migrations::runner().set_abort_divergent(true);
    // The owner of the database may use refinery, too.
    runner.set_migration_table_name("tcc_schema_history");
    runner.run_async(client).await?;
    client.execute(NAME_PARTICIPANT, &[&name]).await?;
    let found: String = client.query_one(IDENTIFY, &[]).await?.get(0);
    if found == name {
        Ok(())
    } else {
        Err(SchemaError::OtherParticipant { expected: name.to_owned(), found })
    }
}

/// A resource behind its fences. [`Server`](crate::Server) serves one; whoever has effects outside of the database keeps one
/// by [`Server::fenced`](crate::Server::fenced), to tell it what has become of them.
pub struct Fenced {
    name: String,
    may_veto: bool,
    operations: Batcher<Step, Answer>,
    counts: FenceCounts,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The answer to whoever asked.
    pub outcome: Outcome,
    /// It is committed that the effect, which is outside of the database, may be asked for: the fence is `confirming`.
    pub is_asked: bool,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, is_asked: false }
    }
}

impl Fenced {
    /// Starts so many executors, each with a connection of its own. Each takes so many steps into one local transaction.
    pub(crate) fn start<B: BatchResource>(
        name: &str,
        database: &Postgres,
        resource: B,
        connections: usize,
        batch: usize,
    ) -> Self {
        let (resource, counts) = (Arc::new(resource), FenceCounts::new());
        let executors = (0..connections).map(|_| FenceExecutor {
            session: Session::new(database, "tcc-participant", Plans::Usual),
            statements: Statements::default(),
            name: name.to_owned(),
            resource: Arc::clone(&resource),
            counts: counts.clone(),
        });
        // It has answered, or said that it does not know, before its caller gives up.
        let limits = Limits { batch, patience: PATIENCE, ..Limits::default() };
        let operations = Batcher::start(&format!("participant {name}"), executors.collect(), limits);
        Self { name: name.to_owned(), may_veto: B::MAY_VETO, operations, counts }
    }

    /// Whether its database was there when it was needed last.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.operations.is_connected()
    }

    /// How many operations wait for a local transaction.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.operations.queued()
    }

    pub(crate) fn counts(&self) -> &FenceCounts {
        &self.counts
    }

    /// Does one operation, as the fence table says.
    pub async fn call(&self, step: Step) -> Answer {
        match self.operations.call(step).await {
            Ok(answer) => answer,
            Err(unknown) if unknown.is_rejected => Outcome::Failed(unknown.to_string()).into(),
            Err(unknown) => Outcome::Unknown(unknown.to_string()).into(),
        }
    }
}

impl Served for Fenced {
    fn describe(&self) -> Description {
        Description::of(&self.name, self.may_veto)
    }

    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome> {
        Box::pin(async move { self.call(step).await.outcome })
    }

    fn fenced(&self) -> Option<&Fenced> {
        Some(self)
    }
}

const IDENTIFY: &str = "\
-- identify
SELECT name FROM tcc_participant";

/// It says that it worked, to the check before the COMMIT.
const BEGIN: &str = "BEGIN; SET LOCAL tcc.fence = 'begun'";

/// Fails if a statement has failed and nobody cared; tells if the transaction has been ended by somebody else. Without it,
/// the COMMIT of the former would be a ROLLBACK that looks like success.
const CHECK: &str = "\
-- check
SELECT coalesce(current_setting('tcc.fence', true), '')";

const LOCK_FENCES: &str = "\
-- lock_fences
SELECT f.transaction_id, f.branch, f.state, f.refusal, f.descriptor
FROM unnest($1::uuid[], $2::int2[]) AS i (transaction_id, branch)
JOIN tcc_fence f ON f.transaction_id = i.transaction_id AND f.branch = i.branch
ORDER BY f.transaction_id, f.branch
FOR NO KEY UPDATE OF f";

const INSERT_FENCES: &str = "\
-- insert_fences
INSERT INTO tcc_fence (transaction_id, branch, state, descriptor, decided_at)
SELECT i.transaction_id, i.branch, i.state, i.descriptor, CASE WHEN i.state <> 1 THEN clock_timestamp() END
FROM unnest($1::uuid[], $2::int2[], $3::int2[], $4::bytea[]) AS i (transaction_id, branch, state, descriptor)";

const MOVE_FENCES: &str = "\
-- move_fences
UPDATE tcc_fence f SET state = i.state, refusal = i.refusal,
    decided_at = CASE WHEN i.state NOT IN (1, 7) THEN clock_timestamp() END
FROM unnest($1::uuid[], $2::int2[], $3::int2[], $4::int2[], $5::text[])
    AS i (transaction_id, branch, state_read, state, refusal)
WHERE f.transaction_id = i.transaction_id AND f.branch = i.branch AND f.state = i.state_read";

const STATEMENTS: [&str; 5] = [IDENTIFY, CHECK, LOCK_FENCES, INSERT_FENCES, MOVE_FENCES];

/// Identifies a fence.
type Key = (TransactionId, u16);

fn key_of(step: &Step) -> Key {
    (step.branch.transaction, step.branch.index)
}

/// A fence that was locked.
struct Fence {
    state: FenceState,
    descriptor: Vec<u8>,
}

/// A fence that changes its state.
struct Move {
    key: Key,
    from: FenceState,
    to: FenceState,
}

/// Owns one connection to the participant's database.
struct FenceExecutor<B> {
    session: Session,
    statements: Statements,
    name: String,
    resource: Arc<B>,
    counts: FenceCounts,
}

impl<B: BatchResource> Executor for FenceExecutor<B> {
    type Item = Step;
    type Answer = Answer;

    /// Somebody waits for a Try; Confirm and Cancel come mostly from wake-ups.
    fn is_urgent(step: &Step) -> bool {
        step.operation == Operation::Try
    }

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.statements.clear();
        self.session.connect(&STATEMENTS).await?;
        let identify = self.session.statement(IDENTIFY)?;
        let row = self.session.client()?.query_opt(identify, &[]).await.map_err(|e| sort(&e))?;
        let found: Option<String> = row.map(|row| row.get(0));
        if found.as_ref() == Some(&self.name) {
            return Ok(());
        }
        // Its Cancel would leave a tombstone here, and the reservation where it is.
        let name = &self.name;
        Err(Failure::Rejected(format!("the database is participant {found:?}, and not {name:?}")))
    }

    async fn run(&mut self, steps: &[Step]) -> Result<Vec<Answer>, Failure> {
        let mut outcomes = vec![Answer::from(Outcome::Done); steps.len()];
        let mut rest: Vec<usize> = (0..steps.len()).collect();
        // Of steps that meet at one fence, each has a local transaction of its own, one after the other.
        while !rest.is_empty() {
            let mut met = HashSet::new();
            let (now, later): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|index| met.insert(key_of(&steps[*index])));
            let round: Vec<&Step> = now.iter().map(|index| &steps[*index]).collect();
            match self.transact(&round).await {
                Ok(answers) => now.iter().zip(answers).for_each(|(index, answer)| outcomes[*index] = answer),
                Err(Failure::Disconnected(why)) => return Err(Failure::Disconnected(why)),
                Err(failure) => {
                    // A statement of the resource's may have changed its meaning.
                    self.statements.clear();
                    self.roll_back().await?;
                    return Err(failure);
                }
            }
            self.session.settle()?;
            rest = later;
        }
        Ok(outcomes)
    }
}

impl<B: BatchResource> FenceExecutor<B> {
    /// One local transaction, no two of whose steps are for the same fence.
    async fn transact(&self, steps: &[&Step]) -> Result<Vec<Answer>, Failure> {
        let began = Instant::now();
        let fences = self.lock(steps).await?;
        let mut met = Vec::with_capacity(steps.len());
        let mut outcomes: Vec<Answer> = Vec::with_capacity(steps.len());
        let (mut inserts, mut moves, mut runs) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (index, step) in steps.iter().enumerate() {
            let fence = fences.get(&key_of(step));
            if fence.is_some_and(|fence| fence.descriptor != step.branch.descriptor) {
                met.push(Met::OtherDescriptor);
                outcomes.push(Outcome::OtherDescriptor.into());
                continue;
            }
            let admission = admit(fence.map(|fence| fence.state), step.operation);
            met.push(Met::at(fence.map(|fence| fence.state), step.operation, &admission));
            let to = match admission {
                Admission::Answer(outcome) => {
                    outcomes.push(outcome.into());
                    continue;
                }
                Admission::Stop => FenceState::Stopped,
                Admission::Run => {
                    runs.push(index);
                    done(step.operation)
                }
            };
            // What the resource does not take back is so when this commits.
            outcomes.push(Outcome::Done.into());
            match fence {
                None => {
                    inserts.insert(key_of(step), (to, step.branch.descriptor.as_slice()));
                }
                Some(fence) => moves.push(Move { key: key_of(step), from: fence.state, to }),
            }
        }
        self.move_fences(moves).await?;
        self.insert_fences(&inserts).await?;

        if !runs.is_empty() {
            let running: Vec<&Step> = runs.iter().map(|index| steps[*index]).collect();
            let tx = Tx::new(self.session.client()?, &self.statements);
            let effects = run_guarded(&*self.resource, &tx, &running).await?;
            let mut corrections = Vec::new();
            for ((index, step), effect) in runs.iter().zip(&running).zip(effects) {
                let before = fences.get(&key_of(step)).map(|fence| fence.state);
                let (to, outcome) = match effect {
                    Effect::Done => continue,
                    Effect::Refused(refusal) => {
                        met[*index] = Met::Refused;
                        (FenceState::Refused(refusal), Outcome::Refused(refusal))
                    }
                    Effect::Vetoed(refusal) => {
                        met[*index] = Met::Vetoed;
                        (FenceState::Vetoed(refusal), Outcome::Vetoed(refusal))
                    }
                    // What was asked for once may have taken place ever since.
                    Effect::Outside { is_asked } if is_asked || before == Some(FenceState::Confirming) => {
                        met[*index] = Met::Open;
                        let why = "it is asked for, and whether it has taken place is not known yet";
                        (FenceState::Confirming, Outcome::Unknown(why.into()))
                    }
                    Effect::Outside { .. } => {
                        met[*index] = Met::Open;
                        (FenceState::Tried, Outcome::Unknown("it is in line, and not asked for yet".into()))
                    }
                };
                corrections.push(Move { key: key_of(step), from: done(step.operation), to });
                outcomes[*index] = Answer { outcome, is_asked: to == FenceState::Confirming };
            }
            self.move_fences(corrections).await?;
        }
        self.commit().await?;
        self.counts.committed(steps, &met, began);
        Ok(outcomes)
    }

    /// Begins, and locks the fences that exist, in one round trip.
    async fn lock(&self, steps: &[&Step]) -> Result<HashMap<Key, Fence>, Failure> {
        let id: Vec<Uuid> = steps.iter().map(|step| step.branch.transaction.uuid()).collect();
        let branch: Vec<i16> = steps.iter().map(|step| step.branch.index as i16).collect();
        let client = self.session.client()?;
        let lock = self.session.statement(LOCK_FENCES)?;
        // `join` polls in this order, so the statements arrive in this order.
        let (begun, rows) = join(client.batch_execute(BEGIN), client.query(lock, &[&id, &branch])).await;
        begun.map_err(|e| sort(&e))?;
        rows.map_err(|e| sort(&e))?.iter().map(read_fence).collect()
    }

    async fn insert_fences(&self, fences: &BTreeMap<Key, (FenceState, &[u8])>) -> Result<(), Failure> {
        if fences.is_empty() {
            return Ok(());
        }
        let id: Vec<Uuid> = fences.keys().map(|(id, _)| id.uuid()).collect();
        let branch: Vec<i16> = fences.keys().map(|(_, branch)| *branch as i16).collect();
        let state: Vec<i16> = fences.values().map(|(state, _)| state.number()).collect();
        let descriptor: Vec<&[u8]> = fences.values().map(|(_, descriptor)| *descriptor).collect();
        let insert = self.session.statement(INSERT_FENCES)?;
        let inserted = self.session.client()?.execute(insert, &[&id, &branch, &state, &descriptor]).await;
        inserted.map(drop).map_err(|e| sort(&e))
    }

    async fn move_fences(&self, mut moves: Vec<Move>) -> Result<(), Failure> {
        if moves.is_empty() {
            return Ok(());
        }
        moves.sort_by_key(|one| one.key);
        let id: Vec<Uuid> = moves.iter().map(|one| one.key.0.uuid()).collect();
        let branch: Vec<i16> = moves.iter().map(|one| one.key.1 as i16).collect();
        let from: Vec<i16> = moves.iter().map(|one| one.from.number()).collect();
        let to: Vec<i16> = moves.iter().map(|one| one.to.number()).collect();
        let refusal: Vec<Option<&str>> =
            moves.iter().map(|one| one.to.refusal().map(Refusal::code)).collect();
        let statement = self.session.statement(MOVE_FENCES)?;
        let client = self.session.client()?;
        let moved = client.execute(statement, &[&id, &branch, &from, &to, &refusal]).await;
        match moved.map_err(|e| sort(&e))? {
            moved if moved == moves.len() as u64 => Ok(()),
            moved => Err(Failure::Conflict(format!("{moved} of {} fences moved", moves.len()))),
        }
    }

    /// Checks and commits, in one round trip.
    async fn commit(&self) -> Result<(), Failure> {
        let client = self.session.client()?;
        let check = self.session.statement(CHECK)?;
        // `join` polls in this order, so the statements arrive in this order.
        let (checked, committed) = join(client.query_one(check, &[]), client.batch_execute("COMMIT")).await;
        let state: String = checked.map_err(|e| sort(&e))?.get(0);
        // What the server rejects at the COMMIT, such as a constraint that was deferred, did not happen. No answer is another matter.
        committed.map_err(|e| sort(&e))?;
        if state == "begun" {
            return Ok(());
        }
        tracing::error!(
            "the resource has ended the local transaction by itself; what it did may stand alone"
        );
        Err(Failure::Disconnected("the resource has ended the local transaction by itself".into()))
    }

    async fn roll_back(&self) -> Result<(), Failure> {
        let rolled_back = self.session.client()?.batch_execute("ROLLBACK").await;
        rolled_back.map_err(|e| Failure::Disconnected(e.to_string()))
    }
}

/// What a fence is when an operation was run.
fn done(operation: Operation) -> FenceState {
    match operation {
        Operation::Try => FenceState::Tried,
        Operation::Confirm => FenceState::Confirmed,
        Operation::Cancel => FenceState::Cancelled,
    }
}

fn read_fence(row: &Row) -> Result<(Key, Fence), Failure> {
    let damaged = |what: &dyn std::fmt::Display| Failure::Rejected(format!("a fence cannot be read: {what}"));
    let id = TransactionId::from_uuid(row.get("transaction_id")).map_err(|e| damaged(&e))?;
    let refusal = row.get::<_, Option<&str>>("refusal").map(Refusal::from_code).transpose();
    let state = FenceState::from_number(row.get("state"), refusal.map_err(|e| damaged(&e))?)
        .ok_or_else(|| damaged(&"its state"))?;
    let branch = row.get::<_, i16>("branch") as u16;
    Ok(((id, branch), Fence { state, descriptor: row.get("descriptor") }))
}
