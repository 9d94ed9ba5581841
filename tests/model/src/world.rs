//! One state of everything, and the two things that change it: an event at the row, an operation at a fence.
//!
//! The row changes only by compare-and-set along `Phase::after`, a fence only as `fence::admit` says, as in the product.
//! What a coordinator or the network does with that is not known here.

use std::cmp::Reverse;
use std::fmt;
use tcc_core::decision::{self, Tried, Verdict};
use tcc_core::{
    Admission, Event, FenceState, OnMaturity, Operation, Outcome, Phase, Refusal, descriptor, fence,
};

/// The index of the branch that freezes the payer's unit, then takes it.
pub const DEBIT: usize = descriptor::DEBIT as usize;
/// The index of the branch that gives the payee a unit, and decides.
pub const PIVOT: usize = descriptor::CREDIT as usize;

/// One state of everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// What the hold does when it is due.
    pub on_maturity: OnMaturity,
    /// Whether the payee is paid by somebody else's API, which the pivot asks for it, and if so, what has become of that.
    pub outside: Option<Effect>,
    /// Whether it is due.
    pub due: bool,
    /// The coordinators' row, unless it was lost.
    pub row: Option<Row>,
    /// Every version that the row ever had, by phase and flip.
    pub versions: [[bool; 2]; 6],
    /// What the coordinators' database has lost.
    pub loss: Loss,
    /// The fences as the orphan sweep has read them since it found that there is no row, one branch after the other.
    pub swept: [Option<Option<FenceState>>; 2],
    /// What each coordinator has in memory.
    pub coordinators: [Option<Attempt>; 2],
    /// Every operation ever sent, by operation and branch.
    pub sent: [[bool; 2]; 3],
    /// Each branch's fence.
    pub fences: [Option<FenceState>; 2],
    /// Where the one unit is.
    pub books: Books,
    /// Whether the client that created the hold may have been told that it is HELD, before anything was decided.
    pub told_held: bool,
    /// Whether a client's CancelHold was ever admitted, or an operator's.
    pub cancel_admitted: bool,
    /// Whether a client's ConfirmHold was ever accepted.
    pub confirm_accepted: bool,
    /// Whether the pivot ever answered DONE to Cancel. From then on a client may have been told CANCELLED.
    pub cancel_accepted: bool,
    /// Whether a coordinator ever got an answer that the protocol forbids, or was to turn round a second time.
    pub parked: bool,
}

/// An effect outside of all databases. Who asks for it again, with the same key, gets it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It has not taken place. If it was asked for, it may at any time.
    NotYet,
    /// It has taken place.
    Done,
    /// It has been refused, for good.
    Never,
}

/// A version of the coordinators' row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row {
    /// Where the transaction stands.
    pub phase: Phase,
    /// Whether the pivot has turned the decision round.
    pub flipped: bool,
}

/// What the coordinators' database has lost, and who brought it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// The last versions of the row.
    LastCommits,
    /// The row.
    Row,
    /// The row; the orphan sweep has rebuilt it.
    RowThenSwept,
    /// The row; the client has created the hold again.
    RowThenCreated,
}

/// What a coordinator has in memory of a transaction that it works on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// What it asks of the branches.
    pub operation: Operation,
    /// What they have answered.
    pub answers: [Option<Outcome>; 2],
}

/// What a coordinator makes of the answers that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    /// Nothing yet.
    Wait,
    /// This has happened.
    Write(Event),
    /// Something has happened that cannot.
    Park,
}

/// The balances that the one unit moves over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Books {
    /// What the payer can spend.
    pub payer_available: i8,
    /// What is frozen of the payer's.
    pub payer_escrow: i8,
    /// What the payee can spend.
    pub payee_available: i8,
    /// What the payer's shard owes the payee's: below zero while the payee is paid and the payer's unit still frozen.
    pub clearing: i8,
}

/// Where an operation arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// At one branch.
    Branch(usize),
    /// At the one shard of both branches. In one local transaction it asks the pivot, and if its answer permits the other.
    Both,
}

impl World {
    /// A hold whose CreateHold has just been accepted.
    #[must_use]
    pub fn created(on_maturity: OnMaturity, outside: Option<Effect>) -> Self {
        let mut world = Self {
            on_maturity,
            outside,
            due: false,
            row: None,
            versions: [[false; 2]; 6],
            loss: Loss::Nothing,
            swept: [None, None],
            coordinators: [None, None],
            sent: [[false; 2]; 3],
            fences: [None, None],
            books: Books { payer_available: 1, payer_escrow: 0, payee_available: 0, clearing: 0 },
            told_held: false,
            cancel_admitted: false,
            confirm_accepted: false,
            cancel_accepted: false,
            parked: false,
        };
        world.write(Phase::Trying, false);
        world
    }

    /// Compare-and-set: whether the event had a meaning in the row's phase, which then has changed.
    pub fn apply(&mut self, event: Event) -> bool {
        let Some(row) = self.row else { return false };
        let Some(phase) = row.phase.after(event) else { return false };
        if event.is_flip() && row.flipped {
            self.parked = true;
            return false;
        }
        self.write(phase, row.flipped || event.is_flip());
        true
    }

    /// Makes a version of the row the current one.
    pub fn write(&mut self, phase: Phase, flipped: bool) {
        self.versions[phase as usize][usize::from(flipped)] = true;
        self.row = Some(Row { phase, flipped });
    }

    /// The coordinators' database has gone back. What was about to be written by what it had said before is void: that the
    /// branches are tried, and a row to be rebuilt. For everything else the pivot decides.
    pub fn lose(&mut self, loss: Loss) {
        self.loss = loss;
        self.swept = [None, None];
        for coordinator in &mut self.coordinators {
            coordinator.take_if(|attempt| attempt.operation == Operation::Try);
        }
    }

    /// Every version that the row ever had.
    pub fn versions(&self) -> impl Iterator<Item = Row> {
        let all =
            Phase::ALL.into_iter().flat_map(|phase| [false, true].map(|flipped| Row { phase, flipped }));
        all.filter(|row| self.versions[row.phase as usize][usize::from(row.flipped)])
    }

    /// Every operation ever sent, and the branch that it was sent to.
    pub fn sent(&self) -> impl Iterator<Item = (Operation, usize)> {
        let operations = [Operation::Try, Operation::Confirm, Operation::Cancel].into_iter();
        let all = operations.flat_map(|operation| [DEBIT, PIVOT].map(|branch| (operation, branch)));
        all.filter(|(operation, branch)| self.sent[*operation as usize][*branch])
    }

    /// Whether an operation can arrive there. The one shard of both branches gets both with the pivot's.
    #[must_use]
    pub fn was_sent(&self, operation: Operation, at: At) -> bool {
        let branch = match at {
            At::Branch(branch) => branch,
            At::Both => PIVOT,
        };
        self.sent[operation as usize][branch]
    }

    /// An operation takes effect. `no` is the branch that says no, if it is asked and may. Returns the answers of the
    /// branches that were asked.
    pub fn arrive(&mut self, operation: Operation, at: At, no: Option<usize>) -> Vec<(usize, Outcome)> {
        match at {
            At::Branch(branch) => vec![(branch, self.ask(operation, branch, no))],
            At::Both => {
                let pivot = self.ask(operation, PIVOT, no);
                let permits = decision::permits_next(operation, &pivot);
                let debit = permits.then(|| (DEBIT, self.ask(operation, DEBIT, no)));
                [(PIVOT, pivot)].into_iter().chain(debit).collect()
            }
        }
    }

    /// Whether a branch may say no: to the Try that runs, and the pivot to the Confirm that runs. Who asks somebody else says no
    /// when that one does.
    #[must_use]
    pub fn may_say_no(&self, operation: Operation, branch: usize) -> bool {
        let kind = operation == Operation::Try || (operation == Operation::Confirm && branch == PIVOT);
        let is_outside = operation == Operation::Confirm && self.outside.is_some();
        let may = !is_outside
            || (self.outside == Some(Effect::NotYet) && self.fences[PIVOT] == Some(FenceState::Confirming));
        kind && may && fence::admit(self.fences[branch], operation) == Admission::Run
    }

    /// What was asked for outside takes place, and nobody hears of it.
    pub fn take_effect(&mut self) {
        if self.outside == Some(Effect::NotYet) && self.fences[PIVOT] == Some(FenceState::Confirming) {
            self.outside = Some(Effect::Done);
            self.books.pay();
        }
    }

    /// The pivot asks again by itself, whatever the coordinators want of it meanwhile.
    pub fn learn(&mut self, is_no: bool) {
        if self.fences[PIVOT] == Some(FenceState::Confirming) {
            let (state, _) = self.confirm_outside(is_no);
            self.fences[PIVOT] = Some(state);
        }
    }

    /// Confirm at a pivot that asks somebody else: it has asked, or asks again, and may learn what became of it.
    fn confirm_outside(&mut self, says_no: bool) -> (FenceState, Outcome) {
        match self.outside {
            Some(Effect::Done) => (FenceState::Confirmed, Outcome::Done),
            Some(Effect::NotYet) if says_no => {
                self.outside = Some(Effect::Never);
                let refusal = Refusal::AccountBlocked;
                (FenceState::Vetoed(refusal), Outcome::Vetoed(refusal))
            }
            _ => (FenceState::Confirming, Outcome::Unknown(String::new())),
        }
    }

    fn ask(&mut self, operation: Operation, branch: usize, no: Option<usize>) -> Outcome {
        let (state, answer) = match fence::admit(self.fences[branch], operation) {
            Admission::Answer(answer) => (self.fences[branch], answer),
            Admission::Stop => (Some(FenceState::Stopped), Outcome::Done),
            Admission::Run
                if operation == Operation::Confirm && branch == PIVOT && self.outside.is_some() =>
            {
                let says_no = no == Some(PIVOT) && self.may_say_no(operation, branch);
                let (state, answer) = self.confirm_outside(says_no);
                (Some(state), answer)
            }
            Admission::Run if no == Some(branch) && self.may_say_no(operation, branch) => match operation {
                Operation::Try => {
                    let refusal =
                        if branch == DEBIT { Refusal::InsufficientFunds } else { Refusal::AccountNotFound };
                    (Some(FenceState::Refused(refusal)), Outcome::Refused(refusal))
                }
                _ => {
                    let refusal = Refusal::AccountBlocked;
                    (Some(FenceState::Vetoed(refusal)), Outcome::Vetoed(refusal))
                }
            },
            Admission::Run => (Some(self.books.run(operation, branch)), Outcome::Done),
        };
        self.fences[branch] = state;
        self.cancel_accepted |= (operation, branch, &answer) == (Operation::Cancel, PIVOT, &Outcome::Done);
        answer
    }

    /// The two coordinators are alike, so which of them is the first makes no difference, but twice as many states. Their
    /// numbers may swap from one step to the next.
    pub fn sort_coordinators(&mut self) {
        self.coordinators.sort_by_key(|coordinator| {
            let answered =
                |attempt: &Attempt| (attempt.operation, attempt.answers.each_ref().map(Option::is_some));
            Reverse(coordinator.as_ref().map(answered))
        });
    }
}

impl Attempt {
    /// What a coordinator sets out to do about a transaction in this phase, if there is anything to ask of the branches.
    /// The store says whether a hold is due in the statement that reads it, and writes nothing.
    #[must_use]
    pub fn at(phase: Phase, world: &World) -> Option<Self> {
        let operation = match phase {
            Phase::Trying => Operation::Try,
            Phase::Held if world.due => world.on_maturity.operation(),
            Phase::Confirming => Operation::Confirm,
            Phase::Cancelling => Operation::Cancel,
            Phase::Held | Phase::Confirmed | Phase::Cancelled => return None,
        };
        Some(Self { operation, answers: [None, None] })
    }

    /// A branch's answer. No answer is its own answer.
    #[must_use]
    pub fn answer(&self, branch: usize) -> &Outcome {
        static NONE: Outcome = Outcome::Unknown(String::new());
        self.answers[branch].as_ref().unwrap_or(&NONE)
    }

    /// What the answers add up to.
    #[must_use]
    pub fn conclusion(&self) -> Conclusion {
        let done = match self.operation {
            Operation::Try => return self.conclusion_of_tries(),
            Operation::Confirm => Event::AllConfirmed,
            Operation::Cancel => Event::AllCancelled,
        };
        let verdict = match decision::read_pivot(self.operation, self.answer(PIVOT)) {
            Verdict::Proceed => decision::read_follower(self.operation, self.answer(DEBIT)),
            pivot => pivot,
        };
        match verdict {
            Verdict::Proceed => Conclusion::Write(done),
            Verdict::Flip(event, _) => Conclusion::Write(event),
            Verdict::Again(_) => Conclusion::Wait,
            Verdict::Park(_) => Conclusion::Park,
        }
    }

    fn conclusion_of_tries(&self) -> Conclusion {
        match decision::read_tries([self.answer(DEBIT), self.answer(PIVOT)].into_iter()) {
            Tried::All => Conclusion::Write(Event::Tried),
            // Somebody has cancelled a branch, so the transaction can only be cancelled: as good as a refusal.
            Tried::Refused(_) | Tried::Cancelled => Conclusion::Write(Event::Refused),
            Tried::Unanswered(_) => Conclusion::Wait,
            Tried::Lie(_) => Conclusion::Park,
        }
    }
}

impl Books {
    /// The effect of an operation that its fence has admitted, and the state that it leaves there.
    fn run(&mut self, operation: Operation, branch: usize) -> FenceState {
        match operation {
            Operation::Try => {
                if branch == DEBIT {
                    self.payer_available -= 1;
                    self.payer_escrow += 1;
                }
                FenceState::Tried
            }
            Operation::Confirm => {
                if branch == DEBIT {
                    self.payer_escrow -= 1;
                    self.clearing += 1;
                } else {
                    self.pay();
                }
                FenceState::Confirmed
            }
            Operation::Cancel => {
                if branch == DEBIT {
                    self.payer_escrow -= 1;
                    self.payer_available += 1;
                }
                FenceState::Cancelled
            }
        }
    }

    fn pay(&mut self) {
        self.clearing -= 1;
        self.payee_available += 1;
    }

    /// Whether the unit is somewhere, once, and nothing is below zero but clearing, once, until the debit is settled.
    #[must_use]
    pub fn are_kept(&self) -> bool {
        let Self { payer_available, payer_escrow, payee_available, clearing } = *self;
        let sum = payer_available + payer_escrow + payee_available + clearing;
        sum == 1
            && payer_available.min(payer_escrow).min(payee_available) >= 0
            && (-1..=0).contains(&clearing)
    }
}

/// One line for people who read a way through the search.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.row.map_or("no row".into(), |row| format!("{:?}", row.phase));
        let fences = self.fences.map(|fence| fence.map_or("absent".into(), |state| format!("{state:?}")));
        let Books { payer_available, payer_escrow, payee_available, clearing } = self.books;
        write!(f, "{row}; debit {}, pivot {}; ", fences[DEBIT], fences[PIVOT])?;
        write!(f, "payer {payer_available} and {payer_escrow} frozen, ")?;
        write!(f, "payee {payee_available}, clearing {clearing}")?;
        for (i, attempt) in self.coordinators.iter().enumerate() {
            attempt.iter().try_for_each(|attempt| write!(f, "; {i} asks to {:?}", attempt.operation))?;
        }
        Ok(())
    }
}
