//! The registry of error reasons: the one place where a reason is named, with its code, what it means and what to do.
//!
//! Servers build every error from a [`Reason`], so there is none that is not listed here. The manual's page on errors is
//! [`page`], which a test compares, and `tccctl explain` prints the same. A reason is part of the API: it may be added,
//! and never be renamed or get another code.

use std::{fmt::Write as _, str::FromStr};
use tonic::Code;

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "tcc";

macro_rules! reasons {
    ($($name:ident = $text:literal, $code:ident, $http:literal: $meaning:literal $advice:literal;)*) => {
        /// Why a request got no, or no answer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $name),*
        }

        impl Reason {
            /// Every reason, in the order of the manual.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it stands in `ErrorInfo`: `INSUFFICIENT_FUNDS`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// The gRPC code that it comes with.
            #[must_use]
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),* }
            }

            /// The HTTP status that it comes with.
            #[must_use]
            pub fn http(self) -> u16 {
                match self { $(Self::$name => $http),* }
            }

            /// What it means.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }

            /// What to do about it.
            #[must_use]
            pub fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice),* }
            }
        }
    };
}

reasons! {
    // The shape of a request.
    MessageMalformed = "MESSAGE_MALFORMED", InvalidArgument, 400:
        "The bytes are no protobuf message of this call, or over HTTP no JSON object; or a text in them is not UTF-8."
        "Build the client from the same proto files as the server, or from its /openapi.json.";
    FieldRequired = "FIELD_REQUIRED", InvalidArgument, 400:
        "A field that has no default is empty."
        "Give the field that `metadata.field` names. Nothing was written.";
    FieldInvalid = "FIELD_INVALID", InvalidArgument, 400:
        "A field has a value that it cannot have, or that does not go together with another field."
        "Mend the field that `metadata.field` names. Nothing was written.";
    FieldUnknown = "FIELD_UNKNOWN", InvalidArgument, 400:
        "A JSON object or a query has a field that this call has not."
        "Mend the name, which `metadata.field` has. Nothing was written.";
    IdInvalid = "ID_INVALID", InvalidArgument, 400:
        "An id is not a UUID of version 7 in its canonical form: lower case, with hyphens, without anything around it."
        "Make ids with a library for UUIDv7, or with `tccctl id`.";
    IdTimeOutOfRange = "ID_TIME_OUT_OF_RANGE", InvalidArgument, 400:
        "The time in a new id lies more than 24 hours before or 5 minutes after the server's."
        "Set the clock of the machine that makes the ids. An id that is known is answered whatever its age.";
    IdempotencyKeyRequired = "IDEMPOTENCY_KEY_REQUIRED", InvalidArgument, 400:
        "A call that moves money at once, or many times, or comes over HTTP, has neither an id nor an idempotency key."
        "Give each one an id or a key: otherwise a lost answer could not be asked for again.";
    IdempotencyKeyInvalid = "IDEMPOTENCY_KEY_INVALID", InvalidArgument, 400:
        "An idempotency key is not 1 to 64 printable ASCII characters without spaces."
        "Choose another form, such as a UUID.";
    CallerInvalid = "CALLER_INVALID", InvalidArgument, 400:
        "The metadata `tcc-caller`, with which callers name themselves to a server that believes everybody, is not 1 to 64 printable ASCII characters without spaces."
        "Choose another name, or leave it out.";
    AccountIdInvalid = "ACCOUNT_ID_INVALID", InvalidArgument, 400:
        "An account id is not 1 to 64 printable ASCII characters without spaces."
        "Mend the field that `metadata.field` names.";
    CurrencyInvalid = "CURRENCY_INVALID", InvalidArgument, 400:
        "A currency is not an upper-case letter, then up to 15 of A-Z, 0-9 and _."
        "Mend it.";
    AmountNotPositive = "AMOUNT_NOT_POSITIVE", InvalidArgument, 400:
        "An amount is 0 or less."
        "Amounts are whole minor units, 1 or more. Money flows the other way with payer and payee exchanged.";
    AmountNotInteger = "AMOUNT_NOT_INTEGER", InvalidArgument, 400:
        "An amount in JSON is not a whole number, or it is above 2^53 - 1 and not in quotes: many JSON libraries round such a number."
        "Write whole minor units as a text of digits: \"1250\", not 12.5.";
    AmountTooLarge = "AMOUNT_TOO_LARGE", InvalidArgument, 400:
        "An amount is above the server's limit, which `metadata.max` names."
        "Split it, or ask the operator for another limit.";
    SameAccount = "SAME_ACCOUNT", InvalidArgument, 400:
        "Payer and payee are the same account."
        "Name two accounts.";
    TimeInvalid = "TIME_INVALID", InvalidArgument, 400:
        "A time is not between the years 1 and 9999 with 0 to 999,999,999 nanoseconds, or lies in the future where it must not."
        "Mend the field that `metadata.field` names.";
    DueTimeInPast = "DUE_TIME_IN_PAST", InvalidArgument, 400:
        "A new hold would be due already. `metadata.server_time` has the server's time."
        "Choose a later time, or use Transfer for what is to be paid at once.";
    DueTimeTooFar = "DUE_TIME_TOO_FAR", InvalidArgument, 400:
        "A hold would fall due later than the server allows, which is until `metadata.max`."
        "Choose an earlier time, or ask the operator for another limit.";
    LabelInvalid = "LABEL_INVALID", InvalidArgument, 400:
        "There are more than 16 labels, more than 1,024 bytes of them, or a key is not a lower-case letter, then up to 62 of a-z, 0-9, _, . and -."
        "Mend the labels.";
    TextTooLong = "TEXT_TOO_LONG", InvalidArgument, 400:
        "The value of a label has more than 128 bytes."
        "Shorten it.";
    TextInvalid = "TEXT_INVALID", InvalidArgument, 400:
        "The value of a label contains control characters."
        "Remove them. Everything else is kept as it is.";
    TooManyItems = "TOO_MANY_ITEMS", InvalidArgument, 400:
        "A batch has more than 1,000 items, or a transaction more than 64 branches."
        "Send several batches. A transaction cannot be split: give one participant more to do in one branch.";
    BranchesUnbalanced = "BRANCHES_UNBALANCED", InvalidArgument, 400:
        "The credits of a transaction give more than its debits take, or less, in the currency that `metadata.currency` names: it would create or lose money. Nothing was done."
        "Add the account that the rest comes from or goes to: a payout to a bank is a credit to an account that stands for the bank.";
    PivotInvalid = "PIVOT_INVALID", InvalidArgument, 400:
        "A participant that may veto is not the pivot: the others would be confirmed before it is asked. Nothing was done."
        "Make its branch the pivot. A transaction can have one such participant.";
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", InvalidArgument, 400:
        "A payload has more than 64 KiB, or those of all branches have more than 256 KiB, divided by the number of debits and credits, together."
        "Keep what is large elsewhere, and send where that is.";
    PageTokenInvalid = "PAGE_TOKEN_INVALID", InvalidArgument, 400:
        "A page token was not made by this call with this filter for this caller."
        "Repeat the request that gave the token with nothing but the token changed, or begin at the first page.";

    // Who asks, and whether that one may.
    TokenMissing = "TOKEN_MISSING", Unauthenticated, 401:
        "A request does not say who asks. Nothing was done."
        "Send the metadata `authorization: Bearer …` with an API key or a token, or show a client certificate.";
    TokenInvalid = "TOKEN_INVALID", Unauthenticated, 401:
        "The API key or token is not accepted. Nothing was done. Why exactly is told to nobody but the server's log."
        "Check what is sent, and to which server. The operator finds the cause in the log of `tccd`.";
    TokenExpired = "TOKEN_EXPIRED", Unauthenticated, 401:
        "The token was good once. Nothing was done."
        "Get a new one, and repeat with the same id or key.";
    CertificateUnknown = "CERTIFICATE_UNKNOWN", Unauthenticated, 401:
        "The client certificate is of an accepted authority, but no caller has one of the names in it. Nothing was done."
        "Show a caller's certificate, or have the operator add its name to the file of callers.";
    NotAllowed = "NOT_ALLOWED", PermissionDenied, 403:
        "The caller has no role for the method that `metadata.method` names, is not responsible for the account that `metadata.account` names, or is not the payer of the hold. Nothing was done."
        "Have the operator give the caller the role or the account. Repeating it does not help.";

    // What only HTTP can get wrong.
    PathUnknown = "PATH_UNKNOWN", Unimplemented, 404:
        "There is nothing at this path."
        "GET /openapi.json has all paths. gRPC is told by its content type, application/grpc.";
    MethodNotAllowed = "METHOD_NOT_ALLOWED", Unimplemented, 405:
        "What is at this path takes another HTTP method: the header Allow names those that there are."
        "Use one of them.";
    NotAcceptable = "NOT_ACCEPTABLE", InvalidArgument, 406:
        "The header Accept takes nothing that this path gives."
        "Accept application/json, or text/event-stream where there are events.";
    BodyTooLarge = "BODY_TOO_LARGE", OutOfRange, 413:
        "The body of a request has more than 64 KiB, or 2 MiB if it is a batch."
        "Send less at a time.";
    MediaTypeUnsupported = "MEDIA_TYPE_UNSUPPORTED", InvalidArgument, 415:
        "The body of a request is not said to be plain JSON."
        "Send the header Content-Type: application/json, and the body in UTF-8 and not compressed.";

    // What does not exist.
    AccountNotFound = "ACCOUNT_NOT_FOUND", NotFound, 404:
        "There is no such account: `metadata.account`, which the request calls `metadata.field`. To a creation it is a refusal: recorded, and final for its id or key."
        "Open the account. Then ask with a new id or key.";
    HoldNotFound = "HOLD_NOT_FOUND", NotFound, 404:
        "There is no such hold."
        "Check the id. After a creation without an answer, repeat the creation: it tells what there is.";

    TransactionNotFound = "TRANSACTION_NOT_FOUND", NotFound, 404:
        "There is no such transaction, or it is another caller's. Holds are found by HoldService alone."
        "Check the id. After a creation without an answer, repeat the creation: it tells what there is.";
    ParticipantNotFound = "PARTICIPANT_NOT_FOUND", NotFound, 404:
        "No participant is registered under the name that `metadata.participant` has. Nothing was done."
        "`tccctl participants list` names them; an operator adds one with `tccctl participants add`.";

    // Refusals by an account: recorded, and final for their id or key.
    CurrencyMismatch = "CURRENCY_MISMATCH", FailedPrecondition, 409:
        "An account, `metadata.field` of the request, has another currency than the amount. A refusal: recorded, and final for its id or key."
        "Ask with the account's currency, and a new id or key.";
    AccountBlocked = "ACCOUNT_BLOCKED", FailedPrecondition, 409:
        "An account, `metadata.field` of the request, is blocked. A refusal: recorded, and final for its id or key."
        "When the account is unblocked, ask with a new id or key.";
    AccountClosed = "ACCOUNT_CLOSED", FailedPrecondition, 409:
        "An account, `metadata.field` of the request, is closed for good. To a creation it is a refusal: recorded, and final for its id or key."
        "Use another account.";
    InsufficientFunds = "INSUFFICIENT_FUNDS", FailedPrecondition, 409:
        "The payer has less available than the amount. A refusal: recorded, and final for its id or key."
        "When there are funds, ask with a new id or key.";
    BalanceOverflow = "BALANCE_OVERFLOW", FailedPrecondition, 409:
        "The payee would own more than an account can hold. A refusal: recorded, and final for its id or key."
        "Use another account.";
    ParticipantRefused = "PARTICIPANT_REFUSED", FailedPrecondition, 409:
        "A participant that is no ledger shard said no, for a reason of its own, which `metadata.refusal` names. Recorded, and final for its id."
        "See what the participant's manual says about it. Then ask with a new id.";
    TransactionCancelled = "TRANSACTION_CANCELLED", FailedPrecondition, 409:
        "A transaction that was to be confirmed at once was cancelled: a participant did not answer for long, or an operator cancelled it. Nothing was confirmed. Final for its id or key."
        "Ask with a new id or key, if it is still wanted.";
    TransferCancelled = "TRANSFER_CANCELLED", FailedPrecondition, 409:
        "A transfer was cancelled: a shard did not answer for long, or an operator cancelled it. Nothing was paid. Final for its id or key."
        "Ask with a new id or key, if it is still wanted.";
    AlreadyCancelled = "ALREADY_CANCELLED", FailedPrecondition, 409:
        "The hold or transaction was cancelled before it was created: its row was lost and rebuilt meanwhile. Final for its id or key."
        "Ask with a new id or key, if it is still wanted.";

    // What a hold or an account does not allow as it stands.
    HoldNotCancellable = "HOLD_NOT_CANCELLABLE", FailedPrecondition, 409:
        "The hold is due, being paid or paid. `metadata.phase` says which."
        "See how it ends: GetHold, or `tccctl holds get ID --watch`. To undo a payment, pay back.";
    HoldNotConfirmable = "HOLD_NOT_CONFIRMABLE", FailedPrecondition, 409:
        "The hold is cancelled or about to be, due to be released, not held yet, or waits for an operator."
        "See how it stands: GetHold.";
    TransactionNotCancellable = "TRANSACTION_NOT_CANCELLABLE", FailedPrecondition, 409:
        "The transaction is due, being confirmed or confirmed. `metadata.phase` says which."
        "See how it ends: WatchTransaction.";
    TransactionNotConfirmable = "TRANSACTION_NOT_CONFIRMABLE", FailedPrecondition, 409:
        "The transaction is cancelled or about to be, due to be cancelled, not held yet, or waits for an operator."
        "See how it stands: GetTransaction.";
    EtagMismatch = "ETAG_MISMATCH", Aborted, 412:
        "The hold or transaction has changed since the etag was read. Nothing was done. `metadata.etag` has the present one."
        "Read it again, and decide again.";
    AccountNotEmpty = "ACCOUNT_NOT_EMPTY", FailedPrecondition, 409:
        "An account that is to be closed has units, or holds that are open."
        "Cancel its holds or wait for them, transfer or burn what is left, and close it then.";
    AccountExists = "ACCOUNT_EXISTS", AlreadyExists, 409:
        "The account exists with another currency."
        "Use another id, or the account as it is.";
    IdReused = "ID_REUSED", AlreadyExists, 422:
        "The id belongs to something else: `metadata.field` names the first field that differs."
        "If it is the same wish, send the same body. If it is another one, make a new id.";
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", AlreadyExists, 422:
        "The caller has used the key for something else: `metadata.field` names the first field that differs."
        "If it is the same wish, send the same body. If it is another one, choose a new key.";
    ShardNotStopped = "SHARD_NOT_STOPPED", FailedPrecondition, 409:
        "Work on the shard is not stopped, or there is no shard of that name."
        "See the names in `tccctl status`.";
    ShardNotFound = "SHARD_NOT_FOUND", NotFound, 404:
        "There is no shard of that name."
        "`tccctl status` names the shards.";
    ParticipantDrained = "PARTICIPANT_DRAINED", FailedPrecondition, 409:
        "An operator lets no new transactions at the participant that `metadata.participant` names. Nothing was done."
        "`tccctl actions list --target NAME` says who and why; `tccctl participants resume NAME` lets them again.";
    ParticipantExists = "PARTICIPANT_EXISTS", AlreadyExists, 409:
        "A participant or a shard of that name is registered already."
        "`tccctl participants describe NAME` tells how. To change it, drain and remove it first.";
    ParticipantInUse = "PARTICIPANT_IN_USE", FailedPrecondition, 409:
        "The participant cannot be removed: it still takes new transactions, or some that need it are not final."
        "Drain it, and wait for its transactions: `metadata.example` names one.";
    ShardDrained = "SHARD_DRAINED", FailedPrecondition, 409:
        "An operator has stopped work on the shard already."
        "`tccctl actions list --target SHARD` says who and why; `tccctl shards resume SHARD` lets it go on.";

    InstanceNotFound = "INSTANCE_NOT_FOUND", NotFound, 404:
        "No instance of that id serves, or it leaves already."
        "`tccctl instances list` names those that serve.";

    // What operators ask for.
    ActionRefused = "ACTION_REFUSED", FailedPrecondition, 409:
        "What an operator asked for cannot be done to the transaction as it stands. Nothing was changed."
        "See how it stands: `tccctl holds describe ID`.";
    PlanRequired = "PLAN_REQUIRED", FailedPrecondition, 409:
        "A cancel is forced by plan only. Nothing was done."
        "Make a plan, look at it, execute it: `tccctl holds force-cancel ID`.";
    ForceUnsafe = "FORCE_UNSAFE", FailedPrecondition, 409:
        "A forced cancel would create or lose units, since a shard has confirmed already. It stands in a plan, and says how much."
        "See what is final: `tccctl holds describe ID`. Mend what keeps it from its end, and requeue it.";
    PlanNotFound = "PLAN_NOT_FOUND", NotFound, 404:
        "There is no plan of that id."
        "`tccctl plan list` names the plans.";
    PlanExpired = "PLAN_EXPIRED", FailedPrecondition, 409:
        "A plan was not begun within 15 minutes: too much may have changed since somebody looked at it. Nothing was done."
        "Make it anew.";
    ReadOnly = "READ_ONLY", FailedPrecondition, 409:
        "`tccctl --direct` reads straight from the databases, and was asked for something that changes them. Nothing was done."
        "Ask a `tccd`, without `--direct`.";
    Declined = "DECLINED", FailedPrecondition, 409:
        "`tccctl` asked a person, who did not say yes, or there was no terminal to ask at. No server was asked to do anything."
        "Say yes at a terminal, or with `--yes` to what is not force.";

    // No answer, or none yet.
    Overloaded = "OVERLOADED", ResourceExhausted, 429:
        "Too much is under way. Nothing was done."
        "Repeat after the delay in RetryInfo, with the same id or key.";
    RateLimited = "RATE_LIMITED", ResourceExhausted, 429:
        "The caller asks faster than `metadata.requests_per_second` allows. Nothing was done."
        "Repeat after the delay in RetryInfo, with the same id or key.";
    OpenQuotaReached = "OPEN_QUOTA_REACHED", ResourceExhausted, 429:
        "The caller has as many transactions open as it may have at a time, which `metadata.quota` says. Nothing was done. What exists is answered, confirmed and cancelled all the same."
        "Repeat with the same id or key when some of them are final: RetryInfo says when that is noticed at the latest. Or ask the operator for a larger quota.";
    ParticipantUnavailable = "PARTICIPANT_UNAVAILABLE", Unavailable, 503:
        "The participant that `metadata.participant` names is needed and does not answer. Nothing was done."
        "Repeat after the delay in RetryInfo, with the same id or key. `tccctl participants describe NAME` says how it stands.";
    ShardUnavailable = "SHARD_UNAVAILABLE", Unavailable, 503:
        "A shard that is needed does not answer."
        "Repeat after the delay in RetryInfo, with the same id or key.";
    CoordinatorUnavailable = "COORDINATOR_UNAVAILABLE", Unavailable, 503:
        "The coordinator's database does not answer. What was asked may have been done."
        "Repeat after the delay in RetryInfo, with the same id or key.";
    KeysNotReady = "KEYS_NOT_READY", Unavailable, 503:
        "The coordinator's database may have lost idempotency keys, and the search for them is not finished. Nothing was done."
        "Repeat after the delay in RetryInfo with the same key; `unswept_shards` in `tccctl status` counts down. Ids work meanwhile.";
    Draining = "DRAINING", Unavailable, 503:
        "This instance is shutting down. Nothing was done."
        "Repeat at another instance, with the same id or key.";
    AuditIncomplete = "AUDIT_INCOMPLETE", Unavailable, 503:
        "A database did not answer, so the audit did not come to its end."
        "Run it again.";
    OutcomeUnknown = "OUTCOME_UNKNOWN", DeadlineExceeded, 504:
        "There was no answer in time. It goes on, and whether it will succeed is not known yet."
        "Repeat with the same id or key, or read the hold.";
}

/// A text that names no reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(name: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().find(|reason| reason.name() == name).copied().ok_or(UnknownReason)
    }
}

/// A gRPC code as the specification writes it: `FAILED_PRECONDITION`.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The manual's page on errors, in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = "\
# Errors

Every error carries `google.rpc.ErrorInfo` with the domain `tcc`, one of these reasons, and metadata that names what it is about.
An error of shape carries `google.rpc.BadRequest` with every field that is wrong, too; what is worth repeating, `google.rpc.RetryInfo`.
Over HTTP an error is a problem document with the same reason and metadata ([http.md](http.md)).

Two errors of gRPC have no reason, since they are made before a request is one: a message above the size limit is OUT_OF_RANGE, an
unknown method UNIMPLEMENTED.

A refusal is final: the same request gets the same refusal for ever, marked `replayed` in the metadata from the second time on.
A failure of the infrastructure is never kept as an answer.

`tccctl explain REASON` prints one of these.
"
    .to_owned();
    for reason in Reason::ALL {
        let (name, code, http) = (reason.name(), code_name(reason.code()), reason.http());
        let (meaning, advice) = (reason.meaning(), reason.advice());
        write!(page, "\n## {name}\n\n{code}, HTTP {http}. {meaning}\n\n{advice}\n")
            .expect("a text takes more text");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_manuals_page_is_the_registry() {
        let manual = include_str!("../../coordinator/docs/errors.md");

        assert!(manual == page(), "write it anew: tccctl explain > coordinator/docs/errors.md");
    }

    #[test]
    fn names_are_unique_and_as_the_api_conventions_want_them() {
        let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();

        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let name = reason.name();
            assert!(name.len() <= 63 && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{name}");
            assert_eq!(name.parse(), Ok(*reason));
            assert!((400..=504).contains(&reason.http()), "{name}");
            assert!(!matches!(reason.code(), Code::Ok | Code::Unknown | Code::Internal), "{name}");
        }
        assert_eq!("NONSENSE".parse::<Reason>(), Err(UnknownReason));
    }
}
