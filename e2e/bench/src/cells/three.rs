//! Three brokers, three copies: throughput and latencies.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    LATENCY_RATE, PARTITIONS, SIZE, paced, produce, rest, start_all, stream, warm_throughput,
};
use crate::{
    bench::Bench,
    catalog::{RF3_END_TO_END, RF3_LATENCY, RF3_THROUGHPUT},
    load::{self, Choice, Paced, Stream, Timing},
    report::short,
    subject::{Subject, Who},
};

const BROKERS: usize = 3;
const END_TO_END_RATE: u32 = 500;
/// A median latency above this, in milliseconds, is a backlog that grows: the system does not keep up yet.
const BACKLOG: f64 = 250.0;
/// By how much the median latencies of two rounds of a warm system may differ.
const AGREE: f64 = 0.2;

/// The load of a latency cell, on a topic of its own.
type Load = fn(&mut Subject, Timing) -> Result<Paced>;

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
    let cells = [throughput.clone(), latency].concat();
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
    let loads: [(&str, Load); 2] = [(RF3_LATENCY, produce_paced), (RF3_END_TO_END, end_to_end)];
    for (cell, load) in loads {
        if !bench.wants(cell) {
            continue;
        }
        for subject in &mut subjects {
            if !bench.has_time() {
                return;
            }
            warm(bench, cell, subject, load);
        }
        bench.alternate(cell, runs, &mut subjects, |options, subject| {
            let measured = load(subject, options.timing)?;
            rest();
            Ok(paced(measured))
        });
    }
}

fn produce_paced(subject: &mut Subject, timing: Timing) -> Result<Paced> {
    subject.with_topic(PARTITIONS, |target, topic| {
        load::produce_paced(target, &sticky(topic), LATENCY_RATE, timing)
    })
}

fn end_to_end(subject: &mut Subject, timing: Timing) -> Result<Paced> {
    subject.with_topic(PARTITIONS, |target, topic| {
        let stream = sticky(topic);
        load::end_to_end(target, &stream, PARTITIONS, END_TO_END_RATE, timing)
    })
}

/// As an application's records without a key are spread. In turn, nearly each would be a request of its own at these rates.
fn sticky(topic: &str) -> Stream {
    Stream {
        choice: Choice::Sticky,
        ..stream(topic, PARTITIONS, SIZE)
    }
}

/// Repeats a cell's own load until the system is warm: what a JVM compiles depends on the load, and how long that takes on the machine.
fn warm(bench: &Bench, cell: &str, subject: &mut Subject, load: Load) {
    let (rounds, seconds) = if bench.options.quick { (24, 3) } else { (30, 4) };
    let timing = Timing {
        warm: Duration::from_secs(1),
        measure: Duration::from_secs(seconds),
    };
    let who = subject.who;
    let start = Instant::now();
    let mut medians: Vec<f64> = Vec::new();
    let mut is_steady = false;
    while medians.len() < rounds && !is_steady {
        match load(subject, timing) {
            Ok(round) => medians.push(round.latencies.milliseconds(50.0)),
            Err(error) => {
                subject.keep_logs();
                bench.say(&format!("{cell} {who}: warming up failed: {error:#}"));
                return;
            }
        }
        // Not after fewer seconds than other loads have, however alike the first rounds are.
        if start.elapsed() >= bench.options.warm_up
            && let [.., before, last] = medians.as_slice()
        {
            is_steady = is_warm(*before, *last);
        }
    }
    let state = if is_steady { "warm" } else { "NOT STEADY" };
    let p50: Vec<String> = medians.iter().map(|median| short(*median)).collect();
    let p50 = p50.join(", ");
    bench.say(&format!("{cell} {who}: {state}; p50 by round: {p50} ms"));
}

/// Whether a system is warm, by the median latencies of two rounds in milliseconds: they are about the same, and no backlog.
fn is_warm(before: f64, last: f64) -> bool {
    last <= BACKLOG && (last - before).abs() <= AGREE * before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_warm_when_two_rounds_agree() {
        assert!(is_warm(10.0, 10.0) && is_warm(10.0, 8.5) && is_warm(10.0, 11.5));
        assert!(!is_warm(10.0, 7.5) && !is_warm(10.0, 12.5));
    }

    #[test]
    fn a_system_that_does_not_keep_up_is_not_warm() {
        assert!(!is_warm(6000.0, 5900.0));
        assert!(!is_warm(f64::NAN, 10.0) && !is_warm(10.0, f64::NAN));
    }
}
