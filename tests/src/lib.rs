//! The harness: a whole system on real PostgreSQL for each test, and a client that speaks to it like anybody else.
//!
//! One throw-away server holds the databases of a system, so a test starts in a second and nothing is shared between tests.
//! The server of a test runs without fsync, since killing a coordinator does not need it; the demo and whatever crashes
//! PostgreSQL keep it on.

pub mod both;
pub mod caller;
pub mod examples;
pub mod gate;
pub mod http;
pub mod memory;
pub mod parties;
pub mod process;
pub mod program;
pub mod proxy;
pub mod secure;
pub mod stub;

use jiff::{SignedDuration, Timestamp};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tcc_coordinator::{
    config::{Config, Database, ShardConfig, Telemetry},
    dev::{Cluster, Options, Servers},
    serve::{self, Running},
};
use tcc_proto::v1::{
    self, hold_service_client::HoldServiceClient, ledger_service_client::LedgerServiceClient,
    operator_service_client::OperatorServiceClient, recovery_service_client::RecoveryServiceClient,
    transaction_service_client::TransactionServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;
use uuid::Uuid;

/// The currency of every test.
pub const GOLD: &str = "GOLD";
/// For a server that nobody crashes.
const QUICK: [&str; 3] = ["fsync=off", "full_page_writes=off", "synchronous_commit=off"];
/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL server with the databases of a coordinator and its shards.
pub struct System {
    /// The server.
    pub cluster: Cluster,
    /// What a coordinator on it is configured with.
    pub config: Config,
}

impl System {
    /// A system of two shards.
    pub async fn start() -> Self {
        Self::with(2, &QUICK).await
    }

    /// A system of two shards, whose databases have no tables yet.
    pub async fn empty() -> Self {
        Self::like(None, None, 2, &QUICK).await
    }

    /// A system of so many shards, on a server with these settings. Where `TCC_TEMPLATE` names what `tcc-template` made, it
    /// begins with that: most of the time of a small test would go into making databases and their tables.
    pub async fn with(shards: usize, settings: &[&str]) -> Self {
        let like = std::env::var_os("TCC_TEMPLATE").map(PathBuf::from);
        Self::like(like, None, shards, settings).await
    }

    /// Makes what [`System::with`] can begin with, in a folder.
    pub async fn template(folder: &Path) {
        let system = Self::like(None, Some(folder.to_owned()), 2, &QUICK).await;
        serve::migrate(&system.config).await.expect("the tables are made");
    }

    async fn like(like: Option<PathBuf>, data: Option<PathBuf>, shards: usize, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let options = Options { data, settings, like, ..Options::default() };
        let start = move || Cluster::start(&options);
        let cluster = tokio::task::spawn_blocking(start).await.unwrap().expect("PostgreSQL starts");
        let admin = connect(&cluster.url()).await;
        let url = |name: &str| cluster.url().replace("dbname=postgres", &format!("dbname={name}"));
        let names: Vec<String> = (0..shards).map(|n| format!("shard-{n}")).collect();
        let there = admin.query("SELECT datname FROM pg_database", &[]).await.expect("databases are listed");
        let there: Vec<String> = there.iter().map(|row| row.get(0)).collect();
        let wanted = names.iter().map(String::as_str).chain(["coordinator"]);
        for database in wanted.filter(|name| !there.iter().any(|there| there == name)) {
            admin
                .batch_execute(&format!("CREATE DATABASE \"{database}\""))
                .await
                .expect("a database is created");
        }
        let config = Config {
            listen: "127.0.0.1:0".into(),
            insecure_dev: true,
            coordinator: Database { url: url("coordinator") },
            shards: names.iter().map(|name| ShardConfig::new(name, &url(name))).collect(),
            telemetry: Telemetry { listen: "127.0.0.1:0".into(), ..Telemetry::default() },
            ..Config::default()
        };
        Self { cluster, config }
    }

    /// A coordinator on it, in this process.
    pub async fn coordinator(&self) -> Coordinator {
        Coordinator::on(serve::start(&self.config).await.expect("the coordinator starts")).await
    }

    /// A connection to the coordinator's database.
    pub async fn sql(&self) -> tokio_postgres::Client {
        connect(&self.config.coordinator.url).await
    }

    /// A connection to a shard's database.
    pub async fn shard_sql(&self, shard: usize) -> tokio_postgres::Client {
        connect(&self.config.shards[shard].url).await
    }
}

/// A plain connection.
pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("PostgreSQL answers");
    tokio::spawn(connection);
    client
}

/// A plain connection to a server that may not answer.
///
/// # Errors
///
/// If it does not, within three seconds.
pub async fn try_connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let connecting = tokio_postgres::connect(url, tokio_postgres::NoTls);
    let (client, connection) = tokio::time::timeout(Duration::from_secs(3), connecting).await??;
    tokio::spawn(connection);
    Ok(client)
}

/// A coordinator in this process, and a client of it.
pub struct Coordinator {
    /// What runs.
    pub running: Running,
    /// Speaks to it over gRPC.
    pub client: Client,
}

impl Coordinator {
    /// A client for a coordinator that runs.
    pub async fn on(running: Running) -> Self {
        let client = Client::connect(&format!("http://{}", running.address)).await;
        Self { running, client }
    }

    /// Stops it in order.
    pub async fn stop(self) {
        self.running.stop().cancel();
        self.running.ended().await.expect("it was asked to stop");
    }
}

/// Servers of a coordinator and two shards that can be crashed one by one, with fsync on.
pub async fn servers() -> Servers {
    tokio::task::spawn_blocking(|| Servers::start(2, None, &[])).await.unwrap().expect("PostgreSQL starts")
}

/// A coordinator on them, in this process.
pub async fn serve_on(servers: &Servers) -> Coordinator {
    Coordinator::on(serve::start(&servers.config("127.0.0.1:0")).await.expect("the coordinator starts")).await
}

/// A payer with 10,000 units and a payee without, on different shards.
pub async fn alice_and_bob(client: &mut Client) -> (String, String) {
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 10_000).await;
    client.account(&bob, 0).await;
    (alice, bob)
}

/// A client of the API.
#[derive(Clone)]
pub struct Client {
    /// Of holds.
    pub holds: HoldServiceClient<Channel>,
    /// Of transactions of any branches.
    pub transactions: TransactionServiceClient<Channel>,
    /// Of accounts.
    pub ledger: LedgerServiceClient<Channel>,
    /// Of the operator's view.
    pub operator: OperatorServiceClient<Channel>,
    /// Of single transactions, for people on call.
    pub recovery: RecoveryServiceClient<Channel>,
}

impl Client {
    /// To a server's address.
    pub async fn connect(address: &str) -> Self {
        let endpoint = Channel::from_shared(address.to_owned()).expect("an address");
        Self::on(endpoint.connect().await.expect("the coordinator listens"))
    }

    /// To the address of a server that may not be there.
    #[must_use]
    pub fn lazy(address: &str) -> Self {
        let endpoint = Channel::from_shared(address.to_owned()).expect("an address");
        let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(8));
        Self::on(endpoint.connect_lazy())
    }

    fn on(channel: Channel) -> Self {
        Self {
            holds: HoldServiceClient::new(channel.clone()),
            transactions: TransactionServiceClient::new(channel.clone()),
            ledger: LedgerServiceClient::new(channel.clone()),
            operator: OperatorServiceClient::new(channel.clone()),
            recovery: RecoveryServiceClient::new(channel),
        }
    }

    /// Opens an account, and issues to it unless that is nothing.
    pub async fn account(&mut self, id: &str, funds: i64) {
        let request = v1::CreateAccountRequest { id: id.into(), currency: GOLD.into() };
        self.ledger.create_account(request).await.expect("the account is opened");
        if funds > 0 {
            let amount = Some(amount(funds));
            let request = v1::IssueRequest { id: new_id(), account: id.into(), amount };
            self.ledger.issue(request).await.expect("the units are issued");
        }
    }

    /// Asks for a hold.
    pub async fn create(
        &mut self,
        request: &v1::CreateHoldRequest,
    ) -> Result<v1::CreateHoldResponse, Status> {
        Ok(self.holds.create_hold(request.clone()).await?.into_inner())
    }

    /// A hold that must be there.
    pub async fn hold(&mut self, id: &str) -> v1::Hold {
        let response =
            self.holds.get_hold(v1::GetHoldRequest { id: id.into() }).await.expect("the hold is there");
        response.into_inner().hold.expect("an answer has a hold")
    }

    /// Cancels.
    pub async fn cancel(&mut self, id: &str) -> Result<v1::Hold, Status> {
        let response =
            self.holds.cancel_hold(v1::CancelHoldRequest { id: id.into(), etag: String::new() }).await?;
        Ok(response.into_inner().hold.expect("an answer has a hold"))
    }

    /// Confirms before its time.
    pub async fn confirm(&mut self, id: &str) -> Result<v1::Hold, Status> {
        let response =
            self.holds.confirm_hold(v1::ConfirmHoldRequest { id: id.into(), etag: String::new() }).await?;
        Ok(response.into_inner().hold.expect("an answer has a hold"))
    }

    /// Available and held of an account.
    pub async fn balances(&mut self, id: &str) -> (i64, i64) {
        let response = self.ledger.get_account(v1::GetAccountRequest { id: id.into() }).await;
        let account =
            response.expect("the account is there").into_inner().account.expect("an answer has an account");
        (account.available, account.held)
    }

    /// Waits until a hold is in one of some phases.
    pub async fn until(&mut self, id: &str, phases: &[v1::Phase]) -> v1::Hold {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let hold = self.hold(id).await;
            if phases.contains(&hold.phase()) {
                return hold;
            }
            assert!(tokio::time::Instant::now() < deadline, "hold {id} stays {:?}", hold.phase());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a hold is final.
    pub async fn until_final(&mut self, id: &str) -> v1::Hold {
        self.until(id, &[v1::Phase::Confirmed, v1::Phase::Cancelled]).await
    }

    /// Waits until the orphan sweep has looked at everything: from then on new keys are taken.
    pub async fn until_swept(&mut self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.operator.get_status(v1::GetStatusRequest {}).await;
            if status.is_ok_and(|status| status.into_inner().unswept_shards == 0) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the sweep does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs an audit, which must come to its end. Answers its findings and its summary.
    pub async fn audit(&mut self) -> (Vec<v1::AuditFinding>, v1::AuditSummary) {
        use v1::run_audit_response::Event;
        let mut stream =
            self.operator.run_audit(v1::RunAuditRequest {}).await.expect("the audit runs").into_inner();
        let (mut findings, mut summary) = (Vec::new(), None);
        while let Some(message) = stream.message().await.expect("the audit comes to its end") {
            match message.event {
                Some(Event::Finding(finding)) => findings.push(finding),
                Some(Event::Summary(all)) => summary = Some(all),
                Some(Event::Progress(_)) | None => {}
            }
        }
        (findings, summary.expect("an audit ends with a summary"))
    }

    /// Runs an audit that must find nothing.
    pub async fn audit_is_clean(&mut self) -> v1::AuditSummary {
        let (findings, summary) = self.audit().await;
        assert!(findings.is_empty(), "{findings:#?}");
        summary
    }
}

/// A new UUIDv7.
#[must_use]
pub fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// An amount of the tests' currency.
#[must_use]
pub fn amount(value: i64) -> v1::Amount {
    v1::Amount { value, currency: GOLD.into() }
}

/// A hold that pays when it is due, so long from now.
#[must_use]
pub fn hold_due_in(payer: &str, payee: &str, value: i64, delay: SignedDuration) -> v1::CreateHoldRequest {
    v1::CreateHoldRequest {
        id: new_id(),
        payer: payer.into(),
        payee: payee.into(),
        amount: Some(amount(value)),
        due_at: Some(time(Timestamp::now() + delay)),
        on_maturity: v1::OnMaturity::Confirm.into(),
        ..Default::default()
    }
}

/// A hold that pays in an hour: it stays held while a test runs.
#[must_use]
pub fn hold(payer: &str, payee: &str, value: i64) -> v1::CreateHoldRequest {
    hold_due_in(payer, payee, value, SignedDuration::from_hours(1))
}

/// A time as protobuf has it.
#[must_use]
pub fn time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// The time that protobuf means.
#[must_use]
pub fn from_proto(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, time.nanos).expect("the server sends valid times")
}

/// The reason of an error, which every error has.
#[must_use]
pub fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_else(|| format!("no reason: {status:?}"))
}

/// A detail of an error, by its key in the metadata of `ErrorInfo`.
#[must_use]
pub fn detail(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.remove(key)
}

/// Two account ids that live on different shards of a system of two, the first one on shard 0.
#[must_use]
pub fn on_two_shards(prefix: &str) -> (String, String) {
    (on_shard(prefix, 0), on_shard(prefix, 1))
}

/// An account id that lives on a shard of a system of two.
#[must_use]
pub fn on_shard(prefix: &str, shard: u16) -> String {
    let bucket = |id: &String| tcc_core::bucket_of(&tcc_core::AccountId::parse(id).expect("an account id"));
    (0..).map(|n| format!("{prefix}-{n}")).find(|id| bucket(id) % 2 == shard).expect("half of all ids do")
}

/// What a process tells whoever watches it.
pub async fn scrape(address: std::net::SocketAddr) -> String {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    text
}

/// The status and the body that a path answers.
pub async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
