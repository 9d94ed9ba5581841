//! One batch of operations in one local transaction, in one of two ways.
//!
//! **Usually** a Try meets no fence, a Confirm or Cancel a fence that is `tried`, and nobody else writes to the accounts. So
//! fences are moved before anything is decided, accounts are read and not locked, [`Books`] decides in memory, and the write
//! is guarded by the versions and states that were read. If a fence does not move, or the books decide otherwise than was
//! assumed, or a guard fails, the batch is rolled back, and done with locks.
//!
//! **With locks,** in an order that is the same for everybody, each in its own statement: existing fences by (transaction,
//! branch), then accounts by id. Then [`Books`] decides in memory, and what changed is written, guarded all the same.
//! Reading fences without locking them would let a Cancel and a Confirm both win. If somebody else holds a row for longer
//! than a lock is waited for (an instance that was stopped in the middle, a person at a prompt), the operations that need
//! it are left out, here and in the next batches, and the others are done.
//!
//! Either way each guard counts its rows in its own statement, so that the COMMIT follows without a round trip: if a row is
//! missing, it is a ROLLBACK. Existing fences are locked first, then accounts, then absent fences are inserted, each in the
//! order of their keys; a duplicate key means that somebody else came first. And every answer, "done again" included, is
//! given by a transaction that wrote or locked the fence and committed: a bare read may show a commit that a synchronous
//! standby does not have yet and that a failover would lose.

use crate::{
    books::{Account, AccountState, Answer, Books, Fence, FenceKey, ISSUE, NewFence, Op, Posting, Writes},
    heads::{Head, Heads},
};
use futures::future::{join, join3, join4, join5};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};
use tcc_core::{AccountId, Currency, FenceState, Operation, Refusal, Role, Timestamp, TransactionId};
use tcc_participant::{
    Executor, Failure, Postgres, Session,
    session::{Plans, sort},
};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

macro_rules! lock_fences {
    () => {
        "\
-- lock_fences
SELECT b.transaction_id, b.branch, b.state, b.refusal, b.descriptor, b.role, b.account, b.amount
FROM unnest($1::uuid[]) AS i (id)
JOIN branch b ON b.transaction_id = i.id
ORDER BY b.transaction_id, b.branch
FOR NO KEY UPDATE OF b"
    };
}
const LOCK_FENCES: &str = lock_fences!();
const LOCK_FREE_FENCES: &str = concat!(lock_fences!(), " SKIP LOCKED");

const ALL_FENCES: &str = "\
-- all_fences
SELECT b.transaction_id, b.branch FROM unnest($1::uuid[]) AS i (id) JOIN branch b ON b.transaction_id = i.id";

macro_rules! lock_accounts {
    () => {
        "\
-- lock_accounts
SELECT id, currency, available, held, state, version, posted_at, created_at
FROM account
WHERE id = ANY ($1::text[])
ORDER BY id
FOR NO KEY UPDATE"
    };
}
const LOCK_ACCOUNTS: &str = lock_accounts!();
const LOCK_FREE_ACCOUNTS: &str = concat!(lock_accounts!(), " SKIP LOCKED");

const ALL_ACCOUNTS: &str = "\
-- all_accounts
SELECT id FROM account WHERE id = ANY ($1::text[])";

/// Without a lock: the version and the state that are read guard the write.
const READ_ACCOUNTS: &str = "\
-- read_accounts
SELECT id, currency, available, held, state, version, posted_at, created_at, transaction_timestamp() AS now
FROM account
WHERE id = ANY ($1::text[])";

/// It says whether it worked, to those that follow it unseen: if it fails, they would each commit by themselves.
const BEGIN: &str = "BEGIN; SET LOCAL tcc.batch = 'begun'";

/// Moves fences on the assumption that they are `tried` (1), and answers those that were. A fence and its posting are stamped
/// alike, by which the audit tells that they belong together: so here and where accounts are read or changed with it, it is
/// the time at which the transaction began.
const TAKE_FENCES: &str = "\
-- take_fences
UPDATE branch b SET state = i.state, decided_at = transaction_timestamp()
FROM unnest($1::uuid[], $2::int2[], $3::int2[]) AS i (transaction_id, branch, state)
WHERE b.transaction_id = i.transaction_id AND b.branch = i.branch AND b.state = 1
  AND current_setting('tcc.batch', true) = 'begun'
RETURNING b.transaction_id, b.branch, 1::int2 AS state, NULL::text AS refusal, b.descriptor, b.role, b.account, b.amount";

/// After the locks, so that the times in an account's postings follow their versions.
const CLOCK: &str = "\
-- clock
SELECT clock_timestamp()";

const INSERT_FENCES: &str = "\
-- insert_fences
INSERT INTO branch (transaction_id, branch, role, state, account, amount, refusal, descriptor, fenced_at, decided_at)
SELECT i.*, $9::timestamptz, CASE WHEN i.state <> 1 THEN $9::timestamptz END
FROM unnest($1::uuid[], $2::int2[], $3::int2[], $4::int2[], $5::text[], $6::int8[], $7::text[], $8::bytea[])
    AS i (transaction_id, branch, role, state, account, amount, refusal, descriptor)";

/// Existing fences are only ever moved from `tried` (1), the one state that is not final.
const MOVE_FENCES: &str = "\
-- move_fences
WITH moved AS (
    UPDATE branch b SET state = i.state, refusal = i.refusal, decided_at = $5
    FROM unnest($1::uuid[], $2::int2[], $3::int2[], $4::text[]) AS i (transaction_id, branch, state, refusal)
    WHERE b.transaction_id = i.transaction_id AND b.branch = i.branch AND b.state = 1
    RETURNING 1
)
SELECT expect_rows(count(*), cardinality($1::uuid[]), 'fences') FROM moved";

const INSERT_ACCOUNTS: &str = "\
-- insert_accounts
INSERT INTO account (id, currency, available, held, state, version, posted_at, created_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::int8[], $4::int8[], $5::int2[], $6::int8[], $7::timestamptz[], $8::timestamptz[])";

const CHANGE_ACCOUNTS: &str = "\
-- change_accounts
WITH changed AS (
    UPDATE account a SET available = i.available, held = i.held, version = i.version, posted_at = i.posted_at
    FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::timestamptz[], $6::int8[], $7::int2[])
        AS i (id, available, held, version, posted_at, version_read, state_read)
    WHERE a.id = i.id AND a.version = i.version_read AND a.state = i.state_read
    RETURNING 1
)
SELECT expect_rows(count(*), cardinality($1::text[]), 'accounts') FROM changed";

/// After the balances, so that the version is the one that this batch wrote.
const SET_STATES: &str = "\
-- set_states
WITH changed AS (
    UPDATE account a SET state = i.state
    FROM unnest($1::text[], $2::int2[], $3::int8[], $4::int2[]) AS i (id, state, version, state_read)
    WHERE a.id = i.id AND a.version = i.version AND a.state = i.state_read
    RETURNING 1
)
SELECT expect_rows(count(*), cardinality($1::text[]), 'states of accounts') FROM changed";

const INSERT_POSTINGS: &str = "\
-- insert_postings
INSERT INTO posting (account, version, transaction_id, branch, kind, amount, available_after, held_after, recorded_at)
SELECT * FROM unnest($1::text[], $2::int8[], $3::uuid[], $4::int2[], $5::int2[], $6::int8[], $7::int8[], $8::int8[],
                     $9::timestamptz[])";

const IDENTIFY: &str = "\
-- identify
SELECT (SELECT name FROM shard), array_agg(bucket) FROM bucket";

/// Owns one connection to a shard.
pub struct ShardExecutor {
    session: Session,
    name: String,
    buckets: Arc<HashSet<u16>>,
    heads: Heads,
    /// How many batches are still to be done with locks.
    with_locks: u32,
    /// Whether those leave out what somebody else holds.
    leaves_out: bool,
}

/// What its connections are called in `pg_stat_activity`: nobody else writes fences.
pub(crate) const CONNECTION: &str = "tcc-shard";

/// After a batch that was not as usual, so many are done with locks: what makes one unusual seldom comes alone.
const WITH_LOCKS: u32 = 16;

impl ShardExecutor {
    /// An executor for a shard that serves these buckets.
    #[must_use]
    pub fn new(name: &str, database: &Postgres, buckets: Arc<HashSet<u16>>, heads: Heads) -> Self {
        let session = Session::new(database, CONNECTION, Plans::Generic);
        Self { session, name: name.to_owned(), buckets, heads, with_locks: 0, leaves_out: false }
    }

    /// Makes sure that the database is this shard: a url that points elsewhere would answer a Cancel with a tombstone, and
    /// leave the money frozen where it really is.
    async fn identify(&self) -> Result<(), Failure> {
        let identify = self.session.statement(IDENTIFY)?;
        let row = self.session.client()?.query_one(identify, &[]).await.map_err(|e| sort(&e))?;
        let name: Option<String> = row.get(0);
        let buckets: HashSet<u16> = row
            .get::<_, Option<Vec<i16>>>(1)
            .unwrap_or_default()
            .into_iter()
            .map(|bucket| bucket as u16)
            .collect();
        if name.as_ref() != Some(&self.name) || buckets != *self.buckets {
            return Err(Failure::Rejected(format!(
                "the database is {name:?}, not shard {:?}; check its url",
                self.name
            )));
        }
        Ok(())
    }

    /// Makes sure that the shard has what it answered before.
    async fn check_heads(&self) -> Result<(), Failure> {
        match self.heads.check(self.session.client()?).await.map_err(|e| sort(&e))? {
            None => Ok(()),
            Some(what) => Err(Failure::Rejected(format!(
                "shard {} has lost commits: {what}; work on it is stopped. See the manual: a shard that lost commits",
                self.name
            ))),
        }
    }

    /// Does a batch on the usual assumptions. `None`: they do not hold, and nothing is committed.
    async fn usually(&mut self, ops: &[Op], moves: &Moves) -> Result<Option<Vec<Answer>>, Failure> {
        let Some(mut books) = self.take(ops, moves).await? else { return Ok(None) };
        let answers = ops.iter().map(|op| books.decide(op)).collect();
        let mut writes = books.into_writes();
        if !writes.moved_fences.drain(..).eq(moves.iter().map(|(key, state)| (*key, *state))) {
            return Ok(None);
        }
        let moved = moves.last_key_value().map(|(key, state)| (*key, *state));
        self.commit(writes, moved).await?;
        Ok(Some(answers))
    }

    /// Does a batch with locks. What somebody else holds is waited for, or what needs it is left out.
    async fn with_locks(&mut self, ops: &[Op]) -> Result<Vec<Answer>, Failure> {
        let (mut books, held) = if self.leaves_out {
            self.lock_free(ops).await?
        } else {
            (self.lock(ops).await?, Held::default())
        };
        let answer = |op| if held.concerns(op) { Answer::LeftOut } else { books.decide(op) };
        let answers = ops.iter().map(answer).collect();
        self.commit(books.into_writes(), None).await?;
        Ok(answers)
    }

    /// Writes and commits what is left to be written beside one fence that was moved before, and remembers the head.
    async fn commit(&mut self, writes: Writes, moved: Option<(FenceKey, FenceState)>) -> Result<(), Failure> {
        let new = writes.new_fences.last().map(|new| (new.key, new.fence.state));
        let head = new.or(moved).or(writes.moved_fences.last().copied());
        self.write(writes).await?;
        self.session.settle()?;
        if let Some(((id, branch), state)) = head {
            self.heads.note(Head { transaction: id.uuid(), branch: branch as i16, state: state.number() });
        }
        Ok(())
    }

    /// Begins, moves the fences and reads the accounts, in one round trip. `None`, if there is one that is not as assumed.
    async fn take(&self, ops: &[Op], moves: &Moves) -> Result<Option<Books>, Failure> {
        let (_, accounts) = touched(ops);
        let id: Vec<Uuid> = moves.keys().map(|(id, _)| id.uuid()).collect();
        let branch: Vec<i16> = moves.keys().map(|(_, branch)| *branch as i16).collect();
        let state: Vec<i16> = moves.values().map(|state| state.number()).collect();
        let client = self.session.client()?;
        let (take, read) = (self.session.statement(TAKE_FENCES)?, self.session.statement(READ_ACCOUNTS)?);
        let take_fences = async {
            if moves.is_empty() { Ok(Vec::new()) } else { client.query(take, &[&id, &branch, &state]).await }
        };
        // `join` polls in this order, so the statements arrive in this order.
        let (begun, fences, accounts) =
            join3(client.batch_execute(BEGIN), take_fences, client.query(read, &[&accounts])).await;
        begun.map_err(|e| sort(&e))?;
        let (fences, accounts) = (fences.map_err(|e| sort(&e))?, accounts.map_err(|e| sort(&e))?);
        let now = accounts.first().map(|row| row.get("now"));
        Ok(match now {
            Some(now) if fences.len() == moves.len() => Some(self.books(now, &fences, &accounts)?),
            _ => None,
        })
    }

    fn books(&self, now: Timestamp, fences: &[Row], accounts: &[Row]) -> Result<Books, Failure> {
        let mut books = Books::new(Arc::clone(&self.buckets), now);
        for row in fences {
            read_fence(&mut books, row)?;
        }
        for row in accounts {
            let id = AccountId::parse(row.get("id")).map_err(damaged)?;
            books.read_account(id, read_account(row)?);
        }
        Ok(books)
    }

    async fn roll_back(&self) -> Result<(), Failure> {
        let rolled_back = self.session.client()?.batch_execute("ROLLBACK").await;
        rolled_back.map_err(|e| Failure::Disconnected(e.to_string()))
    }

    /// Begins, locks and reads what the operations touch, in one round trip.
    async fn lock(&self, ops: &[Op]) -> Result<Books, Failure> {
        let (ids, accounts) = touched(ops);
        let client = self.session.client()?;
        let (fences, locks) = (self.session.statement(LOCK_FENCES)?, self.session.statement(LOCK_ACCOUNTS)?);
        // `join` polls in this order, so the statements arrive in this order.
        let (begun, fences, accounts, clock) = join4(
            client.batch_execute(BEGIN),
            client.query(fences, &[&ids]),
            client.query(locks, &[&accounts]),
            client.query_one(self.session.statement(CLOCK)?, &[]),
        )
        .await;
        begun.map_err(|e| sort(&e))?;
        let (fences, accounts) = (fences.map_err(|e| sort(&e))?, accounts.map_err(|e| sort(&e))?);
        self.books(clock.map_err(|e| sort(&e))?.get(0), &fences, &accounts)
    }

    /// As [`Self::lock`], but for what somebody else holds, which it answers, too.
    async fn lock_free(&self, ops: &[Op]) -> Result<(Books, Held), Failure> {
        let (ids, accounts) = touched(ops);
        let client = self.session.client()?;
        let statement = |sql| self.session.statement(sql);
        let (by_id, by_account): ([Parameter<'_>; 1], [Parameter<'_>; 1]) = ([&ids], [&accounts]);
        let rows = join4(
            client.query(statement(LOCK_FREE_FENCES)?, &by_id),
            client.query(statement(LOCK_FREE_ACCOUNTS)?, &by_account),
            client.query(statement(ALL_FENCES)?, &by_id),
            client.query(statement(ALL_ACCOUNTS)?, &by_account),
        );
        let clock = client.query_one(statement(CLOCK)?, &[]);
        let (begun, (fences, accounts, all_fences, all_accounts), clock) =
            join3(client.batch_execute(BEGIN), rows, clock).await;
        begun.map_err(|e| sort(&e))?;
        let rows = |rows: Result<Vec<Row>, _>| rows.map_err(|e| sort(&e));
        let (fences, accounts) = (rows(fences)?, rows(accounts)?);
        let mut held = Held {
            fences: rows(all_fences)?.iter().map(key_of).collect(),
            accounts: rows(all_accounts)?.iter().map(|row| row.get("id")).collect(),
        };
        for row in &fences {
            held.fences.remove(&key_of(row));
        }
        for row in &accounts {
            held.accounts.remove(row.get::<_, &str>("id"));
        }
        Ok((self.books(clock.map_err(|e| sort(&e))?.get(0), &fences, &accounts)?, held))
    }

    /// Writes and commits, in one round trip.
    async fn write(&self, writes: Writes) -> Result<(), Failure> {
        let Writes { now, new_fences, moved_fences, new_accounts, changed_accounts, postings } = writes;
        // `join` polls in this order, so the statements arrive in this order: existing fences, accounts, new fences, as the
        // locks are taken.
        let written = join5(
            self.move_fences(&moved_fences, now),
            self.change_accounts(&changed_accounts),
            self.insert_accounts(&new_accounts),
            self.insert_fences(&new_fences, now),
            self.insert_postings(&postings),
        );
        let client = self.session.client()?;
        let ((moved, changed, accounts, fences, posted), committed) =
            join(written, client.batch_execute("COMMIT")).await;
        // The first that failed has made the others fail.
        moved.and(changed).and(accounts).and(fences).and(posted)?;
        // A COMMIT that fails has not said whether it happened.
        committed.map_err(|e| Failure::Disconnected(e.to_string()))
    }

    async fn insert_fences(&self, fences: &[NewFence], now: Timestamp) -> Result<(), Failure> {
        let id: Vec<Uuid> = fences.iter().map(|f| f.key.0.uuid()).collect();
        let branch: Vec<i16> = fences.iter().map(|f| f.key.1 as i16).collect();
        let role: Vec<i16> = fences.iter().map(|f| role_number(f.role)).collect();
        let state: Vec<i16> = fences.iter().map(|f| f.fence.state.number()).collect();
        let account: Vec<&str> = fences.iter().map(|f| f.account.as_str()).collect();
        let amount: Vec<i64> = fences.iter().map(|f| f.amount).collect();
        let refusal: Vec<Option<&str>> =
            fences.iter().map(|f| f.fence.state.refusal().map(Refusal::code)).collect();
        let descriptor: Vec<&[u8]> = fences.iter().map(|f| f.fence.descriptor.as_slice()).collect();
        let rows = [&id as Parameter, &branch, &role, &state, &account, &amount, &refusal, &descriptor, &now];
        self.execute(INSERT_FENCES, fences.len(), &rows).await
    }

    async fn move_fences(&self, fences: &[(FenceKey, FenceState)], now: Timestamp) -> Result<(), Failure> {
        let id: Vec<Uuid> = fences.iter().map(|((id, _), _)| id.uuid()).collect();
        let branch: Vec<i16> = fences.iter().map(|((_, branch), _)| *branch as i16).collect();
        let state: Vec<i16> = fences.iter().map(|(_, state)| state.number()).collect();
        let refusal: Vec<Option<&str>> =
            fences.iter().map(|(_, state)| state.refusal().map(Refusal::code)).collect();
        self.execute(MOVE_FENCES, fences.len(), &[&id, &branch, &state, &refusal, &now]).await
    }

    async fn insert_accounts(&self, accounts: &[(AccountId, Account)]) -> Result<(), Failure> {
        let id: Vec<&str> = accounts.iter().map(|(id, _)| id.as_str()).collect();
        let currency: Vec<&str> = accounts.iter().map(|(_, a)| a.currency.as_str()).collect();
        let available: Vec<i64> = accounts.iter().map(|(_, a)| a.available).collect();
        let held: Vec<i64> = accounts.iter().map(|(_, a)| a.held).collect();
        let state: Vec<i16> = accounts.iter().map(|(_, a)| a.state.number()).collect();
        let version: Vec<i64> = accounts.iter().map(|(_, a)| a.version).collect();
        let posted: Vec<Timestamp> = accounts.iter().map(|(_, a)| a.posted_at).collect();
        let created: Vec<Timestamp> = accounts.iter().map(|(_, a)| a.created_at).collect();
        let rows = [&id as Parameter, &currency, &available, &held, &state, &version, &posted, &created];
        self.execute(INSERT_ACCOUNTS, accounts.len(), &rows).await
    }

    async fn change_accounts(&self, accounts: &[(AccountId, Account, Account)]) -> Result<(), Failure> {
        let id: Vec<&str> = accounts.iter().map(|(id, _, _)| id.as_str()).collect();
        let available: Vec<i64> = accounts.iter().map(|(_, now, _)| now.available).collect();
        let held: Vec<i64> = accounts.iter().map(|(_, now, _)| now.held).collect();
        let version: Vec<i64> = accounts.iter().map(|(_, now, _)| now.version).collect();
        let posted: Vec<Timestamp> = accounts.iter().map(|(_, now, _)| now.posted_at).collect();
        let version_read: Vec<i64> = accounts.iter().map(|(_, _, read)| read.version).collect();
        let state_read: Vec<i16> = accounts.iter().map(|(_, _, read)| read.state.number()).collect();
        let rows = [&id as Parameter, &available, &held, &version, &posted, &version_read, &state_read];
        let balances = self.execute(CHANGE_ACCOUNTS, accounts.len(), &rows);
        // In this order, as in `write`.
        let (changed, set) = join(balances, self.set_states(accounts)).await;
        changed.and(set)
    }

    async fn set_states(&self, accounts: &[(AccountId, Account, Account)]) -> Result<(), Failure> {
        let set: Vec<_> = accounts.iter().filter(|(_, now, read)| now.state != read.state).collect();
        let id: Vec<&str> = set.iter().map(|(id, _, _)| id.as_str()).collect();
        let state: Vec<i16> = set.iter().map(|(_, now, _)| now.state.number()).collect();
        let version: Vec<i64> = set.iter().map(|(_, now, _)| now.version).collect();
        let state_read: Vec<i16> = set.iter().map(|(_, _, read)| read.state.number()).collect();
        self.execute(SET_STATES, set.len(), &[&id, &state, &version, &state_read]).await
    }

    async fn insert_postings(&self, postings: &[Posting]) -> Result<(), Failure> {
        let account: Vec<&str> = postings.iter().map(|p| p.account.as_str()).collect();
        let version: Vec<i64> = postings.iter().map(|p| p.version).collect();
        let id: Vec<Uuid> = postings.iter().map(|p| p.transaction.uuid()).collect();
        let branch: Vec<i16> = postings.iter().map(|p| p.branch as i16).collect();
        let kind: Vec<i16> = postings.iter().map(|p| p.kind as i16).collect();
        let amount: Vec<i64> = postings.iter().map(|p| p.amount).collect();
        let available: Vec<i64> = postings.iter().map(|p| p.available_after).collect();
        let held: Vec<i64> = postings.iter().map(|p| p.held_after).collect();
        let recorded: Vec<Timestamp> = postings.iter().map(|p| p.recorded_at).collect();
        let rows =
            [&account as Parameter, &version, &id, &branch, &kind, &amount, &available, &held, &recorded];
        self.execute(INSERT_POSTINGS, postings.len(), &rows).await
    }

    /// Sends a statement, unless it has no rows to write.
    async fn execute(
        &self,
        sql: &'static str,
        rows: usize,
        parameters: &[Parameter<'_>],
    ) -> Result<(), Failure> {
        if rows == 0 {
            return Ok(());
        }
        let executed = self.session.client()?.execute(self.session.statement(sql)?, parameters).await;
        executed.map(drop).map_err(|e| sort(&e))
    }
}

/// A parameter of a statement: mostly an array, one element for each row.
type Parameter<'a> = &'a (dyn ToSql + Sync);

const STATEMENTS: [&str; 16] = [
    IDENTIFY,
    TAKE_FENCES,
    READ_ACCOUNTS,
    LOCK_FENCES,
    LOCK_ACCOUNTS,
    LOCK_FREE_FENCES,
    LOCK_FREE_ACCOUNTS,
    ALL_FENCES,
    ALL_ACCOUNTS,
    CLOCK,
    INSERT_FENCES,
    MOVE_FENCES,
    INSERT_ACCOUNTS,
    CHANGE_ACCOUNTS,
    SET_STATES,
    INSERT_POSTINGS,
];

impl Executor for ShardExecutor {
    type Item = Op;
    type Answer = Answer;

    /// Confirm and Cancel come mostly from wake-ups; who creates a hold, an account or units waits for it.
    fn is_urgent(op: &Op) -> bool {
        !matches!(op, Op::Call(call) if call.operation != Operation::Try)
    }

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&STATEMENTS).await?;
        self.identify().await?;
        self.check_heads().await
    }

    async fn run(&mut self, ops: &[Op]) -> Result<Vec<Answer>, Failure> {
        if let Some(what) = self.heads.lost() {
            // Connecting anew says more.
            return Err(Failure::Disconnected(what));
        }
        if self.with_locks == 0
            && let Some(moves) = usual_moves(ops)
        {
            match self.usually(ops, &moves).await {
                Ok(Some(answers)) => return Ok(answers),
                Err(Failure::Disconnected(why)) => return Err(Failure::Disconnected(why)),
                Err(Failure::Locked(_)) => self.leaves_out = true,
                Ok(None) | Err(Failure::Conflict(_) | Failure::Rejected(_)) => {}
            }
            self.roll_back().await?;
            self.with_locks = WITH_LOCKS;
        }
        self.with_locks = self.with_locks.saturating_sub(1);
        loop {
            match self.with_locks(ops).await {
                Ok(answers) => {
                    self.leaves_out &= self.with_locks > 0;
                    return Ok(answers);
                }
                Err(Failure::Disconnected(why)) => return Err(Failure::Disconnected(why)),
                Err(failure) => {
                    self.roll_back().await?;
                    if self.leaves_out || !matches!(failure, Failure::Locked(_)) {
                        return Err(failure);
                    }
                    (self.leaves_out, self.with_locks) = (true, WITH_LOCKS);
                }
            }
        }
    }
}

/// What somebody else holds.
#[derive(Default)]
struct Held {
    fences: HashSet<(Uuid, i16)>,
    accounts: HashSet<String>,
}

impl Held {
    /// Whether an operation needs any of it.
    fn concerns(&self, op: &Op) -> bool {
        if self.fences.is_empty() && self.accounts.is_empty() {
            return false;
        }
        let (ids, accounts) = touched(std::slice::from_ref(op));
        accounts.iter().any(|account| self.accounts.contains(*account))
            || self.fences.iter().any(|(id, _)| ids.contains(id))
    }
}

fn key_of(row: &Row) -> (Uuid, i16) {
    (row.get("transaction_id"), row.get("branch"))
}

/// Fences that are taken to be `tried`, and the state to which an operation is taken to move each.
type Moves = BTreeMap<FenceKey, FenceState>;

/// What a batch does to fences that exist, if all is as usual. `None`, if it cannot be: when two of its operations meet at
/// one fence, or one may write nothing.
fn usual_moves(ops: &[Op]) -> Option<Moves> {
    let mut moves = Moves::new();
    let mut tried = HashSet::new();
    for op in ops {
        match op {
            Op::Call(call) => {
                for index in &call.branches {
                    let key = (call.transaction.id, *index);
                    let is_new = match call.operation {
                        Operation::Try => tried.insert(key),
                        Operation::Confirm => moves.insert(key, FenceState::Confirmed).is_none(),
                        Operation::Cancel => moves.insert(key, FenceState::Cancelled).is_none(),
                    };
                    if !is_new {
                        return None;
                    }
                }
            }
            Op::Issue(transaction) => {
                if !tried.insert((transaction.id, ISSUE)) {
                    return None;
                }
            }
            // If the account is there, or stands as asked, the answer is a read, and needs the lock.
            Op::Open(..) | Op::SetState(..) => return None,
        }
    }
    tried.iter().all(|key| !moves.contains_key(key)).then_some(moves)
}

/// The transactions and accounts that operations touch, each once, in the order in which they are locked.
fn touched(ops: &[Op]) -> (Vec<Uuid>, Vec<&str>) {
    let mut ids = BTreeSet::new();
    let mut accounts = BTreeSet::new();
    for op in ops {
        match op {
            Op::Call(call) => {
                ids.insert(call.transaction.id.uuid());
                let legs = call.branches.iter().filter_map(|index| call.transaction.leg(*index));
                accounts.extend(legs.map(|leg| leg.account.as_str()));
            }
            Op::Open(id, _) | Op::SetState(id, _) => {
                accounts.insert(id.as_str());
            }
            Op::Issue(transaction) => {
                ids.insert(transaction.id.uuid());
                accounts.extend(transaction.leg(0).map(|leg| leg.account.as_str()));
            }
        }
    }
    (ids.into_iter().collect(), accounts.into_iter().collect())
}

fn read_fence(books: &mut Books, row: &Row) -> Result<(), Failure> {
    let id = TransactionId::from_uuid(row.get("transaction_id")).map_err(damaged)?;
    let refusal =
        row.get::<_, Option<&str>>("refusal").map(str::parse::<Refusal>).transpose().map_err(damaged)?;
    let state = FenceState::from_number(row.get("state"), refusal).ok_or_else(|| damaged("fence state"))?;
    let role = role_from_number(row.get("role")).ok_or_else(|| damaged("role"))?;
    let account = AccountId::parse(row.get("account")).map_err(damaged)?;
    let key = (id, row.get::<_, i16>("branch") as u16);
    books.read_fence(
        key,
        Fence { state, descriptor: row.get("descriptor") },
        role,
        account,
        row.get("amount"),
    );
    Ok(())
}

/// Reads an account's row; used by the plain reads, too.
pub(crate) fn read_account(row: &Row) -> Result<Account, Failure> {
    Ok(Account {
        currency: Currency::parse(row.get("currency")).map_err(damaged)?,
        available: row.get("available"),
        held: row.get("held"),
        state: AccountState::from_number(row.get("state")).ok_or_else(|| damaged("account state"))?,
        version: row.get("version"),
        posted_at: row.get("posted_at"),
        created_at: row.get("created_at"),
    })
}

pub(crate) fn role_number(role: Role) -> i16 {
    match role {
        Role::Debit => 1,
        Role::Credit => 2,
        Role::Issue => 3,
        Role::Burn => 4,
    }
}

/// The reverse of the number in the tables.
pub(crate) fn role_from_number(number: i16) -> Option<Role> {
    [Role::Debit, Role::Credit, Role::Issue, Role::Burn].into_iter().find(|role| role_number(*role) == number)
}

/// A row that no version of this program has written.
pub(crate) fn damaged(what: impl std::fmt::Display) -> Failure {
    Failure::Rejected(format!("a row of this shard cannot be read: {what}"))
}
