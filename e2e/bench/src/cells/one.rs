//! One broker: throughput, reading back, and connections.

use super::{PARTITIONS, SIZE, produce, rest, start_all, stream, warm_throughput, warm_up};
use crate::{
    bench::{Bench, Measured, Options},
    catalog::{CONSUME, CPU_CONSUMED, CPU_EACH, MTLS, ONE, PER_SECOND, SCRAM},
    connections::{self, Login},
    load,
    subject::{Subject, Who},
};
use anyhow::Result;

const CELLS: [&str; 3] = [ONE, SCRAM, MTLS];

pub(super) fn run(bench: &mut Bench) {
    if !CELLS.iter().any(|cell| bench.wants(cell)) {
        return;
    }
    let sink = bench.wants(ONE);
    let mut subjects = start_all(bench, &CELLS, 1, sink);
    let runs = bench.options.runs;
    if bench.wants(ONE) {
        warm_throughput(bench, &mut subjects);
        let options = bench.options.clone();
        warm_up(bench, &mut subjects, |subject, _| {
            if subject.who == Who::Sink {
                return Ok(());
            }
            consume(&options, subject).map(drop)
        });
        bench.alternate(ONE, runs, &mut subjects, |options, subject| {
            let mut measured = produce(options, subject, SIZE, PARTITIONS)?;
            if subject.who != Who::Sink {
                measured.values.extend(consume(options, subject)?);
            }
            Ok(measured)
        });
    }
    subjects.retain(|subject| subject.who != Who::Sink);
    for (cell, login) in [(SCRAM, Login::Scram), (MTLS, Login::Mtls)] {
        if !bench.wants(cell) {
            continue;
        }
        warm_up(bench, &mut subjects, |subject, timing| {
            connections::rate(&subject.target(), login, timing).map(drop)
        });
        bench.alternate(cell, runs, &mut subjects, |options, subject| {
            let rate = connections::rate(&subject.target(), login, options.timing)?;
            Ok(Measured {
                values: vec![
                    (PER_SECOND, rate.per_second),
                    (CPU_EACH, rate.broker_millis_each),
                ],
                usage: Some(rate.usage),
                latencies: None,
                failed: rate.failed,
            })
        });
    }
}

/// Fills a topic and reads it back.
fn consume(options: &Options, subject: &mut Subject) -> Result<[(&'static str, f64); 2]> {
    let records = options.consumed / SIZE as u64;
    let throughput = subject.with_topic(PARTITIONS, |target, topic| {
        load::fill(target, &stream(topic, PARTITIONS, SIZE), records)?;
        load::consume(target, topic, PARTITIONS, records)
    })?;
    rest();
    Ok([
        (CONSUME, throughput.megabytes_per_second),
        (CPU_CONSUMED, throughput.broker_micros_per_record),
    ])
}
