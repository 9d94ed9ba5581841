//! Requests to domain types. Whatever passes here is trusted afterwards.

use super::{
    page::Filter,
    reason::{Violation, invalid, not_covered, wrong},
};
use crate::{
    auth::Identity,
    config::Limits,
    store::{Record, TraceContext},
};
use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};
use tcc_core::{
    AccountId, Amount, Currency, Descriptor, IdError, IdempotencyKey, LabelError, Labels, Leg, MoneyError,
    OnMaturity, Phase, Role, Timestamp, TransactionId, round_up,
};
use tcc_participant::partitions::first_id;
use tcc_proto::{Reason, v1};
use tonic::{Request, Status};
use uuid::Uuid;

/// An id's own time may lie this far before the database's clock, if the id is new.
pub const ID_MAX_AGE: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// And this far after it.
pub const ID_MAX_LEAD: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// How long a call waits when it has no deadline of its own, and the shortest and the longest that it can ask for.
const PATIENCE: (Duration, Duration, Duration) =
    (Duration::from_secs(10), Duration::from_millis(10), Duration::from_secs(60));

/// How many holds a page has by default, and at most.
pub const PAGE: (usize, usize) = (50, 1_000);

/// How long to wait for an answer: a little less than the client does, so that it gets one.
pub fn patience<T>(request: &Request<T>) -> Duration {
    let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let asked = header.and_then(grpc_timeout).unwrap_or(PATIENCE.0).max(PATIENCE.1);
    let margin = (asked / 10).min(Duration::from_millis(100));
    asked.min(PATIENCE.2).saturating_sub(margin)
}

/// Where in its client's traces a request is, as this server has gone on with them, or as the client says.
pub fn trace<T>(request: &Request<T>) -> Option<TraceContext> {
    let known = request.extensions().get::<TraceContext>().copied();
    let header = || request.metadata().get("traceparent").and_then(|value| value.to_str().ok());
    known.or_else(|| header().and_then(TraceContext::parse))
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
pub fn id(text: &str) -> Result<TransactionId, Violation> {
    if text.is_empty() {
        return Err(required("id"));
    }
    TransactionId::parse(text).map_err(|error| {
        let message = match error {
            IdError::NotCanonical => "must be a UUIDv7 in canonical lower-case form (8-4-4-4-12)",
            IdError::NotVersion7 => "must be a UUID of version 7; its time is the id's partition",
        };
        wrong("id", Reason::IdInvalid, message)
    })
}

/// Whether a new transaction may have this id. One that is known is answered whatever its age, so this is judged last.
pub fn fresh_id(id: TransactionId, now: Timestamp) -> Result<(), Violation> {
    let time = id.time();
    if time < now - ID_MAX_AGE || time > now + ID_MAX_LEAD {
        let message = format!(
            "the time in a new id must lie within 24 hours before and 5 minutes after {now}, not at {time}"
        );
        return Err(Violation {
            bound: Some(("server_time", now.to_string())),
            ..wrong("id", Reason::IdTimeOutOfRange, message)
        });
    }
    Ok(())
}

/// A creation as asked for. Its shape is right; whether its times still are, [`Asked::fresh`] says.
#[derive(Debug, Clone)]
pub struct Asked {
    /// How the caller will know it again.
    pub name: Name,
    /// What is to be created.
    pub descriptor: Descriptor,
    /// It may be due already.
    pub is_due_at_once: bool,
    /// Nothing is to be created.
    pub validate_only: bool,
}

/// How a caller knows a transaction again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// By the id that it chose.
    Id(TransactionId),
    /// By a key of its own.
    Key(IdempotencyKey),
    /// Not before it has an answer.
    None,
}

impl Asked {
    /// Whether it may be created now, if it is new.
    pub fn fresh(&self, now: Timestamp, limits: &Limits) -> Result<(), Violation> {
        if let Name::Id(id) = self.name {
            fresh_id(id, now)?;
        }
        if self.is_due_at_once { Ok(()) } else { fresh_due(self.descriptor.due_at, now, limits) }
    }
}

/// Collects what is wrong, so that a caller is told everything at once.
#[derive(Default)]
pub struct Wrong(pub Vec<Violation>);

impl Wrong {
    /// What is right, or nothing.
    pub fn take<T>(&mut self, result: Result<T, Violation>) -> Option<T> {
        result.map_err(|violation| self.0.push(violation)).ok()
    }
}

/// The fields that holds and transfers have in common.
struct Common<'a> {
    id: &'a str,
    key: &'a str,
    payer: &'a str,
    payee: &'a str,
    amount: Option<&'a v1::Amount>,
    labels: std::collections::HashMap<String, String>,
}

/// A hold as asked for.
pub fn hold(request: v1::CreateHoldRequest, caller: &str, limits: &Limits) -> Result<Asked, Status> {
    let mut wrongs = Wrong::default();
    let v1::CreateHoldRequest {
        id,
        payer,
        payee,
        amount,
        due_at,
        on_maturity,
        idempotency_key,
        labels,
        validate_only,
    } = request;
    let common = Common {
        id: &id,
        key: &idempotency_key,
        payer: &payer,
        payee: &payee,
        amount: amount.as_ref(),
        labels,
    };
    let common = common.read(caller, limits, &mut wrongs);
    let due_at = due_at.ok_or_else(|| required("due_at")).and_then(|due_at| time("due_at", due_at));
    let due_at = wrongs.take(due_at);
    let on_maturity = wrongs.take(action(on_maturity));
    match (common, due_at, on_maturity) {
        (Some((name, transfer)), Some(due_at), Some(on_maturity)) if wrongs.0.is_empty() => {
            let descriptor = Descriptor { due_at, on_maturity, ..transfer };
            Ok(Asked { name, descriptor, is_due_at_once: false, validate_only })
        }
        _ => Err(invalid(&wrongs.0)),
    }
}

/// A hold as asked for, among others. It needs a name, or a lost answer would create it again.
pub fn item(request: v1::CreateHoldRequest, caller: &str, limits: &Limits) -> Result<Asked, Status> {
    let asked = hold(request, caller, limits)?;
    if asked.name == Name::None && !asked.validate_only {
        return Err(name_required().into());
    }
    Ok(asked)
}

/// A transfer as asked for.
pub fn transfer(request: v1::TransferRequest, caller: &str, limits: &Limits) -> Result<Asked, Status> {
    let mut wrongs = Wrong::default();
    let v1::TransferRequest { id, payer, payee, amount, idempotency_key, labels } = request;
    let common = Common {
        id: &id,
        key: &idempotency_key,
        payer: &payer,
        payee: &payee,
        amount: amount.as_ref(),
        labels,
    };
    match common.read(caller, limits, &mut wrongs) {
        Some((Name::None, _)) if wrongs.0.is_empty() => Err(name_required().into()),
        Some((name, descriptor)) if wrongs.0.is_empty() => {
            Ok(Asked { name, descriptor, is_due_at_once: true, validate_only: false })
        }
        _ => Err(invalid(&wrongs.0)),
    }
}

impl Common<'_> {
    fn read(self, caller: &str, limits: &Limits, wrongs: &mut Wrong) -> Option<(Name, Descriptor)> {
        let name = wrongs.take(name(caller, self.id, self.key));
        let payer = wrongs.take(account("payer", self.payer));
        let payee = wrongs.take(account("payee", self.payee));
        if payer.is_some() && payer == payee {
            let message = "must be another account than the payer";
            wrongs.0.push(wrong("payee", Reason::SameAccount, message));
        }
        let money = wrongs.take(money(self.amount, limits));
        let labels = wrongs.take(labels(self.labels));
        let (amount, currency) = money?;
        let name = name?;
        let key = match &name {
            Name::Key(key) => Some(key.clone()),
            Name::Id(_) | Name::None => None,
        };
        let transfer = Descriptor::transfer(payer?, payee?, amount, currency);
        Some((name, Descriptor { labels: labels?, key, ..transfer }))
    }
}

/// How a caller names what it creates.
pub fn name(caller: &str, text: &str, key: &str) -> Result<Name, Violation> {
    match (text, key) {
        ("", "") => Ok(Name::None),
        (text, "") => id(text).map(Name::Id),
        ("", key) => IdempotencyKey::new(caller, key)
            .map(Name::Key)
            .map_err(|error| wrong("idempotency_key", Reason::IdempotencyKeyInvalid, error.to_string())),
        _ => Err(wrong("idempotency_key", Reason::FieldInvalid, "must be empty if there is an id")),
    }
}

/// A lost answer could not be asked for again.
pub fn name_required() -> Violation {
    let message = "is required here, or an id: a lost answer could not be asked for again";
    wrong("idempotency_key", Reason::IdempotencyKeyRequired, message)
}

/// A field that is empty.
pub fn required(field: &str) -> Violation {
    wrong(field, Reason::FieldRequired, "is required")
}

/// Labels.
pub fn labels(labels: std::collections::HashMap<String, String>) -> Result<Labels, Violation> {
    Labels::new(labels).map_err(|error| {
        let reason = match error {
            LabelError::TooMany | LabelError::Key => Reason::LabelInvalid,
            LabelError::TooLong => Reason::TextTooLong,
            LabelError::Control => Reason::TextInvalid,
        };
        wrong("labels", reason, error.to_string())
    })
}

/// What happens at the due time.
pub fn action(on_maturity: i32) -> Result<OnMaturity, Violation> {
    match v1::OnMaturity::try_from(on_maturity) {
        Ok(v1::OnMaturity::Confirm) => Ok(OnMaturity::Confirm),
        Ok(v1::OnMaturity::Cancel) => Ok(OnMaturity::Cancel),
        Ok(v1::OnMaturity::Unspecified) => {
            let message =
                "is required: say whether the hold pays (CONFIRM) or is released (CANCEL) when it is due";
            Err(wrong("on_maturity", Reason::FieldRequired, message))
        }
        Err(_) => Err(wrong("on_maturity", Reason::FieldInvalid, "is not a value of OnMaturity")),
    }
}

/// Whether a new hold may fall due then.
fn fresh_due(due_at: Timestamp, now: Timestamp, limits: &Limits) -> Result<(), Violation> {
    if due_at <= now {
        let message = format!("must be later than the server's time, {now}");
        return Err(Violation {
            bound: Some(("server_time", now.to_string())),
            ..wrong("due_at", Reason::DueTimeInPast, message)
        });
    }
    let last = now + jiff::SignedDuration::from_hours(24 * i64::from(limits.max_maturity_days));
    if due_at > last {
        let message = format!("must not be later than {last}");
        return Err(Violation {
            bound: Some(("max", last.to_string())),
            ..wrong("due_at", Reason::DueTimeTooFar, message)
        });
    }
    Ok(())
}

/// An account id.
pub fn account(field: &str, text: &str) -> Result<AccountId, Violation> {
    if text.is_empty() {
        return Err(required(field));
    }
    AccountId::parse(text).map_err(|error| wrong(field, Reason::AccountIdInvalid, error.to_string()))
}

/// A currency.
pub fn currency(field: &str, text: &str) -> Result<Currency, Violation> {
    if text.is_empty() {
        return Err(required(field));
    }
    Currency::parse(text).map_err(|error| wrong(field, Reason::CurrencyInvalid, error.to_string()))
}

/// An amount of money.
pub fn money(amount: Option<&v1::Amount>, limits: &Limits) -> Result<(Amount, Currency), Violation> {
    let amount = amount.ok_or_else(|| required("amount"))?;
    let currency = currency("amount.currency", &amount.currency)?;
    let too_large = MoneyError::TooLarge(limits.max_amount);
    let value = Amount::new(amount.value)
        .and_then(|value| if value.get() > limits.max_amount { Err(too_large.clone()) } else { Ok(value) });
    let value = value.map_err(|error| match error {
        MoneyError::NotPositive => wrong("amount.value", Reason::AmountNotPositive, "must be 1 or more"),
        _ => Violation {
            bound: Some(("max", limits.max_amount.to_string())),
            ..wrong("amount.value", Reason::AmountTooLarge, format!("must be at most {}", limits.max_amount))
        },
    })?;
    Ok((value, currency))
}

/// A point in time, rounded up to microseconds.
pub fn time(field: &str, time: prost_types::Timestamp) -> Result<Timestamp, Violation> {
    let invalid = || {
        let message = "must be between the years 1 and 9999, with 0 to 999999999 nanoseconds";
        wrong(field, Reason::TimeInvalid, message)
    };
    if !(0..1_000_000_000).contains(&time.nanos) || !YEARS.contains(&time.seconds) {
        return Err(invalid());
    }
    Timestamp::new(time.seconds, time.nanos).map(round_up).map_err(|_| invalid())
}

/// The years 1 to 9999, in seconds, less a day at each end: whatever is added to such a time here stays a time.
const YEARS: std::ops::Range<i64> = -62_135_510_400..253_402_128_000;

/// A time that may be left out.
pub fn time_if_any(
    field: &str,
    value: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, Violation> {
    value.map(|value| time(field, value)).transpose()
}

/// How many of something a page has.
pub fn page_size(size: i32, default: usize, most: usize) -> Result<usize, Violation> {
    match usize::try_from(size) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(most)),
        Err(_) => Err(wrong("page_size", Reason::FieldInvalid, "must not be negative")),
    }
}

/// Which holds are listed.
#[derive(Debug)]
pub struct Listing {
    /// Whose.
    pub account: AccountId,
    /// What they do to that account.
    pub role: Role,
    /// How many a page has.
    pub size: usize,
    /// Their ids were made then or later.
    pub ids_from: Timestamp,
    /// Their ids are smaller.
    pub before: Uuid,
    /// Makes the token of the next page.
    pub filter: Filter,
    which: Which,
}

/// What is asked of each hold of a list.
#[derive(Debug, PartialEq, Eq)]
struct Which {
    payer: Option<AccountId>,
    payee: Option<AccountId>,
    phases: Vec<Phase>,
    labels: Labels,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Listing {
    /// Whether a hold is to be listed.
    pub fn has(&self, record: &Record) -> bool {
        let Which { payer, payee, phases, labels, from, until } = &self.which;
        let descriptor = &record.transaction.descriptor;
        // Other transactions have branches on the account, too.
        let Some((debit, credit)) = descriptor.as_hold() else { return false };
        let is_of = |account: &Option<AccountId>, leg: &Leg| {
            account.as_ref().is_none_or(|account| *account == leg.account)
        };
        is_of(payer, debit)
            && is_of(payee, credit)
            && (phases.is_empty() || phases.contains(&record.standing.phase))
            && descriptor.labels.contain(labels)
            && from.is_none_or(|from| record.standing.created_at >= from)
            && until.is_none_or(|until| record.standing.created_at < until)
    }
}

/// A list as asked for. It goes by an account that the caller may see, and so has nothing but holds that it may see.
pub fn listing(request: v1::ListHoldsRequest, caller: &Identity, now: Timestamp) -> Result<Listing, Status> {
    let v1::ListHoldsRequest { payer, payee, phases, labels: asked_labels, .. } = request;
    let mut wrongs = Wrong::default();
    let some = |field, text: &str| match text {
        "" => Ok(None),
        text => account(field, text).map(Some),
    };
    let payer = wrongs.take(some("payer", &payer));
    let payee = wrongs.take(some("payee", &payee));
    let phases: Option<Vec<Phase>> = wrongs.take(phases.into_iter().map(asked_phase).collect());
    let labels = wrongs.take(labels(asked_labels));
    let from = wrongs.take(time_if_any("created_from", request.created_from));
    let until = wrongs.take(time_if_any("created_until", request.created_until));
    let size = wrongs.take(page_size(request.page_size, PAGE.0, PAGE.1));
    if payer == Some(None) && payee == Some(None) {
        wrongs.0.push(wrong("payer", Reason::FieldRequired, "is required, or the payee"));
    }
    let asked = (payer, payee, phases, labels, from, until, size);
    let (Some(payer), Some(payee), Some(phases), Some(labels), Some(from), Some(until), Some(size)) = asked
    else {
        return Err(invalid(&wrongs.0));
    };
    let (account, role) = match (&payer, &payee) {
        (Some(payer), _) if caller.may_see(payer) => (payer.clone(), Role::Debit),
        (_, Some(payee)) if caller.may_see(payee) => (payee.clone(), Role::Credit),
        (Some(payer), _) => return Err(not_covered("payer", payer)),
        (None, Some(payee)) => return Err(not_covered("payee", payee)),
        (None, None) => return Err(invalid(&wrongs.0)),
    };
    let which = Which { payer, payee, phases, labels, from, until };
    let filter = Filter::new(&caller.caller, &which);
    let before = match request.page_token.as_str() {
        "" => first_id(until.map_or(now, |until| until.min(now)) + ID_MAX_LEAD * 2),
        token => filter.open(token)?,
    };
    let ids_from = from.map_or(Timestamp::UNIX_EPOCH, |from| from - ID_MAX_AGE * 2);
    Ok(Listing { account, role, size, ids_from, before, filter, which })
}

/// A phase that is asked for.
pub fn asked_phase(number: i32) -> Result<Phase, Violation> {
    match v1::Phase::try_from(number) {
        Ok(v1::Phase::Trying) => Ok(Phase::Trying),
        Ok(v1::Phase::Held) => Ok(Phase::Held),
        Ok(v1::Phase::Confirming) => Ok(Phase::Confirming),
        Ok(v1::Phase::Confirmed) => Ok(Phase::Confirmed),
        Ok(v1::Phase::Cancelling) => Ok(Phase::Cancelling),
        Ok(v1::Phase::Cancelled) => Ok(Phase::Cancelled),
        Ok(v1::Phase::Unspecified) | Err(_) => {
            Err(wrong("phases", Reason::FieldInvalid, "must be phases that a hold can be in"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tonic_types::StatusExt as _;

    #[test]
    fn a_call_waits_a_little_less_than_its_client() {
        let mut request = Request::new(());
        assert_eq!(patience(&request), Duration::from_millis(9_900));

        for (header, expected_ms) in
            [("500m", 450), ("2S", 1_900), ("99999999H", 59_900), ("0S", 9), ("x", 9_900), ("", 9_900)]
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

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let request = v1::CreateHoldRequest {
            id: "7".into(),
            payer: "a b".into(),
            amount: Some(v1::Amount { value: 0, currency: "GOLD".into() }),
            ..Default::default()
        };

        let refused = hold(request, "", &Limits::default()).unwrap_err();

        let violations = refused.get_details_bad_request().unwrap().field_violations;
        let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["id", "payer", "payee", "amount.value", "due_at", "on_maturity"]);
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["\\PC{0,80}", "[a-z]{1,9}", Just(String::new()), any::<String>()]
    }

    fn name_text() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            Just("019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".to_owned()),
            "[!-~]{1,70}",
            any::<String>(),
        ]
    }

    prop_compose! {
        fn instant()(seconds in prop_oneof![any::<i64>(), 0..4_000_000_000_i64], nanos in prop_oneof![any::<i32>(), 0..1_000_000_000])
                     -> prost_types::Timestamp {
            prost_types::Timestamp { seconds, nanos }
        }
    }

    prop_compose! {
        fn asked()(id in name_text(), payer in text(), payee in text(), value: i64, currency in prop_oneof![text(), Just("GOLD".to_owned())],
                   due_at in proptest::option::of(instant()), on_maturity in -1..4, idempotency_key in name_text(),
                   labels in proptest::collection::hash_map(text(), text(), 0..18), validate_only: bool)
                   -> v1::CreateHoldRequest {
            let amount = Some(v1::Amount { value, currency });
            v1::CreateHoldRequest { id, payer, payee, amount, due_at, on_maturity, idempotency_key, labels, validate_only }
        }
    }

    /// Whether an error is one that a caller can do something about.
    fn is_told(status: &Status) -> bool {
        let info = status.get_details_error_info();
        let reason = info.and_then(|info| info.reason.parse::<Reason>().ok());
        reason.is_some_and(|reason| reason.code() == status.code())
            && status.get_details_bad_request().is_some_and(|bad| !bad.field_violations.is_empty())
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_is_taken_or_told_what_is_wrong(request in asked(), caller in "[!-~]{0,64}") {
            let limits = Limits::default();
            let transfer = v1::TransferRequest {
                id: request.id.clone(),
                payer: request.payer.clone(),
                payee: request.payee.clone(),
                amount: request.amount.clone(),
                idempotency_key: request.idempotency_key.clone(),
                labels: request.labels.clone(),
            };
            let asked = [
                hold(request.clone(), &caller, &limits),
                item(request, &caller, &limits),
                super::transfer(transfer, &caller, &limits),
            ];

            for asked in asked {
                match asked {
                    Ok(asked) => {
                        let now = Timestamp::from_second(1_790_000_000).unwrap();
                        let _ = asked.fresh(now, &limits);
                        let id = TransactionId::mint(now, [1; 10]);
                        let transaction = tcc_core::Transaction::new(id, asked.descriptor);
                        let read = tcc_core::Transaction::decode(id, transaction.encoded.clone());
                        prop_assert_eq!(read.unwrap(), transaction);
                    }
                    Err(status) => prop_assert!(is_told(&status), "{status:?}"),
                }
            }
        }

        #[test]
        fn whatever_is_listed_is_taken_or_told_what_is_wrong(
            payer in text(), payee in text(), phases in proptest::collection::vec(-1..9, 0..4),
            labels in proptest::collection::hash_map(text(), text(), 0..3), created_from in proptest::option::of(instant()),
            created_until in proptest::option::of(instant()), page_size: i32, page_token in name_text(),
        ) {
            let now = Timestamp::from_second(1_790_000_000).unwrap();
            let request = v1::ListHoldsRequest {
                payer, payee, phases, labels, created_from, created_until, page_size, page_token,
            };

            match listing(request, &Identity::developer("shop"), now) {
                Ok(listing) => prop_assert!((1..=PAGE.1).contains(&listing.size)),
                Err(status) => prop_assert!(is_told(&status), "{status:?}"),
            }
        }

        #[test]
        fn whatever_bytes_decode_to_is_taken_or_told_what_is_wrong(bytes: Vec<u8>) {
            use prost::Message as _;
            if let Ok(request) = v1::CreateHoldRequest::decode(bytes.as_slice())
                && let Err(status) = hold(request, "", &Limits::default())
            {
                prop_assert!(is_told(&status), "{status:?}");
            }
        }
    }
}
