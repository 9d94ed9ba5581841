//! What is wrong with a single transaction, where its money is, and what may be done about it.
//!
//! [`picture`] asks everybody who knows: the coordinator's row, each participant's fence, the postings, the record of what
//! operators did. [`diagnosis`] says in a sentence what that means, and [`force`] whether a cancel would create or lose
//! units: both are pure functions of the picture. [`plan`] does something to many transactions in two steps, so that a
//! person has seen what will happen before it does. Whatever is done goes through [`Engine::act`](crate::engine::Engine::act).

pub mod diagnosis;
pub mod force;
pub mod picture;
pub mod plan;

use crate::{engine::Engine, shards::Shards};
use std::sync::Arc;

/// Where everything is that an operator asks about. Clones share it.
#[derive(Clone)]
pub struct Recovery {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The shards.
    pub shards: Arc<Shards>,
}
