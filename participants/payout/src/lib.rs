//! Participants in front of somebody else's HTTP API.
//!
//! **Payouts** ([`serve`]): the pivot of a transaction whose money leaves through a payment provider. Try checks and
//! reserves. Confirm puts the payout in line; the [`worker`] commits the fence as `confirming`, only then asks the
//! [`provider`], always with the same key, and commits what became of it. What it does not know it finds out by itself, from
//! its own table, whatever the coordinator has forgotten. What the coordinator asks meanwhile is answered with UNKNOWN.
//!
//! **Risk checks** ([`risk`]): a branch whose Try scores, and refuses above a threshold.
//!
//! What a provider's API is like is a configuration ([`generic`]), or, where that is not enough, an implementation of
//! [`provider::Provider`]. This crate keeps out the ledger, and everything about transactions but its own branches.

pub mod book;
pub mod breaker;
pub mod config;
pub mod generic;
pub mod http;
pub mod provider;
pub mod resource;
pub mod risk;
pub mod serve;
mod service;
pub mod template;
pub mod worker;

/// Logs to standard error from now on. `TCC_LOG` filters.
pub fn logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TCC_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,refinery_core=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
