//! The local transaction that a resource works in.
//!
//! A resource can read and write with it, and cannot end it: the fence must commit together with the effect.

use std::{collections::HashMap, sync::Mutex};
use tokio_postgres::{Client, Error, Row, Statement, types::ToSql};

/// A local transaction at READ COMMITTED. The SDK has opened it, and commits it.
pub struct Tx<'a> {
    client: &'a Client,
    statements: &'a Statements,
}

/// The statements that were prepared on one connection.
#[derive(Default)]
pub(crate) struct Statements(Mutex<HashMap<String, Statement>>);

/// Statements whose texts are made up each time must not fill the memory of the server.
const MOST_STATEMENTS: usize = 256;

impl Statements {
    /// Forgets all of them: what they name may have changed.
    pub(crate) fn clear(&self) {
        self.0.lock().expect("no holder panics").clear();
    }
}

impl<'a> Tx<'a> {
    pub(crate) fn new(client: &'a Client, statements: &'a Statements) -> Self {
        Self { client, statements }
    }

    /// Executes a statement, which is prepared once for each connection. Answers how many rows it changed.
    ///
    /// # Errors
    ///
    /// PostgreSQL's. The transaction cannot go on after one: hand it up with `?`.
    pub async fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.client.execute(&self.prepare(sql).await?, parameters).await
    }

    /// Executes a statement and answers its rows.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.client.query(&self.prepare(sql).await?, parameters).await
    }

    /// Executes a statement and answers its only row, if there is one.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`], and if there are several rows.
    pub async fn query_opt(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        self.client.query_opt(&self.prepare(sql).await?, parameters).await
    }

    /// Executes a statement and answers its only row.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`], and if there is not exactly one row.
    pub async fn query_one(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.client.query_one(&self.prepare(sql).await?, parameters).await
    }

    /// Marks the point to which [`Tx::restore`] goes back.
    pub(crate) async fn save(&self) -> Result<(), Error> {
        self.client.batch_execute("SAVEPOINT tcc").await
    }

    /// Undoes what was done since [`Tx::save`].
    pub(crate) async fn restore(&self) -> Result<(), Error> {
        self.client.batch_execute("ROLLBACK TO SAVEPOINT tcc").await
    }

    async fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        let known = self.statements.0.lock().expect("no holder panics").get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        let mut statements = self.statements.0.lock().expect("no holder panics");
        if statements.len() >= MOST_STATEMENTS {
            statements.clear();
        }
        statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}
