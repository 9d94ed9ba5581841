//! Reading one transaction: for the API, and for whoever waits until it stands otherwise.

use super::{Record, record::standing};
use std::collections::HashMap;
use tcc_core::TransactionId;
use tcc_participant::{
    Executor, Failure, Postgres, Session,
    session::{Plans, sort},
};
use uuid::Uuid;

macro_rules! get {
    () => {
        concat!(
            "-- get\nSELECT ",
            standing!(),
            ", t.id, t.slot, t.lane, t.descriptor FROM unnest($1::uuid[]) AS i (id) JOIN transaction t ON t.id = i.id"
        )
    };
}
const GET: &str = get!();
/// By a commit of its own: when it answers, the row is where a synchronous standby has it.
const GET_COMMITTED: &str = concat!(get!(), " ORDER BY t.id FOR NO KEY UPDATE OF t");

/// Asks for a transaction's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Get {
    /// Which.
    pub id: TransactionId,
    /// Whether the answer must be one that no failover can take back.
    pub is_committed: bool,
}

/// Reads batches.
pub struct GetExecutor {
    session: Session,
}

impl GetExecutor {
    /// Not connected yet.
    #[must_use]
    pub fn new(database: &Postgres) -> Self {
        Self { session: Session::new(database, "tccd-get", Plans::Generic) }
    }
}

impl Executor for GetExecutor {
    type Item = Get;
    type Answer = Option<Record>;

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[GET, GET_COMMITTED]).await
    }

    async fn run(&mut self, items: &[Get]) -> Result<Vec<Option<Record>>, Failure> {
        let mut ids: Vec<Uuid> = items.iter().map(|item| item.id.uuid()).collect();
        ids.sort_unstable();
        ids.dedup();
        let sql = if items.iter().any(|item| item.is_committed) { GET_COMMITTED } else { GET };
        let statement = self.session.statement(sql)?;
        let rows = self.session.client()?.query(statement, &[&ids]).await.map_err(|e| sort(&e))?;
        self.session.settle()?;
        let mut records: HashMap<TransactionId, Record> = HashMap::with_capacity(rows.len());
        for row in rows {
            let record = Record::read(&row).map_err(|e| Failure::Rejected(e.to_string()))?;
            records.insert(record.id(), record);
        }
        Ok(items.iter().map(|item| records.get(&item.id).cloned()).collect())
    }
}
