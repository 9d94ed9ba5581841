//! When the provider is not asked for a while: a tenth of the last requests had no answer, or it said that it wants no more.
//!
//! Then what is due waits in line, and nothing of it fails. After a pause that grows, one request tries; its answer lets the
//! others go on.

use std::collections::VecDeque;
use std::time::Duration;
use tcc_participant::retry::Backoff;
use tokio::time::Instant;

/// So many requests are looked back at.
const WINDOW: usize = 100;
/// Fewer than that say nothing.
const ENOUGH: usize = 20;
/// How long it is left alone: 1 s, doubling, up to 30 s.
const PAUSE: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(30) };

/// Whether the provider is asked.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Whether each of the last requests was answered.
    answered: VecDeque<bool>,
    /// Until when it is not asked.
    open_until: Option<Instant>,
    /// One request tries.
    is_trying: bool,
    /// How often that went wrong in a row.
    tries: u32,
    /// Until when the provider wants no more.
    wanted_no_more_until: Option<Instant>,
}

impl Breaker {
    /// Admits a request, or says when to come again.
    pub fn admit(&mut self, now: Instant) -> Result<(), Instant> {
        if let Some(until) = self.wanted_no_more_until.filter(|until| now < *until) {
            return Err(until);
        }
        match self.open_until {
            None => Ok(()),
            Some(until) if now < until => Err(until),
            Some(_) if self.is_trying => Err(now + PAUSE.initial / 10),
            Some(_) => {
                self.is_trying = true;
                Ok(())
            }
        }
    }

    /// A request that was admitted was not sent after all.
    pub fn unused(&mut self) {
        self.is_trying = false;
    }

    /// Takes note of a request that was admitted. `true` if it has let the others go on.
    pub fn note(&mut self, is_answered: bool, now: Instant) -> bool {
        match self.open_until {
            None => {
                self.answered.push_back(is_answered);
                if self.answered.len() > WINDOW {
                    self.answered.pop_front();
                }
                let failed = self.answered.iter().filter(|is_answered| !**is_answered).count();
                if self.answered.len() >= ENOUGH && failed * 10 >= self.answered.len() {
                    self.open(now);
                }
                false
            }
            // What was under way when it opened tells nothing new.
            Some(_) if !self.is_trying => false,
            Some(_) if is_answered => {
                *self = Self { wanted_no_more_until: self.wanted_no_more_until, ..Self::default() };
                true
            }
            Some(_) => {
                self.tries += 1;
                self.open(now);
                false
            }
        }
    }

    /// The provider wants no more for so long.
    pub fn leave_alone(&mut self, pause: Duration, now: Instant) {
        self.is_trying = false;
        self.wanted_no_more_until = self.wanted_no_more_until.max(Some(now + pause));
    }

    /// Whether it is left alone because it does not answer.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    fn open(&mut self, now: Instant) {
        self.answered.clear();
        self.is_trying = false;
        self.open_until = Some(now + PAUSE.delay(self.tries));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_without_an_answer_opens_it_and_one_answer_closes_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for n in 0..ENOUGH {
            breaker.note(n % 10 != 0, now);
        }
        assert!(breaker.is_open());
        let later = breaker.admit(now).unwrap_err();

        assert!(breaker.admit(later).is_ok(), "one tries");
        assert!(breaker.admit(later).is_err(), "and no other one");
        assert!(!breaker.note(false, later));
        let much_later = breaker.admit(later).unwrap_err();
        assert!(much_later - later > later - now, "the pause grows");
        assert!(breaker.admit(much_later).is_ok());
        assert!(breaker.note(true, much_later));
        assert!(!breaker.is_open() && breaker.admit(much_later).is_ok() && breaker.admit(much_later).is_ok());
    }

    #[test]
    fn fewer_than_a_tenth_do_not_open_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());

        for n in 0..1_000 {
            breaker.note(n % 12 != 11, now);
        }

        assert!(!breaker.is_open());
    }

    #[test]
    fn who_wants_no_more_is_left_alone_for_as_long_as_it_says() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());

        breaker.leave_alone(Duration::from_secs(7), now);

        assert_eq!(breaker.admit(now), Err(now + Duration::from_secs(7)));
        assert!(breaker.admit(now + Duration::from_secs(7)).is_ok());
    }
}
