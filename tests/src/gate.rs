//! Stops single transactions at single steps, as a kill at that moment would find them.
//!
//! A gate stands at the two seams: between the engine and its participants, and between the engine and its store. A
//! transaction that is to be stopped before a step never does it; one that is to be stopped after a step has done it, and
//! nobody hears of it. In both cases the life that waits for the answer hangs until the process is killed.

use futures::future::BoxFuture;
use std::{
    collections::{HashMap, HashSet},
    future::pending,
    sync::{Arc, Mutex},
};
use tcc_coordinator::{
    serve::Between,
    store::{Advance, Begin, Store},
};
use tcc_core::{Event, Operation, Outcome, TransactionId};
use tcc_participant::{Batcher, Call, Executor, Failure, Participant, batch::Limits};

/// A step of a transaction's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The first row.
    Begin,
    /// A move of the phase.
    Advance(Event),
    /// A wake-up that claims what is due.
    Wake,
    /// An operation at the participant of a branch.
    Ask(Operation, u16),
}

/// Before the step, or after it and before its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    /// It is not done.
    Before,
    /// It is done.
    After,
}

/// Which transactions stop where.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    stops: Arc<Mutex<HashMap<TransactionId, (Step, When)>>>,
    stopped: Arc<Mutex<HashSet<TransactionId>>>,
}

impl Gate {
    /// Stops a transaction there.
    pub fn stop(&self, id: TransactionId, step: Step, when: When) {
        self.stops.lock().unwrap().insert(id, (step, when));
    }

    /// How many are stopped.
    #[must_use]
    pub fn stopped(&self) -> HashSet<TransactionId> {
        self.stopped.lock().unwrap().clone()
    }

    /// Passes, or never returns.
    async fn pass(&self, id: TransactionId, step: Step, when: When) {
        let stops = self.stops.lock().unwrap().get(&id) == Some(&(step, when));
        if stops {
            self.stopped.lock().unwrap().insert(id);
            pending::<()>().await;
        }
    }

    /// Stands between the engine and its participants.
    #[must_use]
    pub fn between(&self) -> Between {
        let gate = self.clone();
        Box::new(move |participant| Arc::new(Gated { participant, gate: gate.clone() }))
    }

    /// Stands between the engine and its store.
    #[must_use]
    pub fn store(&self, mut store: Store) -> Store {
        store.begin = self.before_batches(store.begin, |item: &Begin| (item.transaction.id, Step::Begin));
        store.advance =
            self.before_batches(store.advance, |item: &Advance| (item.id, Step::Advance(item.event)));
        store.wake = self.before_batches(store.wake, |id: &TransactionId| (*id, Step::Wake));
        store
    }

    /// A batcher of many executors with one item each, so that one that hangs hinders no other.
    fn before_batches<I, A>(
        &self,
        inner: Batcher<I, A>,
        step: fn(&I) -> (TransactionId, Step),
    ) -> Batcher<I, A>
    where
        I: Clone + Send + Sync + 'static,
        A: Send + 'static,
    {
        let executors =
            (0..128).map(|_| Passing { inner: inner.clone(), step, gate: self.clone() }).collect();
        Batcher::start("gate", executors, Limits { batch: 1, ..Limits::default() })
    }
}

struct Passing<I, A> {
    inner: Batcher<I, A>,
    step: fn(&I) -> (TransactionId, Step),
    gate: Gate,
}

impl<I: Clone + Send + Sync + 'static, A: Send + 'static> Executor for Passing<I, A> {
    type Item = I;
    type Answer = A;

    async fn connect(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn run(&mut self, items: &[I]) -> Result<Vec<A>, Failure> {
        let mut answers = Vec::new();
        for item in items {
            let (id, step) = (self.step)(item);
            self.gate.pass(id, step, When::Before).await;
            let answer =
                self.inner.call(item.clone()).await.map_err(|e| Failure::Disconnected(e.to_string()))?;
            self.gate.pass(id, step, When::After).await;
            answers.push(answer);
        }
        Ok(answers)
    }
}

struct Gated {
    participant: Arc<dyn Participant>,
    gate: Gate,
}

impl Participant for Gated {
    fn name(&self) -> &str {
        self.participant.name()
    }

    fn is_reachable(&self) -> bool {
        self.participant.is_reachable()
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let (id, operation, branches) = (call.transaction.id, call.operation, call.branches.clone());
            for branch in &branches {
                self.gate.pass(id, Step::Ask(operation, *branch), When::Before).await;
            }
            let outcomes = self.participant.call(call).await;
            for branch in &branches {
                self.gate.pass(id, Step::Ask(operation, *branch), When::After).await;
            }
            outcomes
        })
    }
}
