//! A topic's key is rotated: nothing may be left under the old one.

use palisade_log::segment::Rolling;
use palisade_seal::{DekVersion, KeyRing, SealError, SecretKey};

use super::bench::{Bench, ROLLING, put};
use crate::{
    cleaner::{CleanError, CleanerStats},
    records::{Codec, builder::TestBatch},
};

fn filled() -> Bench {
    let mut bench = Bench::new();
    for n in 0..30i64 {
        let batch = TestBatch::new(vec![put(n, &format!("k{}", n % 7), n); 3]);
        bench.append(&batch.codec(if n % 2 == 0 { Codec::Zstd } else { Codec::None }));
    }
    bench
}

#[test]
fn the_old_version_is_not_needed_any_more_to_the_last_byte() {
    let mut bench = filled();
    bench
        .ring
        .insert(DekVersion(2), SecretKey::generate().unwrap());
    bench.append(&TestBatch::new(vec![put(1, "new", 1)]));
    let before = bench.batches();
    let (segments, bytes) = bench.log.older_than(DekVersion(2));
    assert_eq!(segments, bench.log.state().segments.len());
    assert_eq!(bytes, bench.log.size());
    let mut stats = CleanerStats::default();
    // The topic is not compacted: records stay as they are.
    let mut work = bench.work(&bench.ring, &|_| true);
    work.compaction = None;
    work.run_all(ROLLING, &mut stats).unwrap();
    assert_eq!(
        bench.log.oldest_key(),
        Some(DekVersion(1)),
        "the old files are there until a manifest is without them"
    );
    bench.save();
    assert_eq!(bench.log.oldest_key(), Some(DekVersion(2)));
    assert_eq!(bench.log.older_than(DekVersion(2)), (0, 0));
    bench.ring.remove(DekVersion(1));
    assert_eq!(bench.batches(), before);
    bench.reopen();
    assert_eq!(bench.batches(), before);
    assert_eq!(bench.log.oldest_key(), Some(DekVersion(2)));
}

#[test]
fn compaction_moves_to_the_newest_key_on_the_way() {
    let mut bench = filled();
    bench
        .ring
        .insert(DekVersion(5), SecretKey::generate().unwrap());
    bench.clean();
    bench.save();
    bench.ring.remove(DekVersion(1));
    bench.check();
    assert_eq!(bench.log.oldest_key(), Some(DekVersion(5)));
}

#[test]
fn without_the_key_nothing_is_touched_and_nothing_is_called_damage() {
    let bench = filled();
    let before = bench.batches();
    let other = KeyRing::new();
    other.insert(DekVersion(9), SecretKey::generate().unwrap());
    let rolling = Rolling {
        age_ms: 0,
        ..ROLLING
    };
    let error = bench
        .work(&other, &|_| true)
        .run_all(rolling, &mut CleanerStats::default())
        .unwrap_err();
    assert!(
        matches!(error, CleanError::Seal(SealError::UnknownDek { .. })),
        "{error}"
    );
    assert_eq!(bench.batches(), before);
    assert!(bench.log.quarantined().is_empty());
}

#[test]
fn under_a_wrong_key_of_the_right_version_nothing_is_written() {
    let bench = filled();
    let other = KeyRing::new();
    other.insert(DekVersion(1), SecretKey::generate().unwrap());
    let rolling = Rolling {
        age_ms: 0,
        ..ROLLING
    };
    let mut stats = CleanerStats::default();
    let error = bench
        .work(&other, &|_| true)
        .run_all(rolling, &mut stats)
        .unwrap_err();
    assert!(
        matches!(error, CleanError::Seal(SealError::NotAuthentic { .. })),
        "{error}"
    );
    assert_eq!(stats.segments, 0);
    assert_eq!(bench.log.quarantined().len(), 1, "as a reader would");
}

#[test]
fn a_stop_ends_the_work_between_two_batches() {
    let mut bench = filled();
    let before = bench.batches();
    let left = std::cell::Cell::new(10);
    let outcome = bench
        .work(&bench.ring, &|_| {
            left.set(left.get() - 1);
            left.get() > 0
        })
        .run_all(ROLLING, &mut CleanerStats::default());
    assert!(matches!(outcome, Err(CleanError::Stopped)));
    assert_eq!(bench.batches(), before);
    bench.clean();
    bench.check();
}
