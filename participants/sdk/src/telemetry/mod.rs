//! What a participant's server says of itself to whoever watches it: metrics, whether it lives, whether it can work.
//!
//! Counting is done with atomics only, on series that are there from the start, so no call waits for it; no label is ever an id,
//! an account or a payload. `Counted` stands around what is served and counts by operation and outcome, whatever is served;
//! `FenceCounts` stands at the fences, which alone know why an answer is what it is. `/metrics`, `/livez`, `/readyz` and
//! `/version` have a small HTTP listener of their own, as those of tccd, so that it can be bound to another address than
//! coordinators reach.
//!
//! Nothing here decides anything. The coordinator uses the same histogram and the same times of methods.

pub mod histogram;
mod http;
pub mod rpc;

pub use histogram::Histogram;
pub use rpc::Calls;

pub(crate) use http::serve;

use crate::{resource::Step, serve::Served};
use histogram::{CALLS, SIZES};
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::{Duration, Instant},
};
use tcc_core::{Admission, FenceState, Operation, Outcome};

/// How operations are called in labels, in the order of their numbers.
pub const OPERATIONS: [&str; 3] = ["try", "confirm", "cancel"];
/// How outcomes are called in labels.
pub const OUTCOMES: [&str; 9] = [
    "done",
    "refused",
    "vetoed",
    "already_confirmed",
    "already_cancelled",
    "not_tried",
    "other_descriptor",
    "unknown",
    "failed",
];

/// The place of an outcome in [`OUTCOMES`].
#[must_use]
pub fn outcome_index(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Done => 0,
        Outcome::Refused(_) => 1,
        Outcome::Vetoed(_) => 2,
        Outcome::AlreadyConfirmed => 3,
        Outcome::AlreadyCancelled => 4,
        Outcome::NotTried => 5,
        Outcome::OtherDescriptor => 6,
        Outcome::Unknown(_) => 7,
        Outcome::Failed(_) => 8,
    }
}

type By<const N: usize, M> = Family<[(&'static str, String); N], M>;

/// What is counted around whatever is served. Clones share it.
#[derive(Clone)]
pub(crate) struct Counted(Arc<Inner>);

struct Inner {
    served: Arc<dyn Served>,
    registry: Registry,
    methods: Calls,
    /// By operation and outcome.
    calls: Vec<Counter>,
    /// By operation.
    durations: Vec<Histogram>,
    sizes: Histogram,
    in_flight: Gauge,
    store_up: Gauge,
    queued: Gauge,
    is_draining: AtomicBool,
}

impl Counted {
    pub(crate) fn new(served: Arc<dyn Served>) -> Self {
        let mut registry = Registry::default();
        let calls = By::<2, Counter>::default();
        let durations =
            Family::<[(&'static str, String); 1], Histogram, fn() -> Histogram>::new_with_constructor(|| {
                Histogram::new(CALLS)
            });
        let (sizes, in_flight) = (Histogram::new(SIZES), Gauge::default());
        let build = By::<2, Gauge>::default();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        build.get_or_create(&[("participant", served.describe().name), ("version", version)]).set(1);
        registry.register("tcc_served_build_info", "Who serves, and its version; always 1", build);
        registry.register(
            "tcc_served_calls",
            "Answers to operations on branches, by what they were",
            calls.clone(),
        );
        registry.register(
            "tcc_served_call_duration_seconds",
            "Time to the answer to an operation on a branch",
            durations.clone(),
        );
        registry.register("tcc_served_request_calls", "Operations that came in one request", sizes.clone());
        registry.register(
            "tcc_served_requests_in_flight",
            "Requests of any method that have no answer yet",
            in_flight.clone(),
        );
        let (store_up, queued) = (Gauge::default(), Gauge::default());
        let help = "Whether the participant's database was there when it was needed last";
        registry.register("tcc_served_store_up", help, store_up.clone());
        if served.fenced().is_some() {
            let help = "Operations that wait for a local transaction";
            registry.register("tcc_fence_queued", help, queued.clone());
        }
        let labels = OPERATIONS.iter().flat_map(|operation| OUTCOMES.map(|outcome| (*operation, outcome)));
        let calls = labels
            .map(|(operation, outcome)| {
                let labels = [("operation", operation.to_owned()), ("outcome", outcome.to_owned())];
                calls.get_or_create(&labels).clone()
            })
            .collect();
        let durations = OPERATIONS
            .map(|operation| durations.get_or_create(&[("operation", operation.to_owned())]).clone())
            .to_vec();
        let methods = Calls::new(tcc_proto::FILE_DESCRIPTOR_SET);
        let is_draining = AtomicBool::new(false);
        Self(Arc::new(Inner {
            served,
            registry,
            methods,
            calls,
            durations,
            sizes,
            in_flight,
            store_up,
            queued,
            is_draining,
        }))
    }

    /// A request has come, of so many operations.
    pub(crate) fn requested(&self, calls: usize) {
        self.0.sizes.count(calls as u64);
    }

    /// An operation has its answer.
    pub(crate) fn answered(&self, operation: Operation, outcome: &Outcome, took: Duration) {
        let operation = operation as usize;
        self.0.calls[operation * OUTCOMES.len() + outcome_index(outcome)].inc();
        self.0.durations[operation].observe(took);
    }

    /// Counts a request of any method as under way until what this answers is dropped.
    pub(crate) fn enter(&self) -> InFlight {
        self.0.in_flight.inc();
        InFlight { gauge: self.0.in_flight.clone() }
    }

    pub(crate) fn methods(&self) -> &Calls {
        &self.0.methods
    }

    /// It takes no new connections any more.
    pub(crate) fn drain(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
    }

    /// Why it cannot work at the moment, if it cannot.
    fn trouble(&self) -> Option<&'static str> {
        if self.0.is_draining.load(Ordering::Relaxed) {
            Some("draining")
        } else if !self.0.served.is_connected() {
            Some("the participant's database does not answer, or work on it is stopped")
        } else {
            None
        }
    }

    fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let fenced = self.0.served.fenced();
        self.0.store_up.set(self.0.served.is_connected().into());
        if let Some(fenced) = fenced {
            self.0.queued.set(fenced.queued() as i64);
        }
        encode_registry(&mut text, &self.0.registry)?;
        if let Some(fenced) = fenced {
            encode_registry(&mut text, &fenced.counts().registry)?;
        }
        self.0.methods.encode(&mut text)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// A request that has no answer yet.
pub(crate) struct InFlight {
    gauge: Gauge,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// How a fence met an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    /// The resource did it.
    Done,
    /// It had been done; the same answer again.
    Again,
    /// A Cancel of what was never tried: a tombstone.
    EmptyCancel,
    /// A Try of what has ended: turned away.
    LateTry,
    /// The resource refused a Try.
    Refused,
    /// The resource vetoed a Confirm.
    Vetoed,
    /// A Confirm of what was cancelled, or a Cancel of what was confirmed.
    Contradicted,
    /// A Confirm of what was never tried: whoever asks has made a mistake.
    NotTried,
    /// Another transaction under the same id.
    OtherDescriptor,
    /// The effect is outside of the database, and not known yet.
    Open,
}

/// How they are called in labels, in their order.
const MET: [&str; 10] = [
    "done",
    "again",
    "empty_cancel",
    "late_try",
    "refused",
    "vetoed",
    "contradicted",
    "not_tried",
    "other_descriptor",
    "open",
];

impl Met {
    /// What it is that the fence itself answers.
    pub(crate) fn at(fence: Option<FenceState>, operation: Operation, admission: &Admission) -> Self {
        match admission {
            Admission::Run => Self::Done,
            Admission::Stop => Self::EmptyCancel,
            Admission::Answer(Outcome::NotTried) => Self::NotTried,
            Admission::Answer(Outcome::Unknown(_)) => Self::Open,
            Admission::Answer(Outcome::AlreadyConfirmed | Outcome::AlreadyCancelled) => match operation {
                Operation::Try => Self::LateTry,
                Operation::Confirm | Operation::Cancel => Self::Contradicted,
            },
            Admission::Answer(_) => {
                debug_assert!(fence.is_some(), "what was done has a fence");
                Self::Again
            }
        }
    }
}

/// What is counted at fences. Clones share it.
#[derive(Clone)]
pub(crate) struct FenceCounts {
    registry: Arc<Registry>,
    /// By operation and [`Met`].
    answers: Arc<[Counter]>,
    steps: Histogram,
    durations: Histogram,
}

impl FenceCounts {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let answers = By::<2, Counter>::default();
        registry.register(
            "tcc_fence_answers",
            "Committed answers of fences, by how they met the operation",
            answers.clone(),
        );
        let (steps, durations) = (Histogram::new(SIZES), Histogram::new(CALLS));
        registry.register("tcc_fence_batch_steps", "Operations in one local transaction", steps.clone());
        let help = "Time of a local transaction that has committed, the resource's work included";
        registry.register("tcc_fence_batch_duration_seconds", help, durations.clone());
        let labels = OPERATIONS.iter().flat_map(|operation| MET.map(|met| (*operation, met)));
        let answers = labels
            .map(|(operation, met)| {
                answers.get_or_create(&[("operation", operation.to_owned()), ("met", met.to_owned())]).clone()
            })
            .collect();
        Self { registry: Arc::new(registry), answers, steps, durations }
    }

    /// A local transaction has committed that began then.
    pub(crate) fn committed(&self, steps: &[&Step], met: &[Met], began: Instant) {
        for (step, met) in steps.iter().zip(met) {
            self.answers[step.operation as usize * MET.len() + *met as usize].inc();
        }
        self.steps.count(steps.len() as u64);
        self.durations.observe(began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcc_core::{Refusal, fence::admit};

    #[test]
    fn a_fence_tells_done_from_done_again_and_what_came_too_late_from_what_contradicts() {
        use FenceState::{Cancelled, Confirmed, Confirming, Refused, Stopped, Tried, Vetoed};
        use Operation::{Cancel, Confirm, Try};
        let no = Refusal::own("NO");

        for (fence, operation, expected) in [
            (None, Try, Met::Done),
            (None, Confirm, Met::NotTried),
            (None, Cancel, Met::EmptyCancel),
            (Some(Tried), Try, Met::Again),
            (Some(Tried), Confirm, Met::Done),
            (Some(Tried), Cancel, Met::Done),
            (Some(Confirming), Try, Met::Again),
            (Some(Confirming), Cancel, Met::Open),
            (Some(Refused(no)), Try, Met::Again),
            (Some(Refused(no)), Confirm, Met::Contradicted),
            (Some(Refused(no)), Cancel, Met::Again),
            (Some(Confirmed), Try, Met::LateTry),
            (Some(Confirmed), Confirm, Met::Again),
            (Some(Confirmed), Cancel, Met::Contradicted),
            (Some(Cancelled), Try, Met::LateTry),
            (Some(Stopped), Try, Met::LateTry),
            (Some(Stopped), Cancel, Met::Again),
            (Some(Cancelled), Confirm, Met::Contradicted),
            (Some(Vetoed(no)), Confirm, Met::Again),
        ] {
            let found = Met::at(fence, operation, &admit(fence, operation));

            assert_eq!(found, expected, "{operation:?} at {fence:?}");
        }
    }

    #[test]
    fn every_answer_of_a_fence_stands_at_its_own_name() {
        let counts = FenceCounts::new();
        assert_eq!(MET.len(), Met::Open as usize + 1);
        assert_eq!(MET[Met::EmptyCancel as usize], "empty_cancel");
        assert_eq!(MET[Met::OtherDescriptor as usize], "other_descriptor");

        counts.answers[Operation::Cancel as usize * MET.len() + Met::EmptyCancel as usize].inc();

        let mut text = String::new();
        encode_registry(&mut text, &counts.registry).unwrap();
        let line = "tcc_fence_answers_total{operation=\"cancel\",met=\"empty_cancel\"} 1\n";
        assert!(text.contains(line), "{text}");
    }
}
