//! A whole system on real PostgreSQL servers, real processes and wires, in which things go wrong all the time.
//!
//! Several `tccd`, a coordinator database and three shards, each with a streaming standby and with fsync on; between every
//! `tccd` and every server a wire of its own; `tcc-ledgerd` on one shard, seats, and coupons in Python. Clients want transfers and
//! tickets and remember what they were told; a nemesis lets everything fail that can. Then everything is mended, must become final, and each transaction is compared with its client's promise.
//!
//! The last line is `chaos: ok faults=… kinds=… kills=… failovers=… transfers=… tickets=… lost=0 created=0 broken_promises=0 …` (exit 0) or
//! begins with `chaos: FAILED` (exit 1). A seed draws the same faults in the same order; what they meet is up to the machine.
//!
//! With `--recovery` few things fail, one after the other, and it is measured how long it takes until all is as before; see
//! [`recovery`].

mod check;
mod clients;
mod clock;
mod disk;
mod nemesis;
mod party;
mod recovery;
mod site;
mod system;

use anyhow::{Context as _, ensure};
use clap::Parser;
use nemesis::Torment;
use std::{process::ExitCode, time::Duration};
use system::{Setup, System};
use tcc_tests::program;
use tokio_util::sync::CancellationToken;

/// Lets everything fail on real servers, and checks every promise
#[derive(Parser)]
struct Cli {
    /// How long things go wrong
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Which things, in which order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many clients want something at a time
    #[arg(long, default_value_t = 320)]
    clients: usize,
    /// Measure how long it takes to recover from one fault at a time
    #[arg(long)]
    recovery: bool,
}

/// How many `tccd` there are.
const INSTANCES: usize = 3;
/// How long everything may take to become final once nothing fails any more.
const PATIENCE: Duration = Duration::from_secs(120);
/// In a run of this many seconds a kind of fault that did no harm proves nothing.
const LONG: u64 = 300;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let name = if cli.recovery { "recovery" } else { "chaos" };
    let running = async {
        if cli.recovery {
            recovery::measure().await
        } else {
            run(&cli).await.with_context(|| format!("seed={}", cli.seed))
        }
    };
    let ended = tokio::select! {
        ended = running => ended,
        stopped = program::stopped() => stopped,
    };
    match ended {
        Ok(last_line) => {
            println!("{last_line}");
            let is_ok = last_line.starts_with(&format!("{name}: ok "));
            if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => program::failed(name, &error),
    }
}

/// Answers the last line.
async fn run(cli: &Cli) -> anyhow::Result<String> {
    println!("starting 4 PostgreSQL servers, their standbys and {INSTANCES} tccd");
    let system = System::start(Setup { instances: INSTANCES, is_rough: true }).await?;
    let issued = clients::open_accounts(&system).await.context("opening accounts")?;

    let stop = CancellationToken::new();
    let wants = tokio::spawn(clients::want(system.clone(), cli.clients, cli.seed, stop.clone()));
    let tickets = tokio::spawn(party::want(system.clone(), cli.seed, stop.clone()));
    let torment = nemesis::torment(&system, Duration::from_secs(cli.seconds), cli.seed).await;
    stop.cancel();
    let wants = wants.await.context("the clients")?;
    let tickets = tickets.await.context("those who want tickets")?;
    println!("mending everything");
    system.mend().await?;
    check::until_final(&system, PATIENCE).await?;
    for (kind, count) in &torment.kinds {
        println!("  {count:>5}  {kind}");
    }
    let verdict = check::all(&system, &wants.promises, &torment, issued).await?;
    let parties = system.parties.as_ref().context("nobody takes part beside the shards")?;
    let bought = party::check(&system, parties, &tickets).await.context("checking the tickets")?;
    println!(
        "of {} tickets {} were sold, with seats and coupons; {} seats or coupons wait for transactions whose first row was lost",
        tickets.len(),
        bought.sold,
        bought.left,
    );
    ensure!(bought.sold > 0, "no ticket was sold");

    let Torment { kinds, kills, failovers: [of_shards, of_coordinator], lost, went_back } = &torment;
    println!(
        "the coordinator's database lost {} rows in {of_coordinator} fail-overs, and {went_back} went back to an earlier phase; {} are \
         back, the others had no fence and were promised to nobody",
        lost.len(),
        verdict.rows_back,
    );
    let is_biting = *of_coordinator > 0 && !lost.is_empty();
    if !is_biting {
        println!(
            "no fail-over of the coordinator's database has lost anything: this run does not prove that it may"
        );
    }
    let not_run = system.not_run();
    let is_ok = verdict.is_clean() && bought.broken == 0 && (is_biting || cli.seconds < LONG);
    Ok(format!(
        "chaos: {} faults={} kinds={} kills={kills} failovers={} transfers={} tickets={} lost={} created={} broken_promises={} \
         keys_forgotten={} rows_lost={} findings={} availability={:.4} seed={}{}",
        if is_ok { "ok" } else { "FAILED" },
        kinds.values().sum::<u64>(),
        kinds.len(),
        of_shards + of_coordinator,
        wants.promises.len(),
        tickets.len(),
        verdict.lost,
        verdict.created,
        verdict.broken_promises + bought.broken,
        verdict.keys_forgotten,
        lost.len(),
        verdict.findings,
        wants.answered as f64 / wants.asked.max(1) as f64,
        cli.seed,
        if not_run.is_empty() { String::new() } else { format!(" not_run={}", not_run.join(",")) },
    ))
}
