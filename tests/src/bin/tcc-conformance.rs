//! `tcc-conformance`: the conformance kit against every participant in this repository, and against five that are broken.
//!
//! Each right one is started again in the middle, and must then say the same of everything that it was asked before. Each
//! broken one must be found and its mistake named. The last line sums it up.

use anyhow::{Context as _, ensure};
use clap::Parser;
use futures::future::{BoxFuture, join_all};
use std::{collections::HashSet, process::ExitCode, sync::Arc};
use tcc_coordinator::dev::{Cluster, Options as ClusterOptions};
use tcc_core::{AccountId, Amount, BUCKETS, Currency, Descriptor, Transaction, TransactionId};
use tcc_ledger::{Shard, heads::Heads};
use tcc_participant::{
    Server,
    conformance::{Kit, Mistake, Options, Part, Subject, verify},
    serve::{InProcess, Running, start},
};
use tcc_tests::{
    connect,
    examples::{
        COUPONS, Coupons, SEATS, STOCK, seats::Seats, stock::Stock, stock_in_batches::StockInBatches,
    },
    memory::{Flaw, Memory},
    program::{failed, stopped},
};
use uuid::Uuid;

/// Asks every participant of this repository all that a coordinator could ask.
#[derive(Parser)]
struct Cli {
    /// How many random schedules for each participant, up to 1500
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(..=1500))]
    schedules: u32,
    /// Of the first of them
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A participant that runs, and how to stop it.
type Started = (String, BoxFuture<'static, anyhow::Result<()>>);

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::select! {
        outcome = run(&cli) => outcome,
        stopped = stopped() => stopped,
    };
    match outcome {
        Ok(passed) => {
            let named = Flaw::NAMED.len();
            println!("conformance: ok passed={passed} broken_found={named}/{named}");
            ExitCode::SUCCESS
        }
        Err(error) => failed("conformance", &error),
    }
}

/// How many schedules were answered rightly by the participants that are right.
async fn run(cli: &Cli) -> anyhow::Result<u64> {
    let options = Options { seed: cli.seed, schedules: cli.schedules, ..Options::default() };
    let settings = ["fsync=off", "synchronous_commit=off"].map(str::to_owned).to_vec();
    let start_cluster = move || Cluster::start(&ClusterOptions { settings, ..ClusterOptions::default() });
    let cluster = tokio::task::spawn_blocking(start_cluster).await?.context("starting PostgreSQL")?;
    let admin = connect(&cluster.url()).await;
    let url = |name: &str| cluster.url().replace("dbname=postgres", &format!("dbname={name}"));
    for (name, tables) in [("stock", STOCK), ("batches", STOCK), ("seats", SEATS), ("coupons", COUPONS)] {
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        connect(&url(name)).await.batch_execute(tables).await?;
    }

    let mut passed = 0;
    let payload = |text: &str| Subject::new("", Part::Payload(text.into()));
    let server = |name: &str, listen: &str| Server::new(name, &url(name)).map(|it| it.listen(listen));
    passed += right(payload("item-%n"), &options, async |listen| {
        Ok(in_process(server("stock", listen)?.start(Stock).await?))
    })
    .await?;
    passed += right(payload("item-%n"), &options, async |listen| {
        Ok(in_process(server("batches", listen)?.start_batches(StockInBatches).await?))
    })
    .await?;
    let seats = Subject { vetoed: Some(Part::Payload("early-%n".into())), ..payload("seat-%n") };
    passed +=
        right(seats, &options, async |listen| Ok(in_process(server("seats", listen)?.start(Seats).await?)))
            .await?;
    passed += right(payload("coupon-%n"), &options, async |listen| {
        let coupons = Coupons::start(&url("coupons"), listen).await?;
        Ok((coupons.address.clone(), Box::pin(coupons.kill()) as BoxFuture<'static, _>))
    })
    .await?;
    let shard = ledger(&cluster.url()).await?;
    let debit = Part::Debit { account: "kit-%n".into(), currency: "GOLD".into() };
    passed += right(Subject::new("", debit), &options, async |listen| {
        let served = InProcess { participant: Arc::new(shard.clone()), may_veto: true };
        Ok(in_process(start(Arc::new(served), listen, None).await?))
    })
    .await?;

    for (flaw, mistake) in Flaw::NAMED {
        broken(flaw, mistake, &options).await?;
    }
    Ok(passed)
}

/// Asks a participant everything, starts it again, and asks again what it was asked before.
async fn right(
    subject: Subject,
    options: &Options,
    starting: impl AsyncFn(&str) -> anyhow::Result<Started>,
) -> anyhow::Result<u64> {
    let (address, stop) = starting("127.0.0.1:0").await?;
    let mut kit = Kit::connect(Subject { address: address.clone(), ..subject }).await?;
    kit.run(options).await;
    stop.await?;
    let listen = address.strip_prefix("http://").context("an address begins with http://")?;
    let (_, stop) = starting(listen).await?;
    kit.recall().await;
    stop.await?;
    let report = kit.into_report();
    ensure!(report.is_ok(), "participant {} is broken\n{report}", report.name);
    println!("{report}\n");
    Ok(report.passed)
}

fn in_process(running: Running) -> Started {
    let address = format!("http://{}", running.address);
    let stopped = async move {
        running.stop().cancel();
        Ok(running.ended().await?)
    };
    (address, Box::pin(stopped))
}

/// A shard of the ledger with two units on each of many accounts.
async fn ledger(url: &str) -> anyhow::Result<Shard> {
    let buckets: HashSet<u16> = (0..BUCKETS).collect();
    tcc_ledger::prepare(&mut connect(url).await, "shard-0", &buckets).await?;
    let shard = Shard::start("shard-0", &url.parse()?, buckets, Heads::default());
    let (gold, two) = (Currency::parse("GOLD")?, Amount::new(2)?);
    let fund = |n: u32| {
        let (shard, gold) = (&shard, &gold);
        async move {
            let account = AccountId::parse(&format!("kit-{n}"))?;
            shard.open(account.clone(), gold.clone()).await?;
            let id = TransactionId::from_uuid(Uuid::now_v7())?;
            let issue = Transaction::new(id, Descriptor::issue(account, two, gold.clone()));
            shard.issue(Arc::new(issue)).await?;
            anyhow::Ok(())
        }
    };
    join_all((0..3_000).map(fund)).await.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(shard)
}

/// Asks a broken participant, whose mistake must be named.
async fn broken(flaw: Flaw, mistake: Mistake, options: &Options) -> anyhow::Result<()> {
    let running = Memory::new(Some(flaw)).serve().await?;
    let address = format!("http://{}", running.address);
    let report = verify(Subject::new(&address, Part::Payload("unit-%n".into())), options).await?;
    let found = report.findings.iter().find(|finding| finding.mistake == mistake);
    let found = found.with_context(|| format!("{flaw:?} is not found\n{report}"))?;
    println!("found {}: {} ({})", found.mistake, found.schedule, found.what);
    Ok(())
}
