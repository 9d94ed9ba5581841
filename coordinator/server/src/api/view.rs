//! Domain types as the API shows them. Nothing is checked here: what a request asks for is read by `convert`.

use crate::store::{Record, Seen};
use tcc_core::{
    AccountId, Attention, Branch, Cause, Currency, Descriptor, Leg, OnMaturity, Phase, Role, Timestamp,
};
use tcc_ledger::{Account, AccountState, OpenDebit, PostingKind, PostingRow};
use tcc_participant::BreakerState;
use tcc_proto::v1;

/// What a request calls the account of a leg.
pub fn account_field(descriptor: &Descriptor, index: u16, leg: &Leg) -> String {
    match (descriptor.as_hold(), leg.role) {
        (Some(_), Role::Debit) => "payer".to_owned(),
        (Some(_), _) => "payee".to_owned(),
        (None, Role::Debit) => format!("branches[{index}].debit.account"),
        (None, _) => format!("branches[{index}].credit.account"),
    }
}

/// What identifies how a hold stands: another one in each phase.
pub fn etag(seen: Seen) -> String {
    (seen.phase.number() * 2 + i16::from(seen.flipped)).to_string()
}

/// How a hold stands that has this etag; `None` if none has.
pub fn seen(text: &str) -> Option<Seen> {
    let number: i16 = text.parse().ok()?;
    let seen = Seen { phase: Phase::from_number(number / 2)?, flipped: number % 2 == 1 };
    (etag(seen) == text).then_some(seen)
}

/// A hold as the API shows it.
pub fn hold(record: &Record) -> v1::Hold {
    let Record { transaction, standing, .. } = record;
    v1::Hold {
        id: transaction.id.to_string(),
        phase: phase(standing.phase).into(),
        attention: attention(standing.attention).into(),
        due_at: Some(time(record.due_at())),
        cause: standing.cause.map_or(v1::Cause::Unspecified, cause).into(),
        reason: standing.reason.clone().unwrap_or_default(),
        created_at: Some(time(standing.created_at)),
        held_at: standing.held_at.map(time),
        decided_at: standing.decided_at.map(time),
        settled_at: standing.settled_at.map(time),
        etag: etag(standing.seen()),
        ..asked(&transaction.descriptor)
    }
}

/// A leg's amount.
pub fn amount_of(leg: &Leg) -> v1::Amount {
    v1::Amount { value: leg.amount.get(), currency: leg.currency.to_string() }
}

/// A hold that there is not yet. Of a transaction that is no hold, for operators: what it has in common with one; payer and payee
/// are the accounts of its only debit and its only credit.
pub fn asked(descriptor: &Descriptor) -> v1::Hold {
    let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let only = |role| {
        let mut legs = descriptor.legs().filter(|(_, leg)| leg.role == role);
        legs.next().filter(|_| legs.next().is_none()).map(|(_, leg)| leg)
    };
    let account = |leg: Option<&Leg>| leg.map_or(String::new(), |leg| leg.account.to_string());
    let (debit, credit) = (only(Role::Debit), only(Role::Credit));
    v1::Hold {
        payer: account(debit),
        payee: account(credit),
        amount: debit.or(credit).map(amount_of),
        on_maturity: maturity(descriptor.on_maturity).into(),
        due_at: (!descriptor.is_due_at_once()).then(|| time(descriptor.due_at)),
        labels: descriptor.labels.iter().map(label).collect(),
        ..v1::Hold::default()
    }
}

/// A transaction as the API shows it.
pub fn transaction(record: &Record) -> v1::Transaction {
    let Record { transaction, standing, .. } = record;
    v1::Transaction {
        id: transaction.id.to_string(),
        phase: phase(standing.phase).into(),
        attention: attention(standing.attention).into(),
        due_at: Some(time(record.due_at())),
        cause: standing.cause.map_or(v1::Cause::Unspecified, cause).into(),
        reason: standing.reason.clone().unwrap_or_default(),
        created_at: Some(time(standing.created_at)),
        // What was made anew after a loss may have been held; that is not known before it is tried again.
        held_at: standing.held_at.filter(|_| standing.phase != Phase::Trying).map(time),
        decided_at: standing.decided_at.map(time),
        settled_at: standing.settled_at.map(time),
        etag: etag(standing.seen()),
        ..asked_transaction(&transaction.descriptor)
    }
}

/// A transaction that there is not yet.
pub fn asked_transaction(descriptor: &Descriptor) -> v1::Transaction {
    use v1::transaction_part::Part;
    let branches = descriptor.branches.iter().map(|branch| {
        let part = match branch {
            Branch::Ledger(leg) => {
                let entry =
                    v1::LedgerEntry { account: leg.account.to_string(), amount: Some(amount_of(leg)) };
                match leg.role {
                    Role::Debit | Role::Burn => Part::Debit(entry),
                    Role::Credit | Role::Issue => Part::Credit(entry),
                }
            }
            Branch::Other(request) => Part::Call(v1::ParticipantCall {
                participant: request.participant.to_string(),
                operation: request.operation.clone(),
                payload: request.payload.clone(),
            }),
        };
        v1::TransactionPart { part: Some(part) }
    });
    let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    v1::Transaction {
        branches: branches.collect(),
        pivot: descriptor.pivot.into(),
        on_maturity: maturity(descriptor.on_maturity).into(),
        due_at: (!descriptor.is_due_at_once()).then(|| time(descriptor.due_at)),
        immediate: descriptor.is_due_at_once(),
        labels: descriptor.labels.iter().map(label).collect(),
        caller: descriptor.owner.clone().unwrap_or_default(),
        ..v1::Transaction::default()
    }
}

/// What an account's open debit is for, as its shard knows it: a hold, or another transaction.
pub fn open(open: &OpenDebit, currency: &Currency) -> v1::OpenHold {
    let OpenDebit { transaction, amount } = open;
    let v1::Hold { payee, due_at, on_maturity, .. } = asked(&transaction.descriptor);
    let amount = Some(v1::Amount { value: *amount, currency: currency.to_string() });
    v1::OpenHold { id: transaction.id.to_string(), payee, amount, due_at, on_maturity }
}

/// As the API has it.
pub fn maturity(on_maturity: OnMaturity) -> v1::OnMaturity {
    match on_maturity {
        OnMaturity::Confirm => v1::OnMaturity::Confirm,
        OnMaturity::Cancel => v1::OnMaturity::Cancel,
    }
}

/// An account as the API shows it.
pub fn account(id: &AccountId, account: &Account) -> v1::Account {
    v1::Account {
        id: id.to_string(),
        currency: account.currency.to_string(),
        available: account.available,
        held: account.held,
        state: match account.state {
            AccountState::Open => v1::AccountState::Open,
            AccountState::Blocked => v1::AccountState::Blocked,
            AccountState::Closed => v1::AccountState::Closed,
        }
        .into(),
        version: account.version,
        created_at: Some(time(account.created_at)),
    }
}

/// A posting as the API shows it.
pub fn posting(id: &AccountId, currency: &Currency, posting: &PostingRow) -> v1::Posting {
    v1::Posting {
        account: id.to_string(),
        version: posting.version,
        transaction_id: posting.transaction.to_string(),
        kind: match posting.kind {
            PostingKind::Issue => v1::PostingKind::Issue,
            PostingKind::Burn => v1::PostingKind::Burn,
            PostingKind::Hold => v1::PostingKind::Hold,
            PostingKind::Release => v1::PostingKind::Release,
            PostingKind::Settle => v1::PostingKind::Settle,
            PostingKind::Pay => v1::PostingKind::Pay,
        }
        .into(),
        amount: Some(v1::Amount { value: posting.amount, currency: currency.to_string() }),
        available_after: posting.available_after,
        held_after: posting.held_after,
        recorded_at: Some(time(posting.recorded_at)),
    }
}

/// A phase as the API names it.
pub fn phase(phase: Phase) -> v1::Phase {
    match phase {
        Phase::Trying => v1::Phase::Trying,
        Phase::Held => v1::Phase::Held,
        Phase::Confirming => v1::Phase::Confirming,
        Phase::Confirmed => v1::Phase::Confirmed,
        Phase::Cancelling => v1::Phase::Cancelling,
        Phase::Cancelled => v1::Phase::Cancelled,
    }
}

/// Attention as the API names it.
pub fn attention(attention: Attention) -> v1::Attention {
    match attention {
        Attention::None => v1::Attention::None,
        Attention::Retrying => v1::Attention::Retrying,
        Attention::Stuck => v1::Attention::Stuck,
        Attention::Parked => v1::Attention::Parked,
        Attention::Paused => v1::Attention::Paused,
    }
}

/// A cause as the API names it.
pub fn cause(cause: Cause) -> v1::Cause {
    match cause {
        Cause::Refused => v1::Cause::Refused,
        Cause::Vetoed => v1::Cause::Vetoed,
        Cause::Requested => v1::Cause::Requested,
        Cause::TimedOut => v1::Cause::TimedOut,
        Cause::Matured => v1::Cause::Matured,
        Cause::Operator => v1::Cause::Operator,
    }
}

/// How a breaker stands, as the API names it.
pub fn breaker(state: BreakerState) -> v1::BreakerState {
    match state {
        BreakerState::Closed => v1::BreakerState::Closed,
        BreakerState::HalfOpen => v1::BreakerState::HalfOpen,
        BreakerState::Open => v1::BreakerState::Open,
    }
}

/// A time as protobuf has it.
pub fn time(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_microsecond();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: (micros.rem_euclid(1_000_000) * 1_000) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_another_one_in_each_phase_and_reads_back() {
        let all: Vec<Seen> = Phase::ALL
            .into_iter()
            .flat_map(|phase| [false, true].map(|flipped| Seen { phase, flipped }))
            .collect();

        let etags: std::collections::HashSet<String> = all.iter().map(|seen| etag(*seen)).collect();

        assert_eq!(etags.len(), all.len());
        assert!(all.iter().all(|one| seen(&etag(*one)) == Some(*one)));
        for garbage in ["", "0", "1", "14", "+4", "04", " 4", "x", "99999999999999999999"] {
            assert_eq!(seen(garbage), None, "{garbage:?}");
        }
    }
}
