//! `tcc-risk`: a participant that scores, and refuses what is too risky.

use clap::Parser;
use std::{path::PathBuf, process::ExitCode};
use tcc_participant::serve::until_stopped;
use tcc_payout::risk::{self, RiskConfig};

/// A participant of tcc that scores, and refuses what is too risky.
#[derive(Parser)]
#[command(name = "tcc-risk", version)]
struct Cli {
    /// The configuration; coordinator/docs/payouts.md says what each key means.
    #[arg(long, env = "TCC_RISK_CONFIG", default_value = "tcc-risk.toml")]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    tcc_payout::logs();
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcc-risk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let config = RiskConfig::load(&cli.config)?;
    Ok(until_stopped("tcc-risk", risk::start(&config).await?).await?)
}
