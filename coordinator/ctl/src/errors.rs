//! What can go wrong, what it is called, what to do about it, and the exit code.
//!
//! A server's error is taken apart once, here: gRPC code, `google.rpc.ErrorInfo`, message. The one distinction that
//! decides is between "no" and "not known". A refusal is an answer; a deadline, a lost connection or an unreachable shard
//! is none, and whatever was asked for may have happened. It keeps out printing.

use serde::Serialize;
use std::{collections::BTreeMap, error::Error, io, path::Path, process::ExitCode, time::Duration};
use tcc_proto::{
    reason::{Reason, code_name},
    v1,
};
use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt as _;
use uuid::Uuid;

/// How a command went, for scripts. A wrong command line is 2; clap says that itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Done = 0,
    /// The server refused, or failed.
    Failed = 1,
    /// The command line is wrong in a way that only the command knows.
    Usage = 2,
    /// Something is wrong that was looked for.
    Findings = 3,
    /// The server cannot be reached, or the outcome is not known.
    Unknown = 4,
    /// Some of it was done, and some of it was not.
    Partly = 8,
    /// Nobody said yes.
    Declined = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// Why there is nothing to print on stdout.
///
/// It serializes as what `-o json` shows inside of `error`.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// What to exit with.
    #[serde(skip)]
    pub exit: Exit,
    /// The name of the gRPC code, such as `FAILED_PRECONDITION`.
    code: &'static str,
    /// From `ErrorInfo`, such as `INSUFFICIENT_FUNDS`.
    reason: Option<String>,
    /// For people.
    message: String,
    /// From `ErrorInfo`.
    metadata: BTreeMap<String, String>,
    /// What to do, where that is known.
    #[serde(skip)]
    advice: Option<Advice>,
    /// The id to repeat the command with, if it needs one.
    #[serde(skip)]
    pub id: Option<Uuid>,
}

#[derive(Debug)]
enum Advice {
    /// Something of its own.
    Say(String),
    /// To repeat the command, after a while if the server asked for one.
    Repeat(Option<Duration>),
}

impl Failure {
    /// Nobody answers there: nothing was asked, so nothing happened.
    pub fn unreachable(server: &str, error: &(dyn Error + 'static)) -> Box<Self> {
        let message = format!("cannot connect to {server}: {}", root_cause(error));
        let mut failure = Self::new(Code::Unavailable, message);
        let advice = format!("is tccd running at {server}? Otherwise set --server or TCC_SERVER");
        failure.advice = Some(Advice::Say(advice));
        failure
    }

    /// The server, or the connection to it, said no or nothing.
    pub fn of_status(server: &str, status: &Status) -> Box<Self> {
        if let Some(error) =
            status.source().filter(|error| causes(*error).any(|cause| cause.is::<ConnectError>()))
        {
            return Self::unreachable(server, error);
        }
        let code = code_of(status);
        let message = match (status.message(), status.source()) {
            _ if is_timeout(status) => format!("{server} did not answer in time"),
            (message, Some(error)) => format!("{message}: {}", root_cause(error)),
            ("", None) => code.description().to_owned(),
            (message, None) => message.to_owned(),
        };
        let mut failure = Self::new(code, message);
        if let Some(info) = status.get_details_error_info() {
            failure.reason = Some(info.reason).filter(|reason| !reason.is_empty());
            failure.metadata = info.metadata.into_iter().collect();
        }
        // A status that did not come from the server was made when the connection broke. The request may have arrived.
        if status.source().is_some() {
            failure.exit = Exit::Unknown;
        }
        let retry_delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        failure.advice = failure.choose_advice(code, server, retry_delay);
        failure
    }

    /// The server said OK, but not what this command asks for.
    pub fn incomplete(what_is_missing: &str) -> Box<Self> {
        Self::new(Code::Internal, format!("the server's answer has no {what_is_missing}"))
    }

    /// The command line does not say what is needed.
    pub fn usage(message: &str) -> Box<Self> {
        let mut failure = Self::new(Code::InvalidArgument, message.to_owned());
        failure.exit = Exit::Usage;
        failure
    }

    /// There is no such thing.
    pub fn not_found(message: &str) -> Box<Self> {
        Self::new(Code::NotFound, message.to_owned())
    }

    /// A file cannot be read or written.
    pub fn file(what: &str, error: &io::Error) -> Box<Self> {
        Self::new(Code::FailedPrecondition, format!("{what}: {error}"))
    }

    /// Another process writes a file.
    pub fn busy(file: &Path, error: &str) -> Box<Self> {
        let file = file.display();
        let message = format!("{file} is in use: {error}; another import of the same file may be under way");
        Self::new(Code::FailedPrecondition, message)
    }

    /// A configuration with which no `tccd` starts, or whose databases do not answer.
    pub fn configuration(message: &str) -> Box<Self> {
        Self::new(Code::InvalidArgument, message.to_owned())
    }

    /// A database did not answer a question, or not as wanted.
    pub fn database(error: &tokio_postgres::Error) -> Box<Self> {
        match error.as_db_error() {
            Some(server) => Self::new(Code::InvalidArgument, server.message().to_owned()),
            None => {
                Self::new(Code::Unavailable, format!("the database does not answer: {}", root_cause(error)))
            }
        }
    }

    /// A file is not what this command reads.
    pub fn wrong_input(file: &str, reason: &str, message: &str) -> Box<Self> {
        let mut failure = Self::new(Code::InvalidArgument, format!("{file}: {message}"));
        failure.reason = Some(reason.to_owned());
        failure
    }

    /// What one item of a batch failed with.
    pub fn of_item(error: v1::ItemError) -> Box<Self> {
        let mut failure = Self::new(Code::from_i32(error.code), error.message);
        failure.reason = Some(error.reason).filter(|reason| !reason.is_empty());
        failure.metadata = error.metadata.into_iter().collect();
        failure
    }

    /// It was repeated for long enough: what was asked for may have happened.
    pub fn unknown(mut self: Box<Self>) -> Box<Self> {
        self.exit = Exit::Unknown;
        self
    }

    /// Says something else about what to do.
    pub fn advise(&mut self, advice: String) {
        self.advice = Some(Advice::Say(advice));
    }

    /// Whether the same request may well have another answer in a moment.
    pub fn is_worth_repeating(&self) -> bool {
        self.exit == Exit::Unknown || self.delay().is_some()
    }

    /// How long the server wants to be left alone, if it said so.
    pub fn delay(&self) -> Option<Duration> {
        match self.advice {
            Some(Advice::Repeat(delay)) => delay,
            _ => None,
        }
    }

    /// A person would have to say yes, and there is none, or it said no.
    pub fn declined(message: &str) -> Box<Self> {
        let mut failure = Self::new(Code::FailedPrecondition, message.to_owned());
        (failure.exit, failure.reason) = (Exit::Declined, Some(Reason::Declined.name().to_owned()));
        failure
    }

    /// What is not a server of tcc cannot be asked at all.
    pub fn unusable(why: String) -> Box<Self> {
        Self::new(Code::Unavailable, why)
    }

    /// Nobody reads what is printed.
    pub fn unwritable(error: &io::Error) -> Box<Self> {
        Self::new(Code::Internal, format!("cannot write to stdout: {error}"))
    }

    /// As people read it: `<message> (REASON)`.
    pub fn text(&self) -> String {
        format!("{} ({})", self.message, self.reason())
    }

    /// The reason, or the code of an error without one.
    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or(self.code)
    }

    /// One line about what to do. Whatever has an id must be repeated with it, or it may happen twice.
    pub fn hint(&self) -> Option<String> {
        let delay = match self.advice.as_ref()? {
            Advice::Say(advice) => return Some(advice.clone()),
            Advice::Repeat(delay) => delay,
        };
        let wait = delay.map(|delay| format!("wait {} s, then ", delay.as_secs_f32())).unwrap_or_default();
        Some(match self.id {
            Some(id) => format!("{wait}repeat the command with --id {id}: it takes effect once"),
            None => format!("{wait}repeat the command: that is safe"),
        })
    }

    fn new(code: Code, message: String) -> Box<Self> {
        Box::new(Self {
            exit: exit_of(code),
            code: code_name(code),
            reason: None,
            message,
            metadata: BTreeMap::new(),
            advice: None,
            id: None,
        })
    }

    fn choose_advice(&self, code: Code, server: &str, retry_delay: Option<Duration>) -> Option<Advice> {
        let named = |key: &str| self.metadata.get(key).map_or("ID", String::as_str);
        let advice = match self.reason() {
            "ACCOUNT_NOT_FOUND" => {
                format!("open it with: tccctl accounts create {} CURRENCY", named("account"))
            }
            "ACCOUNT_EXISTS" => format!("look at it with: tccctl accounts get {}", named("id")),
            "HOLD_NOT_CANCELLABLE" => {
                format!("see how it ends with: tccctl holds get {} --watch", named("id"))
            }
            "TOKEN_MISSING" | "TOKEN_INVALID" | "TOKEN_EXPIRED" | "CERTIFICATE_UNKNOWN" => {
                "give an API key or a token with --token-file or TCC_TOKEN, or a certificate with --certificate and --key"
                    .to_owned()
            }
            "ACTION_REFUSED" | "PLAN_REQUIRED" => {
                format!("look at it with: tccctl holds describe {}", named("id"))
            }
            "PLAN_NOT_FOUND" => "see which there are with: tccctl plan list".to_owned(),
            "SHARD_DRAINED" => {
                format!("let work go on with: tccctl shards resume {} --reason REASON", named("shard"))
            }
            "ID_TIME_OUT_OF_RANGE" => {
                "compare the clock of this machine with database_time of: tccctl status".to_owned()
            }
            _ if code == Code::Unimplemented => {
                format!("is it a tccd of this version that listens at {server}?")
            }
            _ if self.exit == Exit::Unknown || retry_delay.is_some() => {
                return Some(Advice::Repeat(retry_delay));
            }
            _ => return None,
        };
        Some(Advice::Say(advice))
    }
}

fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Done,
        // This side never cancels, so CANCELLED is a call that the server's side gave up.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unknown,
        _ => Exit::Failed,
    }
}

/// tonic calls a deadline that passed CANCELLED, on either side.
fn code_of(status: &Status) -> Code {
    if is_timeout(status) { Code::DeadlineExceeded } else { status.code() }
}

fn is_timeout(status: &Status) -> bool {
    status.code() == Code::Cancelled && status.message() == TimeoutExpired(()).to_string()
}

/// The innermost error: "Connection refused", where the outer ones say "transport error".
fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashMap, sync::Arc};
    use tonic_types::ErrorDetails;

    const SERVER: &str = "http://127.0.0.1:7070";

    fn refusal(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let metadata: HashMap<_, _> = metadata.iter().map(own).collect();
        Status::with_error_details(code, "no", ErrorDetails::with_error_info(reason, "tcc", metadata))
    }

    #[test]
    fn a_refusal_is_1_and_an_unknown_outcome_is_4() {
        for code in 1..=16 {
            let code = Code::from_i32(code);
            let unknown = matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
            let expected = if unknown { Exit::Unknown } else { Exit::Failed };

            assert_eq!(Failure::of_status(SERVER, &Status::new(code, "no")).exit, expected, "{code:?}");
        }
    }

    #[test]
    fn a_connection_that_breaks_during_a_call_leaves_the_outcome_unknown() {
        let mut status = Status::new(Code::Unknown, "h2 protocol error");
        status.set_source(Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));

        let failure = Failure::of_status(SERVER, &status);

        assert_eq!(failure.exit, Exit::Unknown);
        assert_eq!(failure.text(), "h2 protocol error: connection reset (UNKNOWN)");
        assert!(failure.hint().unwrap().starts_with("repeat the command"));
    }

    #[test]
    fn a_server_that_has_gone_between_two_calls_is_unreachable() {
        let mut status = Status::unavailable("tcp connect error");
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        status.set_source(Arc::new(ConnectError(refused.into())));

        let failure = Failure::of_status(SERVER, &status);

        assert_eq!(failure.exit, Exit::Unknown);
        assert_eq!(
            failure.text(),
            "cannot connect to http://127.0.0.1:7070: connection refused (UNAVAILABLE)"
        );
    }

    #[test]
    fn a_deadline_is_called_a_deadline() {
        let failure = Failure::of_status(SERVER, &Status::cancelled("Timeout expired"));

        assert_eq!(failure.exit, Exit::Unknown);
        assert_eq!(failure.text(), "http://127.0.0.1:7070 did not answer in time (DEADLINE_EXCEEDED)");
    }

    #[test]
    fn the_reason_comes_from_error_info() {
        let status = refusal(Code::FailedPrecondition, "INSUFFICIENT_FUNDS", &[("b", "2"), ("a", "1")]);

        let failure = Failure::of_status(SERVER, &status);

        assert_eq!(failure.text(), "no (INSUFFICIENT_FUNDS)");
        assert_eq!(
            serde_json::to_string(&failure).unwrap(),
            r#"{"code":"FAILED_PRECONDITION","reason":"INSUFFICIENT_FUNDS","message":"no","metadata":{"a":"1","b":"2"}}"#
        );
        assert_eq!(failure.hint(), None);
    }

    #[test]
    fn an_error_without_error_info_goes_by_its_code() {
        let failure = Failure::of_status(SERVER, &Status::unimplemented(""));

        assert_eq!(failure.text(), "Operation is not implemented or not supported (UNIMPLEMENTED)");
        assert!(failure.hint().unwrap().contains(SERVER));
    }

    #[test]
    fn advice_names_what_the_server_named() {
        let not_found = refusal(Code::NotFound, "ACCOUNT_NOT_FOUND", &[("account", "alice")]);
        let paid = refusal(Code::FailedPrecondition, "HOLD_NOT_CANCELLABLE", &[("id", "7")]);

        assert_eq!(
            Failure::of_status(SERVER, &not_found).hint().unwrap(),
            "open it with: tccctl accounts create alice CURRENCY"
        );
        assert_eq!(
            Failure::of_status(SERVER, &paid).hint().unwrap(),
            "see how it ends with: tccctl holds get 7 --watch"
        );
    }

    #[test]
    fn the_servers_wish_to_be_left_alone_is_passed_on() {
        let mut details = ErrorDetails::with_error_info("OVERLOADED", "tcc", []);
        details.set_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::ResourceExhausted, "too much", details);

        let failure = Failure::of_status(SERVER, &status);

        assert_eq!(
            (failure.exit, failure.hint().as_deref()),
            (Exit::Failed, Some("wait 0.25 s, then repeat the command: that is safe"))
        );
    }

    #[test]
    fn what_has_an_id_is_repeated_with_it() {
        let id = Uuid::now_v7();
        let mut lost = Failure::of_status(SERVER, &Status::unavailable("gone"));
        let mut refused = Failure::of_status(SERVER, &Status::failed_precondition("no"));

        lost.id = Some(id);
        refused.id = Some(id);

        assert_eq!(lost.hint(), Some(format!("repeat the command with --id {id}: it takes effect once")));
        assert_eq!(refused.hint(), None);
    }
}
