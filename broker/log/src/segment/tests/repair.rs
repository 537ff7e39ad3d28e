//! Damaged segments, replaced by what another log of the same partition holds.

use super::*;
use crate::segment::{Cleaned, Repair, RepairScope, Rewritten};

const SIZE: u64 = 4096;

/// Another replica of [`filled`]'s log, cut into files elsewhere.
fn replica(bench: &Bench, batches: i64) -> PartitionLog {
    let log = PartitionLog::empty(
        PartitionPlace {
            dir: bench.dir.path().join("replica"),
            ..bench.place()
        },
        Offset(0),
        Offset(0),
        Arc::new(bench.fs.clone()),
        Arc::clone(&bench.keys),
    );
    let rolling = Rolling {
        bytes: 10_000,
        age_ms: i64::MAX,
    };
    for n in 0..batches {
        let (meta, payload) = batch(n * 2, 2, 1000);
        log.append(meta, payload, rolling, 1000).unwrap();
    }
    log
}

/// Flips a byte in the middle of the segment that begins at `base`, and has somebody meet it.
fn break_segment(bench: &Bench, log: &PartitionLog, base: i64) -> std::path::PathBuf {
    let path = bench.dir.path().join(format!("p/{base:020}.seg"));
    damage(&path, fs::metadata(&path).unwrap().len() / 2);
    assert!(read_all(log).is_err());
    let quarantined = log.quarantined();
    assert!(quarantined.iter().any(|one| one.base == Offset(base)));
    path
}

fn feed(repair: &mut Repair<'_>, from: &PartitionLog) {
    while let Some((position, _)) = repair.wanted() {
        for (meta, payload) in from.read(position, 2500).unwrap() {
            let Some((position, to)) = repair.wanted() else {
                return;
            };
            if meta.base_offset > position {
                repair.skip(meta.base_offset.min(to)).unwrap();
            }
            if meta.base_offset >= to {
                return;
            }
            repair.put(&meta, &payload, None).unwrap();
        }
    }
}

fn expected(batches: i64) -> Vec<(FrameMeta, Bytes)> {
    (0..batches).map(|n| batch(n * 2, 2, 1000)).collect()
}

fn second_base(log: &PartitionLog) -> i64 {
    log.state().segments[1].base.0
}

#[test]
fn a_damaged_segment_is_replaced_and_its_file_kept_until_a_manifest_says_so() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 20), replica(&bench, 20));
    log.sync(ROLLING, 0).unwrap();
    let base = second_base(&log);
    let broken = break_segment(&bench, &log, base);
    let before = log.state();
    let aside = format!("{base:020}.seg.quarantined");
    assert!(bench.files().contains(&aside) && !broken.exists());

    let mut repair = log
        .repair(RepairScope::Segment(Offset(base)), SIZE)
        .unwrap();
    assert_eq!((repair.damaged(), repair.wanted().unwrap().0.0), (1, base));
    assert!(
        log.repair(RepairScope::Segment(Offset(base)), SIZE)
            .is_none(),
        "one at a time"
    );
    feed(&mut repair, &other);
    assert_eq!(
        repair.commit(Cleaned::default()).unwrap(),
        Rewritten::Replaced
    );
    assert!(log.quarantined().is_empty());
    assert_eq!(read_all(&log).unwrap(), expected(20));
    assert!(
        bench.files().contains(&aside),
        "the manifest lists it as yet"
    );
    append(&log, &batch(40, 2, 1000));
    log.sync(ROLLING, 0).unwrap();
    let after = log.state();
    assert_eq!(after.cleaned, before.cleaned);
    drop(log);

    // A crash before the new manifest: the damage is as it was, and can be repaired again.
    let files = bench.files();
    let old = bench.open(&before);
    assert_eq!(old.quarantined().len(), 1);
    assert!(bench.files().len() < files.len(), "{:?}", bench.files());
    let mut repair = old
        .repair(RepairScope::Segment(Offset(base)), SIZE)
        .unwrap();
    feed(&mut repair, &other);
    repair.commit(Cleaned::default()).unwrap();
    append(&old, &batch(40, 2, 1000));
    old.sync(ROLLING, 0).unwrap();
    let after = old.state();
    old.saved(&after);
    assert!(!bench.files().contains(&aside), "{:?}", bench.files());
    drop(old);

    // And after it.
    let new = bench.open(&after);
    assert_eq!(read_all(&new).unwrap(), expected(21));
    assert_eq!(bench.files().len(), after.segments.len());
}

#[test]
fn only_what_continues_is_taken_and_half_a_repair_changes_nothing() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 20), replica(&bench, 20));
    assert!(
        log.repair(RepairScope::Segment(Offset(0)), SIZE).is_none()
            && log.repair(RepairScope::FromStart, SIZE).is_none(),
        "all is well"
    );
    let base = second_base(&log);
    break_segment(&bench, &log, base);
    let files = bench.files();
    {
        let mut repair = log
            .repair(RepairScope::Segment(Offset(base)), SIZE)
            .unwrap();
        let (from, to) = repair.wanted().unwrap();
        for at in [from.0 - 2, from.0 + 2, to.0, to.0 + 2, -2] {
            let (meta, payload) = batch(at, 2, 1000);
            let error = repair.put(&meta, &payload, None).unwrap_err();
            assert!(error.to_string().contains("does not continue"), "{error}");
        }
        let (meta, payload) = batch(from.0, to.0 - from.0 + 1, 1000);
        assert!(repair.put(&meta, &payload, None).is_err(), "beyond the end");
        let (meta, _) = batch(from.0, 2, 1000);
        assert!(repair.put(&meta, &[1, 2, 3], None).is_err(), "not sealed");
        assert!(repair.skip(from).is_err() && repair.skip(Offset(to.0 + 1)).is_err());
        let (meta, payload) = batch(from.0, 2, 1000);
        repair.put(&meta, &payload, None).unwrap();
        let error = repair.commit(Cleaned::default()).unwrap_err();
        assert!(error.to_string().contains("has only come to"), "{error}");
    }
    assert_eq!(bench.files(), files);
    assert_eq!(log.quarantined().len(), 1);
    let mut repair = log
        .repair(RepairScope::Segment(Offset(base)), SIZE)
        .unwrap();
    feed(&mut repair, &other);
    // What is replaced has expired meanwhile.
    log.advance_start(log.end_offset());
    assert_eq!(
        repair.commit(Cleaned::default()).unwrap(),
        Rewritten::Overtaken
    );
    assert!(log.quarantined().is_empty() && bench.files().len() <= 1);
}

#[test]
fn a_full_disk_ends_a_repair_and_leaves_the_damage_reported() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 20), replica(&bench, 20));
    let base = second_base(&log);
    break_segment(&bench, &log, base);
    bench.fs.set_space(Some(1500));
    let mut repair = log
        .repair(RepairScope::Segment(Offset(base)), SIZE)
        .unwrap();
    let (from, _) = repair.wanted().unwrap();
    let found = other.read(from, 3000).unwrap();
    let outcome = found
        .iter()
        .try_for_each(|(meta, payload)| repair.put(meta, payload, None));
    assert!(outcome.unwrap_err().is_full());
    drop(repair);
    bench.fs.set_space(None);
    assert_eq!(log.quarantined().len(), 1);
    let mut repair = log
        .repair(RepairScope::Segment(Offset(base)), SIZE)
        .unwrap();
    feed(&mut repair, &other);
    repair.commit(Cleaned::default()).unwrap();
    assert_eq!(read_all(&log).unwrap(), expected(20));
}

#[test]
fn the_segment_that_is_appended_to_is_repaired_while_appends_go_on() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 6), replica(&bench, 20));
    let base = log.state().segments.last().unwrap().base.0;
    break_segment(&bench, &log, base);
    let mut repair = log
        .repair(RepairScope::Segment(Offset(base)), SIZE)
        .unwrap();
    append(&log, &batch(12, 2, 1000));
    feed(&mut repair, &other);
    append(&log, &batch(14, 2, 1000));
    assert_eq!(
        repair.commit(Cleaned::default()).unwrap(),
        Rewritten::Replaced
    );
    append(&log, &batch(16, 2, 1000));
    assert_eq!(read_all(&log).unwrap(), expected(9));
    log.sync(ROLLING, 0).unwrap();
    assert_eq!(read_all(&bench.open(&log.state())).unwrap(), expected(9));
}

#[test]
fn records_that_have_expired_are_not_wanted() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 20), replica(&bench, 20));
    let base = second_base(&log);
    break_segment(&bench, &log, base);
    // Within the batch of `base + 2`.
    log.advance_start(Offset(base + 3));
    let mut repair = log
        .repair(RepairScope::Segment(Offset(base)), SIZE)
        .unwrap();
    assert_eq!(repair.wanted().unwrap().0, Offset(base + 3));
    feed(&mut repair, &other);
    repair.commit(Cleaned::default()).unwrap();
    let wanted: Vec<_> = expected(20)
        .into_iter()
        .filter(|(meta, _)| meta.last_offset.0 >= base + 3)
        .collect();
    assert_eq!(read_all(&log).unwrap(), wanted);
}

#[test]
fn a_compacted_log_is_replaced_from_its_start_on() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 30), replica(&bench, 30));
    // Both were compacted, each in its own way and to its own offset.
    let compact = |log: &PartitionLog, until: i64, keep: fn(i64) -> bool| {
        for segment in log.closed_segments() {
            if segment.end.0 > until {
                break;
            }
            let mut rewrite = log.rewrite(std::slice::from_ref(&segment)).unwrap();
            loop {
                let found = rewrite.next(1 << 20).unwrap();
                if found.is_empty() {
                    break;
                }
                for (meta, payload) in found.iter().filter(|(meta, _)| keep(meta.base_offset.0)) {
                    rewrite.put(meta, payload, None).unwrap();
                }
            }
            rewrite.commit(Cleaned::default()).unwrap();
        }
        log.set_cleaned(Cleaned {
            until: Offset(until),
            tombstones: Offset(until / 2),
        });
    };
    let kept = |base: i64| base % 10 == 0 || base >= 34;
    compact(&other, 36, kept);
    compact(&log, 24, |base| base % 4 == 0);
    let third = log.state().segments[2].clone();
    let name = format!("p/{:020}.{}.seg", third.base.0, third.generation);
    let path = bench.dir.path().join(name);
    damage(&path, fs::metadata(&path).unwrap().len() / 2);
    assert!(read_all(&log).is_err());

    let mut repair = log.repair(RepairScope::FromStart, SIZE).unwrap();
    let (from, to) = repair.wanted().unwrap();
    assert_eq!(from, Offset(0), "from its start");
    assert!(
        to.0 >= 24 && to < log.end_offset(),
        "to where it was compacted: {to}"
    );
    feed(&mut repair, &other);
    repair.commit(other.cleaned()).unwrap();
    let wanted: Vec<_> = expected(30)
        .into_iter()
        .filter(|(meta, _)| meta.base_offset >= to || kept(meta.base_offset.0))
        .collect();
    assert_eq!(read_all(&log).unwrap(), wanted);
    let cleaned = log.cleaned();
    assert_eq!(
        (cleaned.until, cleaned.tombstones),
        (to.min(Offset(36)), Offset(18))
    );
    log.sync(ROLLING, 0).unwrap();
    assert_eq!(read_all(&bench.open(&log.state())).unwrap(), wanted);
}

/// After a start the last segment is appended to again, also when it was closed and compacted before.
#[test]
fn what_is_appended_while_everything_is_replaced_stays() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 20), replica(&bench, 20));
    log.set_cleaned(Cleaned {
        until: log.end_offset(),
        tombstones: Offset(0),
    });
    log.sync(ROLLING, 0).unwrap();
    let state = log.state();
    drop(log);
    let log = bench.open(&state);
    break_segment(&bench, &log, second_base(&log));
    let mut repair = log.repair(RepairScope::FromStart, SIZE).unwrap();
    assert_eq!(repair.wanted(), Some((Offset(0), Offset(40))), "all of it");
    append(&log, &batch(40, 2, 1000));
    feed(&mut repair, &other);
    assert_eq!(
        repair.commit(Cleaned::default()).unwrap(),
        Rewritten::Replaced
    );
    append(&log, &batch(42, 2, 1000));
    assert_eq!(read_all(&log).unwrap(), expected(22));
    log.sync(ROLLING, 0).unwrap();
    let state = log.state();
    log.saved(&state);
    drop(log);
    assert_eq!(read_all(&bench.open(&state)).unwrap(), expected(22));
}

#[test]
fn a_large_replacement_is_cut_into_segments() {
    let bench = Bench::new();
    let (log, other) = (filled(&bench, 60), replica(&bench, 60));
    log.set_cleaned(Cleaned {
        until: log.state().segments.last().unwrap().base,
        tombstones: Offset(0),
    });
    break_segment(&bench, &log, second_base(&log));
    let mut repair = log.repair(RepairScope::FromStart, SIZE).unwrap();
    feed(&mut repair, &other);
    repair.commit(Cleaned::default()).unwrap();
    let state = log.state();
    assert!(state.segments.len() > 5, "{}", state.segments.len());
    for pair in state.segments.windows(2) {
        assert_eq!(pair[0].end, pair[1].base);
        assert!(pair[0].length < SIZE + 2000);
    }
    assert_eq!(
        state.cleaned.until,
        Offset(0),
        "the other was not compacted"
    );
    assert_eq!(read_all(&log).unwrap(), expected(60));
}

#[test]
fn a_scrub_finds_damage_anywhere_and_nothing_in_what_is_whole() {
    let bench = Bench::new();
    let log = bench.open(&PartitionState::default());
    for (n, size) in [50, 3000, 90_000, 40, 1000, 1000, 1000, 5000, 20]
        .into_iter()
        .enumerate()
    {
        append(&log, &batch(n as i64, 1, size));
    }
    log.sync(ROLLING, 0).unwrap();
    let scrub = |log: &PartitionLog, max: usize| {
        for segment in log.closed_segments() {
            let mut at = 0;
            while let Some(next) = log.scrub(&segment, at, max)? {
                assert!(next > at, "it goes on");
                at = next;
            }
        }
        Ok::<_, LogError>(())
    };
    for max in [0, 1, 200, 5000, 1 << 20] {
        scrub(&log, max).unwrap();
    }
    let closed = log.closed_segments();
    let state = log.state();
    drop(log);
    for segment in &closed {
        let path = bench
            .dir
            .path()
            .join(format!("p/{:020}.seg", segment.base.0));
        for part in 0..8 {
            let good = fs::read(&path).unwrap();
            let at = (good.len() - 1) * part / 7;
            damage(&path, at as u64);
            let log = bench.open(&state);
            let error = scrub(&log, 5000).unwrap_err();
            assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
            assert_eq!(
                log.quarantined().len(),
                1,
                "byte {at} of {}",
                path.display()
            );
            scrub(&log, 5000).unwrap();
            drop(log);
            let aside = format!("{}.quarantined", path.display());
            fs::remove_file(aside).unwrap();
            fs::write(&path, good).unwrap();
        }
    }
}
