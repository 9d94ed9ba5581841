//! `tccd`, the coordinator's daemon.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::{io::Write as _, path::PathBuf};
use tcc_coordinator::{
    auth::callers,
    config::Config,
    dev::Servers,
    serve::{self, Running},
    telemetry::logs::Logs,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A fifth of the CPU time went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Try-Confirm-Cancel coordinator for money on sharded PostgreSQL.
#[derive(Parser)]
#[command(name = "tccd", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve on the PostgreSQL servers of a configuration.
    Serve {
        /// The configuration; coordinator/docs/tccd.toml documents every key.
        #[arg(long, env = "TCC_CONFIG", default_value = "tccd.toml")]
        config: PathBuf,
        /// Believes whatever callers say of themselves, without encryption. Only on a loopback address.
        #[arg(long)]
        insecure_dev: bool,
    },
    /// Creates or changes the tables of all databases of a configuration, and ends.
    Migrate {
        /// As for serve.
        #[arg(long, env = "TCC_CONFIG", default_value = "tccd.toml")]
        config: PathBuf,
    },
    /// Prints the SQL that makes tcc's roles, to be run in each database by a superuser: tccd roles | psql …
    Roles,
    /// Makes an API key, and prints it with the hash that stands in the file of callers.
    NewKey,
    /// Start PostgreSQL servers of its own, and serve on them. For development: needs no configuration.
    Dev {
        /// How many ledger shards.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
        shards: u16,
        /// Keeps the databases in this folder. Without it they are thrown away at the end.
        #[arg(long)]
        data: Option<PathBuf>,
        /// Where the API listens, for gRPC and for HTTP with JSON.
        #[arg(long, default_value = "127.0.0.1:7070")]
        listen: String,
    },
}

fn main() -> std::process::ExitCode {
    match run(Cli::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tccd: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve { config, insecure_dev } => {
            let mut config = Config::load(&config)?;
            config.insecure_dev |= insecure_dev;
            config.telemetry.logs.start();
            let running = serve::start(&config).await?;
            println!("tccd: ready on {}", running.url());
            stop_at_signals(&running, true);
            Ok(running.ended().await?)
        }
        Command::Migrate { config } => Ok(serve::migrate(&Config::load(&config)?).await?),
        Command::Roles => {
            print!("{}", tcc_coordinator::databases::ROLES);
            Ok(())
        }
        Command::NewKey => {
            let (key, hash) = callers::new_key();
            println!("key   {key}\nhash  {hash}");
            eprintln!(
                "the key is shown only now: give it to the caller, and write the hash into the file of callers"
            );
            Ok(())
        }
        Command::Dev { shards, data, listen } => {
            Logs::default().start();
            let servers =
                tokio::task::spawn_blocking(move || Servers::start(shards.into(), data.as_deref(), &[]));
            let servers = servers.await.context("starting PostgreSQL")??;
            let running = serve::start(&servers.config(&listen)).await?;
            tell_how_to_reach(&servers, &running);
            // A second signal must not leave the servers behind.
            stop_at_signals(&running, false);
            running.ended().await?;
            println!("tccd: stopping the PostgreSQL servers");
            Ok(())
        }
    }
}

fn tell_how_to_reach(servers: &Servers, running: &Running) {
    println!("tccd: ready on {}", running.url());
    println!("  gRPC       grpcurl -plaintext {} list", running.address);
    println!("  HTTP       curl {}/openapi.json", running.url());
    println!("  operator   tccctl --server {} status", running.url());
    if let Some(address) = running.telemetry {
        println!("  metrics    curl http://{address}/metrics");
    }
    println!("  databases  psql '{}'", servers.coordinator.url());
    for shard in &servers.shards {
        println!("             psql '{}'", shard.url());
    }
    println!("  stop       Ctrl-C");
    let _ = std::io::stdout().flush();
}

/// SIGTERM and Ctrl-C stop in order; a second one at once, if it may.
fn stop_at_signals(running: &Running, second_ends: bool) {
    let stop = running.stop();
    tokio::spawn(async move {
        wait_for_signal(&stop).await;
        stop.cancel();
        if second_ends {
            wait_for_signal(&CancellationToken::new()).await;
            std::process::exit(130);
        }
    });
}

async fn wait_for_signal(stop: &CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
}
