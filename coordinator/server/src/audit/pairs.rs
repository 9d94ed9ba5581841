//! Transactions against their fences on all shards.
//!
//! Rows of different servers are never read at one instant, and everything goes on working meanwhile. The order of reading
//! makes up for it: a phase is read before the fences, so what a final phase claims must already be true of them; and what
//! contradicts nevertheless is only suspected, and read again, since fences only move towards their end. What still
//! contradicts then is a finding.

use super::{AuditError, Finding};
use crate::{
    shards::Shards,
    store::{Record, Store},
};
use futures::future::try_join_all;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};
use tcc_core::{Cause, FenceState, Phase, TransactionId};
use tcc_ledger::{BranchRow, Branches};
use uuid::Uuid;

/// How often, and how long apart, what is suspected is read again.
const SECOND_LOOKS: (u32, Duration) = (5, Duration::from_millis(500));
/// A branch without a transaction is an orphan after this; the sweep has had its chance by then.
const ORPHAN_AFTER_US: i64 = 60_000_000;

/// The fences of one transaction, with the names of their shards.
type Fences<'a> = Vec<(&'a str, BranchRow)>;
/// Those of many.
type AllFences<'a> = HashMap<TransactionId, Fences<'a>>;

/// What comparing transactions with fences came to.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Whether there are fences without a transaction for which it is too early to say: the sweep may be about to rebuild it.
    pub is_early: bool,
    /// The accounts that the fences name, by shard.
    pub accounts: HashMap<String, BTreeSet<String>>,
}

/// Compares transactions, read before this, with fences.
pub(super) async fn compare(
    store: &Store,
    shards: &Shards,
    records: Vec<Record>,
    which: Branches<'_>,
) -> Result<Compared, AuditError> {
    let fences = read(shards, which).await?;
    let mut compared = Compared::default();
    for (shard, row) in fences.values().flatten() {
        let accounts = compared.accounts.entry((*shard).to_owned()).or_default();
        accounts.insert(row.account.clone());
    }
    for (shard, row) in orphans(&records, &fences) {
        if row.age_us <= ORPHAN_AFTER_US {
            compared.is_early = true;
        } else if store.get(row.transaction).await?.is_none() {
            // Otherwise it was committed after the others were read: its id is the caller's.
            compared.findings.push(orphan(shard, row));
        }
    }
    let mut suspects = contradictions(records, fences);
    for _ in 0..SECOND_LOOKS.0 {
        if suspects.is_empty() {
            break;
        }
        tokio::time::sleep(SECOND_LOOKS.1).await;
        let ids: Vec<Uuid> = suspects.keys().map(|id| id.uuid()).collect();
        let again = store.get_all(&ids).await?;
        suspects = contradictions(again, read(shards, Branches::Of(&ids)).await?);
    }
    compared.findings.extend(suspects.into_values().flatten());
    Ok(compared)
}

/// Reads fences of every shard, side by side. Issues are no transactions.
async fn read<'a>(shards: &'a Shards, which: Branches<'_>) -> Result<AllFences<'a>, AuditError> {
    let mut fences: AllFences<'a> = HashMap::new();
    let reads = try_join_all(shards.all().iter().map(|shard| shard.branches(which))).await?;
    for (shard, rows) in shards.all().iter().zip(reads) {
        for row in rows.into_iter().filter(|row| !row.role.is_at_once()) {
            fences.entry(row.transaction).or_default().push((shard.name(), row));
        }
    }
    Ok(fences)
}

/// Fences for which there is no transaction. The row is committed before the first Try is sent.
fn orphans<'f>(
    records: &[Record],
    fences: &'f AllFences<'_>,
) -> impl Iterator<Item = (&'f str, &'f BranchRow)> {
    let known: HashSet<TransactionId> = records.iter().map(Record::id).collect();
    let unknown = fences.iter().filter(move |(id, _)| !known.contains(id));
    unknown.flat_map(|(_, fences)| fences.iter().map(|(shard, row)| (*shard, row)))
}

fn orphan(shard: &str, row: &BranchRow) -> Finding {
    Finding {
        kind: "ORPHAN_BRANCH".into(),
        shard: shard.to_owned(),
        transaction: row.transaction.to_string(),
        account: row.account.clone(),
        expected: "a transaction of the coordinator".into(),
        found: format!("branch {} {:?} without one", row.branch, row.state),
    }
}

/// What contradicts among some transactions that were read before their fences.
fn contradictions(records: Vec<Record>, mut fences: AllFences<'_>) -> HashMap<TransactionId, Vec<Finding>> {
    let suspected = records.iter().map(|record| {
        let fences = fences.remove(&record.id()).unwrap_or_default();
        (record.id(), contradictions_of(record, &fences))
    });
    suspected.filter(|(_, findings)| !findings.is_empty()).collect()
}

/// The invariants between one transaction, read first, and its fences, read after it.
fn contradictions_of(record: &Record, fences: &Fences<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let transaction = &record.transaction;
    let standing = &record.standing;
    let mut add = |kind: &str, shard: &str, account: &str, expected: String, found: String| {
        let (kind, shard, account) = (kind.to_owned(), shard.to_owned(), account.to_owned());
        findings.push(Finding {
            kind,
            shard,
            transaction: transaction.id.to_string(),
            account,
            expected,
            found,
        });
    };

    for (shard, fence) in fences {
        let Some(branch) = transaction.descriptor.branches.get(usize::from(fence.branch)) else {
            add(
                "UNKNOWN_BRANCH",
                shard,
                &fence.account,
                "no such branch".into(),
                format!("branch {}", fence.branch),
            );
            continue;
        };
        if fence.descriptor != transaction.encoded {
            let expected = "the descriptor of the coordinator".into();
            add("DESCRIPTOR_MISMATCH", shard, &fence.account, expected, "another one".into());
        }
        let leg = branch.leg();
        let agrees = leg.is_some_and(|leg| {
            (fence.account.as_str(), fence.amount, fence.role)
                == (leg.account.as_str(), leg.amount.get(), leg.role)
        });
        if !agrees {
            let expected = leg.map_or("a branch that is not the ledger's".to_owned(), |leg| {
                format!("{:?} of {} on {}", leg.role, leg.amount.get(), leg.account)
            });
            let found = format!("{:?} of {} on {}", fence.role, fence.amount, fence.account);
            add("BRANCH_MISMATCH", shard, &fence.account, expected, found);
        }
    }

    // Only the ledger's fences can be read. Where the pivot is not among them, the ledger's branches follow their lead.
    let lead = transaction.descriptor.lead();
    let state =
        |index: u16| fences.iter().find(|(_, fence)| fence.branch == index).map(|(_, fence)| fence.state);
    let states: Vec<Option<FenceState>> =
        transaction.descriptor.legs().map(|(index, _)| state(index)).collect();
    let found = format!("{:?} with fences {states:?}", standing.phase);
    let pivot = lead.and_then(state);
    let others = || {
        let followers = transaction.descriptor.legs().map(|(index, _)| index);
        followers.filter(|index| Some(*index) != lead).map(state)
    };
    let open_or_confirmed = |state| matches!(state, Some(FenceState::Tried | FenceState::Confirmed));
    if pivot == Some(FenceState::Confirmed) && others().any(|state| !open_or_confirmed(state)) {
        add("MONEY_CREATED", "", "", "every other branch tried or confirmed".into(), found.clone());
    }
    if pivot != Some(FenceState::Confirmed) && others().any(|state| state == Some(FenceState::Confirmed)) {
        add("MONEY_LOST", "", "", "no branch confirmed before the pivot".into(), found.clone());
    }
    let undone = |state: &Option<FenceState>| {
        matches!(
            state,
            Some(
                FenceState::Refused(_) | FenceState::Cancelled | FenceState::Vetoed(_) | FenceState::Stopped
            )
        )
    };
    let was_tried = |state: &Option<FenceState>| {
        matches!(
            state,
            Some(
                FenceState::Tried
                    | FenceState::Confirming
                    | FenceState::Confirmed
                    | FenceState::Cancelled
                    | FenceState::Vetoed(_)
            )
        )
    };
    let fits = match standing.phase {
        Phase::Trying | Phase::Cancelling => true,
        Phase::Held | Phase::Confirming => states.iter().all(was_tried),
        Phase::Confirmed => states.iter().all(|state| *state == Some(FenceState::Confirmed)),
        Phase::Cancelled => states.iter().all(undone),
    };
    if !fits {
        let expected = match standing.phase {
            Phase::Confirmed => "every fence confirmed",
            Phase::Cancelled => "every fence refused, cancelled, vetoed or stopped",
            _ => "every fence tried, or decided after that",
        };
        add("PHASE_MISMATCH", "", "", expected.into(), found);
    }

    let due_at = transaction.descriptor.due_at;
    let decided_early = standing.decided_at.is_some_and(|decided| decided < due_at);
    let decided = || format!("{:?} at {:?}", standing.phase, standing.decided_at);
    if standing.cause == Some(Cause::Matured) && decided_early {
        add("DECIDED_EARLY", "", "", format!("matured at {due_at} or later"), decided());
    }
    let cancelled = matches!(standing.phase, Phase::Cancelling | Phase::Cancelled);
    if standing.cause == Some(Cause::Requested) && cancelled && !standing.flipped && !decided_early {
        add("CANCELLED_LATE", "", "", format!("cancelled before {due_at}"), decided());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Place, record::Standing};
    use std::sync::Arc;
    use tcc_core::{
        AccountId, Amount, Attention, Currency, Descriptor, OnMaturity, Refusal, Role, Timestamp, Transaction,
    };

    fn record(phase: Phase, cause: Option<Cause>, decided_us: Option<i64>) -> Record {
        let descriptor = Descriptor::hold(
            AccountId::parse("alice").unwrap(),
            AccountId::parse("bob").unwrap(),
            Amount::new(5).unwrap(),
            Currency::parse("GOLD").unwrap(),
            Timestamp::from_microsecond(1_000).unwrap(),
            OnMaturity::Confirm,
        );
        let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [3; 10]);
        let standing = Standing {
            phase,
            cause,
            attention: Attention::None,
            decided_at: decided_us.map(|us| Timestamp::from_microsecond(us).unwrap()),
            ..Standing::begun(Timestamp::UNIX_EPOCH)
        };
        let transaction = Arc::new(Transaction::new(id, descriptor));
        Record { transaction, place: Place::default(), standing }
    }

    fn kinds(record: &Record, debit: Option<FenceState>, credit: Option<FenceState>) -> Vec<String> {
        let fence = |index: u16, state| {
            let leg = record.transaction.leg(index).unwrap();
            let row = BranchRow {
                transaction: record.id(),
                branch: index,
                role: leg.role,
                state,
                account: leg.account.to_string(),
                amount: 5,
                descriptor: record.transaction.encoded.clone(),
                age_us: 0,
            };
            ("shard-0", row)
        };
        let fences = [debit.map(|state| fence(0, state)), credit.map(|state| fence(1, state))];
        contradictions_of(record, &fences.into_iter().flatten().collect())
            .into_iter()
            .map(|finding| finding.kind)
            .collect()
    }

    #[test]
    fn what_the_protocol_leaves_is_no_finding() {
        use FenceState::{Cancelled, Confirmed, Refused, Stopped, Tried, Vetoed};
        let no = Refusal::AccountBlocked;
        let lawful = [
            (Phase::Trying, None, None),
            (Phase::Trying, Some(Tried), None),
            (Phase::Held, Some(Tried), Some(Tried)),
            (Phase::Confirming, Some(Tried), Some(Confirmed)),
            (Phase::Confirming, Some(Confirmed), Some(Confirmed)),
            (Phase::Confirmed, Some(Confirmed), Some(Confirmed)),
            (Phase::Cancelling, Some(Tried), Some(Vetoed(no))),
            (Phase::Cancelled, Some(Refused(no)), Some(Stopped)),
            (Phase::Cancelled, Some(Cancelled), Some(Cancelled)),
        ];
        for (phase, debit, credit) in lawful {
            assert!(
                kinds(&record(phase, None, None), debit, credit).is_empty(),
                "{phase:?} {debit:?} {credit:?}"
            );
        }
    }

    #[test]
    fn money_that_was_created_or_lost_is_found() {
        use FenceState::{Cancelled, Confirmed, Stopped, Tried};
        let confirming = record(Phase::Confirming, None, None);

        for debit in [None, Some(Cancelled), Some(Stopped)] {
            assert!(
                kinds(&confirming, debit, Some(Confirmed)).contains(&"MONEY_CREATED".to_owned()),
                "{debit:?}"
            );
        }
        for credit in [None, Some(Tried), Some(Cancelled)] {
            assert!(
                kinds(&confirming, Some(Confirmed), credit).contains(&"MONEY_LOST".to_owned()),
                "{credit:?}"
            );
        }
    }

    #[test]
    fn branches_elsewhere_are_no_finding_and_the_ledgers_own_must_agree() {
        use FenceState::{Cancelled, Confirmed, Tried};
        let seats = tcc_core::Request {
            participant: tcc_core::ParticipantName::parse("seats").unwrap(),
            operation: String::new(),
            payload: Vec::new(),
        };
        let with_seat = |phase| {
            let hold = record(phase, None, None);
            let mut descriptor = hold.transaction.descriptor.clone();
            descriptor.branches.push(tcc_core::Branch::Other(seats.clone()));
            (descriptor.pivot, descriptor.owner) = (2, Some("shop".into()));
            Record { transaction: Arc::new(Transaction::new(hold.id(), descriptor)), ..hold }
        };

        assert!(kinds(&with_seat(Phase::Confirmed), Some(Confirmed), Some(Confirmed)).is_empty());
        assert!(kinds(&with_seat(Phase::Confirming), Some(Tried), Some(Tried)).is_empty());
        assert!(kinds(&with_seat(Phase::Confirming), Some(Tried), Some(Confirmed)).is_empty());
        assert!(kinds(&with_seat(Phase::Cancelled), Some(Cancelled), Some(Cancelled)).is_empty());
        for (debit, credit, kind) in
            [(Cancelled, Confirmed, "MONEY_CREATED"), (Confirmed, Tried, "MONEY_LOST")]
        {
            assert!(
                kinds(&with_seat(Phase::Confirming), Some(debit), Some(credit)).contains(&kind.to_owned())
            );
        }
    }

    #[test]
    fn a_final_phase_that_its_fences_do_not_bear_out_is_found() {
        use FenceState::{Cancelled, Confirmed, Tried};

        assert_eq!(
            kinds(&record(Phase::Confirmed, None, None), Some(Tried), Some(Confirmed)),
            ["PHASE_MISMATCH"]
        );
        assert_eq!(
            kinds(&record(Phase::Cancelled, None, None), Some(Tried), Some(Cancelled)),
            ["PHASE_MISMATCH"]
        );
        assert_eq!(kinds(&record(Phase::Cancelled, None, None), None, Some(Cancelled)), ["PHASE_MISMATCH"]);
        assert_eq!(kinds(&record(Phase::Held, None, None), None, Some(Tried)), ["PHASE_MISMATCH"]);
    }

    #[test]
    fn a_decision_at_the_wrong_time_is_found() {
        use FenceState::{Cancelled, Confirmed};
        let early = record(Phase::Confirmed, Some(Cause::Matured), Some(999));
        let late = record(Phase::Cancelled, Some(Cause::Requested), Some(1_000));

        assert_eq!(kinds(&early, Some(Confirmed), Some(Confirmed)), ["DECIDED_EARLY"]);
        assert_eq!(kinds(&late, Some(Cancelled), Some(Cancelled)), ["CANCELLED_LATE"]);
        let in_time = record(Phase::Confirmed, Some(Cause::Requested), Some(999));
        assert!(kinds(&in_time, Some(Confirmed), Some(Confirmed)).is_empty());
    }

    #[test]
    fn a_branch_that_is_not_what_the_coordinator_knows_is_found() {
        let record = record(Phase::Held, None, None);
        let leg = record.transaction.leg(0).unwrap();
        let row = BranchRow {
            transaction: record.id(),
            branch: 0,
            role: leg.role,
            state: FenceState::Tried,
            account: leg.account.to_string(),
            amount: 6,
            descriptor: vec![1],
            age_us: 0,
        };
        let credit = BranchRow {
            branch: 1,
            role: Role::Credit,
            account: "bob".into(),
            amount: 5,
            descriptor: record.transaction.encoded.clone(),
            ..row.clone()
        };

        let found = contradictions_of(&record, &vec![("shard-0", row), ("shard-1", credit)]);

        let kinds: Vec<_> = found.iter().map(|finding| finding.kind.as_str()).collect();
        assert_eq!(kinds, ["DESCRIPTOR_MISMATCH", "BRANCH_MISMATCH"]);
    }
}
