//! The demo as a client of tccd.
//!
//! No answer is its own answer: a call that broke off, timed out or was turned away may or may not have happened, so it is
//! made again with the same id until there is an answer, or until the patience ends, which ends the demo. What comes back is
//! a yes or a no, and both are final. Nothing is decided here.

use crate::{
    books::Balance,
    flight::Flight,
    plan::Order,
    story::{Cancel, Seen},
};
use anyhow::{Context as _, anyhow, bail};
use std::time::{Duration, Instant};
use tcc_core::Timestamp;
use tcc_proto::v1::{
    self, hold_service_client::HoldServiceClient, ledger_service_client::LedgerServiceClient,
    operator_service_client::OperatorServiceClient, run_audit_response::Event,
};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;
use uuid::Uuid;

/// How long one attempt waits.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long a call is repeated while there is no answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first and the longest pause before a call is repeated.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(320));

/// A connection that mends itself.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    currency: &'static str,
    flight: Flight,
}

/// A definite answer.
#[derive(Debug, Clone)]
pub enum Answer<T> {
    /// It is done.
    Yes(T),
    /// It is not, and will not be.
    No(No),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct No {
    /// The gRPC code.
    pub code: Code,
    /// The reason of its `ErrorInfo`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A hold, and whether it was known before.
#[derive(Debug, Clone)]
pub struct Taken {
    /// As it stands.
    pub seen: Seen,
    /// Known before, with the same body.
    pub replayed: bool,
}

/// What the auditor says.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// One sentence each.
    pub findings: Vec<String>,
    /// How many postings it read.
    pub postings: i64,
    /// In the demo's currency, issued minus burned.
    pub issued: i64,
}

impl Client {
    /// Connects when first used, and again whenever the connection breaks.
    ///
    /// # Errors
    ///
    /// If `url` is none.
    pub fn new(url: &str, currency: &'static str, flight: Flight) -> anyhow::Result<Self> {
        let endpoint =
            Endpoint::from_shared(url.to_owned()).context("reading tccd's address")?.tcp_nodelay(true);
        Ok(Self { channel: endpoint.connect_lazy(), currency, flight })
    }

    /// Opens an account.
    ///
    /// # Errors
    ///
    /// No answer, or a no.
    pub async fn open(&self, account: &str) -> anyhow::Result<()> {
        let what = || format!("opening account {account}");
        let body = v1::CreateAccountRequest { id: account.to_owned(), currency: self.currency.to_owned() };
        let call = || {
            let (mut ledger, request) = (self.ledger(), timed(body.clone()));
            async move { ledger.create_account(request).await }
        };
        self.ask(what, call).await?.or_fail(what)?;
        Ok(())
    }

    /// Issues units to an account, once.
    ///
    /// # Errors
    ///
    /// No answer, or a no.
    pub async fn issue(&self, account: &str, value: i64) -> anyhow::Result<()> {
        let what = || format!("issuing {value} to {account}");
        let id = Uuid::now_v7().to_string();
        let body = v1::IssueRequest { id, account: account.to_owned(), amount: Some(self.amount(value)) };
        let call = || {
            let (mut ledger, request) = (self.ledger(), timed(body.clone()));
            async move { ledger.issue(request).await }
        };
        self.ask(what, call).await?.or_fail(what)?;
        Ok(())
    }

    /// What an account owns.
    ///
    /// # Errors
    ///
    /// No answer, or a no.
    pub async fn balance(&self, account: &str) -> anyhow::Result<Balance> {
        let what = || format!("reading account {account}");
        let body = v1::GetAccountRequest { id: account.to_owned() };
        let call = || {
            let (mut ledger, request) = (self.ledger(), timed(body.clone()));
            async move { ledger.get_account(request).await }
        };
        let answer = self.ask(what, call).await?.or_fail(what)?;
        let v1::Account { available, held, .. } =
            answer.account.with_context(|| format!("{}: empty", what()))?;
        Ok(Balance { available, held })
    }

    /// Creates a hold that pays at `due_at`.
    ///
    /// # Errors
    ///
    /// No answer, or one that cannot be read.
    pub async fn create(&self, id: &str, body: &Body<'_>) -> anyhow::Result<Answer<Taken>> {
        let what = || format!("creating hold {id}");
        let request = v1::CreateHoldRequest {
            id: id.to_owned(),
            payer: body.payer.to_owned(),
            payee: body.payee.to_owned(),
            amount: Some(self.amount(body.amount)),
            due_at: Some(prost_types::Timestamp {
                seconds: body.due_at.as_second(),
                nanos: body.due_at.subsec_nanosecond(),
            }),
            on_maturity: v1::OnMaturity::Confirm.into(),
            ..Default::default()
        };
        let call = || {
            let (mut holds, request) = (self.holds(), timed(request.clone()));
            async move { holds.create_hold(request).await }
        };
        match self.ask(what, call).await? {
            Answer::Yes(v1::CreateHoldResponse { hold, replayed }) => {
                Ok(Answer::Yes(Taken { seen: seen(id, hold).with_context(what)?, replayed }))
            }
            Answer::No(no) => Ok(Answer::No(no)),
        }
    }

    /// A hold as it stands.
    ///
    /// # Errors
    ///
    /// No answer, or a no.
    pub async fn look(&self, id: &str) -> anyhow::Result<Seen> {
        let what = || format!("reading hold {id}");
        let body = v1::GetHoldRequest { id: id.to_owned() };
        let call = || {
            let (mut holds, request) = (self.holds(), timed(body.clone()));
            async move { holds.get_hold(request).await }
        };
        let answer = self.ask(what, call).await?.or_fail(what)?;
        seen(id, answer.hold).with_context(what)
    }

    /// Cancels a hold.
    ///
    /// # Errors
    ///
    /// No answer, or one that a cancel does not have.
    pub async fn cancel(&self, id: &str) -> anyhow::Result<Cancel> {
        let what = || format!("cancelling hold {id}");
        let body = v1::CancelHoldRequest { id: id.to_owned(), etag: String::new() };
        let call = || {
            let (mut holds, request) = (self.holds(), timed(body.clone()));
            async move { holds.cancel_hold(request).await }
        };
        match self.ask(what, call).await? {
            Answer::Yes(answer) => match seen(id, answer.hold).with_context(what)?.phase {
                v1::Phase::Cancelled => Ok(Cancel::Cancelled),
                v1::Phase::Cancelling => Ok(Cancel::Open),
                phase => bail!("{}: answered with phase {}", what(), phase.as_str_name()),
            },
            Answer::No(no) if no.code == Code::FailedPrecondition && no.reason == "HOLD_NOT_CANCELLABLE" => {
                Ok(Cancel::TooLate)
            }
            Answer::No(no) => Err(no.into_error(what)),
        }
    }

    /// Runs the auditor.
    ///
    /// # Errors
    ///
    /// If it does not come to its end.
    pub async fn audit(&self, told: impl Fn(&str)) -> anyhow::Result<Audit> {
        let mut operator = OperatorServiceClient::new(self.channel.clone());
        let mut events =
            operator.run_audit(v1::RunAuditRequest {}).await.context("starting the audit")?.into_inner();
        let mut audit = Audit::default();
        let mut summary = None;
        while let Some(response) = events.message().await.context("reading the audit")? {
            match response.event {
                Some(Event::Progress(progress)) => told(&progress.step),
                Some(Event::Finding(found)) => audit.findings.push(format!(
                    "{}: shard {:?}, transaction {:?}, account {:?}: expected {}, found {}",
                    found.kind, found.shard, found.transaction_id, found.account, found.expected, found.found
                )),
                Some(Event::Summary(told)) => summary = Some(told),
                None => {}
            }
        }
        let summary = summary.context("the audit ended without a summary")?;
        if summary.findings != audit.findings.len() as i64 {
            audit.findings.push(format!(
                "it counts {} findings, and told {}",
                summary.findings,
                audit.findings.len()
            ));
        }
        audit.postings = summary.postings;
        audit.issued =
            summary.issued.iter().filter(|sum| sum.currency == self.currency).map(|sum| sum.value).sum();
        Ok(audit)
    }

    /// Makes a call until it has an answer.
    async fn ask<T, F>(&self, what: impl Fn() -> String, call: impl Fn() -> F) -> anyhow::Result<Answer<T>>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + PATIENCE;
        let mut pause = PAUSES.0;
        loop {
            let departed = self.flight.depart();
            let status = match call().await {
                Ok(response) => return Ok(Answer::Yes(response.into_inner())),
                Err(status) => status,
            };
            match read(&status) {
                Some(no) => return Ok(Answer::No(no)),
                None => self.flight.lost(departed),
            }
            if Instant::now() >= until {
                return Err(anyhow!(status).context(format!("{}: no answer for {PATIENCE:?}", what())));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn amount(&self, value: i64) -> v1::Amount {
        v1::Amount { value, currency: self.currency.to_owned() }
    }

    fn holds(&self) -> HoldServiceClient<Channel> {
        HoldServiceClient::new(self.channel.clone())
    }

    fn ledger(&self) -> LedgerServiceClient<Channel> {
        LedgerServiceClient::new(self.channel.clone())
    }
}

/// What a creation asks for, beside its id.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    /// Who pays.
    pub payer: &'a str,
    /// Who is paid.
    pub payee: &'a str,
    /// In minor units.
    pub amount: i64,
    /// When.
    pub due_at: Timestamp,
}

impl<'a> Body<'a> {
    /// Of an order, between these two.
    #[must_use]
    pub fn new(order: &Order, payer: &'a str, payee: &'a str, due_at: Timestamp) -> Self {
        Self { payer, payee, amount: order.amount, due_at }
    }
}

impl<T> Answer<T> {
    fn or_fail(self, what: impl Fn() -> String) -> anyhow::Result<T> {
        match self {
            Self::Yes(value) => Ok(value),
            Self::No(no) => Err(no.into_error(what)),
        }
    }
}

impl No {
    /// As an error of what was being done.
    #[must_use]
    pub fn into_error(self, what: impl Fn() -> String) -> anyhow::Error {
        anyhow!("{}: {:?} {}: {}", what(), self.code, self.reason, self.message)
    }
}

/// A definite no, or `None` for no answer: tccd marks everything it decides with a reason, and says by the code whether the
/// decision is final.
fn read(status: &Status) -> Option<No> {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == "tcc");
    let is_open =
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted);
    let is_transport =
        matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted);
    if is_open || (info.is_none() && is_transport) {
        return None;
    }
    Some(No {
        code: status.code(),
        reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
        message: status.message().to_owned(),
    })
}

fn timed<T>(body: T) -> Request<T> {
    let mut request = Request::new(body);
    request.set_timeout(ATTEMPT);
    request
}

fn seen(id: &str, hold: Option<v1::Hold>) -> anyhow::Result<Seen> {
    let hold = hold.context("the answer has no hold")?;
    if hold.id != id {
        bail!("the answer is about {}", hold.id);
    }
    let (phase, cause) = (hold.phase(), hold.cause());
    let at = |time: prost_types::Timestamp| {
        Timestamp::new(time.seconds, time.nanos).context("a time out of range")
    };
    Ok(Seen {
        phase,
        cause,
        payer: hold.payer,
        payee: hold.payee,
        amount: hold.amount.context("a hold without amount")?.value,
        due_at: at(hold.due_at.context("a hold without due time")?)?,
        created_at: at(hold.created_at.context("a hold without time of creation")?)?,
        decided_at: hold.decided_at.map(at).transpose()?,
        settled_at: hold.settled_at.map(at).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    fn from_tccd(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "tcc", HashMap::<String, String>::new());
        Status::with_error_details(code, "told", details)
    }

    #[test]
    fn a_final_answer_is_one_that_tccd_gave() {
        for (code, reason) in [
            (Code::FailedPrecondition, "INSUFFICIENT_FUNDS"),
            (Code::AlreadyExists, "ID_REUSED"),
            (Code::InvalidArgument, "DUE_TIME_IN_PAST"),
        ] {
            let expected = No { code, reason: reason.into(), message: "told".into() };
            assert_eq!(read(&from_tccd(code, reason)), Some(expected));
        }
    }

    #[test]
    fn a_broken_call_is_no_answer() {
        for code in
            [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled, Code::DeadlineExceeded]
        {
            assert_eq!(read(&Status::new(code, "broken pipe")), None, "{code:?}");
        }
        for (code, reason) in [
            (Code::Unavailable, "DRAINING"),
            (Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
            (Code::ResourceExhausted, "OVERLOADED"),
        ] {
            assert_eq!(read(&from_tccd(code, reason)), None, "{reason}");
        }
    }
}
