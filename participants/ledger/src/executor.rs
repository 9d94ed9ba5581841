//! One batch of operations in one local transaction.
//!
//! The order of locks is the same for everybody, each in its own statement: existing fences by (transaction, branch), then
//! accounts by id. Then [`Books`] decides in memory, and one statement writes everything, guarded by the states and versions
//! that were read and counted before the COMMIT that follows it without a round trip. Fences and accounts that were absent
//! cannot be locked: they are inserted in the order of their keys, and a duplicate key means that somebody else came
//! first, so the batch is rolled back and decided anew. Reading fences without locking them would let a Cancel and a
//! Confirm both win.
//!
//! Every answer, "done again" included, is given after a commit: a bare read may show a commit that a synchronous standby
//! does not have yet and that a failover would lose.

use crate::books::{Account, AccountState, Answer, Books, Fence, Op, Writes};
use futures::future::{join, join3};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};
use tcc_core::{AccountId, Currency, FenceState, Refusal, Role, Timestamp, TransactionId};
use tcc_participant::{
    Executor, Failure, Session,
    session::{Plans, sort},
};
use tokio_postgres::{Config, Row, types::ToSql};
use uuid::Uuid;

const LOCK_FENCES: &str = "\
-- lock_fences
SELECT b.transaction_id, b.branch, b.state, b.refusal, b.descriptor, b.role, b.account, b.amount
FROM unnest($1::uuid[]) AS i (id)
JOIN branch b ON b.transaction_id = i.id
ORDER BY b.transaction_id, b.branch
FOR NO KEY UPDATE OF b";

const LOCK_ACCOUNTS: &str = "\
-- lock_accounts
SELECT id, currency, available, held, state, version, posted_at, created_at
FROM account
WHERE id = ANY ($1::text[])
ORDER BY id
FOR NO KEY UPDATE";

/// Existing fences are only ever moved from `tried` (1), the one state that is not final.
const WRITE: &str = "\
-- write
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
new_fence AS (
    INSERT INTO branch (transaction_id, branch, role, state, account, amount, refusal, descriptor, fenced_at, decided_at)
    SELECT i.*, clock.now, CASE WHEN i.state <> 1 THEN clock.now END
    FROM clock, unnest($1::uuid[], $2::int2[], $3::int2[], $4::int2[], $5::text[], $6::int8[], $7::text[], $8::bytea[])
        AS i (transaction_id, branch, role, state, account, amount, refusal, descriptor)
),
moved_fence AS (
    UPDATE branch b SET state = i.state, refusal = i.refusal, decided_at = clock.now
    FROM clock, unnest($9::uuid[], $10::int2[], $11::int2[], $12::text[]) AS i (transaction_id, branch, state, refusal)
    WHERE b.transaction_id = i.transaction_id AND b.branch = i.branch AND b.state = 1
    RETURNING 1
),
new_account AS (
    INSERT INTO account (id, currency, available, held, state, version, posted_at, created_at)
    SELECT i.*, clock.now, clock.now
    FROM clock, unnest($13::text[], $14::text[], $15::int8[], $16::int8[], $17::int2[], $18::int8[])
        AS i (id, currency, available, held, state, version)
),
changed_account AS (
    UPDATE account a
    SET available = i.available, held = i.held, version = i.version, posted_at = greatest(clock.now, a.posted_at)
    FROM clock, unnest($19::text[], $20::int8[], $21::int8[], $22::int8[], $23::int8[])
        AS i (id, available, held, version, version_read)
    WHERE a.id = i.id AND a.version = i.version_read
    RETURNING 1
),
new_posting AS (
    INSERT INTO posting (account, version, transaction_id, branch, kind, amount, available_after, held_after, recorded_at)
    SELECT i.account, i.version, i.transaction_id, i.branch, i.kind, i.amount, i.available_after, i.held_after,
           greatest(clock.now, i.posted_before)
    FROM clock, unnest($24::text[], $25::int8[], $26::uuid[], $27::int2[], $28::int2[], $29::int8[], $30::int8[],
                       $31::int8[], $32::timestamptz[])
        AS i (account, version, transaction_id, branch, kind, amount, available_after, held_after, posted_before)
)
SELECT expect_rows((SELECT count(*) FROM moved_fence), cardinality($9::uuid[]), 'fences'),
       expect_rows((SELECT count(*) FROM changed_account), cardinality($19::text[]), 'accounts'),
       (SELECT now FROM clock)";

const IDENTIFY: &str = "\
-- identify
SELECT (SELECT name FROM shard), array_agg(bucket) FROM bucket";

/// Owns one connection to a shard.
pub struct ShardExecutor {
    session: Session,
    name: String,
    buckets: Arc<HashSet<u16>>,
}

impl ShardExecutor {
    /// An executor for a shard that serves these buckets.
    #[must_use]
    pub fn new(name: &str, config: &Config, buckets: Arc<HashSet<u16>>) -> Self {
        Self { session: Session::new(config, "tcc-shard", Plans::Generic), name: name.to_owned(), buckets }
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

    async fn attempt(&mut self, ops: &[Op]) -> Result<Vec<Answer>, Failure> {
        let mut books = self.lock(ops).await?;
        let mut answers: Vec<_> = ops.iter().map(|op| books.decide(op)).collect();
        let now = self.write(books.into_writes()).await?;
        self.session.settle()?;
        // An account that is new has the time of this commit.
        for answer in &mut answers {
            if let Answer::Account(account) | Answer::Issued(_, Some(account)) = answer
                && account.created_at == Timestamp::UNIX_EPOCH
            {
                account.created_at = now;
            }
        }
        Ok(answers)
    }

    /// Begins, locks and reads what the operations touch, in one round trip.
    async fn lock(&self, ops: &[Op]) -> Result<Books, Failure> {
        let (ids, accounts) = touched(ops);
        let client = self.session.client()?;
        let (fences, locks) = (self.session.statement(LOCK_FENCES)?, self.session.statement(LOCK_ACCOUNTS)?);
        // `join3` polls in this order, so the statements arrive in this order.
        let (begun, fences, accounts) = join3(
            client.batch_execute("BEGIN"),
            client.query(fences, &[&ids]),
            client.query(locks, &[&accounts]),
        )
        .await;
        begun.map_err(|e| sort(&e))?;
        let mut books = Books::new(Arc::clone(&self.buckets));
        for row in fences.map_err(|e| sort(&e))? {
            read_fence(&mut books, &row)?;
        }
        for row in accounts.map_err(|e| sort(&e))? {
            let id = AccountId::parse(row.get("id")).map_err(damaged)?;
            books.read_account(id, read_account(&row)?);
        }
        Ok(books)
    }

    /// Writes and commits, in one round trip. The write counts its rows, so that its COMMIT is a ROLLBACK if one is missing.
    async fn write(&self, writes: Writes) -> Result<Timestamp, Failure> {
        let client = self.session.client()?;
        let Writes { new_fences, moved_fences, new_accounts, changed_accounts, postings } = writes;

        let nf_id: Vec<Uuid> = new_fences.iter().map(|f| f.key.0.uuid()).collect();
        let nf_branch: Vec<i16> = new_fences.iter().map(|f| f.key.1 as i16).collect();
        let nf_role: Vec<i16> = new_fences.iter().map(|f| role_number(f.role)).collect();
        let nf_state: Vec<i16> = new_fences.iter().map(|f| f.fence.state.number()).collect();
        let nf_account: Vec<&str> = new_fences.iter().map(|f| f.account.as_str()).collect();
        let nf_amount: Vec<i64> = new_fences.iter().map(|f| f.amount).collect();
        let nf_refusal: Vec<Option<&str>> =
            new_fences.iter().map(|f| f.fence.state.refusal().map(Refusal::code)).collect();
        let nf_descriptor: Vec<&[u8]> = new_fences.iter().map(|f| f.fence.descriptor.as_slice()).collect();

        let mf_id: Vec<Uuid> = moved_fences.iter().map(|((id, _), _)| id.uuid()).collect();
        let mf_branch: Vec<i16> = moved_fences.iter().map(|((_, branch), _)| *branch as i16).collect();
        let mf_state: Vec<i16> = moved_fences.iter().map(|(_, state)| state.number()).collect();
        let mf_refusal: Vec<Option<&str>> =
            moved_fences.iter().map(|(_, state)| state.refusal().map(Refusal::code)).collect();

        let na_id: Vec<&str> = new_accounts.iter().map(|(id, _)| id.as_str()).collect();
        let na_currency: Vec<&str> = new_accounts.iter().map(|(_, a)| a.currency.as_str()).collect();
        let na_available: Vec<i64> = new_accounts.iter().map(|(_, a)| a.available).collect();
        let na_held: Vec<i64> = new_accounts.iter().map(|(_, a)| a.held).collect();
        let na_state: Vec<i16> = new_accounts.iter().map(|(_, a)| a.state.number()).collect();
        let na_version: Vec<i64> = new_accounts.iter().map(|(_, a)| a.version).collect();

        let ca_id: Vec<&str> = changed_accounts.iter().map(|(id, _, _)| id.as_str()).collect();
        let ca_available: Vec<i64> = changed_accounts.iter().map(|(_, a, _)| a.available).collect();
        let ca_held: Vec<i64> = changed_accounts.iter().map(|(_, a, _)| a.held).collect();
        let ca_version: Vec<i64> = changed_accounts.iter().map(|(_, a, _)| a.version).collect();
        let ca_read: Vec<i64> = changed_accounts.iter().map(|(_, _, read)| *read).collect();

        let p_account: Vec<&str> = postings.iter().map(|(p, _)| p.account.as_str()).collect();
        let p_version: Vec<i64> = postings.iter().map(|(p, _)| p.version).collect();
        let p_id: Vec<Uuid> = postings.iter().map(|(p, _)| p.transaction.uuid()).collect();
        let p_branch: Vec<i16> = postings.iter().map(|(p, _)| p.branch as i16).collect();
        let p_kind: Vec<i16> = postings.iter().map(|(p, _)| p.kind as i16).collect();
        let p_amount: Vec<i64> = postings.iter().map(|(p, _)| p.amount).collect();
        let p_available: Vec<i64> = postings.iter().map(|(p, _)| p.available_after).collect();
        let p_held: Vec<i64> = postings.iter().map(|(p, _)| p.held_after).collect();
        let p_before: Vec<Timestamp> = postings.iter().map(|(_, at)| *at).collect();

        let write = self.session.statement(WRITE)?;
        #[rustfmt::skip]
        let parameters: [&(dyn ToSql + Sync); 32] = [
            &nf_id, &nf_branch, &nf_role, &nf_state, &nf_account, &nf_amount, &nf_refusal, &nf_descriptor,
            &mf_id, &mf_branch, &mf_state, &mf_refusal,
            &na_id, &na_currency, &na_available, &na_held, &na_state, &na_version,
            &ca_id, &ca_available, &ca_held, &ca_version, &ca_read,
            &p_account, &p_version, &p_id, &p_branch, &p_kind, &p_amount, &p_available, &p_held, &p_before,
        ];
        let (written, committed) =
            join(client.query_one(write, &parameters), client.batch_execute("COMMIT")).await;
        let row = written.map_err(|e| sort(&e))?;
        // A COMMIT that fails has not said whether it happened.
        committed.map_err(|e| Failure::Disconnected(e.to_string()))?;
        Ok(row.get(2))
    }
}

impl Executor for ShardExecutor {
    type Item = Op;
    type Answer = Answer;

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[IDENTIFY, LOCK_FENCES, LOCK_ACCOUNTS, WRITE]).await?;
        self.identify().await
    }

    async fn run(&mut self, ops: &[Op]) -> Result<Vec<Answer>, Failure> {
        let result = self.attempt(ops).await;
        if let Err(Failure::Conflict(_) | Failure::Rejected(_)) = result {
            let rolled_back = self.session.client()?.batch_execute("ROLLBACK").await;
            rolled_back.map_err(|e| Failure::Disconnected(e.to_string()))?;
        }
        result
    }
}

/// The transactions and accounts that operations touch, each once, in the order in which they are locked.
fn touched(ops: &[Op]) -> (Vec<Uuid>, Vec<&str>) {
    let mut ids = BTreeSet::new();
    let mut accounts = BTreeSet::new();
    for op in ops {
        match op {
            Op::Call(call) => {
                ids.insert(call.transaction.id.uuid());
                accounts.extend(
                    call.branches.iter().map(|index| call.transaction.branch(*index).account.as_str()),
                );
            }
            Op::Open(id, _) => {
                accounts.insert(id.as_str());
            }
            Op::Issue(transaction) => {
                ids.insert(transaction.id.uuid());
                accounts.insert(transaction.branch(0).account.as_str());
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

fn role_number(role: Role) -> i16 {
    match role {
        Role::Debit => 1,
        Role::Credit => 2,
        Role::Issue => 3,
    }
}

/// The reverse of the number in the tables.
pub(crate) fn role_from_number(number: i16) -> Option<Role> {
    [Role::Debit, Role::Credit, Role::Issue].into_iter().find(|role| role_number(*role) == number)
}

/// A row that no version of this program has written.
pub(crate) fn damaged(what: impl std::fmt::Display) -> Failure {
    Failure::Rejected(format!("a row of this shard cannot be read: {what}"))
}
