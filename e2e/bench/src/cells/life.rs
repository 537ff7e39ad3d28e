//! One broker from an empty directory through load to a restart with data: times of start, and memory.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{PARTITIONS, SIZE, stream};
use crate::{
    bench::{Bench, Measured, Options},
    catalog::{AFTER_LOAD, FIRST_PRODUCE, IDLE, MEMORY, START_FRESH, START_WITH_DATA},
    load::{self, Target},
    subject::{Who, has_room},
    systems::{Cluster, Programs, System},
    wire::NewTopic,
};

/// Every run writes all of the data anew.
const MOST_RUNS: usize = 3;
const TOPIC_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(bench: &mut Bench) {
    let cells = [START_FRESH, MEMORY, START_WITH_DATA];
    if !cells.iter().any(|cell| bench.wants(cell)) {
        return;
    }
    for run in 0..bench.options.runs.min(MOST_RUNS) {
        let mut systems = System::BOTH;
        if run % 2 == 1 {
            systems.reverse();
        }
        for system in systems {
            if !bench.has_time() {
                return;
            }
            let with_data = bench.wants(START_WITH_DATA);
            let loaded = with_data || bench.wants(MEMORY);
            let mut noted = Found::new();
            let error = phases(
                system,
                &bench.options,
                &bench.programs,
                loaded,
                with_data,
                &mut noted,
            )
            .err();
            let mut told = error.is_none();
            for cell in cells {
                if !bench.wants(cell) {
                    continue;
                }
                let values: Vec<_> = noted
                    .iter()
                    .filter(|(of, _, _)| *of == cell)
                    .map(|(_, metric, value)| (*metric, *value))
                    .collect();
                let result = match &error {
                    Some(error) if values.is_empty() => {
                        told = true;
                        Err(anyhow::anyhow!("{error:#}"))
                    }
                    _ => Ok(Measured {
                        values,
                        ..Measured::default()
                    }),
                };
                bench.record(cell, Who::System(system), run, result);
            }
            // One that came when every cell had a number already is an error nevertheless.
            let last = cells.into_iter().rev().find(|cell| bench.wants(cell));
            if let (Some(error), Some(cell), false) = (error, last, told) {
                bench.record(cell, Who::System(system), run, Err(error));
            }
        }
    }
}

/// Cell, metric and value.
type Found = Vec<(&'static str, &'static str, f64)>;

/// One life. What was found before an error is kept.
fn phases(
    system: System,
    options: &Options,
    programs: &Programs,
    loaded: bool,
    with_data: bool,
    found: &mut Found,
) -> Result<()> {
    let mut cluster = Cluster::prepare(system, 1, programs)?;
    let first = NewTopic {
        name: "first".to_owned(),
        partitions: 1,
        replication: 1,
    };
    let fresh = cluster.start_to_first_produce(&first, true)?;
    found.push((START_FRESH, FIRST_PRODUCE, fresh.as_secs_f64()));
    if !loaded {
        return Ok(());
    }
    let result = (|| {
        std::thread::sleep(options.settle);
        found.push((MEMORY, IDLE, cluster.resident_mb()?));
        let bytes = if with_data {
            options.data
        } else {
            options.consumed
        };
        if !has_room(&programs.work, bytes) {
            bail!("the disk has no room for {} GB", bytes >> 30);
        }
        let data = cluster.create_topic("data", PARTITIONS, TOPIC_LIMIT)?;
        let target = Target {
            access: cluster.access.clone(),
            pids: cluster.pids(),
        };
        load::fill(
            &target,
            &stream("data", PARTITIONS, SIZE),
            bytes / SIZE as u64,
        )?;
        // Readers cost memory as well.
        let read = options.consumed.min(bytes) / SIZE as u64;
        load::consume(&target, "data", PARTITIONS, read)?;
        found.push((MEMORY, AFTER_LOAD, cluster.resident_mb()?));
        if with_data {
            cluster.stop()?;
            let restarted = cluster.start_to_first_produce(&data, false)?;
            found.push((START_WITH_DATA, FIRST_PRODUCE, restarted.as_secs_f64()));
        }
        cluster.stop()
    })();
    if result.is_err() {
        cluster.keep_logs();
    }
    result
}
