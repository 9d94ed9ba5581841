//! What the kit tells: mistakes by name, and how to see each of them.

use std::{collections::BTreeSet, fmt};

macro_rules! mistakes {
    ($($name:ident = $code:literal, $what:literal;)*) => {
        /// What a participant does wrong. What others follow from comes before them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mistake { $(#[doc = $what] $name),* }

        impl Mistake {
            /// Every mistake that has a name.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// What it means, in one sentence.
            #[must_use]
            pub fn what(self) -> &'static str {
                match self { $(Self::$name => $what),* }
            }
        }
    };
}

mistakes! {
    NoTombstone = "NO_TOMBSTONE", "A Cancel of what was never tried leaves no fence.";
    LateTry = "LATE_TRY_SUCCEEDS", "A Try that comes after its Cancel looks like success.";
    FenceOutside = "FENCE_OUTSIDE_TRANSACTION",
        "Operations that meet are not kept apart: the fence does not commit together with its effect, or is not locked.";
    EffectRepeated = "EFFECT_REPEATED", "An operation that comes twice takes effect twice.";
    OtherBody = "OTHER_BODY_ACCEPTED", "Another transaction under the same id is not told apart.";
    ConfirmedAfterCancel = "CONFIRMED_AFTER_CANCEL", "What was cancelled can be confirmed.";
    CancelledAfterConfirm = "CANCELLED_AFTER_CONFIRM", "What was confirmed can be cancelled.";
    ForbiddenNo = "FORBIDDEN_NO", "A Confirm or Cancel is refused, or vetoed where nobody may veto.";
    ChangedRefusal = "CHANGED_REFUSAL", "A refusal is not the same each time.";
    BadReason = "BAD_REASON", "The reason of a refusal is not 1 to 47 of A-Z, 0-9 and _, a letter first.";
    WrongEffect = "WRONG_EFFECT", "What is left is not what the answers say.";
    WrongAnswer = "WRONG_ANSWER", "An answer is not the one of the fence table.";
    NoAnswer = "NO_ANSWER", "An operation has no answer, however often it is repeated.";
    Forgotten = "FORGOTTEN", "A fence that has been answered is forgotten.";
    AnswersForOthers = "ANSWERS_FOR_OTHERS", "A call that is meant for another participant is answered.";
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// One mistake, and how to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub mistake: Mistake,
    /// What was answered, and what was to be answered.
    pub what: String,
    /// The shortest schedule that shows it.
    pub schedule: String,
    /// The seed of the random schedule that it was a part of.
    pub seed: Option<u64>,
    /// How many schedules met it.
    pub times: u64,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What the participant calls itself.
    pub name: String,
    /// What it is made with.
    pub software: String,
    /// How many schedules were answered rightly to the end.
    pub passed: u64,
    /// In how many of them it was seen what was left.
    pub effects_seen: u64,
    /// How many schedules are not judged, because an answer was lost while operations met.
    pub inconclusive: u64,
    /// The cells of the fence table that were asked for, as `state operation`.
    pub cells: BTreeSet<String>,
    /// Something was named that is vetoed.
    pub asked_for_veto: bool,
    /// Its Confirm takes place outside of its database.
    pub is_outside: bool,
    /// What is wrong, each mistake once. The first one is to be mended first: others may follow from it.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong, and it was possible to see that.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.findings.is_empty() && self.unseen().is_empty()
    }

    /// Why nothing can be said, although no mistake was found.
    #[must_use]
    pub fn unseen(&self) -> Vec<String> {
        let mut unseen = Vec::new();
        if self.effects_seen == 0 {
            unseen.push("no effect was seen: name something of which there are one or two".to_owned());
        }
        for state in STATES.iter().filter(|state| **state != "vetoed" || self.asked_for_veto) {
            if !self.cells.iter().any(|cell| cell.split(' ').next() == Some(*state)) {
                unseen.push(format!("no fence was ever {state}"));
            }
        }
        let judged = if self.is_outside { SOME_JUDGED } else { MOST_JUDGED };
        if self.inconclusive * judged > self.passed {
            unseen.push(format!("{} schedules have no verdict, since an answer was lost", self.inconclusive));
        }
        unseen
    }

    /// Whether this mistake was found.
    #[must_use]
    pub fn has(&self, mistake: Mistake) -> bool {
        self.findings.iter().any(|finding| finding.mistake == mistake)
    }
}

/// If more than one of so many schedules has no verdict, it is not known whether the participant is right.
const MOST_JUDGED: u64 = 10;
/// As many as it knows, where it does not know at once: then what meets has often no verdict.
const SOME_JUDGED: u64 = 2;
/// The states of a fence that a participant without effects outside of its database has.
const STATES: [&str; 7] = ["absent", "tried", "refused", "confirmed", "cancelled", "vetoed", "stopped"];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "participant {} ({})", self.name, self.software)?;
        writeln!(f, "schedules answered rightly: {}", self.passed)?;
        writeln!(f, "of these, with what was left seen: {}", self.effects_seen)?;
        if self.inconclusive > 0 {
            writeln!(f, "not judged, since an answer was lost: {}", self.inconclusive)?;
        }
        let cells = STATES.len() * 3;
        writeln!(f, "cells of the fence table: {} of {cells}", self.cells.len())?;
        for finding in &self.findings {
            writeln!(f, "{}: {}", finding.mistake, finding.mistake.what())?;
            writeln!(f, "  schedule: {}", finding.schedule)?;
            writeln!(f, "  {}", finding.what)?;
            if let Some(seed) = finding.seed {
                writeln!(f, "  seed: {seed}")?;
            }
        }
        match (self.findings.len(), self.unseen().as_slice()) {
            (0, []) => f.write_str("ok"),
            (0, unseen) => write!(f, "not known: {}", unseen.join("; ")),
            (found, _) => write!(f, "broken: {found} mistakes"),
        }
    }
}
