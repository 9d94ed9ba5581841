//! Where errors become statuses: what happened, as a [`Reason`] of the registry with its details.

use super::view;
use crate::{
    engine::{ALREADY_CANCELLED, EngineError},
    quota,
    store::Record,
};
use hyper::Response;
use std::{collections::HashMap, time::Duration};
use tcc_core::{AccountId, Attention, Branch, Descriptor, Event, Phase, Refusal, TransactionId};
use tcc_ledger::{ReadError, ShardError};
use tcc_proto::{
    reason::{DOMAIN, Reason},
    v1,
};
use tonic::{Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

/// How long a client should wait before it repeats what was not even begun.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// A status with `ErrorInfo`.
pub fn status<'a>(
    reason: Reason,
    message: impl Into<String>,
    metadata: impl IntoIterator<Item = (&'a str, String)>,
) -> Status {
    Status::with_error_details(reason.code(), message, info(reason, metadata))
}

/// A field of a request that is wrong.
#[derive(Debug)]
pub struct Violation {
    /// Which, as the proto names it.
    pub field: String,
    /// What is wrong with it, for programs.
    pub reason: Reason,
    /// And for people.
    pub message: String,
    /// What it may be, if that is not the same everywhere.
    pub bound: Option<(&'static str, String)>,
}

/// A field that is wrong.
pub fn wrong(field: &str, reason: Reason, message: impl Into<String>) -> Violation {
    Violation { field: field.to_owned(), reason, message: message.into(), bound: None }
}

/// INVALID_ARGUMENT with every field named that is wrong, and the reason of the first.
pub fn invalid(violations: &[Violation]) -> Status {
    let Some(first) = violations.first() else {
        return status(Reason::FieldInvalid, "the request is wrong", []);
    };
    let metadata = [("field", first.field.clone())].into_iter().chain(first.bound.clone());
    let mut details = info(first.reason, metadata);
    for violation in violations {
        details.add_bad_request_violation(&violation.field, &violation.message);
    }
    let message = format!("{}: {}", first.field, first.message);
    Status::with_error_details(first.reason.code(), message, details)
}

impl From<Violation> for Status {
    fn from(violation: Violation) -> Self {
        invalid(&[violation])
    }
}

/// A refusal that was recorded, of a creation or an issue: final. `at` is the account that it is about, and what the request calls
/// it.
pub fn refused(code: &str, id: String, is_replayed: bool, at: Option<(&str, &AccountId)>) -> Status {
    let refusal = Refusal::from_code(code).ok().filter(|_| code != ALREADY_CANCELLED);
    let (reason, message) = match refusal {
        Some(refusal) => of_refusal(refusal),
        None => (Reason::AlreadyCancelled, "it was cancelled before it was created"),
    };
    let message = match at {
        Some(("account", account)) => message.replace("one of the accounts", &format!("account {account}")),
        Some((field, account)) => message.replace("one of the accounts", &format!("the {field} {account}")),
        None => message.to_owned(),
    };
    let own = (reason == Reason::ParticipantRefused).then(|| ("refusal", code.to_owned()));
    let replayed = is_replayed.then(|| ("replayed", "true".to_owned()));
    let at = at.map(|(field, account)| [("field", field.to_owned()), ("account", account.to_string())]);
    let metadata = [("id", id)].into_iter().chain(own).chain(replayed).chain(at.into_iter().flatten());
    status(reason, message, metadata)
}

/// What a leg of something that is only asked for would be refused for.
pub fn would_refuse(descriptor: &Descriptor, index: u16, refusal: Refusal, id: String) -> Status {
    let leg = descriptor.branches.get(usize::from(index)).and_then(Branch::leg);
    let field = leg.map(|leg| (view::account_field(descriptor, index, leg), &leg.account));
    refused(refusal.code(), id, false, field.as_ref().map(|(field, account)| (field.as_str(), *account)))
}

/// The reason of a participant's refusal, and what it says to people.
fn of_refusal(refusal: Refusal) -> (Reason, &'static str) {
    match refusal {
        Refusal::AccountNotFound => (Reason::AccountNotFound, "one of the accounts does not exist"),
        Refusal::CurrencyMismatch => (Reason::CurrencyMismatch, "one of the accounts has another currency"),
        Refusal::AccountBlocked => (Reason::AccountBlocked, "one of the accounts is blocked"),
        Refusal::AccountClosed => (Reason::AccountClosed, "one of the accounts is closed"),
        Refusal::InsufficientFunds => {
            (Reason::InsufficientFunds, "the payer has less available than the amount")
        }
        Refusal::BalanceOverflow => {
            (Reason::BalanceOverflow, "the payee would own more than an account can hold")
        }
        Refusal::Other(_) => (Reason::ParticipantRefused, "a participant said no, for a reason of its own"),
    }
}

/// It may be worth repeating, after the delay that the details name.
pub fn unavailable(reason: Reason, message: impl Into<String>) -> Status {
    let mut details = info(reason, []);
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(reason.code(), message, details)
}

/// What a call for one item of a batch would have failed with.
pub fn item(status: &Status) -> v1::ItemError {
    let info = status.get_details_error_info().map(|info| (info.reason, info.metadata));
    let (reason, metadata) = info.unwrap_or_default();
    let retry_delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    v1::ItemError {
        code: status.code() as i32,
        reason,
        message: status.message().to_owned(),
        metadata,
        retry_delay: retry_delay.and_then(|delay| delay.try_into().ok()),
    }
}

/// What a service calls what it serves, and the reasons that it has of its own.
#[derive(Debug, Clone, Copy)]
pub struct What {
    noun: &'static str,
    not_found: Reason,
    not_cancellable: Reason,
    not_confirmable: Reason,
}

/// What `HoldService` serves.
pub const HOLD: What = What {
    noun: "hold",
    not_found: Reason::HoldNotFound,
    not_cancellable: Reason::HoldNotCancellable,
    not_confirmable: Reason::HoldNotConfirmable,
};

/// What `TransactionService` serves.
pub const TRANSACTION: What = What {
    noun: "transaction",
    not_found: Reason::TransactionNotFound,
    not_cancellable: Reason::TransactionNotCancellable,
    not_confirmable: Reason::TransactionNotConfirmable,
};

impl From<EngineError> for Status {
    fn from(error: EngineError) -> Self {
        of_engine(HOLD, error)
    }
}

/// What the engine could not do, in the words of a service.
pub fn of_engine(what: What, error: EngineError) -> Status {
    let message = error.to_string();
    match error {
        EngineError::Overloaded => unavailable(Reason::Overloaded, message),
        EngineError::Draining => unavailable(Reason::Draining, message),
        EngineError::Unreachable { participant, is_shard: true } => unavailable(
            Reason::ShardUnavailable,
            format!("shard {participant} is not reachable; nothing was done"),
        ),
        EngineError::Unreachable { participant, is_shard: false } => {
            let message = format!("participant {participant} is not reachable; nothing was done");
            let mut details = info(Reason::ParticipantUnavailable, [("participant", participant)]);
            details.set_retry_info(Some(RETRY_DELAY));
            Status::with_error_details(Reason::ParticipantUnavailable.code(), message, details)
        }
        EngineError::IdReused { id, field } => {
            status(Reason::IdReused, message, [("id", id.to_string()), ("field", field.to_owned())])
        }
        EngineError::NotFound(id) => {
            let message = format!("there is no {} {id}", what.noun);
            status(what.not_found, message, [("id", id.to_string())])
        }
        EngineError::TooLate { asked, record } => too_late(what, asked, &record),
        EngineError::Changed { record } => changed(what, &record),
        EngineError::OutcomeUnknown(id) => status(Reason::OutcomeUnknown, message, [("id", id.to_string())]),
        EngineError::Store(cause) => {
            tracing::warn!(%cause, "a request meets the coordinator's database down");
            unavailable(
                Reason::CoordinatorUnavailable,
                "the coordinator's database does not answer; repeat with the same id or key",
            )
        }
    }
}

/// What is no longer as the client saw it.
pub fn changed(what: What, record: &Record) -> Status {
    let (id, phase) = (record.id(), record.standing.phase);
    let etag = view::etag(record.standing.seen());
    let metadata = [("id", id.to_string()), ("phase", phase.to_string()), ("etag", etag)];
    let message = format!("{} {id} has changed since: it is {phase} now", what.noun);
    status(Reason::EtagMismatch, message, metadata)
}

/// What stands otherwise has a reason of its own for each of the two requests.
fn too_late(what: What, asked: Event, record: &Record) -> Status {
    let (id, phase, noun) = (record.id(), record.standing.phase, what.noun);
    let due_at = record.due_at();
    let (reason, message) = match (asked, record.standing.phase) {
        (Event::CancelRequested, Phase::Trying | Phase::Held) => (
            what.not_cancellable,
            format!("{noun} {id} was due at {due_at}; it can be cancelled before that only"),
        ),
        (Event::CancelRequested, _) => (what.not_cancellable, format!("{noun} {id} is {phase}")),
        (_, Phase::Trying) => (
            what.not_confirmable,
            format!("{noun} {id} is not held yet; repeat this when its creation has answered"),
        ),
        (_, Phase::Held) if record.standing.attention >= Attention::Parked => {
            (what.not_confirmable, format!("{noun} {id} waits for an operator"))
        }
        (_, Phase::Held) => (
            what.not_confirmable,
            format!("{noun} {id} was to be released at {due_at}; it can be confirmed before that only"),
        ),
        _ => (what.not_confirmable, format!("{noun} {id} is {phase}")),
    };
    status(reason, message, [("id", id.to_string()), ("phase", phase.to_string())])
}

/// The time for waiting ended before it was known which transaction it is about.
pub fn no_answer_in_time() -> Status {
    let message = "no answer in time; the outcome is not known yet, repeat with the same id or key";
    status(Reason::OutcomeUnknown, message, [])
}

/// A transfer that was not paid, and never will be.
pub fn transfer_cancelled(id: TransactionId) -> Status {
    let message = format!("transfer {id} was cancelled, and nothing was paid");
    status(Reason::TransferCancelled, message, [("id", id.to_string())])
}

/// A transaction that was to be confirmed at once, and never will be.
pub fn transaction_cancelled(id: TransactionId) -> Status {
    let message = format!("transaction {id} was cancelled, and nothing was confirmed");
    status(Reason::TransactionCancelled, message, [("id", id.to_string())])
}

/// Nobody is registered under a name.
pub fn participant_not_found(name: &str) -> Status {
    let message = format!("no participant {name} is registered");
    status(Reason::ParticipantNotFound, message, [("participant", name.to_owned())])
}

/// A name that is taken.
pub fn participant_exists(name: &str) -> Status {
    let message = format!("a participant or a shard called {name} is registered already");
    status(Reason::ParticipantExists, message, [("participant", name.to_owned())])
}

/// A participant that cannot be removed, and a transaction that needs it.
pub fn participant_in_use(name: &str, why: &str, example: Option<Uuid>) -> Status {
    let message = format!("participant {name} cannot be removed: {why}");
    let example = example.map(|example| ("example", example.to_string()));
    let metadata = [("participant", name.to_owned())].into_iter().chain(example);
    status(Reason::ParticipantInUse, message, metadata)
}

/// An operator lets nothing new at a participant.
pub fn participant_drained(name: &str) -> Status {
    let message = format!("participant {name} takes no new transactions; nothing was done");
    status(Reason::ParticipantDrained, message, [("participant", name.to_owned())])
}

/// Work goes on with a shard already.
pub fn not_stopped(shard: &str) -> Status {
    let message = format!("work on shard {shard} is not stopped, or there is no such shard");
    status(Reason::ShardNotStopped, message, [("shard", shard.to_owned())])
}

/// A name that no shard has.
pub fn shard_not_found(shard: &str) -> Status {
    let message = format!("there is no shard {shard}; `tccctl status` names them");
    status(Reason::ShardNotFound, message, [("shard", shard.to_owned())])
}

/// Nobody said who asks.
pub fn nobody() -> Status {
    let message = "say who you are: send the metadata \"authorization: Bearer …\" with an API key or a token, or a client certificate";
    status(Reason::TokenMissing, message, [])
}

/// A credential that is not accepted. Why exactly stands in the log: it would help whoever forges one.
pub fn token_invalid() -> Status {
    status(Reason::TokenInvalid, "the API key or token is not accepted", [])
}

/// A token that was good once.
pub fn token_expired() -> Status {
    status(Reason::TokenExpired, "the token has expired; get a new one and repeat", [])
}

/// A certificate of an accepted authority that no caller has.
pub fn certificate_unknown(names: &[String]) -> Status {
    let message = format!("no caller has a certificate for {}", names.join(", "));
    status(Reason::CertificateUnknown, message, [])
}

/// A method that none of the caller's roles opens.
pub fn without_role(path: &str, caller: &str) -> Status {
    let method = path.trim_start_matches('/');
    let message = format!("{caller} has no role that may call {method}");
    status(Reason::NotAllowed, message, [("method", method.to_owned())])
}

/// An account that the caller is not responsible for, whether or not it exists.
pub fn not_covered(field: &str, account: &AccountId) -> Status {
    let message = format!("{field}: you may not act for account {account}");
    status(Reason::NotAllowed, message, [("field", field.to_owned()), ("account", account.to_string())])
}

/// A list of somebody else's transactions.
pub fn not_your_own(field: &str) -> Status {
    let message = format!("{field}: you may see your own transactions only");
    status(Reason::NotAllowed, message, [("field", field.to_owned())])
}

/// A hold that the caller sees because it is the payee: only the payer decides about it.
pub fn not_the_payer(id: TransactionId) -> Status {
    let message = format!("only the payer of hold {id} can do that");
    status(Reason::NotAllowed, message, [("id", id.to_string())])
}

/// A caller that asks faster than it may.
pub fn rate_limited(wait: Duration, per_second: u32) -> Status {
    let mut details = info(Reason::RateLimited, [("requests_per_second", per_second.to_string())]);
    details.set_retry_info(Some(wait));
    let message = format!("more than {per_second} requests a second; nothing was done");
    Status::with_error_details(Reason::RateLimited.code(), message, details)
}

/// A caller that has as many transactions open as it may.
pub fn quota_reached(caller: &str, quota: u32) -> Status {
    let mut details = info(Reason::OpenQuotaReached, [("quota", quota.to_string())]);
    details.set_retry_info(Some(quota::READ_EVERY));
    details.add_quota_failure_violation(
        format!("caller:{caller}"),
        format!("{quota} transactions are open, which are as many as may be at a time"),
    );
    let message = format!("{caller} has {quota} transactions open, and may have no more; nothing was done");
    Status::with_error_details(Reason::OpenQuotaReached.code(), message, details)
}

/// More requests at a time than this instance takes.
pub fn overloaded() -> Status {
    EngineError::Overloaded.into()
}

/// A request that took too long to wait for.
pub fn given_up(after: Duration) -> Status {
    let message = format!("no answer after {} s; what it began goes on", after.as_secs());
    status(Reason::OutcomeUnknown, message, [])
}

/// A ledger operation without an answer.
pub fn of_shard(error: ShardError) -> Status {
    tracing::warn!(%error, "a request meets a shard without an answer");
    match error {
        ShardError::Unknown(unknown) => unavailable(
            Reason::ShardUnavailable,
            format!("{} does not answer; repeat with the same id", unknown.target),
        ),
        ShardError::Broken { shard, .. } => unavailable(
            Reason::ShardUnavailable,
            format!("shard {shard} cannot do this at the moment; ask its operator"),
        ),
    }
}

/// Bytes that are no frame of gRPC make tonic say INTERNAL, as if the server was broken: here they are the caller's mistake, as bytes
/// that are no message. It is told by its having no details, which every error that is made here has.
pub fn of_frames(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let is_internal = headers.get("grpc-status").is_some_and(|code| code == "13");
    if !is_internal || headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    let told = Status::from_header_map(headers).map(|status| status.message().to_owned());
    let message = format!("the bytes are no frame of gRPC: {}", told.unwrap_or_default());
    status(Reason::MessageMalformed, message, []).into_http()
}

/// A read without an answer.
pub fn of_read(error: ReadError) -> Status {
    tracing::warn!(%error, "a read fails");
    let (ReadError::Unreachable { shard, .. } | ReadError::Damaged { shard, .. }) = error;
    unavailable(Reason::ShardUnavailable, format!("shard {shard} does not answer"))
}

fn info<'a>(reason: Reason, metadata: impl IntoIterator<Item = (&'a str, String)>) -> ErrorDetails {
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    ErrorDetails::with_error_info(reason.name(), DOMAIN, metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_name_that_the_tables_have() {
        for refusal in Refusal::ALL {
            assert_eq!(of_refusal(*refusal).0.name(), refusal.code());
        }
    }

    #[test]
    fn every_field_that_is_wrong_is_named() {
        let status = invalid(&[
            wrong("payer", Reason::FieldRequired, "is required"),
            wrong("amount.value", Reason::AmountNotPositive, "must be 1 or more"),
        ]);

        let fields = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(fields.iter().map(|f| f.field.as_str()).collect::<Vec<_>>(), ["payer", "amount.value"]);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("FIELD_REQUIRED", "tcc"));
        assert_eq!(info.metadata["field"], "payer");
    }
}
