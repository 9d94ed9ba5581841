//! The one face that every participant shows the engine, in-process or remote.

use crate::breaker::BreakerState;
use futures::future::BoxFuture;
use std::sync::Arc;
use tcc_core::{Operation, Outcome, Transaction};

/// One operation on some branches of one transaction that live at the same participant.
#[derive(Debug, Clone)]
pub struct Call {
    /// What to do.
    pub operation: Operation,
    /// The whole transaction; the participant's fence keeps its descriptor.
    pub transaction: Arc<Transaction>,
    /// The branches, the pivot first if it is among them. All are done in one local transaction, each only if the one
    /// before it permits ([`tcc_core::decision::permits_next`]).
    pub branches: Vec<u16>,
}

/// Whoever can try, confirm and cancel branches.
///
/// An answer other than [`Outcome::Unknown`] is given only by a local transaction that locked the fence and committed, so
/// the same operation may be repeated any number of times, late or out of order.
pub trait Participant: Send + Sync + 'static {
    /// Its name in configuration, tables and messages.
    fn name(&self) -> &str;

    /// Whether a call has a chance at this moment. `false` lets a creation be refused before it has any effect.
    fn is_reachable(&self) -> bool;

    /// Why it is not reachable, for people, if that is known.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// How its breaker stands; open if it is not reachable.
    fn breaker(&self) -> BreakerState {
        if self.is_reachable() { BreakerState::Closed } else { BreakerState::Open }
    }

    /// Does the operation. Answers as many outcomes as branches were asked, in their order: fewer than `call.branches` when
    /// one did not permit the next. No answer is [`Outcome::Unknown`], never an error.
    fn call(&self, call: Call) -> BoxFuture<'_, Vec<Outcome>>;
}
