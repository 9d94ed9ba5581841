//! Requests to domain types, and back. Whatever passes here is trusted afterwards.

use super::reason::invalid;
use crate::{config::Limits, store::Record};
use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};
use tcc_core::{
    AccountId, Amount, Attention, Cause, Currency, Descriptor, IdError, MoneyError, OnMaturity, Phase,
    Timestamp, TransactionId,
    descriptor::{CREDIT, DEBIT},
    round_up,
};
use tcc_ledger::{Account, AccountState, PostingKind, PostingRow};
use tcc_proto::v1;
use tonic::{Request, Status};

/// An id's own time may lie this far before the database's clock, if the id is new.
const ID_MAX_AGE: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// And this far after it.
const ID_MAX_LEAD: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// How long a call waits when it has no deadline of its own, and the longest that it can ask for.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// How long to wait for an answer: a little less than the client does, so that it gets one.
pub fn patience<T>(request: &Request<T>) -> Duration {
    let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let asked = header.and_then(grpc_timeout).unwrap_or(PATIENCE.0);
    let margin = (asked / 10).min(Duration::from_millis(100));
    asked.min(PATIENCE.1).saturating_sub(margin)
}

/// In which lane a caller's holds wait when more is due than can be paid at once.
pub fn lane(caller: &str) -> u8 {
    let mut hasher = DefaultHasher::new();
    caller.hash(&mut hasher);
    hasher.finish() as u8
}

/// `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// The id of something that exists.
pub fn id(text: &str) -> Result<TransactionId, Status> {
    if text.is_empty() {
        return Err(invalid("id", "FIELD_REQUIRED", "is required"));
    }
    TransactionId::parse(text).map_err(|error| match error {
        IdError::NotCanonical => {
            invalid("id", "ID_INVALID", "must be a UUIDv7 in canonical lower-case form (8-4-4-4-12)")
        }
        IdError::NotVersion7 => {
            invalid("id", "ID_INVALID", "must be a UUID of version 7; its time is the id's partition")
        }
    })
}

/// Whether a new transaction may have this id. One that is known is answered whatever its age, so this is judged last.
pub fn fresh_id(id: TransactionId, now: Timestamp) -> Result<(), Status> {
    let time = id.time();
    if time < now - ID_MAX_AGE || time > now + ID_MAX_LEAD {
        let message = format!(
            "the time in a new id must lie within 24 hours before and 5 minutes after {now}, not at {time}"
        );
        return Err(invalid("id", "ID_TIME_OUT_OF_RANGE", message));
    }
    Ok(())
}

/// A hold as asked for. Its shape is right; whether its due time still is, [`fresh_due`] says.
pub fn hold(request: &v1::CreateHoldRequest, limits: &Limits) -> Result<Descriptor, Status> {
    let payer = account("payer", &request.payer)?;
    let payee = account("payee", &request.payee)?;
    if payer == payee {
        return Err(invalid("payee", "SAME_ACCOUNT", "must be another account than the payer"));
    }
    let (amount, currency) = money(request.amount.as_ref(), limits)?;
    let due_at = request.due_at.ok_or_else(|| invalid("due_at", "FIELD_REQUIRED", "is required"))?;
    let due_at = time("due_at", due_at)?;
    let on_maturity = match v1::OnMaturity::try_from(request.on_maturity) {
        Ok(v1::OnMaturity::Confirm) => OnMaturity::Confirm,
        Ok(v1::OnMaturity::Cancel) => OnMaturity::Cancel,
        Ok(v1::OnMaturity::Unspecified) => {
            let message =
                "is required: say whether the hold pays (CONFIRM) or is released (CANCEL) when it is due";
            return Err(invalid("on_maturity", "FIELD_REQUIRED", message));
        }
        Err(_) => return Err(invalid("on_maturity", "FIELD_INVALID", "is not a value of OnMaturity")),
    };
    Ok(Descriptor::hold(payer, payee, amount, currency, due_at, on_maturity))
}

/// Whether a new hold may fall due then.
pub fn fresh_due(due_at: Timestamp, now: Timestamp, limits: &Limits) -> Result<(), Status> {
    if due_at <= now {
        return Err(invalid(
            "due_at",
            "DUE_TIME_IN_PAST",
            format!("must be later than the server's time, {now}"),
        ));
    }
    let last = now + jiff::SignedDuration::from_hours(24 * i64::from(limits.max_maturity_days));
    if due_at > last {
        return Err(invalid("due_at", "DUE_TIME_TOO_FAR", format!("must not be later than {last}")));
    }
    Ok(())
}

/// An account id.
pub fn account(field: &str, text: &str) -> Result<AccountId, Status> {
    if text.is_empty() {
        return Err(invalid(field, "FIELD_REQUIRED", "is required"));
    }
    AccountId::parse(text).map_err(|error| invalid(field, "ACCOUNT_ID_INVALID", error.to_string()))
}

/// A currency.
pub fn currency(field: &str, text: &str) -> Result<Currency, Status> {
    if text.is_empty() {
        return Err(invalid(field, "FIELD_REQUIRED", "is required"));
    }
    Currency::parse(text).map_err(|error| invalid(field, "CURRENCY_INVALID", error.to_string()))
}

/// An amount of money.
pub fn money(amount: Option<&v1::Amount>, limits: &Limits) -> Result<(Amount, Currency), Status> {
    let amount = amount.ok_or_else(|| invalid("amount", "FIELD_REQUIRED", "is required"))?;
    let currency = currency("amount.currency", &amount.currency)?;
    let too_large = MoneyError::TooLarge(limits.max_amount);
    let value = Amount::new(amount.value)
        .and_then(|value| if value.get() > limits.max_amount { Err(too_large.clone()) } else { Ok(value) });
    let value = value.map_err(|error| match error {
        MoneyError::NotPositive => invalid("amount.value", "AMOUNT_NOT_POSITIVE", "must be 1 or more"),
        _ => invalid("amount.value", "AMOUNT_TOO_LARGE", format!("must be at most {}", limits.max_amount)),
    })?;
    Ok((value, currency))
}

/// A point in time, rounded up to microseconds.
fn time(field: &str, time: prost_types::Timestamp) -> Result<Timestamp, Status> {
    let wrong = || {
        invalid(
            field,
            "TIME_INVALID",
            "must be between the years 1 and 9999, with 0 to 999999999 nanoseconds",
        )
    };
    if !(0..1_000_000_000).contains(&time.nanos) {
        return Err(wrong());
    }
    Timestamp::new(time.seconds, time.nanos).map(round_up).map_err(|_| wrong())
}

/// A hold as the API shows it.
pub fn hold_view(record: &Record) -> v1::Hold {
    let Record { transaction, standing, .. } = record;
    let (debit, credit) = (transaction.branch(DEBIT), transaction.branch(CREDIT));
    v1::Hold {
        id: transaction.id.to_string(),
        phase: phase(standing.phase).into(),
        attention: attention(standing.attention).into(),
        payer: debit.account.to_string(),
        payee: credit.account.to_string(),
        amount: Some(v1::Amount { value: debit.amount.get(), currency: debit.currency.to_string() }),
        on_maturity: match transaction.descriptor.on_maturity {
            OnMaturity::Confirm => v1::OnMaturity::Confirm,
            OnMaturity::Cancel => v1::OnMaturity::Cancel,
        }
        .into(),
        due_at: Some(proto_time(transaction.descriptor.due_at)),
        cause: standing.cause.map_or(v1::Cause::Unspecified, cause).into(),
        reason: standing.reason.clone().unwrap_or_default(),
        created_at: Some(proto_time(standing.created_at)),
        held_at: standing.held_at.map(proto_time),
        decided_at: standing.decided_at.map(proto_time),
        settled_at: standing.settled_at.map(proto_time),
    }
}

/// An account as the API shows it.
pub fn account_view(id: &AccountId, account: &Account) -> v1::Account {
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
        created_at: Some(proto_time(account.created_at)),
    }
}

/// A posting as the API shows it.
pub fn posting_view(id: &AccountId, currency: &Currency, posting: &PostingRow) -> v1::Posting {
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
        recorded_at: Some(proto_time(posting.recorded_at)),
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

fn cause(cause: Cause) -> v1::Cause {
    match cause {
        Cause::Refused => v1::Cause::Refused,
        Cause::Vetoed => v1::Cause::Vetoed,
        Cause::Requested => v1::Cause::Requested,
        Cause::TimedOut => v1::Cause::TimedOut,
        Cause::Matured => v1::Cause::Matured,
        Cause::Operator => v1::Cause::Operator,
    }
}

/// A time as protobuf has it.
pub fn proto_time(time: Timestamp) -> prost_types::Timestamp {
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
    fn a_call_waits_a_little_less_than_its_client() {
        let mut request = Request::new(());
        assert_eq!(patience(&request), Duration::from_millis(9_900));

        for (header, expected_ms) in
            [("500m", 450), ("2S", 1_900), ("99999999H", 59_900), ("x", 9_900), ("", 9_900)]
        {
            request.metadata_mut().insert("grpc-timeout", header.parse().unwrap());
            assert_eq!(patience(&request), Duration::from_millis(expected_ms), "{header:?}");
        }
    }

    #[test]
    fn a_time_finer_than_a_microsecond_is_rounded_up() {
        let parsed = time("due_at", prost_types::Timestamp { seconds: 1, nanos: 1 }).unwrap();

        assert_eq!(parsed.as_microsecond(), 1_000_001);
        assert!(time("due_at", prost_types::Timestamp { seconds: 1, nanos: -1 }).is_err());
        assert!(time("due_at", prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }).is_err());
    }
}
