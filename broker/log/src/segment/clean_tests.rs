//! Files that move to another KEK.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use bytes::Bytes;
use palisade_seal::{DirectoryProvider, FileKeys, KekId};

use crate::{
    LeaderEpoch, LogError, Offset, PartitionIndex, TopicId,
    segment::{FrameMeta, PartitionLog, PartitionPlace, PartitionState, Rolling},
    testing::FaultFs,
};

const ROLLING: Rolling = Rolling {
    bytes: 2048,
    age_ms: i64::MAX,
};

fn place_in(dir: &Path) -> PartitionPlace {
    PartitionPlace {
        dir: dir.join("p"),
        topic: TopicId::random(),
        partition: PartitionIndex(0),
    }
}

/// Adds a key, under its own name or another, and makes it the current one.
fn rotate(kek: &Path, provider: &DirectoryProvider, name: Option<&str>) -> KekId {
    let other = tempfile::tempdir().unwrap();
    let made = DirectoryProvider::create(other.path()).unwrap().ids()[0].clone();
    let name = name.unwrap_or(made.as_str());
    let from = other.path().join(format!("{made}.key"));
    fs::copy(from, kek.join(format!("{name}.key"))).unwrap();
    fs::write(kek.join("current"), name).unwrap();
    provider.reload().unwrap();
    KekId::new(name).unwrap()
}

fn append(log: &PartitionLog, base: i64) {
    let meta = FrameMeta {
        base_offset: Offset(base),
        last_offset: Offset(base),
        leader_epoch: LeaderEpoch(1),
        max_timestamp: base,
        record_count: 1,
    };
    let payload = Bytes::from(vec![base as u8; 300]);
    log.append(meta, payload, ROLLING, 0).unwrap();
}

fn read_all(log: &PartitionLog) -> Vec<(FrameMeta, Bytes)> {
    let mut all = Vec::new();
    while all.len() < usize::try_from(log.end_offset().0).unwrap() {
        all.extend(log.read(Offset(all.len() as i64), 1000).unwrap());
    }
    all
}

/// Files by the KEK that they are under, and how many nobody has looked at.
fn files_under(log: &PartitionLog) -> (Vec<(KekId, u64)>, u64) {
    let mut under = BTreeMap::new();
    let unknown = log.count_keks(&mut under);
    let files = under.into_iter().map(|(kek, under)| (kek, under.files));
    (files.collect(), unknown)
}

#[test]
fn a_segment_that_no_key_opens_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Arc::new(DirectoryProvider::create(dir.path().join("kek")).unwrap());
    let kek = provider.ids()[0].clone();
    let keys = Arc::new(FileKeys::new(provider));
    let place = place_in(dir.path());
    let open = |state: &PartitionState| {
        let (place, keys) = (place.clone(), Arc::clone(&keys));
        PartitionLog::open(place, state, Arc::new(FaultFs::new()), keys).unwrap()
    };
    let log = open(&PartitionState::default());
    (0..30).for_each(|n| append(&log, n));
    log.sync(ROLLING, 0).unwrap();
    let state = log.state();
    drop(log);
    let file = place.dir.join(format!("{:020}.seg", 0));
    let mut bytes = fs::read(&file).unwrap();
    bytes[20] ^= 1;
    fs::write(&file, bytes).unwrap();
    let log = open(&state);
    // Found now, as a reader would, and in nobody's way from then on.
    assert!(matches!(log.rewrap(), Err(LogError::Corrupt { .. })));
    assert_eq!(log.quarantined().len(), 1);
    assert_eq!(log.rewrap().unwrap(), (0, 0));
    let others = state.segments.len() as u64 - 1;
    assert_eq!(files_under(&log), (vec![(kek, others)], 0));
}

#[test]
fn an_old_kek_can_be_removed_once_everything_is_wrapped_anew() {
    for (name, copied) in [("kek-2", false), ("a-much-longer-name", true)] {
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        let provider = Arc::new(DirectoryProvider::create(&kek).unwrap());
        let old = provider.ids()[0].clone();
        // A name as long as the generated ones, or not.
        let name = if copied {
            name.to_owned()
        } else {
            format!("{name:x<width$}", width = old.as_str().len())
        };
        let place = place_in(dir.path());
        let open = |state: &PartitionState, provider: Arc<DirectoryProvider>| {
            let keys = Arc::new(FileKeys::new(provider));
            PartitionLog::open(place.clone(), state, Arc::new(FaultFs::new()), keys).unwrap()
        };
        let log = open(&PartitionState::default(), Arc::clone(&provider));
        (0..30).for_each(|n| append(&log, n));
        assert_eq!(log.rewrap().unwrap(), (0, 0));
        let files = log.state().segments.len() as u64;
        assert_eq!(files_under(&log), (vec![(old.clone(), files)], 0));
        let before = read_all(&log);

        let name = rotate(&kek, &provider, Some(&name));
        let (left, bytes) = log.rewrap().unwrap();
        assert_eq!((left > 0, bytes > 0), (copied, copied));
        let under = files_under(&log);
        match copied {
            false => assert_eq!(under, (vec![(name.clone(), files)], 0)),
            // The old files are there until a manifest is without them.
            true => assert!(under.0.contains(&(old.clone(), files)) && under.0.len() == 2),
        }
        assert_eq!(read_all(&log), before);
        append(&log, 30);
        log.sync(ROLLING, 0).unwrap();
        let state = log.state();
        log.saved(&state);
        assert_eq!(log.rewrap().unwrap(), (0, 0));
        let files = state.segments.len() as u64;
        assert_eq!(files_under(&log), (vec![(name.clone(), files)], 0));
        drop(log);

        fs::remove_file(kek.join(format!("{old}.key"))).unwrap();
        let log = open(&state, Arc::new(DirectoryProvider::load(&kek).unwrap()));
        assert_eq!(files_under(&log), (vec![], files), "nobody has looked yet");
        assert_eq!(log.rewrap().unwrap(), (0, 0));
        assert_eq!(files_under(&log), (vec![(name, files)], 0));
        assert_eq!(read_all(&log).len(), 31);
        assert_eq!(read_all(&log)[..30], before);
        append(&log, 31);
        assert!(log.quarantined().is_empty());
    }
}

#[test]
fn only_one_rewriting_of_a_log_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let provider = DirectoryProvider::create(dir.path().join("kek")).unwrap();
    let place = place_in(dir.path());
    let keys = Arc::new(FileKeys::new(Arc::new(provider)));
    let fs = Arc::new(FaultFs::new());
    let log = PartitionLog::open(place, &PartitionState::default(), fs, keys).unwrap();
    (0..30).for_each(|n| append(&log, n));
    let before = read_all(&log);
    let closed = log.closed_segments();
    let mut first = log.rewrite(&closed[..1]).unwrap();
    // It would write to the file that the first one makes, and remove it when it finds that it was overtaken.
    assert!(log.rewrite(&closed[..1]).is_none());
    loop {
        let batches = first.next(1 << 20).unwrap();
        if batches.is_empty() {
            break;
        }
        for (meta, payload) in batches {
            first.put(&meta, &payload, None).unwrap();
        }
    }
    first.commit(super::Cleaned::default()).unwrap();
    assert!(log.rewrite(&log.closed_segments()[..1]).is_some());
    assert_eq!(read_all(&log), before);
    assert!(log.quarantined().is_empty());
}

#[test]
fn a_segment_that_was_begun_before_the_kek_changed_takes_its_place_under_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let kek = dir.path().join("kek");
    let provider = Arc::new(DirectoryProvider::create(&kek).unwrap());
    let old = provider.ids()[0].clone();
    let place = place_in(dir.path());
    let keys = Arc::new(FileKeys::new(provider.clone()));
    let fs = Arc::new(FaultFs::new());
    let log = PartitionLog::open(place, &PartitionState::default(), fs, keys).unwrap();
    (0..30).for_each(|n| append(&log, n));
    let before = read_all(&log);
    let first = log.closed_segments().remove(0);
    let begin = || {
        let mut rewrite = log.rewrite(std::slice::from_ref(&first)).unwrap();
        for (meta, payload) in rewrite.next(1 << 20).unwrap() {
            rewrite.put(&meta, &payload, None).unwrap();
        }
        rewrite
    };
    for (name, fits) in [("a-longer-name-than-the-old-one", false), ("x", true)] {
        let rewrite = begin();
        let name = match fits {
            true => format!("{name:x<width$}", width = old.as_str().len()),
            false => name.to_owned(),
        };
        let key = std::fs::read(kek.join(format!("{old}.key"))).unwrap();
        // The bytes may be the same: a key is known by its name.
        std::fs::write(kek.join(format!("{name}.key")), key).unwrap();
        std::fs::write(kek.join("current"), &name).unwrap();
        provider.reload().unwrap();
        let outcome = rewrite.commit(super::Cleaned::default()).unwrap();
        let moved = log.state().segments[0].generation == 1;
        assert_eq!((outcome == super::Rewritten::Replaced, moved), (fits, fits));
        if fits {
            let (under, unknown) = files_under(&log);
            let new = KekId::new(name).unwrap();
            assert!(under.contains(&(new, 1)) && unknown == 0, "{under:?}");
        } else {
            std::fs::write(kek.join("current"), old.as_str()).unwrap();
            provider.reload().unwrap();
        }
        assert_eq!(read_all(&log), before);
    }
}

#[test]
fn a_header_whose_sync_has_failed_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let kek = dir.path().join("kek");
    let provider = Arc::new(DirectoryProvider::create(&kek).unwrap());
    let old = provider.ids()[0].clone();
    let place = place_in(dir.path());
    let disk = FaultFs::new();
    let open = |state: &PartitionState, provider: Arc<DirectoryProvider>| {
        let keys = Arc::new(FileKeys::new(provider));
        PartitionLog::open(place.clone(), state, Arc::new(disk.clone()), keys).unwrap()
    };
    let log = open(&PartitionState::default(), Arc::clone(&provider));
    (0..3).for_each(|n| append(&log, n));
    log.sync(ROLLING, 0).unwrap();
    let (state, before) = (log.state(), read_all(&log));

    let new = rotate(&kek, &provider, None);
    disk.fail_syncs(true);
    assert!(matches!(log.rewrap(), Err(LogError::Io { .. })));
    disk.fail_syncs(false);
    // It can be read, and still nobody takes the new header for one that is on the disk.
    log.close_idle();
    log.close_idle();
    assert_eq!(read_all(&log), before);
    assert!(!files_under(&log).0.iter().any(|(kek, _)| *kek == new));
    assert_eq!(log.rewrap().unwrap(), (0, 0));
    assert_eq!(files_under(&log), (vec![(new, 1)], 0));
    drop(log);
    disk.crash(|| false).unwrap();
    fs::remove_file(kek.join(format!("{old}.key"))).unwrap();
    let provider = Arc::new(DirectoryProvider::load(&kek).unwrap());
    assert_eq!(read_all(&open(&state, provider)), before);
}
