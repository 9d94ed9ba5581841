//! What a person sees while it runs: bars on a terminal, elsewhere a plain line every other second.
//!
//! Both are views of the same counters, so no other module knows which it is. Bars go to standard error, lines to standard
//! output, where the last line of the demo stands, too.

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal as _,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// How often a plain line is printed.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// The view of a run.
pub struct Progress {
    bars: MultiProgress,
    is_terminal: bool,
    started: Instant,
    counters: Arc<Mutex<Vec<ProgressBar>>>,
    lines: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins. Must be called within a runtime.
    #[must_use]
    pub fn start() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let (started, counters) = (Instant::now(), Arc::<Mutex<Vec<ProgressBar>>>::default());
        let lines = (!is_terminal).then(|| tokio::spawn(print_lines(started, Arc::clone(&counters))));
        Self { bars: MultiProgress::with_draw_target(target), is_terminal, started, counters, lines }
    }

    /// Says what just happened.
    pub fn say(&self, what: &str) {
        if self.is_terminal {
            // A terminal that cannot be written to is nothing to stop for.
            let _ = self.bars.println(what);
        } else {
            println!("{} {what}", stamp(self.started));
        }
    }

    /// Something without a measure begins. Whoever holds it clears it at the end.
    #[must_use]
    pub fn busy(&self, what: &str) -> ProgressBar {
        if !self.is_terminal {
            self.say(what);
        }
        let style = ProgressStyle::with_template("{spinner:.green} {msg} {elapsed:.dim}");
        let spinner = ProgressBar::new_spinner().with_style(style.expect("the template is valid"));
        let spinner = self.bars.add(spinner.with_message(what.to_owned()));
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    /// Something countable begins. It is shown until it is finished.
    #[must_use]
    pub fn count(&self, what: &'static str, total: usize) -> ProgressBar {
        // Room for the longest message on every line, so that all bars are of one length.
        let template = "{prefix:>9} {human_pos:>6} of {human_len:<6} {wide_bar:.green/dim} {msg:39.dim}";
        let style = ProgressStyle::with_template(template);
        let style = style.expect("the template is valid").progress_chars("━━╌");
        let bar = self.bars.add(ProgressBar::new(total as u64).with_style(style).with_prefix(what));
        bar.tick();
        self.counters.lock().expect("no holder panics").push(bar.clone());
        bar
    }

    /// Nothing more is shown.
    pub fn end(&self) {
        if let Some(lines) = &self.lines {
            lines.abort();
        }
        // What was said stays; a terminal that cannot be cleared is nothing to stop for.
        let _ = self.bars.clear();
    }
}

async fn print_lines(started: Instant, counters: Arc<Mutex<Vec<ProgressBar>>>) {
    let mut ticks = tokio::time::interval(LINE_INTERVAL);
    loop {
        ticks.tick().await;
        let line = {
            let mut counters = counters.lock().expect("no holder panics");
            counters.retain(|bar| !bar.is_finished());
            let shown: Vec<String> = counters.iter().map(line_of).collect();
            shown.join("; ")
        };
        if !line.is_empty() {
            println!("{} {line}", stamp(started));
        }
    }
}

fn line_of(bar: &ProgressBar) -> String {
    let (done, total) = (HumanCount(bar.position()), HumanCount(bar.length().unwrap_or(0)));
    format!("{} {done} of {total} {}", bar.prefix(), bar.message()).trim_end().to_owned()
}

fn stamp(started: Instant) -> String {
    format!("{:5.1} s ", started.elapsed().as_secs_f64())
}
