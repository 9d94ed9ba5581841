//! Tokens of an identity provider (JWT, RFC 7519), judged as RFC 8725 asks.
//!
//! A token is believed if a key of the provider has signed it with one of the algorithms that the configuration lists (never
//! `none`, never a shared secret), if the key is of the kind of the algorithm, and if issuer, audience, subject and times are
//! right. The outside learns "expired" or "invalid", the log why. A token that was believed is remembered by its hash until
//! it expires or the provider's keys change, so that a signature is verified once and not with each request.
//!
//! Keys come from a file, or from a url that is asked every five minutes, and when a token names a key that is not known.
//! While the provider is down the last keys stay in use.

use super::{
    callers::{Hash, hash},
    identity::{Accounts, Identity, Role},
};
use crate::{
    config::Jwt,
    tls,
    watched::{WatchError, Watched},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tcc_core::caller::is_name;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 30;
/// How often a provider is asked for its keys.
const ASK_EVERY: Duration = Duration::from_secs(300);
/// How often at most, whatever tokens name.
const ASK_AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// How long a provider may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long its answer may be, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// So many tokens are remembered.
const MAX_BELIEVED: usize = 100_000;

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// It was good once.
    Expired,
    /// Whatever else, for the log.
    Invalid(&'static str),
}

/// What judges tokens.
pub struct Tokens {
    rules: Jwt,
    algorithms: Vec<Algorithm>,
    keys: Arc<Watched<Keys>>,
    provider: Option<Provider>,
    believed: Mutex<HashMap<Hash, Believed>>,
}

/// A token that was verified.
struct Believed {
    identity: Arc<Identity>,
    /// Seconds since 1970.
    until: u64,
    /// With these keys, and no others.
    keys: Arc<Keys>,
}

impl Tokens {
    /// Reads the keys, and goes on reading them until `stop`.
    ///
    /// # Errors
    ///
    /// [`WatchError`], if a file or the configuration is wrong. A provider that does not answer is asked again.
    pub async fn start(rules: &Jwt, stop: CancellationToken) -> Result<Arc<Self>, WatchError> {
        let wrong = |what: String| WatchError::content(Path::new("auth.jwt"), what);
        let algorithms: Result<Vec<Algorithm>, String> =
            rules.algorithms.iter().map(|name| algorithm(name)).collect();
        let algorithms = algorithms.map_err(wrong)?;
        if rules.issuer.is_empty() || rules.audience.is_empty() || algorithms.is_empty() {
            return Err(wrong("issuer, audience and algorithms must not be empty".into()));
        }
        let (keys, provider) = if rules.keys.contains("://") {
            (Watched::new(Keys::default()), Some(Provider::new(&rules.keys, rules.ca.as_deref())?))
        } else {
            let path = PathBuf::from(&rules.keys);
            let make = {
                let path = path.clone();
                move |contents: &[Vec<u8>]| {
                    Keys::read(&contents[0]).map_err(|what| WatchError::content(&path, what))
                }
            };
            (Watched::start(vec![path], make, stop.clone())?, None)
        };
        let tokens = Arc::new(Self {
            rules: rules.clone(),
            algorithms,
            keys,
            provider,
            believed: Mutex::new(HashMap::new()),
        });
        if tokens.provider.is_some() {
            tokens.ask().await;
            let asking = Arc::clone(&tokens);
            tokio::spawn(async move {
                loop {
                    let is_empty = asking.keys.current().0.is_empty();
                    let pause = if is_empty { ASK_AT_MOST_EVERY } else { ASK_EVERY };
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        return;
                    }
                    asking.ask().await;
                }
            });
        }
        Ok(tokens)
    }

    /// Whose token this is.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub async fn identify(&self, token: &str) -> Result<Arc<Identity>, TokenError> {
        let hash = hash(token);
        if let Some(identity) = self.known(&hash) {
            return Ok(identity);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid("not a token"))?;
        if !self.algorithms.contains(&header.alg) {
            return Err(TokenError::Invalid("an algorithm that is not accepted"));
        }
        if header.crit.is_some() {
            return Err(TokenError::Invalid("a critical header that is not understood"));
        }
        if self.keys.current().fitting(&header).next().is_none() {
            self.ask().await;
        }
        let keys = self.keys.current();
        let claims = keys.verify(token, &header, &self.validation(header.alg))?;
        let identity = Arc::new(self.identity_of(&claims)?);
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default() as u64;
        self.remember(hash, Believed { identity: Arc::clone(&identity), until: expires + LEEWAY, keys });
        Ok(identity)
    }

    fn known(&self, hash: &Hash) -> Option<Arc<Identity>> {
        let keys = self.keys.current();
        let believed = self.believed.lock().expect("no holder panics");
        let entry = believed.get(hash)?;
        let is_good = entry.until >= now() && Arc::ptr_eq(&entry.keys, &keys);
        is_good.then(|| Arc::clone(&entry.identity))
    }

    fn remember(&self, hash: Hash, entry: Believed) {
        let mut believed = self.believed.lock().expect("no holder panics");
        if believed.len() >= MAX_BELIEVED {
            let now = now();
            believed.retain(|_, entry| entry.until >= now);
            if believed.len() >= MAX_BELIEVED {
                believed.clear();
            }
        }
        believed.insert(hash, entry);
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.rules.issuer]);
        validation.set_audience(&[&self.rules.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation
    }

    /// Who a token says it is. Callers of a provider have names of their own, so that none can call itself what a caller in a
    /// file is called.
    fn identity_of(&self, claims: &Map<String, Value>) -> Result<Identity, TokenError> {
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let caller = format!("jwt:{subject}");
        if subject.is_empty() || !is_name(&caller) {
            return Err(TokenError::Invalid("a subject that is not 1 to 60 printable ASCII characters"));
        }
        let issued = claims.get("iat").and_then(Value::as_f64).unwrap_or_default();
        if issued > (now() + LEEWAY) as f64 {
            return Err(TokenError::Invalid("issued in the future"));
        }
        // A provider may know roles that mean nothing here.
        let roles: Vec<Role> =
            list(claims.get(&self.rules.roles_claim)).iter().filter_map(|role| role.parse().ok()).collect();
        let accounts: Accounts = list(claims.get(&self.rules.accounts_claim)).into_iter().collect();
        Ok(Identity { caller, roles, accounts, open_transactions: None })
    }

    /// Asks the provider for its keys, if there is one and it was not asked just now.
    async fn ask(&self) {
        let Some(provider) = &self.provider else { return };
        let mut asked = provider.asked.lock().await;
        if asked.as_ref().is_some_and(|(at, _)| at.elapsed() < ASK_AT_MOST_EVERY) {
            return;
        }
        let before = asked.take().map(|(_, answer)| answer).unwrap_or_default();
        let answer = match provider.fetch().await {
            // Tokens that were believed stay so, if nothing has changed.
            Ok(answer) if answer == before => answer,
            Ok(answer) => match Keys::read(&answer) {
                Ok(keys) => {
                    tracing::info!(url = %provider.url, keys = keys.0.len(), "the identity provider's keys");
                    self.keys.replace(keys);
                    answer
                }
                Err(why) => {
                    tracing::error!(url = %provider.url, why, "the identity provider's keys cannot be read");
                    before
                }
            },
            Err(why) => {
                tracing::warn!(url = %provider.url, why, "the identity provider does not tell its keys");
                before
            }
        };
        *asked = Some((Instant::now(), answer));
    }
}

/// The public keys of a provider.
#[derive(Default)]
struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    /// The only algorithm that it is for, if it says so.
    algorithm: Option<String>,
    parameters: AlgorithmParameters,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl Keys {
    /// Reads a JWKS (RFC 7517). Keys of other kinds or for other uses than signatures are passed over.
    fn read(document: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(document).map_err(|e| e.to_string())?;
        let keys = document.keys.into_iter().filter_map(|value| {
            let jwk: Jwk = serde_json::from_value(value).ok()?;
            let is_for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
            let is_secret = matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
            let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| is_for_signatures && !is_secret)?;
            Some(Key {
                id: jwk.common.key_id,
                algorithm: jwk.common.key_algorithm.map(|algorithm| algorithm.to_string()),
                parameters: jwk.algorithm,
                key,
            })
        });
        let keys: Vec<Key> = keys.collect();
        if keys.is_empty() {
            return Err("there is no key for signatures in it (JWKS)".into());
        }
        Ok(Self(keys))
    }

    /// Those that may have signed a token: of its name, if it names one, and of its kind.
    fn fitting<'a>(&'a self, header: &'a Header) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| {
            (header.kid.is_none() || key.id == header.kid)
                && key.algorithm.as_ref().is_none_or(|only| *only == format!("{:?}", header.alg))
                && is_of_kind(header.alg, &key.parameters)
        })
    }

    fn verify(
        &self,
        token: &str,
        header: &Header,
        validation: &Validation,
    ) -> Result<Map<String, Value>, TokenError> {
        let mut error = TokenError::Invalid("a key that is not known");
        for key in self.fitting(header) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, validation) {
                Ok(token) => return Ok(token.claims),
                Err(why) => error = judge(why.kind()),
            }
        }
        Err(error)
    }
}

fn is_of_kind(algorithm: Algorithm, parameters: &AlgorithmParameters) -> bool {
    match parameters {
        AlgorithmParameters::RSA(_) => {
            use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
            matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512)
        }
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => algorithm == Algorithm::ES256,
            EllipticCurve::P384 => algorithm == Algorithm::ES384,
            _ => false,
        },
        AlgorithmParameters::OctetKeyPair(key) => {
            key.curve == EllipticCurve::Ed25519 && algorithm == Algorithm::EdDSA
        }
        _ => false,
    }
}

fn judge(kind: &ErrorKind) -> TokenError {
    TokenError::Invalid(match kind {
        ErrorKind::ExpiredSignature => return TokenError::Expired,
        ErrorKind::ImmatureSignature => "not valid yet",
        ErrorKind::InvalidSignature => "not signed with the key",
        ErrorKind::InvalidIssuer => "another issuer",
        ErrorKind::InvalidAudience => "for another audience",
        ErrorKind::InvalidAlgorithm => "an algorithm that is not the key's",
        ErrorKind::MissingRequiredClaim(_) => "exp, iss, aud or sub is missing",
        _ => "malformed",
    })
}

/// An algorithm with a public key, by its name.
fn algorithm(name: &str) -> Result<Algorithm, String> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let all = [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA];
    all.into_iter().find(|algorithm| format!("{algorithm:?}") == name).ok_or_else(|| {
        format!(
            "algorithm {name:?} is not accepted: it can be RS, PS, ES with 256, 384 (RS and PS 512), or EdDSA"
        )
    })
}

/// A claim that lists names: an array, or a text with spaces between them.
fn list(claim: Option<&Value>) -> Vec<String> {
    match claim {
        Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(text)) => text.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where an identity provider publishes its keys.
struct Provider {
    url: hyper::Uri,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    /// When it was asked last, and what it said.
    asked: tokio::sync::Mutex<Option<(Instant, Vec<u8>)>>,
}

impl Provider {
    fn new(url: &str, ca: Option<&Path>) -> Result<Self, WatchError> {
        let wrong = |what: &str| WatchError::content(Path::new("auth.jwt.keys"), what);
        let url: hyper::Uri = url.parse().map_err(|_| wrong("it is neither a file nor a url"))?;
        let is_local = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if is_local => {}
            _ => return Err(wrong("a url must be https://…: whoever can change the keys can be anybody")),
        }
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client(ca)?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { url, client, asked: tokio::sync::Mutex::new(None) })
    }

    async fn fetch(&self) -> Result<Vec<u8>, String> {
        let fetching = async {
            let response = self.client.get(self.url.clone()).await.map_err(|e| with_causes(&e))?;
            if !response.status().is_success() {
                return Err(format!("it answers {}", response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok(body.map_err(|e| e.to_string())?.to_bytes().to_vec())
        };
        tokio::time::timeout(PATIENCE, fetching).await.map_err(|_| "it does not answer".to_owned())?
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
