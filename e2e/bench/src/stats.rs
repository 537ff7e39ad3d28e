//! Numbers from samples: the median of runs, and percentiles of latencies.

use serde::Serialize;

/// Smallest, middle and largest of a cell's runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// Of an odd number of runs the middle one; of an even number (after a failed run) the mean of the two in the middle.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|x| x.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let (&min, &max, &upper) = (sorted.first()?, sorted.last()?, sorted.get(middle)?);
        let median = if sorted.len() % 2 == 1 {
            upper
        } else {
            f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper)
        };
        Some(Self { min, median, max })
    }
}

/// The number of runs for a wish: odd, and at least one.
pub fn odd(wanted: usize) -> usize {
    wanted.max(1) | 1
}

/// Latencies of one run or of several together, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    sorted: Vec<u32>,
}

impl Latencies {
    pub fn new(mut microseconds: Vec<u32>) -> Self {
        microseconds.sort_unstable();
        Self {
            sorted: microseconds,
        }
    }

    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest latency that at least `percent` of all do not exceed (nearest rank: never a number that was not measured).
    pub fn percentile(&self, percent: f64) -> Option<u32> {
        // Multiplied first: 99.9 / 100 is a little more than 0.999, and its rank would be the next one.
        let rank = (percent * self.sorted.len() as f64 / 100.0).ceil() as usize;
        self.sorted.get(rank.max(1).checked_sub(1)?).copied()
    }

    /// The same in milliseconds; not a number when there are no samples.
    pub fn milliseconds(&self, percent: f64) -> f64 {
        self.percentile(percent)
            .map_or(f64::NAN, |micros| f64::from(micros) / 1000.0)
    }

    pub fn merge(&mut self, other: &Self) {
        self.sorted.extend_from_slice(&other.sorted);
        self.sorted.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_median_is_the_middle_run_and_the_extremes_are_kept() {
        let spread = Spread::of(&[9.0, 1.0, 5.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 5.0, 9.0));
        assert_eq!(Spread::of(&[1.0, 2.0, 4.0, 8.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of(&[7.0]).unwrap().median, 7.0);
    }

    #[test]
    fn runs_without_a_number_do_not_count() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[f64::NAN]), None);
        assert_eq!(Spread::of(&[f64::NAN, 3.0]).unwrap().median, 3.0);
    }

    #[test]
    fn a_number_of_runs_is_odd() {
        assert_eq!([0, 1, 2, 3, 4].map(odd), [1, 1, 3, 3, 5]);
    }

    #[test]
    fn percentiles_are_measured_values() {
        let latencies = Latencies::new((1..=100).rev().collect());
        assert_eq!(latencies.percentile(50.0), Some(50));
        assert_eq!(latencies.percentile(99.0), Some(99));
        assert_eq!(latencies.percentile(99.1), Some(100));
        assert_eq!(latencies.percentile(100.0), Some(100));
        assert_eq!(latencies.percentile(0.0), Some(1));
        let many = Latencies::new((1..=1000).collect());
        assert_eq!(many.percentile(99.9), Some(999));
        assert_eq!(Latencies::new(vec![8]).percentile(1.0), Some(8));
        assert_eq!(Latencies::default().percentile(50.0), None);
        assert!(Latencies::default().milliseconds(50.0).is_nan());
    }

    #[test]
    fn merged_latencies_are_those_of_all_runs() {
        let mut all = Latencies::new(vec![1, 9]);
        all.merge(&Latencies::new(vec![5]));
        assert_eq!((all.len(), all.percentile(50.0)), (3, Some(5)));
    }
}
