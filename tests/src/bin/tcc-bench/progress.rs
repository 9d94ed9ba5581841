//! What a person sees while it runs: a bar on a terminal, elsewhere a plain line every few seconds.
//!
//! Whoever works counts in an atomic; a task of this module reads it twice a second, so that showing costs the load
//! generator next to nothing.

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(500);
/// Every so many ticks a plain line is printed.
const LINE: u64 = 10;

/// The view of a run.
pub struct Progress {
    bars: MultiProgress,
    is_terminal: bool,
    started: Instant,
}

/// Something countable, shown until this is dropped.
pub struct Watch {
    done: Arc<AtomicU64>,
    bar: ProgressBar,
    shown: JoinHandle<()>,
}

impl Progress {
    /// Begins.
    #[must_use]
    pub fn start() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), is_terminal, started: Instant::now() }
    }

    /// Says what just happened. Several lines stay as they are.
    pub fn say(&self, what: &str) {
        if self.is_terminal {
            // A terminal that cannot be written to is nothing to stop for.
            let _ = self.bars.println(what);
        } else if what.contains('\n') {
            println!("{what}");
        } else {
            println!("{} {what}", stamp(self.started));
        }
    }

    /// Something of so many steps begins; 0 if their number is not known.
    #[must_use]
    pub fn watch(&self, what: &'static str, total: u64) -> Watch {
        let template =
            "{prefix:>22} {human_pos:>10} of {human_len:<10} {wide_bar:.green/dim} {per_sec:>12} {eta:>4}";
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let bar =
            self.bars.add(ProgressBar::new(total).with_style(style.progress_chars("━━╌")).with_prefix(what));
        let done = Arc::new(AtomicU64::new(0));
        let (counter, shown, plain, started) =
            (Arc::clone(&done), bar.clone(), !self.is_terminal, self.started);
        let shown = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            for tick in 1_u64.. {
                ticks.tick().await;
                let now = counter.load(Ordering::Relaxed);
                shown.set_position(now);
                if plain && tick.is_multiple_of(LINE) {
                    let of = if total > 0 { format!(" of {}", HumanCount(total)) } else { String::new() };
                    println!("{} {what}: {}{of}", stamp(started), HumanCount(now));
                }
            }
        });
        Watch { done, bar, shown }
    }

    /// Nothing more is shown.
    pub fn end(&self) {
        let _ = self.bars.clear();
    }
}

impl Watch {
    /// One step more.
    pub fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// So many steps in all.
    pub fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    /// The counter, for those who outlive this.
    #[must_use]
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shown.abort();
        self.bar.finish_and_clear();
    }
}

fn stamp(started: Instant) -> String {
    format!("{:6.1} s ", started.elapsed().as_secs_f64())
}
