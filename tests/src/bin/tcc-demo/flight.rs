//! How many calls are on their way: what the kill waits for, and what it cut off.
//!
//! A moment to kill is found by waiting on these numbers, never by sleeping. What was in flight at the kill is not estimated
//! either: it is the number of calls that began before it and never got their answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
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
    happened: AtomicBool,
    cut_off: AtomicU64,
}

/// One call on its way. `true` if it began before the kill.
#[derive(Debug, Clone, Copy)]
pub struct Departed(bool);

impl Flight {
    /// Nothing is on its way.
    #[must_use]
    pub fn new() -> Self {
        Self { pulse: watch::Sender::default(), kill: Arc::default() }
    }

    /// A call is sent.
    #[must_use]
    pub fn depart(&self) -> Departed {
        Departed(!self.kill.happened.load(Ordering::SeqCst))
    }

    /// A call ended without an answer.
    pub fn lost(&self, Departed(before_kill): Departed) {
        if before_kill && self.kill.happened.load(Ordering::SeqCst) {
            self.kill.cut_off.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The kill happens now.
    pub fn kill(&self) {
        self.kill.happened.store(true, Ordering::SeqCst);
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
        let (lost_before, answered, cut_off) = (flight.depart(), flight.depart(), flight.depart());

        flight.lost(lost_before);
        let _ = answered;
        flight.kill();
        flight.lost(cut_off);
        flight.lost(flight.depart());

        assert_eq!(flight.cut_off(), 1);
    }
}
