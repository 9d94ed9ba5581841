//! The way to a server: the address, what proves who asks, and how the server is verified.
//!
//! Secrets are sent over encrypted connections only, or on this machine, and no `Debug` shows them.

use crate::Client;
use std::{fmt, net::IpAddr, sync::Arc, time::Duration};
use tcc_proto::v1::{
    hold_service_client::HoldServiceClient, ledger_service_client::LedgerServiceClient,
    transaction_service_client::TransactionServiceClient,
};
use tonic::{
    Request,
    metadata::AsciiMetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// How long one attempt waits for its answer.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long a call is made again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a silent connection is asked for a sign of life, and how long that may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("{0:?} is no address of a server; write it as https://HOST:PORT")]
    Address(String),
    /// The credential would travel in the open.
    #[error("an API key or token sent to {0} could be read on the way; use https")]
    Open(String),
    /// The credential has characters that none has.
    #[error("an API key, a token or a caller's name is printable ASCII")]
    Credential,
    /// Certificates go with an encrypted connection only.
    #[error("certificates need an encrypted connection, and {0} is none; use https")]
    NotEncrypted(String),
    /// A certificate, a key or the authorities cannot be read.
    #[error("TLS: {0}")]
    Tls(String),
    /// Nobody answers there, or the two do not agree.
    #[error("cannot connect to {url}: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why, for people.
        why: String,
    },
}

type Source = Arc<dyn Fn() -> String + Send + Sync>;
type Lost = Arc<dyn Fn(std::time::Instant) + Send + Sync>;

/// How to reach a server, and who asks. Ends with [`Connect::connect`] or [`Connect::lazy`], or with [`Connect::check`].
pub struct Connect {
    url: String,
    shown: Shown,
    ca: Option<Certificate>,
    identity: Option<Identity>,
    connecting: Duration,
    attempt: Duration,
    patience: Duration,
    on_lost: Option<Lost>,
}

/// A way to a server on which nothing leaves this machine in the open that must not: for programs that have clients of their own
/// for the calls that this crate does not make.
#[derive(Clone)]
pub struct Way {
    endpoint: Endpoint,
    shown: Shown,
}

/// What each call shows.
#[derive(Clone)]
enum Shown {
    Nothing,
    /// To a server that believes everybody.
    Name(String),
    /// An API key or a token, asked for with each attempt.
    Secret(Source),
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("url", &self.url).finish_non_exhaustive()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Connect {
    pub(crate) fn to(url: &str) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            shown: Shown::Nothing,
            ca: None,
            identity: None,
            connecting: CONNECT,
            attempt: ATTEMPT,
            patience: PATIENCE,
            on_lost: None,
        }
    }

    /// Shows an API key with each call.
    #[must_use]
    pub fn api_key(self, key: &str) -> Self {
        let key = key.trim().to_owned();
        self.token(move || key.clone())
    }

    /// Shows a token (or an API key) with each call, which is asked for each time: so it may change.
    #[must_use]
    pub fn token(mut self, source: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.shown = Shown::Secret(Arc::new(source));
        self
    }

    /// Calls itself this, to a server that believes everybody. Ignored by all others.
    #[must_use]
    pub fn named(mut self, caller: &str) -> Self {
        self.shown = Shown::Name(caller.to_owned());
        self
    }

    /// Believes a server with a certificate of these authorities (PEM), instead of those that the system knows.
    #[must_use]
    pub fn authority(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.ca = Some(Certificate::from_pem(pem));
        self
    }

    /// Shows a certificate and proves it with its key (PEM).
    #[must_use]
    pub fn certificate(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// How long a connection may take: 5 s unless said otherwise.
    #[must_use]
    pub fn connecting(mut self, connecting: Duration) -> Self {
        self.connecting = connecting;
        self
    }

    /// How long one attempt waits for its answer: 10 s unless said otherwise. The server sees it.
    #[must_use]
    pub fn attempt(mut self, attempt: Duration) -> Self {
        self.attempt = attempt;
        self
    }

    /// How long a call is made again while there is no answer: 60 s unless said otherwise.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Is told about each attempt without an answer, and when it began.
    #[must_use]
    pub fn on_lost(mut self, told: impl Fn(std::time::Instant) + Send + Sync + 'static) -> Self {
        self.on_lost = Some(Arc::new(told));
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let (way, url) = (self.check()?, self.url.clone());
        let channel = way.connect().await;
        let channel = channel.map_err(|error| ConnectError::Unreachable { url, why: root_cause(&error) })?;
        Ok(self.client(way, channel))
    }

    /// Connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], but for [`ConnectError::Unreachable`].
    pub fn lazy(self) -> Result<Client, ConnectError> {
        let way = self.check()?;
        let channel = way.endpoint.connect_lazy();
        Ok(self.client(way, channel))
    }

    fn client(self, way: Way, channel: Channel) -> Client {
        let Self { attempt, patience, on_lost, .. } = self;
        Client { shared: Arc::new(Shared { channel, way, attempt, on_lost }), patience }
    }

    /// Whether it can work, and the way itself. Connects to nothing.
    ///
    /// # Errors
    ///
    /// As [`Connect::lazy`].
    pub fn check(&self) -> Result<Way, ConnectError> {
        Ok(Way { endpoint: self.endpoint()?, shown: self.shown.clone() })
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let address = || ConnectError::Address(self.url.clone());
        let endpoint = Endpoint::from_shared(self.url.clone()).map_err(|_| address())?;
        let uri = endpoint.uri().clone();
        let host = uri.host().ok_or_else(address)?.trim_matches(['[', ']']);
        let stays_here =
            host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let endpoint = endpoint
            .connect_timeout(self.connecting)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        self.shown.value()?;
        match uri.scheme_str() {
            Some("https") => {
                endpoint.tls_config(self.tls()).map_err(|error| ConnectError::Tls(root_cause(&error)))
            }
            Some("http") if self.ca.is_some() || self.identity.is_some() => {
                Err(ConnectError::NotEncrypted(self.url.clone()))
            }
            Some("http") if !stays_here && matches!(self.shown, Shown::Secret(_)) => {
                Err(ConnectError::Open(self.url.clone()))
            }
            Some("http") => Ok(endpoint),
            _ => Err(address()),
        }
    }

    fn tls(&self) -> ClientTlsConfig {
        let tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(ca.clone()),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match &self.identity {
            Some(identity) => tls.identity(identity.clone()),
            None => tls,
        }
    }
}

impl Way {
    /// Connects.
    ///
    /// # Errors
    ///
    /// The transport's.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        self.endpoint.connect().await
    }

    /// A message with what proves who asks.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A token that is none is not sent, and the server says what it misses.
        if let Ok(Some((name, value))) = self.shown.value() {
            request.metadata_mut().insert(name, value);
        }
        request
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("to", self.endpoint.uri()).finish_non_exhaustive()
    }
}

impl Shown {
    /// The metadata that it is.
    fn value(&self) -> Result<Option<(&'static str, AsciiMetadataValue)>, ConnectError> {
        let (name, text) = match self {
            Self::Nothing => return Ok(None),
            Self::Name(name) => ("tcc-caller", name.clone()),
            Self::Secret(source) => ("authorization", format!("Bearer {}", source().trim())),
        };
        let mut value: AsciiMetadataValue = text.parse().map_err(|_| ConnectError::Credential)?;
        value.set_sensitive(name == "authorization");
        Ok(Some((name, value)))
    }
}

/// What clones of a client share.
pub(crate) struct Shared {
    channel: Channel,
    way: Way,
    pub(crate) attempt: Duration,
    pub(crate) on_lost: Option<Lost>,
}

impl Shared {
    /// A message with what proves who asks.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        self.way.request(message)
    }

    pub(crate) fn holds(&self) -> HoldServiceClient<Channel> {
        HoldServiceClient::new(self.channel.clone())
    }

    pub(crate) fn transactions(&self) -> TransactionServiceClient<Channel> {
        TransactionServiceClient::new(self.channel.clone())
    }

    pub(crate) fn ledger(&self) -> LedgerServiceClient<Channel> {
        LedgerServiceClient::new(self.channel.clone())
    }
}

/// "Connection refused", where the outer error says "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => root_cause(cause),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_over_encrypted_connections_or_stays_on_this_machine() {
        for (url, is_sent) in [
            ("http://127.0.0.1:7070", true),
            ("http://[::1]:7070", true),
            ("http://localhost:7070/", true),
            ("https://tcc.internal:7070", true),
            ("http://tcc.internal:7070", false),
            ("http://10.0.0.1:7070", false),
        ] {
            let connect = Client::at(url).api_key("secret");

            assert_eq!(connect.check().is_ok(), is_sent, "{url}");
        }
        assert!(Client::at("http://tcc.internal:7070").named("shop").check().is_ok());
    }

    #[test]
    fn what_cannot_work_is_told_before_it_is_tried() {
        let wrong = |connect: Connect| connect.check().unwrap_err().to_string();

        for url in ["", "localhost:7070", "ftp://localhost:7070", "nonsense"] {
            assert!(wrong(Client::at(url)).contains("no address"), "{url}");
        }
        assert!(wrong(Client::at("http://localhost:1").authority("x")).contains("use https"));
        assert!(wrong(Client::at("http://localhost:1").certificate("x", "y")).contains("use https"));
        assert!(wrong(Client::at("https://localhost:1").certificate("x", "y")).starts_with("TLS"));
        assert!(wrong(Client::at("http://localhost:1").api_key("a\nb")).contains("printable"));
    }

    #[test]
    fn a_secret_is_in_no_message() {
        let connect = Client::at("http://localhost:1").api_key("canary");
        let way = connect.check().unwrap();
        let value = connect.shown.value().unwrap().unwrap().1;
        let broken = Client::at("http://localhost:1").api_key("canary\nof two lines").check().unwrap_err();

        assert_eq!(value.to_str().unwrap(), "Bearer canary");
        for text in [format!("{connect:?} {way:?}"), format!("{value:?}"), format!("{broken:?} {broken}")] {
            assert!(!text.contains("canary"), "{text}");
        }
    }
}
