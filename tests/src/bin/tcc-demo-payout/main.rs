//! `tcc-demo-payout`: money that leaves through an API that fails in every way, while everything is killed in turn.
//!
//! A few hundred payment holds: each debits a user, credits the provider's account, is scored by a risk check, and has a payout as
//! its pivot. While they fall due, `tccd`, `tcc-payout` and the provider's stub are killed with SIGKILL, one after the other,
//! again and again. In the end everything is final, and three books are compared to the unit: what each transaction says, what
//! the ledger says, and what the provider's own ledger says. Its last line begins with `demo-payout: ok`.

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use std::{
    fmt,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};
use tcc_coordinator::{
    config::{Config, Database, ParticipantConfig, ShardConfig},
    dev::{Cluster, Options},
};
use tcc_proto::v1::{
    self, Phase, transaction_part::Part, transaction_service_client::TransactionServiceClient,
};
use tcc_tests::{
    Client, amount, connect, detail, new_id,
    process::{Program, Tccd, find_program, free_local_address},
    program::{failed, stopped},
    stub::{self, Books},
    time,
};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::transport::Channel;

/// Pays out through a provider that fails in every way, kills everything in turn, and counts the money.
#[derive(Parser)]
#[command(name = "tcc-demo-payout", version)]
struct Cli {
    /// How many payouts.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    payouts: u32,
    /// The same chance again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What every user has.
const FUNDS: i64 = 100_000;
const USERS: u32 = 20;
/// What is credited with everything that is paid out.
const PROVIDER: &str = "provider-stub";
/// The payouts fall due within so long.
const SPREAD: SignedDuration = SignedDuration::from_secs(10);
/// How long it may take until everything is final.
const PATIENCE: Duration = Duration::from_secs(300);
/// For how long one after the other is killed.
const TURN: Duration = Duration::from_millis(1_200);

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::select! {
        outcome = run(&cli) => outcome,
        stopped = stopped() => stopped,
    };
    match outcome {
        Ok(report) if report.wrong.is_empty() => {
            println!("demo-payout: ok {report}");
            ExitCode::SUCCESS
        }
        Ok(report) => {
            report.wrong.iter().take(50).for_each(|what| eprintln!("{what}"));
            println!("demo-payout: FAILED {report} wrong={}", report.wrong.len());
            ExitCode::FAILURE
        }
        Err(error) => failed("demo-payout", &error),
    }
}

/// What came of it.
#[derive(Default)]
struct Report {
    payouts: usize,
    vetoed: usize,
    asked_twice_without_same_key: usize,
    paid_twice: usize,
    lost: usize,
    wrong: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { payouts, vetoed, asked_twice_without_same_key, paid_twice, lost, .. } = self;
        write!(
            f,
            "payouts={payouts} vetoed={vetoed} asked_twice_without_same_key={asked_twice_without_same_key} \
             paid_twice={paid_twice} lost={lost}"
        )
    }
}

/// One payment hold.
#[derive(Clone)]
struct Order {
    id: String,
    user: String,
    recipient: String,
    amount: i64,
    due_at: Timestamp,
}

impl Order {
    fn request(&self) -> v1::CreateTransactionRequest {
        let entry =
            |account: &str| v1::LedgerEntry { account: account.into(), amount: Some(amount(self.amount)) };
        let call = |participant: &str| {
            let Self { recipient, amount, .. } = self;
            let payload =
                format!(r#"{{"recipient": "{recipient}", "amount": {amount}, "currency": "GOLD"}}"#);
            v1::ParticipantCall {
                participant: participant.into(),
                payload: payload.into(),
                ..Default::default()
            }
        };
        let parts = [
            Part::Debit(entry(&self.user)),
            Part::Credit(entry(PROVIDER)),
            Part::Call(call("risk")),
            Part::Call(call("payout")),
        ];
        v1::CreateTransactionRequest {
            id: self.id.clone(),
            branches: parts.map(|part| v1::TransactionPart { part: Some(part) }).into(),
            pivot: Some(3),
            due_at: Some(time(self.due_at)),
            on_maturity: v1::OnMaturity::Confirm.into(),
            ..Default::default()
        }
    }
}

/// Everything that runs.
struct Site {
    cluster: Cluster,
    folder: TempDir,
    tccd: Tccd,
    payout: Program,
    stub: Program,
    _risk: Program,
}

impl Site {
    async fn start(seed: u64) -> anyhow::Result<Self> {
        let start = || Cluster::start(&Options::default());
        let cluster = tokio::task::spawn_blocking(start).await?.context("starting PostgreSQL")?;
        let folder = tempfile::tempdir().context("making a folder")?;
        let admin = connect(&cluster.url()).await;
        let url = |name: &str| cluster.url().replace("dbname=postgres", &format!("dbname={name}"));
        for name in ["coordinator", "shard-0", "shard-1", "payout", "risk"] {
            admin.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await?;
        }
        let path = |name: &str| folder.path().join(name);
        let text = |name: &str| path(name).display().to_string();

        let (ledger, seed) = (text("ledger"), seed.to_string());
        let listen = free_local_address()?;
        let arguments = ["--listen", &listen, "--ledger", &ledger, "--seed", &seed];
        let stub = Program::start("tcc-stub-payouts", &arguments, &path("stub.log")).await?;

        let day = Duration::from_secs(24 * 3_600);
        let config = stub::payout_config(folder.path(), &url("payout"), stub.url(), day)?;
        let listen = free_local_address()?;
        let config = config.replace("127.0.0.1:0", &listen);
        // A transaction must credit the provider with what is paid out.
        std::fs::write(path("tcc-payout.toml"), format!("account = \"{PROVIDER}\"\n{config}"))?;
        let file = text("tcc-payout.toml");
        let payout = Program::start("tcc-payout", &["--config", &file], &path("tcc-payout.log")).await?;
        connect(&url("payout")).await.batch_execute(RECIPIENTS).await?;

        let database = url("risk");
        let rules = "refuse_above = 100\n[[rules]]\nat = \"/recipient\"\nis = [\"risky\"]\nscore = 101\nreason = \"RISK_RECIPIENT\"\n";
        let config = format!("listen = \"127.0.0.1:0\"\ndatabase = '''{database}'''\n{rules}");
        std::fs::write(path("tcc-risk.toml"), config)?;
        let risk =
            Program::start("tcc-risk", &["--config", &text("tcc-risk.toml")], &path("tcc-risk.log")).await?;

        let config = Config {
            listen: "127.0.0.1:0".into(),
            insecure_dev: true,
            coordinator: Database { url: url("coordinator") },
            shards: ["shard-0", "shard-1"].map(|name| ShardConfig::new(name, &url(name))).into(),
            participants: vec![
                ParticipantConfig { may_veto: true, ..ParticipantConfig::new("payout", payout.url()) },
                ParticipantConfig::new("risk", risk.url()),
            ],
            ..Config::default()
        };
        let tccd = Tccd::start(&config).await?;
        Ok(Self { cluster, folder, tccd, payout, stub, _risk: risk })
    }

    fn ledger(&self) -> std::path::PathBuf {
        self.folder.path().join("ledger")
    }
}

/// Every tenth has an account that is closed; one is risky.
const RECIPIENTS: &str = "
    INSERT INTO payout_recipient (recipient, currency, destination)
    SELECT 'r-' || n, 'GOLD', CASE WHEN n % 10 = 0 THEN 'closed-' ELSE 'acc-' END || n FROM generate_series(1, 100) n;
    INSERT INTO payout_recipient (recipient, currency, destination) VALUES ('risky', 'GOLD', 'acc-risky')";

async fn run(cli: &Cli) -> anyhow::Result<Report> {
    let mut site = Site::start(cli.seed).await?;
    println!(
        "tccd on {}, tcc-payout on {}, the stub on {}",
        site.tccd.url(),
        site.payout.url(),
        site.stub.url()
    );
    let mut client = Client::connect(site.tccd.url()).await;
    client.account(PROVIDER, 0).await;
    for n in 0..USERS {
        client.account(&format!("user-{n}"), FUNDS).await;
    }
    let transactions = lazy(site.tccd.url());

    let mut chance = fastrand::Rng::with_seed(cli.seed);
    let first_due = Timestamp::now() + SignedDuration::from_secs(4);
    let orders: Vec<Order> = (0..cli.payouts)
        .map(|n| Order {
            id: new_id(),
            user: format!("user-{}", n % USERS),
            recipient: if n % 50 == 7 { "risky".into() } else { format!("r-{}", chance.u8(1..=100)) },
            amount: chance.i64(1..=100),
            due_at: first_due + SignedDuration::from_millis(chance.i64(0..SPREAD.as_millis() as i64)),
        })
        .collect();
    let creating = stream::iter(orders.clone())
        .map(|order| create(transactions.clone(), order))
        .buffer_unordered(16)
        .collect::<Vec<_>>();
    let held: Vec<Option<Order>> = creating.await.into_iter().collect::<anyhow::Result<_>>()?;
    let refused = held.iter().filter(|order| order.is_none()).count();
    let held: Vec<Order> = held.into_iter().flatten().collect();
    println!("held={} refused_by_the_risk_check={refused}", held.len());

    let deadline = Instant::now() + PATIENCE;
    let mut kills = [0; 3];
    let mut open: Vec<Order> = held.clone();
    let mut ended: Vec<(Order, v1::Transaction)> = Vec::new();
    while !open.is_empty() {
        ensure!(Instant::now() < deadline, "{} transactions are not final", open.len());
        tokio::time::sleep(TURN).await;
        // The last ones are left alone, or it would never end.
        if Timestamp::now() < first_due + SPREAD + SignedDuration::from_secs(5) {
            let turn = kills.iter().sum::<usize>() % 3;
            kills[turn] += 1;
            match turn {
                0 => {
                    site.payout.kill().await?;
                    site.payout.restart().await?;
                }
                1 => {
                    site.stub.kill().await?;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    site.stub.restart().await?;
                }
                _ => {
                    site.tccd.kill().await?;
                    site.tccd.restart().await?;
                }
            }
        }
        let looked: Vec<(Order, Option<v1::Transaction>)> = stream::iter(open)
            .map(|order| look(transactions.clone(), order))
            .buffer_unordered(16)
            .collect()
            .await;
        open = Vec::new();
        for (order, transaction) in looked {
            match transaction {
                Some(transaction) => ended.push((order, transaction)),
                None => open.push(order),
            }
        }
    }
    println!("killed tcc-payout={} the_stub={} tccd={}", kills[0], kills[1], kills[2]);

    let mut report = compare(&ended, &Books::read(&site.ledger())?);
    count_the_ledger(&site, &ended, &mut report).await?;
    reconcile(&site, &mut report).await?;
    Ok(report)
}

fn lazy(url: &str) -> TransactionServiceClient<Channel> {
    let endpoint = Channel::from_shared(url.to_owned()).expect("an address");
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(10));
    TransactionServiceClient::new(endpoint.connect_lazy())
}

/// Creates one, whatever happens meanwhile. `None` if the risk check refuses it.
async fn create(
    mut client: TransactionServiceClient<Channel>,
    order: Order,
) -> anyhow::Result<Option<Order>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.create_transaction(order.request()).await {
            Ok(_) => return Ok(Some(order)),
            Err(status) if detail(&status, "refusal").as_deref() == Some("RISK_RECIPIENT") => {
                ensure!(order.recipient == "risky", "{} was refused: {status}", order.id);
                return Ok(None);
            }
            Err(status) if Instant::now() > deadline => bail!("{} is not created: {status}", order.id),
            Err(status) if is_final(&status) => bail!("{} is refused: {status:?}", order.id),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

fn is_final(status: &tonic::Status) -> bool {
    use tonic::Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied};
    matches!(
        status.code(),
        AlreadyExists | FailedPrecondition | InvalidArgument | NotFound | PermissionDenied
    )
}

/// A transaction, if it is final.
async fn look(
    mut client: TransactionServiceClient<Channel>,
    order: Order,
) -> (Order, Option<v1::Transaction>) {
    let request = v1::GetTransactionRequest { id: order.id.clone() };
    let found = client.get_transaction(request).await.ok().and_then(|found| found.into_inner().transaction);
    let is_final = |one: &v1::Transaction| matches!(one.phase(), Phase::Confirmed | Phase::Cancelled);
    (order, found.filter(is_final))
}

/// What each transaction says, and what the provider's ledger says.
fn compare(ended: &[(Order, v1::Transaction)], theirs: &Books) -> Report {
    let mut report = Report {
        asked_twice_without_same_key: theirs.asked_twice_without_same_key,
        paid_twice: theirs.paid.values().filter(|paid| paid.len() > 1).count(),
        ..Report::default()
    };
    for (order, transaction) in ended {
        let paid = theirs.paid.get(&order.id).map_or(&[][..], Vec::as_slice);
        let units: i64 = paid.iter().map(|paid| paid.amount).sum();
        match transaction.phase() {
            Phase::Confirmed => {
                report.payouts += 1;
                if units != order.amount {
                    report.lost += usize::from(units < order.amount);
                    report
                        .wrong
                        .push(format!("{} is confirmed, and {units} of {} are paid", order.id, order.amount));
                }
            }
            _ => {
                report.vetoed += 1;
                if transaction.cause() != v1::Cause::Vetoed {
                    report.wrong.push(format!("{} was cancelled by {:?}", order.id, transaction.cause()));
                }
                if units != 0 {
                    report.lost += 1;
                    report.wrong.push(format!("{} is cancelled, and {units} are paid", order.id));
                }
            }
        }
    }
    let known: std::collections::HashSet<&str> = ended.iter().map(|(order, _)| order.id.as_str()).collect();
    for id in theirs.paid.keys().filter(|id| !known.contains(id.as_str())) {
        report.lost += 1;
        report.wrong.push(format!("{id} is paid, and nobody has held it"));
    }
    for (what, count) in [
        ("transactions were asked for with two keys", report.asked_twice_without_same_key),
        ("transactions were paid twice", report.paid_twice),
    ] {
        if count > 0 {
            report.wrong.push(format!("{count} {what}"));
        }
    }
    println!("the provider was asked {} times, {} of them again", theirs.requests, theirs.repeated);
    if theirs.repeated == 0 || report.vetoed == 0 {
        report.wrong.push("nothing was asked again, or nothing was vetoed: that proves nothing".into());
    }
    report
}

/// What the accounts and the recipients say.
async fn count_the_ledger(
    site: &Site,
    ended: &[(Order, v1::Transaction)],
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut client = Client::connect(site.tccd.url()).await;
    let paid: i64 = ended
        .iter()
        .filter(|(_, transaction)| transaction.phase() == Phase::Confirmed)
        .map(|(order, _)| order.amount)
        .sum();
    let mut left = 0;
    for n in 0..USERS {
        let (available, held) = client.balances(&format!("user-{n}")).await;
        left += available;
        if held != 0 {
            report.wrong.push(format!("user-{n} has {held} held"));
        }
    }
    let (credited, _) = client.balances(PROVIDER).await;
    let issued = FUNDS * i64::from(USERS);
    if credited != paid || left + paid != issued {
        report.wrong.push(format!(
            "of {issued} units {left} are left and {credited} credited, where {paid} are paid"
        ));
    }
    let url = site.cluster.url().replace("dbname=postgres", "dbname=payout");
    let sql = "SELECT sum(reserved)::bigint, sum(paid)::bigint FROM payout_recipient";
    let row = connect(&url).await.query_one(sql, &[]).await?;
    let (reserved, counted): (i64, i64) = (row.get(0), row.get(1));
    if (reserved, counted) != (0, paid) {
        report
            .wrong
            .push(format!("the recipients have {reserved} reserved and {counted} paid, where {paid} are"));
    }
    println!("units: paid={paid} credited={credited} left={left}");
    Ok(())
}

/// What `tccctl` says to the provider's statement.
async fn reconcile(site: &Site, report: &mut Report) -> anyhow::Result<()> {
    let books = Books::read(&site.ledger())?;
    let mut csv = String::from("key,amount,currency,id\n");
    for paid in books.paid.values().flatten() {
        csv.push_str(&format!("{},{},{},{}\n", paid.key, paid.amount, paid.currency, paid.id));
    }
    let file = site.folder.path().join("statement.csv");
    std::fs::write(&file, csv)?;
    let compared = Command::new(find_program("tccctl")?)
        .args(["payout", "reconcile", "--participant", site.payout.url()])
        .arg(Path::new(&file))
        .output()
        .await?;
    let text = String::from_utf8_lossy(&compared.stdout);
    println!("tccctl payout reconcile: {}", text.trim().lines().last().unwrap_or_default());
    if !compared.status.success() {
        report.wrong.push(format!("{text}{}", String::from_utf8_lossy(&compared.stderr)));
    }
    Ok(())
}
