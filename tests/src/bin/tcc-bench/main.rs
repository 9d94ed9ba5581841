//! `tcc-bench`: how fast tcc is, measured over gRPC like a client, beside what people would write by hand.
//!
//! It starts PostgreSQL servers of its own with the settings that `tccd dev` has, all durable, and `tccd` as a process of its
//! own. Each subcommand is one experiment: it measures, lets the auditor look, and leaves a part of `report.json`, from which
//! a table of goals and a page with plots are made. The last line begins with `bench:`. Goals that are missed are results;
//! the exit code is 1 only if something failed. Of the coordinator it links the code that starts servers, the form of the
//! configuration, and the encoding of descriptors for the bulk load; nothing that moves money.

mod admission;
mod backlog;
mod baseline;
mod burst;
mod counters;
mod create;
mod disk;
mod fleet;
mod goals;
mod latency;
mod lateness;
mod lifecycle;
mod load;
mod memory;
mod outage;
mod page;
mod partitions;
mod pinned;
mod plot;
mod processes;
mod progress;
mod report;
mod shards;
mod system;
mod takeover;

use crate::{progress::Progress, report::Report};
use anyhow::bail;
use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tcc_tests::program::{failed, stopped};

/// As tccd has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures tcc on throw-away servers, and compares it with plain PostgreSQL.
#[derive(Parser)]
#[command(name = "tcc-bench", version)]
struct Cli {
    #[command(subcommand)]
    experiment: Experiment,
    /// Where report.json and report.html go. Parts of earlier runs stay in them.
    #[arg(long, global = true, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
    #[command(flatten)]
    scale: Scale,
}

/// What all experiments share.
#[derive(clap::Args, Clone)]
pub struct Scale {
    /// How many callers a closed loop has.
    #[arg(long, global = true, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4096))]
    callers: u32,
    /// How many accounts there are, over all shards; the baseline has as many.
    #[arg(long, global = true, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    accounts: u32,
    /// How many connections the load generator opens.
    #[arg(long, global = true, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,
    /// Callers prove who they are with an API key, instead of being believed. Then all of them are one caller.
    #[arg(long, global = true)]
    api_key: bool,
    /// A tcc-ledgerd works on each shard, instead of tccd.
    #[arg(long, global = true)]
    remote: bool,
}

#[derive(Subcommand, Clone)]
enum Experiment {
    /// pgbench: the local transfer, and PREPARE TRANSACTION with COMMIT PREPARED.
    Baseline {
        /// How long each number of clients is measured.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// Lifecycles at saturation, alternating with the baseline: P1, P2, P8, P12.
    Lifecycle(lifecycle::Options),
    /// Latency of creation, one idle caller and open loop, and the closed loop's rate: P3, P4.
    Create(create::Options),
    /// Ten times the callers that saturate, who come back when they are told to.
    Admission(admission::Options),
    /// Many holds due in the same second: P5, P6.
    Burst(burst::Options),
    /// From due to paid: P7.
    Lateness(lateness::Options),
    /// CPU per lifecycle with more shards: P9.
    Shards(shards::Options),
    /// Creation over millions of open holds: P10.
    Backlog(backlog::Options),
    /// Memory with many holds in the hot window: P11.
    Memory(memory::Options),
    /// Bytes on disk per hold: P13.
    Disk(disk::Options),
    /// Instances that are killed, stopped and told to leave, under load.
    Takeover(takeover::Options),
    /// A snapshot that is held open for minutes, under load.
    Pinned(pinned::Options),
    /// What ten million wake-ups cost, and dropping them.
    Partitions(partitions::Options),
    /// A shard that is down for minutes while its holds fall due.
    Outage(outage::Options),
    /// P1 to P4, P8 and P12 in less than five minutes.
    Quick,
    /// Everything.
    All,
}

// The load generator shares the machine with what it measures; on one thread it is cheapest.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let progress = Progress::start();
    let outcome = tokio::select! {
        outcome = run(&cli, &progress) => outcome,
        stopped = stopped() => stopped,
    };
    progress.end();
    match outcome {
        Ok(line) => {
            println!("{line}");
            if line.contains(" failed=none") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => failed("bench", &error),
    }
}

/// Does what was asked for, one experiment after the other, and answers the last line.
async fn run(cli: &Cli, progress: &Progress) -> anyhow::Result<String> {
    let mut report = Report::open(&cli.out)?;
    let mut done = Vec::new();
    let mut failed = Vec::new();
    for (name, experiment) in experiments(&cli.experiment) {
        progress.say(&format!("== {name}"));
        match measure(&experiment, &cli.scale, progress).await {
            Ok(part) => {
                part.facts.iter().for_each(|fact| progress.say(&format!("   {fact}")));
                if let Some(line) = &part.line {
                    println!("{line}");
                }
                done.push((name, part.clone()));
                report.put(name, part)?;
            }
            Err(error) => {
                progress.say(&format!("   {name} failed: {error:#}"));
                failed.push(name);
            }
        }
    }
    let figures = done.iter().flat_map(|(_, part)| part.figures.clone()).collect();
    progress.say(&goals::table(&figures));
    progress.say(&format!("report: {}", cli.out.join("report.html").display()));
    Ok(goals::last_line(&figures, &failed))
}

/// What a subcommand consists of. The quick one is sized to end within five minutes on two cores.
fn experiments(asked: &Experiment) -> Vec<(&'static str, Experiment)> {
    match asked {
        Experiment::Quick => {
            ["lifecycle --holds 60000 --rounds 2 --seconds 4", "create --seconds 15 --holds 40000"]
                .map(command)
                .into()
        }
        Experiment::All => {
            let all = "lifecycle create admission burst lateness shards disk memory backlog takeover pinned partitions outage";
            all.split(' ').map(command).collect()
        }
        one => vec![(one.name(), one.clone())],
    }
}

/// An experiment as it would be asked for on the command line, so that its defaults stand in one place.
fn command(words: &str) -> (&'static str, Experiment) {
    let Cli { experiment, .. } = Cli::parse_from(std::iter::once("tcc-bench").chain(words.split(' ')));
    (experiment.name(), experiment)
}

impl Experiment {
    /// The name of its part in the report.
    fn name(&self) -> &'static str {
        match self {
            Self::Baseline { .. } => "baseline",
            Self::Lifecycle(_) => "lifecycle",
            Self::Create(_) => "create",
            Self::Admission(_) => "admission",
            Self::Burst(_) => "burst",
            Self::Lateness(_) => "lateness",
            Self::Shards(_) => "shards",
            Self::Backlog(_) => "backlog",
            Self::Memory(_) => "memory",
            Self::Disk(_) => "disk",
            Self::Takeover(_) => "takeover",
            Self::Pinned(_) => "pinned",
            Self::Partitions(_) => "partitions",
            Self::Outage(_) => "outage",
            Self::Quick => "quick",
            Self::All => "all",
        }
    }
}

async fn measure(
    experiment: &Experiment,
    scale: &Scale,
    progress: &Progress,
) -> anyhow::Result<report::Part> {
    match experiment {
        Experiment::Baseline { seconds } => {
            baseline::run(Duration::from_secs(u64::from(*seconds)), scale, progress).await
        }
        Experiment::Lifecycle(options) => lifecycle::run(options, scale, progress).await,
        Experiment::Create(options) => create::run(options, scale, progress).await,
        Experiment::Admission(options) => admission::run(options, scale, progress).await,
        Experiment::Burst(options) => burst::run(options, scale, progress).await,
        Experiment::Lateness(options) => lateness::run(options, scale, progress).await,
        Experiment::Shards(options) => shards::run(options, scale, progress).await,
        Experiment::Backlog(options) => backlog::run(options, scale, progress).await,
        Experiment::Memory(options) => memory::run(options, scale, progress).await,
        Experiment::Disk(options) => disk::run(options, scale, progress).await,
        Experiment::Takeover(options) => takeover::run(options, scale, progress).await,
        Experiment::Pinned(options) => pinned::run(options, scale, progress).await,
        Experiment::Partitions(options) => partitions::run(options, scale, progress).await,
        Experiment::Outage(options) => outage::run(options, scale, progress).await,
        Experiment::Quick | Experiment::All => bail!("these consist of other experiments"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_and_all_consist_of_commands_that_there_are() {
        let names = |asked| experiments(&asked).into_iter().map(|(name, _)| name).collect::<Vec<_>>();

        assert_eq!(names(Experiment::Quick), ["lifecycle", "create"]);
        assert_eq!(names(Experiment::All).len(), 13);
    }
}
