//! Three brokers, three copies: throughput and latencies.

use std::time::Duration;

use super::{LATENCY_RATE, PARTITIONS, SIZE, paced, produce, start_all, stream, warm_throughput};
use crate::{
    bench::Bench,
    catalog::{RF3_END_TO_END, RF3_LATENCY, RF3_THROUGHPUT},
    load::{self, Timing},
    subject::{Subject, Who},
};

const BROKERS: usize = 3;
const END_TO_END_RATE: u32 = 500;
/// Small requests need more than 20 s until a JVM is warm.
const WARM: Duration = Duration::from_secs(25);

pub(super) fn run(bench: &mut Bench) {
    let throughput: Vec<&'static str> = RF3_THROUGHPUT
        .iter()
        .map(|(cell, _, _)| *cell)
        .filter(|cell| bench.wants(cell))
        .collect();
    let latency: Vec<&'static str> = [RF3_LATENCY, RF3_END_TO_END]
        .into_iter()
        .filter(|cell| bench.wants(cell))
        .collect();
    let cells = [throughput.clone(), latency.clone()].concat();
    if cells.is_empty() {
        return;
    }
    let mut subjects = start_all(bench, &cells, BROKERS, !throughput.is_empty());
    let runs = bench.options.runs;
    if !throughput.is_empty() {
        warm_throughput(bench, &mut subjects);
    }
    for (cell, size, partitions) in RF3_THROUGHPUT {
        bench.alternate(cell, runs, &mut subjects, |options, subject| {
            produce(options, subject, size, partitions)
        });
    }
    subjects.retain(|subject| subject.who != Who::Sink);
    if !latency.is_empty() {
        warm_small(bench, &mut subjects);
    }
    bench.alternate(RF3_LATENCY, runs, &mut subjects, |options, subject| {
        subject
            .with_topic(PARTITIONS, |target, topic| {
                let stream = stream(topic, PARTITIONS, SIZE);
                load::produce_paced(target, &stream, LATENCY_RATE, options.timing)
            })
            .map(paced)
    });
    bench.alternate(RF3_END_TO_END, runs, &mut subjects, |options, subject| {
        subject
            .with_topic(PARTITIONS, |target, topic| {
                load::end_to_end(
                    target,
                    topic,
                    PARTITIONS,
                    END_TO_END_RATE,
                    SIZE,
                    options.timing,
                )
            })
            .map(paced)
    });
}

/// Warming up with the very load of the latency cells.
fn warm_small(bench: &mut Bench, subjects: &mut [Subject]) {
    let timing = Timing {
        warm: WARM,
        measure: Duration::from_secs(1),
    };
    for subject in subjects {
        let warmed = subject.with_topic(PARTITIONS, |target, topic| {
            let stream = stream(topic, PARTITIONS, SIZE);
            load::produce_paced(target, &stream, LATENCY_RATE, timing)
        });
        if let Err(error) = warmed {
            subject.keep_logs();
            bench.say(&format!("{}: warming up failed: {error:#}", subject.who));
        }
    }
}
