//! A whole system on real PostgreSQL servers, real processes and wires, in which things go wrong all the time.
//!
//! Several `tccd`, a coordinator database and three shards, each with fsync on; between every `tccd` and every server a wire
//! of its own. Clients want transfers and remember what they were told; a nemesis lets everything fail that can. Then
//! everything is mended, must become final, and each transaction is compared with its client's promise.
//!
//! The last line is `chaos: ok faults=… kinds=… transfers=… lost=0 created=0 broken_promises=0 availability=… seed=…` (exit 0)
//! or begins with `chaos: FAILED` (exit 1). A seed draws the same faults in the same order; what they meet is up to the machine.

mod check;
mod clients;
mod nemesis;
mod system;

use anyhow::Context as _;
use clap::Parser;
use std::{collections::BTreeMap, process::ExitCode, time::Duration};
use system::System;
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
    #[arg(long, default_value_t = 64)]
    clients: usize,
}

/// How long everything may take to become final once nothing fails any more.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).await {
        Ok(outcome) => {
            println!("{outcome}");
            if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("chaos: FAILED seed={}: {error:#}", cli.seed);
            ExitCode::FAILURE
        }
    }
}

/// What came of it.
struct Outcome {
    seed: u64,
    kinds: BTreeMap<&'static str, u64>,
    transfers: usize,
    availability: f64,
    verdict: check::Verdict,
}

impl Outcome {
    fn is_ok(&self) -> bool {
        self.verdict.is_clean()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "chaos: {} faults={} kinds={} transfers={} lost={} created={} broken_promises={} findings={} availability={:.4} seed={}",
            if self.is_ok() { "ok" } else { "FAILED" },
            self.kinds.values().sum::<u64>(),
            self.kinds.len(),
            self.transfers,
            self.verdict.lost,
            self.verdict.created,
            self.verdict.broken_promises,
            self.verdict.findings,
            self.availability,
            self.seed,
        )
    }
}

async fn run(cli: &Cli) -> anyhow::Result<Outcome> {
    println!("starting 4 PostgreSQL servers and {} tccd", system::INSTANCES);
    let system = System::start().await?;
    let issued = clients::open_accounts(&system).await.context("opening accounts")?;

    let stop = CancellationToken::new();
    let wants = tokio::spawn(clients::want(system.clone(), cli.clients, cli.seed, stop.clone()));
    let kinds = nemesis::torment(&system, Duration::from_secs(cli.seconds), cli.seed).await;
    stop.cancel();
    let wants = wants.await.context("the clients")?;
    println!("mending everything");
    system.mend().await?;
    check::until_final(&system, PATIENCE).await?;
    for (kind, count) in &kinds {
        println!("  {count:>5}  {kind}");
    }
    let verdict = check::all(&system, &wants.promises, issued).await?;
    Ok(Outcome {
        seed: cli.seed,
        kinds,
        transfers: wants.promises.len(),
        availability: wants.answered as f64 / wants.asked.max(1) as f64,
        verdict,
    })
}
