//! CPU per lifecycle with more and more shards, and callers in proportion: nothing global may be on the path.

use crate::{
    Scale, lifecycle,
    load::Due,
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use std::time::Duration;

/// The goal's numbers of shards.
const SHARDS: [u32; 3] = [2, 4, 8];

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many shards, each number in a run of its own.
    #[arg(long, value_delimiter = ',', default_values_t = SHARDS)]
    pub shards: Vec<u32>,
    /// How many holds per shard.
    #[arg(long, default_value_t = 50_000)]
    pub holds: u64,
}

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let mut part = Part::default();
    let (mut cost, mut postgres, mut tccd) = (Vec::new(), Vec::new(), Vec::new());
    for (bar, &shards) in options.shards.iter().enumerate() {
        let system = System::start(shards as usize, scale, progress).await?;
        // The callers asked for are those of two shards.
        let callers = scale.callers * shards / 2;
        let due = Due::In(Duration::from_secs(1), Duration::ZERO);
        let holds = options.holds * u64::from(shards);
        let found = lifecycle::measure(&system, callers, holds, due, progress).await?;
        part.fact(format!("{shards} shards, {callers} callers"), found.text());
        system.audit(progress).await?;
        let each = |seconds: f64| (bar as f64, seconds * 1e6 / found.count as f64);
        cost.push(found.cpu_us());
        postgres.push(each(found.usage.cpu.postgres));
        tccd.push(each(found.usage.cpu.tccd));
    }
    let most = cost.iter().copied().fold(0.0, f64::max);
    let least = cost.iter().copied().fold(f64::INFINITY, f64::min);
    part.fact("most against least", format!("{:.2}", most / least));
    if options.shards == SHARDS {
        part.figure("P9", most / least);
    }
    part.plots.push(Plot {
        title: "Scaling: CPU per lifecycle by the number of shards".into(),
        x: "shards".into(),
        y: "microseconds".into(),
        form: Form::Stack,
        series: vec![
            Series { name: "PostgreSQL".into(), points: postgres },
            Series { name: "tccd".into(), points: tccd },
        ],
        bars: options.shards.iter().map(ToString::to_string).collect(),
    });
    Ok(part)
}
