//! A participant without a database: right, or wrong in a way that others have been.
//!
//! There are two units of whatever a payload names. A payload that begins with `vetoed` can be reserved and not taken.

use futures::future::BoxFuture;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tcc_core::{Admission, FenceState, Operation, Outcome, Refusal, TransactionId, fence::admit};
use tcc_participant::{
    Step,
    conformance::Mistake,
    serve::{Running, ServeError, Served, start},
    wire::Description,
};

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// A Cancel of what was never tried leaves no fence.
    NoTombstone,
    /// A Try that comes late is answered with DONE.
    LateTrySucceeds,
    /// The fence is read in one local transaction, and written with the effect in the next one.
    FenceOutside,
    /// A Confirm that comes again takes again.
    ConfirmTakesTwice,
    /// The body of a transaction is not looked at.
    OtherBodyAccepted,
    /// A Cancel goes by the transaction's id, whichever branch it is for.
    CancelsAllBranches,
}

impl Flaw {
    /// The five that the kit must find, and how it must name them.
    pub const NAMED: [(Self, Mistake); 5] = [
        (Self::NoTombstone, Mistake::NoTombstone),
        (Self::LateTrySucceeds, Mistake::LateTry),
        (Self::FenceOutside, Mistake::FenceOutside),
        (Self::ConfirmTakesTwice, Mistake::EffectRepeated),
        (Self::OtherBodyAccepted, Mistake::OtherBody),
    ];
}

/// How many units there are of everything.
const UNITS: i64 = 2;
/// As long as a database takes between two local transactions.
const BETWEEN: Duration = Duration::from_millis(1);
const SOLD_OUT: Refusal = Refusal::own("SOLD_OUT");
const NOT_NOW: Refusal = Refusal::own("NOT_NOW");

/// The participant.
pub struct Memory {
    flaw: Option<Flaw>,
    books: Mutex<Books>,
    /// Held from the look at a fence to what comes of it.
    order: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Books {
    fences: HashMap<(TransactionId, u16), Fence>,
    /// How many units are reserved or taken.
    used: HashMap<Vec<u8>, i64>,
}

struct Fence {
    state: FenceState,
    descriptor: Vec<u8>,
}

impl Memory {
    /// A participant with this flaw, or none.
    #[must_use]
    pub fn new(flaw: Option<Flaw>) -> Arc<Self> {
        Arc::new(Self { flaw, books: Mutex::default(), order: tokio::sync::Mutex::default() })
    }

    /// Serves it on any free port.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn serve(self: &Arc<Self>) -> Result<Running, ServeError> {
        start(Arc::clone(self) as Arc<dyn Served>, "127.0.0.1:0", None).await
    }

    /// Loses every fence, as a restart without a database would.
    pub fn forget(&self) {
        self.books.lock().unwrap().fences.clear();
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// What the fence says, whatever it may be when that is acted upon.
    fn look(&self, step: &Step) -> Result<Admission, Outcome> {
        let books = self.books.lock().unwrap();
        let fence = books.fences.get(&(step.branch.transaction, step.branch.index));
        let is_other = fence.is_some_and(|fence| fence.descriptor != step.branch.descriptor());
        if is_other && !self.has(Flaw::OtherBodyAccepted) {
            return Err(Outcome::OtherDescriptor);
        }
        Ok(admit(fence.map(|fence| fence.state), step.operation))
    }

    fn act(&self, step: &Step, admission: Admission) -> Outcome {
        let mut books = self.books.lock().unwrap();
        let (state, outcome) = match admission {
            Admission::Answer(Outcome::AlreadyCancelled)
                if step.operation == Operation::Try && self.has(Flaw::LateTrySucceeds) =>
            {
                return Outcome::Done;
            }
            Admission::Answer(Outcome::Done)
                if step.operation == Operation::Confirm && self.has(Flaw::ConfirmTakesTwice) =>
            {
                *books.used_of(step) += 1;
                return Outcome::Done;
            }
            Admission::Answer(outcome) => return outcome,
            Admission::Stop if self.has(Flaw::NoTombstone) => return Outcome::Done,
            Admission::Stop => (FenceState::Stopped, Outcome::Done),
            Admission::Run => books.run(step),
        };
        let mut write = |index| {
            let fence = Fence { state, descriptor: step.branch.descriptor().to_vec() };
            books.fences.insert((step.branch.transaction, index), fence);
        };
        write(step.branch.index);
        if self.has(Flaw::CancelsAllBranches) && step.operation == Operation::Cancel {
            (0..2).for_each(write);
        }
        outcome
    }
}

impl Books {
    fn used_of(&mut self, step: &Step) -> &mut i64 {
        self.used.entry(step.branch.payload.clone()).or_default()
    }

    fn run(&mut self, step: &Step) -> (FenceState, Outcome) {
        let used = self.used_of(step);
        match step.operation {
            Operation::Try if *used >= UNITS => (FenceState::Refused(SOLD_OUT), Outcome::Refused(SOLD_OUT)),
            Operation::Try => {
                *used += 1;
                (FenceState::Tried, Outcome::Done)
            }
            Operation::Confirm if step.branch.is_pivot && step.branch.payload.starts_with(b"vetoed") => {
                *used -= 1;
                (FenceState::Vetoed(NOT_NOW), Outcome::Vetoed(NOT_NOW))
            }
            Operation::Confirm => (FenceState::Confirmed, Outcome::Done),
            Operation::Cancel => {
                *used -= 1;
                (FenceState::Cancelled, Outcome::Done)
            }
        }
    }
}

impl Served for Memory {
    fn describe(&self) -> Description {
        Description::of("memory", true)
    }

    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if self.has(Flaw::FenceOutside) {
                let looked = self.look(&step);
                tokio::time::sleep(BETWEEN).await;
                return looked.map_or_else(|outcome| outcome, |admission| self.act(&step, admission));
            }
            let one_at_a_time = self.order.lock().await;
            let looked = self.look(&step);
            let outcome = looked.map_or_else(|outcome| outcome, |admission| self.act(&step, admission));
            drop(one_at_a_time);
            outcome
        })
    }
}
