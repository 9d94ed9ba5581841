//! The gate that every request passes before its message is read.
//!
//! It finds out who asks, whether that one may call the method, and whether there is room: for this caller (GCRA, so a rate
//! with a burst, and how much of it is under way) and for one more request at all. A request is under way until the last byte
//! of its answer was taken, so a watch is for as long as it lasts. Whoever is sent away learns why, and when to come back. What
//! a request needs beyond that, such as an account that it may not touch, is refused where the account is known.
//!
//! What it costs: a hash of the credential, two look-ups and a count, about a microsecond. A token's signature is verified
//! when it is seen first.

use super::{
    callers::{Callers, is_key},
    identity::Identity,
    methods::{self, Access},
    tokens::{TokenError, Tokens},
};
use crate::{
    api::reason,
    config::{Config, Traffic},
    counted::{Counted, Counts},
    watched::{WatchError, Watched},
};
use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, NotUntil, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock, QuantaInstant},
};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Frame, SizeHint},
    header::{AUTHORIZATION, HeaderValue},
};
use std::{
    net::SocketAddr,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tcc_core::caller::is_name;
use tcc_proto::Reason;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, codegen::Service as _, service::Routes};

/// How often callers that have been silent are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// So many refused credentials a second are written to the log: a flood of them must not fill it.
const TOLD_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// The names in its certificate, if it has shown one that an accepted authority has signed.
    pub names: Option<Arc<[String]>>,
}

/// How callers are recognised.
enum Ways {
    /// They say who they are, and are believed.
    Insecure(Arc<Identity>),
    /// They prove it.
    Proof { callers: Option<Arc<Watched<Callers>>>, tokens: Option<Arc<Tokens>> },
}

/// The gate.
pub struct Gate {
    ways: Ways,
    rate: DefaultKeyedRateLimiter<String>,
    told: DefaultDirectRateLimiter,
    under_way: Counts<String>,
    traffic: Traffic,
}

impl Gate {
    /// Reads who is known, and goes on reading that until `stop`.
    ///
    /// # Errors
    ///
    /// [`WatchError`].
    pub async fn start(config: &Config, stop: CancellationToken) -> Result<Arc<Self>, WatchError> {
        let ways = if config.insecure_dev {
            Ways::Insecure(Arc::new(Identity::developer("anybody")))
        } else {
            let callers = config.auth.callers.clone().map(|path| {
                let files = vec![path.clone()];
                Watched::start(files, move |contents| Callers::read(&path, &contents[0]), stop.clone())
            });
            let tokens = match &config.auth.jwt {
                Some(jwt) => Some(Tokens::start(jwt, stop.clone()).await?),
                None => None,
            };
            Ways::Proof { callers: callers.transpose()?, tokens }
        };
        let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let traffic = config.traffic.clone();
        let quota = Quota::per_second(at_least_one(traffic.caller_requests_per_second))
            .allow_burst(at_least_one(traffic.caller_burst));
        let told = RateLimiter::direct(Quota::per_second(TOLD_PER_SECOND));
        let (rate, under_way) = (RateLimiter::keyed(quota), Counts::default());
        let gate = Arc::new(Self { ways, rate, told, under_way, traffic });
        let forgetting = Arc::clone(&gate);
        tokio::spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(FORGET_EVERY)).await.is_some() {
                forgetting.rate.retain_recent();
            }
        });
        Ok(gate)
    }

    /// Answers a request: lets it through, or sends it away.
    pub async fn answer(&self, mut routes: Routes, peer: Peer, mut request: Request<Body>) -> Response<Body> {
        let path = request.uri().path();
        let counted = match self.admit(&peer, path, request.headers()).await {
            Ok(None) => None,
            Ok(Some((identity, counted))) => {
                request.extensions_mut().insert(identity);
                Some(counted)
            }
            Err(status) => return status.into_http(),
        };
        request.extensions_mut().insert(peer);
        // Nothing behind the gate needs it, and nothing there can print it.
        request.headers_mut().remove(AUTHORIZATION);
        let time = Duration::from_secs(self.traffic.request_seconds.into());
        match tokio::time::timeout(time, routes.call(request)).await {
            Ok(Ok(response)) => {
                let response = reason::of_frames(response);
                response.map(|body| Body::new(UnderWay { body, _counted: counted }))
            }
            Err(_) => reason::given_up(time).into_http(),
        }
    }

    async fn admit(
        &self,
        peer: &Peer,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<(Arc<Identity>, Counted<String>)>, Status> {
        let access = methods::access(path);
        if access == Some(Access::Anyone) {
            return Ok(None);
        }
        let identity = self.recognise(peer, headers).await?;
        let Some(access) = access else {
            return Err(Status::unimplemented(format!("there is no method {path}")));
        };
        if !access.is_granted_to(&identity) {
            tracing::info!(caller = identity.caller, path, peer = %peer.address, "a call without the role for it");
            return Err(reason::without_role(path, &identity.caller));
        }
        let mut most = self.traffic.requests;
        if self.is_bounded() {
            self.rate.check_key(&identity.caller).map_err(|until| self.too_fast(&until))?;
            most = self.traffic.caller_requests;
        }
        let counted = self.under_way.one_more(&identity.caller, self.traffic.requests, most);
        Ok(Some((identity, counted.ok_or_else(reason::overloaded)?)))
    }

    /// Counts a batch as its items: the request itself was one of them.
    ///
    /// # Errors
    ///
    /// RATE_LIMITED.
    pub fn charge(&self, identity: &Identity, items: usize) -> Result<(), Status> {
        // More than may come at once could never come.
        let more = u32::try_from(items).unwrap_or(u32::MAX).min(self.traffic.caller_burst).saturating_sub(1);
        match NonZeroU32::new(more).filter(|_| self.is_bounded()) {
            None => Ok(()),
            Some(more) => match self.rate.check_key_n(&identity.caller, more) {
                Ok(Err(until)) => Err(self.too_fast(&until)),
                Ok(Ok(())) | Err(_) => Ok(()),
            },
        }
    }

    /// Whether callers are bounded, each for itself: that needs callers who are who they say.
    fn is_bounded(&self) -> bool {
        matches!(self.ways, Ways::Proof { .. })
    }

    fn too_fast(&self, until: &NotUntil<QuantaInstant>) -> Status {
        let wait = until.wait_time_from(DefaultClock::default().now());
        reason::rate_limited(wait, self.traffic.caller_requests_per_second)
    }

    /// Who asks.
    async fn recognise(&self, peer: &Peer, headers: &HeaderMap) -> Result<Arc<Identity>, Status> {
        let (callers, tokens) = match &self.ways {
            Ways::Insecure(anybody) => return as_it_says(anybody, headers),
            Ways::Proof { callers, tokens } => (callers, tokens),
        };
        let Some(header) = headers.get(AUTHORIZATION) else {
            let Some(names) = &peer.names else { return Err(reason::nobody()) };
            let known = callers.as_ref().and_then(|callers| callers.current().with_certificate(names));
            return known.ok_or_else(|| reason::certificate_unknown(names));
        };
        let invalid = |why: &str| {
            if self.told.check().is_ok() {
                tracing::info!(why, peer = %peer.address, "a credential is not accepted");
            }
            reason::token_invalid()
        };
        let credential = bearer(header).ok_or_else(|| invalid("not \"Bearer\" and a credential"))?;
        if is_key(credential) {
            let known = callers.as_ref().and_then(|callers| callers.current().with_key(credential));
            return known.ok_or_else(|| invalid("an API key that is not known"));
        }
        let Some(tokens) = tokens else { return Err(invalid("a token, and none are configured")) };
        tokens.identify(credential).await.map_err(|error| match error {
            TokenError::Expired => reason::token_expired(),
            TokenError::Invalid(why) => invalid(why),
        })
    }
}

/// An answer, whose request is under way for as long as this is.
struct UnderWay {
    body: Body,
    _counted: Option<Counted<String>>,
}

impl hyper::body::Body for UnderWay {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// On an insecure server callers name themselves, in the metadata `tcc-caller`; all who do not are one caller. Elsewhere nobody
/// looks at it.
fn as_it_says(anybody: &Arc<Identity>, headers: &HeaderMap) -> Result<Arc<Identity>, Status> {
    let Some(name) = headers.get("tcc-caller") else { return Ok(Arc::clone(anybody)) };
    match name.to_str() {
        Ok(name) if is_name(name) => Ok(Arc::new(Identity::developer(name))),
        _ => {
            let message = "must be 1 to 64 printable ASCII characters without spaces";
            Err(reason::wrong("tcc-caller", Reason::CallerInvalid, message).into())
        }
    }
}

/// The credential in `authorization: Bearer …`.
fn bearer(header: &HeaderValue) -> Option<&str> {
    let (scheme, credential) = header.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(credential.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tonic_types::StatusExt as _;

    proptest! {
        #[test]
        fn a_caller_that_names_itself_has_a_name_or_is_told_what_is_wrong(
            name in proptest::collection::vec(32_u8.., 0..80),
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&name) {
                headers.insert("tcc-caller", value);
            }

            match as_it_says(&Arc::new(Identity::developer("anybody")), &headers) {
                Ok(identity) => prop_assert!(is_name(&identity.caller)),
                Err(status) => {
                    let reason = status.get_details_error_info().map(|info| info.reason);
                    prop_assert_eq!(reason.as_deref(), Some("CALLER_INVALID"));
                }
            }
        }
    }
}
