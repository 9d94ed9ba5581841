//! Answers to domain types. What does not fit is no answer of this API.

use crate::{Account, AccountState, Balance, Branch, Hold, Transaction};
use tcc_core::{
    AccountId, Amount, Attention, Cause, Currency, Labels, MoneyError, OnMaturity, ParticipantName, Phase,
    Timestamp, TransactionId,
};
use tcc_proto::v1::{self, transaction_part::Part};

/// An amount of a currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Money {
    /// In minor units.
    pub amount: Amount,
    /// Of what.
    pub currency: Currency,
}

impl Money {
    /// So many minor units of this currency: `Money::new(500, "GOLD")`.
    ///
    /// # Errors
    ///
    /// [`MoneyError`].
    pub fn new(value: i64, currency: &str) -> Result<Self, MoneyError> {
        Ok(Self { amount: Amount::new(value)?, currency: Currency::parse(currency)? })
    }
}

pub(crate) fn to_amount(money: &Money) -> v1::Amount {
    v1::Amount { value: money.amount.get(), currency: money.currency.to_string() }
}

pub(crate) fn to_time(time: Timestamp) -> prost_types::Timestamp {
    // Both count nanoseconds from the second before.
    let nanos = time.as_nanosecond().rem_euclid(1_000_000_000) as i32;
    let seconds = time.as_nanosecond().div_euclid(1_000_000_000) as i64;
    prost_types::Timestamp { seconds, nanos }
}

pub(crate) fn to_phase(phase: Phase) -> v1::Phase {
    match phase {
        Phase::Trying => v1::Phase::Trying,
        Phase::Held => v1::Phase::Held,
        Phase::Confirming => v1::Phase::Confirming,
        Phase::Confirmed => v1::Phase::Confirmed,
        Phase::Cancelling => v1::Phase::Cancelling,
        Phase::Cancelled => v1::Phase::Cancelled,
    }
}

pub(crate) fn to_maturity(on_maturity: OnMaturity) -> v1::OnMaturity {
    match on_maturity {
        OnMaturity::Confirm => v1::OnMaturity::Confirm,
        OnMaturity::Cancel => v1::OnMaturity::Cancel,
    }
}

/// A hold, which an answer must have.
pub(crate) fn hold(hold: Option<v1::Hold>) -> Result<Hold, String> {
    let hold = hold.ok_or("it has no hold")?;
    Ok(Hold {
        id: TransactionId::parse(&hold.id).map_err(|error| format!("id: {error}"))?,
        phase: phase(hold.phase())?,
        attention: attention(hold.attention())?,
        cause: cause(hold.cause()),
        payer: account_id(&hold.payer)?,
        payee: account_id(&hold.payee)?,
        money: money(hold.amount.as_ref())?,
        on_maturity: on_maturity(hold.on_maturity())?,
        due_at: time("due_at", hold.due_at)?,
        labels: Labels::new(hold.labels).map_err(|error| error.to_string())?,
        reason: hold.reason,
        created_at: time("created_at", hold.created_at)?,
        held_at: time_if_any("held_at", hold.held_at)?,
        decided_at: time_if_any("decided_at", hold.decided_at)?,
        settled_at: time_if_any("settled_at", hold.settled_at)?,
        etag: hold.etag,
    })
}

/// A transaction, which an answer must have.
pub(crate) fn transaction(transaction: Option<v1::Transaction>) -> Result<Transaction, String> {
    let told = transaction.ok_or("it has no transaction")?;
    let (phase, attention, cause) = (phase(told.phase())?, attention(told.attention())?, cause(told.cause()));
    let on_maturity = on_maturity(told.on_maturity())?;
    let branches: Vec<Branch> = told.branches.into_iter().map(branch).collect::<Result<_, _>>()?;
    let pivot = usize::try_from(told.pivot).ok().filter(|pivot| *pivot < branches.len());
    Ok(Transaction {
        id: TransactionId::parse(&told.id).map_err(|error| format!("id: {error}"))?,
        phase,
        attention,
        cause,
        pivot: pivot.ok_or_else(|| format!("it has no branch {}, its pivot", told.pivot))?,
        branches,
        immediate: told.immediate,
        on_maturity,
        due_at: time("due_at", told.due_at)?,
        labels: Labels::new(told.labels).map_err(|error| error.to_string())?,
        reason: told.reason,
        caller: told.caller,
        created_at: time("created_at", told.created_at)?,
        held_at: time_if_any("held_at", told.held_at)?,
        decided_at: time_if_any("decided_at", told.decided_at)?,
        settled_at: time_if_any("settled_at", told.settled_at)?,
        etag: told.etag,
    })
}

fn branch(part: v1::TransactionPart) -> Result<Branch, String> {
    let entry = |entry: v1::LedgerEntry| Ok((account_id(&entry.account)?, money(entry.amount.as_ref())?));
    match part.part {
        Some(Part::Debit(debit)) => entry(debit).map(|(account, money)| Branch::Debit { account, money }),
        Some(Part::Credit(credit)) => entry(credit).map(|(account, money)| Branch::Credit { account, money }),
        Some(Part::Call(call)) => {
            let participant = ParticipantName::parse(&call.participant);
            let participant = participant.map_err(|error| format!("{:?}: {error}", call.participant))?;
            Ok(Branch::Call { participant, operation: call.operation, payload: call.payload })
        }
        None => Err("it has a branch that this client does not know".into()),
    }
}

pub(crate) fn to_part(branch: &Branch) -> v1::TransactionPart {
    let entry = |account: &AccountId, money: &Money| v1::LedgerEntry {
        account: account.to_string(),
        amount: Some(to_amount(money)),
    };
    let part = match branch {
        Branch::Debit { account, money } => Part::Debit(entry(account, money)),
        Branch::Credit { account, money } => Part::Credit(entry(account, money)),
        Branch::Call { participant, operation, payload } => Part::Call(v1::ParticipantCall {
            participant: participant.to_string(),
            operation: operation.clone(),
            payload: payload.clone(),
        }),
    };
    v1::TransactionPart { part: Some(part) }
}

fn on_maturity(on_maturity: v1::OnMaturity) -> Result<OnMaturity, String> {
    match on_maturity {
        v1::OnMaturity::Confirm => Ok(OnMaturity::Confirm),
        v1::OnMaturity::Cancel => Ok(OnMaturity::Cancel),
        v1::OnMaturity::Unspecified => Err("on_maturity is not known".into()),
    }
}

/// An account, which an answer must have.
pub(crate) fn account(account: Option<v1::Account>) -> Result<Account, String> {
    let account = account.ok_or("it has no account")?;
    Ok(Account {
        id: account_id(&account.id)?,
        currency: currency(&account.currency)?,
        state: match account.state() {
            v1::AccountState::Open => AccountState::Open,
            v1::AccountState::Blocked => AccountState::Blocked,
            v1::AccountState::Closed => AccountState::Closed,
            v1::AccountState::Unspecified => return Err("state is not known".into()),
        },
        available: account.available,
        held: account.held,
        version: account.version,
    })
}

pub(crate) fn balance(balance: &v1::GetBalanceResponse) -> Result<Balance, String> {
    Ok(Balance {
        currency: currency(&balance.currency)?,
        available: balance.available,
        held: balance.held,
        version: balance.version,
        recorded_at: time_if_any("recorded_at", balance.recorded_at)?,
    })
}

fn account_id(text: &str) -> Result<AccountId, String> {
    AccountId::parse(text).map_err(|error| format!("{text:?}: {error}"))
}

fn currency(text: &str) -> Result<Currency, String> {
    Currency::parse(text).map_err(|error| format!("{text:?}: {error}"))
}

fn money(amount: Option<&v1::Amount>) -> Result<Money, String> {
    let amount = amount.ok_or("it has no amount")?;
    Money::new(amount.value, &amount.currency).map_err(|error| error.to_string())
}

fn time(field: &str, time: Option<prost_types::Timestamp>) -> Result<Timestamp, String> {
    time_if_any(field, time)?.ok_or_else(|| format!("it has no {field}"))
}

fn time_if_any(field: &str, time: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, String> {
    let read = |time: prost_types::Timestamp| Timestamp::new(time.seconds, time.nanos);
    time.map(read).transpose().map_err(|error| format!("{field}: {error}"))
}

fn phase(phase: v1::Phase) -> Result<Phase, String> {
    match phase {
        v1::Phase::Trying => Ok(Phase::Trying),
        v1::Phase::Held => Ok(Phase::Held),
        v1::Phase::Confirming => Ok(Phase::Confirming),
        v1::Phase::Confirmed => Ok(Phase::Confirmed),
        v1::Phase::Cancelling => Ok(Phase::Cancelling),
        v1::Phase::Cancelled => Ok(Phase::Cancelled),
        v1::Phase::Unspecified => Err("phase is not known".into()),
    }
}

fn attention(attention: v1::Attention) -> Result<Attention, String> {
    match attention {
        v1::Attention::None => Ok(Attention::None),
        v1::Attention::Retrying => Ok(Attention::Retrying),
        v1::Attention::Stuck => Ok(Attention::Stuck),
        v1::Attention::Parked => Ok(Attention::Parked),
        v1::Attention::Paused => Ok(Attention::Paused),
        v1::Attention::Unspecified => Err("attention is not known".into()),
    }
}

/// One that this client does not know is as none: what it decided stands in the phase.
fn cause(cause: v1::Cause) -> Option<Cause> {
    match cause {
        v1::Cause::Unspecified => None,
        v1::Cause::Refused => Some(Cause::Refused),
        v1::Cause::Vetoed => Some(Cause::Vetoed),
        v1::Cause::Requested => Some(Cause::Requested),
        v1::Cause::TimedOut => Some(Cause::TimedOut),
        v1::Cause::Matured => Some(Cause::Matured),
        v1::Cause::Operator => Some(Cause::Operator),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> v1::Hold {
        v1::Hold {
            id: "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".into(),
            phase: v1::Phase::Held.into(),
            attention: v1::Attention::None.into(),
            payer: "alice".into(),
            payee: "bob".into(),
            amount: Some(v1::Amount { value: 5, currency: "GOLD".into() }),
            on_maturity: v1::OnMaturity::Cancel.into(),
            due_at: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 5_000 }),
            created_at: Some(prost_types::Timestamp { seconds: 1_780_000_000, nanos: 0 }),
            labels: [("order".to_owned(), "4711".to_owned())].into(),
            etag: "4".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_hold_is_read_as_it_was_told() {
        let hold = hold(Some(told())).unwrap();

        assert_eq!((hold.phase, hold.cause, hold.on_maturity), (Phase::Held, None, OnMaturity::Cancel));
        assert_eq!(to_time(hold.due_at), told().due_at.unwrap());
        assert_eq!(to_amount(&hold.money), told().amount.unwrap());
        assert_eq!(hold.labels.iter().collect::<Vec<_>>(), [("order", "4711")]);
        assert_eq!((hold.held_at, hold.etag.as_str()), (None, "4"));
    }

    #[test]
    fn what_does_not_fit_is_no_hold() {
        let wrong = |change: fn(&mut v1::Hold)| {
            let mut told = told();
            change(&mut told);
            hold(Some(told)).unwrap_err()
        };

        assert!(wrong(|hold| hold.id = "7".into()).starts_with("id"));
        assert!(wrong(|hold| hold.phase = 99).starts_with("phase"));
        assert!(wrong(|hold| hold.amount = None).contains("no amount"));
        assert!(wrong(|hold| hold.payee = String::new()).contains("account"));
        assert!(wrong(|hold| hold.due_at = None).contains("due_at"));
        assert!(
            wrong(|hold| hold.due_at = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }))
                .contains("due_at")
        );
        assert!(hold(None).is_err());
    }

    #[test]
    fn the_branches_of_a_transaction_go_there_and_back() {
        let account = |id| AccountId::parse(id).unwrap();
        let money = Money::new(5, "GOLD").unwrap();
        let seats = ParticipantName::parse("seats").unwrap();
        let branches = [
            Branch::Debit { account: account("alice"), money: money.clone() },
            Branch::Credit { account: account("bob"), money },
            Branch::Call { participant: seats, operation: "reserve".into(), payload: vec![0, 255] },
        ];
        let told = v1::Transaction {
            id: told().id,
            phase: v1::Phase::Held.into(),
            attention: v1::Attention::None.into(),
            branches: branches.iter().map(to_part).collect(),
            pivot: 2,
            on_maturity: v1::OnMaturity::Confirm.into(),
            due_at: told().due_at,
            created_at: told().created_at,
            ..Default::default()
        };
        let wrong = |change: fn(&mut v1::Transaction)| {
            let mut told = told.clone();
            change(&mut told);
            transaction(Some(told)).unwrap_err()
        };

        let read = transaction(Some(told.clone())).unwrap();

        assert_eq!((read.branches.as_slice(), read.pivot), (&branches[..], 2));
        assert!(wrong(|told| told.pivot = 3).contains("no branch 3"));
        assert!(wrong(|told| told.branches[0].part = None).contains("does not know"));
        assert!(wrong(|told| told.on_maturity = 0).contains("on_maturity"));
        assert!(transaction(None).is_err());
    }

    #[test]
    fn a_time_before_1970_goes_there_and_back() {
        let before = Timestamp::from_nanosecond(-1).unwrap();

        assert_eq!(to_time(before), prost_types::Timestamp { seconds: -1, nanos: 999_999_999 });
        assert_eq!(time("at", Some(to_time(before))), Ok(before));
    }
}
