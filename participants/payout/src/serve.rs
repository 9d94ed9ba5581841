//! `tcc-payout`, from its configuration to its end: tables, fences, the worker, and what is served.
//!
//! Several may run on one database. All of them answer the coordinator; one of them, whoever has the lock, asks the
//! provider. When it dies the lock is free, and another one goes on from the tables.

use crate::{
    book::Kept,
    config::{Config, ConfigError, TlsFiles},
    generic::Generic,
    provider::{PayoutId, Provider},
    resource::Payouts,
    service::Desk,
    worker::{Manners, Worker},
};
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tcc_participant::{
    Operation, Outcome, Postgres, Server, Step,
    fence::Fenced,
    serve::{self, Listen, Running, ServeError, Served},
    wire::Description,
};
use tcc_proto::v1::payout_service_server::PayoutServiceServer;
use tokio_util::sync::CancellationToken;

mod embedded {
    refinery::embed_migrations!("../../migrations/payout");
}

/// The advisory lock that keeps two migrations apart.
const MIGRATION_LOCK: i64 = 0x7463_635f_7061_796d;
/// The advisory lock of whoever asks the provider.
const WORK_LOCK: i64 = 0x7463_635f_7061_796f;
/// How often it is looked whether the lock is free, or still one's own.
const LOOK_AT_LOCK: Duration = Duration::from_millis(500);
/// How long a Confirm is kept waiting for the provider, before the coordinator is told that it is not known yet. What came in
/// the same request waits as long.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);
/// How long a statement of the lists may take.
const LONGEST_READ: Duration = Duration::from_secs(60);

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The participant does not serve.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The tables cannot be made.
    #[error("the payouts' tables: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// The tables cannot be made.
    #[error("the payouts' tables: {0}")]
    Migration(#[from] refinery::Error),
}

/// What runs.
pub struct Payout {
    /// What is served.
    pub running: Running,
    work: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Payout {
    /// Stops it in order: what was asked of the provider is waited for.
    ///
    /// # Errors
    ///
    /// [`ServeError`], if it was not asked to.
    pub async fn stop(self) -> Result<(), ServeError> {
        self.running.stop().cancel();
        let ended = self.running.ended().await;
        self.stop.cancel();
        // A panic is in the log.
        drop(self.work.await);
        ended
    }

    /// Serves until SIGTERM or Ctrl-C.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn until_stopped(self, name: &str) -> Result<(), ServeError> {
        let ended = serve::until_stopped(name, self.running).await;
        self.stop.cancel();
        drop(self.work.await);
        ended
    }
}

/// Starts it, with the provider of its configuration. It serves when this returns.
///
/// # Errors
///
/// [`StartError`].
pub async fn start(config: &Config) -> Result<Payout, StartError> {
    let provider = Generic::new(&config.provider, &config.currencies)?;
    start_with(config, provider).await
}

/// Starts it, with a provider's own adapter.
///
/// # Errors
///
/// [`StartError`].
pub async fn start_with(config: &Config, provider: impl Provider) -> Result<Payout, StartError> {
    config.check()?;
    let database: Postgres = config.database.parse().map_err(ServeError::Url)?;
    let server = Server::new(&config.participant, &config.database)?;
    let resource = Payouts { account: config.account.clone(), currencies: config.currencies.clone() };
    let fenced = Arc::new(server.fenced(resource).await?);
    prepare(&database).await?;

    let pool = database.pool("tcc-payout", Some(LONGEST_READ));
    let book = Kept { fenced: Arc::clone(&fenced), pool: pool.clone() };
    let second = Duration::from_secs;
    let manners = Manners {
        key_memory: second(config.provider.key_memory_s),
        late: second(config.provider.late_s),
        calls_per_second: config.provider.calls_per_second,
        at_a_time: config.provider.at_a_time,
    };
    let worker = Worker::new(book, provider, manners);
    let stop = CancellationToken::new();
    let work = tokio::spawn(work_while_locked(database, Arc::clone(&worker), stop.clone()));

    let tls = config.tls.as_ref().map(TlsFiles::read).transpose()?;
    let desk = PayoutServiceServer::new(Desk::new(pool, Arc::clone(&worker)));
    let front = Front { fenced, worker };
    let routes = tonic::service::Routes::new(desk);
    let listen = Listen { address: config.listen.clone(), tls, telemetry: config.telemetry.clone() };
    let running = serve::start_beside(Arc::new(front), routes, &listen).await?;
    Ok(Payout { running, work, stop })
}

async fn prepare(database: &Postgres) -> Result<(), StartError> {
    let mut client = database.bounded("tcc-payout-setup").writable().open().await?;
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
    let mut runner = embedded::migrations::runner().set_abort_divergent(true);
    runner.set_migration_table_name("tcc_payout_schema_history");
    runner.run_async(&mut client).await?;
    // The lock ends with the connection.
    Ok(())
}

/// Asks the provider whenever the lock is this process's, and stops when it is not any more.
async fn work_while_locked<P: Provider>(
    database: Postgres,
    worker: Arc<Worker<Kept, P>>,
    stop: CancellationToken,
) {
    let database = database.bounded("tcc-payout-lock").writable();
    while !stop.is_cancelled() {
        if let Ok(client) = database.open().await {
            let sql = "-- lock_work
                SELECT pg_try_advisory_lock($1)";
            let locked = async {
                loop {
                    match client.query_one(sql, &[&WORK_LOCK]).await {
                        Ok(row) if row.get(0) => return true,
                        Ok(_) => tokio::time::sleep(LOOK_AT_LOCK).await,
                        Err(_) => return false,
                    }
                }
            };
            match stop.run_until_cancelled(locked).await {
                Some(true) => {}
                Some(false) => continue,
                None => return,
            }
            let lost = stop.child_token();
            let watch = async {
                // A connection that is gone has given the lock back.
                while !lost.is_cancelled() && client.simple_query("SELECT").await.is_ok() {
                    lost.run_until_cancelled(tokio::time::sleep(LOOK_AT_LOCK)).await;
                }
                lost.cancel();
            };
            tokio::join!(Arc::clone(&worker).run(lost.clone()), watch);
        }
        stop.run_until_cancelled(tokio::time::sleep(LOOK_AT_LOCK)).await;
    }
}

/// What the coordinator sees: the fences. A Confirm wakes the worker once it is committed.
struct Front<P> {
    fenced: Arc<Fenced>,
    worker: Arc<Worker<Kept, P>>,
}

impl<P: Provider> Served for Front<P> {
    fn describe(&self) -> Description {
        self.fenced.describe()
    }

    fn fenced(&self) -> Option<&Fenced> {
        Some(&self.fenced)
    }

    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if step.operation != Operation::Confirm {
                return self.fenced.call(step).await.outcome;
            }
            // Listened to before it is put in line, so that what is fast is not missed.
            let mut endings = self.worker.endings();
            let id = PayoutId { transaction: step.branch.transaction, branch: step.branch.index };
            let outcome = self.fenced.call(step.clone()).await.outcome;
            if !matches!(outcome, Outcome::Unknown(_)) || self.worker.held_up().is_some() {
                return outcome;
            }
            self.worker.look();
            let ended = async {
                // What was missed because there was too much of it is asked for again.
                while endings.recv().await.is_ok_and(|ended| ended != id) {}
            };
            match tokio::time::timeout(ANSWER_WITHIN, ended).await {
                Ok(()) => self.fenced.call(step).await.outcome,
                Err(_) => outcome,
            }
        })
    }
}
