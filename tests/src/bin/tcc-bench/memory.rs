//! Memory of tccd while very many holds fall due within the next two minutes, its hot window.
//!
//! The holds are created over gRPC like any others. Their due times lie so that all of them are in the window at once after
//! the last one is created; then its resident memory is read. Afterwards they are paid, and the most it ever had is read.

use crate::{
    Scale,
    fleet::{Payees, from_now},
    load::{self, Due, Holds},
    progress::Progress,
    report::Part,
    system::System,
};
use anyhow::ensure;
use std::time::Duration;
use tcc_core::Timestamp;

/// The goal's number of holds.
const HOLDS: u64 = 1_000_000;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many holds are in the window.
    #[arg(long, default_value_t = HOLDS)]
    pub holds: u64,
}

/// Creations per second that are counted on.
const SLOWEST: u64 = 4_000;
/// All holds are due within this, half of the window.
const SPREAD: Duration = Duration::from_secs(60);
/// From the last creation that is counted on to the first due time.
const PAUSE: Duration = Duration::from_secs(45);
/// What is due within this is in the window: its two minutes, less the ten seconds between two reads, and some to spare.
const IN_WINDOW: Duration = Duration::from_secs(100);
/// The wake-up that each creation leaves in case of a crash passes within this.
const MOOT: Duration = Duration::from_secs(8);

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let system = System::start(2, scale, progress).await?;
    let (empty, _) = system.tccd_memory()?;
    let first_due = from_now(PAUSE + Duration::from_secs(options.holds / SLOWEST));
    let holds = Holds { due: Due::Between(first_due, SPREAD), ..Holds::far(&system.accounts, Payees::Any) };
    let watch = progress.watch("holds in the window", options.holds);
    let started = Timestamp::now();
    load::closed(&system.fleet, scale.callers, options.holds, &holds, &watch).await?;
    drop(watch);

    // Wake-ups of the creations themselves are gone by then, so what is armed is the holds, all of them.
    let ready = (Timestamp::now() + MOOT).max(holds.due_until() - IN_WINDOW);
    let wait = ready.duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
    ensure!(Timestamp::now() < first_due, "creating {} holds took until they were due", options.holds);
    let armed = system.status().await?.armed.unsigned_abs();
    ensure!(armed >= options.holds, "{armed} of {} holds are in the window at once", options.holds);
    let (full, most_full) = system.tccd_memory()?;
    let settled = system.settle(started, holds.due_until(), |_| {}).await?;
    let (_, most) = system.tccd_memory()?;
    ensure!(
        settled.confirmed == options.holds,
        "{} of {} holds are CONFIRMED",
        settled.confirmed,
        options.holds
    );
    system.audit(progress).await?;

    let mut part = Part::default();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    // With fewer it says nothing about the goal.
    if options.holds >= HOLDS {
        part.figure("P11", mb(full));
    }
    part.fact("memory of tccd, no holds", format!("{:.1} MB", mb(empty)));
    part.fact(
        format!("memory of tccd, {armed} wake-ups in the window"),
        format!("{:.1} MB, at most {:.1} MB so far", mb(full), mb(most_full)),
    );
    let each = (full.saturating_sub(empty)) as f64 / options.holds as f64;
    part.fact("memory per hold in the window", format!("{each:.0} bytes"));
    part.fact("memory of tccd at most, paying them included", format!("{:.1} MB", mb(most)));
    Ok(part)
}
