//! The coordinator's database: one file per statement that changes it, each with its parameters and its row.
//!
//! Five batchers work here: [`begin`] inserts transactions, [`wake`] looks at what is due, [`advance`] moves phases, [`defer`]
//! puts off what could not be done, [`get`] reads. Callers' keys are in [`keys`], and in [`open`] is how many transactions each has open. What was lost, [`rebuild`] writes anew; [`audited`]
//! notes what the auditor has seen; [`operate`] does what operators ask for, and [`plans`] keeps what they have looked at
//! before; [`participants`] keeps who takes part besides the shards. Every write of a phase is a compare-and-set whose guards come from `Phase::after`, and
//! whatever is not final has a wake-up that is not done with. A statement that writes takes its transaction's number before
//! it reads the clock: a window of wake-ups is closed when no older number is still running, so a statement must not make a
//! wake-up by a time at which it had no number yet. Other reads use a pool of their own. SQL on these tables stands here and in
//! `schedule`, nowhere else.

pub mod advance;
pub mod attention;
pub mod audited;
pub mod begin;
pub mod defer;
pub mod get;
pub mod heads;
pub mod keys;
pub mod open;
pub mod operate;
pub mod participants;
pub mod plans;
pub mod read;
pub mod rebuild;
pub mod record;
pub mod schema;
pub mod trace;
pub mod wake;

pub use advance::{Advance, Advanced};
pub use begin::Begin;
pub use defer::Defer;
pub use get::Get;
pub use operate::{Acted, Action, Evidence};
pub use record::{Place, Record, Seen};
pub use trace::TraceContext;
pub use wake::Woken;

use deadpool_postgres::{Object, Pool};
use std::time::Duration;
use tcc_core::{Timestamp, TransactionId};
use tcc_participant::{
    Batcher, Failure, Postgres, Session,
    batch::{Limits, Unknown},
    session::sort,
};

/// How far ahead a wake-up may lie. A later due time is armed again on the way there.
pub const WAKE_HORIZON: jiff::SignedDuration = jiff::SignedDuration::from_hours(90 * 24);

/// A transaction that is left non-final is looked at again after this, if nothing else happens: the try deadline, too.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Why the coordinator's database did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It does not answer, or not in time.
    #[error("coordinator database: {0}")]
    Unreachable(String),
    /// A row that no version of this program has written.
    #[error("a row of the coordinator's database cannot be read: {0}")]
    Damaged(String),
}

/// The coordinator's database. Clones share it.
#[derive(Clone)]
pub struct Store {
    /// Inserts transactions.
    pub begin: Batcher<Begin, Option<begin::Begun>>,
    /// Moves phases.
    pub advance: Batcher<Advance, Option<Advanced>>,
    /// Looks at what is due.
    pub wake: Batcher<TransactionId, Option<Woken>>,
    /// Puts off what could not be done.
    pub defer: Batcher<Defer, defer::Deferred>,
    /// Reads transactions by their ids.
    pub get: Batcher<Get, Option<Record>>,
    /// For all other reads.
    pub pool: Pool,
}

impl Store {
    /// Starts the batchers, which connect by themselves and keep trying.
    #[must_use]
    pub fn start(database: &Postgres) -> Self {
        Self {
            begin: Batcher::start("begin", vec![begin::BeginExecutor::new(database)], Limits::default()),
            advance: Batcher::start(
                "advance",
                vec![advance::AdvanceExecutor::new(database)],
                Limits::default(),
            ),
            wake: Batcher::start("wake", vec![wake::WakeExecutor::new(database)], Limits::default()),
            defer: Batcher::start("defer", vec![defer::DeferExecutor::new(database)], Limits::default()),
            get: Batcher::start("get", vec![get::GetExecutor::new(database)], Limits::default()),
            pool: database.pool("tccd-reads", None),
        }
    }

    /// When the server started that reads come from.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn server(&self) -> Result<Timestamp, StoreError> {
        Ok(self.reader().await?.query_one("SELECT pg_postmaster_start_time()", &[]).await?.get(0))
    }

    /// A connection for reading.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unreachable`] after three seconds.
    pub async fn reader(&self) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(|e| StoreError::Unreachable(e.to_string()))
    }
}

/// Whether nobody else does this for a shard: then nobody will, until the session disconnects.
async fn alone(session: &Session, what: &str, shard: &str) -> Result<bool, Failure> {
    let lock = "SELECT pg_try_advisory_lock(hashtext($1), hashtext($2))";
    let row = session.client()?.query_one(lock, &[&what, &shard]).await.map_err(|e| sort(&e))?;
    Ok(row.get(0))
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Unreachable(sort(&error).to_string())
    }
}

impl From<Unknown> for StoreError {
    fn from(unknown: Unknown) -> Self {
        Self::Unreachable(unknown.to_string())
    }
}
