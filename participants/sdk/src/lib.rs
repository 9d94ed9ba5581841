//! What a tcc participant is made of.
//!
//! A participant tries, confirms and cancels branches of transactions; [`Participant`] is that as a trait. The rest is what
//! the coordinator and the participants in this repository share to do it fast and without doubt: [`batch`] turns many
//! callers into few commits, [`postgres`] says how a server is reached, [`session`] owns one connection to it and tells a commit
//! from a guess, [`retry`] computes delays.
//!
//! This crate compiles without the coordinator and holds no SQL of either side's tables.

pub mod batch;
pub mod participant;
pub mod partitions;
pub mod postgres;
pub mod retry;
pub mod roles;
pub mod session;

pub use batch::{Batcher, Executor, Failure};
pub use participant::{Call, Participant};
pub use postgres::Postgres;
pub use session::Session;
