//! Three brokers with 10,000 partitions: memory, idle CPU, start, and what they cost in throughput.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{PARTITIONS, SIZE, did_not_start};
use crate::{
    bench::{Bench, Measured, Options},
    catalog::{AGAINST_12, FIRST_PRODUCE, FIRST_RECORDS, IDLE_CPU, MANY, RESIDENT, SPREAD},
    load::{self, Choice, Stream, Target},
    proc::CpuMeter,
    subject::Who,
    systems::{Cluster, System},
    wire::NewTopic,
};

/// Kafka makes at most 10,000 partitions in one request, brokers and all included.
const TOPICS: usize = 10;
const PER_TOPIC: i32 = 1000;
const TOPIC_LIMIT: Duration = Duration::from_secs(300);
/// Making so many takes Kafka minutes.
const MOST_RUNS: usize = 1;

pub(super) fn run(bench: &mut Bench) {
    if !bench.wants(MANY) {
        return;
    }
    for run in 0..bench.options.runs.min(MOST_RUNS) {
        for system in System::BOTH {
            if !bench.has_time() {
                return;
            }
            let who = Who::System(system);
            match Cluster::start(system, 3, &bench.programs) {
                Err(error) => did_not_start(bench, &[MANY], who, &error),
                Ok(mut cluster) => {
                    let result = measure(&bench.options, &mut cluster);
                    if result.is_err() {
                        cluster.keep_logs();
                    }
                    bench.record(MANY, who, run, result);
                }
            }
        }
    }
}

fn measure(options: &Options, cluster: &mut Cluster) -> Result<Measured> {
    let target = Target {
        access: cluster.access.clone(),
        pids: cluster.pids(),
    };
    // As an application's records without a key are spread, so that few and many partitions see requests of one size.
    let sticky = |topics: Vec<String>| Stream {
        topics,
        choice: Choice::Sticky,
        size: SIZE,
    };
    let few = cluster.create_topic("few", PARTITIONS, TOPIC_LIMIT)?;
    let few = sticky(vec![few.name]);
    // Once to warm up.
    load::produce(&target, &few, options.timing)?;
    let with_few = load::produce(&target, &few, options.timing)?;

    let names: Vec<String> = (0..TOPICS).map(|topic| format!("many-{topic}")).collect();
    for name in &names {
        cluster.create_topic(name, PER_TOPIC, TOPIC_LIMIT)?;
    }
    let many = sticky(names.clone());
    let in_turn = Stream {
        choice: Choice::InTurn(PER_TOPIC),
        ..many.clone()
    };
    // As in a cluster that is used, every partition has a record: Kafka makes a partition's files with its topic, Palisade with its first batch.
    let began = Instant::now();
    let partitions = names.len() as u64 * u64::from(PER_TOPIC.unsigned_abs());
    load::fill(&target, &in_turn, partitions)?;
    let filled = began.elapsed();
    std::thread::sleep(options.settle);
    let resident = cluster.resident_mb()?;
    let idle = idle_cpu(&target.pids, options.settle)?;

    load::produce(&target, &many, options.timing)?;
    let with_many = load::produce(&target, &many, options.timing)?;
    let spread = load::produce(&target, &in_turn, options.timing)?;

    cluster.stop()?;
    let first = NewTopic {
        name: names.first().cloned().unwrap_or_default(),
        partitions: PER_TOPIC,
        replication: 3,
    };
    let start = cluster.start_to_first_produce(&first, false)?;
    Ok(Measured {
        values: vec![
            (RESIDENT, resident),
            (IDLE_CPU, idle),
            (FIRST_RECORDS, filled.as_secs_f64()),
            (FIRST_PRODUCE, start.as_secs_f64()),
            (
                AGAINST_12,
                with_many.megabytes_per_second / with_few.megabytes_per_second,
            ),
            (SPREAD, spread.megabytes_per_second),
        ],
        usage: Some(with_many.usage),
        latencies: None,
        failed: with_few.failed + with_many.failed + spread.failed,
    })
}

/// Share of a core, in percent, of the broker that uses most while nothing is asked of it.
fn idle_cpu(pids: &[u32], time: Duration) -> Result<f64> {
    let meters: Vec<CpuMeter> = pids
        .iter()
        .map(|pid| CpuMeter::start(&[*pid]))
        .collect::<Result<_>>()?;
    std::thread::sleep(time.max(Duration::from_secs(5)));
    let mut most = 0.0_f64;
    for meter in &meters {
        let usage = meter.usage()?;
        most = most.max(usage.brokers / usage.elapsed.as_secs_f64() * 100.0);
    }
    Ok(most)
}
