//! Latencies in an HDR histogram: from a microsecond to a minute, three digits.

use hdrhistogram::Histogram;
use std::time::Duration;

/// What is longer counts as this, in microseconds.
const LONGEST_US: u64 = 60_000_000;
/// The percentiles of a plot.
const PLOTTED: [f64; 22] = [
    0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.5, 99.0, 99.5,
    99.75, 99.9, 99.95, 99.99, 100.0,
];

/// A distribution of latencies.
pub struct Latency(Histogram<u64>);

impl Latency {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are in order"))
    }

    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        self.record_us(u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US));
    }

    /// Counts one, in microseconds.
    pub fn record_us(&mut self, us: u64) {
        self.0.saturating_record(us.clamp(1, LONGEST_US));
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// A percentile (0 to 100), in milliseconds.
    #[must_use]
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1_000.0
    }

    /// The distribution as a curve over the number of nines: 1 is the 90th percentile, 2 the 99th. The tail, which matters, gets room.
    #[must_use]
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let beyond = |percentile: f64| (1.0 - percentile / 100.0).max(1e-5);
        PLOTTED.iter().map(|&p| (-beyond(p).log10(), self.percentile_ms(p))).collect()
    }

    /// In one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let [p50, p90, p99, p999, max] = [50.0, 90.0, 99.0, 99.9, 100.0].map(|p| self.percentile_ms(p));
        format!(
            "p50 {p50:.1} ms, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, longest {max:.1}, of {}",
            self.count()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_milliseconds_and_the_curve_rises() {
        let mut latency = Latency::new();
        (1..=1_000).for_each(|ms| latency.record(Duration::from_millis(ms)));

        assert!((latency.percentile_ms(99.0) - 990.0).abs() < 1.0);
        assert!(latency.curve().windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
}
