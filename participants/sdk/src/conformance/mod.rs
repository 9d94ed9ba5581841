//! Whether a participant, in any language, does what the fence table says: asked over the wire, by nothing but its answers.
//!
//! The kit is a coordinator with bad manners. It asks for each cell of the table, in orders that are drawn at random, twice,
//! late, at the same time, and with another body under the same id; what each answer must be, the fence table itself says
//! ([`tcc_core::fence::admit`]). What an operation does is seen by what is left: a branch names something of which there are
//! one or two, and the kit reserves until it is refused, and cancels, before and after each schedule. Of a schedule with a
//! wrong answer it looks for the shortest part that is still answered wrongly.
//!
//! ```no_run
//! use tcc_participant::conformance::{Options, Part, Subject, verify};
//!
//! # async fn check() {
//! // Each schedule uses up one of these, of which there must be one or two units.
//! let seats = Subject::new("http://127.0.0.1:7080", Part::Payload("seat-%n".into()));
//! let report = verify(seats, &Options::default()).await.unwrap();
//! assert!(report.is_ok(), "{report}");
//! # }
//! ```

mod asker;
mod oracle;
mod report;
mod schedule;

use crate::{
    remote::{Certificate, InvalidAddress},
    wire::{Description, PROTOCOL_VERSION},
};
use asker::{Asker, Stop, Wrong};
use fastrand::Rng;
use futures::{StreamExt as _, stream};
use schedule::Schedule;
use tcc_core::{Admission, Operation, fence::admit};
use tcc_proto::v1;

pub use report::{Finding, Mistake, Report};

/// Which participant is asked, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// `https://HOST:PORT`, or `http://HOST:PORT`.
    pub address: String,
    /// The authorities of its certificate, PEM. `None`: those of the system.
    pub ca: Option<String>,
    /// What is shown to it.
    pub identity: Option<Certificate>,
    /// Reserves one unit of something of which there are one or two, and which nobody else uses. `%n` in it becomes 0, 1, 2,
    /// …: each schedule then has something of its own. Without it they share, and what is confirmed is used up.
    pub part: Part,
    /// The same of something that can be reserved and is vetoed at Confirm, if the participant may veto.
    pub vetoed: Option<Part>,
    /// The first `n`.
    pub first: u64,
    /// Its Confirm takes place outside of its database: it takes part only as the pivot, so that it refuses a Try of any other
    /// branch, and it answers UNKNOWN until it knows.
    pub is_outside: bool,
}

impl Subject {
    /// Without a veto, and from the first one on.
    #[must_use]
    pub fn new(address: &str, part: Part) -> Self {
        let address = address.to_owned();
        Self { address, ca: None, identity: None, part, vetoed: None, first: 0, is_outside: false }
    }
}

/// What a branch asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Whatever the participant makes of this payload.
    Payload(String),
    /// Of a ledger: the debit of one unit.
    Debit {
        /// Whose.
        account: String,
        /// In what.
        currency: String,
    },
}

impl Part {
    /// What distinguishes it, with the place for a number.
    fn template(&self) -> &str {
        match self {
            Self::Payload(text) | Self::Debit { account: text, .. } => text,
        }
    }

    fn branch(&self, participant: &str, number: u64) -> v1::TransactionBranch {
        let text = self.template().replace(PLACE, &number.to_string());
        match self {
            Self::Payload(_) => v1::TransactionBranch {
                participant: participant.to_owned(),
                payload: text.into_bytes(),
                ..Default::default()
            },
            Self::Debit { currency, .. } => v1::TransactionBranch {
                role: v1::BranchRole::Debit.into(),
                account: text,
                amount: 1,
                currency: currency.clone(),
                ..Default::default()
            },
        }
    }
}

/// How much is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of the first random schedule; the next one has the next seed. One schedule with its seed is the same schedule again.
    pub seed: u64,
    /// How many random schedules.
    pub schedules: u32,
    /// How often each pair of operations meets.
    pub meetings: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, schedules: 1_000, meetings: 40 }
    }
}

/// Why a participant cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The address is none, or a certificate.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// Nobody answers there, or somebody else.
    #[error("the participant at {address} does not answer: {why}")]
    Silent {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// Another protocol.
    #[error("it speaks version {0} of the protocol, and not {PROTOCOL_VERSION}")]
    Version(i32),
}

/// Asks everything.
///
/// # Errors
///
/// [`Unusable`]. Whatever the participant does wrong is in the report.
pub async fn verify(subject: Subject, options: &Options) -> Result<Report, Unusable> {
    let mut kit = Kit::connect(subject).await?;
    kit.run(options).await;
    Ok(kit.into_report())
}

/// For whoever wants to restart the participant between [`Kit::run`] and [`Kit::recall`].
pub struct Kit {
    asker: Asker,
    report: Report,
}

impl Kit {
    /// Connects, and asks the participant what it is.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub async fn connect(subject: Subject) -> Result<Self, Unusable> {
        let (asker, description) = Asker::connect(subject).await?;
        let asked_for_veto = asker.subject().vetoed.is_some();
        let Description { name, software, .. } = description;
        let is_outside = asker.subject().is_outside;
        let report = Report { name, software, asked_for_veto, is_outside, ..Report::default() };
        Ok(Self { asker, report })
    }

    /// Asks for each cell; if all are right, also for everything else. What is not right is to be mended first.
    pub async fn run(&mut self, options: &Options) {
        if let Err(wrong) = self.asker.manners().await {
            self.report.findings.push(wrong.finding("outside of any schedule".into(), None));
        }
        let cells = Schedule::cells(self.asker.subject().vetoed.is_some());
        self.run_all(cells.into_iter().map(|schedule| (schedule, None)).collect()).await;
        if self.report.findings.is_empty() {
            let meetings = (0..options.meetings).flat_map(|_| Schedule::meetings());
            self.run_all(meetings.map(|schedule| (schedule, None)).collect()).await;
        }
        if self.report.findings.is_empty() {
            let seeds = (0..u64::from(options.schedules)).map(|index| options.seed.wrapping_add(index));
            let random = seeds.map(|seed| (Schedule::random(&mut Rng::with_seed(seed)), Some(seed)));
            self.run_all(random.collect()).await;
        }
    }

    /// Asks again what was answered before. Whatever happened to the participant meanwhile, its fences must say the same.
    pub async fn recall(&mut self) {
        for (call, state) in self.asker.remembered() {
            let Admission::Answer(expected) = admit(Some(state), Operation::Try) else { continue };
            let transaction = call.transaction_id.clone();
            let wrong = match self.asker.answer(0, call).await {
                Ok((outcome, _)) if outcome == expected => {
                    self.report.passed += 1;
                    continue;
                }
                Ok((outcome, _)) => {
                    let (found, right) = (oracle::name(&outcome), oracle::name(&expected));
                    let what = format!("{found} to a Try of {transaction}, where {right} is right");
                    Wrong::new(Mistake::Forgotten, what)
                }
                Err(Stop::Wrong(wrong)) => wrong,
                Err(Stop::Inconclusive) => {
                    self.report.inconclusive += 1;
                    continue;
                }
            };
            self.note(wrong.finding("asked again later".into(), None));
        }
    }

    /// What was found.
    #[must_use]
    pub fn into_report(mut self) -> Report {
        self.report.findings.sort_by_key(|finding| finding.mistake);
        Report { cells: self.asker.cells(), ..self.report }
    }

    async fn run_all(&mut self, schedules: Vec<(Schedule, Option<u64>)>) {
        // Schedules that share what they reserve must not meet.
        let at_a_time = if self.asker.subject().part.template().contains(PLACE) { AT_A_TIME } else { 1 };
        let mut wrong = Vec::new();
        {
            let asker = &self.asker;
            let mut verdicts = stream::iter(schedules)
                .map(|(schedule, seed)| async move {
                    let verdict = asker.run(&schedule).await;
                    (schedule, seed, verdict)
                })
                .buffered(at_a_time);
            while let Some((schedule, seed, verdict)) = verdicts.next().await {
                match verdict {
                    Ok(effects_seen) => {
                        self.report.passed += 1;
                        self.report.effects_seen += u64::from(effects_seen);
                    }
                    Err(Stop::Inconclusive) => self.report.inconclusive += 1,
                    Err(Stop::Wrong(found)) => wrong.push((schedule, seed, found)),
                }
                if wrong.len() >= ENOUGH {
                    break;
                }
            }
        }
        for (schedule, seed, found) in wrong {
            let known = found.mistake(&schedule);
            if let Some(finding) = self.report.findings.iter_mut().find(|one| one.mistake == known) {
                finding.times += 1;
                continue;
            }
            let (shortest, found) = self.asker.shortest(schedule, found).await;
            let found = found.named(&shortest);
            let text = if shortest.moves.is_empty() {
                "reserve all there is, and cancel it".to_owned()
            } else {
                shortest.to_string()
            };
            self.note(found.finding(text, seed));
        }
    }

    fn note(&mut self, finding: Finding) {
        match self.report.findings.iter_mut().find(|one| one.mistake == finding.mistake) {
            Some(known) => known.times += 1,
            None => self.report.findings.push(finding),
        }
    }
}

/// What stands for a number in a part.
const PLACE: &str = "%n";
/// So many schedules are run at the same time, if they have nothing in common.
const AT_A_TIME: usize = 8;
/// After so many wrong schedules it is known what to mend: more than there are cells, each of which may be wrong in its own way.
const ENOUGH: usize = 50;
