//! Histograms of the Raft engine's own statistics.
//!
//! `openraft` counts batch sizes and latencies with the crate `base2histogram`. That one computes the boundaries of its buckets for sixteen resolutions when the
//! first histogram is made, and keeps them: 26 MB of which `openraft` uses 2 kB, and more than everything else in an idle broker. This crate has the same interface, as
//! far as `openraft` calls it, and computes a boundary when it is asked for.
//!
//! # Buckets
//!
//! A value is counted by its three most significant bits, so a bucket is at most a quarter as wide as the values in it are large: 0, 1, 2, 3, 4, 5, 6, 7, 8-9, 10-11, 12-13,
//! 14-15, 16-19, ... A histogram holds counters up to its largest value only.

use std::{fmt, marker::PhantomData};

/// Buckets between two powers of two.
const GROUP: usize = 4;

/// How often values occurred. `T` is what the published crate keeps with parts of a histogram; there are no parts here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    total: u64,
    marker: PhantomData<fn() -> T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// One without values.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: Vec::new(),
            total: 0,
            marker: PhantomData,
        }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        if count == 0 {
            return;
        }
        let bucket = bucket(value);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(counted) = self.counts.get_mut(bucket) {
            *counted = counted.saturating_add(count);
        }
        self.total = self.total.saturating_add(count);
    }

    /// How many values were counted.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The value that a share `p` of all, between 0 and 1, does not exceed, as if the values of a bucket lay evenly in it; 0 when there is none.
    #[must_use]
    pub fn percentile(&self, p: f64) -> u64 {
        let rank = (self.total as f64 * p).ceil().max(1.0) as u64;
        let mut before = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            let through = before.saturating_add(*count);
            if through >= rank {
                let (low, width) = (lowest(bucket), width(bucket));
                // In the middle of its share of the bucket.
                let place = u128::from(rank.saturating_sub(before)) * 2 - 1;
                let within = u128::from(width) * place / (u128::from(*count) * 2);
                return low.saturating_add(u64::try_from(within).unwrap_or(0));
            }
            before = through;
        }
        0
    }

    /// The usual percentiles.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// In which bucket a value is counted.
const fn bucket(value: u64) -> usize {
    if value < GROUP as u64 {
        return value as usize;
    }
    let shift = 61 - value.leading_zeros();
    GROUP + shift as usize * GROUP + (value >> shift) as usize % GROUP
}

/// The smallest value of a bucket.
const fn lowest(bucket: usize) -> u64 {
    if bucket < GROUP {
        return bucket as u64;
    }
    let shift = (bucket - GROUP) / GROUP;
    ((GROUP + bucket % GROUP) as u64) << shift
}

/// How many values a bucket is for.
const fn width(bucket: usize) -> u64 {
    1 << (bucket.saturating_sub(GROUP) / GROUP)
}

/// Values that shares of all do not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values there are.
    pub samples: u64,
    /// Of 0.1 %.
    pub p0_1: u64,
    /// Of 1 %.
    pub p1: u64,
    /// Of 5 %.
    pub p5: u64,
    /// Of 10 %.
    pub p10: u64,
    /// Of half of them: the median.
    pub p50: u64,
    /// Of 90 %.
    pub p90: u64,
    /// Of 99 %.
    pub p99: u64,
    /// Of 99.9 %.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[samples: {}, P0.1: {}, P1: {}, P5: {}, P10: {}, P50: {}, P90: {}, P99: {}, P99.9: {}]",
            self.samples,
            self.p0_1,
            self.p1,
            self.p5,
            self.p10,
            self.p50,
            self.p90,
            self.p99,
            self.p99_9
        )
    }
}

/// Histograms drawn with characters, one below the other.
#[derive(Debug, Clone)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, Histogram<T>)>,
}

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsciiChart<T> {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { series: Vec::new() }
    }

    /// Puts another histogram below.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }

    /// The chart with a line for each bucket that is not empty.
    #[must_use]
    pub const fn detailed(&self) -> DetailedDisplay<'_, T> {
        DetailedDisplay(self)
    }
}

/// See [`AsciiChart::detailed`].
#[derive(Debug)]
pub struct DetailedDisplay<'a, T>(&'a AsciiChart<T>);

impl<T> fmt::Display for DetailedDisplay<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.0.series {
            writeln!(f, "{name}: {} values", histogram.total)?;
            for (bucket, count) in histogram.counts.iter().enumerate() {
                if *count > 0 {
                    let share = u128::from(*count) * 50 / u128::from(histogram.total.max(1));
                    let bar = "#".repeat(usize::try_from(share).unwrap_or(0).max(1));
                    writeln!(f, "{:>20} {count:>12} {bar}", lowest(bucket))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap_up_to_the_largest_value() {
        let mut next = 0_u64;
        for number in 0..252 {
            assert_eq!(lowest(number), next);
            let last = next + (width(number) - 1);
            assert_eq!((bucket(next), bucket(last)), (number, number));
            assert!(width(number) == 1 || width(number) <= next / 4);
            next = last.wrapping_add(1);
        }
        assert_eq!((next, bucket(u64::MAX)), (0, 251));
    }

    #[test]
    fn percentiles_are_as_exact_as_the_buckets() {
        let stats = of(1..=10_000).percentile_stats();
        assert_eq!(stats.samples, 10_000);
        for (found, exact) in [
            (stats.p1, 100.0),
            (stats.p10, 1000.0),
            (stats.p50, 5000.0),
            (stats.p90, 9000.0),
            (stats.p99, 9900.0),
        ] {
            let off = (found as f64 - exact).abs() / exact;
            assert!(off < 0.05, "{found} for {exact}");
        }
        assert_eq!(of([7]).percentile_stats().p0_1, 7);
        assert_eq!(of([]).percentile_stats().p99_9, 0);
        assert_eq!(of([3, 3, 3, 1000]).percentile(0.5), 3);
    }

    #[test]
    fn counters_stop_at_their_limit_and_exist_only_as_far_as_they_are_used() {
        let mut histogram: Histogram = Histogram::new();
        histogram.record_n(9, u64::MAX);
        histogram.record_n(u64::MAX, 0);
        histogram.record(9);
        assert_eq!((histogram.total(), histogram.counts.len()), (u64::MAX, 9));
        assert!((8..=9).contains(&histogram.percentile(0.5)));
    }

    #[test]
    fn a_chart_shows_what_occurred() {
        let chart = AsciiChart::new().add("sizes", of([1, 1, 1, 20]));
        let text = chart.detailed().to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                vec!["sizes:", "4", "values"],
                vec!["1", "3", &"#".repeat(37)],
                vec!["20", "1", &"#".repeat(12)],
            ]
        );
    }
}
