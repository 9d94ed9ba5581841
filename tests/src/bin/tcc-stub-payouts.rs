//! `tcc-stub-payouts`: the stub of a payment provider as a process of its own, which can be killed.

use anyhow::Context as _;
use clap::Parser;
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tcc_tests::{
    program::{failed, stopped},
    stub::{Faults, Options, Stub},
};

/// A payment provider's API that fails in every way.
#[derive(Parser)]
struct Cli {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:7099")]
    listen: String,
    /// Its ledger; it goes on from there.
    #[arg(long)]
    ledger: PathBuf,
    /// For how long it knows a key again, in seconds.
    #[arg(long, default_value_t = 86_400)]
    key_memory_s: u64,
    /// For how long it keeps silent, in milliseconds.
    #[arg(long, default_value_t = 1_200)]
    silence_ms: u64,
    /// Nothing goes wrong.
    #[arg(long)]
    no_faults: bool,
    /// The same chance again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("tcc-stub-payouts", &error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let options = Options {
        listen: cli.listen,
        ledger: cli.ledger,
        key_memory: Duration::from_secs(cli.key_memory_s),
        silence: Duration::from_millis(cli.silence_ms),
        faults: if cli.no_faults { Faults::default() } else { Faults::ALL },
        seed: cli.seed,
    };
    let stub = Stub::start(options).await.context("starting the stub")?;
    println!("tcc-stub-payouts: ready on http://{}", stub.address);
    stopped().await
}
