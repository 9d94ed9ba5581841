//! What is the matter with a transaction, in a sentence, and what to do next.
//!
//! The first question at night is whether a person is needed at all. So every diagnosis says that first.

use super::picture::{Picture, Says, state_name};
use tcc_core::{Attention, FenceState, OnMaturity, Phase};

/// What is the matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// In a sentence.
    pub sentence: String,
    /// It goes on, or has ended, by itself.
    pub recovers_by_itself: bool,
    /// The command to run next; empty if there is nothing to do.
    pub next_command: String,
}

/// Says what is the matter.
#[must_use]
pub fn diagnose(picture: &Picture) -> Diagnosis {
    let id = picture.record.id();
    let standing = &picture.record.standing;
    let by_itself = |sentence: String, next_command: String| Diagnosis {
        sentence,
        recovers_by_itself: true,
        next_command,
    };
    let needs_you = |sentence: String, next_command: String| Diagnosis {
        sentence,
        recovers_by_itself: false,
        next_command,
    };
    if let Some(contradiction) = contradiction(picture) {
        return needs_you(contradiction, "tccctl audit run".to_owned());
    }
    match standing.attention {
        _ if standing.phase.is_final() => by_itself(end(picture), String::new()),
        Attention::Paused => needs_you(
            format!("An operator paused it; nothing is tried until it is resumed. {}", decided(picture)),
            format!("tccctl holds resume {id} --reason REASON"),
        ),
        Attention::Parked if picture.needing.as_ref().is_some_and(|needing| needing.is_acknowledged) => {
            by_itself(
                "It was settled by hand and acknowledged; it stays parked, as evidence.".to_owned(),
                format!("tccctl actions list --target {id}"),
            )
        }
        Attention::Parked => needs_you(
            format!(
                "It waits for a person: {}. {} When the cause is mended, requeue it.",
                picture.needing.as_ref().map_or("the reason is not known", |needing| &needing.last_error),
                decided(picture),
            ),
            format!("tccctl parked requeue {id} --reason REASON"),
        ),
        Attention::Retrying | Attention::Stuck => match picture.waiting_on.as_slice() {
            [] => by_itself(
                format!("It failed and is tried again by itself. {}", decided(picture)),
                format!("tccctl holds get {id} --watch"),
            ),
            [name, ..] => by_itself(
                format!(
                    "{} cannot be reached; it goes on by itself when that is back. {}",
                    picture.waiting_on.join(" and "),
                    decided(picture)
                ),
                match picture.is_shard(name) {
                    true => format!("tccctl shards describe {name}"),
                    false => format!("tccctl participants describe {name}"),
                },
            ),
        },
        Attention::None => by_itself(calm(picture), String::new()),
    }
}

/// What the participants say that cannot be.
fn contradiction(picture: &Picture) -> Option<String> {
    use FenceState::{Cancelled, Confirmed, Refused, Stopped, Vetoed};
    let said = |reported: &super::picture::Reported| match &reported.says {
        Says::Fence(fence) => {
            format!("{} says {} of {}", reported.participant, state_name(fence.state), reported.subject())
        }
        Says::Absent => format!("{} knows nothing of it", reported.participant),
        Says::Nothing(_) => format!("{} does not answer", reported.participant),
        Says::Untold => format!("{} does not say", reported.participant),
    };
    let is = |test: fn(&FenceState) -> bool| {
        picture.branches.iter().find(|reported| reported.says.state().as_ref().is_some_and(test))
    };
    let confirmed = is(|state| *state == Confirmed);
    let cancelled = is(|state| matches!(state, Cancelled | Refused(_) | Stopped | Vetoed(_)));
    let phase = picture.record.standing.phase;
    match (confirmed, cancelled) {
        (Some(one), Some(other)) => {
            Some(format!("The participants contradict each other: {}, and {}.", said(one), said(other)))
        }
        (Some(one), None) if phase == Phase::Cancelled => {
            Some(format!("It is CANCELLED, but {}.", said(one)))
        }
        (None, Some(other)) if phase == Phase::Confirmed => {
            Some(format!("It is CONFIRMED, but {}.", said(other)))
        }
        _ => None,
    }
}

/// Who has decided what, as far as anybody can say.
fn decided(picture: &Picture) -> String {
    let Some(pivot) = picture.pivot() else { return String::new() };
    let Some(leg) = pivot.branch.leg() else { return decided_elsewhere(picture, &pivot.participant) };
    let (payee, shard) = (&leg.account, &pivot.participant);
    match (&pivot.says, picture.record.standing.phase) {
        (Says::Fence(fence), _) if fence.state == FenceState::Confirmed => {
            format!("{payee} is paid, which is final; do not cancel.")
        }
        (Says::Fence(fence), _) if fence.state.is_final() => {
            format!("{payee} will not be paid, which is final.")
        }
        (Says::Nothing(_), _) => format!("Whether {payee} was paid only {shard} can say."),
        (_, Phase::Confirming) => format!("Paying {payee} was asked for and is not decided."),
        (_, Phase::Cancelling) => "Releasing it was asked for and is not decided.".to_owned(),
        (_, Phase::Trying) => "Nothing was promised to anybody yet.".to_owned(),
        _ => "Nothing is decided; the funds stay frozen.".to_owned(),
    }
}

/// The pivot is no shard: what it has decided shows where the ledger has followed it, or to whoever asks it.
fn decided_elsewhere(picture: &Picture, pivot: &str) -> String {
    let has = |wanted: fn(FenceState) -> bool| {
        picture.branches.iter().any(|reported| reported.says.state().is_some_and(wanted))
    };
    match picture.record.standing.phase {
        _ if has(|state| state == FenceState::Confirmed) => {
            format!("{pivot} has confirmed it, which is final; do not cancel.")
        }
        _ if has(|state| state.is_final()) => "It will not be confirmed, which is final.".to_owned(),
        Phase::Trying => "Nothing was promised to anybody yet.".to_owned(),
        _ => format!("Whether it was confirmed only {pivot} can say."),
    }
}

fn end(picture: &Picture) -> String {
    let standing = &picture.record.standing;
    let cause = standing.cause.map_or(String::new(), |cause| format!(" ({cause:?})").to_uppercase());
    let reason = standing.reason.as_deref().map_or(String::new(), |reason| format!(": {reason}"));
    match standing.phase {
        Phase::Confirmed => format!("It is paid, which is final{cause}."),
        _ => format!("It is released, which is final{cause}{reason}."),
    }
}

/// Nothing has failed.
fn calm(picture: &Picture) -> String {
    let descriptor = &picture.record.transaction.descriptor;
    let end = match descriptor.on_maturity {
        OnMaturity::Confirm => "paid",
        OnMaturity::Cancel => "released",
    };
    match picture.record.standing.phase {
        Phase::Held if descriptor.due_at > picture.now => {
            format!("It is held, and will be {end} at {}.", descriptor.due_at)
        }
        Phase::Held => format!("It is due and is being {end}."),
        Phase::Trying => "It was accepted a moment ago; not every shard has answered.".to_owned(),
        Phase::Confirming => "It is being paid.".to_owned(),
        _ => "It is being released.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recovery::{force, picture::Reported},
        store::{Place, Record, attention::Needing, record::Standing},
    };
    use std::sync::Arc;
    use tcc_core::{
        AccountId, Amount, Cause, Currency, Descriptor, Refusal, Timestamp, Transaction, TransactionId,
    };
    use tcc_ledger::FenceRow;

    fn says(branch: u16, state: FenceState) -> Says {
        let (fenced_at, decided_at) =
            (Timestamp::UNIX_EPOCH, state.is_final().then_some(Timestamp::UNIX_EPOCH));
        Says::Fence(FenceRow { branch, state, fenced_at, decided_at })
    }

    /// A hold of alice's 5 for bob, with what the two shards say.
    fn picture(phase: Phase, attention: Attention, debit: Says, credit: Says) -> Picture {
        let account = |name: &str| AccountId::parse(name).unwrap();
        let due_at = Timestamp::from_second(1_000).unwrap();
        let descriptor = Descriptor::hold(
            account("alice"),
            account("bob"),
            Amount::new(5).unwrap(),
            Currency::parse("GOLD").unwrap(),
            due_at,
            OnMaturity::Confirm,
        );
        let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [7; 10]);
        let transaction = Arc::new(Transaction::new(id, descriptor));
        let branches = [debit, credit].into_iter().zip(0..).map(|(says, index): (Says, u16)| Reported {
            branch: transaction.branch(index).clone(),
            participant: format!("shard-{index}"),
            is_pivot: index == 1,
            says,
            postings: Vec::new(),
        });
        let branches = branches.collect();
        let cause = phase.is_final().then_some(Cause::Matured);
        let standing = Standing { phase, attention, cause, ..Standing::begun(Timestamp::UNIX_EPOCH) };
        let record = Record { transaction, place: Place::default(), standing };
        let needing = (attention != Attention::None).then(|| Needing {
            record: record.clone(),
            since: Timestamp::UNIX_EPOCH,
            attempts: 50,
            last_error: "a trigger raises".into(),
            next_try: None,
            is_acknowledged: false,
        });
        Picture { record, branches, needing, actions: Vec::new(), waiting_on: Vec::new(), now: due_at }
    }

    #[test]
    fn a_shard_that_is_gone_needs_nobody_and_is_named() {
        let silence = Says::Nothing("connection refused".into());
        let mut stuck = picture(Phase::Held, Attention::Stuck, says(0, FenceState::Tried), silence);
        stuck.waiting_on = vec!["shard-1".into()];

        let diagnosis = diagnose(&stuck);

        assert!(diagnosis.recovers_by_itself);
        assert_eq!(diagnosis.next_command, "tccctl shards describe shard-1");
        assert_eq!(
            diagnosis.sentence,
            "shard-1 cannot be reached; it goes on by itself when that is back. Whether bob was paid only shard-1 can say."
        );
    }

    #[test]
    fn what_is_parked_waits_for_a_person_and_says_what_is_decided() {
        let tried = || says(0, FenceState::Tried);
        let open = picture(Phase::Held, Attention::Parked, tried(), says(1, FenceState::Tried));
        let paid = picture(Phase::Held, Attention::Parked, tried(), says(1, FenceState::Confirmed));

        assert!(!diagnose(&open).recovers_by_itself);
        assert!(diagnose(&open).next_command.starts_with("tccctl parked requeue "));
        assert!(
            diagnose(&open).sentence.contains("a trigger raises. Nothing is decided; the funds stay frozen.")
        );
        assert!(diagnose(&paid).sentence.contains("bob is paid, which is final; do not cancel."));
    }

    #[test]
    fn participants_that_contradict_each_other_are_for_the_audit() {
        let refused = says(1, FenceState::Refused(Refusal::AccountBlocked));
        let wrong = [
            picture(Phase::Held, Attention::Parked, says(0, FenceState::Confirmed), refused.clone()),
            picture(Phase::Confirmed, Attention::None, says(0, FenceState::Tried), refused),
            picture(
                Phase::Cancelled,
                Attention::None,
                says(0, FenceState::Tried),
                says(1, FenceState::Confirmed),
            ),
        ];

        for wrong in wrong {
            let diagnosis = diagnose(&wrong);

            assert!(!diagnosis.recovers_by_itself, "{diagnosis:?}");
            assert_eq!(diagnosis.next_command, "tccctl audit run");
        }
    }

    #[test]
    fn a_cancel_is_unsafe_as_soon_as_any_branch_is_confirmed_and_says_how_much_is_at_stake() {
        let judge = |debit, credit| force::judge(&picture(Phase::Held, Attention::Parked, debit, credit));
        let tried = says(0, FenceState::Tried);

        assert_eq!(judge(tried.clone(), says(1, FenceState::Tried)), None);
        assert_eq!(judge(tried.clone(), Says::Nothing("gone".into())), None, "the pivot will say");
        let paid = judge(tried, says(1, FenceState::Confirmed)).unwrap();
        let taken = judge(says(0, FenceState::Confirmed), says(1, FenceState::Tried)).unwrap();
        assert_eq!((paid.amount, taken.amount), (5, 5));
        assert!(paid.why.contains("would create them") && taken.why.contains("would lose them"));
    }

    #[test]
    fn each_unit_is_somewhere() {
        let held =
            picture(Phase::Held, Attention::None, says(0, FenceState::Tried), says(1, FenceState::Tried));

        let places: Vec<String> = held.money().into_iter().map(|place| place.place).collect();

        let expected = ["frozen in escrow of alice on shard-0", "promised to bob on shard-1, not paid"];
        assert_eq!(places, expected);
        assert_eq!(diagnose(&held).sentence, "It is due and is being paid.");
    }
}
