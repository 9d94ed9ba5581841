//! Where logs go and how they look: lines for people, or objects for machines, on standard error.
//!
//! Whatever is said about one transaction names it in the field `id`.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Logs {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl Logs {
    /// Logs like this from now on. `TCC_LOG` filters.
    pub fn start(self) {
        let filter =
            EnvFilter::try_from_env("TCC_LOG").unwrap_or_else(|_| EnvFilter::new("info,refinery_core=warn"));
        let lines =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
        match self {
            Self::Text => lines.init(),
            Self::Json => lines.json().flatten_event(true).init(),
        }
    }
}
