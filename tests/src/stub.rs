//! A payment provider's HTTP API that fails in every way that such APIs have: for tests and the demo.
//!
//! It is slow and does it after all, it answers 500 before and after it has done it, it keeps the answer to itself, says
//! "pending" and pays later or fails later, says that it wants no more, answers success twice, and calls a repeated key a
//! conflict. It forgets keys after a while, and would pay again then. Its ledger is a file of its own, to which a line is
//! added before anything else is: whatever is killed, what was paid can be read there, and compared.
//!
//! ```text
//! POST /v1/payouts               {"destination": …, "amount": …, "currency": …, "transaction": …}, Idempotency-Key, Authorization
//! GET  /v1/payouts?key=KEY       what became of it: never forgotten
//! GET  /v1/statement             what was paid, as CSV
//! ```

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    fs::{File, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Of a hundred requests, how many go wrong in which way. The rest are answered as they should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// 500, and nothing is done.
    pub failed: u8,
    /// It is done, and the answer is 502.
    pub lost: u8,
    /// It is done, and there is no answer.
    pub silent: u8,
    /// It is done after the caller has given up.
    pub slow: u8,
    /// "Pending": it is paid a little later, or fails then.
    pub pending: u8,
    /// 429.
    pub too_many: u8,
    /// A key that is known is answered with 409, and not with what it stands for.
    pub conflict: u8,
}

impl Faults {
    /// A bit of everything, a third in all.
    pub const ALL: Self =
        Self { failed: 3, lost: 6, silent: 4, slow: 4, pending: 10, too_many: 3, conflict: 50 };
}

/// How it behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: String,
    /// Its ledger.
    pub ledger: PathBuf,
    /// How long it knows a key again.
    pub key_memory: Duration,
    /// For how long it keeps silent.
    pub silence: Duration,
    /// What goes wrong, and how the chance falls.
    pub faults: Faults,
    /// The same chance again.
    pub seed: u64,
}

/// The token that it wants.
pub const TOKEN: &str = "stub-token";
/// Whoever has a destination that begins like this has no account any more: 422.
pub const CLOSED: &str = "closed-";

/// A line of its ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Line {
    /// It was asked.
    Asked {
        /// With this key,
        key: String,
        /// for this transaction.
        transaction: String,
    },
    /// It will be paid, or fail, at that time (milliseconds since 1970).
    Pending {
        /// The payout.
        #[serde(flatten)]
        paid: Paid,
        /// When.
        at_ms: u64,
        /// It fails.
        fails: bool,
    },
    /// It is paid.
    Paid(Paid),
    /// What was pending has failed.
    Failed {
        /// Which.
        key: String,
    },
}

/// What was paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paid {
    /// The provider's own name for it.
    pub id: String,
    /// The caller's key.
    pub key: String,
    /// The caller's transaction.
    pub transaction: String,
    /// Whom.
    pub destination: String,
    /// How much.
    pub amount: i64,
    /// Of what.
    pub currency: String,
}

/// What a ledger comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// What was paid, by transaction.
    pub paid: BTreeMap<String, Vec<Paid>>,
    /// Transactions that were asked for with more than one key.
    pub asked_twice_without_same_key: usize,
    /// How many requests there were.
    pub requests: usize,
    /// How many requests had a key that was there before.
    pub repeated: usize,
}

impl Books {
    /// Reads a ledger. A last line that was cut off by a kill was never acted upon.
    ///
    /// # Errors
    ///
    /// If another line is none.
    pub fn read(ledger: &Path) -> anyhow::Result<Self> {
        let mut books = Self::default();
        let mut keys: HashMap<String, HashSet<String>> = HashMap::new();
        let mut seen = HashSet::new();
        for line in read_lines(ledger)? {
            match line {
                Line::Asked { key, transaction } => {
                    books.requests += 1;
                    books.repeated += usize::from(!seen.insert(key.clone()));
                    keys.entry(transaction).or_default().insert(key);
                }
                Line::Paid(paid) => books.paid.entry(paid.transaction.clone()).or_default().push(paid),
                Line::Pending { .. } | Line::Failed { .. } => {}
            }
        }
        books.asked_twice_without_same_key = keys.values().filter(|keys| keys.len() > 1).count();
        Ok(books)
    }
}

fn read_lines(ledger: &Path) -> anyhow::Result<Vec<Line>> {
    let text = match std::fs::read_to_string(ledger) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("reading the stub's ledger"),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("the stub's ledger has {line:?}")))
        .collect()
}

/// The API, until it is dropped.
pub struct Stub {
    /// Where it listens.
    pub address: SocketAddr,
    desk: Arc<Desk>,
    _stop: DropGuard,
}

struct Desk {
    options: Options,
    state: Mutex<State>,
}

struct State {
    faults: Faults,
    chance: fastrand::Rng,
    ledger: File,
    /// What each key stands for, for ever: the look-up's memory.
    known: HashMap<String, Known>,
    /// When each key was used last: the memory of repeated requests.
    keys: HashMap<String, Instant>,
    next: u64,
}

#[derive(Clone)]
struct Known {
    paid: Paid,
    /// When it is paid, or fails, if it is pending.
    until: Option<(SystemTime, bool)>,
    has_failed: bool,
}

impl Stub {
    /// Starts it, and goes on from its ledger, if there is one.
    ///
    /// # Errors
    ///
    /// If it cannot listen, or its ledger cannot be read.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let lines = read_lines(&options.ledger)?;
        let ledger = OpenOptions::new().create(true).append(true).open(&options.ledger)?;
        ensure_ends_with_line(&options.ledger)?;
        let mut state = State {
            faults: options.faults,
            chance: fastrand::Rng::with_seed(options.seed.wrapping_add(lines.len() as u64)),
            ledger,
            known: HashMap::new(),
            keys: HashMap::new(),
            next: lines.len() as u64,
        };
        for line in lines {
            state.remember(line);
        }
        let listener = TcpListener::bind(&options.listen).await.context("the stub cannot listen")?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk { options, state: Mutex::new(state) });
        let stop = CancellationToken::new();
        tokio::spawn({
            let (desk, stop) = (Arc::clone(&desk), stop.clone());
            async move {
                while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                    let Ok((stream, _)) = accepted else { continue };
                    let desk = Arc::clone(&desk);
                    let service = service_fn(move |request| {
                        let desk = Arc::clone(&desk);
                        async move { Ok::<_, Infallible>(desk.answer(request).await) }
                    });
                    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    let stop = stop.clone();
                    tokio::spawn(async move { drop(stop.run_until_cancelled(serving).await) });
                }
            }
        });
        Ok(Self { address, desk, _stop: stop.drop_guard() })
    }

    /// What goes wrong from now on.
    pub fn set(&self, faults: Faults) {
        self.desk.state.lock().unwrap().faults = faults;
    }

    /// What its ledger comes to.
    ///
    /// # Errors
    ///
    /// As [`Books::read`].
    pub fn books(&self) -> anyhow::Result<Books> {
        Books::read(&self.desk.options.ledger)
    }
}

/// What a kill has cut off must not run into the next line.
fn ensure_ends_with_line(path: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(path)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < bytes.len() {
        OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
    }
    Ok(())
}

impl State {
    fn write(&mut self, line: Line) {
        let mut text = serde_json::to_string(&line).expect("a line is JSON");
        text.push('\n');
        self.ledger.write_all(text.as_bytes()).expect("the stub's ledger can be written");
        self.remember(line);
    }

    fn remember(&mut self, line: Line) {
        let known = |paid: Paid, until, has_failed| Known { paid, until, has_failed };
        match line {
            Line::Asked { .. } => {}
            Line::Pending { paid, at_ms, fails } => {
                let at = UNIX_EPOCH + Duration::from_millis(at_ms);
                self.known.insert(paid.key.clone(), known(paid, Some((at, fails)), false));
            }
            Line::Paid(paid) => drop(self.known.insert(paid.key.clone(), known(paid, None, false))),
            Line::Failed { key } => {
                if let Some(known) = self.known.get_mut(&key) {
                    (known.until, known.has_failed) = (None, true);
                }
            }
        }
    }

    /// What is pending and due is paid, or fails.
    fn settle(&mut self) {
        let now = SystemTime::now();
        let due: Vec<Known> = self
            .known
            .values()
            .filter(|known| known.until.is_some_and(|(at, _)| at <= now))
            .cloned()
            .collect();
        for known in due {
            let fails = known.until.is_some_and(|(_, fails)| fails);
            self.write(if fails { Line::Failed { key: known.paid.key } } else { Line::Paid(known.paid) });
        }
    }

    /// Pays, unless the key is known. What it stands for.
    fn pay(&mut self, mut order: Paid, key_memory: Duration, pending: bool) -> Known {
        let now = Instant::now();
        let is_known = self.keys.get(&order.key).is_some_and(|at| at.elapsed() < key_memory);
        if let (true, Some(known)) = (is_known, self.known.get(&order.key)) {
            return known.clone();
        }
        self.keys.insert(order.key.clone(), now);
        self.next += 1;
        order.id = format!("po_{}", self.next);
        let key = order.key.clone();
        if pending {
            let at = SystemTime::now() + Duration::from_millis(self.chance.u64(100..1_500));
            let at_ms = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            let fails = self.chance.u8(0..4) == 0;
            self.write(Line::Pending { paid: order, at_ms, fails });
        } else {
            self.write(Line::Paid(order));
        }
        self.known[&key].clone()
    }
}

impl Desk {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if head.headers.get(AUTHORIZATION).is_none_or(|value| value != &format!("Bearer {TOKEN}")) {
            return error(StatusCode::UNAUTHORIZED, "unauthorized");
        }
        self.state.lock().unwrap().settle();
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/v1/payouts") => {
                let key = head.uri.query().and_then(|query| query.strip_prefix("key=")).unwrap_or_default();
                self.look_up(key)
            }
            (&Method::GET, "/v1/statement") => self.statement(),
            (&Method::POST, "/v1/payouts") => {
                let key = head.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
                let body = Limited::new(body, 64 * 1024).collect().await.map(|body| body.to_bytes());
                let order = body.ok().and_then(|body| read_order(&body, key?));
                match order {
                    Some(order) => self.send(order).await,
                    None => error(StatusCode::BAD_REQUEST, "malformed"),
                }
            }
            _ => error(StatusCode::NOT_FOUND, "no_such_path"),
        }
    }

    fn look_up(&self, key: &str) -> Response<Full<Bytes>> {
        let mut state = self.state.lock().unwrap();
        if state.chance.u8(0..100) < state.faults.failed {
            return error(StatusCode::INTERNAL_SERVER_ERROR, "internal");
        }
        match state.known.get(key) {
            Some(known) => shown(known),
            None => error(StatusCode::NOT_FOUND, "unknown_payout"),
        }
    }

    fn statement(&self) -> Response<Full<Bytes>> {
        let books = Books::read(&self.options.ledger).unwrap_or_default();
        let mut csv = String::from("key,amount,currency,status,id\n");
        for Paid { key, amount, currency, id, .. } in books.paid.into_values().flatten() {
            csv.push_str(&format!("{key},{amount},{currency},paid,{id}\n"));
        }
        Response::new(Full::new(csv.into()))
    }

    async fn send(self: Arc<Self>, order: Paid) -> Response<Full<Bytes>> {
        let (faults, roll, is_conflict, is_known) = {
            let mut state = self.state.lock().unwrap();
            let (key, transaction) = (order.key.clone(), order.transaction.clone());
            state.write(Line::Asked { key, transaction });
            let is_known =
                state.keys.get(&order.key).is_some_and(|at| at.elapsed() < self.options.key_memory);
            let (roll, conflict) = (state.chance.u8(0..100), state.chance.u8(0..100));
            (state.faults, roll, conflict < state.faults.conflict, is_known)
        };
        if order.destination.starts_with(CLOSED) {
            return error(StatusCode::UNPROCESSABLE_ENTITY, "account_closed");
        }
        if is_known && is_conflict {
            return error(StatusCode::CONFLICT, "duplicate");
        }
        let mut sum = 0;
        let mut is_next = |share: u8| {
            let is_it = (sum..sum + share).contains(&roll);
            sum += share;
            is_it
        };
        let memory = self.options.key_memory;
        let pay = |desk: &Self, pending| desk.state.lock().unwrap().pay(order.clone(), memory, pending);
        if is_next(faults.failed) {
            return error(StatusCode::INTERNAL_SERVER_ERROR, "internal");
        }
        if is_next(faults.too_many) {
            let mut response = error(StatusCode::TOO_MANY_REQUESTS, "too_many");
            response.headers_mut().insert(RETRY_AFTER, "1".parse().expect("a header"));
            return response;
        }
        if is_next(faults.lost) {
            pay(&self, false);
            return error(StatusCode::BAD_GATEWAY, "bad_gateway");
        }
        if is_next(faults.silent) {
            pay(&self, false);
            tokio::time::sleep(self.options.silence).await;
            return error(StatusCode::GATEWAY_TIMEOUT, "timeout");
        }
        if is_next(faults.slow) {
            // Whoever hangs up does not stop it.
            let desk = Arc::clone(&self);
            let late = tokio::spawn(async move {
                tokio::time::sleep(desk.options.silence).await;
                desk.state.lock().unwrap().pay(order, memory, false)
            });
            return match late.await {
                Ok(known) => shown(&known),
                Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            };
        }
        let is_pending = is_next(faults.pending);
        shown(&pay(&self, is_pending))
    }
}

fn read_order(body: &[u8], key: &str) -> Option<Paid> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let text = |name: &str| Some(json.get(name)?.as_str()?.to_owned());
    Some(Paid {
        id: String::new(),
        key: key.to_owned(),
        transaction: text("transaction")?,
        destination: text("destination")?,
        amount: json.get("amount")?.as_i64()?,
        currency: text("currency")?,
    })
}

fn shown(known: &Known) -> Response<Full<Bytes>> {
    let (status, word) = match known {
        Known { has_failed: true, .. } => (StatusCode::OK, "failed"),
        Known { until: Some(_), .. } => (StatusCode::ACCEPTED, "pending"),
        Known { .. } => (StatusCode::OK, "paid"),
    };
    reply(status, &json!({"id": known.paid.id, "status": word, "code": "bank_refused"}))
}

fn error(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    reply(status, &json!({"error": {"code": code}}))
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a header"));
    response
}

/// The configuration of a `tcc-payout` that pays through a stub, as an operator would write it.
///
/// # Errors
///
/// If the folder cannot be written.
pub fn payout_config(
    folder: &Path,
    database: &str,
    stub: &str,
    key_memory: Duration,
) -> anyhow::Result<String> {
    ensure!(!database.contains('\n') && !database.contains("'''"), "a database's url is one line");
    std::fs::write(folder.join("token"), format!("{TOKEN}\n")).context("writing the stub's token")?;
    let token = folder.join("token");
    let (token, memory_s) = (token.display(), key_memory.as_secs());
    Ok(format!(
        r#"listen = "127.0.0.1:0"
database = '''{database}'''

[currencies.GOLD]
most = 1000000

[provider]
key_memory_s = {memory_s}
late_s = 2
deadline_ms = 500
calls_per_second = 200
at_a_time = 16
secrets.token = "{token}"

[provider.send]
method = "POST"
url = "{stub}/v1/payouts"
headers.Authorization = "Bearer {{secret:token}}"
headers.Idempotency-Key = "{{key}}"
body = {{ destination = "{{destination}}", amount = "{{amount:number}}", currency = "{{currency}}", transaction = "{{transaction}}" }}

[[provider.send.answers]]
status = [200]
at = "/status"
is = ["paid"]
means = "paid"
reference = "/id"

[[provider.send.answers]]
status = [200, 202]
at = "/status"
is = ["pending"]
means = "pending"

[[provider.send.answers]]
status = [200]
at = "/status"
is = ["failed"]
means = "never"
reason = "/code"

[[provider.send.answers]]
status = [400, 422]
means = "never"
reason = "/error/code"

[provider.look_up]
method = "GET"
url = "{stub}/v1/payouts?key={{key}}"
headers.Authorization = "Bearer {{secret:token}}"

[[provider.look_up.answers]]
status = [200]
at = "/status"
is = ["paid"]
means = "paid"
reference = "/id"

[[provider.look_up.answers]]
status = [202]
means = "pending"

[[provider.look_up.answers]]
status = [200]
at = "/status"
is = ["failed"]
means = "never"
reason = "/code"

[[provider.look_up.answers]]
status = [404]
at = "/error/code"
is = ["unknown_payout"]
means = "not_there"
"#
    ))
}
