//! The way to the server: one connection, one deadline a call. Or, for when there is no server, the way straight to the databases:
//! the reading half of a server in this very process, so that no command need know.
//!
//! Connecting is a step of its own, so that "nobody listens there" is told apart from "no answer came". It keeps out
//! retries: a command that meets an unknown outcome says so and leaves the decision to whoever called it. Only a watch
//! asks again by itself, because reading changes nothing.

use crate::{
    args::{Global, server},
    contexts::{self, Contexts},
    credentials::Credentials,
    errors::Failure,
};
use hyper_util::rt::TokioIo;
use std::{
    future::{Ready, ready},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tcc_client::{Client, ConnectError};
use tcc_coordinator::{config::Config, direct::Direct};
use tokio::{io::DuplexStream, sync::OnceCell};
use tonic::{
    Request, Status,
    codegen::Service,
    transport::{Channel, Endpoint, Uri},
};

/// Where tccd listens, if nothing says otherwise.
const DEFAULT_SERVER: &str = "http://127.0.0.1:7070";
/// For one call, if `--timeout` does not say otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which server to talk to, and how long to wait for it.
pub struct Session {
    server: String,
    context: Option<String>,
    way: Way,
    timeout: Option<Duration>,
}

enum Way {
    Server(Box<tcc_client::Way>),
    /// By a configuration, whose databases are connected to when they are needed.
    Databases(PathBuf, OnceCell<Arc<Direct>>),
}

/// How much of a message is under way inside of this process.
const PIPE: usize = 64 * 1024;

impl Session {
    /// Where to ask, and as whom: as the options say, or else the context.
    pub fn of(global: Global) -> Result<Self, String> {
        let Global { server: asked, context, direct, ca, token_file, certificate, key, timeout, .. } = global;
        // A server or a configuration that is named is no context's, unless that is named, too.
        let is_named = context.is_some() || (asked.is_none() && direct.is_none());
        let chosen = if is_named { Contexts::read()?.choose(context)? } else { None };
        let (name, context) =
            chosen.map_or((None, contexts::Context::default()), |(name, context)| (Some(name), context));
        if let Some(configuration) = direct.or(context.direct.filter(|_| asked.is_none())) {
            return Ok(Self::direct(configuration, timeout).of_context(name));
        }
        let at = match (asked, context.server.as_str()) {
            (Some(asked), _) => asked,
            (None, "") => server(DEFAULT_SERVER)?,
            (None, text) => server(text)?,
        };
        let own = |asked: Option<PathBuf>, context: Option<PathBuf>| asked.or(context);
        let credentials = Credentials::read(
            own(ca, context.ca),
            own(token_file, context.token_file),
            own(certificate, context.certificate),
            own(key, context.key),
        )?;
        Ok(Self::new(&at, &credentials, timeout)?.of_context(name))
    }

    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// A sentence, if the credentials do not go with the server.
    pub fn new(server: &Uri, credentials: &Credentials, timeout: Option<Duration>) -> Result<Self, String> {
        let name = server.to_string().trim_end_matches('/').to_owned();
        let connect = Client::at(&name).connecting(timeout.unwrap_or(DEFAULT_TIMEOUT));
        let way = credentials.shown_to(connect).check().map_err(|error| match error {
            ConnectError::Credential => "the API key or token has characters that none has".to_owned(),
            ConnectError::Tls(why) => format!("--ca, --certificate or --key: {why}"),
            error => error.to_string(),
        })?;
        let way = Way::Server(Box::new(way));
        Ok(Self { server: name, context: None, way, timeout })
    }

    /// Straight to the databases of a configuration, reading only.
    pub fn direct(configuration: PathBuf, timeout: Option<Duration>) -> Self {
        let server = format!("the databases of {}", configuration.display());
        let way = Way::Databases(configuration, OnceCell::new());
        Self { server, context: None, way, timeout }
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
            Way::Server(way) => {
                return way.connect().await.map_err(|error| Failure::unreachable(&self.server, &error));
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

    /// A message that shows who sends it. Whoever can read the databases need not say.
    fn bare_request<T>(&self, message: T) -> Request<T> {
        match &self.way {
            Way::Server(way) => way.request(message),
            Way::Databases(..) => Request::new(message),
        }
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
