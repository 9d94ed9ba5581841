//! The coordinator database's clock, as far as it can be known here.
//!
//! A monotonic local clock plus an offset that the heartbeat measures. It decides when to look at something, and whether an
//! id or a due time in a request is plausible; whether something is due is decided in the database.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use tcc_core::Timestamp;
use tokio::time::Instant;

/// An estimate of the database's clock, off by half a round trip at most. Clones share it.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    /// Microseconds from `start` on the local clock to the Unix epoch on the database's, negated.
    offset_us: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that was `now` at this moment.
    #[must_use]
    pub fn set_to(now: Timestamp) -> Self {
        let clock = Self { start: Instant::now(), offset_us: Arc::default() };
        clock.observe(clock.start, now);
        clock
    }

    /// Takes a reading of the database's clock from between `asked` and this moment.
    pub fn observe(&self, asked: Instant, read: Timestamp) {
        let middle = asked + asked.elapsed() / 2;
        let local_us = i64::try_from((middle - self.start).as_micros()).unwrap_or(i64::MAX);
        self.offset_us.store(read.as_microsecond() - local_us, Ordering::Relaxed);
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub fn now_us(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX)
            + self.offset_us.load(Ordering::Relaxed)
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        timestamp(self.now_us())
    }
}

/// A time from microseconds since the Unix epoch.
pub(super) fn timestamp(at_us: i64) -> Timestamp {
    Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::MAX)
}
