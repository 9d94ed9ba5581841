//! How long after its due time a hold was paid, counted outside the downtime.
//!
//! While tccd is dead nobody can pay, and how long it stays dead is up to whoever starts it again. So a hold that was due or
//! on its way at any moment between the kill and the ready line of the next start is counted from that line. All that the
//! restart costs after it, such as finding what was left in the middle, counts.

use std::ops::RangeInclusive;
use tcc_core::Timestamp;

/// From the kill until tccd served again.
pub type Downtime = RangeInclusive<Timestamp>;

/// Microseconds from the due time to the payment, outside the downtime.
#[must_use]
pub fn lateness_us(due_at: Timestamp, settled_at: Timestamp, downtime: &Downtime) -> i64 {
    let overlaps = due_at <= *downtime.end() && settled_at >= *downtime.start();
    let from = if overlaps { due_at.max(*downtime.end()) } else { due_at };
    (settled_at.as_microsecond() - from.as_microsecond()).max(0)
}

/// A percentile by nearest rank, in milliseconds, rounded up; 0 of none.
#[must_use]
pub fn percentile_ms(lateness_us: &mut [i64], percent: usize) -> i64 {
    lateness_us.sort_unstable();
    let rank = (lateness_us.len() * percent).div_ceil(100);
    let us = rank.checked_sub(1).and_then(|index| lateness_us.get(index)).copied().unwrap_or(0);
    (us + 999) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_790_000_000_000 + ms).unwrap()
    }

    #[test]
    fn the_downtime_does_not_count() {
        let downtime = at(1_000)..=at(2_000);
        let late_ms = |due, settled| lateness_us(at(due), at(settled), &downtime) / 1_000;

        assert_eq!(late_ms(100, 130), 30, "before it");
        assert_eq!(late_ms(2_100, 2_107), 7, "after it");
        assert_eq!(late_ms(1_500, 2_040), 40, "due in it");
        assert_eq!(late_ms(990, 2_050), 50, "on its way when it began");
        assert_eq!(late_ms(1_500, 1_990), 0, "paid before the ready line");
        assert_eq!(late_ms(500, 7_000), 5_000, "found late");
    }

    #[test]
    fn the_percentile_is_a_value_that_occurred() {
        let up_to = |ms: i64| (1..=ms).map(|ms| ms * 1_000).collect::<Vec<_>>();

        assert_eq!(percentile_ms(&mut [], 99), 0);
        assert_eq!(percentile_ms(&mut [1], 99), 1);
        assert_eq!(percentile_ms(&mut up_to(100), 99), 99);
        assert_eq!(percentile_ms(&mut up_to(101), 99), 100);
        assert_eq!(percentile_ms(&mut up_to(101), 100), 101);
    }
}
