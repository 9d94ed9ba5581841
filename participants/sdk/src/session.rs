//! One PostgreSQL connection whose owner must know whether a commit happened.
//!
//! PostgreSQL can answer a COMMIT with success and a warning that the synchronous standby does not have it (SQLSTATE
//! 01000); tokio-postgres drops such notices. A session reads them: after one, [`Session::settle`] says that the outcome
//! is unknown. It sends no cancel requests, since one that meets a COMMIT produces exactly that warning. Whatever goes
//! wrong is sorted into the [`Failure`]s that a batch can have.

use crate::{batch::Failure, crash, postgres::Postgres};
use futures::StreamExt as _;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio_postgres::{
    AsyncMessage, Client, Statement,
    error::{DbError, Severity, SqlState},
};

/// Settings of a connection, sent when it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plans {
    /// For work by id sets over partitioned tables: plan once, prune while running. Planning each batch anew over 100
    /// partitions costs 65 ms, running the generic plan 2 ms. Such a plan may be made while a table is empty and is kept
    /// when it is not, so it may only loop over the set and look each id up.
    Generic,
    /// For range reads over partitioned tables: plan each time, so that the planner sees the bounds and locks one partition.
    Custom,
    /// For statements of somebody else's: as PostgreSQL decides.
    Usual,
}

/// One connection, opened when asked, with its prepared statements.
pub struct Session {
    /// The crash point between a commit and its answer.
    committed: String,
    database: Postgres,
    plans: Plans,
    live: Option<Live>,
}

struct Live {
    client: Client,
    statements: HashMap<&'static str, Statement>,
    in_doubt: Arc<AtomicBool>,
}

/// For one transaction that looks many ids up over partitioned tables: each by itself, whatever the planner takes the tables for.
pub const BY_ID: &str = "\
SET LOCAL enable_seqscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL max_parallel_workers_per_gather = 0;
SET LOCAL jit = off";

impl Session {
    /// A session that is not connected yet.
    #[must_use]
    pub fn new(database: &Postgres, application_name: &str, plans: Plans) -> Self {
        let committed = format!("{application_name} committed");
        Self { committed, database: database.bounded(application_name).writable(), plans, live: None }
    }

    /// Opens the connection, dropping the one there was, and prepares the statements.
    ///
    /// # Errors
    ///
    /// [`Failure::Disconnected`] if the server is not reached; others if it does not know what a statement names.
    pub async fn connect(&mut self, statements: &[&'static str]) -> Result<(), Failure> {
        self.live = None;
        let (client, mut messages) = self.database.connect().await.map_err(|e| sort(&e))?;
        let in_doubt = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&in_doubt);
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                match message {
                    Ok(AsyncMessage::Notice(notice)) if doubts_commit(&notice) => {
                        tracing::warn!(notice = notice.message(), "a commit is in doubt");
                        seen.store(true, Ordering::SeqCst);
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        });
        let plans = match self.plans {
            Plans::Generic => {
                "SET plan_cache_mode = force_generic_plan;
                 SET enable_seqscan = off;
                 SET enable_hashjoin = off;
                 SET enable_mergejoin = off;"
            }
            Plans::Custom => "SET plan_cache_mode = force_custom_plan;",
            Plans::Usual => "",
        };
        client
            .batch_execute(&format!(
                "{plans}
                 SET default_transaction_isolation = 'read committed';
                 -- Plans over many partitions look costly; compiling them would cost milliseconds each time.
                 SET jit = off;
                 SET lock_timeout = '500ms';
                 SET statement_timeout = '8s';
                 -- A process that was stopped in the middle must not keep its locks for long.
                 SET idle_in_transaction_session_timeout = '3s'"
            ))
            .await
            .map_err(|e| sort(&e))?;
        let mut prepared = HashMap::new();
        for sql in statements {
            prepared.insert(*sql, client.prepare(sql).await.map_err(|e| sort(&e))?);
        }
        self.live = Some(Live { client, statements: prepared, in_doubt });
        Ok(())
    }

    /// Whether there is a connection, as far as is known.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.live().is_ok()
    }

    /// Drops the connection, if there is one.
    pub fn disconnect(&mut self) {
        self.live = None;
    }

    /// The connection.
    ///
    /// # Errors
    ///
    /// [`Failure::Disconnected`] before [`Session::connect`] and once the connection has closed.
    pub fn client(&self) -> Result<&Client, Failure> {
        self.live().map(|live| &live.client)
    }

    /// A statement that was prepared when the connection opened.
    ///
    /// # Errors
    ///
    /// As [`Session::client`].
    ///
    /// # Panics
    ///
    /// If the statement was not among those given to [`Session::connect`].
    pub fn statement(&self, sql: &'static str) -> Result<&Statement, Failure> {
        crash::statement(sql);
        Ok(self.live()?.statements.get(sql).expect("prepared when the session connected"))
    }

    /// To be called after each commit: whether what the server called a success is one.
    ///
    /// # Errors
    ///
    /// [`Failure::Disconnected`] if the server had warned that a commit is in doubt; the connection is not used again.
    pub fn settle(&mut self) -> Result<(), Failure> {
        if self.live()?.in_doubt.load(Ordering::SeqCst) {
            self.live = None;
            return Err(Failure::Disconnected(
                "the server could not say whether a commit is replicated".into(),
            ));
        }
        crash::point(&self.committed);
        Ok(())
    }

    fn live(&self) -> Result<&Live, Failure> {
        self.live
            .as_ref()
            .filter(|live| !live.client.is_closed())
            .ok_or_else(|| Failure::Disconnected("not connected".into()))
    }
}

/// A warning of the generic class comes with COMMIT when waiting for a standby was cancelled. Every other notice is chatter.
fn doubts_commit(notice: &DbError) -> bool {
    notice.code() == &SqlState::WARNING && notice.parsed_severity() == Some(Severity::Warning)
}

/// Sorts an error of PostgreSQL into what it means for the batch that met it.
#[must_use]
pub fn sort(error: &tokio_postgres::Error) -> Failure {
    let Some(server) = error.as_db_error() else {
        return Failure::Disconnected(with_cause(error));
    };
    let text = format!("{} (SQLSTATE {})", server.message(), server.code().code());
    match server.code() {
        code if *code == SqlState::UNIQUE_VIOLATION
            || *code == SqlState::T_R_DEADLOCK_DETECTED
            || *code == SqlState::T_R_SERIALIZATION_FAILURE =>
        {
            Failure::Conflict(text)
        }
        code if *code == SqlState::QUERY_CANCELED => Failure::Rejected(text),
        code if *code == SqlState::LOCK_NOT_AVAILABLE => Failure::Locked(text),
        // A read-only server was the primary once: connect anew, and find the one that is.
        code if *code == SqlState::READ_ONLY_SQL_TRANSACTION => Failure::Disconnected(text),
        // Connection, resources, operator intervention, the system itself. A damaged row (XX) is its item's own.
        code if ["08", "53", "57", "58", "28", "3D"].contains(&&code.code()[..2]) => {
            Failure::Disconnected(text)
        }
        _ => Failure::Rejected(text),
    }
}

fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
