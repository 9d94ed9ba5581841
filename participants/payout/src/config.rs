//! What `tcc-payout` is told. `coordinator/docs/payouts.md` says what each key means.

use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tcc_participant::{ServeError, Tls};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the participant is called in transactions.
    #[serde(default = "participant")]
    pub participant: String,
    /// Where it listens.
    #[serde(default = "listen")]
    pub listen: String,
    /// Its side of TLS, without which it listens on this machine alone.
    pub tls: Option<TlsFiles>,
    /// Where metrics and health are served over HTTP; without it nowhere.
    pub telemetry: Option<String>,
    /// Its database, as a url or key=value pairs. One with a password stands in a file of its own: `database_file`.
    #[serde(default)]
    pub database: String,
    /// A file with `database`.
    pub database_file: Option<PathBuf>,
    /// The ledger account to which a transaction must credit exactly what is paid out. Without it the participant pays whatever
    /// its payload says: for tests.
    pub account: Option<String>,
    /// Which currencies are paid out, and how.
    pub currencies: BTreeMap<String, CurrencyRules>,
    /// By whom.
    pub provider: ProviderConfig,
}

/// A server's side of TLS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Its certificate, and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authorities of those that may call, PEM: the coordinators' and the operators'.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// [`ServeError::File`].
    pub fn read(&self) -> Result<Tls, ServeError> {
        Tls::read(&self.certificate, &self.key, self.client_ca.as_deref())
    }
}

/// One currency.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurrencyRules {
    /// How many of the digits of an amount stand behind the point in `{amount:decimal}`.
    #[serde(default)]
    pub decimals: u32,
    /// The least payout.
    #[serde(default = "one")]
    pub least: i64,
    /// The greatest payout.
    #[serde(default = "anything")]
    pub most: i64,
}

/// A provider, and how it is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// For how long the provider knows a key again. After that it is looked up first, or not asked at all.
    pub key_memory_s: u64,
    /// For how long a request without an answer may still arrive. Until then a refusal proves nothing.
    #[serde(default = "late_s")]
    pub late_s: u64,
    /// How long one request may take.
    #[serde(default = "deadline_ms")]
    pub deadline_ms: u64,
    /// How many requests a second it takes.
    #[serde(default = "calls_per_second")]
    pub calls_per_second: u32,
    /// How many requests at a time.
    #[serde(default = "at_a_time")]
    pub at_a_time: usize,
    /// The authorities of its certificate, if they are not the system's.
    pub ca: Option<PathBuf>,
    /// Files with secrets, by the names under which templates ask for them.
    #[serde(default)]
    pub secrets: BTreeMap<String, PathBuf>,
    /// How it is asked for a payout.
    pub send: CallConfig,
    /// How it is asked what became of one, if it can be.
    pub look_up: Option<CallConfig>,
}

/// One kind of request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallConfig {
    /// Such as POST.
    pub method: String,
    /// With places.
    pub url: String,
    /// Values have places.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Whether the body is a form, and not JSON.
    #[serde(default)]
    pub form: bool,
    /// Its strings have places.
    pub body: Option<Value>,
    /// What answers mean. The first that fits counts; what fits none is unknown.
    pub answers: Vec<AnswerConfig>,
}

/// What an answer means.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerConfig {
    /// These statuses.
    pub status: Vec<u16>,
    /// And in the JSON at this pointer (RFC 6901)
    pub at: Option<String>,
    /// one of these values.
    #[serde(default)]
    pub is: Vec<Value>,
    /// It means that.
    pub means: Meaning,
    /// Of `paid`: where the provider's reference is.
    pub reference: Option<String>,
    /// Of `never`: where the reason is.
    pub reason: Option<String>,
}

/// What an answer can mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// It is paid.
    Paid,
    /// The provider knows of it and has not paid it yet.
    Pending,
    /// It is not paid, and never will be.
    Never,
    /// Of a look-up: the provider knows nothing of it.
    NotThere,
    /// It may be paid or not.
    Unknown,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what a configuration looks like.
    #[error("{path}: {source}")]
    Shape {
        /// Which.
        path: String,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A value is wrong.
    #[error("{key}: {what}")]
    Value {
        /// Which.
        key: String,
        /// Why.
        what: String,
    },
}

impl ConfigError {
    /// A value is wrong.
    pub(crate) fn value(key: &str, what: impl ToString) -> Self {
        Self::Value { key: key.to_owned(), what: what.to_string() }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let shape =
            |source| ConfigError::Shape { path: path.display().to_string(), source: Box::new(source) };
        let mut config: Self = toml::from_str(&text).map_err(shape)?;
        if let Some(file) = &config.database_file {
            config.database = read(file)?.trim().to_owned();
        }
        config.check()?;
        Ok(config)
    }

    /// Checks what one value cannot say alone.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let provider = &self.provider;
        if self.database.is_empty() {
            return Err(ConfigError::value("database", "there must be one, or database_file"));
        }
        if self.currencies.is_empty() {
            return Err(ConfigError::value("currencies", "there must be one"));
        }
        let deadline_s = provider.deadline_ms.div_ceil(1_000);
        if provider.late_s < deadline_s {
            let what = format!("at least deadline_ms, which is {deadline_s} s: a request may take as long");
            return Err(ConfigError::value("provider.late_s", what));
        }
        if provider.key_memory_s <= 2 * provider.late_s {
            let what = "more than twice late_s; a provider that forgets sooner cannot be asked twice";
            return Err(ConfigError::value("provider.key_memory_s", what));
        }
        for (key, is_zero) in [
            ("provider.deadline_ms", provider.deadline_ms == 0),
            ("provider.calls_per_second", provider.calls_per_second == 0),
            ("provider.at_a_time", provider.at_a_time == 0),
        ] {
            if is_zero {
                return Err(ConfigError::value(key, "1 or more"));
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })
}

fn participant() -> String {
    "payout".into()
}

fn listen() -> String {
    "127.0.0.1:7081".into()
}

fn one() -> i64 {
    1
}

fn anything() -> i64 {
    i64::MAX
}

fn late_s() -> u64 {
    60
}

fn deadline_ms() -> u64 {
    10_000
}

fn calls_per_second() -> u32 {
    50
}

fn at_a_time() -> usize {
    8
}
