//! What is counted on the way of a transaction.
//!
//! Whatever is on that way finds its series by an index, never by a look-up of labels: arrays stand here for what would be
//! maps elsewhere. Times come from the row, which has them by the database's clock, or from around a call.

use super::{
    Histogram,
    histogram::{CALLS, LAGS},
};
use crate::{
    engine::{ALREADY_CANCELLED, Created, EngineError},
    store::{Record, record::Standing},
};
use prometheus_client::{
    encoding::text::encode_registry,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use std::{
    sync::{Arc, OnceLock, RwLock},
    time::Duration,
};
use tcc_core::{Attention, Cause, Operation, Outcome, Phase, Refusal, Timestamp};
use tcc_participant::telemetry::{OPERATIONS, OUTCOMES, outcome_index};
use tcc_proto::Reason;

/// Names and values of a series.
type Labels<const N: usize> = [(&'static str, String); N];

/// One for each cause, and none.
const CAUSES: usize = Cause::ALL.len() + 1;

/// The counters of one instance's engine.
pub struct Metrics {
    registry: Registry,
    created: Family<Labels<2>, Counter>,
    held: Counter,
    replayed: Counter,
    refused: Vec<Counter>,
    transitions: Family<Labels<3>, Counter>,
    /// By phase before, phase after and cause; made when first needed, since most of them never are.
    known_transitions: Vec<OnceLock<Counter>>,
    put_off: Vec<Counter>,
    calls: Family<Labels<3>, Counter>,
    durations: Family<Labels<2>, Histogram, fn() -> Histogram>,
    lags: Family<Labels<1>, Histogram, fn() -> Histogram>,
    /// By their number; made when first needed, since participants may come later.
    participants: RwLock<Vec<Option<Arc<Participant>>>>,
    settle: Histogram,
    actions: Family<Labels<2>, Counter>,
}

/// What is counted at one participant.
struct Participant {
    /// By operation and outcome.
    calls: Vec<Counter>,
    /// By operation.
    durations: Vec<Histogram>,
    maturity_lag: Histogram,
}

impl Metrics {
    /// All series at zero, for participants of these names.
    #[must_use]
    pub fn new<'a>(participants: impl Iterator<Item = &'a str>) -> Self {
        let mut registry = Registry::with_prefix("tcc");
        let created = Family::<Labels<2>, Counter>::default();
        let transitions = Family::<Labels<3>, Counter>::default();
        let put_off = Family::<Labels<1>, Counter>::default();
        let calls = Family::<Labels<3>, Counter>::default();
        let durations =
            Family::<Labels<2>, Histogram, fn() -> Histogram>::new_with_constructor(|| Histogram::new(CALLS));
        let lags =
            Family::<Labels<1>, Histogram, fn() -> Histogram>::new_with_constructor(|| Histogram::new(LAGS));
        let settle = Histogram::new(CALLS);
        let actions = Family::<Labels<2>, Counter>::default();
        registry.register(
            "holds_created",
            "Requests to create a hold, by what became of them",
            created.clone(),
        );
        registry.register("transitions", "Changes of a transaction's phase", transitions.clone());
        registry.register(
            "put_off",
            "Transactions put off, by the attention that they show",
            put_off.clone(),
        );
        registry.register("branch_calls", "Answers of participants, by branch", calls.clone());
        registry.register(
            "branch_call_duration_seconds",
            "Time to a participant's answer",
            durations.clone(),
        );
        registry.register(
            "maturity_lag_seconds",
            "From the due time to the end, for what matured",
            lags.clone(),
        );
        registry.register("settle_duration_seconds", "From the decision to the end", settle.clone());
        registry.register("operator_actions", "What operators did", actions.clone());

        let created_as = |outcome: &str, reason: &str| {
            created.get_or_create(&[("outcome", outcome.into()), ("reason", reason.into())]).clone()
        };
        let metrics = Self {
            held: created_as("held", ""),
            replayed: created_as("replayed", ""),
            refused: Refusal::ALL.iter().map(|refusal| created_as("refused", refusal.code())).collect(),
            known_transitions: (0..Phase::ALL.len() * Phase::ALL.len() * CAUSES)
                .map(|_| OnceLock::new())
                .collect(),
            put_off: Attention::ALL
                .iter()
                .map(|kind| put_off.get_or_create(&[("attention", attention_name(*kind).to_owned())]).clone())
                .collect(),
            calls,
            durations,
            lags,
            participants: RwLock::default(),
            registry,
            created,
            transitions,
            settle,
            actions,
        };
        for (index, name) in participants.enumerate() {
            metrics.participant(index, name);
        }
        // What happens to every hold is there from the start, so that a rate over it is never without a beginning.
        metrics.transition(Phase::Trying, Phase::Held, None);
        metrics.transition(Phase::Held, Phase::Confirmed, Some(Cause::Matured));
        metrics
    }

    /// Writes all series, without an end mark.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn encode(&self, text: &mut String) -> Result<(), std::fmt::Error> {
        encode_registry(text, &self.registry)
    }

    /// A creation has its answer.
    pub fn created(&self, created: &Result<Created, EngineError>) {
        match created {
            Ok(Created { replayed: true, .. }) => {
                self.replayed.inc();
            }
            Ok(Created { record, .. }) => match record.standing.reason.as_deref() {
                Some(reason) => match Refusal::ALL.iter().position(|refusal| refusal.code() == reason) {
                    Some(index) => {
                        self.refused[index].inc();
                    }
                    None if reason == ALREADY_CANCELLED => {
                        self.created_as("refused", Reason::AlreadyCancelled.name());
                    }
                    // A participant's own reasons are too many for a label.
                    None => self.created_as("refused", Reason::ParticipantRefused.name()),
                },
                None if record.standing.held_at.is_some() => {
                    self.held.inc();
                }
                None => self.created_as("cancelled", ""),
            },
            Err(error) => self.created_as("error", error_reason(error).name()),
        }
    }

    /// A creation was turned away before anything was done.
    pub fn turned_away(&self, reason: Reason) {
        self.created_as("error", reason.name());
    }

    /// A transaction has moved.
    pub fn moved(&self, from: Phase, standing: &Standing) {
        self.transition(from, standing.phase, standing.cause).inc();
    }

    /// A transaction that a participant's fence decided has come to its end.
    pub fn settled(&self, pivot: usize, name: &str, record: &Record) {
        let standing = &record.standing;
        let (Some(decided_at), Some(settled_at)) = (standing.decided_at, standing.settled_at) else { return };
        self.settle.observe(between(decided_at, settled_at));
        if standing.cause == Some(Cause::Matured) {
            self.participant(pivot, name).maturity_lag.observe(between(record.due_at(), settled_at));
        }
    }

    /// A participant has answered, or has not.
    pub fn called(
        &self,
        participant: usize,
        name: &str,
        operation: Operation,
        took: Duration,
        outcomes: &[Outcome],
    ) {
        let counted = self.participant(participant, name);
        let operation = operation as usize;
        counted.durations[operation].observe(took);
        for outcome in outcomes {
            counted.calls[operation * OUTCOMES.len() + outcome_index(outcome)].inc();
        }
    }

    /// A transaction could not go on.
    pub fn put_off(&self, attention: Attention) {
        self.put_off[attention as usize].inc();
    }

    /// An operator has done something, or was refused.
    pub fn acted(&self, action: &str, outcome: &str) {
        self.actions.get_or_create(&[("action", action.to_owned()), ("outcome", outcome.to_owned())]).inc();
    }

    /// What is counted at one of them.
    fn participant(&self, index: usize, name: &str) -> Arc<Participant> {
        let known = self.participants.read().expect("no holder panics").get(index).cloned().flatten();
        known.unwrap_or_else(|| {
            let mut all = self.participants.write().expect("no holder panics");
            let length = all.len().max(index + 1);
            all.resize_with(length, || None);
            Arc::clone(all[index].get_or_insert_with(|| Arc::new(self.new_participant(name))))
        })
    }

    fn new_participant(&self, name: &str) -> Participant {
        Participant {
            calls: OPERATIONS
                .iter()
                .flat_map(|operation| OUTCOMES.iter().map(move |outcome| (operation, outcome)))
                .map(|(operation, outcome)| {
                    let labels = [
                        ("participant", name.to_owned()),
                        ("operation", (*operation).to_owned()),
                        ("outcome", (*outcome).to_owned()),
                    ];
                    self.calls.get_or_create(&labels).clone()
                })
                .collect(),
            durations: OPERATIONS
                .iter()
                .map(|operation| {
                    let labels = [("participant", name.to_owned()), ("operation", (*operation).to_owned())];
                    self.durations.get_or_create(&labels).clone()
                })
                .collect(),
            maturity_lag: self.lags.get_or_create(&[("participant", name.to_owned())]).clone(),
        }
    }

    fn created_as(&self, outcome: &str, reason: &str) {
        self.created.get_or_create(&[("outcome", outcome.to_owned()), ("reason", reason.to_owned())]).inc();
    }

    fn transition(&self, from: Phase, to: Phase, cause: Option<Cause>) -> &Counter {
        let cause_index = cause.map_or(0, |cause| cause as usize + 1);
        let index = (from as usize * Phase::ALL.len() + to as usize) * CAUSES + cause_index;
        self.known_transitions[index].get_or_init(|| {
            let name = |phase: Phase| phase.to_string().to_lowercase();
            let cause = cause.map_or("", cause_name).to_owned();
            self.transitions
                .get_or_create(&[("from", name(from)), ("to", name(to)), ("cause", cause)])
                .clone()
        })
    }
}

/// Zero if the clock was set back between them.
fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// Why the engine could not say what became of a creation.
fn error_reason(error: &EngineError) -> Reason {
    match error {
        EngineError::Overloaded => Reason::Overloaded,
        EngineError::Draining => Reason::Draining,
        EngineError::Unreachable { is_shard: true, .. } => Reason::ShardUnavailable,
        EngineError::Unreachable { is_shard: false, .. } => Reason::ParticipantUnavailable,
        EngineError::IdReused { .. } => Reason::IdReused,
        EngineError::OutcomeUnknown(_) => Reason::OutcomeUnknown,
        EngineError::Store(_) => Reason::CoordinatorUnavailable,
        // No creation ends like this.
        EngineError::NotFound(_) => Reason::HoldNotFound,
        EngineError::TooLate { .. } => Reason::HoldNotConfirmable,
        EngineError::Changed { .. } => Reason::EtagMismatch,
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Refused => "refused",
        Cause::Vetoed => "vetoed",
        Cause::Requested => "requested",
        Cause::TimedOut => "timed_out",
        Cause::Matured => "matured",
        Cause::Operator => "operator",
    }
}

/// As the label has it.
#[must_use]
pub fn attention_name(attention: Attention) -> &'static str {
    match attention {
        Attention::None => "none",
        Attention::Retrying => "retrying",
        Attention::Stuck => "stuck",
        Attention::Parked => "parked",
        Attention::Paused => "paused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Place;
    use std::sync::Arc;
    use tcc_core::{AccountId, Amount, Currency, Descriptor, Transaction, TransactionId};

    fn text(metrics: &Metrics) -> String {
        let mut text = String::new();
        metrics.encode(&mut text).unwrap();
        text
    }

    #[test]
    fn every_answer_of_a_participant_is_counted_under_its_operation() {
        let metrics = Metrics::new(["shard-0", "shard-1"].into_iter());

        metrics.called(
            1,
            "shard-1",
            Operation::Confirm,
            Duration::from_millis(3),
            &[Outcome::Done, Outcome::Unknown("".into())],
        );

        let text = text(&metrics);
        for outcome in ["done", "unknown"] {
            let line = format!(
                "tcc_branch_calls_total{{participant=\"shard-1\",operation=\"confirm\",outcome=\"{outcome}\"}} 1"
            );
            assert!(text.contains(&line), "{text}");
        }
        assert!(text.contains(
            "tcc_branch_call_duration_seconds_count{participant=\"shard-1\",operation=\"confirm\"} 1"
        ));
    }

    #[test]
    fn a_payment_is_late_by_what_lies_between_its_due_time_and_its_end() {
        let metrics = Metrics::new(["shard-0"].into_iter());
        let at = |ms: i64| Timestamp::from_millisecond(1_790_000_000_000 + ms).unwrap();
        let mut standing = Standing::begun(at(0));
        (standing.phase, standing.cause) = (Phase::Confirmed, Some(Cause::Matured));
        (standing.decided_at, standing.settled_at) = (Some(at(1_002)), Some(at(1_020)));
        let account = |name: &str| AccountId::parse(name).unwrap();
        let (amount, gold) = (Amount::new(5).unwrap(), Currency::parse("GOLD").unwrap());
        let transfer = Descriptor::transfer(account("alice"), account("bob"), amount, gold);
        let settled = |descriptor| {
            let transaction = Arc::new(Transaction::new(TransactionId::mint(at(0), [7; 10]), descriptor));
            metrics.settled(
                0,
                "shard-0",
                &Record { transaction, place: Place::default(), standing: standing.clone() },
            );
            text(&metrics)
        };

        let after_a_hold = settled(Descriptor { due_at: at(1_000), ..transfer.clone() });
        let after_a_transfer = settled(transfer);

        let lag = |seconds| format!("tcc_maturity_lag_seconds_sum{{participant=\"shard-0\"}} {seconds}\n");
        assert!(after_a_hold.contains(&lag("0.02")), "{after_a_hold}");
        assert!(after_a_hold.contains("tcc_settle_duration_seconds_sum 0.018"), "{after_a_hold}");
        assert!(
            after_a_transfer.contains(&lag("1.04")),
            "a transfer is due when it is created: {after_a_transfer}"
        );
    }

    #[test]
    fn a_move_is_counted_by_where_from_where_to_and_why() {
        let metrics = Metrics::new(["shard-0"].into_iter());
        let mut standing = Standing::begun(Timestamp::UNIX_EPOCH);
        (standing.phase, standing.cause) = (Phase::Cancelling, Some(Cause::Vetoed));

        metrics.moved(Phase::Confirming, &standing);
        metrics.moved(Phase::Confirming, &standing);

        let line = "tcc_transitions_total{from=\"confirming\",to=\"cancelling\",cause=\"vetoed\"} 2";
        assert!(text(&metrics).contains(line));
    }
}
