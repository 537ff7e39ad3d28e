//! The power fails at every single step of cleaning and saving.

use std::cell::Cell;

use palisade_log::{Offset, segment::Rolling};

use super::bench::{Bench, ROLLING, put, tombstone};
use crate::records::{Codec, builder::TestBatch};

fn filled() -> Bench {
    let mut bench = Bench::new();
    for n in 0..30i64 {
        let codec = if n % 3 == 0 { Codec::Lz4 } else { Codec::None };
        let mut batch = TestBatch::new(vec![
            put(n, &format!("k{}", n % 7), n),
            put(n, &format!("x{n}"), n),
        ])
        .codec(codec)
        .producer(n % 2, 0, n as i32);
        if n % 4 == 1 {
            batch.records.push(tombstone(n, &format!("x{}", n - 1)));
        }
        bench.append(&batch);
    }
    bench.save();
    bench.append(&TestBatch::new(vec![put(50, "k1", 50)]));
    bench
}

/// Twice: the second time tombstones go, and what the first time wrote is rewritten.
fn work(bench: &mut Bench) -> bool {
    for _ in 0..2 {
        if bench.try_clean().is_err() || bench.try_save().is_err() {
            return false;
        }
        bench.now += bench.compaction.delete_retention_ms;
    }
    true
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new() {
    let mut finished = false;
    let mut steps = 0;
    while !finished {
        for keep in [0u32, 1, 0x5555_5555, u32::MAX] {
            let mut bench = filled();
            bench.fs.set_steps(Some(steps));
            finished = work(&mut bench);
            let mut turn = 0;
            bench
                .fs
                .crash(|| {
                    turn += 1;
                    keep.rotate_left(turn) & 1 == 1
                })
                .unwrap();
            bench.reopen();
            bench.check();
            bench.clean();
            bench.save();
            bench.check();
            assert!(
                bench.files().len() == bench.log.state().segments.len(),
                "step {steps}: {:?}",
                bench.files()
            );
        }
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
}

/// A pass that is ended in the middle leaves holes, which must be known for holes: otherwise this replica can send nobody a snapshot.
#[test]
fn what_an_interrupted_pass_has_taken_out_is_known_to_be_compacted() {
    let mut interrupted = 0;
    for allowed in 1.. {
        let bench = filled();
        let count = Cell::new(0);
        let pace = |_| {
            count.set(count.get() + 1);
            count.get() <= allowed
        };
        let mut stats = bench.stats;
        let rolling = Rolling {
            age_ms: 0,
            ..ROLLING
        };
        let ended = bench.work(&bench.ring, &pace).run_all(rolling, &mut stats);
        let mut next = bench.log.start_offset();
        for (meta, _) in bench.batches() {
            if meta.base_offset > next {
                interrupted += usize::from(ended.is_err());
                assert!(
                    meta.base_offset <= bench.log.cleaned().until,
                    "after {allowed} reads: from {next} to {} nothing is left, and it is compacted to {:?} only",
                    meta.base_offset,
                    bench.log.cleaned()
                );
            }
            next = Offset(meta.last_offset.0 + 1);
        }
        if ended.is_ok() {
            break;
        }
    }
    assert!(interrupted > 0, "no pass was ended between two groups");
}

#[test]
fn a_full_disk_and_a_failed_sync_leave_everything_as_it_was() {
    let mut bench = filled();
    bench.save();
    let before = bench.batches();
    for fail in [
        |bench: &Bench, on: bool| bench.fs.set_space(on.then_some(100)),
        |bench: &Bench, on: bool| bench.fs.fail_syncs(on),
        |bench: &Bench, on: bool| bench.fs.fail_writes(on),
    ] {
        fail(&bench, true);
        assert!(bench.try_clean().is_err());
        assert_eq!(bench.batches(), before);
        fail(&bench, false);
    }
    bench.clean();
    bench.check();
}
