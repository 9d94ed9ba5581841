//! The steps that can fail, the ways in which they fail, and how often each did.

use tcc_core::{Event, Operation};

/// Something that the engine asks of somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The first row.
    Begin,
    /// Looking at what a wake-up names.
    Wake,
    /// Putting off.
    Defer,
    /// Reading a row.
    Get,
    /// Rebuilding a row that was lost.
    Rebuild,
    /// Moving a row.
    Advance(Event),
    /// An operation on some branches.
    Ask(Operation, Branches),
}

/// Which branches of a hold an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branches {
    /// The credit.
    Pivot,
    /// The debit.
    Debit,
    /// Both, on one shard.
    Both,
}

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It did not happen, and nobody is told so.
    Before,
    /// It happened, and the answer is lost.
    After,
    /// There is no answer, and it happens later.
    Late,
    /// It happens after seconds.
    Slow,
    /// The instance that asks is killed before it happens.
    CrashBefore,
    /// The instance that asks is killed after it has happened.
    CrashAfter,
    /// It happens, and once more later.
    Twice,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Before, Self::After, Self::Late, Self::Slow, Self::CrashBefore, Self::CrashAfter, Self::Twice];
}

impl Step {
    /// Every step.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let asks =
            [Operation::Try, Operation::Confirm, Operation::Cancel].into_iter().flat_map(|operation| {
                [Branches::Pivot, Branches::Debit, Branches::Both]
                    .map(|branches| Self::Ask(operation, branches))
            });
        [Self::Begin, Self::Wake, Self::Defer, Self::Get, Self::Rebuild]
            .into_iter()
            .chain(Event::ALL.map(Self::Advance))
            .chain(asks)
            .collect()
    }

    /// Its position in [`Step::all`].
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Begin => 0,
            Self::Wake => 1,
            Self::Defer => 2,
            Self::Get => 3,
            Self::Rebuild => 4,
            Self::Advance(event) => 5 + event as usize,
            Self::Ask(operation, branches) => {
                5 + Event::ALL.len() + 3 * operation as usize + branches as usize
            }
        }
    }

    /// Whether it happens so seldom that it has to fail often, to fail in every way at all.
    #[must_use]
    pub fn is_rare(self) -> bool {
        use Event::{PivotCancelled, PivotConfirmed, PivotVetoed, TimedOut};
        matches!(self, Self::Advance(PivotCancelled | PivotConfirmed | PivotVetoed | TimedOut))
    }

    /// Whether it can fail like that. A statement of the database is not delivered twice, and no operator lives here.
    #[must_use]
    pub fn can(self, fault: Fault) -> bool {
        self != Self::Advance(Event::CancelForced) && (fault != Fault::Twice || matches!(self, Self::Ask(..)))
    }
}

/// Where those are counted that did not fail.
const WELL: usize = Fault::ALL.len();

/// How often each step failed in each way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts(Vec<[u64; 8]>);

impl Default for Counts {
    fn default() -> Self {
        Self(vec![[0; 8]; Step::all().len()])
    }
}

impl Counts {
    /// One more step, which failed or did not.
    pub fn add(&mut self, step: Step, fault: Option<Fault>) {
        self.0[step.index()][fault.map_or(WELL, |fault| fault as usize)] += 1;
    }

    /// All of another one's, too.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        }
    }

    /// All faults.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().flat_map(|row| &row[..WELL]).sum()
    }

    /// The cells that were never reached.
    #[must_use]
    pub fn empty(&self) -> Vec<(Step, Fault)> {
        let cells = Step::all().into_iter().flat_map(|step| Fault::ALL.map(|fault| (step, fault)));
        cells.filter(|(step, fault)| step.can(*fault) && self.0[step.index()][*fault as usize] == 0).collect()
    }

    /// As a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{:<28}{:>13}", "step", "went well");
        Fault::ALL.iter().for_each(|fault| text.push_str(&format!("{:>13}", format!("{fault:?}"))));
        for step in Step::all() {
            let well = self.0[step.index()][WELL];
            text.push_str(&format!("\n{:<28}{well:>13}", format!("{step:?}")));
            for fault in Fault::ALL {
                let count = self.0[step.index()][fault as usize];
                let cell = if step.can(fault) { count.to_string() } else { "-".into() };
                text.push_str(&format!("{cell:>13}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_stands_at_its_own_index() {
        for (index, step) in Step::all().into_iter().enumerate() {
            assert_eq!(step.index(), index, "{step:?}");
        }
    }
}
