//! How many calls are on their way: what the kill waits for, and what it cut off.
//!
//! A moment to kill is found by waiting on these numbers, never by sleeping. What was in flight at the kill is not estimated
//! either: it is the number of calls that began before it and never got their answer.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio::sync::watch;

/// The calls of a run.
#[derive(Clone)]
pub struct Flight {
    pulse: watch::Sender<Pulse>,
    kill: Arc<Kill>,
}

/// How creations are going.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Sent and not answered yet.
    pub creating: usize,
    /// Answered, taken or refused.
    pub created: usize,
}

#[derive(Default)]
struct Kill {
    at: OnceLock<Instant>,
    cut_off: AtomicU64,
}

impl Flight {
    /// Nothing is on its way.
    #[must_use]
    pub fn new() -> Self {
        Self { pulse: watch::Sender::default(), kill: Arc::default() }
    }

    /// A call that was sent then ended without an answer.
    pub fn lost(&self, sent: Instant) {
        if self.kill.at.get().is_some_and(|kill| sent < *kill) {
            self.kill.cut_off.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The kill happens now.
    pub fn kill(&self) {
        self.kill.at.get_or_init(Instant::now);
    }

    /// How many calls the kill cut off.
    #[must_use]
    pub fn cut_off(&self) -> u64 {
        self.kill.cut_off.load(Ordering::SeqCst)
    }

    /// A creation is sent.
    pub fn begin_creation(&self) {
        self.pulse.send_modify(|pulse| pulse.creating += 1);
    }

    /// A creation is answered.
    pub fn end_creation(&self) {
        self.pulse.send_modify(|pulse| {
            pulse.creating -= 1;
            pulse.created += 1;
        });
    }

    /// Waits until creations go as wanted.
    pub async fn until(&self, wanted: impl FnMut(&Pulse) -> bool) -> Pulse {
        let mut pulses = self.pulse.subscribe();
        // The sender lives as long as this borrow, so waiting cannot fail.
        pulses.wait_for(wanted).await.map(|pulse| *pulse).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_span_the_kill_are_cut_off() {
        let flight = Flight::new();
        let sent = Instant::now();

        flight.lost(sent);
        flight.kill();
        flight.lost(sent);
        flight.lost(Instant::now());

        assert_eq!(flight.cut_off(), 1);
    }
}
