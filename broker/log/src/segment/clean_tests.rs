//! Files that move to another KEK.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, sync::Arc};

use bytes::Bytes;
use palisade_seal::{DirectoryProvider, FileKeys};

use crate::{
    LeaderEpoch, Offset, PartitionIndex, TopicId,
    segment::{FrameMeta, PartitionLog, PartitionPlace, PartitionState, Rolling},
    testing::FaultFs,
};

const ROLLING: Rolling = Rolling {
    bytes: 2048,
    age_ms: i64::MAX,
};

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
        let place = PartitionPlace {
            dir: dir.path().join("p"),
            topic: TopicId::random(),
            partition: PartitionIndex(0),
        };
        let open = |state: &PartitionState, provider: Arc<DirectoryProvider>| {
            let keys = Arc::new(FileKeys::new(provider));
            PartitionLog::open(place.clone(), state, Arc::new(FaultFs::new()), keys).unwrap()
        };
        let log = open(&PartitionState::default(), Arc::clone(&provider));
        (0..30).for_each(|n| append(&log, n));
        assert_eq!(log.rewrap().unwrap(), (0, 0));
        let before = read_all(&log);

        let other = tempfile::tempdir().unwrap();
        let new = DirectoryProvider::create(other.path()).unwrap().ids()[0].clone();
        fs::copy(
            other.path().join(format!("{new}.key")),
            kek.join(format!("{name}.key")),
        )
        .unwrap();
        fs::write(kek.join("current"), &name).unwrap();
        provider.reload().unwrap();
        let (left, bytes) = log.rewrap().unwrap();
        assert_eq!((left > 0, bytes > 0), (copied, copied));
        assert_eq!(read_all(&log), before);
        append(&log, 30);
        log.sync(ROLLING, 0).unwrap();
        let state = log.state();
        log.saved(&state);
        assert_eq!(log.rewrap().unwrap(), (0, 0));
        drop(log);

        fs::remove_file(kek.join(format!("{old}.key"))).unwrap();
        let log = open(&state, Arc::new(DirectoryProvider::load(&kek).unwrap()));
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
    let place = PartitionPlace {
        dir: dir.path().join("p"),
        topic: TopicId::random(),
        partition: PartitionIndex(0),
    };
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
