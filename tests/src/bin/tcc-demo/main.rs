//! `tcc-demo`: the main job of tcc before your eyes, on real PostgreSQL and with a real kill.
//!
//! It starts three throw-away PostgreSQL servers and a `tccd`, schedules a few thousand transfers, kills `tccd` with SIGKILL
//! in the middle of creating and paying them, starts it again, and proves by its own arithmetic from the answers it received
//! that no unit was lost or created. Its last line begins with `demo: ok` (exit code 0) or `demo: FAILED` (exit code 1). It
//! is a client like any other: of the coordinator it links the code that starts PostgreSQL servers, and nothing that moves
//! money.

mod books;
mod client;
mod demo;
mod flight;
mod lateness;
mod life;
mod orders;
mod plan;
mod progress;
mod story;

use crate::{plan::Plan, progress::Progress};
use anyhow::Context as _;
use clap::Parser;
use std::{fs, path::PathBuf, process::ExitCode};
use tcc_tests::program::{failed, stopped};

/// Schedules transfers on throw-away servers, kills the coordinator in the middle, and counts the money.
#[derive(Parser)]
#[command(name = "tcc-demo", version)]
struct Cli {
    /// How many holds to create.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    holds: u32,
    /// Creates one hold for each line of this file instead: CSV with the columns order, payer, payee and amount.
    #[arg(long, value_name = "FILE", conflicts_with = "holds")]
    input: Option<PathBuf>,
}

/// So many of the things that went wrong are told.
const TOLD: usize = 50;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let progress = Progress::start();
    let outcome = tokio::select! {
        outcome = run(&cli, &progress) => outcome,
        stopped = stopped() => stopped,
    };
    progress.end();
    match outcome {
        Ok(report) if report.wrong.is_empty() => {
            println!("demo: ok {report}");
            ExitCode::SUCCESS
        }
        Ok(report) => {
            report.wrong.iter().take(TOLD).for_each(|what| eprintln!("{what}"));
            if report.wrong.len() > TOLD {
                eprintln!("... and {} more", report.wrong.len() - TOLD);
            }
            println!("demo: FAILED {report} wrong={}", report.wrong.len());
            ExitCode::FAILURE
        }
        Err(error) => failed("demo", &error),
    }
}

async fn run(cli: &Cli, progress: &Progress) -> anyhow::Result<demo::Report> {
    let plan = match &cli.input {
        None => Plan::game(cli.holds as usize),
        Some(path) => {
            let path_shown = path.display();
            let text = fs::read_to_string(path).with_context(|| format!("reading {path_shown}"))?;
            let lines = orders::parse(&text).map_err(|error| anyhow::anyhow!("{path_shown}: {error}"))?;
            Plan::file(&lines)
        }
    };
    demo::run(plan, progress).await
}
