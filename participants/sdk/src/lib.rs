//! What a tcc participant is made of.
//!
//! A participant tries, confirms and cancels branches of transactions; [`Participant`] is that as a trait. The rest is what
//! the coordinator and the participants in this repository share to do it fast and without doubt: [`batch`] turns many
//! callers into few commits, [`session`] owns one PostgreSQL connection and tells a commit from a guess, [`retry`] computes
//! delays, and [`crash`] lets tests kill a process at any of its statements.
//!
//! This crate compiles without the coordinator and holds no SQL of either side's tables.

pub mod batch;
pub mod crash;
pub mod participant;
pub mod partitions;
pub mod retry;
pub mod session;

pub use batch::{Batcher, Executor, Failure};
pub use participant::{Call, Participant};
pub use session::Session;
