//! A histogram made of atomics.
//!
//! The one of `prometheus-client` takes a lock for each observation, which a payment would wait for.

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Bounds for calls and statements: 1 ms to 10 s.
pub const CALLS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds for how late something is: 1 ms to an hour.
pub const LAGS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0,
];

/// Bounds for how many of something there are: 1 to 256.
pub const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// How often a duration, or a number, fell between which bounds. Clones share it.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above all of them.
    counts: Vec<AtomicU64>,
    sum_millionths: AtomicU64,
}

impl Histogram {
    /// One with these upper bounds, the lowest first; of durations in seconds.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::default()).collect();
        Self(Arc::new(Inner { bounds, counts, sum_millionths: AtomicU64::default() }))
    }

    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        self.add(duration.as_secs_f64(), u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a number of something.
    pub fn count(&self, number: u64) {
        self.add(number as f64, number.saturating_mul(1_000_000));
    }

    fn add(&self, value: f64, millionths: u64) {
        let index = self.0.bounds.partition_point(|bound| *bound < value);
        self.0.counts[index].fetch_add(1, Ordering::Relaxed);
        self.0.sum_millionths.fetch_add(millionths, Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // Counted from the buckets, so that they agree even while somebody observes.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_millionths.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::{encoding::text::encode, registry::Registry};

    #[test]
    fn a_number_is_counted_as_it_is() {
        let histogram = Histogram::new(SIZES);
        let mut registry = Registry::default();
        registry.register("calls", "Calls", histogram.clone());

        for number in [1, 64, 300] {
            histogram.count(number);
        }

        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let expected =
            ["calls_sum 365.0", "calls_bucket{le=\"1.0\"} 1", "calls_bucket{le=\"64.0\"} 2", "calls_count 3"];
        assert!(expected.iter().all(|line| text.lines().any(|found| found == *line)), "{text}");
    }

    #[test]
    fn a_duration_is_counted_up_to_and_with_its_bound() {
        let histogram = Histogram::new(&[0.001, 0.01]);
        let mut registry = Registry::default();
        registry.register("took_seconds", "Took", histogram.clone());

        for us in [500, 1_000, 1_001, 20_000] {
            histogram.observe(Duration::from_micros(us));
        }

        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let expected = [
            "took_seconds_sum 0.022501",
            "took_seconds_count 4",
            "took_seconds_bucket{le=\"0.001\"} 2",
            "took_seconds_bucket{le=\"0.01\"} 3",
            "took_seconds_bucket{le=\"+Inf\"} 4",
        ];
        assert!(expected.iter().all(|line| text.lines().any(|found| found == *line)), "{text}");
    }
}
