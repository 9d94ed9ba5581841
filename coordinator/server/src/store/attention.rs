//! Reading what needs attention, one transaction at a time.

use super::{Record, Store, StoreError, record::standing};
use tcc_core::{Attention, Timestamp, TransactionId};
use tokio_postgres::Row;
use uuid::Uuid;

macro_rules! needing {
    () => {
        concat!(
            "SELECT ",
            standing!(),
            ", t.id, t.slot, t.lane, t.descriptor, a.since, a.attempts, a.last_error, a.next_try, a.acknowledged
FROM attention a JOIN transaction t ON t.id = a.transaction_id AND t.attention = a.kind
"
        )
    };
}

const LIST: &str = concat!(
    "-- list_attention\n",
    needing!(),
    "WHERE a.kind = ANY ($1::int2[]) AND (NOT a.acknowledged OR $2) AND (a.since, a.transaction_id) > ($3, $4)
  AND strpos(a.last_error, $5) > 0
ORDER BY a.since, a.transaction_id LIMIT $6"
);

const OF: &str = concat!("-- attention_of\n", needing!(), "WHERE a.transaction_id = $1");

/// A transaction that needs attention, and why.
#[derive(Debug, Clone)]
pub struct Needing {
    /// The transaction.
    pub record: Record,
    /// Since when.
    pub since: Timestamp,
    /// How often its participant served others and failed at it.
    pub attempts: i32,
    /// What went wrong last, for people.
    pub last_error: String,
    /// When it is tried again, if it is.
    pub next_try: Option<Timestamp>,
    /// Parked, and settled by hand.
    pub is_acknowledged: bool,
}

/// Which of them.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Of these kinds.
    pub kinds: Vec<Attention>,
    /// With this text in the last error.
    pub error_contains: String,
    /// Also what was settled by hand.
    pub with_acknowledged: bool,
}

/// Where a page goes on: after this one, in the order of times and ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct After {
    /// Since when it has needed attention.
    pub since: Timestamp,
    /// Its id.
    pub id: Uuid,
}

impl After {
    /// Before all of them.
    pub const NOTHING: Self = Self { since: Timestamp::UNIX_EPOCH, id: Uuid::nil() };
}

impl Needing {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            record: Record::read(row)?,
            since: row.get("since"),
            attempts: row.get("attempts"),
            last_error: row.get("last_error"),
            next_try: row.get("next_try"),
            is_acknowledged: row.get("acknowledged"),
        })
    }
}

impl Store {
    /// Transactions that need attention, those first that have needed it for longest, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn list_attention(
        &self,
        filter: &Filter,
        after: After,
        limit: i64,
    ) -> Result<Vec<Needing>, StoreError> {
        let kinds: Vec<i16> = filter.kinds.iter().map(|kind| kind.number()).collect();
        let (acknowledged, text) = (filter.with_acknowledged, &filter.error_contains);
        let client = self.reader().await?;
        let rows =
            client.query(LIST, &[&kinds, &acknowledged, &after.since, &after.id, text, &limit]).await?;
        rows.iter().map(Needing::read).collect()
    }

    /// What is wrong with one transaction, if something is.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn attention_of(&self, id: TransactionId) -> Result<Option<Needing>, StoreError> {
        let client = self.reader().await?;
        client.query_opt(OF, &[&id.uuid()]).await?.as_ref().map(Needing::read).transpose()
    }
}
