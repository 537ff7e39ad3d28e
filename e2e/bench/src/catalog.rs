//! Every number of the report, in its order, and what it must reach.

use crate::report::Must;

pub const RF3_1K: &str = "rf3-1KiB-12p";
pub const RF3_LATENCY: &str = "rf3-latency";
pub const RF3_END_TO_END: &str = "rf3-end-to-end";
pub const ONE: &str = "one-1KiB";
pub const SCRAM: &str = "connections-scram-512";
pub const MTLS: &str = "connections-mtls";
pub const MEMORY: &str = "memory";
pub const START_FRESH: &str = "start-fresh";
pub const START_WITH_DATA: &str = "start-with-data";
pub const MANY: &str = "rf3-10000p";

pub const PRODUCE: &str = "produce throughput";
pub const CONSUME: &str = "consume throughput";
pub const CPU: &str = "broker CPU per record";
pub const CPU_CONSUMED: &str = "broker CPU per consumed record";
pub const CEILING: &str = "produce throughput, share of the ceiling";
pub const P50: &str = "p50";
pub const P99: &str = "p99";
pub const P999: &str = "p99.9";
pub const PER_SECOND: &str = "connections per second";
pub const CPU_EACH: &str = "broker CPU per connection";
pub const IDLE: &str = "RSS idle";
pub const AFTER_LOAD: &str = "RSS after load";
pub const FIRST_PRODUCE: &str = "start to first produce";
pub const RESIDENT: &str = "RSS per broker";
pub const IDLE_CPU: &str = "idle CPU per broker";
pub const AGAINST_12: &str = "throughput against 12 partitions";
pub const FIRST_RECORDS: &str = "time for a record to each partition, the first";
pub const SPREAD: &str = "throughput with every partition in turn";

/// A throughput cell of three brokers: name, size of a record, partitions.
pub const RF3_THROUGHPUT: [(&str, usize, i32); 5] = [
    (RF3_1K, 1024, 12),
    ("rf3-100B-12p", 100, 12),
    ("rf3-10KiB-12p", 10_240, 12),
    ("rf3-1KiB-1p", 1024, 1),
    ("rf3-1KiB-100p", 1024, 100),
];

/// One number.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub cell: &'static str,
    pub metric: &'static str,
    pub unit: &'static str,
    pub must: Must,
}

const fn spec(cell: &'static str, metric: &'static str, unit: &'static str, must: Must) -> Spec {
    Spec {
        cell,
        metric,
        unit,
        must,
    }
}

/// All of them.
pub fn all() -> Vec<Spec> {
    use Must::{AtLeast, AtMost, Nothing, OwnAtLeast, Within};
    let mut specs = Vec::new();
    for (cell, _, _) in RF3_THROUGHPUT {
        let (throughput, cpu) = if cell == RF3_1K {
            (AtLeast(1.2), AtMost(0.7))
        } else {
            (AtLeast(1.0), Nothing)
        };
        specs.extend([
            spec(cell, PRODUCE, "MB/s", throughput),
            spec(cell, CPU, "µs", cpu),
            spec(cell, CEILING, "%", Nothing),
        ]);
    }
    specs.extend([
        spec(ONE, PRODUCE, "MB/s", AtLeast(1.0)),
        spec(ONE, CPU, "µs", Nothing),
        spec(ONE, CEILING, "%", Nothing),
        spec(ONE, CONSUME, "MB/s", AtLeast(1.0)),
        spec(ONE, CPU_CONSUMED, "µs", Nothing),
        spec(RF3_LATENCY, P50, "ms", AtMost(1.0)),
        spec(RF3_LATENCY, P99, "ms", AtMost(0.5)),
        spec(RF3_LATENCY, P999, "ms", Nothing),
        spec(RF3_END_TO_END, P50, "ms", AtMost(1.0)),
        spec(RF3_END_TO_END, P99, "ms", AtMost(0.5)),
        spec(RF3_END_TO_END, P999, "ms", Nothing),
        spec(SCRAM, PER_SECOND, "1/s", AtLeast(3.0)),
        spec(SCRAM, CPU_EACH, "ms", Nothing),
        spec(MTLS, PER_SECOND, "1/s", AtLeast(3.0)),
        spec(MTLS, CPU_EACH, "ms", Nothing),
        spec(MEMORY, IDLE, "MB", AtMost(0.1)),
        spec(MEMORY, AFTER_LOAD, "MB", AtMost(0.2)),
        spec(START_FRESH, FIRST_PRODUCE, "s", AtMost(0.1)),
        spec(START_WITH_DATA, FIRST_PRODUCE, "s", AtMost(0.1)),
        spec(MANY, RESIDENT, "MB", Within(400.0)),
        spec(MANY, IDLE_CPU, "% of a core", Within(5.0)),
        spec(MANY, FIRST_PRODUCE, "s", Within(5.0)),
        spec(MANY, FIRST_RECORDS, "s", Nothing),
        spec(MANY, AGAINST_12, "×", OwnAtLeast(0.7)),
        spec(MANY, SPREAD, "MB/s", Nothing),
    ]);
    specs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn must(cell: &str, metric: &str) -> Must {
        let all = all();
        let mut found = all
            .iter()
            .filter(|spec| (spec.cell, spec.metric) == (cell, metric));
        let spec = found.next().unwrap();
        assert!(found.next().is_none());
        spec.must
    }

    #[test]
    fn every_number_is_there_once() {
        let all = all();
        let keys: BTreeSet<_> = all.iter().map(|spec| (spec.cell, spec.metric)).collect();
        assert_eq!(keys.len(), all.len());
    }

    #[test]
    fn what_must_be_reached_is_what_was_agreed() {
        assert_eq!(must(RF3_1K, PRODUCE), Must::AtLeast(1.2));
        assert_eq!(must(RF3_1K, CPU), Must::AtMost(0.7));
        for (cell, _, _) in RF3_THROUGHPUT.iter().skip(1) {
            assert_eq!(must(cell, PRODUCE), Must::AtLeast(1.0));
        }
        assert_eq!(must(RF3_LATENCY, P99), Must::AtMost(0.5));
        assert_eq!(must(MTLS, PER_SECOND), Must::AtLeast(3.0));
        assert_eq!(must(MEMORY, IDLE), Must::AtMost(0.1));
        assert_eq!(must(MANY, RESIDENT), Must::Within(400.0));
        assert_eq!(must(MANY, AGAINST_12), Must::OwnAtLeast(0.7));
    }
}
