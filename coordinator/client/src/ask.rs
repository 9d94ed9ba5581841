//! Asking until there is an answer.
//!
//! The server marks everything that it decides with a reason, and says by the code whether the decision is
//! final. What it has not decided, and what breaks off on the way, is asked again with the same id or key:
//! for as long as the patience lasts, with pauses that double, each at least as long as the server asks for.
//! What would not be safe to repeat (a cancel that depends on an etag, whose lost first attempt may itself
//! have changed it) is repeated only if it is certain that nothing was done.

use crate::{Client, connect::Shared};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};
use tcc_proto::{Reason, reason::DOMAIN, v1};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

/// The first and the longest pause before a call is repeated; the server may ask for a longer one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What a call ended with, if not with what it promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server said no. The same request would get the same answer.
    #[error("{what}: {no}")]
    No {
        /// What was asked.
        what: &'static str,
        /// The answer.
        no: No,
    },
    /// There was no answer until the patience ended. It may have been done, now or later: ask again with the
    /// same id or key.
    #[error(
        "{what}: not known after {after:?}, ask again with the same id or key; the last thing heard is: {last}"
    )]
    Unknown {
        /// What was asked.
        what: &'static str,
        /// How long it was asked.
        after: Duration,
        /// How the last attempt ended, for people.
        last: String,
    },
    /// The answer is not one of this API.
    #[error("{what}: an answer that makes no sense: {why}")]
    Unreadable {
        /// What was asked.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// The server's no, if it is one.
    #[must_use]
    pub fn no(&self) -> Option<&No> {
        match self {
            Self::No { no, .. } => Some(no),
            Self::Unknown { .. } | Self::Unreadable { .. } => None,
        }
    }

    /// Why the server said no, if it did, and for a reason that this client knows.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.no()?.reason()
    }

    /// Whether it may have been done.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// A definite no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct No {
    name: String,
    message: String,
    metadata: BTreeMap<String, String>,
}

impl No {
    /// Why; `None` if the server has reasons that this client does not know. See [`No::name`].
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.name.parse().ok()
    }

    /// The name of the reason, such as `INSUFFICIENT_FUNDS`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What happened, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// A detail, such as the `field` that it is about.
    #[must_use]
    pub fn detail(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Whether it is the answer that the same id or key got before.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.detail("replayed") == Some("true")
    }
}

impl fmt::Display for No {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

/// When a call may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Whatever became of the last attempt.
    Safe,
    /// If nothing became of it.
    IfNotDone,
}

/// What a status says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    No(No),
    /// Ask again, after this pause at least.
    Again {
        after: Duration,
        is_done_for_sure: bool,
    },
    /// The token was good once.
    Expired(No),
}

/// What an answer to a call is, or that it is to be asked again.
pub(crate) enum Answer<T> {
    Is(T),
    NotYet(String),
}

impl Client {
    /// Makes a call until it has an answer. `read` may say that the answer is not one yet.
    pub(crate) async fn ask<M, R, T, F>(
        &self,
        what: &'static str,
        repeat: Repeat,
        message: M,
        call: impl Fn(&Shared, Request<M>) -> F,
        read: impl Fn(R) -> Result<Answer<T>, String>,
    ) -> Result<T, Error>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut asking = Asking::begin(self.patience);
        let mut has_expired = false;
        loop {
            let sent = Instant::now();
            let request = asking.request(&self.shared, message.clone());
            let (last, at_least) = match call(&self.shared, request).await {
                Ok(response) => match read(response.into_inner()) {
                    Ok(Answer::Is(answer)) => return Ok(answer),
                    Ok(Answer::NotYet(phase)) => (phase, Duration::ZERO),
                    Err(why) => return Err(Error::Unreadable { what, why }),
                },
                Err(status) => match said(&status) {
                    Said::No(no) => return Err(Error::No { what, no }),
                    Said::Expired(no) if has_expired => return Err(Error::No { what, no }),
                    Said::Expired(no) => {
                        has_expired = true;
                        (no.to_string(), Duration::ZERO)
                    }
                    Said::Again { after, is_done_for_sure } => {
                        if let Some(told) = &self.shared.on_lost {
                            told(sent.into_std());
                        }
                        let last = told_of(&status);
                        if repeat == Repeat::IfNotDone && !is_done_for_sure {
                            return Err(asking.unknown(what, last));
                        }
                        (last, after)
                    }
                },
            };
            if !asking.pause(at_least).await {
                return Err(asking.unknown(what, last));
            }
        }
    }
}

/// How long something has been asked, and how long it may be.
pub(crate) struct Asking {
    began: Instant,
    patience: Duration,
    pause: Duration,
}

impl Asking {
    pub(crate) fn begin(patience: Duration) -> Self {
        Self { began: Instant::now(), patience, pause: PAUSES.0 }
    }

    /// A message for one attempt.
    pub(crate) fn request<M>(&self, shared: &Shared, message: M) -> Request<M> {
        let left = self.patience.saturating_sub(self.began.elapsed());
        let mut request = shared.request(message);
        request.set_timeout(shared.attempt.min(left).max(Duration::from_millis(1)));
        request
    }

    /// Waits before the next attempt. `false`: there is no time for one.
    pub(crate) async fn pause(&mut self, at_least: Duration) -> bool {
        let wait = self.pause.mul_f64(0.8 + 0.4 * fastrand::f64()).max(at_least);
        if self.began.elapsed() + wait >= self.patience {
            return false;
        }
        tokio::time::sleep(wait).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
        true
    }

    pub(crate) fn unknown(&self, what: &'static str, last: String) -> Error {
        Error::Unknown { what, after: self.began.elapsed(), last }
    }
}

/// For people: the code, and what the server or the connection says.
pub(crate) fn told_of(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Whether a status ends the call.
pub(crate) fn said(status: &Status) -> Said {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
    let info = info.map(|info| (info.reason, info.metadata));
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    heard(status.code(), info, status.message(), after)
}

/// Whether the error of one item of a batch ends it.
pub(crate) fn said_of_item(error: v1::ItemError) -> Said {
    let v1::ItemError { code, reason, message, metadata, retry_delay } = error;
    let info = (!reason.is_empty()).then_some((reason, metadata));
    heard(Code::from(code), info, &message, retry_delay.and_then(|delay| delay.try_into().ok()))
}

fn heard(
    code: Code,
    info: Option<(String, HashMap<String, String>)>,
    message: &str,
    after: Option<Duration>,
) -> Said {
    let is_open = matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted);
    let is_transport =
        matches!(code, Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted | Code::DataLoss);
    let reason: Option<Reason> = info.as_ref().and_then(|(reason, _)| reason.parse().ok());
    if is_open || (info.is_none() && is_transport) {
        let after = after.unwrap_or_default();
        let is_done_for_sure = matches!(
            reason,
            Some(
                Reason::Overloaded
                    | Reason::RateLimited
                    | Reason::OpenQuotaReached
                    | Reason::Draining
                    | Reason::KeysNotReady
            )
        );
        return Said::Again { after, is_done_for_sure };
    }
    let (name, metadata) = match info {
        Some((reason, metadata)) => (reason, metadata.into_iter().collect()),
        None => (tcc_proto::reason::code_name(code).to_owned(), BTreeMap::new()),
    };
    let no = No { name, message: message.to_owned(), metadata };
    if reason == Some(Reason::TokenExpired) { Said::Expired(no) } else { Said::No(no) }
}

/// Whether a stream that ended so is to be begun again.
pub(crate) fn is_over(what: &'static str, status: &Status) -> Result<(), Error> {
    match said(status) {
        Said::No(no) => Err(Error::No { what, no }),
        Said::Again { .. } | Said::Expired(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tonic_types::ErrorDetails;

    fn from_server(reason: Reason, delay: Option<Duration>) -> Status {
        let mut details =
            ErrorDetails::with_error_info(reason.name(), DOMAIN, HashMap::<String, String>::new());
        details.set_retry_info(delay);
        Status::with_error_details(reason.code(), "told", details)
    }

    fn client(patience: Duration) -> Client {
        Client::at("http://localhost:1").lazy().unwrap().within(patience)
    }

    /// Asks a server that says these things one after the other, and then yes. How often it was asked, and
    /// the end.
    async fn asked(repeat: Repeat, says: &[Status]) -> (usize, Result<(), Error>) {
        let count = Cell::new(0);
        let call = |_: &Shared, _: Request<()>| {
            let status = says.get(count.get()).cloned();
            count.set(count.get() + 1);
            async { status.map_or(Ok(Response::new(())), Err) }
        };
        let end =
            client(Duration::from_secs(5)).ask("asking", repeat, (), call, |()| Ok(Answer::Is(()))).await;
        (count.get(), end)
    }

    #[tokio::test]
    async fn what_is_not_decided_is_asked_again_and_what_is_decided_is_not() {
        for status in [
            Status::unavailable("connection refused"),
            Status::unknown("broken pipe"),
            Status::internal("a stream is reset"),
            Status::cancelled("timeout"),
            from_server(Reason::OutcomeUnknown, None),
            from_server(Reason::Overloaded, Some(Duration::from_millis(250))),
            from_server(Reason::Draining, None),
        ] {
            assert_eq!(asked(Repeat::Safe, &[status.clone(), status]).await, (3, Ok(())));
        }
        for reason in [
            Reason::InsufficientFunds,
            Reason::IdReused,
            Reason::DueTimeInPast,
            Reason::EtagMismatch,
            Reason::NotAllowed,
        ] {
            let (count, end) = asked(Repeat::Safe, &[from_server(reason, None)]).await;
            assert_eq!((count, end.unwrap_err().reason()), (1, Some(reason)));
        }
        let (count, end) = asked(Repeat::Safe, &[Status::unimplemented("what?")]).await;
        assert_eq!((count, end.unwrap_err().no().unwrap().name()), (1, "UNIMPLEMENTED"));
    }

    #[tokio::test]
    async fn what_depends_on_an_etag_is_asked_again_only_if_nothing_was_done() {
        let (count, end) = asked(Repeat::IfNotDone, &[Status::unavailable("cut")]).await;
        assert_eq!((count, end.unwrap_err().is_unknown()), (1, true));

        let (count, end) = asked(Repeat::IfNotDone, &[from_server(Reason::Overloaded, None)]).await;
        assert_eq!((count, end), (2, Ok(())));
    }

    #[tokio::test]
    async fn an_expired_token_is_replaced_once() {
        let expired = from_server(Reason::TokenExpired, None);

        assert_eq!(asked(Repeat::Safe, std::slice::from_ref(&expired)).await, (2, Ok(())));
        let (count, end) = asked(Repeat::Safe, &[expired.clone(), expired]).await;
        assert_eq!((count, end.unwrap_err().reason()), (2, Some(Reason::TokenExpired)));
    }

    #[tokio::test]
    async fn the_server_says_how_long_to_wait_and_the_patience_for_how_long() {
        let began = tokio::time::Instant::now();
        let slow = from_server(Reason::RateLimited, Some(Duration::from_millis(300)));

        assert_eq!(asked(Repeat::Safe, std::slice::from_ref(&slow)).await, (2, Ok(())));
        assert!(began.elapsed() >= Duration::from_millis(300));
        let impatient = client(Duration::from_millis(200));
        let call = |_: &Shared, _: Request<()>| async { Err::<Response<()>, _>(slow.clone()) };
        let end = impatient.ask("asking", Repeat::Safe, (), call, |()| Ok(Answer::Is(()))).await;
        assert!(end.unwrap_err().is_unknown());
    }
}
