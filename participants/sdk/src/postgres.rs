//! How a PostgreSQL server is reached: where, as whom, and whether the way there is encrypted.
//!
//! An encrypted way verifies the server's certificate and its name (libpq calls that verify-full); there is no half of it,
//! since an encrypted way to an unknown server protects nothing. With a password over SCRAM the connection is then bound to
//! the certificate, so that nobody in between can pass the password's proof on; `channel_binding=require` in the url insists
//! on it. Sockets of this machine are never encrypted.

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use futures::{
    StreamExt as _, TryStreamExt as _,
    future::ready,
    stream::{self, BoxStream},
};
use std::{str::FromStr, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, Error, NoTls,
    config::{Host, SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// What a server says beside its answers. It must be read until it ends, or nothing moves.
pub type Messages = BoxStream<'static, Result<AsyncMessage, Error>>;

/// Where a database is, as whom to log in, and over which kind of connection.
#[derive(Clone)]
pub struct Postgres {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    is_read_only: bool,
}

/// A way that is not encrypted.
impl From<Config> for Postgres {
    fn from(config: Config) -> Self {
        Self { config, tls: None, is_read_only: false }
    }
}

/// As [`Config`] reads it; not encrypted.
impl FromStr for Postgres {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        url.parse().map(|config: Config| config.into())
    }
}

impl Postgres {
    /// A way that is encrypted, to a server whose certificate `tls` accepts; unless it is a socket of this machine.
    #[must_use]
    pub fn encrypted(mut config: Config, tls: rustls::ClientConfig) -> Self {
        if config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) {
            return config.into();
        }
        config.ssl_mode(SslMode::Require);
        Self { config, tls: Some(MakeRustlsConnect::new(tls)), is_read_only: false }
    }

    /// As somebody else.
    #[must_use]
    pub fn log_in_as(&self, user: &str, password: Option<&str>) -> Self {
        let mut other = self.clone();
        other.config.user(user);
        if let Some(password) = password {
            other.config.password(password);
        }
        other
    }

    /// Bounds every connection: 2 s to connect, 10 s for a peer that does not acknowledge.
    #[must_use]
    pub fn bounded(&self, application_name: &str) -> Self {
        let mut bounded = self.clone();
        bounded
            .config
            .application_name(application_name)
            .connect_timeout(Duration::from_secs(2))
            .tcp_user_timeout(Duration::from_secs(10))
            .keepalives_idle(Duration::from_secs(10));
        bounded
    }

    /// A server that became a standby takes no writes: look for the one that does. To whoever only reads, it makes no difference.
    #[must_use]
    pub fn writable(mut self) -> Self {
        if !self.is_read_only {
            self.config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        self
    }

    /// The server refuses whatever would change something.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        set_option(&mut self.config, "default_transaction_read_only=on");
        self
    }

    /// Connects. Somebody has to read the messages.
    ///
    /// # Errors
    ///
    /// PostgreSQL's, or that it is not reached.
    pub async fn connect(&self) -> Result<(Client, Messages), Error> {
        match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                Ok((client, messages(connection)))
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                Ok((client, messages(connection)))
            }
        }
    }

    /// Connects, and reads the messages without looking at them.
    ///
    /// # Errors
    ///
    /// As [`Postgres::connect`].
    pub async fn open(&self) -> Result<Client, Error> {
        let (client, messages) = self.connect().await?;
        tokio::spawn(messages.try_for_each(|_| ready(Ok(()))));
        Ok(client)
    }

    /// A pool for reads: connections are made when needed, at most eight, and nobody waits longer than three seconds for one. A
    /// statement that takes longer than `longest` is ended by the server.
    #[must_use]
    pub fn pool(&self, application_name: &str, longest: Option<Duration>) -> Pool {
        let mut config = self.bounded(application_name).config;
        if let Some(longest) = longest {
            set_option(&mut config, &format!("statement_timeout={}", longest.as_millis()));
        }
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let manager = match &self.tls {
            None => Manager::from_config(config, NoTls, recycling),
            Some(tls) => Manager::from_config(config, tls.clone(), recycling),
        };
        let patience = Some(Duration::from_secs(3));
        Pool::builder(manager)
            .max_size(8)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: patience, create: patience, recycle: patience })
            .build()
            .expect("a pool with a runtime and time-outs is complete")
    }
}

/// Sets something for every session, beside what the url sets.
fn set_option(config: &mut Config, setting: &str) {
    let own = config.get_options().unwrap_or_default();
    let options = format!("{own} -c {setting}");
    config.options(options.trim());
}

fn messages<S, T>(mut connection: Connection<S, T>) -> Messages
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    stream::poll_fn(move |context| connection.poll_message(context)).boxed()
}
