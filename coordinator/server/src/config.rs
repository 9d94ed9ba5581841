//! `tccd.toml`: what an installation chooses. Every key is documented in `coordinator/docs/tccd.toml`, which a test parses.
//!
//! Passwords may stand in the urls, and better stand in files of their own. What is printed for debugging shows neither.

use crate::telemetry::logs::Logs;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
};
use tcc_core::{Amount, ParticipantName};

/// How long one request to a participant may take, in milliseconds.
pub const DEADLINES_MS: std::ops::RangeInclusive<u32> = 100..=60_000;
/// How many requests may be under way at one.
pub const REQUESTS: std::ops::RangeInclusive<u16> = 1..=256;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API listens, for gRPC and for HTTP with JSON: address and port. Port 0 takes a free one.
    pub listen: String,
    /// Believes whatever callers say of themselves, without encryption. Only on a loopback address.
    pub insecure_dev: bool,
    /// The certificate of the API. Without one it listens on loopback only.
    pub tls: Option<Tls>,
    /// How callers are recognised.
    pub auth: Auth,
    /// The coordinator's database.
    pub coordinator: Database,
    /// The ledger shards. Which accounts live where is fixed by their names when a coordinator first starts.
    #[serde(rename = "shard")]
    pub shards: Vec<ShardConfig>,
    /// Participants that are no shards. Others are added while it runs: `tccctl participants add`.
    #[serde(rename = "participant", skip_serializing_if = "Vec::is_empty")]
    pub participants: Vec<ParticipantConfig>,
    /// What is shown to participants and `tcc-ledgerd`, so that they know who calls.
    pub identity: Option<IdentityFiles>,
    /// How all databases are logged in to.
    pub postgres: PostgresConfig,
    /// What requests may ask for.
    pub limits: Limits,
    /// What connections and callers may take.
    pub traffic: Traffic,
    /// What the instance tells whoever watches it.
    pub telemetry: Telemetry,
}

/// The API's side of TLS. The files are read again whenever they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authorities whose client certificates are accepted, PEM.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is sent away, whatever else it has.
    #[serde(default)]
    pub require_client_certificate: bool,
}

/// How callers are recognised. The files are read again whenever they change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// A file of callers with API keys and certificates.
    pub callers: Option<PathBuf>,
    /// Tokens of an identity provider.
    pub jwt: Option<Jwt>,
}

/// Tokens of an identity provider: which of them are believed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// `iss` must be this.
    pub issuer: String,
    /// `aud` must be or contain this.
    pub audience: String,
    /// The provider's public keys (JWKS): a file, or an https url.
    pub keys: String,
    /// The only signatures that are accepted.
    #[serde(default = "Jwt::default_algorithms")]
    pub algorithms: Vec<String>,
    /// The authorities of the url's certificate, PEM. Without it those of the system.
    pub ca: Option<PathBuf>,
    /// The claim that lists roles.
    #[serde(default = "Jwt::default_roles_claim")]
    pub roles_claim: String,
    /// The claim that lists accounts.
    #[serde(default = "Jwt::default_accounts_claim")]
    pub accounts_claim: String,
}

impl Jwt {
    fn default_algorithms() -> Vec<String> {
        ["RS256", "ES256", "EdDSA"].map(str::to_owned).into()
    }

    fn default_roles_claim() -> String {
        "tcc_roles".into()
    }

    fn default_accounts_claim() -> String {
        "tcc_accounts".into()
    }
}

/// A database.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `key=value` pairs or a `postgresql://` URL.
    pub url: String,
}

/// A shard.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShardConfig {
    /// Its name, for ever.
    pub name: String,
    /// As [`Database::url`].
    pub url: String,
    /// Where `tcc-ledgerd` works on it, as `https://HOST:PORT`; empty if the coordinator does that itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// The authorities of that one's certificate, PEM. Without it those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// A participant that is no shard.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ParticipantConfig {
    /// What transactions call it, and what it calls itself.
    pub name: String,
    /// Where it is called, as `https://HOST:PORT`; `http://` on this machine alone.
    pub address: String,
    /// The authorities of its certificate, PEM. Without it those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// It may veto, so it must be the pivot.
    #[serde(default)]
    pub may_veto: bool,
    /// How long one request to it may take, in milliseconds: 100 to 60000.
    #[serde(default = "ParticipantConfig::default_deadline_ms")]
    pub deadline_ms: u32,
    /// How many requests may be under way at a time: 1 to 256.
    #[serde(default = "ParticipantConfig::default_requests")]
    pub requests: u16,
}

impl ParticipantConfig {
    /// One of this machine, as most are.
    #[must_use]
    pub fn new(name: &str, address: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            ca: None,
            may_veto: false,
            deadline_ms: Self::default_deadline_ms(),
            requests: Self::default_requests(),
        }
    }

    fn default_deadline_ms() -> u32 {
        10_000
    }

    fn default_requests() -> u16 {
        4
    }
}

/// A certificate to show.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityFiles {
    /// It, and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl ShardConfig {
    /// One on which the coordinator works itself.
    #[must_use]
    pub fn new(name: &str, url: &str) -> Self {
        Self { name: name.to_owned(), url: url.to_owned(), address: String::new(), ca: None }
    }
}

// A url may have a password in it.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

impl fmt::Debug for ShardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How all databases are logged in to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// Which connections are encrypted.
    pub tls: PostgresTls,
    /// The authorities of the servers' certificates, PEM. Without it those of the system.
    pub ca: Option<PathBuf>,
    /// A file with the password of the user that the urls name.
    pub password_file: Option<PathBuf>,
    /// Who makes and drops partitions. Without it, the user that the urls name.
    pub maintainer: Option<Login>,
    /// Who creates and changes tables at the start. Without it, the maintainer.
    pub migrator: Option<Login>,
}

/// Which connections to PostgreSQL are encrypted, with the server's certificate and name verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PostgresTls {
    /// Those that leave this machine.
    #[default]
    Remote,
    /// All but those through sockets of this machine.
    Always,
    /// None.
    Never,
}

/// A user of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Its name.
    pub user: String,
    /// A file with its password.
    pub password_file: Option<PathBuf>,
}

/// What the instance tells whoever watches it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where metrics and health are served over HTTP: address and port. Port 0 takes a free one. Empty: nowhere.
    pub listen: String,
    /// How logs look.
    pub logs: Logs,
    /// Where traces are sent over OTLP (gRPC): the url of a collector. Empty: nowhere.
    pub traces: String,
    /// How many of a hundred requests are traced of those that do not say themselves whether they are: 0 to 100.
    pub traces_percent: u8,
}

/// What requests may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest amount of one hold or issue, in minor units: 1 to 10^15.
    pub max_amount: i64,
    /// How far ahead a hold may fall due, in days: 1 to 3650.
    pub max_maturity_days: u16,
}

/// What connections and callers may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// Requests of one caller in a second, on this instance. Not with `insecure_dev`.
    pub caller_requests_per_second: u32,
    /// How many of them may come at once.
    pub caller_burst: u32,
    /// Connections at a time; more are closed at once.
    pub connections: u32,
    /// Connections at a time from one address.
    pub connections_per_address: u32,
    /// Requests at a time over one connection; a client that has more waits.
    pub streams_per_connection: u32,
    /// Requests under way at a time, of all callers; more are answered OVERLOADED.
    pub requests: u32,
    /// Of them those of one caller; a watch is one for as long as it lasts. Not with `insecure_dev`.
    pub caller_requests: u32,
    /// Transactions of one caller that may be open (not final) at a time, over all instances; 0 for any number.
    pub caller_open_transactions: u32,
    /// The longest message that is read, in bytes: a batch of 1,000 holds has up to 2 MiB.
    pub message_bytes: u32,
    /// The longest headers that are read, in bytes. A token is in them.
    pub header_bytes: u32,
    /// How long a client may take from connecting to its first request's beginning, in seconds.
    pub handshake_seconds: u16,
    /// How long a request may take, in seconds. A stream may take longer once it has begun.
    pub request_seconds: u16,
    /// A silent connection is asked for a sign of life after so many seconds, and closed if none comes in half of that.
    pub keep_alive_seconds: u16,
    /// After so many minutes a client is asked to connect anew: that is when certificates are looked at again.
    pub connection_age_minutes: u16,
    /// How long what is under way may take then before the connection is cut.
    pub connection_grace_minutes: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7070".into(),
            insecure_dev: false,
            tls: None,
            auth: Auth::default(),
            coordinator: Database::default(),
            shards: Vec::new(),
            participants: Vec::new(),
            identity: None,
            postgres: PostgresConfig::default(),
            limits: Limits::default(),
            traffic: Traffic::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9464".into(), logs: Logs::Text, traces: String::new(), traces_percent: 1 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_amount: Amount::MAX, max_maturity_days: 365 }
    }
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            caller_requests_per_second: 5_000,
            caller_burst: 5_000,
            connections: 8_000,
            connections_per_address: 1_000,
            streams_per_connection: 1_024,
            requests: 16_384,
            caller_requests: 4_096,
            caller_open_transactions: 0,
            message_bytes: 2_097_152,
            header_bytes: 16_384,
            handshake_seconds: 10,
            request_seconds: 75,
            keep_alive_seconds: 20,
            connection_age_minutes: 30,
            connection_grace_minutes: 10,
        }
    }
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or has an unknown key or a value of the wrong kind.
    #[error("{path}, line {line}: {what}")]
    Syntax {
        /// Which file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what may have been meant.
        what: String,
    },
    /// A value is out of its range.
    #[error("{path}: {what}")]
    Value {
        /// Which file.
        path: String,
        /// Which key, and its range.
        what: String,
    },
}

impl Config {
    /// Reads a file. Other files that it names without a folder stand beside it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        let mut config = Self::parse(&name, &text)?;
        if let Some(folder) = path.parent() {
            config.files().into_iter().for_each(|file| *file = folder.join(&*file));
            config.auth.jwt.iter_mut().filter(|jwt| !jwt.keys.contains("://")).for_each(|jwt| {
                jwt.keys = folder.join(&jwt.keys).display().to_string();
            });
        }
        Ok(config)
    }

    /// Reads a text; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn parse(path: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = parse_toml(path, text)?;
        let value = |what: String| Err(ConfigError::Value { path: path.to_owned(), what });
        let Limits { max_amount, max_maturity_days } = config.limits;
        if config.coordinator.url.is_empty() {
            return value("coordinator.url is missing: the coordinator needs a database".into());
        }
        if config.shards.is_empty() {
            return value("there is no [[shard]]: at least one is needed, with name and url".into());
        }
        let mut names: Vec<&str> = config.shards.iter().map(|shard| shard.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return value(format!("two shards are called {:?}", twice[0]));
        }
        for participant in &config.participants {
            let ParticipantConfig { name, deadline_ms, requests, .. } = participant;
            if let Err(error) = ParticipantName::parse(name) {
                return value(format!("participant {name:?}: {error}"));
            }
            if config.participants.iter().filter(|other| other.name == *name).count() > 1
                || config.shards.iter().any(|shard| shard.name == *name)
            {
                return value(format!("two participants or shards are called {name:?}"));
            }
            if !DEADLINES_MS.contains(deadline_ms) {
                return value(format!("deadline_ms of {name} is {deadline_ms}; it can be 100 to 60000"));
            }
            if !REQUESTS.contains(requests) {
                return value(format!("requests of {name} is {requests}; it can be 1 to 256"));
            }
        }
        if !(1..=Amount::MAX).contains(&max_amount) {
            return value(format!("limits.max_amount is {max_amount}; it can be 1 to {}", Amount::MAX));
        }
        if !(1..=3650).contains(&max_maturity_days) {
            return value(format!("limits.max_maturity_days is {max_maturity_days}; it can be 1 to 3650"));
        }
        if config.tls.as_ref().is_some_and(|tls| tls.require_client_certificate && tls.client_ca.is_none()) {
            return value("tls.require_client_certificate needs tls.client_ca".into());
        }
        let Telemetry { traces, traces_percent, .. } = &config.telemetry;
        if *traces_percent > 100 {
            return value(format!("telemetry.traces_percent is {traces_percent}; it can be 0 to 100"));
        }
        if !traces.is_empty() && !["http://", "https://"].iter().any(|scheme| traces.starts_with(scheme)) {
            return value("telemetry.traces is the url of a collector, such as http://127.0.0.1:4317".into());
        }
        for (key, number, low, high) in config.traffic.ranges() {
            if !(low..=high).contains(&number) {
                return value(format!("traffic.{key} is {number}; it can be {low} to {high}"));
            }
        }
        Ok(config)
    }

    /// Every file that it names.
    fn files(&mut self) -> Vec<&mut PathBuf> {
        let mut files: Vec<&mut PathBuf> = Vec::new();
        if let Some(tls) = &mut self.tls {
            files.extend([&mut tls.certificate, &mut tls.key]);
            files.extend(&mut tls.client_ca);
        }
        files.extend(self.shards.iter_mut().filter_map(|shard| shard.ca.as_mut()));
        files.extend(self.participants.iter_mut().filter_map(|participant| participant.ca.as_mut()));
        if let Some(identity) = &mut self.identity {
            files.extend([&mut identity.certificate, &mut identity.key]);
        }
        files.extend(&mut self.auth.callers);
        files.extend(self.auth.jwt.as_mut().and_then(|jwt| jwt.ca.as_mut()));
        let postgres = &mut self.postgres;
        files.extend(&mut postgres.ca);
        files.extend(&mut postgres.password_file);
        for login in [&mut postgres.maintainer, &mut postgres.migrator] {
            files.extend(login.as_mut().and_then(|login| login.password_file.as_mut()));
        }
        files
    }
}

impl Traffic {
    /// Each key with its value and its range.
    fn ranges(&self) -> [(&'static str, u32, u32, u32); 15] {
        [
            ("caller_requests_per_second", self.caller_requests_per_second, 1, 1_000_000),
            ("caller_burst", self.caller_burst, 1, 1_000_000),
            ("connections", self.connections, 1, 1_000_000),
            ("connections_per_address", self.connections_per_address, 1, 1_000_000),
            ("streams_per_connection", self.streams_per_connection, 1, 65_536),
            ("requests", self.requests, 1, 1_000_000),
            ("caller_requests", self.caller_requests, 1, 1_000_000),
            ("caller_open_transactions", self.caller_open_transactions, 0, 1_000_000_000),
            ("message_bytes", self.message_bytes, 1_024, 4_194_304),
            ("header_bytes", self.header_bytes, 1_024, 1_048_576),
            ("handshake_seconds", self.handshake_seconds.into(), 1, 300),
            ("request_seconds", self.request_seconds.into(), 1, 3_600),
            ("keep_alive_seconds", self.keep_alive_seconds.into(), 2, 3_600),
            ("connection_age_minutes", self.connection_age_minutes.into(), 1, 10_080),
            ("connection_grace_minutes", self.connection_grace_minutes.into(), 1, 10_080),
        ]
    }
}

/// Reads a TOML text into what it is to be; `path` is for messages, which never repeat a value.
///
/// # Errors
///
/// [`ConfigError::Syntax`].
pub fn parse_toml<T: serde::de::DeserializeOwned>(path: &str, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text[..start.min(text.len())].matches('\n').count();
        ConfigError::Syntax {
            path: path.to_owned(),
            line,
            what: with_nearest(&without_values(error.message())),
        }
    })
}

/// serde quotes a string that stands where it does not belong: it may be a secret.
fn without_values(message: &str) -> String {
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &message[..=first], &message[last..])
        }
        _ => message.to_owned(),
    }
}

/// Adds the nearest of the valid keys to serde's "unknown field `x`, expected one of `a`, `b`".
fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next().filter(|_| message.starts_with("unknown field")) else {
        return message.to_owned();
    };
    let nearest = quoted.min_by_key(|known| strsim::damerau_levenshtein(unknown, known));
    match nearest {
        Some(nearest) => format!("unknown key `{unknown}`; did you mean `{nearest}`?"),
        None => format!("unknown key `{unknown}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[coordinator]\nurl = \"host=a\"\n[[shard]]\nname = \"s\"\nurl = \"host=b\"\n";

    #[test]
    fn the_documented_example_is_valid_and_shows_the_defaults() {
        let text = include_str!("../../docs/tccd.toml");

        let config = Config::parse("tccd.toml", text).unwrap();

        assert_eq!(config.shards.len(), 2);
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.traffic, Traffic::default());
        assert_eq!(config.telemetry, Telemetry::default());
        assert!(!config.insecure_dev && config.tls.is_some());
        for key in config.traffic.ranges().map(|(key, ..)| key) {
            assert!(text.contains(&format!("\n{key} = ")), "{key} is not documented");
        }
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_the_nearest_valid_one() {
        let text = "listen = \"127.0.0.1:1\"\n[coordinator]\nulr = \"host=db\"\n";

        let error = Config::parse("tccd.toml", text).unwrap_err().to_string();

        assert_eq!(error, "tccd.toml, line 3: unknown key `ulr`; did you mean `url`?");
    }

    #[test]
    fn values_out_of_range_are_told_with_the_range() {
        let error = |extra: &str| Config::parse("t", &format!("{BASE}{extra}")).unwrap_err().to_string();

        assert!(error("[limits]\nmax_amount = 0").contains("1 to 1000000000000000"));
        assert!(error("[limits]\nmax_maturity_days = 4000").contains("1 to 3650"));
        assert!(error("[[shard]]\nname = \"s\"\nurl = \"x\"").contains("two shards"));
        let seats = "[[participant]]\nname = \"seats\"\naddress = \"http://127.0.0.1:1\"\n";
        assert!(Config::parse("t", &format!("{BASE}{seats}")).is_ok());
        assert!(
            error(&format!("{seats}{seats}")).contains("two participants or shards are called \"seats\"")
        );
        assert!(error(&format!("{seats}deadline_ms = 1")).contains("it can be 100 to 60000"));
        assert!(error(&seats.replace("seats", "Seats")).contains("a lower-case letter"));
        assert!(error("[traffic]\nconnections = 0").contains("traffic.connections is 0; it can be 1 to"));
        let certificates = "[tls]\ncertificate = \"a\"\nkey = \"b\"\nrequire_client_certificate = true";
        assert!(error(certificates).contains("needs tls.client_ca"));
    }

    #[test]
    fn files_stand_beside_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tccd.toml");
        let text = format!(
            "{BASE}[tls]\ncertificate = \"a.pem\"\nkey = \"/etc/b.pem\"\n[auth]\ncallers = \"callers.toml\"\n\
             [auth.jwt]\nissuer = \"i\"\naudience = \"a\"\nkeys = \"keys.json\"\n"
        );
        std::fs::write(&path, text).unwrap();

        let config = Config::load(&path).unwrap();

        let tls = config.tls.unwrap();
        assert_eq!((tls.certificate, tls.key), (folder.path().join("a.pem"), "/etc/b.pem".into()));
        assert_eq!(config.auth.callers.unwrap(), folder.path().join("callers.toml"));
        assert_eq!(config.auth.jwt.unwrap().keys, folder.path().join("keys.json").display().to_string());
    }

    #[test]
    fn passwords_are_in_no_message() {
        let secret = "canary-5c1b";
        let url = format!("host=a password={secret}");
        let whole = Config { coordinator: Database { url: url.clone() }, ..Config::default() };
        let shard = ShardConfig::new("s", &url);
        let misplaced = Config::parse("t", &format!("coordinator = \"{url}\"")).unwrap_err();
        let broken = Config::parse("t", &format!("[coordinator]\nurl = \"{url}")).unwrap_err();

        for text in [format!("{whole:?}"), format!("{shard:?}"), misplaced.to_string(), broken.to_string()] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
