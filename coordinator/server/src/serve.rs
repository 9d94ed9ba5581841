//! A whole coordinator, put together: databases prepared, shards and timers started, the API served, all of it stopped in
//! order.

use crate::{
    api::{Holds, Ledger, Operator},
    audit::follow,
    config::Config,
    engine::{Engine, Participants},
    heads,
    http::Http,
    keys,
    schedule::{Leases, Scheduler, Timers, fire, partitions},
    shards::Shards,
    store::{self, Store, keys::Keys},
    sweep::{self, Progress},
};
use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};
use tcc_core::Timestamp;
use tcc_ledger::{Shard, heads::Heads};
use tcc_participant::{Failure, Participant, retry::Backoff, session::bounded};
use tcc_proto::v1::{
    hold_service_server::HoldServiceServer, ledger_service_server::LedgerServiceServer,
    operator_service_server::OperatorServiceServer,
};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::server::HealthReporter;
use uuid::Uuid;

/// How long what is under way may take to finish when a coordinator stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long clients may take to close their connections after that.
const HANG_UP: Duration = Duration::from_secs(2);
/// How long wake-ups are fired on after the slots were given back, if others take them: they need a moment to read.
const FIRE_ON: Duration = Duration::from_secs(2);
/// Requests are small: an id, two accounts, an amount.
const MAX_REQUEST: usize = 64 * 1024;
/// A batch has up to 1,000 of them.
const MAX_BATCH: usize = 2 * 1024 * 1024;

/// Why a coordinator does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A url in the configuration cannot be read.
    #[error(
        "the url of {which} is wrong: {source}; write it as key=value pairs (host=… user=… dbname=…) or postgresql://…"
    )]
    Url {
        /// The coordinator or which shard.
        which: String,
        /// What is wrong.
        source: tokio_postgres::Error,
    },
    /// A database does not answer.
    #[error("cannot reach the database of {which}: {why}; is PostgreSQL running there, and may tccd log in?")]
    Unreachable {
        /// The coordinator or which shard.
        which: String,
        /// Why.
        why: String,
    },
    /// The coordinator's database cannot be used.
    #[error(transparent)]
    Store(#[from] store::schema::SchemaError),
    /// A shard's database cannot be used.
    #[error(transparent)]
    Shard(#[from] tcc_ledger::SchemaError),
    /// The leases cannot be started.
    #[error("cannot join the other instances: {0}")]
    Leases(Failure),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server broke down.
    #[error("serving: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What the status tells beside what the engine knows.
pub struct Vitals {
    /// This instance.
    pub instance: Uuid,
    /// When it started, by the coordinator database's clock.
    pub started_at: Timestamp,
    /// Its ring.
    pub timers: Timers,
    /// How the orphan sweep stands.
    pub sweep: Progress,
}

/// A coordinator that serves.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its engine.
    pub engine: Arc<Engine>,
    /// Its ring.
    pub timers: Timers,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Running {
    /// A token that stops it, in order.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    ///
    /// [`ServeError`], if it was not asked to.
    pub async fn ended(self) -> Result<(), ServeError> {
        self.serving.await.expect("the serving task does not panic")
    }
}

/// What the tests may put between the engine and its participants.
pub type Between = Box<dyn Fn(Arc<dyn Participant>) -> Arc<dyn Participant> + Send>;

/// Starts a coordinator. It serves when this returns.
///
/// # Errors
///
/// [`ServeError`].
pub async fn start(config: &Config) -> Result<Running, ServeError> {
    start_with(config, Box::new(|participant| participant), |store| store).await
}

/// As [`start`], with something put between the engine and its participants, or its store: the seams for tests.
///
/// # Errors
///
/// [`ServeError`].
pub async fn start_with(
    config: &Config,
    between: Between,
    change_store: impl FnOnce(Store) -> Store,
) -> Result<Running, ServeError> {
    let coordinator = database("the coordinator", &config.coordinator.url)?;
    let names: Vec<String> = config.shards.iter().map(|shard| shard.name.clone()).collect();
    let mut client = connect("the coordinator", &coordinator).await?;
    let map = store::schema::prepare(&mut client, &names).await?;
    let kept = store::heads::kept(&client).await.map_err(store::schema::SchemaError::from)?;

    let stop = CancellationToken::new();
    let mut shards = Vec::new();
    for shard in &config.shards {
        let which = format!("shard {}", shard.name);
        let database = database(&which, &shard.url)?;
        let buckets = map[&shard.name].clone();
        match connect(&which, &database).await {
            Ok(mut client) => tcc_ledger::prepare(&mut client, &shard.name, &buckets).await?,
            Err(error) => {
                tracing::warn!(%error, "starting without a shard; it joins when it is there");
                tokio::spawn(prepare_late(
                    which,
                    database.clone(),
                    shard.name.clone(),
                    buckets.clone(),
                    stop.clone(),
                ));
            }
        }
        let heads = Heads::default();
        if let Some(kept) = kept.iter().find(|kept| kept.shard == shard.name) {
            heads.expect(kept.heads.clone());
            kept.lost.iter().for_each(|lost| heads.stop(lost.clone()));
        }
        shards.push(Shard::start(&shard.name, &database, buckets, heads));
    }

    let listener = TcpListener::bind(&config.listen).await;
    let listen = |source| ServeError::Listen { address: config.listen.clone(), source };
    let listener = listener.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;

    let instance = Uuid::now_v7();
    let leases = Leases::start(&coordinator, instance, &format!("{}/{address}", machine()))
        .await
        .map_err(ServeError::Leases)?;
    let (timers, clock) = (leases.timers(), leases.clock());
    let scheduler = Scheduler::new(&coordinator, clock.clone(), timers.clone(), leases.hung());
    let (unbroken, progress) = (leases.unbroken(), Progress::default());
    let vitals =
        Vitals { instance, started_at: clock.now(), timers: timers.clone(), sweep: progress.clone() };
    let participants =
        shards.iter().map(|shard| between(Arc::new(shard.clone()) as Arc<dyn Participant>)).collect();
    let participants = Participants::new(participants, &map);
    let store = change_store(Store::start(&coordinator));
    let engine = Engine::new(store, participants, timers.clone(), clock.clone(), unbroken.clone());
    let shards = Arc::new(Shards::new(shards, &map));
    let keys = Keys::start(&coordinator, engine.store().clone());

    tokio::spawn(keys::keep(keys.clone(), timers.clone(), stop.clone()));
    tokio::spawn(partitions::keep(coordinator.clone(), timers.clone(), Arc::clone(&shards), stop.clone()));
    tokio::spawn(heads::keep(engine.store().clone(), Arc::clone(&shards), instance, stop.clone()));
    tokio::spawn(follow::keep(
        coordinator.clone(),
        engine.store().clone(),
        Arc::clone(&shards),
        stop.clone(),
    ));
    let (engine_to_tell, shards_to_sweep) = (Arc::clone(&engine), Arc::clone(&shards));
    tokio::spawn(sweep::keep(coordinator, engine_to_tell, shards_to_sweep, unbroken, progress, stop.clone()));
    let schedule = Schedule { leases, scheduler };
    let vitals = Arc::new(vitals);
    let api = Api { engine: Arc::clone(&engine), shards, keys, vitals, config: config.clone() };
    let serving = tokio::spawn(serve(api, listener, schedule, stop.clone()));
    Ok(Running { address, engine, timers, stop, serving })
}

/// Prepares a shard that was not there at the start, once it is. Its executors refuse it until then.
async fn prepare_late(
    which: String,
    database: tokio_postgres::Config,
    name: String,
    buckets: HashSet<u16>,
    stop: CancellationToken,
) {
    for attempt in 0.. {
        tokio::select! {
            () = tokio::time::sleep(Backoff::CONNECTION.delay(attempt)) => {}
            () = stop.cancelled() => return,
        }
        let Ok(mut client) = connect(&which, &database).await else { continue };
        match tcc_ledger::prepare(&mut client, &name, &buckets).await {
            Ok(()) => {
                return tracing::info!(shard = name, "a shard that was not there at the start has joined");
            }
            Err(error) => tracing::error!(%error, "a shard cannot join"),
        }
    }
}

struct Api {
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    keys: Keys,
    vitals: Arc<Vitals>,
    config: Config,
}

struct Schedule {
    leases: Leases,
    scheduler: Scheduler,
}

/// Serves until asked to stop; then stops in order: readiness and new work, slots, what is due, work under way, connections.
async fn serve(
    api: Api,
    listener: TcpListener,
    schedule: Schedule,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let Api { engine, shards, keys, vitals, config } = api;
    let (timers, clock) = (vitals.timers.clone(), engine.clock().clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    set_health(&health, true).await;
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tcc_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let limits = &config.limits;
    let sweep = vitals.sweep.clone();
    let holds = Holds::new(Arc::clone(&engine), Arc::clone(&shards), keys, sweep, limits.clone());
    let ledger = Ledger::new(Arc::clone(&shards), Arc::clone(&engine), limits.clone());
    let operator = Operator::new(Arc::clone(&engine), shards, vitals);
    let hang_up = CancellationToken::new();
    let services = Routes::new(HoldServiceServer::new(holds).max_decoding_message_size(MAX_BATCH))
        .add_service(LedgerServiceServer::new(ledger).max_decoding_message_size(MAX_REQUEST))
        .add_service(OperatorServiceServer::new(operator).max_decoding_message_size(MAX_REQUEST))
        .add_service(health_service)
        .add_service(descriptors().build_v1()?)
        .add_service(descriptors().build_v1alpha()?)
        .prepare();
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .max_concurrent_streams(1_024)
        .accept_http1(true)
        .serve_with_incoming_shutdown(
            Http::new(services),
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            hang_up.clone().cancelled_owned(),
        );
    let server = tokio::spawn(server);

    let stop_schedule = CancellationToken::new();
    let leases = tokio::spawn(schedule.leases.run(stop_schedule.clone()));
    tokio::spawn(schedule.scheduler.run(stop_schedule.clone()));
    let look = {
        let engine = Arc::clone(&engine);
        move |entry| {
            let engine = Arc::clone(&engine);
            async move { engine.look(entry).await }
        }
    };
    let stop_looking = CancellationToken::new();
    let firing = tokio::spawn(fire(timers, clock, stop_looking.clone(), look));
    let admitting = tokio::spawn(Arc::clone(&engine).admit(stop_looking));

    stop.cancelled().await;
    tracing::info!("stopping: no new work, giving the slots back, finishing what is under way");
    set_health(&health, false).await;
    engine.refuse_work();
    stop_schedule.cancel();
    if let Ok(Ok(true)) = tokio::time::timeout(HANG_UP, leases).await {
        tokio::time::sleep(FIRE_ON).await;
    }
    // They may be waiting for room among the lives under way; what they hold in their hands is found again by its wake-up.
    firing.abort();
    admitting.abort();
    engine.drain(DRAIN).await;
    hang_up.cancel();
    if let Ok(Ok(served)) = tokio::time::timeout(HANG_UP, server).await {
        served?;
    }
    Ok(())
}

async fn set_health(health: &HealthReporter, serving: bool) {
    let status =
        if serving { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    for service in ["", "tcc.v1.HoldService", "tcc.v1.LedgerService", "tcc.v1.OperatorService"] {
        health.set_service_status(service, status).await;
    }
}

/// This machine's name.
fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn database(which: &str, url: &str) -> Result<tokio_postgres::Config, ServeError> {
    url.parse().map_err(|source| ServeError::Url { which: which.to_owned(), source })
}

async fn connect(
    which: &str,
    database: &tokio_postgres::Config,
) -> Result<tokio_postgres::Client, ServeError> {
    let unreachable = |error: tokio_postgres::Error| ServeError::Unreachable {
        which: which.to_owned(),
        why: tcc_participant::session::sort(&error).to_string(),
    };
    let (client, connection) =
        bounded(database.clone(), "tccd-setup").connect(NoTls).await.map_err(unreachable)?;
    tokio::spawn(connection);
    store::schema::check_version(&client).await?;
    Ok(client)
}
