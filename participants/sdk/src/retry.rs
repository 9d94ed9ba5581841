//! When to try again: capped exponential backoff with jitter, and no end.
//!
//! The only module that names the `backoff` crate, which is unmaintained: only its arithmetic is used.
#![allow(clippy::disallowed_types)]

use backoff::{ExponentialBackoffBuilder, backoff::Backoff as _};
use std::time::Duration;

/// How delays grow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The delay before the first retry.
    pub initial: Duration,
    /// No delay grows beyond this; jitter may add a fifth to it.
    pub max: Duration,
}

impl Backoff {
    /// For transactions: 100 ms, doubling, up to 10 s.
    pub const TRANSACTION: Self = Self { initial: Duration::from_millis(100), max: Duration::from_secs(10) };
    /// For connections: 50 ms, doubling, up to 1 s.
    pub const CONNECTION: Self = Self { initial: Duration::from_millis(50), max: Duration::from_secs(1) };

    /// The delay before retry number `attempt` (0 is the first).
    #[must_use]
    pub fn delay(&self, attempt: u32) -> Duration {
        self.delay_after(self.initial.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)))
    }

    /// The delay before the next retry of what has been failing for so long: as long again, so that delays double. A fifth
    /// more or less by chance, so that what failed together does not come back together.
    #[must_use]
    pub fn delay_after(&self, failing_for: Duration) -> Duration {
        // The crate's default gives up after 15 minutes: money never does.
        let mut once = ExponentialBackoffBuilder::new()
            .with_initial_interval(failing_for.clamp(self.initial, self.max))
            .with_max_interval(self.max)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        // The chance is not the crate's, so that a simulation can decide it.
        once.next_backoff().unwrap_or(self.max).mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_never_end() {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(10) };

        for (attempt, middle_ms) in [(0, 100), (1, 200), (4, 1_600), (20, 10_000), (u32::MAX, 10_000)] {
            let delay = backoff.delay(attempt).as_millis();
            assert!((middle_ms * 8 / 10..=middle_ms * 12 / 10).contains(&delay), "{attempt}: {delay} ms");
        }
    }
}
