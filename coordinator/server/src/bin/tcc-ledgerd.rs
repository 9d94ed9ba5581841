//! `tcc-ledgerd`: one shard of the ledger, out of process.
//!
//! It does Try, Confirm and Cancel for coordinators whose configuration has its address; everything else about the shard they do
//! themselves. It reads their file: the coordinator's database tells which accounts are the shard's, and keeps its heads, so
//! that a shard which lost commits is noticed however it is worked on. Several may work on one shard.

use clap::Parser;
use std::{path::PathBuf, process::ExitCode};
use tcc_coordinator::{config::Config, serve};
use tcc_participant::{Tls, serve::Listen};
use tokio::signal::unix::{SignalKind, signal};

/// As tccd has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves one shard of the ledger to coordinators.
#[derive(Parser)]
#[command(name = "tcc-ledgerd", version)]
struct Cli {
    /// The coordinator's configuration; coordinator/docs/tccd.toml documents every key.
    #[arg(long, env = "TCC_CONFIG", default_value = "tccd.toml")]
    config: PathBuf,
    /// Which of its shards.
    #[arg(long)]
    shard: String,
    /// Where coordinators call it: on a loopback address, or with a certificate. Without --client-ca whoever reaches this
    /// address may move the shard's money.
    #[arg(long, default_value = "127.0.0.1:7090")]
    listen: String,
    /// Its certificate, and those between it and its authority, PEM.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
    /// The authorities of the coordinators' certificates (`[identity]` in their configuration), PEM.
    #[arg(long, requires = "certificate")]
    client_ca: Option<PathBuf>,
    /// Where metrics and health are served over HTTP, such as 127.0.0.1:9465; without it nowhere
    #[arg(long)]
    telemetry: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcc-ledgerd: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let config = Config::load(&cli.config)?;
    config.telemetry.logs.start();
    let tls = match (&cli.certificate, &cli.key) {
        (Some(certificate), Some(key)) => Some(Tls::read(certificate, key, cli.client_ca.as_deref())?),
        _ => None,
    };
    let listen = Listen { address: cli.listen, tls, telemetry: cli.telemetry };
    let running = serve::start_shard(&config, &cli.shard, &listen).await?;
    println!("tcc-ledgerd: ready on {}", running.url());
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = running.stop();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(running.ended().await?)
}
