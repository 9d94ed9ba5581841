//! A breaker: notices that a participant does not answer, and leaves it alone for a moment.
//!
//! It counts what was answered and what was not, for ten seconds back. Above a tenth without an answer, or
//! four batches in a row with none, it opens: nothing is asked, and whoever wants to is told so at once.
//! After a while it is half open: a few items are asked, and what becomes of them closes it or opens it for
//! twice as long. What the participant refuses, or says about one item that is at fault, is an answer. A
//! breaker protects what is broken; nothing that is safe depends on it.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How far back is counted, in steps of a second.
const WINDOW: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_secs(1);
/// Of fewer items a tenth says nothing.
const ENOUGH: usize = 20;
/// So many batches in a row without any answer open it, however few items they had.
const IN_A_ROW: u32 = 4;
/// How long it is open, at first and at most.
const OPEN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// So many items are asked while it is half open.
pub(crate) const PROBE: usize = 16;

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// All is well: everything is asked.
    Closed,
    /// A little is asked, to see whether all is well again.
    HalfOpen,
    /// Nothing is asked.
    Open,
}

/// A breaker. Whoever asks the participant tells it how that went.
#[derive(Debug, Default)]
pub struct Breaker {
    counts: Mutex<Counts>,
    /// Whether it is not closed: so nobody who only wants to know that takes the lock.
    is_touched: AtomicU8,
}

#[derive(Debug, Default)]
struct Counts {
    /// When a step began, and what was answered and lost in it.
    steps: VecDeque<(Instant, usize, usize)>,
    lost_in_a_row: u32,
    /// Until when it is open, or was.
    open_until: Option<Instant>,
    open_for: Duration,
}

impl Breaker {
    /// How it stands.
    ///
    /// # Panics
    ///
    /// Never: no holder of its lock does.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        if self.is_touched.load(Ordering::Relaxed) == 0 {
            return BreakerState::Closed;
        }
        self.counts.lock().expect("no holder panics").state()
    }

    /// So many items of a batch were answered, and so many were not.
    ///
    /// # Panics
    ///
    /// Never: no holder of its lock does.
    pub fn count(&self, answered: usize, lost: usize) {
        let mut counts = self.counts.lock().expect("no holder panics");
        counts.count(answered, lost);
        self.is_touched.store(u8::from(counts.open_until.is_some()), Ordering::Relaxed);
    }
}

impl Counts {
    fn state(&self) -> BreakerState {
        match self.open_until {
            None => BreakerState::Closed,
            Some(until) if Instant::now() < until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    fn count(&mut self, answered: usize, lost: usize) {
        let now = Instant::now();
        while self.steps.front().is_some_and(|(began, ..)| now - *began > WINDOW) {
            self.steps.pop_front();
        }
        match self.steps.back_mut().filter(|(began, ..)| now - *began < STEP) {
            Some(step) => (step.1, step.2) = (step.1 + answered, step.2 + lost),
            None => self.steps.push_back((now, answered, lost)),
        }
        self.lost_in_a_row = if answered > 0 { 0 } else { self.lost_in_a_row + u32::from(lost > 0) };
        match self.state() {
            // What was under way when it opened says nothing new.
            BreakerState::Open => {}
            BreakerState::HalfOpen if lost * 10 > answered + lost => {
                self.open((self.open_for * 2).min(OPEN.1));
            }
            BreakerState::HalfOpen if answered > 0 => *self = Self::default(),
            BreakerState::Closed if self.is_too_much() => self.open(OPEN.0),
            BreakerState::HalfOpen | BreakerState::Closed => {}
        }
    }

    fn is_too_much(&self) -> bool {
        let (answered, lost) =
            self.steps.iter().fold((0, 0), |sum, (_, answered, lost)| (sum.0 + answered, sum.1 + lost));
        let is_a_tenth = answered + lost >= ENOUGH && lost * 10 > answered + lost;
        is_a_tenth || self.lost_in_a_row >= IN_A_ROW
    }

    fn open(&mut self, open_for: Duration) {
        self.open_for = open_for;
        self.open_until = Some(Instant::now() + open_for);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_opens_above_a_tenth_without_an_answer_and_not_at_a_tenth() {
        let breaker = Breaker::default();

        breaker.count(90, 10);
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.count(0, 1);
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test]
    async fn of_few_items_it_opens_when_none_was_answered_again_and_again() {
        let breaker = Breaker::default();

        breaker.count(0, 1);
        breaker.count(1, 0);
        for _ in 1..IN_A_ROW {
            breaker.count(0, 1);
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        breaker.count(0, 1);
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test]
    async fn half_open_it_closes_with_an_answer_and_opens_for_longer_without() {
        let breaker = Breaker::default();
        breaker.count(0, 100);
        breaker.count(16, 0);
        assert_eq!(breaker.state(), BreakerState::Open, "what was under way does not close it");

        for open_for in [OPEN.0, OPEN.0 * 2] {
            tokio::time::sleep(open_for).await;
            assert_eq!(breaker.state(), BreakerState::HalfOpen);
            breaker.count(14, 2);
            assert_eq!(breaker.state(), BreakerState::Open);
        }
        let longest = (0..20).fold(OPEN.0, |open_for, _| (open_for * 2).min(OPEN.1));
        assert_eq!(longest, OPEN.1);
        tokio::time::sleep(OPEN.0 * 4).await;
        breaker.count(15, 1);
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.count(1, 1);
        assert_eq!(breaker.state(), BreakerState::Closed, "what was before is forgotten");
    }
}
