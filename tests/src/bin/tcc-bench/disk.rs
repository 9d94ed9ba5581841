//! Bytes on disk per open hold and per final hold: all tables and indexes of all servers, before and after.
//!
//! Postings, fences and accounts are in it, and so is what updates left behind. The write-ahead log is not: it is recycled.

use crate::{
    Scale,
    fleet::Payees,
    lifecycle,
    load::{self, Due, Holds},
    progress::Progress,
    report::Part,
    system::System,
};
use std::time::Duration;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many holds of each kind.
    #[arg(long, default_value_t = 200_000)]
    pub holds: u64,
}

/// Holds that stay open.
const FAR: Due = Due::In(Duration::from_secs(24 * 3_600), Duration::from_secs(3_600));
/// Holds that become final.
const SOON: Due = Due::In(Duration::from_secs(1), Duration::ZERO);
/// What 5,000 per second are in a day.
const PER_DAY: f64 = 5_000.0 * 86_400.0;

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let system = System::start(2, scale, progress).await?;
    let holds = |due| Holds { due, ..Holds::far(&system.accounts, Payees::Any) };
    // The first updates of the accounts make room for versions of rows, once.
    lifecycle::measure(&system, scale.callers, system.accounts.count(), SOON, progress).await?;

    let before = system.bytes_on_disk().await?;
    let watch = progress.watch("open holds", options.holds);
    load::closed(&system.fleet, scale.callers, options.holds, &holds(FAR), &watch).await?;
    drop(watch);
    let open = system.bytes_on_disk().await?;
    lifecycle::measure(&system, scale.callers, options.holds, SOON, progress).await?;
    let closed = system.bytes_on_disk().await?;
    system.audit(progress).await?;

    let mut part = Part::default();
    let kinds = [("P13 open", "open", open - before), ("P13 final", "final", closed - open)];
    for (figure, name, bytes) in kinds {
        let each = bytes as f64 / options.holds as f64;
        part.figure(figure, each / 1e3);
        let day = each * PER_DAY / 1e9;
        part.fact(format!("disk per {name} hold"), format!("{each:.0} bytes; a day at 5,000/s: {day:.0} GB"));
    }
    Ok(part)
}
