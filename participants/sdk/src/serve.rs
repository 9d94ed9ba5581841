//! A participant's server: the resource behind its fences, over gRPC, with health and reflection, until it is told to stop.
//!
//! When it stops, health says NOT_SERVING first, calls under way are finished, and then connections are closed. A kill is
//! safe, too: what was committed stays, and what was not is called again.

use crate::{
    fence::{Fenced, SchemaError, prepare},
    participant::{Call, Participant},
    postgres::Postgres,
    remote::Certificate,
    resource::{BatchResource, EachAlone, Resource, Step},
    session::sort,
    sql::FunctionError,
    telemetry::{self, Counted},
    wire::{Description, MAX_CALLS, MAX_REQUEST, read_call, write_description, write_outcome},
};
use axum::{
    extract::{Request as HttpRequest, State},
    middleware::{Next, from_fn_with_state},
    response::Response as HttpResponse,
};
use futures::future::{BoxFuture, join_all};
use std::{
    env,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tcc_core::{Outcome, Transaction};
use tcc_proto::v1::{
    self,
    participant_service_server::{ParticipantService, ParticipantServiceServer},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::{self, Server as Transport, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

/// How long calls under way may take to finish when a server stops.
const DRAIN: Duration = Duration::from_secs(10);
/// The service's name for health checks.
const SERVICE: &str = "tcc.v1.ParticipantService";

/// What can be served: answers operations on branches, each for itself.
///
/// [`Server`] makes one of a resource, [`InProcess`] one of a participant of the engine's. Implement it only for a participant
/// that keeps its fences in its own way.
pub trait Served: Send + Sync + 'static {
    /// What it says of itself.
    fn describe(&self) -> Description;

    /// Does one operation, as the fence table says. Whoever waits for the answer may be gone before it comes.
    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome>;

    /// The fences behind it, if they are the SDK's: then their metrics are told, too.
    fn fenced(&self) -> Option<&Fenced> {
        None
    }

    /// Whether what it keeps its fences in was there when it was needed last.
    fn is_connected(&self) -> bool {
        self.fenced().is_none_or(Fenced::is_connected)
    }
}

/// Why a participant does not serve, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An environment variable is missing.
    #[error("the environment has no {0}; set it")]
    Unset(&'static str),
    /// The url of the database cannot be read.
    #[error(
        "the url of the database is wrong: {0}; write it as key=value pairs (host=… user=… dbname=…) or postgresql://…"
    )]
    Url(tokio_postgres::Error),
    /// The database does not answer.
    #[error(
        "cannot reach the participant's database: {0}; is PostgreSQL running there, and may it be logged into?"
    )]
    Unreachable(String),
    /// The database cannot be used.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database does not have the functions that are to be called.
    #[error(transparent)]
    Functions(#[from] FunctionError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Others than this machine could read what is said.
    #[error(
        "{0} is no loopback address: configure TLS, or listen on 127.0.0.1 behind something that speaks it"
    )]
    Unencrypted(SocketAddr),
    /// Signals cannot be listened for.
    #[error("listening for signals: {0}")]
    Signals(std::io::Error),
    /// The server broke down.
    #[error("serving: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// How a resource is served.
#[derive(Clone)]
pub struct Server {
    name: String,
    database: Postgres,
    listen: Listen,
    connections: usize,
}

/// Where a participant listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// A host and a port. Port 0 is any free one.
    pub address: String,
    /// Its side of TLS. Without it the address must be a loopback one: who can read the calls can repeat them.
    pub tls: Option<Tls>,
    /// Where metrics and health are served over HTTP, in the clear; `None`: nowhere.
    pub telemetry: Option<String>,
}

impl Listen {
    /// In the clear, and without metrics.
    #[must_use]
    pub fn at(address: &str) -> Self {
        Self { address: address.to_owned(), tls: None, telemetry: None }
    }
}

/// A server's side of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Its certificate.
    pub certificate: Certificate,
    /// The authorities of those that may call, PEM: whoever shows no certificate of theirs is sent away. `None`: whoever
    /// reaches the address may call.
    pub client_ca: Option<String>,
}

impl Tls {
    /// Reads the files of the certificate, its key, and the authorities of callers, if they are to show one.
    ///
    /// # Errors
    ///
    /// [`ServeError::File`].
    pub fn read(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, ServeError> {
        let read = |path: &Path| {
            let failed = |source| ServeError::File { path: path.display().to_string(), source };
            std::fs::read_to_string(path).map_err(failed)
        };
        let certificate = Certificate { chain: read(certificate)?, key: read(key)? };
        Ok(Self { certificate, client_ca: client_ca.map(read).transpose()? })
    }

    fn config(&self) -> ServerTlsConfig {
        let Certificate { chain, key } = &self.certificate;
        let config = ServerTlsConfig::new().identity(transport::Identity::from_pem(chain, key));
        match &self.client_ca {
            Some(ca) => config.client_ca_root(transport::Certificate::from_pem(ca)),
            None => config,
        }
    }
}

impl Server {
    /// A participant of this name, with its tables and its fences in this database.
    ///
    /// # Errors
    ///
    /// [`ServeError::Url`].
    pub fn new(name: &str, database_url: &str) -> Result<Self, ServeError> {
        let database = database_url.parse().map_err(ServeError::Url)?;
        let (name, listen) = (name.to_owned(), Listen::at("127.0.0.1:7080"));
        Ok(Self { name, database, listen, connections: 8 })
    }

    /// As the environment says: `TCC_PARTICIPANT` is its name, `TCC_DATABASE_URL` its database, and `TCC_LISTEN` where it
    /// listens, if not on 127.0.0.1:7080. `TCC_TELEMETRY_LISTEN` is where metrics are served. `TCC_TLS_CERTIFICATE` and
    /// `TCC_TLS_KEY` name its certificate and key (PEM), and `TCC_TLS_CLIENT_CA` the authorities of the coordinators that may
    /// call it.
    ///
    /// # Errors
    ///
    /// [`ServeError::Unset`], [`ServeError::Url`] and [`ServeError::File`].
    pub fn from_env() -> Result<Self, ServeError> {
        let variable = |name| env::var(name).map_err(|_| ServeError::Unset(name));
        let server = Self::new(&variable("TCC_PARTICIPANT")?, &variable("TCC_DATABASE_URL")?)?;
        let server = match env::var("TCC_LISTEN") {
            Ok(address) => server.listen(&address),
            Err(_) => server,
        };
        let server = match env::var("TCC_TELEMETRY_LISTEN") {
            Ok(address) => server.telemetry(&address),
            Err(_) => server,
        };
        let Some(certificate) = env::var_os("TCC_TLS_CERTIFICATE") else { return Ok(server) };
        let key = variable("TCC_TLS_KEY")?;
        let client_ca = env::var_os("TCC_TLS_CLIENT_CA");
        Ok(server.tls(Tls::read(certificate.as_ref(), key.as_ref(), client_ca.as_ref().map(Path::new))?))
    }

    /// Speaks TLS. Without it a server listens on a loopback address only: who can read the calls can repeat them.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.listen.tls = Some(tls);
        self
    }

    /// Where `/metrics` (OpenMetrics), `/livez`, `/readyz` and `/version` are served over HTTP: a host and a port, apart from
    /// what coordinators call, since it is neither encrypted nor closed. It tells numbers, and no ids and payloads.
    #[must_use]
    pub fn telemetry(mut self, address: &str) -> Self {
        self.listen.telemetry = Some(address.to_owned());
        self
    }

    /// Where to listen: a host and a port. Port 0 is any free one.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen.address);
        self
    }

    /// How many connections to the database are worked on at a time: 8 if nothing is said.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection to its database.
    pub(crate) async fn open(&self) -> Result<Client, ServeError> {
        let unreachable = |error: tokio_postgres::Error| ServeError::Unreachable(sort(&error).to_string());
        self.database.bounded("tcc-participant-setup").open().await.map_err(unreachable)
    }

    /// Serves until SIGTERM or Ctrl-C. Each operation has a local transaction of its own.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn serve(self, resource: impl Resource) -> Result<(), ServeError> {
        until_stopped(&self.name.clone(), self.start(resource).await?).await
    }

    /// As [`Server::serve`], with many operations in one local transaction, and one such transaction at a time.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn serve_batches(self, resource: impl BatchResource) -> Result<(), ServeError> {
        until_stopped(&self.name.clone(), self.start_batches(resource).await?).await
    }

    /// Starts serving. It serves when this returns.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn start(self, resource: impl Resource) -> Result<Running, ServeError> {
        let fenced = self.fenced(EachAlone(resource)).await?;
        start_beside(Arc::new(fenced), Routes::default(), &self.listen).await
    }

    /// As [`Server::start`], for [`Server::serve_batches`].
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn start_batches(self, resource: impl BatchResource) -> Result<Running, ServeError> {
        // A second one would mostly wait for what the first one has locked.
        let fenced = self.fence(resource, 1, MAX_CALLS).await?;
        start_beside(Arc::new(fenced), Routes::default(), &self.listen).await
    }

    /// A resource behind its fences, one step in each local transaction, for whoever serves it by [`start`] and has more to do:
    /// to find out by itself what became of effects outside of the database, as [`Effect::Outside`](crate::Effect) asks.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn fenced(&self, resource: impl BatchResource) -> Result<Fenced, ServeError> {
        self.fence(resource, self.connections, 1).await
    }

    /// As [`Server::fenced`], with a resource that does one step after the other.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn fenced_each(&self, resource: impl Resource) -> Result<Fenced, ServeError> {
        self.fenced(EachAlone(resource)).await
    }

    async fn fence(
        &self,
        resource: impl BatchResource,
        connections: usize,
        batch: usize,
    ) -> Result<Fenced, ServeError> {
        let mut client = self.open().await?;
        prepare(&mut client, &self.name).await?;
        Ok(Fenced::start(&self.name, &self.database, resource, connections, batch))
    }
}

/// A participant of the engine's as something that can be served, such as a shard of the ledger.
pub struct InProcess {
    /// It.
    pub participant: Arc<dyn Participant>,
    /// Whether it may veto where it has the pivot.
    pub may_veto: bool,
}

impl Served for InProcess {
    fn describe(&self) -> Description {
        Description::of(self.participant.name(), self.may_veto)
    }

    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let Step { operation, branch } = step;
            let transaction = match Transaction::decode(branch.transaction, branch.descriptor) {
                Ok(transaction) => Arc::new(transaction),
                Err(error) => return Outcome::Failed(error.to_string()),
            };
            let call = Call { operation, transaction, branches: vec![branch.index] };
            let outcome = self.participant.call(call).await.into_iter().next();
            outcome.unwrap_or_else(|| Outcome::Unknown("no answer".into()))
        })
    }

    fn is_connected(&self) -> bool {
        self.participant.is_reachable()
    }
}

/// A participant that serves.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its metrics are served.
    pub telemetry: Option<SocketAddr>,
    is_encrypted: bool,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Running {
    /// Where coordinators call it.
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

/// Serves over gRPC, with health and reflection. It serves when this returns.
///
/// # Errors
///
/// [`ServeError`].
pub async fn start(served: Arc<dyn Served>, listen: &str, tls: Option<&Tls>) -> Result<Running, ServeError> {
    let listen = Listen { tls: tls.cloned(), ..Listen::at(listen) };
    start_beside(served, Routes::default(), &listen).await
}

/// As [`start`], beside other services, and with metrics.
///
/// # Errors
///
/// [`ServeError`].
pub async fn start_beside(
    served: Arc<dyn Served>,
    others: Routes,
    listen: &Listen,
) -> Result<Running, ServeError> {
    let Listen { address, tls, telemetry } = listen;
    let (listener, address) = bind(address).await?;
    if tls.is_none() && !address.ip().is_loopback() {
        return Err(ServeError::Unencrypted(address));
    }
    let stop = CancellationToken::new();
    let (health, health_service) = tonic_health::server::health_reporter();
    set_health(&health, ServingStatus::Serving).await;
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tcc_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let counted = Counted::new(Arc::clone(&served));
    let watched = match telemetry {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let service = Service { served, counted: counted.clone() };
    let service = ParticipantServiceServer::new(service).max_decoding_message_size(MAX_REQUEST);
    let routes = others
        .add_service(service)
        .add_service(health_service)
        .add_service(descriptors().build_v1()?)
        .add_service(descriptors().build_v1alpha()?)
        .into_axum_router()
        .layer(from_fn_with_state(counted.clone(), timed));
    let hang_up = CancellationToken::new();
    let transport = match tls {
        Some(tls) => Transport::builder().tls_config(tls.config())?,
        None => Transport::builder(),
    };
    let transport = transport.tcp_nodelay(true);
    let server = transport
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .max_concurrent_streams(1_024)
        .add_routes(Routes::from(routes))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            hang_up.clone().cancelled_owned(),
        );
    let mut server = tokio::spawn(server);
    let (telemetry, unwatch) = (watched.as_ref().map(|(_, address)| *address), CancellationToken::new());
    if let Some((listener, _)) = watched {
        tokio::spawn(telemetry::serve(listener, counted.clone(), unwatch.clone()));
    }
    let stopped = stop.clone();
    let serving = tokio::spawn(async move {
        // Whoever watches sees it to its end.
        let _unwatch = unwatch.drop_guard();
        tokio::select! {
            ended = &mut server => return Ok(ended.expect("the server does not panic")?),
            () = stopped.cancelled() => {}
        }
        counted.drain();
        set_health(&health, ServingStatus::NotServing).await;
        hang_up.cancel();
        match tokio::time::timeout(DRAIN, &mut server).await {
            Ok(ended) => Ok(ended.expect("the server does not panic")?),
            Err(_) => {
                server.abort();
                Ok(())
            }
        }
    });
    Ok(Running { address, telemetry, is_encrypted: tls.is_some(), stop, serving })
}

async fn bind(address: &str) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Times every request by the head of its answer, which is the whole of it but for streams.
async fn timed(State(counted): State<Counted>, request: HttpRequest, next: Next) -> HttpResponse {
    let (path, began) = (request.uri().path().to_owned(), Instant::now());
    let under_way = counted.enter();
    let response = next.run(request).await;
    counted.methods().answered(&path, response.headers(), began);
    drop(under_way);
    response
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", SERVICE] {
        health.set_service_status(service, status).await;
    }
}

/// Says that it serves, and where, on its standard output; then waits for SIGTERM or Ctrl-C, and stops it.
///
/// # Errors
///
/// [`ServeError`].
pub async fn until_stopped(name: &str, running: Running) -> Result<(), ServeError> {
    // A reader that has gone is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "{name}: ready on {}", running.url());
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let stop = running.stop();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    running.ended().await
}

struct Service {
    served: Arc<dyn Served>,
    counted: Counted,
}

#[tonic::async_trait]
impl ParticipantService for Service {
    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        Ok(Response::new(write_description(self.served.describe())))
    }

    async fn call(&self, request: Request<v1::CallRequest>) -> Result<Response<v1::CallResponse>, Status> {
        let v1::CallRequest { participant, calls } = request.into_inner();
        let name = self.served.describe().name;
        if participant != name {
            let message = format!("this is participant {name:?}, and not {participant:?}; check its address");
            return Err(Status::failed_precondition(message));
        }
        if calls.len() > MAX_CALLS {
            let message = format!("{} calls in one request; {MAX_CALLS} are allowed", calls.len());
            return Err(Status::invalid_argument(message));
        }
        self.counted.requested(calls.len());
        let answers = calls.into_iter().map(|call| async {
            match read_call(call) {
                Ok(step) => {
                    let (operation, began) = (step.operation, Instant::now());
                    let outcome = self.served.answer(step).await;
                    self.counted.answered(operation, &outcome, began.elapsed());
                    outcome
                }
                Err(what) => Outcome::Failed(what),
            }
        });
        let outcomes = join_all(answers).await.into_iter().map(write_outcome).collect();
        Ok(Response::new(v1::CallResponse { outcomes }))
    }
}
