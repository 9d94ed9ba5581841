//! What the API and the audit read of a shard, on pooled connections of their own.

use crate::{
    books::{Account, PostingKind},
    executor::{CONNECTION, read_account, role_from_number, role_number},
    schema::BRANCH,
};
use jiff::SignedDuration;
use std::time::Instant;
use tcc_core::{AccountId, FenceState, Refusal, Role, Timestamp, Transaction, TransactionId};
use tcc_participant::{
    partitions::{WEEK, first_id},
    session::BY_ID,
};
use tokio_postgres::{Client, GenericClient, IsolationLevel};
use uuid::Uuid;

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The shard does not answer, or not in time.
    #[error("reading from shard {shard}: {cause}")]
    Unreachable {
        /// Which.
        shard: String,
        /// Why, for people.
        cause: String,
    },
    /// A row that no version of this program has written.
    #[error("a row of shard {shard} cannot be read: {what}")]
    Damaged {
        /// Which.
        shard: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A line of an account's book.
#[derive(Debug, Clone)]
pub struct PostingRow {
    /// 1, 2, 3, … of the account.
    pub version: i64,
    /// Because of which transaction.
    pub transaction: TransactionId,
    /// From where to where.
    pub kind: PostingKind,
    /// How much.
    pub amount: i64,
    /// The balance after it.
    pub available_after: i64,
    /// The frozen part after it.
    pub held_after: i64,
    /// By the shard's clock.
    pub recorded_at: Timestamp,
}

/// A fence, as the audit pairs it with its counterpart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchRow {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// Which of its branches.
    pub branch: u16,
    /// What it does.
    pub role: Role,
    /// How far it is.
    pub state: FenceState,
    /// To which account.
    pub account: String,
    /// How much.
    pub amount: i64,
    /// The transaction as this fence knows it.
    pub descriptor: Vec<u8>,
    /// Microseconds from its Try, or its tombstone, to now: by the shard's clock.
    pub age_us: i64,
}

/// A fence with its times, as an operator looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceRow {
    /// Which of the transaction's branches.
    pub branch: u16,
    /// How far it is.
    pub state: FenceState,
    /// When it was written, by the shard's clock.
    pub fenced_at: Timestamp,
    /// When it was moved from `tried`, or written as something else.
    pub decided_at: Option<Timestamp>,
}

/// A transaction's fences.
pub(crate) async fn fences(client: &Client, transaction: Uuid) -> Result<Vec<FenceRow>, String> {
    let sql = "-- fences
        SELECT branch, state, refusal, fenced_at, decided_at FROM branch WHERE transaction_id = $1 ORDER BY branch";
    let fence = |row: &tokio_postgres::Row| {
        let refusal = row.get::<_, Option<&str>>("refusal").map(str::parse::<Refusal>).transpose().ok()?;
        Some(FenceRow {
            branch: row.get::<_, i16>("branch") as u16,
            state: FenceState::from_number(row.get("state"), refusal)?,
            fenced_at: row.get("fenced_at"),
            decided_at: row.get("decided_at"),
        })
    };
    let rows = client.query(sql, &[&transaction]).await.map_err(|e| e.to_string())?;
    rows.iter().map(|row| fence(row).ok_or_else(|| "a fence has an unknown state".to_owned())).collect()
}

/// A transaction's postings on an account, which were recorded within seconds of these times: there is no index by transaction.
/// An account with very many postings may make this take long, so it is given up after two seconds.
pub(crate) async fn postings_near(
    client: &mut Client,
    id: &AccountId,
    transaction: Uuid,
    times: [Timestamp; 2],
) -> Result<Vec<PostingRow>, String> {
    let sql = "-- postings_near
        SELECT version, transaction_id, kind, amount, available_after, held_after, recorded_at
        FROM posting
        WHERE account = $1 AND transaction_id = $2
          AND (recorded_at BETWEEN $3::timestamptz - interval '10 s' AND $3::timestamptz + interval '10 s'
            OR recorded_at BETWEEN $4::timestamptz - interval '10 s' AND $4::timestamptz + interval '10 s')
        ORDER BY version";
    let rows = async {
        let reading = client.transaction().await?;
        reading.batch_execute("SET LOCAL statement_timeout = '2s'").await?;
        let rows = reading.query(sql, &[&id.as_str(), &transaction, &times[0], &times[1]]).await?;
        reading.commit().await?;
        Ok::<_, tokio_postgres::Error>(rows)
    };
    let rows = rows.await.map_err(|e| e.to_string())?;
    rows.iter()
        .map(|row| read_posting(row).ok_or_else(|| "a posting has an unknown id or kind".to_owned()))
        .collect()
}

pub(crate) async fn account(client: &Client, id: &AccountId) -> Result<Option<Account>, String> {
    let sql = "-- account
        SELECT id, currency, available, held, state, version, posted_at, created_at FROM account WHERE id = $1";
    let row = client.query_opt(sql, &[&id.as_str()]).await.map_err(|e| e.to_string())?;
    row.map(|row| read_account(&row).map_err(|e| e.to_string())).transpose()
}

/// Which postings of an account are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Postings {
    /// Those with a greater version.
    pub after: i64,
    /// Those recorded then or later.
    pub from: Option<Timestamp>,
    /// Those recorded before then.
    pub until: Option<Timestamp>,
    /// At most so many.
    pub limit: i64,
}

pub(crate) async fn postings(
    client: &Client,
    id: &AccountId,
    which: Postings,
) -> Result<Vec<PostingRow>, String> {
    let Postings { mut after, from, until, limit } = which;
    if let Some(from) = from {
        after = after.max(version_before(client, id, from).await?);
    }
    let last = match until {
        Some(until) => version_before(client, id, until).await?,
        None => i64::MAX,
    };
    let sql = "-- postings
        SELECT version, transaction_id, kind, amount, available_after, held_after, recorded_at
        FROM posting WHERE account = $1 AND version > $2 AND version <= $3 ORDER BY version LIMIT $4";
    let rows = client.query(sql, &[&id.as_str(), &after, &last, &limit]).await;
    let rows = rows.map_err(|e| e.to_string())?;
    rows.iter()
        .map(|row| read_posting(row).ok_or_else(|| "a posting has an unknown id or kind".to_owned()))
        .collect()
}

fn read_posting(row: &tokio_postgres::Row) -> Option<PostingRow> {
    Some(PostingRow {
        version: row.get("version"),
        transaction: TransactionId::from_uuid(row.get("transaction_id")).ok()?,
        kind: PostingKind::from_number(row.get("kind"))?,
        amount: row.get("amount"),
        available_after: row.get("available_after"),
        held_after: row.get("held_after"),
        recorded_at: row.get("recorded_at"),
    })
}

/// What an account had at a time, and by which posting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalanceRow {
    /// Of the last posting at that time or before it.
    pub version: i64,
    /// The balance after it.
    pub available: i64,
    /// The frozen part after it.
    pub held: i64,
    /// When it was recorded, by the shard's clock.
    pub recorded_at: Timestamp,
}

/// As fine as times are kept.
const MICROSECOND: SignedDuration = SignedDuration::from_micros(1);

/// The version of the last posting of an account before a time; 0 if there is none. An account's versions have no gap, and
/// their times never fall, so halving finds it among any number of postings. What is not there is older than what is kept.
async fn version_before(client: &Client, id: &AccountId, time: Timestamp) -> Result<i64, String> {
    let sql = "-- version_before
        WITH RECURSIVE search (low, high) AS (
            SELECT 0::int8, version FROM account WHERE id = $1
            UNION ALL
            SELECT CASE WHEN p.is_before THEN m.middle ELSE m.low END, CASE WHEN p.is_before THEN m.high ELSE m.middle - 1 END
            FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM search WHERE low < high) AS m
            CROSS JOIN LATERAL (
                SELECT coalesce((SELECT recorded_at FROM posting WHERE account = $1 AND version = m.middle), '-infinity') < $2
            ) AS p (is_before)
        )
        SELECT low FROM search WHERE low = high";
    let row = client.query_opt(sql, &[&id.as_str(), &time]).await.map_err(|e| e.to_string())?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// The last posting of an account at a time or before it.
pub(crate) async fn balance_at(
    client: &Client,
    id: &AccountId,
    at: Timestamp,
) -> Result<Option<BalanceRow>, String> {
    let Ok(after) = at.checked_add(MICROSECOND) else { return Err(format!("{at} is out of range")) };
    let version = version_before(client, id, after).await?;
    let sql = "-- balance_at
        SELECT version, available_after, held_after, recorded_at FROM posting WHERE account = $1 AND version = $2";
    let row = client.query_opt(sql, &[&id.as_str(), &version]).await.map_err(|e| e.to_string())?;
    Ok(row.map(|row| BalanceRow {
        version: row.get("version"),
        available: row.get("available_after"),
        held: row.get("held_after"),
        recorded_at: row.get("recorded_at"),
    }))
}

/// An account, and the open debits that make up what it holds.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// The account.
    pub account: Account,
    /// The newest ids first.
    pub open: Vec<OpenDebit>,
    /// There are more of them than were asked for.
    pub is_truncated: bool,
}

/// An open debit.
#[derive(Debug, Clone)]
pub struct OpenDebit {
    /// What it is for.
    pub transaction: Transaction,
    /// How much it holds.
    pub amount: i64,
}

/// An account and at most so many of its open debits, in one snapshot. Looks no further than until their sum is what it holds.
pub(crate) async fn holdings(
    client: &mut Client,
    id: &AccountId,
    limit: usize,
) -> Result<Option<Holdings>, String> {
    let text = |e: tokio_postgres::Error| e.to_string();
    let snapshot = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let snapshot = snapshot.start().await.map_err(text)?;
    let sql = "-- account_of_holdings
        SELECT id, currency, available, held, state, version, posted_at, created_at, clock_timestamp() AS now
        FROM account WHERE id = $1";
    let Some(row) = snapshot.query_opt(sql, &[&id.as_str()]).await.map_err(text)? else { return Ok(None) };
    let account = read_account(&row).map_err(|e| e.to_string())?;
    let (mut open, mut missing) = (Vec::new(), account.held);
    let newest = first_id(row.get::<_, Timestamp>("now") + CLOCKS);
    by_summaries(&snapshot).await.map_err(text)?;
    for leaf in leaves(&snapshot).await.map_err(text)? {
        let sql = format!(
            "-- open_debits
             SELECT transaction_id, amount, descriptor FROM {}
             WHERE account = $1 AND role = 1 AND state = 1 AND fenced_at >= $2
               AND (transaction_id >= $3) IS TRUE AND (transaction_id < $4) IS TRUE
             ORDER BY transaction_id DESC LIMIT $5",
            leaf.name
        );
        for Window { after, before, written_from } in leaf.windows(Uuid::nil(), newest) {
            let left = (limit - open.len()) as i64;
            if missing <= 0 || left == 0 {
                break;
            }
            let account = id.as_str();
            let rows = snapshot.query(&sql, &[&account, &written_from, &after, &before, &left]).await;
            for row in rows.map_err(text)? {
                let amount: i64 = row.get("amount");
                missing -= amount;
                let transaction = TransactionId::from_uuid(row.get("transaction_id"))
                    .map_err(|e| e.to_string())
                    .and_then(|id| Transaction::decode(id, row.get("descriptor")).map_err(|e| e.to_string()));
                open.push(OpenDebit { transaction: transaction?, amount });
            }
        }
    }
    snapshot.commit().await.map_err(text)?;
    Ok(Some(Holdings { account, open, is_truncated: missing > 0 }))
}

/// Which transactions of an account are listed: those in which it has this role, with ids from one up to another, which is
/// not among them.
#[derive(Debug, Clone, Copy)]
pub struct Listing<'a> {
    /// Whose.
    pub account: &'a AccountId,
    /// What they do to it.
    pub role: Role,
    /// Their ids were made then or later.
    pub from: Timestamp,
    /// Their ids are smaller.
    pub before: Uuid,
    /// At most so many.
    pub limit: i64,
    /// What is not found by then is not waited for.
    pub until: Instant,
}

/// Some of the transactions of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The newest ids first.
    pub ids: Vec<Uuid>,
    /// How far it was looked, if that is not to the end: everything from this id on is among them.
    pub reached: Option<Uuid>,
}

/// A fence is not written earlier than this before the time in its id, which may lie five minutes ahead, by another clock.
const CLOCKS: SignedDuration = SignedDuration::from_hours(1);
/// Of each partition the last hour is looked at first, then eight times as much, and so on: an account with very many
/// transactions is read from its newest ones, without a look at all of them.
const WINDOW: (SignedDuration, i32) = (SignedDuration::from_hours(1), 8);

/// The transactions of an account, the newest ids first.
pub(crate) async fn listed(client: &mut Client, which: Listing<'_>) -> Result<Listed, String> {
    let text = |e: tokio_postgres::Error| e.to_string();
    let snapshot = client.build_transaction().read_only(true).start().await.map_err(text)?;
    by_summaries(&snapshot).await.map_err(text)?;
    let mut listed = Listed { ids: Vec::new(), reached: None };
    'looking: for leaf in leaves(&snapshot).await.map_err(text)? {
        // The conditions on the id are written so that the primary key cannot serve them: it would, by reading everything.
        let sql = format!(
            "-- listed
             SELECT transaction_id FROM {}
             WHERE account = $1 AND role = $2 AND fenced_at >= $3
               AND (transaction_id >= $4) IS TRUE AND (transaction_id < $5) IS TRUE
             ORDER BY transaction_id DESC LIMIT $6",
            leaf.name
        );
        for Window { after, before, written_from } in leaf.windows(first_id(which.from), which.before) {
            let (role, left) = (role_number(which.role), which.limit - listed.ids.len() as i64);
            let account = which.account.as_str();
            let rows = snapshot.query(&sql, &[&account, &role, &written_from, &after, &before, &left]).await;
            listed.ids.extend(rows.map_err(text)?.iter().map(|row| row.get::<_, Uuid>(0)));
            if listed.ids.len() as i64 >= which.limit {
                listed.reached = listed.ids.last().copied();
                break 'looking;
            }
            if Instant::now() >= which.until {
                listed.reached = Some(after);
                break 'looking;
            }
        }
    }
    snapshot.commit().await.map_err(text)?;
    Ok(listed)
}

/// When an id was made, by its own account.
fn time_of(id: Uuid) -> Timestamp {
    let millis = (id.as_u128() >> 80) as i64;
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

/// A partition of the fences.
struct Leaf {
    name: String,
    low: Timestamp,
    high: Timestamp,
}

/// Ids from one up to another, and a time before which none of their fences was written.
struct Window {
    after: Uuid,
    before: Uuid,
    written_from: Timestamp,
}

impl Leaf {
    /// What of a partition lies between two ids, the newest first, in windows that grow.
    fn windows(&self, from: Uuid, before: Uuid) -> impl Iterator<Item = Window> {
        let floor = first_id(self.low).max(from);
        let (mut before, mut width) = (first_id(self.high).min(before), WINDOW.0);
        std::iter::from_fn(move || {
            if before <= floor {
                return None;
            }
            let after = first_id(time_of(before) - width).max(floor);
            let window = Window { after, before, written_from: time_of(after) - CLOCKS };
            before = after;
            width *= WINDOW.1;
            Some(window)
        })
    }
}

/// The partitions of the fences, the newest first. A read that names one of them is planned for it alone.
async fn leaves(client: &impl GenericClient) -> Result<Vec<Leaf>, tokio_postgres::Error> {
    let sql = "-- fence_partitions
        SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'branch'::regclass ORDER BY c.relname DESC";
    let rows = client.query(sql, &[]).await?;
    let leaf = |name: String| BRANCH.range(&name).map(|(low, high)| Leaf { name, low, high });
    Ok(rows.iter().filter_map(|row| leaf(row.get(0))).collect())
}

/// Has reads of one account's fences go by the index that summarizes pages, which the planner takes to be worse than it is.
async fn by_summaries(client: &impl GenericClient) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off").await
}

/// Which fences are read.
#[derive(Debug, Clone, Copy)]
pub enum Branches<'a> {
    /// Those of some transactions.
    Of(&'a [Uuid]),
    /// Those of transactions after the first id, up to and with the second. Issues are no transactions.
    Between(Uuid, Uuid),
}

/// A time, by the shard's clock, from which on fences may be written that are not visible yet: every executor that is writing
/// has begun after it. But for a moment: a server process says when its transaction began just after it has noted that time.
pub(crate) async fn horizon(client: &Client) -> Result<Timestamp, String> {
    // The clock is read before the list: who begins between the two is not in it, and has a later time.
    let sql = "-- horizon
        SELECT least(n.now, min(a.xact_start)), coalesce(bool_or(a.pid IS NOT NULL AND a.state IS NULL), false)
        FROM (SELECT clock_timestamp() AS now) AS n
        LEFT JOIN pg_stat_activity a ON a.datname = current_database() AND a.application_name = $1
        GROUP BY n.now";
    let row = client.query_one(sql, &[&CONNECTION]).await.map_err(|e| e.to_string())?;
    if row.get(1) {
        // What a user may not see of others is NULL.
        return Err(
            "it is hidden what another instance is writing; grant pg_read_all_stats to tccd's user".into()
        );
    }
    Ok(row.get(0))
}

/// The shard's clock.
pub(crate) async fn now(client: &Client) -> Result<Timestamp, String> {
    Ok(client.query_one("SELECT clock_timestamp()", &[]).await.map_err(|e| e.to_string())?.get(0))
}

/// Takes what was written since a time into the summaries of a table's index by time: then few pages are read. The older
/// partitions, into which nothing is written, are left out: looking for what is new in one takes time, too.
pub(crate) async fn summarize(
    client: &Client,
    table: &str,
    since: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let sql = "-- summarize
        SELECT summarize(($1::text || '_by_time')::regclass, $2)";
    // A partition covers a week from the hour in its name on, and what is written may have an id of a day before.
    let before = since - WEEK - SignedDuration::from_hours(25);
    let last = format!("{table}_{}", before.strftime("%Y%m%d%H"));
    client.execute(sql, &[&table, &last]).await.map(drop)
}

/// The transactions of fences that were written from one time on and before another.
pub(crate) async fn fenced_between(
    client: &mut Client,
    from: Timestamp,
    until: Timestamp,
) -> Result<Vec<Uuid>, String> {
    let sql = "-- fenced_between
        SELECT transaction_id FROM branch WHERE fenced_at >= $1 AND fenced_at < $2 AND role < 3";
    let rows = async {
        summarize(client, "branch", from).await?;
        let reading = client.transaction().await?;
        reading.batch_execute("SET LOCAL enable_seqscan = off").await?;
        let rows = reading.query(sql, &[&from, &until]).await?;
        reading.commit().await?;
        Ok::<_, tokio_postgres::Error>(rows)
    };
    Ok(rows.await.map_err(|e| e.to_string())?.iter().map(|row| row.get(0)).collect())
}

/// The transactions of fences with ids below one, the highest first: at most `limit`, one for each fence.
pub(crate) async fn fenced_before(client: &Client, until: Uuid, limit: i64) -> Result<Vec<Uuid>, String> {
    let sql = "-- fenced_before
        SELECT transaction_id FROM branch WHERE transaction_id < $1 AND role < 3
        ORDER BY transaction_id DESC LIMIT $2";
    let rows = client.query(sql, &[&until, &limit]).await.map_err(|e| e.to_string())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Fences in the order of their keys.
pub(crate) async fn branches(client: &mut Client, which: Branches<'_>) -> Result<Vec<BranchRow>, String> {
    let columns = "b.transaction_id, b.branch, b.role, b.state, b.account, b.amount, b.refusal, b.descriptor,
        (extract(epoch FROM clock_timestamp() - b.fenced_at) * 1000000)::int8 AS age_us";
    let rows = match which {
        Branches::Between(after, until) => {
            let sql = format!(
                "-- branches_between
                 SELECT {columns} FROM branch b WHERE transaction_id > $1 AND transaction_id <= $2 AND role < 3
                 ORDER BY transaction_id, branch"
            );
            client.query(&sql, &[&after, &until]).await
        }
        Branches::Of(ids) => {
            let sql = format!(
                "-- branches_of
                 SELECT {columns} FROM unnest($1::uuid[]) AS i (id) JOIN branch b ON b.transaction_id = i.id
                 ORDER BY b.transaction_id, b.branch"
            );
            let found = async {
                let reading = client.transaction().await?;
                reading.batch_execute(BY_ID).await?;
                let rows = reading.query(&sql, &[&ids]).await?;
                reading.commit().await?;
                Ok(rows)
            };
            found.await
        }
    };
    let branch = |row: &tokio_postgres::Row| {
        let refusal = row.get::<_, Option<&str>>("refusal").map(str::parse::<Refusal>).transpose().ok()?;
        Some(BranchRow {
            transaction: TransactionId::from_uuid(row.get("transaction_id")).ok()?,
            branch: row.get::<_, i16>("branch") as u16,
            role: role_from_number(row.get("role"))?,
            state: FenceState::from_number(row.get("state"), refusal)?,
            account: row.get("account"),
            amount: row.get("amount"),
            descriptor: row.get("descriptor"),
            age_us: row.get("age_us"),
        })
    };
    let rows = rows.map_err(|e| e.to_string())?;
    rows.iter()
        .map(|row| branch(row).ok_or_else(|| "a fence has an unknown id, role or state".to_owned()))
        .collect()
}
