//! Runs worlds, one seed after the other, and says whether anything went wrong.
//!
//! The last line is `sim: ok seeds=… transactions=… faults=… violations=0 empty=0` (exit 0) or begins with `sim: FAILED`
//! (exit 1). A seed that failed is run again with `--first SEED --seeds 1`.

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tcc_sim::{Report, bugs::Bug, faults::Counts, run, run_with};

/// Runs the engine in simulated worlds where everything fails
#[derive(Parser)]
struct Cli {
    /// How many worlds
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The seed of the first one
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many transactions each world has
    #[arg(long, default_value_t = 200)]
    transactions: u64,
    /// Puts twelve mistakes into the worlds, one at a time, each of which must be noticed
    #[arg(long)]
    seeded_bugs: bool,
    /// Fail if a step never failed in one of its ways
    #[arg(long)]
    no_empty_cell: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.seeded_bugs {
        return seeded_bugs(&cli);
    }
    let bar = ProgressBar::with_draw_target(Some(cli.seeds), ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos} of {len} worlds, {eta} left")
            .expect("a template"),
    );
    let (next, reports) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= cli.seeds {
                        return;
                    }
                    let report = run(cli.first + n, cli.transactions);
                    bar.inc(1);
                    for violation in &report.violations {
                        bar.suspend(|| println!("seed {}: {violation}", report.seed));
                    }
                    reports.lock().expect("no holder panics").add(&report);
                }
            });
        }
    });
    bar.finish_and_clear();
    let sum = reports.into_inner().expect("no holder panics");
    println!("{}", sum.counts.table());
    let empty = sum.counts.empty();
    empty.iter().for_each(|(step, fault)| println!("never: {step:?} {fault:?}"));
    let is_ok = sum.violations == 0 && (empty.is_empty() || !cli.no_empty_cell);
    println!(
        "sim: {} seeds={} transactions={} faults={} violations={} empty={} digest={:016x}",
        if is_ok { "ok" } else { "FAILED" },
        cli.seeds,
        sum.transactions,
        sum.counts.total(),
        sum.violations,
        empty.len(),
        sum.digest,
    );
    if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Looks for each mistake in one world after the other.
fn seeded_bugs(cli: &Cli) -> ExitCode {
    println!("{:<26}{:>8}{:>10}  noticed by", "mistake", "worlds", "seconds");
    let mut found = 0;
    for bug in Bug::ALL {
        let started = Instant::now();
        let worlds = cli.first..cli.first + cli.seeds;
        let noticed = worlds.clone().find_map(|seed| {
            let violations = run_with(seed, cli.transactions, Some(bug)).violations;
            Some((seed, violations.into_iter().next()?))
        });
        found += usize::from(noticed.is_some());
        let (worlds, by) = match noticed {
            Some((seed, violation)) => (seed - cli.first + 1, violation.chars().take(100).collect()),
            None => (cli.seeds, "NOBODY".to_owned()),
        };
        println!("{:<26}{worlds:>8}{:>10.1}  {by}", format!("{bug:?}"), started.elapsed().as_secs_f64());
    }
    let is_ok = found == Bug::ALL.len();
    println!("seeded-bugs: {} found={found}/{}", if is_ok { "ok" } else { "FAILED" }, Bug::ALL.len());
    if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All worlds together.
#[derive(Default)]
struct Sum {
    counts: Counts,
    transactions: u64,
    violations: usize,
    digest: u64,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.counts.merge(&report.counts);
        self.transactions += report.transactions;
        self.violations += report.violations.len();
        // In whichever order they end.
        self.digest ^= report.trace;
    }
}
