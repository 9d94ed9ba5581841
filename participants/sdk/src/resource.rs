//! What a participant does, as its author writes it.
//!
//! A [`Resource`] reserves something, and then takes it or gives it back. Its three functions run inside of a local
//! transaction that the SDK has opened and will commit, after the fence was locked and written: so an operation that comes
//! twice, a Try that comes after its Cancel, and a Cancel of what was never tried do not reach them. What the types keep out:
//! Confirm and Cancel have no way to say no.

use futures::FutureExt as _;
use std::{any::Any, error::Error, fmt, future::Future, panic::AssertUnwindSafe};
use tcc_core::{Operation, Refusal, Timestamp, TransactionId};

use crate::{batch::Failure, session::sort, tx::Tx};

/// One participant's part of a transaction.
#[derive(Debug, Clone)]
pub struct Branch {
    /// The transaction's id: a good key for what is reserved.
    pub transaction: TransactionId,
    /// Which of the transaction's branches.
    pub index: u16,
    /// Whether its fence decides the transaction.
    pub is_pivot: bool,
    /// When the transaction is due.
    pub due_at: Timestamp,
    /// Who created the transaction, as the coordinator has recognised it; `None` for a hold.
    pub caller: Option<String>,
    /// Which of the things that this participant can do, as the transaction's creator named it; it may be empty.
    pub operation: String,
    /// What the transaction's creator sent for this participant.
    pub payload: Vec<u8>,
    pub(crate) descriptor: Vec<u8>,
}

impl Branch {
    /// The payload as text. What is no UTF-8 becomes `\u{fffd}`, which names nothing.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// The whole transaction as it was sent: an encoded [`tcc_proto::v1::TransactionDescriptor`], which tells what other
    /// participants are asked for. Whoever keeps fences of its own keeps these bytes in them, and answers OTHER_DESCRIPTOR
    /// to others.
    #[must_use]
    pub fn descriptor(&self) -> &[u8] {
        &self.descriptor
    }
}

/// What Try comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reservation {
    /// It is reserved: it can be taken, and it can be given back.
    Made,
    /// No, and for ever no. Whatever was changed is undone; the reason is kept in the fence.
    Refused(Refusal),
}

/// What can be reserved, and then taken or given back.
///
/// `?` on any error says "try again later": the local transaction is rolled back, the fence with it, and the operation comes
/// again. The only way to say no is [`Reservation::Refused`]. Nothing outside of the database may be done here, since it
/// would not be rolled back, and nothing slow: a local transaction in which nothing happens for 3 s is ended.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a resource that transactions can reserve",
    note = "implement `reserve`, `confirm` and `cancel` of `tcc_participant::Resource` for it"
)]
pub trait Resource: Send + Sync + 'static {
    /// Whether [`Resource::veto`] may say no. At most one participant of a transaction may, and it has the pivot.
    const MAY_VETO: bool = false;

    /// Try: checks and reserves.
    fn reserve(
        &self,
        tx: &Tx<'_>,
        branch: &Branch,
    ) -> impl Future<Output = Result<Reservation, Retry>> + Send;

    /// Confirm: takes what is reserved.
    fn confirm(&self, tx: &Tx<'_>, branch: &Branch) -> impl Future<Output = Result<(), Retry>> + Send;

    /// Cancel: gives back what is reserved.
    fn cancel(&self, tx: &Tx<'_>, branch: &Branch) -> impl Future<Output = Result<(), Retry>> + Send;

    /// Asked before `confirm`, only if [`Resource::MAY_VETO`], and only of the pivot: a reason why what was reserved cannot be
    /// taken any more. If there is one, `cancel` is called instead, and the whole transaction is cancelled.
    fn veto(
        &self,
        tx: &Tx<'_>,
        branch: &Branch,
    ) -> impl Future<Output = Result<Option<Refusal>, Retry>> + Send {
        let _ = (tx, branch);
        async { Ok(None) }
    }
}

/// One operation on one branch.
#[derive(Debug, Clone)]
pub struct Step {
    /// What is to be done.
    pub operation: Operation,
    /// With what.
    pub branch: Branch,
}

/// What one step of a batch comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is done.
    Done,
    /// Try only: no. Nothing was changed.
    Refused(Refusal),
    /// Confirm of the pivot only: no. What was reserved is given back.
    Vetoed(Refusal),
}

/// A resource that does many steps with few statements.
///
/// All steps of a batch share one local transaction, and no two of them are for the same branch. To be as fast as a ledger:
/// lock what the steps touch in one order, decide in memory, write everything at once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a resource that is reserved in batches",
    note = "implement `run` of `tcc_participant::BatchResource` for it, or the simpler `tcc_participant::Resource`"
)]
pub trait BatchResource: Send + Sync + 'static {
    /// Whether a step of the pivot may be [`Effect::Vetoed`].
    const MAY_VETO: bool = false;

    /// Does all steps. Answers one effect for each, in their order.
    ///
    /// An error rolls all of them back, and then each half is done anew, until the step at fault stands alone.
    fn run(&self, tx: &Tx<'_>, steps: &[&Step]) -> impl Future<Output = Result<Vec<Effect>, Retry>> + Send;
}

/// Why an operation is to be tried again: any error, by `?`.
pub struct Retry(Box<dyn Error + Send + Sync>);

impl<E: Error + Send + Sync + 'static> From<E> for Retry {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl Retry {
    /// For what is no error of anybody else, in words for people.
    #[must_use]
    pub fn because(why: &str) -> Self {
        Self(why.into())
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Retry {
    /// What it means for the local transaction in which it happened.
    pub(crate) fn failure(&self) -> Failure {
        match self.0.downcast_ref::<tokio_postgres::Error>() {
            Some(error) => sort(error),
            None => Failure::Rejected(self.0.to_string()),
        }
    }
}

/// A [`Resource`] as one that takes batches: one step after the other.
pub(crate) struct EachAlone<R>(pub R);

impl<R: Resource> BatchResource for EachAlone<R> {
    const MAY_VETO: bool = R::MAY_VETO;

    async fn run(&self, tx: &Tx<'_>, steps: &[&Step]) -> Result<Vec<Effect>, Retry> {
        let mut effects = Vec::with_capacity(steps.len());
        for step in steps {
            effects.push(self.step(tx, step).await?);
        }
        Ok(effects)
    }
}

impl<R: Resource> EachAlone<R> {
    async fn step(&self, tx: &Tx<'_>, step: &Step) -> Result<Effect, Retry> {
        let branch = &step.branch;
        match step.operation {
            Operation::Try => {
                // A resource may have changed something before it knew that it must refuse.
                tx.save().await?;
                match self.0.reserve(tx, branch).await? {
                    Reservation::Made => Ok(Effect::Done),
                    Reservation::Refused(refusal) => {
                        tx.restore().await?;
                        Ok(Effect::Refused(refusal))
                    }
                }
            }
            Operation::Confirm if R::MAY_VETO && branch.is_pivot => {
                tx.save().await?;
                match self.0.veto(tx, branch).await? {
                    None => self.0.confirm(tx, branch).await.map(|()| Effect::Done),
                    Some(refusal) => {
                        tx.restore().await?;
                        self.0.cancel(tx, branch).await.map(|()| Effect::Vetoed(refusal))
                    }
                }
            }
            Operation::Confirm => self.0.confirm(tx, branch).await.map(|()| Effect::Done),
            Operation::Cancel => self.0.cancel(tx, branch).await.map(|()| Effect::Done),
        }
    }
}

/// Runs a resource's own code, which may panic, and checks that it says nothing that it may not say.
pub(crate) async fn run_guarded<B: BatchResource>(
    resource: &B,
    tx: &Tx<'_>,
    steps: &[&Step],
) -> Result<Vec<Effect>, Failure> {
    let effects = match AssertUnwindSafe(resource.run(tx, steps)).catch_unwind().await {
        Ok(effects) => effects.map_err(|retry| retry.failure())?,
        Err(panic) => {
            return Err(Failure::Rejected(format!("the resource panicked: {}", words_of(&*panic))));
        }
    };
    if effects.len() != steps.len() {
        let (found, expected) = (effects.len(), steps.len());
        return Err(Failure::Rejected(format!("the resource answered {found} of {expected} steps")));
    }
    let may_not = |(step, effect): &(&&Step, &Effect)| match effect {
        Effect::Done => false,
        Effect::Refused(_) => step.operation != Operation::Try,
        Effect::Vetoed(_) => step.operation != Operation::Confirm || !step.branch.is_pivot || !B::MAY_VETO,
    };
    match steps.iter().zip(&effects).find(may_not) {
        None => Ok(effects),
        Some((step, effect)) => Err(Failure::Rejected(format!(
            "the resource answered {effect:?} to {:?}; only Try may be refused, and only a pivot that declares it may veto",
            step.operation
        ))),
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
