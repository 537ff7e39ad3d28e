//! The cells, in groups that share running brokers.

mod life;
mod many;
mod one;
mod three;

use std::time::Duration;

use anyhow::Result;

use crate::{
    bench::{Bench, Measured, Options},
    catalog::{CPU, P50, P99, P999, PRODUCE},
    load::{self, Choice, Paced, Stream, Throughput, Timing},
    subject::{Subject, Who},
    systems::System,
};

/// Partitions of a topic unless a cell says otherwise.
const PARTITIONS: i32 = 12;
/// Bytes of a record unless a cell says otherwise.
const SIZE: usize = 1024;
/// Records per second of the latency cell: 5 MB/s.
const LATENCY_RATE: u32 = 4882;

/// Runs every group that has a wanted cell, and writes the files after each.
pub fn run(bench: &mut Bench) -> Result<()> {
    for group in [one::run, three::run, life::run, many::run] {
        if bench.has_time() {
            group(bench);
            bench.write()?;
        }
    }
    Ok(())
}

/// Starts both systems with so many brokers, and the sink if it is asked for. What does not start is an error of every wanted cell.
fn start_all(
    bench: &mut Bench,
    cells: &[&'static str],
    brokers: usize,
    sink: bool,
) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for system in System::BOTH {
        let started = std::time::Instant::now();
        match Subject::start(system, brokers, &bench.programs) {
            Ok(subject) => {
                bench.say(&format!(
                    "{system}: {brokers} broker(s) up in {:.1} s",
                    started.elapsed().as_secs_f64()
                ));
                subjects.push(subject);
            }
            Err(error) => did_not_start(bench, cells, Who::System(system), &error),
        }
    }
    if sink {
        match Subject::sink(brokers, &bench.programs) {
            Ok(subject) => subjects.push(subject),
            Err(error) => did_not_start(bench, cells, Who::Sink, &error),
        }
    }
    subjects
}

fn did_not_start(bench: &mut Bench, cells: &[&'static str], who: Who, error: &anyhow::Error) {
    for cell in cells {
        if bench.wants(cell) {
            bench.record(
                cell,
                who,
                0,
                Err(anyhow::anyhow!("did not come up: {error:#}")),
            );
        }
    }
}

fn stream(topic: &str, partitions: i32, size: usize) -> Stream {
    Stream {
        topics: vec![topic.to_owned()],
        choice: Choice::InTurn(partitions),
        size,
    }
}

/// One run of a throughput cell, on a topic of its own.
fn produce(
    options: &Options,
    subject: &mut Subject,
    size: usize,
    partitions: i32,
) -> Result<Measured> {
    let throughput = subject.with_topic(partitions, |target, topic| {
        load::produce(target, &stream(topic, partitions, size), options.timing)
    })?;
    rest();
    Ok(produced(&throughput))
}

/// What was written is on its way to the disk, and deleted files are being deleted: not part of the next run.
fn rest() {
    std::thread::sleep(Duration::from_secs(1));
}

fn produced(throughput: &Throughput) -> Measured {
    Measured {
        values: vec![
            (PRODUCE, throughput.megabytes_per_second),
            (CPU, throughput.broker_micros_per_record),
        ],
        usage: Some(throughput.usage),
        latencies: None,
        failed: throughput.failed,
    }
}

fn paced(paced: Paced) -> Measured {
    Measured {
        values: vec![
            (P50, paced.latencies.milliseconds(50.0)),
            (P99, paced.latencies.milliseconds(99.0)),
            (P999, paced.latencies.milliseconds(99.9)),
        ],
        usage: Some(paced.usage),
        latencies: Some(paced.latencies),
        failed: 0,
    }
}

/// Loads each system once without measuring, so that a JVM has compiled what will run.
fn warm_up(
    bench: &mut Bench,
    subjects: &mut [Subject],
    work: impl Fn(&mut Subject, Timing) -> Result<()>,
) {
    let timing = Timing {
        warm: bench.options.warm_up,
        measure: Duration::from_secs(3),
    };
    for subject in subjects {
        if let Err(error) = work(subject, timing) {
            subject.keep_logs();
            bench.say(&format!("{}: warming up failed: {error:#}", subject.who));
        }
    }
}

/// Warming up with full throughput.
fn warm_throughput(bench: &mut Bench, subjects: &mut [Subject]) {
    warm_up(bench, subjects, |subject, timing| {
        subject
            .with_topic(PARTITIONS, |target, topic| {
                load::produce(target, &stream(topic, PARTITIONS, SIZE), timing)
            })
            .map(drop)
    });
}
