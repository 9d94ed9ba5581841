//! Random requests to everything that reads them: the gate with its keys and tokens, the HTTP/JSON face,
//! protobuf, the checks of every message, page tokens, idempotency keys.
//!
//! All of it is what serves, but for what lies behind: a [`Desk`] reads requests as the services do, and
//! answers at once, so a million inputs need no database and a minute. An input is made from a number alone:
//! mostly something good, of which a little is changed, sometimes anything at all. Whatever it is, it is
//! taken or told what is wrong by a reason of the registry. INTERNAL and UNKNOWN are never an answer, and
//! neither is a panic.
//!
//! `make test` runs some thousands, `make fuzz N=…` as many as one likes. A failure names its number: `make fuzz N=1 FIRST=…`
//! does it again.

use crate::{
    api::{convert, page::Filter, reason, view},
    auth::{Gate, callers::new_key, gate::Peer, identity},
    config::{Auth, Config, Jwt, Limits, Traffic},
    http::{Http, ROUTES, Route},
};
use futures::{
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt as _},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Bytes,
    header::{HeaderName, HeaderValue},
};
use prost::Message;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};
use tcc_core::Timestamp;
use tcc_proto::{
    Reason,
    v1::{
        self,
        hold_service_server::{HoldService, HoldServiceServer},
        ledger_service_server::{LedgerService, LedgerServiceServer},
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, codegen::Service, service::Routes};
use uuid::Uuid;

/// Reads requests as the services do, and answers as if all was well.
#[derive(Clone, Default)]
struct Desk {
    limits: Limits,
}

type Answer<T> = Result<tonic::Response<T>, Status>;

fn now() -> Timestamp {
    Timestamp::from_second(1_790_000_000).expect("a time")
}

impl Desk {
    fn create(&self, caller: &str, request: v1::CreateHoldRequest) -> Result<v1::CreateHoldResponse, Status> {
        let asked = convert::hold(request, caller, &self.limits)?;
        asked.fresh(now(), &self.limits)?;
        Ok(v1::CreateHoldResponse { hold: Some(view::asked(&asked.descriptor)), replayed: false })
    }

    fn hold(&self, id: &str, etag: &str) -> Result<Option<v1::Hold>, Status> {
        let id = convert::id(id)?.to_string();
        let etag = view::seen(etag).map_or_else(|| "4".to_owned(), view::etag);
        Ok(Some(v1::Hold { id, etag, phase: v1::Phase::Held.into(), ..Default::default() }))
    }

    fn account(&self, id: &str) -> Result<Option<v1::Account>, Status> {
        let id = convert::account("id", id)?.to_string();
        Ok(Some(v1::Account { id, ..Default::default() }))
    }

    fn at_once(
        &self,
        id: &str,
        account: &str,
        amount: Option<&v1::Amount>,
    ) -> Result<Option<v1::Account>, Status> {
        convert::fresh_id(convert::id(id)?, now())?;
        let account = convert::account("account", account)?;
        convert::money(amount, &self.limits)?;
        self.account(account.as_str())
    }
}

#[tonic::async_trait]
impl HoldService for Desk {
    type WatchHoldStream = BoxStream<'static, Result<v1::WatchHoldResponse, Status>>;

    async fn create_hold(
        &self,
        request: tonic::Request<v1::CreateHoldRequest>,
    ) -> Answer<v1::CreateHoldResponse> {
        let caller = identity(&request);
        Ok(tonic::Response::new(self.create(&caller.caller, request.into_inner())?))
    }

    async fn batch_create_holds(
        &self,
        request: tonic::Request<v1::BatchCreateHoldsRequest>,
    ) -> Answer<v1::BatchCreateHoldsResponse> {
        use v1::batch_create_holds_outcome::Outcome;
        let caller = identity(&request);
        let outcome = |hold| match convert::item(hold, &caller.caller, &self.limits) {
            Ok(_) => v1::BatchCreateHoldsOutcome { outcome: None },
            Err(status) => {
                v1::BatchCreateHoldsOutcome { outcome: Some(Outcome::Error(reason::item(&status))) }
            }
        };
        let outcomes = request.get_ref().holds.iter().cloned().map(outcome).collect();
        Ok(tonic::Response::new(v1::BatchCreateHoldsResponse { outcomes }))
    }

    async fn transfer(&self, request: tonic::Request<v1::TransferRequest>) -> Answer<v1::TransferResponse> {
        let caller = identity(&request);
        let asked = convert::transfer(request.into_inner(), &caller.caller, &self.limits)?;
        asked.fresh(now(), &self.limits)?;
        let hold = Some(view::asked(&asked.descriptor));
        Ok(tonic::Response::new(v1::TransferResponse { hold, replayed: true }))
    }

    async fn get_hold(&self, request: tonic::Request<v1::GetHoldRequest>) -> Answer<v1::GetHoldResponse> {
        Ok(tonic::Response::new(v1::GetHoldResponse { hold: self.hold(&request.get_ref().id, "")? }))
    }

    async fn list_holds(
        &self,
        request: tonic::Request<v1::ListHoldsRequest>,
    ) -> Answer<v1::ListHoldsResponse> {
        let caller = identity(&request);
        let listing = convert::listing(request.into_inner(), &caller, now())?;
        let next_page_token = listing.filter.seal(listing.before);
        Ok(tonic::Response::new(v1::ListHoldsResponse { holds: Vec::new(), next_page_token }))
    }

    async fn watch_hold(
        &self,
        request: tonic::Request<v1::WatchHoldRequest>,
    ) -> Answer<Self::WatchHoldStream> {
        let v1::WatchHoldRequest { id, etag } = request.get_ref();
        let hold = self.hold(id, etag)?;
        Ok(tonic::Response::new(stream::iter([Ok(v1::WatchHoldResponse { hold })]).boxed()))
    }

    async fn cancel_hold(
        &self,
        request: tonic::Request<v1::CancelHoldRequest>,
    ) -> Answer<v1::CancelHoldResponse> {
        let v1::CancelHoldRequest { id, etag } = request.get_ref();
        Ok(tonic::Response::new(v1::CancelHoldResponse { hold: self.hold(id, etag)? }))
    }

    async fn confirm_hold(
        &self,
        request: tonic::Request<v1::ConfirmHoldRequest>,
    ) -> Answer<v1::ConfirmHoldResponse> {
        let v1::ConfirmHoldRequest { id, etag } = request.get_ref();
        Ok(tonic::Response::new(v1::ConfirmHoldResponse { hold: self.hold(id, etag)? }))
    }
}

#[tonic::async_trait]
impl LedgerService for Desk {
    async fn create_account(
        &self,
        request: tonic::Request<v1::CreateAccountRequest>,
    ) -> Answer<v1::CreateAccountResponse> {
        let v1::CreateAccountRequest { id, currency } = request.get_ref();
        convert::currency("currency", currency)?;
        Ok(tonic::Response::new(v1::CreateAccountResponse { account: self.account(id)? }))
    }

    async fn get_account(
        &self,
        request: tonic::Request<v1::GetAccountRequest>,
    ) -> Answer<v1::GetAccountResponse> {
        Ok(tonic::Response::new(v1::GetAccountResponse { account: self.account(&request.get_ref().id)? }))
    }

    async fn get_holdings(
        &self,
        request: tonic::Request<v1::GetHoldingsRequest>,
    ) -> Answer<v1::GetHoldingsResponse> {
        let account = self.account(&request.get_ref().account)?;
        Ok(tonic::Response::new(v1::GetHoldingsResponse { account, ..Default::default() }))
    }

    async fn get_balance(
        &self,
        request: tonic::Request<v1::GetBalanceRequest>,
    ) -> Answer<v1::GetBalanceResponse> {
        let v1::GetBalanceRequest { account, at } = request.get_ref();
        let account = convert::account("account", account)?.to_string();
        let recorded_at = convert::time_if_any("at", *at)?.map(view::time);
        Ok(tonic::Response::new(v1::GetBalanceResponse { account, recorded_at, ..Default::default() }))
    }

    async fn block_account(
        &self,
        request: tonic::Request<v1::BlockAccountRequest>,
    ) -> Answer<v1::BlockAccountResponse> {
        Ok(tonic::Response::new(v1::BlockAccountResponse { account: self.account(&request.get_ref().id)? }))
    }

    async fn unblock_account(
        &self,
        request: tonic::Request<v1::UnblockAccountRequest>,
    ) -> Answer<v1::UnblockAccountResponse> {
        Ok(tonic::Response::new(v1::UnblockAccountResponse { account: self.account(&request.get_ref().id)? }))
    }

    async fn close_account(
        &self,
        request: tonic::Request<v1::CloseAccountRequest>,
    ) -> Answer<v1::CloseAccountResponse> {
        Ok(tonic::Response::new(v1::CloseAccountResponse { account: self.account(&request.get_ref().id)? }))
    }

    async fn issue(&self, request: tonic::Request<v1::IssueRequest>) -> Answer<v1::IssueResponse> {
        let v1::IssueRequest { id, account, amount } = request.get_ref();
        Ok(tonic::Response::new(v1::IssueResponse { account: self.at_once(id, account, amount.as_ref())? }))
    }

    async fn burn(&self, request: tonic::Request<v1::BurnRequest>) -> Answer<v1::BurnResponse> {
        let v1::BurnRequest { id, account, amount } = request.get_ref();
        Ok(tonic::Response::new(v1::BurnResponse { account: self.at_once(id, account, amount.as_ref())? }))
    }

    async fn list_postings(
        &self,
        request: tonic::Request<v1::ListPostingsRequest>,
    ) -> Answer<v1::ListPostingsResponse> {
        let request = request.get_ref();
        convert::account("account", &request.account)?;
        convert::page_size(request.page_size, 100, 1_000)?;
        convert::time_if_any("recorded_from", request.recorded_from)?;
        convert::time_if_any("recorded_until", request.recorded_until)?;
        let next_after_version = request.after_version;
        Ok(tonic::Response::new(v1::ListPostingsResponse { postings: Vec::new(), next_after_version }))
    }
}

/// The gate and what is behind it, for one connection.
#[derive(Clone)]
struct Front {
    gate: Arc<Gate>,
    routes: Routes,
    peer: Peer,
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { gate, routes, peer } = self.clone();
        Box::pin(async move { Ok(gate.answer(routes, peer, request).await) })
    }
}

/// A server without a network.
struct Site {
    http: Http<Front>,
    key: String,
    _folder: tempfile::TempDir,
}

/// The public half of some key: no token here is signed with the other one.
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "one",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

impl Site {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, hash) = new_key();
        let callers = format!(
            "[[caller]]\nname = \"shop\"\nroles = [\"application\", \"ledger_admin\"]\naccounts = [\"*\"]\nkeys = [\"{hash}\"]\n"
        );
        let (callers_file, keys_file) = (folder.path().join("callers.toml"), folder.path().join("keys.json"));
        fs::write(&callers_file, callers).expect("a file");
        fs::write(&keys_file, KEYS).expect("a file");
        let jwt = Jwt {
            issuer: "https://login.test/".into(),
            audience: "tcc".into(),
            keys: keys_file.display().to_string(),
            algorithms: ["RS256", "ES256", "EdDSA"].map(str::to_owned).into(),
            ca: None,
            roles_claim: "tcc_roles".into(),
            accounts_claim: "tcc_accounts".into(),
        };
        let traffic =
            Traffic { caller_requests_per_second: u32::MAX, caller_burst: u32::MAX, ..Traffic::default() };
        let auth = Auth { callers: Some(callers_file), jwt: Some(jwt) };
        let config = Config { auth, traffic, ..Config::default() };
        let gate = Gate::start(&config, CancellationToken::new()).await.expect("the files are right");
        let desk = Desk::default();
        let routes =
            Routes::new(HoldServiceServer::new(desk.clone()).max_decoding_message_size(2 * 1024 * 1024))
                .add_service(LedgerServiceServer::new(desk).max_decoding_message_size(64 * 1024))
                .prepare();
        let peer = Peer { address: SocketAddr::from(([127, 0, 0, 1], 1)), names: None };
        Self { http: Http::new(Front { gate, routes, peer }), key, _folder: folder }
    }

    async fn ask(&mut self, request: Request<Body>) -> Said {
        let response = self.http.call(request).await.expect("a server answers");
        let (parts, body) = response.into_parts();
        let body = body.collect().await;
        let trailers = body.as_ref().ok().and_then(|body| body.trailers().cloned()).unwrap_or_default();
        let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
        Said { status: parts.status, headers: parts.headers, trailers, bytes }
    }
}

/// What a server said.
#[derive(Debug)]
struct Said {
    status: StatusCode,
    headers: HeaderMap,
    trailers: HeaderMap,
    bytes: Bytes,
}

impl Said {
    /// The reason that it gave; `None` if all is well.
    fn over_http(&self) -> Result<Option<Reason>, String> {
        if self.status.is_success() || self.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let problem: Value =
            serde_json::from_slice(&self.bytes).map_err(|error| format!("no JSON: {error}"))?;
        let reason = problem["reason"].as_str().unwrap_or_default();
        let reason: Reason = reason.parse().map_err(|_| format!("no reason of the registry: {problem}"))?;
        let is_right = reason.http() == self.status.as_u16() && problem["status"] == reason.http();
        if is_right { Ok(Some(reason)) } else { Err(format!("{}: {problem}", self.status)) }
    }

    /// The same, of gRPC. `None` also for the two that have no reason, since they are made before a request
    /// is one.
    fn over_grpc(&self) -> Result<Option<Reason>, String> {
        let header = |name: &str| self.headers.get(name).or_else(|| self.trailers.get(name));
        let code = header("grpc-status").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let message = header("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
        let code = code.parse().map_err(|_| format!("no status: {self:?}")).map(Code::from_i32)?;
        if matches!(code, Code::Ok | Code::OutOfRange | Code::Unimplemented) {
            return Ok(None);
        }
        let status =
            Status::from_header_map(&self.headers).or_else(|| Status::from_header_map(&self.trailers));
        let info = status.as_ref().and_then(tonic_types::StatusExt::get_details_error_info);
        let reason: Option<Reason> = info.and_then(|info| info.reason.parse().ok());
        match reason.filter(|reason| reason.code() == code) {
            Some(reason) => Ok(Some(reason)),
            None => Err(format!("{code:?}, {message}")),
        }
    }
}

/// Makes inputs from a number.
struct Maker {
    random: fastrand::Rng,
}

const WORDS: [&str; 32] = [
    "",
    "alice",
    "bob",
    "user-1",
    "a b",
    "GOLD",
    "gold",
    "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d",
    "01a0c450-6c00-7000-8000-000000000000",
    "00000000-0000-0000-0000-000000000000",
    "ON_MATURITY_CONFIRM",
    "ON_MATURITY_UNSPECIFIED",
    "PHASE_HELD",
    "2026-09-21T14:13:20Z",
    "2026-09-22T14:13:20.5+01:00",
    "2026-02-30T00:00:00Z",
    "2026-12-31T23:59:60Z",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "0",
    "1",
    "-1",
    "1000000000000001",
    "9223372036854775807",
    "9223372036854775808",
    "1e3",
    "0.1",
    "true",
    "null",
    "ä",
    "\u{202e}\u{0}\u{7f}",
    "4",
];

const TIMES: [i64; 9] =
    [0, 1, -1, 1_790_000_000, 1_790_000_001, 1_800_000_000, 253_402_300_799, i64::MIN, i64::MAX];

impl Maker {
    fn one_in(&mut self, n: usize) -> bool {
        self.random.usize(..n) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.random.usize(..of.len())]
    }

    /// A text: one that means something, that with a change, or anything.
    fn text(&mut self) -> String {
        let mut text = (*self.pick(&WORDS)).to_owned();
        match self.random.usize(..12) {
            0 => {
                let length = *self.pick(&[1, 16, 63, 64, 65, 128, 129, 1_024, 5_000]);
                text = (0..length).map(|_| self.random.char('!'..='~')).collect();
            }
            1 => text = (0..self.random.usize(..20)).map(|_| self.random.char(..)).collect(),
            2 | 3 => {
                let mut characters: Vec<char> = text.chars().collect();
                let at = self.random.usize(..=characters.len());
                let new = if self.one_in(2) { self.random.char(' '..='~') } else { self.random.char(..) };
                if self.one_in(2) || at == characters.len() {
                    characters.insert(at, new);
                } else {
                    characters[at] = new;
                }
                text = characters.into_iter().collect();
            }
            _ => {}
        }
        text
    }

    /// The text, or another one.
    fn or_text(&mut self, good: &str) -> String {
        if self.one_in(6) { self.text() } else { good.to_owned() }
    }

    fn number(&mut self) -> i64 {
        match self.random.usize(..6) {
            0 => self.random.i64(..),
            1 => *self.pick(&[0, -1, i64::MIN, i64::MAX, 1_000_000_000_000_000, 1_000_000_000_000_001]),
            _ => self.random.i64(1..1_000),
        }
    }

    fn time(&mut self) -> Option<prost_types::Timestamp> {
        let good = 1_790_000_000 + self.random.i64(1..1_000_000);
        let seconds = if self.one_in(6) { *self.pick(&TIMES) } else { good };
        let nanos = if self.one_in(8) { self.random.i32(..) } else { self.random.i32(..1_000_000_000) };
        (!self.one_in(12))
            .then_some(prost_types::Timestamp { seconds, nanos: if self.one_in(3) { 0 } else { nanos } })
    }

    fn id(&mut self) -> String {
        let millis = 1_790_000_000_000_u64 + self.random.u64(..60_000);
        let good = uuid::Builder::from_unix_timestamp_millis(
            millis,
            &self.random.u128(..).to_be_bytes()[..10].try_into().expect("ten"),
        )
        .into_uuid()
        .to_string();
        self.or_text(&good)
    }

    fn amount(&mut self) -> Option<v1::Amount> {
        let value = self.number();
        (!self.one_in(12)).then(|| v1::Amount { value, currency: self.or_text("GOLD") })
    }

    fn labels(&mut self) -> std::collections::HashMap<String, String> {
        let many = if self.one_in(20) { self.random.usize(..20) } else { self.random.usize(..3) };
        (0..many).map(|n| (self.or_text(&format!("k{n}")), self.text())).collect()
    }

    fn enumeration(&mut self, most: i32) -> i32 {
        if self.one_in(8) { self.random.i32(..) } else { self.random.i32(0..=most) }
    }

    fn creation(&mut self) -> v1::CreateHoldRequest {
        let is_keyed = self.one_in(3);
        v1::CreateHoldRequest {
            id: if is_keyed { String::new() } else { self.id() },
            idempotency_key: if is_keyed || self.one_in(20) { self.text() } else { String::new() },
            payer: self.or_text("alice"),
            payee: self.or_text("bob"),
            amount: self.amount(),
            due_at: self.time(),
            on_maturity: self.enumeration(2),
            labels: self.labels(),
            validate_only: self.one_in(4),
        }
    }

    fn listing(&mut self) -> v1::ListHoldsRequest {
        v1::ListHoldsRequest {
            payer: self.or_text("alice"),
            payee: if self.one_in(2) { String::new() } else { self.text() },
            phases: (0..self.random.usize(..3)).map(|_| self.enumeration(6)).collect(),
            labels: self.labels(),
            created_from: self.time().filter(|_| self.one_in(3)),
            created_until: self.time().filter(|_| self.one_in(3)),
            page_size: if self.one_in(3) { self.random.i32(..) } else { 10 },
            page_token: if self.one_in(3) { self.page_token() } else { String::new() },
        }
    }

    fn page_token(&mut self) -> String {
        let sealed = Filter::new("shop", &self.random.u8(..4)).seal(Uuid::from_u128(self.random.u128(..)));
        if self.one_in(2) { self.changed(&sealed) } else { sealed }
    }

    /// A text with a character more, less or changed.
    fn changed(&mut self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        self.change(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.random.usize(1..4) {
            let at = self.random.usize(..=bytes.len());
            match self.random.usize(..5) {
                0 => bytes.insert(at, self.random.u8(..)),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 if at < bytes.len() => bytes[at] = self.random.u8(..),
                3 if at < bytes.len() => bytes[at] ^= 1 << self.random.u32(..8),
                _ => bytes.truncate(at),
            }
        }
    }

    /// The message of a method, by its name.
    fn message(&mut self, method: &str) -> Vec<u8> {
        match method {
            "CreateHold" => self.creation().encode_to_vec(),
            "Transfer" => {
                let v1::CreateHoldRequest { id, payer, payee, amount, idempotency_key, labels, .. } =
                    self.creation();
                v1::TransferRequest { id, payer, payee, amount, idempotency_key, labels }.encode_to_vec()
            }
            "BatchCreateHolds" => {
                let holds = (0..self.random.usize(..4)).map(|_| self.creation()).collect();
                v1::BatchCreateHoldsRequest { holds }.encode_to_vec()
            }
            "ListHolds" => self.listing().encode_to_vec(),
            "CancelHold" | "ConfirmHold" | "WatchHold" => {
                v1::CancelHoldRequest { id: self.id(), etag: self.text() }.encode_to_vec()
            }
            "GetHold" => v1::GetHoldRequest { id: self.id() }.encode_to_vec(),
            "Issue" | "Burn" => {
                let account = self.or_text("alice");
                v1::IssueRequest { id: self.id(), account, amount: self.amount() }.encode_to_vec()
            }
            "CreateAccount" => {
                v1::CreateAccountRequest { id: self.or_text("alice"), currency: self.or_text("GOLD") }
                    .encode_to_vec()
            }
            "GetBalance" => {
                v1::GetBalanceRequest { account: self.or_text("alice"), at: self.time() }.encode_to_vec()
            }
            "ListPostings" => v1::ListPostingsRequest {
                account: self.or_text("alice"),
                after_version: self.number(),
                page_size: self.random.i32(-1..2_000),
                recorded_from: self.time(),
                recorded_until: self.time(),
            }
            .encode_to_vec(),
            _ => v1::GetAccountRequest { id: self.or_text("alice") }.encode_to_vec(),
        }
    }

    fn route(&mut self) -> &'static Route {
        let at = self.random.usize(..ROUTES.len());
        &ROUTES[at]
    }

    /// What proves who asks, or does not.
    fn authorization(&mut self, key: &str) -> Option<String> {
        match self.random.usize(..40) {
            0 => None,
            1 => Some(self.text()),
            2 => Some(format!("Bearer {}", self.text())),
            3 => Some(format!("Bearer {}", self.changed(key))),
            4 | 5 => Some(format!("Bearer {}", self.token())),
            _ => Some(format!("Bearer {key}")),
        }
    }

    /// What looks like a token.
    fn token(&mut self) -> String {
        let algorithm = *self.pick(&["ES256", "RS256", "EdDSA", "HS256", "none", "", "ES999"]);
        let mut header = json!({"alg": algorithm, "typ": "JWT", "kid": self.or_text("one")});
        if self.one_in(4) {
            let name = *self.pick(&["crit", "jwk", "jku", "x5c", "alg", "kid"]);
            header[name] = self.json(1);
        }
        let mut claims = json!({
            "iss": "https://login.test/", "aud": "tcc", "sub": self.text(), "exp": self.number(), "nbf": self.number(),
            "tcc_roles": ["application"], "tcc_accounts": ["*"],
        });
        let name = *self.pick(&["iss", "aud", "sub", "exp", "nbf", "iat", "tcc_roles"]);
        claims[name] = self.json(1);
        let signature: Vec<u8> = (0..*self.pick(&[0, 10, 64, 256])).map(|_| self.random.u8(..)).collect();
        let part = |json: &Value| base64_of(json.to_string().as_bytes());
        let token = format!("{}.{}.{}", part(&header), part(&claims), base64_of(&signature));
        if self.one_in(4) { self.changed(&token) } else { token }
    }

    /// Any JSON.
    fn json(&mut self, depth: u32) -> Value {
        match self.random.usize(..if depth == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => self.one_in(2).into(),
            2 => self.number().into(),
            3 => self.random.f64().into(),
            4 | 5 => self.text().into(),
            6 => (0..self.random.usize(..4)).map(|_| self.json(depth - 1)).collect(),
            _ => Value::Object(
                (0..self.random.usize(..4)).map(|_| (self.text(), self.json(depth - 1))).collect(),
            ),
        }
    }

    /// The JSON of a creation, with members of others among them.
    fn body(&mut self) -> String {
        let mut body = json!({
            "id": self.id(), "payer": self.or_text("alice"), "payee": self.or_text("bob"),
            "amount": {"value": self.number().to_string(), "currency": self.or_text("GOLD")},
            "dueAt": self.or_text("2026-09-22T14:13:20Z"), "onMaturity": self.or_text("ON_MATURITY_CONFIRM"),
            "labels": {"order": self.text()},
        });
        if self.one_in(4) {
            let names = [
                "id",
                "payer",
                "amount",
                "dueAt",
                "due_at",
                "onMaturity",
                "labels",
                "holds",
                "memo",
                "validateOnly",
            ];
            let name = *self.pick(&names);
            body[name] = self.json(2);
        }
        if self.one_in(8) && body["amount"].is_object() {
            body["amount"]["value"] = self.json(0);
        }
        if self.one_in(8) {
            body = json!({"holds": [body, self.json(2)]});
        }
        match self.random.usize(..16) {
            0 => self.json(3).to_string(),
            1 => "[".repeat(self.random.usize(..2_000)),
            2..=4 => self.changed(&body.to_string()),
            _ => body.to_string(),
        }
    }

    /// A request to the HTTP face; `None` if no client could send it.
    fn over_http(&mut self, key: &str) -> Option<Request<Body>> {
        let route = self.route();
        let verb = if self.one_in(20) {
            *self.pick(&["GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"])
        } else {
            route.verb
        };
        let id = self.id();
        let mut path = route.path.replace("{id}", &self.in_path(&id));
        let account = self.or_text("alice");
        path = path.replace("{account}", &self.in_path(&account));
        if self.one_in(20) {
            path = format!("/{}", self.in_path(&path.clone()));
        }
        if verb == "GET" || self.one_in(20) {
            let listing = self.query();
            path = format!("{path}?{listing}");
        }
        let mut request = Request::builder().method(verb).uri(&path);
        if let Some(authorization) = self.authorization(key) {
            request =
                request.header("authorization", HeaderValue::from_bytes(authorization.as_bytes()).ok()?);
        }
        let is_json = verb == "POST" && !self.one_in(20);
        if is_json {
            request = request.header("content-type", "application/json");
        }
        let names = [
            "idempotency-key",
            "x-idempotency-key",
            "if-match",
            "if-none-match",
            "prefer",
            "last-event-id",
            "accept",
            "tcc-caller",
            "grpc-timeout",
            "content-encoding",
            "content-type",
            "expect",
        ];
        for _ in 0..self.random.usize(..3) {
            let name = *self.pick(&names);
            let value = match self.random.usize(..4) {
                0 => "\"4\"".to_owned(),
                1 => format!("\"{}\"", self.text()),
                2 => (*self.pick(&["wait=0", "application/json", "text/event-stream", "*/*", "gzip", "1S"]))
                    .to_owned(),
                _ => self.text(),
            };
            let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
            request = request.header(HeaderName::from_static(name), value);
        }
        let body = if verb == "POST" || self.one_in(20) { self.body() } else { String::new() };
        request.body(Body::new(Full::new(Bytes::from(body)))).ok()
    }

    fn query(&mut self) -> String {
        let names = [
            "payer",
            "payee",
            "phases",
            "pageSize",
            "page_token",
            "createdFrom",
            "labels.order",
            "labels[a]",
            "at",
            "afterVersion",
            "recordedFrom",
            "nonsense",
        ];
        let mut pairs = vec!["payer=alice".to_owned()];
        for _ in 0..self.random.usize(..4) {
            let name = *self.pick(&names);
            let value = if name == "page_token" { self.page_token() } else { self.text() };
            pairs.push(format!("{name}={}", self.in_path(&value)));
        }
        pairs.join("&")
    }

    /// Percent-encoded, mostly.
    fn in_path(&mut self, text: &str) -> String {
        if self.one_in(12) {
            return text.to_owned();
        }
        let byte = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02x}"),
        };
        text.bytes().map(byte).collect()
    }

    /// A request over gRPC.
    fn over_grpc(&mut self, key: &str) -> Option<Request<Body>> {
        let method = self.route().method.clone();
        let mut message = self.message(method.name());
        match self.random.usize(..8) {
            0 | 1 => self.change(&mut message),
            2 => message = (0..self.random.usize(..60)).map(|_| self.random.u8(..)).collect(),
            _ => {}
        }
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        if self.one_in(20) {
            self.change(&mut frame);
        }
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path = if self.one_in(50) { self.changed(&path) } else { path };
        let mut request = Request::builder()
            .method("POST")
            .uri(path)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(authorization) = self.authorization(key) {
            request =
                request.header("authorization", HeaderValue::from_bytes(authorization.as_bytes()).ok()?);
        }
        if self.one_in(20) {
            let name = *self.pick(&["grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "tcc-caller"]);
            let value = if self.one_in(2) { "gzip".to_owned() } else { self.text() };
            request = request.header(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
        request.body(Body::new(Full::new(Bytes::from(frame)))).ok()
    }
}

/// As tokens are written, without padding.
fn base64_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        text.extend((0..=group.len()).map(|n| char::from(DIGITS[(bits >> (18 - 6 * n) & 63) as usize])));
    }
    text
}

/// What became of inputs.
#[derive(Default)]
struct Tally {
    taken: u64,
    /// No client could send them.
    unsent: u64,
    reasons: BTreeMap<&'static str, u64>,
}

async fn run(site: &mut Site, number: u64, tally: &mut Tally) -> Result<(), String> {
    let mut maker = Maker { random: fastrand::Rng::with_seed(number) };
    let is_grpc = maker.one_in(2);
    let key = site.key.clone();
    let request = if is_grpc { maker.over_grpc(&key) } else { maker.over_http(&key) };
    let Some(request) = request else {
        tally.unsent += 1;
        return Ok(());
    };
    let told = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
    let is_head = request.method() == "HEAD";
    let said = site.ask(request).await;
    let reason = match (is_grpc, is_head) {
        (true, _) => said.over_grpc(),
        // It has no body that could say more.
        (false, true) if !said.status.is_server_error() => Ok(None),
        (false, _) => said.over_http(),
    };
    match reason.map_err(|what| format!("input {number}: {told} is answered {what}"))? {
        Some(reason) => *tally.reasons.entry(reason.name()).or_default() += 1,
        None => tally.taken += 1,
    }
    Ok(())
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_is_asked_is_taken_or_told_what_is_wrong() {
    let (inputs, first) = (setting("TCC_FUZZ", 20_000), setting("TCC_FUZZ_FIRST", 1));
    let next = AtomicU64::new(first);
    let began = Instant::now();
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (mut site, mut tally) = (Site::start().await, Tally::default());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= first + inputs {
                    return Ok::<_, String>(tally);
                }
                run(&mut site, number, &mut tally).await?;
            }
        })
    };
    let tallies: Vec<Result<Tally, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no input makes a panic")).collect()
    });

    let mut all = Tally::default();
    for tally in tallies {
        let Tally { taken, unsent, reasons } = tally.unwrap_or_else(|what| panic!("{what}"));
        (all.taken, all.unsent) = (all.taken + taken, all.unsent + unsent);
        for (reason, count) in reasons {
            *all.reasons.entry(reason).or_default() += count;
        }
    }
    let refused: u64 = all.reasons.values().sum();
    assert_eq!(all.taken + all.unsent + refused, inputs);
    // Inputs that are all refused for the same reason would show nothing.
    if inputs >= 20_000 {
        assert!(all.taken * 20 > inputs, "only {} of {inputs} are taken", all.taken);
        assert!(all.reasons.len() >= 25, "{:?}", all.reasons);
    }
    println!(
        "fuzz: ok inputs={inputs} taken={} refused={refused} reasons={} unsent={} internal=0 unknown=0 seconds={}",
        all.taken,
        all.reasons.len(),
        all.unsent,
        began.elapsed().as_secs()
    );
}
