//! What the API and the audit read of a shard, on pooled connections of their own.

use crate::{
    books::{Account, PostingKind},
    executor::{CONNECTION, read_account, role_from_number},
};
use tcc_core::{AccountId, FenceState, Refusal, Role, Timestamp, TransactionId};
use tokio_postgres::Client;
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

pub(crate) async fn postings(
    client: &Client,
    id: &AccountId,
    after: i64,
    limit: i64,
) -> Result<Vec<PostingRow>, String> {
    let sql = "-- postings
        SELECT version, transaction_id, kind, amount, available_after, held_after, recorded_at
        FROM posting WHERE account = $1 AND version > $2 ORDER BY version LIMIT $3";
    let rows = client.query(sql, &[&id.as_str(), &after, &limit]).await.map_err(|e| e.to_string())?;
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

/// Which fences are read.
#[derive(Debug, Clone, Copy)]
pub enum Branches<'a> {
    /// Those of some transactions.
    Of(&'a [Uuid]),
    /// Those of transactions after the first id, up to and with the second. Issues are no transactions.
    Between(Uuid, Uuid),
}

/// A time, by the shard's clock, from which on fences may be written that are not visible yet: every executor that is writing
/// has begun after it.
pub(crate) async fn horizon(client: &Client) -> Result<Timestamp, String> {
    let sql = "-- horizon
        SELECT least(clock_timestamp(), min(xact_start)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = $1";
    Ok(client.query_one(sql, &[&CONNECTION]).await.map_err(|e| e.to_string())?.get(0))
}

/// The transactions of fences that were written from a time on.
pub(crate) async fn fenced_since(client: &mut Client, since: Timestamp) -> Result<Vec<Uuid>, String> {
    // What is new has to be in the summaries first; then few pages are read.
    let summarize = "-- summarize_branches
        SELECT brin_summarize_new_values(x.inhrelid)
        FROM pg_inherits x WHERE x.inhparent = 'branch_by_time'::regclass";
    let sql = "-- fenced_since
        SELECT transaction_id FROM branch WHERE fenced_at >= $1 AND role <> 3";
    let rows = async {
        client.query(summarize, &[]).await?;
        let reading = client.transaction().await?;
        reading.batch_execute("SET LOCAL enable_seqscan = off").await?;
        let rows = reading.query(sql, &[&since]).await?;
        reading.commit().await?;
        Ok::<_, tokio_postgres::Error>(rows)
    };
    Ok(rows.await.map_err(|e| e.to_string())?.iter().map(|row| row.get(0)).collect())
}

/// The transactions of fences with ids below one, the highest first: at most `limit`, one for each fence.
pub(crate) async fn fenced_before(client: &Client, until: Uuid, limit: i64) -> Result<Vec<Uuid>, String> {
    let sql = "-- fenced_before
        SELECT transaction_id FROM branch WHERE transaction_id < $1 AND role <> 3
        ORDER BY transaction_id DESC LIMIT $2";
    let rows = client.query(sql, &[&until, &limit]).await.map_err(|e| e.to_string())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Fences in the order of their keys.
pub(crate) async fn branches(client: &Client, which: Branches<'_>) -> Result<Vec<BranchRow>, String> {
    let columns = "b.transaction_id, b.branch, b.role, b.state, b.account, b.amount, b.refusal, b.descriptor,
        (extract(epoch FROM clock_timestamp() - b.fenced_at) * 1000000)::int8 AS age_us";
    let rows = match which {
        Branches::Between(after, until) => {
            let sql = format!(
                "-- branches_between
                 SELECT {columns} FROM branch b WHERE transaction_id > $1 AND transaction_id <= $2 AND role <> 3
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
            client.query(&sql, &[&ids]).await
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
