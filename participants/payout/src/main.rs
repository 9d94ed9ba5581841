//! `tcc-payout`: a participant that pays out through somebody else's HTTP API.

use clap::Parser;
use std::{path::PathBuf, process::ExitCode};
use tcc_payout::{config::Config, serve};

/// A participant of tcc that pays out through a payment provider's HTTP API.
#[derive(Parser)]
#[command(name = "tcc-payout", version)]
struct Cli {
    /// The configuration; coordinator/docs/payouts.md says what each key means.
    #[arg(long, env = "TCC_PAYOUT_CONFIG", default_value = "tcc-payout.toml")]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    tcc_payout::logs();
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcc-payout: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let config = Config::load(&cli.config)?;
    Ok(serve::start(&config).await?.until_stopped("tcc-payout").await?)
}
