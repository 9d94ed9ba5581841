//! The way to the server: one connection, one deadline a call. Or, for when there is no server, the way straight to the databases:
//! the reading half of a server in this very process, so that no command need know.
//!
//! Connecting is a step of its own, so that "nobody listens there" is told apart from "no answer came". It keeps out
//! retries: a command that meets an unknown outcome says so and leaves the decision to whoever called it. Only a watch
//! asks again by itself, because reading changes nothing.

use crate::{credentials::Credentials, errors::Failure};
use hyper_util::rt::TokioIo;
use std::{
    future::{Ready, ready},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tcc_coordinator::{config::Config, direct::Direct};
use tokio::{io::DuplexStream, sync::OnceCell};
use tonic::{
    Request, Status,
    codegen::Service,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint, Uri},
};

/// For one call, if `--timeout` does not say otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked for a sign of life, and how long that may take. An audit may be silent for
/// long, and must not wait for ever for a machine that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Which server to talk to, and how long to wait for it.
pub struct Session {
    server: String,
    context: Option<String>,
    way: Way,
    authorization: Option<AsciiMetadataValue>,
    timeout: Option<Duration>,
}

enum Way {
    Server(Box<Endpoint>),
    /// By a configuration, whose databases are connected to when they are needed.
    Databases(PathBuf, OnceCell<Arc<Direct>>),
}

/// How much of a message is under way inside of this process.
const PIPE: usize = 64 * 1024;

impl Session {
    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// A sentence, if the credentials do not go with the server.
    pub fn new(server: Uri, credentials: &Credentials, timeout: Option<Duration>) -> Result<Self, String> {
        let name = server.to_string().trim_end_matches('/').to_owned();
        let is_encrypted = server.scheme_str() == Some("https");
        if !is_encrypted && !is_local(&server) && credentials.authorization().is_some() {
            return Err(format!("an API key or token sent to {name} could be read on the way; use https"));
        }
        if !is_encrypted && credentials.are_for_tls() {
            return Err(format!("certificates need an encrypted connection, and {name} is none; use https"));
        }
        let mut endpoint = Endpoint::from(server)
            .connect_timeout(timeout.unwrap_or(DEFAULT_TIMEOUT))
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        if is_encrypted {
            endpoint = endpoint.tls_config(credentials.tls()).map_err(|error| {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                format!("--ca, --certificate or --key: {error}{}", cause.unwrap_or_default())
            })?;
        }
        let (way, authorization) = (Way::Server(Box::new(endpoint)), credentials.authorization().cloned());
        Ok(Self { server: name, context: None, way, authorization, timeout })
    }

    /// Straight to the databases of a configuration, reading only.
    pub fn direct(configuration: PathBuf, timeout: Option<Duration>) -> Self {
        let server = format!("the databases of {}", configuration.display());
        let way = Way::Databases(configuration, OnceCell::new());
        Self { server, context: None, way, authorization: None, timeout }
    }

    /// Remembers by which name it was chosen.
    #[must_use]
    pub fn of_context(mut self, name: Option<String>) -> Self {
        self.context = name;
        self
    }

    /// The configuration whose databases are read, if that is how.
    pub fn configuration(&self) -> Option<&Path> {
        match &self.way {
            Way::Server(_) => None,
            Way::Databases(configuration, _) => Some(configuration),
        }
    }

    /// What is about to be changed, for people: the context by its name, if one is in use.
    pub fn place(&self) -> String {
        match &self.context {
            Some(context) => format!("{context} ({})", self.server),
            None => self.server.clone(),
        }
    }

    /// The context in use, by its name.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Connects. A connection lost later is made anew by the next call.
    pub async fn connect(&self) -> Result<Channel, Box<Failure>> {
        let (configuration, opened) = match &self.way {
            Way::Server(endpoint) => {
                return endpoint.connect().await.map_err(|error| Failure::unreachable(&self.server, &error));
            }
            Way::Databases(configuration, opened) => (configuration, opened),
        };
        let direct = opened.get_or_try_init(|| open(configuration)).await?;
        let (mine, other) = tokio::io::duplex(PIPE);
        tokio::spawn(Arc::clone(direct).serve(other));
        let channel = Endpoint::from_static("http://direct").connect_with_connector(Pipe(Some(mine))).await;
        channel.map_err(|error| Failure::unreachable(&self.server, &error))
    }

    /// How long one call may take.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// How long the caller wants to wait, if it said so.
    pub fn chosen_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// A message with the deadline of a call. The server sees it, too.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.bare_request(message);
        request.set_timeout(self.timeout());
        request
    }

    /// A message with a deadline only if the caller set one, for what may take long.
    pub fn unhurried_request<T>(&self, message: T) -> Request<T> {
        let mut request = self.bare_request(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }

    /// Where it is.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A message that shows who sends it: credentials, or to a server that believes everybody a name, for the record of actions.
    fn bare_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        } else if let Some(user) = user() {
            metadata.insert("tcc-caller", user);
        }
        request
    }

    /// What an error of this server means.
    pub fn failure(&self, status: Status) -> Box<Failure> {
        Failure::of_status(&self.server, &status)
    }
}

async fn open(configuration: &Path) -> Result<Arc<Direct>, Box<Failure>> {
    let config = Config::load(configuration).map_err(|error| Failure::configuration(&error.to_string()))?;
    let direct = Direct::open(&config).await;
    direct.map(Arc::new).map_err(|error| Failure::unusable(error.to_string()))
}

/// "Connects" to the other end of a pipe, once.
struct Pipe(Option<DuplexStream>);

impl Service<Uri> for Pipe {
    type Response = TokioIo<DuplexStream>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// Whether nothing leaves this machine.
fn is_local(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Who is logged in.
fn user() -> Option<AsciiMetadataValue> {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok()?;
    // What the server would not take as a name is not one.
    let is_name = (1..=64).contains(&user.len()) && user.bytes().all(|byte| byte.is_ascii_graphic());
    user.parse().ok().filter(|_| is_name)
}
