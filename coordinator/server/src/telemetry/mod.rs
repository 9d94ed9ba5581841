//! What an instance says of itself to whoever watches it: metrics, health, logs, traces.
//!
//! [`Metrics`] counts what happens on the way of a transaction, with atomics only: every series is resolved when the
//! instance starts, and no label is ever an id. [`Calls`] times the API's methods. [`Gauges`] are read when somebody asks,
//! and cost nothing otherwise. [`traces`] go to a collector, if there is one. [`http`] serves the other three as OpenMetrics, beside
//! what a process manager asks for. Every instance has registries of its own, so that several of them can live in one process, as
//! tests have them. Histograms and the times of methods are the SDK's, whose servers tell the same.
//!
//! Nothing here decides anything, and nothing waits for it.

pub mod gauges;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod traces;

pub use gauges::Gauges;
pub use metrics::Metrics;
pub use tcc_participant::telemetry::{Calls, Histogram, histogram};
pub use traces::Traces;
