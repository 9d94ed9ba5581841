//! A participant that is somewhere else, as the engine sees it.
//!
//! Calls gather in a [`Batcher`] and go over the wire together. What an answer says is handed on as it is, also what the
//! fence table forbids: whoever asked parks the transaction. No answer in time is [`Outcome::Unknown`]. So a participant that
//! hangs, lies or is gone hurts its own transactions only.
//!
//! A request is answered when all its calls are. So after one that came too late each call has a request of its own, until
//! all of some were in time: a call that is slow holds up itself. A participant that answers nothing in time, again and again,
//! is left alone for a while.

use crate::{
    batch::{Batcher, Executor, Failure, Limits},
    breaker::BreakerState,
    participant::{Call, Participant},
    wire::{
        Description, MAX_CALLS, MAX_REQUEST, PROTOCOL_VERSION, read_description, read_outcome, write_call,
    },
};
use futures::future::{BoxFuture, join_all};
use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tcc_core::{Outcome, Timestamp, decision::permits_next};
use tcc_proto::v1::{
    self, BranchCall, BranchOperation, participant_service_client::ParticipantServiceClient,
};
use tonic::{
    Code, Request, Status,
    transport::{self, Channel, ClientTlsConfig, Endpoint},
};

/// A certificate with its private key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// It, and those between it and its authority.
    pub chain: String,
    /// Its private key.
    pub key: String,
}

// A key does not belong into a log.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// How a participant is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long one request may take. After that its outcomes are unknown.
    pub deadline: Duration,
    /// How many requests are under way at a time.
    pub requests: usize,
    /// How many calls one request takes at most, up to 256.
    pub batch: usize,
    /// Whether it may veto. One that says that it may, and may not here, is not called.
    pub may_veto: bool,
    /// The authorities of its certificate, PEM. `None`: those of the system.
    pub ca: Option<String>,
    /// What is shown to it.
    pub identity: Option<Certificate>,
}

impl Default for Options {
    fn default() -> Self {
        Self::LIKELY
    }
}

impl Options {
    /// What fits most.
    pub const LIKELY: Self = Self {
        deadline: Duration::from_secs(10),
        requests: 4,
        batch: 64,
        may_veto: false,
        ca: None,
        identity: None,
    };
}

/// An address that is none, or a certificate.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAddress {
    /// An address.
    #[error(
        "{0:?} is no address of a participant; write it as https://HOST:PORT, or, on this machine alone, as \
         http://127.0.0.1:PORT: who can read the calls can repeat them"
    )]
    Address(String),
    /// An authority's certificate, or what is to be shown.
    #[error("the certificates for {0} cannot be used: {1}")]
    Certificate(String, String),
}

/// Makes sure that a participant could be called like this, without calling it.
///
/// # Errors
///
/// [`InvalidAddress`].
pub fn check(address: &str, options: &Options) -> Result<(), InvalidAddress> {
    endpoint(address, options).map(drop)
}

/// Where a participant is called, over TLS unless that is on this machine.
fn endpoint(address: &str, options: &Options) -> Result<Endpoint, InvalidAddress> {
    let endpoint = endpoint_anywhere(address, options.ca.as_deref(), options.identity.as_ref())?;
    let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
    match endpoint.uri().scheme_str() {
        Some("http") if !is_this_machine(host) => Err(InvalidAddress::Address(address.to_owned())),
        _ => Ok(endpoint),
    }
}

/// As [`endpoint`], for whoever has nothing to lose if what is said can be read: over TLS if the address says so.
pub(crate) fn endpoint_anywhere(
    address: &str,
    ca: Option<&str>,
    identity: Option<&Certificate>,
) -> Result<Endpoint, InvalidAddress> {
    let invalid = || InvalidAddress::Address(address.to_owned());
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| invalid())?;
    endpoint.uri().host().ok_or_else(invalid)?;
    match endpoint.uri().scheme_str() {
        Some("https") => {
            let tls = ClientTlsConfig::new().timeout(Duration::from_secs(5));
            let tls = match ca {
                Some(ca) => tls.ca_certificate(transport::Certificate::from_pem(ca)),
                None => tls.with_native_roots(),
            };
            let tls = match identity {
                Some(Certificate { chain, key }) => tls.identity(transport::Identity::from_pem(chain, key)),
                None => tls,
            };
            let unusable = |error| InvalidAddress::Certificate(address.to_owned(), root_cause(&error));
            endpoint.tls_config(tls).map_err(unusable)
        }
        Some("http") => Ok(endpoint),
        _ => Err(invalid()),
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// A participant that is called over gRPC. Clones share it.
#[derive(Clone)]
pub struct Remote {
    name: Arc<str>,
    calls: Batcher<BranchCall, Outcome>,
    /// What it said of itself when it was last connected to.
    seen: Arc<Mutex<Seen>>,
    patience: Duration,
}

/// What is known of a participant.
#[derive(Default)]
struct Seen {
    /// What it said of itself.
    described: Option<Description>,
    clock_ahead_ms: Option<i64>,
}

impl Seen {
    fn told(&mut self, description: Description) {
        let ahead = |time: Timestamp| (time - Timestamp::now()).total(jiff::Unit::Millisecond);
        self.clock_ahead_ms =
            description.time.and_then(|time| ahead(time).ok()).map(|ahead_ms| ahead_ms as i64);
        self.described = Some(description);
    }
}

/// So many calls may wait for their request.
const QUEUE: usize = 1_024;
/// A call that has waited for so many deadlines is given up.
const DEADLINES: u32 = 3;

impl Remote {
    /// Starts calling the participant of this name at this address. Connects by itself, and keeps trying.
    ///
    /// # Errors
    ///
    /// [`InvalidAddress`].
    pub fn start(name: &str, address: &str, options: &Options) -> Result<Self, InvalidAddress> {
        let endpoint = endpoint(address, options)?
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let (name, seen) = (Arc::<str>::from(name), Arc::<Mutex<Seen>>::default());
        let caller = |_| Caller {
            name: Arc::clone(&name),
            endpoint: endpoint.clone(),
            deadline: options.deadline,
            may_veto: options.may_veto,
            seen: Arc::clone(&seen),
            client: None,
            each_apart: false,
            lost: 0,
        };
        let limits = Limits {
            batch: options.batch.clamp(1, MAX_CALLS),
            // The request's own deadline comes first.
            patience: options.deadline + Duration::from_secs(1),
            queue: QUEUE,
            breaks: true,
        };
        let callers = (0..options.requests.max(1)).map(caller).collect();
        let calls = Batcher::start(&format!("participant {name}"), callers, limits);
        Ok(Self { name, calls, seen, patience: options.deadline * DEADLINES })
    }

    /// What it said of itself when it was last connected to; `None` before the first time.
    #[must_use]
    pub fn described(&self) -> Option<Description> {
        self.seen.lock().expect("no holder panics").described.clone()
    }

    /// How far its clock was ahead of the one here when it last said so, in milliseconds; `None` if it never did. Nothing
    /// depends on it.
    #[must_use]
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        self.seen.lock().expect("no holder panics").clock_ahead_ms
    }

    /// Whether it is left alone at the moment, since it answers nothing in time.
    #[must_use]
    pub fn is_left_alone(&self) -> bool {
        self.calls.is_connected() && self.calls.breaker() == BreakerState::Open
    }

    /// How many calls wait for their request.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.calls.queued()
    }
}

impl Participant for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    /// Before the first handshake it is not, nor while it is left alone because it answers too little.
    fn is_reachable(&self) -> bool {
        self.breaker() != BreakerState::Open
    }

    fn trouble(&self) -> Option<String> {
        self.calls.trouble()
    }

    fn breaker(&self) -> BreakerState {
        let is_described = self.seen.lock().expect("no holder panics").described.is_some();
        if is_described { self.calls.breaker() } else { BreakerState::Open }
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let Call { operation, transaction, branches } = call;
            let mut outcomes = Vec::with_capacity(branches.len());
            // Each branch has a fence of its own over there: the next one is asked when the one before permits.
            for branch in branches {
                let call = write_call(operation, transaction.id, branch, &transaction.encoded);
                let outcome = match tokio::time::timeout(self.patience, self.calls.call(call)).await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(unknown)) if unknown.is_rejected => Outcome::Failed(unknown.to_string()),
                    Ok(Err(unknown)) => Outcome::Unknown(unknown.to_string()),
                    Err(_) => Outcome::Unknown(format!("{} has too much to do", self.name)),
                };
                let goes_on = permits_next(operation, &outcome);
                outcomes.push(outcome);
                if !goes_on {
                    break;
                }
            }
            outcomes
        })
    }
}

/// Has one request under way at a time.
struct Caller {
    name: Arc<str>,
    endpoint: Endpoint,
    deadline: Duration,
    may_veto: bool,
    seen: Arc<Mutex<Seen>>,
    client: Option<ParticipantServiceClient<Channel>>,
    /// After a request that came too late, until all calls of some were in time.
    each_apart: bool,
    /// How many calls of the last batch had no answer in time.
    lost: usize,
}

/// Requests are filled up to here, so that only a single call that is larger than this makes a larger one.
const FULL: usize = MAX_REQUEST / 8;

impl Executor for Caller {
    type Item = BranchCall;
    type Answer = Outcome;

    /// Somebody waits for a Try; Confirm and Cancel come mostly from wake-ups.
    fn is_urgent(call: &BranchCall) -> bool {
        call.operation() == BranchOperation::Try
    }

    fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.client = None;
        let channel =
            self.endpoint.connect().await.map_err(|error| Failure::Disconnected(trouble(&error)))?;
        let mut client = ParticipantServiceClient::new(channel);
        let request = self.request(v1::DescribeRequest { protocol_version: PROTOCOL_VERSION });
        let is_encrypted = self.endpoint.uri().scheme_str() == Some("https");
        let failed = |status: Status| match hung_up(&status, is_encrypted) {
            Some(why) => Failure::Disconnected(why),
            None => sort(&status),
        };
        let response = client.describe(request).await.map_err(failed)?;
        let description = read_description(response.into_inner());
        if description.protocol_version != PROTOCOL_VERSION {
            let found = description.protocol_version;
            return Err(Failure::Rejected(format!(
                "it speaks version {found} of the protocol, and not {PROTOCOL_VERSION}"
            )));
        }
        if description.name != *self.name {
            let found = description.name;
            return Err(Failure::Rejected(format!("it calls itself {found:?}; check its address")));
        }
        if description.may_veto && !self.may_veto {
            return Err(Failure::Rejected(
                "it may veto, and is registered as one that may not; register it as what it is".into(),
            ));
        }
        self.seen.lock().expect("no holder panics").told(description);
        self.client = Some(client);
        Ok(())
    }

    fn lost(&self) -> usize {
        self.lost
    }

    async fn run(&mut self, calls: &[BranchCall]) -> Result<Vec<Outcome>, Failure> {
        self.lost = 0;
        if self.each_apart {
            return Ok(self.send_each(calls).await);
        }
        let mut outcomes = Vec::with_capacity(calls.len());
        for part in parts(calls) {
            match self.send(part).await {
                Ok(some) => outcomes.extend(some),
                Err(failure) => {
                    if matches!(failure, Failure::Disconnected(_)) {
                        self.client = None;
                        self.each_apart = calls.len() > 1;
                    }
                    return Err(failure);
                }
            }
        }
        Ok(outcomes)
    }
}

impl Caller {
    /// Each call in a request of its own, all at once.
    async fn send_each(&mut self, calls: &[BranchCall]) -> Vec<Outcome> {
        let answers = join_all(calls.iter().map(|call| self.send(std::slice::from_ref(call)))).await;
        self.lost = answers.iter().filter(|answer| matches!(answer, Err(Failure::Disconnected(_)))).count();
        self.each_apart = self.lost > 0;
        if answers.iter().all(Result::is_err) && self.each_apart {
            self.client = None;
        }
        let outcome = |answer| match answer {
            Ok(outcomes) => {
                Vec::into_iter(outcomes).next().unwrap_or_else(|| Outcome::Unknown(String::new()))
            }
            Err(Failure::Rejected(why)) => Outcome::Failed(why),
            Err(failure) => Outcome::Unknown(failure.to_string()),
        };
        answers.into_iter().map(outcome).collect()
    }

    async fn send(&self, calls: &[BranchCall]) -> Result<Vec<Outcome>, Failure> {
        let message = v1::CallRequest { participant: self.name.to_string(), calls: calls.to_vec() };
        let request = self.request(message);
        let mut client = self.client.clone().ok_or_else(|| Failure::Disconnected("not connected".into()))?;
        let response = client.call(request).await.map_err(|status| sort(&status))?.into_inner();
        if response.outcomes.len() != calls.len() {
            let found = response.outcomes.len();
            return Err(Failure::Rejected(format!("{found} outcomes for {} calls", calls.len())));
        }
        Ok(response.outcomes.into_iter().map(read_outcome).collect())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }
}

/// Calls as they share requests: as many as fit.
fn parts(calls: &[BranchCall]) -> Vec<&[BranchCall]> {
    let mut parts = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (index, call) in calls.iter().enumerate() {
        let length = call.transaction_descriptor.len();
        if index > start && size + length > FULL {
            parts.push(&calls[start..index]);
            (start, size) = (index, 0);
        }
        size += length;
    }
    parts.push(&calls[start..]);
    parts
}

/// What an error of gRPC means for the calls that met it. Whatever the code, they may have happened.
fn sort(status: &Status) -> Failure {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        // It answers, and not this: its calls are sent by halves, until the one at fault is alone.
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unknown
        | Code::DataLoss
        | Code::AlreadyExists
        | Code::NotFound
            if std::error::Error::source(status).is_none() =>
        {
            Failure::Rejected(text)
        }
        _ => Failure::Disconnected(text),
    }
}

/// What is wrong when two do not agree over TLS, by the words that tell it, and what to do about it.
const ADVICE: [(&[&str], &str); 6] = [
    (&["CertificateRequired"], SHOW),
    (
        &[
            "received fatal alert: UnknownCA",
            "received fatal alert: DecryptError",
            "received fatal alert: BadCertificate",
        ],
        "show it a certificate of an authority that it knows: of those in its client_ca",
    ),
    (
        &["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity"],
        "name the authority of its certificate: ca in tccd.toml, --ca of tccctl",
    ),
    (
        &["certificate not valid for name", "NotValidForName"],
        "call it by a name that its certificate has, or give it a certificate for this one",
    ),
    (&["certificate expired", "certificate not valid yet"], "renew its certificate, or set the clocks"),
    (&["InvalidContentType", "handshake eof", "HandshakeFailure"], "does it speak TLS there?"),
];
const SHOW: &str = "show it a certificate: [identity] in tccd.toml, --certificate and --key of tccctl";

/// Why there is no connection, and what to do about it if it can be told.
pub(crate) fn trouble(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let told = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    let cause = root_cause(error);
    let known = ADVICE.iter().find(|(words, _)| words.iter().any(|word| told.contains(word)));
    known.map_or(cause.clone(), |(_, advice)| format!("{cause}; {advice}"))
}

/// As [`trouble`], where somebody has hung up before the first answer: over TLS 1.3 whoever asks for a certificate does so when
/// the connection seems to stand, and may have gone before its reason arrives. `None`: it has answered.
pub(crate) fn hung_up(status: &Status, is_encrypted: bool) -> Option<String> {
    let why = trouble(std::error::Error::source(status)?);
    let is_explained = ADVICE.iter().any(|(_, advice)| why.ends_with(advice));
    Some(if is_encrypted && !is_explained { format!("{why}; if it asks for one, {SHOW}") } else { why })
}

/// "Connection refused", where the outer error says "transport error".
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => root_cause(cause),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_filled_up_to_its_size_and_never_empty() {
        let call = |length| BranchCall { transaction_descriptor: vec![0; length], ..Default::default() };
        let lengths = |calls: &[BranchCall]| parts(calls).iter().map(|part| part.len()).collect::<Vec<_>>();

        assert_eq!(lengths(&[call(10), call(10), call(10)]), [3]);
        assert_eq!(lengths(&[call(FULL - 10), call(10), call(10)]), [2, 1]);
        assert_eq!(lengths(&[call(3 * FULL), call(10), call(3 * FULL)]), [1, 1, 1]);
    }

    #[test]
    fn what_leaves_this_machine_is_encrypted() {
        for right in
            ["https://seats:7080", "http://localhost:7080", "http://127.0.0.1:7080", "http://[::1]:1"]
        {
            assert!(endpoint(right, &Options::LIKELY).is_ok(), "{right}");
        }
        for wrong in ["", "localhost", "127.0.0.1:7080", "http://seats:7080", "http://10.0.0.1:1", "ftp://a"]
        {
            assert!(endpoint(wrong, &Options::LIKELY).is_err(), "{wrong}");
        }
    }
}
