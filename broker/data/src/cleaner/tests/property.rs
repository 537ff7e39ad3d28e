//! Random lives of a partition, and of two replicas of one.

use palisade_log::Offset;
use palisade_seal::{DekVersion, SecretKey};
use proptest::prelude::*;

use super::bench::Bench;
use crate::records::{
    Codec,
    builder::{TestBatch, TestRecord},
};

#[derive(Clone, Debug)]
enum Step {
    Append(Batch),
    Clean {
        map: usize,
    },
    /// Cleaning until the power fails.
    Crash {
        steps: u64,
        keep: u64,
    },
    Save,
    Reopen,
    Wait(i64),
    Advance(prop::sample::Index),
    Rotate,
    CloseIdle,
}

#[derive(Clone, Debug)]
struct Batch {
    /// Key, whether it has a value, time.
    records: Vec<(u8, bool, i64)>,
    codec: Codec,
    producer: Option<i64>,
}

fn any_batch() -> impl Strategy<Value = Batch> {
    let codec = prop_oneof![
        4 => Just(Codec::None),
        1 => Just(Codec::Gzip),
        1 => Just(Codec::Snappy),
        1 => Just(Codec::Lz4),
        1 => Just(Codec::Zstd),
    ];
    let records = proptest::collection::vec((0u8..24, prop::bool::weighted(0.7), 0i64..1000), 1..6);
    (records, codec, proptest::option::of(0i64..3)).prop_map(|(records, codec, producer)| Batch {
        records,
        codec,
        producer,
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_batch().prop_map(Step::Append),
        3 => prop_oneof![Just(0usize), Just(1 << 16)].prop_map(|map| Step::Clean { map }),
        1 => (0u64..60, any::<u64>()).prop_map(|(steps, keep)| Step::Crash { steps, keep }),
        1 => Just(Step::Save),
        1 => Just(Step::Reopen),
        2 => (1i64..400).prop_map(Step::Wait),
        1 => any::<prop::sample::Index>().prop_map(Step::Advance),
        1 => Just(Step::Rotate),
        1 => Just(Step::CloseIdle),
    ]
}

fn built(batch: &Batch, number: usize) -> TestBatch {
    let records = batch
        .records
        .iter()
        .map(|(key, has_value, time)| TestRecord {
            timestamp: *time,
            key: Some(vec![*key]),
            value: has_value.then(|| vec![b'v'; 40]),
            headers: Vec::new(),
        });
    let built = TestBatch::new(records.collect()).codec(batch.codec);
    match batch.producer {
        Some(id) => built.producer(id, 0, number as i32),
        None => built,
    }
}

fn apply(bench: &mut Bench, step: &Step, number: usize) {
    match step {
        Step::Append(batch) => bench.append(&built(batch, number)),
        Step::Clean { map } => {
            bench.key_map_bytes = *map;
            bench.clean();
        }
        Step::Crash { steps, keep } => {
            bench.fs.set_steps(Some(*steps));
            let _ = bench.try_clean().is_ok() && bench.try_save().is_ok();
            let mut turn = 0;
            bench
                .fs
                .crash(|| {
                    turn += 1;
                    keep.rotate_left(turn) & 1 == 1
                })
                .unwrap();
            bench.reopen();
        }
        Step::Save => bench.save(),
        Step::Reopen => {
            // As a killed process: what it wrote stays.
            bench.fs.crash(|| true).unwrap();
            bench.reopen();
        }
        Step::Wait(ms) => bench.now += ms,
        Step::Advance(to) => {
            let (start, end) = (bench.start, bench.log.end_offset().0);
            bench.start = start + to.index((end - start + 1) as usize) as i64 / 4;
            bench.log.advance_start(Offset(bench.start));
        }
        Step::Rotate => {
            let next = DekVersion(bench.ring.latest().unwrap().0 + 1);
            bench.ring.insert(next, SecretKey::generate().unwrap());
        }
        Step::CloseIdle => bench.log.close_idle(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_must_stay_stays_and_what_must_go_goes(steps in proptest::collection::vec(any_step(), 1..80)) {
        let mut bench = Bench::new();
        for (number, step) in steps.iter().enumerate() {
            apply(&mut bench, step, number);
            if !matches!(step, Step::Append(_)) {
                bench.check();
            }
        }
        bench.clean();
        bench.check();
    }

    #[test]
    fn replicas_that_cleaned_at_other_times_hold_the_same_in_the_end(
        batches in proptest::collection::vec(any_batch(), 1..40),
        times in proptest::collection::vec((prop::bool::weighted(0.2), prop::bool::weighted(0.2)), 40),
    ) {
        let mut replicas = [Bench::new(), Bench::new()];
        for (number, batch) in batches.iter().enumerate() {
            let (one, other) = times[number];
            for (bench, clean) in replicas.iter_mut().zip([one, other]) {
                bench.append(&built(batch, number));
                bench.now += 50;
                if clean {
                    bench.clean();
                }
            }
        }
        let last = replicas.each_mut().map(|bench| {
            for _ in 0..3 {
                bench.clean();
                bench.now += bench.compaction.delete_retention_ms;
            }
            bench.check();
            bench.records()
        });
        prop_assert_eq!(&last[0], &last[1]);
        let bases = replicas.each_ref().map(|bench| bench.headers().iter().map(|header| header.base_offset).collect::<Vec<_>>());
        prop_assert_eq!(&bases[0], &bases[1]);
    }
}
