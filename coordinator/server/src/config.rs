//! `tccd.toml`: what an installation chooses. Every key is documented in `coordinator/docs/tccd.toml`, which a test parses.

use serde::{Deserialize, Serialize};
use std::path::Path;
use tcc_core::Amount;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API listens, for gRPC and for HTTP with JSON: address and port. Port 0 takes a free one.
    pub listen: String,
    /// The coordinator's database.
    pub coordinator: Database,
    /// The ledger shards. Which accounts live where is fixed by their names when a coordinator first starts.
    #[serde(rename = "shard")]
    pub shards: Vec<ShardConfig>,
    /// What requests may ask for.
    pub limits: Limits,
}

/// A database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `key=value` pairs or a `postgresql://` URL.
    pub url: String,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShardConfig {
    /// Its name, for ever.
    pub name: String,
    /// As [`Database::url`].
    pub url: String,
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

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7070".into(),
            coordinator: Database::default(),
            shards: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_amount: Amount::MAX, max_maturity_days: 365 }
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
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Self::parse(&name, &text)
    }

    /// Reads a text; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn parse(path: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text[..start.min(text.len())].matches('\n').count();
            ConfigError::Syntax { path: path.to_owned(), line, what: with_nearest(error.message()) }
        })?;
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
        if !(1..=Amount::MAX).contains(&max_amount) {
            return value(format!("limits.max_amount is {max_amount}; it can be 1 to {}", Amount::MAX));
        }
        if !(1..=3650).contains(&max_maturity_days) {
            return value(format!("limits.max_maturity_days is {max_maturity_days}; it can be 1 to 3650"));
        }
        Ok(config)
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

    #[test]
    fn the_documented_example_is_valid() {
        let text = include_str!("../../docs/tccd.toml");

        let config = Config::parse("tccd.toml", text).unwrap();

        assert_eq!(config.shards.len(), 2);
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_the_nearest_valid_one() {
        let text = "listen = \"127.0.0.1:1\"\n[coordinator]\nulr = \"host=db\"\n";

        let error = Config::parse("tccd.toml", text).unwrap_err().to_string();

        assert_eq!(error, "tccd.toml, line 3: unknown key `ulr`; did you mean `url`?");
    }

    #[test]
    fn values_out_of_range_are_told_with_the_range() {
        let base = "[coordinator]\nurl = \"host=a\"\n[[shard]]\nname = \"s\"\nurl = \"host=b\"\n";
        let error = |extra: &str| Config::parse("t", &format!("{base}{extra}")).unwrap_err().to_string();

        assert!(error("[limits]\nmax_amount = 0").contains("1 to 1000000000000000"));
        assert!(error("[limits]\nmax_maturity_days = 4000").contains("1 to 3650"));
        assert!(error("[[shard]]\nname = \"s\"\nurl = \"x\"").contains("two shards"));
    }
}
