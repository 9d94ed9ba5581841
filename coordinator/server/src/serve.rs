//! A whole coordinator, put together: databases prepared, shards and timers started, the API served, all of it stopped in
//! order.

use crate::{
    api::{Creations, Holds, Ledger, Operator, Recoveries, Transactions},
    audit::follow,
    auth::Gate,
    config::{Config, IdentityFiles, ShardConfig},
    databases::{Database, Logins},
    engine::{Engine, Participants},
    heads, keys,
    listener::Listener,
    quota::Quotas,
    recovery::Recovery,
    registry::{self, Keeper, Registry},
    schedule::{Leases, Scheduler, Timers, fire, partitions},
    shards::Shards,
    store::{self, Store, keys::Keys, participants::Registration},
    sweep::{self, Progress},
    telemetry::{self, Calls, Gauges, Traces, gauges::Sources},
    tls,
    watched::{WatchError, Watched},
};
use futures::future::BoxFuture;
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tcc_core::{Outcome, ParticipantName, Timestamp};
use tcc_ledger::{Shard, heads::Heads};
use tcc_participant::{
    BreakerState, Call, Failure, Participant, Postgres, Remote,
    remote::{Certificate, InvalidAddress, Options},
    retry::Backoff,
    serve::{InProcess, Listen},
};
use tcc_proto::v1::{
    hold_service_server::HoldServiceServer, ledger_service_server::LedgerServiceServer,
    operator_service_server::OperatorServiceServer, recovery_service_server::RecoveryServiceServer,
    transaction_service_server::TransactionServiceServer,
};
use tokio::net::{TcpListener, ToSocketAddrs};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};
use uuid::Uuid;

/// How a shard is called on which `tcc-ledgerd` works: in batches as large as it takes.
const LEDGERD: Options = Options { batch: 256, may_veto: true, ..Options::LIKELY };
/// How long what is under way may take to finish when a coordinator stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long clients may take to close their connections after that.
const HANG_UP: Duration = Duration::from_secs(2);
/// How long wake-ups are fired on after the slots were given back, if others take them: they need a moment to read.
const FIRE_ON: Duration = Duration::from_secs(2);
/// Where there are no batches, a request is an id, two accounts and an amount.
const USUAL_MESSAGE: usize = 64 * 1024;
/// A plan may name 10,000 ids.
const PLAN_MESSAGE: usize = 1024 * 1024;

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
    /// An insecure server that others than this machine could reach.
    #[error(
        "insecure_dev believes whoever calls, so it listens on a loopback address, and {0} is none: \
         listen on 127.0.0.1, or configure [tls] and [auth] and leave insecure_dev out"
    )]
    Exposed(String),
    /// An insecure server that has been told how to be a secure one.
    #[error(
        "insecure_dev believes whoever calls, and [auth] and [tls] say whom to believe: leave one of them out"
    )]
    Contradiction,
    /// Nobody could call it.
    #[error(
        "nobody could call: [auth] is missing. Name callers with API keys or certificates in auth.callers, or an identity \
         provider in [auth.jwt]; for development on this machine alone there is --insecure-dev"
    )]
    Closed,
    /// Credentials would be sent in the clear.
    #[error(
        "credentials sent to {0} could be read on the way: configure [tls], or listen on 127.0.0.1 behind something that \
         speaks TLS"
    )]
    Unencrypted(String),
    /// A file that the configuration names.
    #[error(transparent)]
    File(#[from] WatchError),
    /// A shard's address.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// A shard of that name.
    #[error("the configuration has no shard {0:?}")]
    NoShard(String),
    /// Where traces are to be sent.
    #[error("telemetry.traces: {0}")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    /// A participant's name.
    #[error("{0:?} is no name of a participant: a lower-case letter, then up to 62 of a-z, 0-9, _, . and -")]
    NoName(String),
    /// Who takes part cannot be written or read.
    #[error(transparent)]
    Registry(#[from] store::StoreError),
    /// What serves a shard.
    #[error(transparent)]
    Participant(#[from] tcc_participant::ServeError),
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
    /// Whether it speaks TLS there.
    pub is_encrypted: bool,
    /// Where metrics and health are served, if they are.
    pub telemetry: Option<SocketAddr>,
    /// Its engine.
    pub engine: Arc<Engine>,
    /// Its ring.
    pub timers: Timers,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Running {
    /// Where clients find it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_encrypted { "https" } else { "http" }, self.address)
    }

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
pub type Between = Box<dyn Fn(Arc<dyn Participant>) -> Arc<dyn Participant> + Send + Sync>;

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
    let addresses = addresses(config).await?;
    let stop = CancellationToken::new();
    // Whatever fails from here on ends what has been started.
    let unless_served = stop.clone().drop_guard();
    let gate = Gate::start(config, stop.clone()).await?;
    let tls = match config.tls.clone() {
        Some(files) => {
            let paths = tls::files(&files);
            Some(Watched::start(paths, move |contents| tls::server(&files, contents), stop.clone())?)
        }
        None => None,
    };

    let identity = identity(config)?;
    let registrations = registrations(config, identity.as_ref())?;
    let databases = Databases::prepare(config).await?;
    let (mut shards, mut maintained, mut participants) = (Vec::new(), Vec::new(), Vec::new());
    for one in &config.shards {
        let (shard, maintainer) = databases.open(one, &stop).await?;
        maintained.push((one.name.clone(), maintainer));
        participants.push(between(match one.address.as_str() {
            "" => Arc::new(shard.clone()),
            address => {
                let ca = one.ca.as_deref().map(pem).transpose()?;
                let options = Options { ca, identity: identity.clone(), ..LEDGERD };
                Arc::new(Ledgerd {
                    remote: Remote::start(&one.name, address, &options)?,
                    shard: shard.clone(),
                })
            }
        }));
        shards.push(shard);
    }
    let Databases { coordinator, map, .. } = databases;

    let (tcp, address) = listen(&config.listen, &addresses[..]).await?;
    let telemetry = match config.telemetry.listen.as_str() {
        "" => None,
        to => Some(listen(to, to).await?),
    };

    let instance = Uuid::now_v7();
    let leases = Leases::start(&coordinator.engine, instance, &format!("{}/{address}", machine()))
        .await
        .map_err(ServeError::Leases)?;
    let (timers, clock) = (leases.timers(), leases.clock());
    tokio::spawn(stop_when_drained(leases.drained(), stop.clone()));
    let scheduler = Scheduler::new(&coordinator.engine, clock.clone(), timers.clone(), leases.hung());
    let (unbroken, progress) = (leases.unbroken(), Progress::default());
    let vitals =
        Vitals { instance, started_at: clock.now(), timers: timers.clone(), sweep: progress.clone() };
    let participants = Participants::new(participants, &map);
    let store = change_store(Store::start(&coordinator.engine));
    for registration in &registrations {
        store.configure_participant(registration).await?;
    }
    let registry = Registry::default();
    let (keeper_store, keeper_participants) = (store.clone(), participants.clone());
    let keeper = Keeper {
        store: keeper_store,
        participants: keeper_participants,
        between,
        identity,
        registry: registry.clone(),
    };
    keeper.read().await?;
    tokio::spawn(keeper.keep(stop.clone()));
    let engine = Engine::new(store, participants, timers.clone(), clock.clone(), unbroken.clone());
    let traces = Traces::start(&config.telemetry, &instance.to_string())?;
    if let Some(traces) = traces.clone() {
        engine.trace_to(traces);
    }
    let shards = Arc::new(Shards::new(shards, &map));
    let keys = Keys::start(&coordinator.engine, engine.store().clone());

    tokio::spawn(keys::keep(keys.clone(), timers.clone(), stop.clone()));
    tokio::spawn(partitions::keep(coordinator.maintainer, maintained, timers.clone(), stop.clone()));
    tokio::spawn(heads::keep(engine.store().clone(), shards.all().to_vec(), instance, stop.clone()));
    tokio::spawn(follow::keep(
        coordinator.engine.clone(),
        engine.store().clone(),
        Arc::clone(&shards),
        stop.clone(),
    ));
    let (engine_to_tell, shards_to_sweep) = (Arc::clone(&engine), Arc::clone(&shards));
    tokio::spawn(sweep::keep(
        coordinator.engine,
        engine_to_tell,
        shards_to_sweep,
        unbroken,
        progress,
        stop.clone(),
    ));
    let schedule = Schedule { leases, scheduler };
    let (vitals, calls) = (Arc::new(vitals), Calls::new(tcc_proto::FILE_DESCRIPTOR_SET));
    // It is watched to its very end, which is when whoever looks wants to know why.
    let unwatched = CancellationToken::new();
    let guard = unwatched.clone().drop_guard();
    let telemetry = telemetry.map(|(listener, address)| {
        let sources = Sources {
            engine: Arc::clone(&engine),
            shards: Arc::clone(&shards),
            registry: registry.clone(),
            vitals: Arc::clone(&vitals),
        };
        let gauges = Gauges::new();
        gauges.time(&sources);
        let watched = telemetry::http::Watched { gauges, calls: calls.clone(), sources };
        tokio::spawn(telemetry::http::serve(listener, watched, unwatched));
        address
    });
    let api = Api {
        engine: Arc::clone(&engine),
        shards,
        keys,
        registry,
        vitals,
        config: config.clone(),
        stop: stop.clone(),
    };
    let health = tonic_health::server::health_reporter();
    set_health(&health.0, true).await;
    let routes = api.routes(Arc::clone(&gate), health.1)?;
    let listener =
        Listener { tcp, tls, traffic: config.traffic.clone(), gate, routes, calls, traces: traces.clone() };
    let stopped = stop.clone();
    let serving = tokio::spawn(async move {
        let _guard = guard;
        let served = serve(api, listener, health.0, schedule, stopped).await;
        if let Some(traces) = traces {
            // It waits for the collector, for a few seconds at most.
            let _ = tokio::task::spawn_blocking(move || traces.stop()).await;
        }
        served
    });
    let _ = unless_served.disarm();
    Ok(Running { address, is_encrypted: config.tls.is_some(), telemetry, engine, timers, stop, serving })
}

/// An operator may stop it from another instance.
async fn stop_when_drained(drained: CancellationToken, stop: CancellationToken) {
    if stop.run_until_cancelled(drained.cancelled()).await.is_some() {
        tracing::warn!("an operator has drained this instance");
        stop.cancel();
    }
}

/// What this instance shows to participants.
fn identity(config: &Config) -> Result<Option<Certificate>, ServeError> {
    let read = |files: &IdentityFiles| {
        Ok::<_, ServeError>(Certificate { chain: pem(&files.certificate)?, key: pem(&files.key)? })
    };
    config.identity.as_ref().map(read).transpose()
}

fn pem(path: &Path) -> Result<String, ServeError> {
    let failed =
        |error: std::io::Error| WatchError::Read { path: path.display().to_string(), why: error.to_string() };
    Ok(std::fs::read_to_string(path).map_err(failed)?)
}

/// The participants of the configuration, each of which can be called.
fn registrations(config: &Config, identity: Option<&Certificate>) -> Result<Vec<Registration>, ServeError> {
    let mut registrations = Vec::new();
    for one in &config.participants {
        let name = ParticipantName::parse(&one.name).map_err(|_| ServeError::NoName(one.name.clone()))?;
        let registration = Registration {
            name,
            address: one.address.clone(),
            ca: one.ca.as_deref().map(pem).transpose()?.unwrap_or_default(),
            may_veto: one.may_veto,
            deadline: Duration::from_millis(one.deadline_ms.into()),
            requests: one.requests,
        };
        registry::check(&registration, identity)?;
        registrations.push(registration);
    }
    Ok(registrations)
}

/// A shard on which `tcc-ledgerd` works.
struct Ledgerd {
    remote: Remote,
    /// What is known of it here: whether it has lost commits, and whether an operator has stopped work on it.
    shard: Shard,
}

impl Participant for Ledgerd {
    fn name(&self) -> &str {
        self.remote.name()
    }

    fn is_reachable(&self) -> bool {
        self.remote.is_reachable() && self.shard.is_reachable()
    }

    fn trouble(&self) -> Option<String> {
        self.shard.trouble().or_else(|| self.remote.trouble())
    }

    fn breaker(&self) -> BreakerState {
        if self.shard.is_reachable() { self.remote.breaker() } else { BreakerState::Open }
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Vec<Outcome>> {
        self.remote.call(call)
    }
}

/// The databases of a configuration.
struct Databases {
    logins: Logins,
    coordinator: Database,
    /// Which shard keeps which buckets of accounts.
    map: HashMap<String, HashSet<u16>>,
    kept: Vec<store::heads::Kept>,
}

impl Databases {
    /// Creates or changes the coordinator's tables, and reads what is known of the shards.
    async fn prepare(config: &Config) -> Result<Self, ServeError> {
        let logins = Logins::read(&config.postgres)?;
        let coordinator = database(&logins, "the coordinator", &config.coordinator.url)?;
        let names: Vec<String> = config.shards.iter().map(|shard| shard.name.clone()).collect();
        let mut client = connect("the coordinator", &coordinator.migrator).await?;
        let map = store::schema::prepare(&mut client, &names).await?;
        let kept = store::heads::kept(&client).await.map_err(store::schema::SchemaError::from)?;
        Ok(Self { logins, coordinator, map, kept })
    }

    /// Creates or changes a shard's tables, or does so as soon as it is there, and starts to work on it. Answers also who
    /// maintains it.
    async fn open(
        &self,
        one: &ShardConfig,
        stop: &CancellationToken,
    ) -> Result<(Shard, Postgres), ServeError> {
        let which = format!("shard {}", one.name);
        let database = database(&self.logins, &which, &one.url)?;
        let buckets = self.map[&one.name].clone();
        match connect(&which, &database.migrator).await {
            Ok(mut client) => tcc_ledger::prepare(&mut client, &one.name, &buckets).await?,
            Err(error) => {
                tracing::warn!(%error, "starting without a shard; it joins when it is there");
                let (migrator, name) = (database.migrator.clone(), one.name.clone());
                tokio::spawn(prepare_late(which, migrator, name, buckets.clone(), stop.clone()));
            }
        }
        let heads = Heads::default();
        let kept = self.kept.iter().find(|kept| kept.shard == one.name);
        if let Some(kept) = kept {
            heads.expect(kept.heads.clone());
            kept.lost.iter().for_each(|lost| heads.stop(lost.clone()));
        }
        let shard = Shard::start(&one.name, &database.engine, buckets, heads);
        shard.set_drained(kept.is_some_and(|kept| kept.drained));
        Ok((shard, database.maintainer))
    }
}

/// Serves one shard of a configuration to coordinators that have its address, and nothing else: what `tcc-ledgerd` does.
/// They do everything but Try, Confirm and Cancel themselves.
///
/// # Errors
///
/// [`ServeError`].
pub async fn start_shard(
    config: &Config,
    name: &str,
    listen: &Listen,
) -> Result<tcc_participant::serve::Running, ServeError> {
    let one = config.shards.iter().find(|shard| shard.name == name);
    let one = one.ok_or_else(|| ServeError::NoShard(name.to_owned()))?;
    let databases = Databases::prepare(config).await?;
    let stop = CancellationToken::new();
    let (shard, _) = databases.open(one, &stop).await?;
    let participant: Arc<dyn Participant> = Arc::new(shard.clone());
    let served = Arc::new(InProcess { participant, may_veto: true });
    let running = tcc_participant::serve::start_beside(served, Routes::default(), listen).await?;
    let (store, instance) = (Store::start(&databases.coordinator.engine), Uuid::now_v7());
    tokio::spawn(heads::keep(store, vec![shard], instance, running.stop()));
    Ok(running)
}

/// Prepares a shard that was not there at the start, once it is. Its executors refuse it until then.
async fn prepare_late(
    which: String,
    database: Postgres,
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
    registry: Registry,
    vitals: Arc<Vitals>,
    config: Config,
    stop: CancellationToken,
}

impl Api {
    /// What there is to ask for.
    fn routes(&self, gate: Arc<Gate>, health: HealthServer<impl Health>) -> Result<Routes, ServeError> {
        let descriptors = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tcc_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let (engine, limits) = (&self.engine, &self.config.limits);
        let (keys, sweep) = (self.keys.clone(), self.vitals.sweep.clone());
        let usual = self.config.traffic.caller_open_transactions;
        let quotas = Quotas::new(engine.store().clone(), usual, self.stop.clone());
        let creations =
            Creations::new(Arc::clone(engine), Arc::clone(&self.shards), keys, sweep, quotas, limits.clone());
        let transactions = Transactions::new(creations.clone(), Arc::clone(&self.shards));
        let holds = Holds::new(creations, Arc::clone(&self.shards), gate);
        let ledger = Ledger::new(Arc::clone(&self.shards), Arc::clone(engine), limits.clone());
        let vitals = Arc::clone(&self.vitals);
        let operator =
            Operator::new(Arc::clone(engine), Arc::clone(&self.shards), self.registry.clone(), vitals);
        let recovery = Recovery { engine: Arc::clone(engine), shards: Arc::clone(&self.shards) };
        let recoveries = Recoveries::new(recovery, Arc::clone(&self.vitals));
        let longest = self.config.traffic.message_bytes as usize;
        let (usual, plan) = (longest.min(USUAL_MESSAGE), longest.min(PLAN_MESSAGE));
        let routes = Routes::new(HoldServiceServer::new(holds).max_decoding_message_size(longest))
            .add_service(TransactionServiceServer::new(transactions).max_decoding_message_size(longest))
            .add_service(LedgerServiceServer::new(ledger).max_decoding_message_size(usual))
            .add_service(OperatorServiceServer::new(operator).max_decoding_message_size(usual))
            .add_service(RecoveryServiceServer::new(recoveries).max_decoding_message_size(plan))
            .add_service(health)
            .add_service(descriptors().build_v1()?)
            .add_service(descriptors().build_v1alpha()?);
        Ok(routes.prepare())
    }
}

struct Schedule {
    leases: Leases,
    scheduler: Scheduler,
}

/// Serves until asked to stop; then stops in order: readiness and new work, slots, what is due, work under way, connections.
async fn serve(
    api: Api,
    listener: Listener,
    health: HealthReporter,
    schedule: Schedule,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let Api { engine, vitals, .. } = api;
    let (timers, clock) = (vitals.timers.clone(), engine.clock().clone());
    let hang_up = CancellationToken::new();
    let server = tokio::spawn(listener.serve(hang_up.clone()));

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
    let _ = tokio::time::timeout(HANG_UP, server).await;
    Ok(())
}

async fn set_health(health: &HealthReporter, serving: bool) {
    let status =
        if serving { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    for service in [
        "",
        "tcc.v1.HoldService",
        "tcc.v1.TransactionService",
        "tcc.v1.LedgerService",
        "tcc.v1.OperatorService",
        "tcc.v1.RecoveryService",
    ] {
        health.set_service_status(service, status).await;
    }
}

async fn listen(address: &str, found: impl ToSocketAddrs) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(found).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// This machine's name.
fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Where to listen, if that is safe.
async fn addresses(config: &Config) -> Result<Vec<SocketAddr>, ServeError> {
    let address = &config.listen;
    let found = tokio::net::lookup_host(address).await;
    let found = found.map_err(|source| ServeError::Listen { address: address.clone(), source })?;
    let addresses: Vec<SocketAddr> = found.collect();
    let is_local = addresses.iter().all(|address| address.ip().is_loopback());
    let is_told_whom_to_believe = config.auth.callers.is_some() || config.auth.jwt.is_some();
    if config.insecure_dev {
        if !is_local {
            return Err(ServeError::Exposed(address.clone()));
        }
        if is_told_whom_to_believe || config.tls.is_some() {
            return Err(ServeError::Contradiction);
        }
    } else {
        if !is_told_whom_to_believe {
            return Err(ServeError::Closed);
        }
        if config.tls.is_none() && !is_local {
            return Err(ServeError::Unencrypted(address.clone()));
        }
    }
    Ok(addresses)
}

pub(crate) fn database(logins: &Logins, which: &str, url: &str) -> Result<Database, ServeError> {
    logins.to(url).map_err(|source| ServeError::Url { which: which.to_owned(), source })
}

pub(crate) async fn connect(which: &str, database: &Postgres) -> Result<tokio_postgres::Client, ServeError> {
    let unreachable = |error: tokio_postgres::Error| ServeError::Unreachable {
        which: which.to_owned(),
        why: tcc_participant::session::sort(&error).to_string(),
    };
    let client = database.bounded("tccd-setup").open().await.map_err(unreachable)?;
    store::schema::check_version(&client).await?;
    Ok(client)
}

/// Looks whether a coordinator could start with a configuration, as far as that can be seen without its databases: addresses,
/// files and urls. With `databases` they are looked at, too; a shard may be down when a coordinator starts, and may not here.
///
/// # Errors
///
/// As [`start`] fails.
pub async fn check(config: &Config, databases: bool) -> Result<(), ServeError> {
    addresses(config).await?;
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    Gate::start(config, stop.clone()).await?;
    if let Some(files) = config.tls.clone() {
        Watched::start(tls::files(&files), move |contents| tls::server(&files, contents), stop)?;
    }
    let logins = Logins::read(&config.postgres)?;
    let shards = config.shards.iter().map(|shard| (format!("shard {}", shard.name), &shard.url));
    for (which, url) in [("the coordinator".to_owned(), &config.coordinator.url)].into_iter().chain(shards) {
        let database = database(&logins, &which, url)?;
        if databases {
            connect(&which, &database.engine).await?;
        }
    }
    let identity = identity(config)?;
    registrations(config, identity.as_ref())?;
    for shard in config.shards.iter().filter(|shard| !shard.address.is_empty()) {
        let ca = shard.ca.as_deref().map(pem).transpose()?;
        let options = Options { ca, identity: identity.clone(), ..LEDGERD };
        tcc_participant::remote::check(&shard.address, &options)?;
    }
    Ok(())
}

/// Creates or changes the tables of all databases, and serves nothing.
///
/// # Errors
///
/// [`ServeError`].
pub async fn migrate(config: &Config) -> Result<(), ServeError> {
    let Databases { logins, map, .. } = Databases::prepare(config).await?;
    for shard in &config.shards {
        let which = format!("shard {}", shard.name);
        let mut client = connect(&which, &database(&logins, &which, &shard.url)?.migrator).await?;
        tcc_ledger::prepare(&mut client, &shard.name, &map[&shard.name]).await?;
    }
    Ok(())
}
