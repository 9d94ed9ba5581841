//! Every error of the API: its reason, its gRPC code, and what to do.

use crate::{engine::EngineError, store::Record};
use std::time::Duration;
use tcc_core::{AccountId, Attention, Event, Phase, Refusal, TransactionId};
use tcc_ledger::{ReadError, ShardError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "tcc";

/// How long a client should wait before it repeats what was not even begun.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// A status with `ErrorInfo`.
pub fn status<'a>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: impl IntoIterator<Item = (&'a str, String)>,
) -> Status {
    Status::with_error_details(code, message, info(reason, metadata))
}

/// A field of the request that is wrong: INVALID_ARGUMENT with the field named.
pub fn invalid(field: &str, reason: &str, message: impl Into<String>) -> Status {
    let message = format!("{field}: {}", message.into());
    let mut details = info(reason, [("field", field.to_owned())]);
    details.add_bad_request_violation(field, &message);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// A refusal: FAILED_PRECONDITION, final.
pub fn refused(reason: &str, id: String) -> Status {
    let message = match reason.parse::<Refusal>() {
        Ok(refusal) => explain(refusal).to_owned(),
        Err(_) => format!("refused: {reason}"),
    };
    status(Code::FailedPrecondition, reason, message, [("id", id)])
}

/// Nothing was done: UNAVAILABLE, with the delay after which to repeat it.
pub fn unavailable(reason: &str, message: impl Into<String>) -> Status {
    let mut details = info(reason, []);
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::Unavailable, message, details)
}

impl From<EngineError> for Status {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Overloaded => {
                let mut details = info("OVERLOADED", []);
                details.set_retry_info(Some(RETRY_DELAY));
                Status::with_error_details(Code::ResourceExhausted, message, details)
            }
            EngineError::Draining => unavailable("DRAINING", message),
            EngineError::Unreachable(participant) => unavailable(
                "SHARD_UNAVAILABLE",
                format!("shard {participant} is not reachable; nothing was done"),
            ),
            EngineError::IdReused { id, field } => {
                let metadata = [("id", id.to_string()), ("field", field.to_owned())];
                status(Code::AlreadyExists, "ID_REUSED", message, metadata)
            }
            EngineError::NotFound(id) => {
                status(Code::NotFound, "HOLD_NOT_FOUND", message, [("id", id.to_string())])
            }
            EngineError::TooLate { asked, record } => too_late(asked, &record),
            EngineError::OutcomeUnknown(id) => {
                status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", message, [("id", id.to_string())])
            }
            EngineError::Store(cause) => {
                tracing::warn!(%cause, "a request meets the coordinator's database down");
                unavailable(
                    "COORDINATOR_UNAVAILABLE",
                    "the coordinator's database does not answer; repeat with the same id",
                )
            }
        }
    }
}

/// A hold that stands otherwise has a reason of its own for each of the two requests.
fn too_late(asked: Event, record: &Record) -> Status {
    let id = record.id();
    let phase = record.standing.phase;
    let due_at = record.transaction.descriptor.due_at;
    let (reason, message) = match (asked, record.standing.phase) {
        (Event::CancelRequested, Phase::Trying | Phase::Held) => (
            "HOLD_NOT_CANCELLABLE",
            format!("hold {id} was due at {due_at}; it can be cancelled before that only"),
        ),
        (Event::CancelRequested, _) => ("HOLD_NOT_CANCELLABLE", format!("hold {id} is {phase}")),
        (_, Phase::Trying) => (
            "HOLD_NOT_CONFIRMABLE",
            format!("hold {id} is not held yet; repeat this when CreateHold has answered"),
        ),
        (_, Phase::Held) if record.standing.attention >= Attention::Parked => {
            ("HOLD_NOT_CONFIRMABLE", format!("hold {id} waits for an operator"))
        }
        (_, Phase::Held) => (
            "HOLD_NOT_CONFIRMABLE",
            format!("hold {id} was to be released at {due_at}; it can be confirmed before that only"),
        ),
        _ => ("HOLD_NOT_CONFIRMABLE", format!("hold {id} is {phase}")),
    };
    let metadata = [("id", id.to_string()), ("phase", phase.to_string())];
    status(Code::FailedPrecondition, reason, message, metadata)
}

/// Work goes on with a shard already.
pub fn not_stopped(shard: &str) -> Status {
    let message = format!("work on shard {shard} is not stopped, or there is no such shard");
    status(Code::FailedPrecondition, "SHARD_NOT_STOPPED", message, [("shard", shard.to_owned())])
}

/// Nobody said who asks.
pub fn nobody() -> Status {
    unauthenticated(
        "TOKEN_MISSING",
        "say who you are: send the metadata \"authorization: Bearer …\" with an API key or a token, or a client certificate",
    )
}

/// A credential that is not accepted. Why exactly stands in the log: it would help whoever forges one.
pub fn token_invalid() -> Status {
    unauthenticated("TOKEN_INVALID", "the API key or token is not accepted")
}

/// A token that was good once.
pub fn token_expired() -> Status {
    unauthenticated("TOKEN_EXPIRED", "the token has expired; get a new one and repeat")
}

/// A certificate of an accepted authority that no caller has.
pub fn certificate_unknown(names: &[String]) -> Status {
    let message = format!("no caller has a certificate for {}", names.join(", "));
    unauthenticated("CERTIFICATE_UNKNOWN", &message)
}

fn unauthenticated(reason: &str, message: &str) -> Status {
    status(Code::Unauthenticated, reason, message, [])
}

/// A method that none of the caller's roles opens.
pub fn without_role(path: &str, caller: &str) -> Status {
    let method = path.trim_start_matches('/');
    let message = format!("{caller} has no role that may call {method}");
    status(Code::PermissionDenied, "NOT_ALLOWED", message, [("method", method.to_owned())])
}

/// An account that the caller is not responsible for, whether or not it exists.
pub fn not_covered(field: &str, account: &AccountId) -> Status {
    let message = format!("{field}: you may not act for account {account}");
    let metadata = [("field", field.to_owned()), ("account", account.to_string())];
    status(Code::PermissionDenied, "NOT_ALLOWED", message, metadata)
}

/// A hold that the caller sees because it is the payee: only the payer decides about it.
pub fn not_the_payer(id: TransactionId) -> Status {
    let message = format!("only the payer of hold {id} can do that");
    status(Code::PermissionDenied, "NOT_ALLOWED", message, [("id", id.to_string())])
}

/// A caller that asks faster than it may.
pub fn rate_limited(wait: Duration, per_second: u32) -> Status {
    let mut details = info("RATE_LIMITED", [("requests_per_second", per_second.to_string())]);
    details.set_retry_info(Some(wait));
    let message = format!("more than {per_second} requests a second; nothing was done");
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// More requests at a time than this instance takes.
pub fn overloaded() -> Status {
    EngineError::Overloaded.into()
}

/// A request that took too long to wait for.
pub fn given_up(after: Duration) -> Status {
    let message = format!("no answer after {} s; what it began goes on", after.as_secs());
    status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", message, [])
}

/// A ledger operation without an answer.
pub fn of_shard(error: ShardError) -> Status {
    tracing::warn!(%error, "a request meets a shard without an answer");
    match error {
        ShardError::Unknown(unknown) => unavailable(
            "SHARD_UNAVAILABLE",
            format!("{} does not answer; repeat with the same id", unknown.target),
        ),
        ShardError::Broken { shard, .. } => unavailable(
            "SHARD_UNAVAILABLE",
            format!("shard {shard} cannot do this at the moment; ask its operator"),
        ),
    }
}

/// A read without an answer.
pub fn of_read(error: ReadError) -> Status {
    tracing::warn!(%error, "a read fails");
    let (ReadError::Unreachable { shard, .. } | ReadError::Damaged { shard, .. }) = error;
    unavailable("SHARD_UNAVAILABLE", format!("shard {shard} does not answer"))
}

fn info<'a>(reason: &str, metadata: impl IntoIterator<Item = (&'a str, String)>) -> ErrorDetails {
    let metadata: std::collections::HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}

fn explain(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::AccountNotFound => "one of the accounts does not exist",
        Refusal::CurrencyMismatch => "one of the accounts has another currency",
        Refusal::AccountBlocked => "one of the accounts is blocked",
        Refusal::AccountClosed => "one of the accounts is closed",
        Refusal::InsufficientFunds => "the payer has less available than the amount",
        Refusal::BalanceOverflow => "the payee would own more than an account can hold",
    }
}
