//! What comes from another replica is not believed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{cell::Cell, fs, sync::Arc};

use bytes::Bytes;
use palisade_log::{
    LeaderEpoch, Offset, PartitionIndex, TopicId,
    segment::{
        Cleaned, FrameMeta, PartitionLog, PartitionPlace, PartitionState, RepairScope, Rolling,
    },
    testing::FaultFs,
};
use palisade_seal::{DekVersion, DirectoryProvider, FileKeys, KeyRing, SecretKey};

use super::{Answer, Mend, MendError, Question};
use crate::{
    records::builder::{TestBatch, TestRecord},
    sealing::batch_aad,
    snapshot::{push_batch, push_gap, push_hole},
};

const ROLLING: Rolling = Rolling {
    bytes: 1000,
    age_ms: i64::MAX,
};

struct Bench {
    dir: tempfile::TempDir,
    topic: TopicId,
    keys: KeyRing,
    log: PartitionLog,
    batches: Vec<(FrameMeta, Bytes)>,
}

impl Bench {
    /// A log of 20 batches of two records, of which the second segment is damaged.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let topic = TopicId::random();
        let keys = KeyRing::new();
        keys.insert(DekVersion(1), SecretKey::generate().unwrap());
        let provider = DirectoryProvider::create(dir.path().join("kek")).unwrap();
        let place = PartitionPlace {
            dir: dir.path().join("p"),
            topic,
            partition: PartitionIndex(0),
        };
        let log = PartitionLog::open(
            place,
            &PartitionState::default(),
            Arc::new(FaultFs::new()),
            Arc::new(FileKeys::new(Arc::new(provider))),
        )
        .unwrap();
        let batches: Vec<_> = (0..20).map(|n| sealed(&keys, topic, n * 2, 2)).collect();
        for (meta, payload) in &batches {
            log.append(*meta, payload.clone(), ROLLING, 0).unwrap();
        }
        let base = log.state().segments[1].base;
        let file = dir.path().join(format!("p/{:020}.seg", base.0));
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
        let closed = log.closed_segments();
        assert!(log.scrub(&closed[1], 0, 1 << 20).is_err());
        Self {
            dir,
            topic,
            keys,
            log,
            batches,
        }
    }

    fn mend(&self, ask: &dyn Fn(Question) -> Result<Answer, String>) -> Result<u64, MendError> {
        let mend = Mend {
            key: (self.topic, PartitionIndex(0)),
            created: 7,
            log: &self.log,
            keys: &self.keys,
            segment_bytes: 1000,
            ask,
        };
        let before = fs::read_dir(self.dir.path().join("p")).unwrap().count();
        let outcome = mend.run();
        if outcome.is_err() {
            let after = fs::read_dir(self.dir.path().join("p")).unwrap().count();
            assert_eq!(after, before, "nothing is left of it");
            assert_eq!(self.log.quarantined().len(), 1, "and nothing is served");
        }
        outcome.map(|mended| mended.map_or(0, |mended| mended.segments))
    }

    /// What an honest replica answers: one batch at a time.
    fn honest(&self, question: Question) -> Result<Answer, String> {
        assert_eq!((question.key.0, question.created), (self.topic, 7));
        let (meta, payload) = self
            .batches
            .iter()
            .find(|(meta, _)| meta.last_offset >= question.from)
            .ok_or("no more")?;
        Ok(answer(Cleaned::default(), |out| {
            push_batch(out, 0, meta, payload);
        }))
    }
}

fn sealed(keys: &KeyRing, topic: TopicId, base: i64, count: u32) -> (FrameMeta, Bytes) {
    let records = (0..count).map(|n| TestRecord::new(base, "key", &format!("value {n}")));
    let mut batch = TestBatch::new(records.collect()).build();
    batch[..8].copy_from_slice(&base.to_be_bytes());
    let meta = FrameMeta {
        base_offset: Offset(base),
        last_offset: Offset(base + i64::from(count) - 1),
        leader_epoch: LeaderEpoch(1),
        max_timestamp: base,
        record_count: count,
    };
    let aad = batch_aad(topic, PartitionIndex(0), Offset(base), LeaderEpoch(1));
    let sealer = keys.sealer().unwrap().unwrap();
    (meta, Bytes::from(sealer.seal(&aad, &batch).unwrap()))
}

fn answer(cleaned: Cleaned, fill: impl FnOnce(&mut Vec<u8>)) -> Answer {
    let mut entries = Vec::new();
    fill(&mut entries);
    Answer {
        cleaned,
        entries: Bytes::from(entries),
    }
}

#[test]
fn a_segment_is_replaced_by_what_another_replica_has() {
    let bench = Bench::new();
    assert_eq!(bench.mend(&|question| bench.honest(question)).unwrap(), 1);
    assert!(bench.log.quarantined().is_empty());
    let mut found = Vec::new();
    while found.len() < 20 {
        let from = Offset(found.len() as i64 * 2);
        found.extend(bench.log.read(from, 1 << 20).unwrap());
    }
    assert_eq!(found, bench.batches);
    assert_eq!(bench.mend(&|_| panic!("nothing is damaged")).unwrap(), 0);
}

#[test]
fn what_is_not_sealed_for_its_place_is_refused() {
    let bench = Bench::new();
    let wanted = bench.log.quarantined()[0].base;
    let at = bench
        .batches
        .iter()
        .position(|(meta, _)| meta.base_offset == wanted)
        .unwrap();
    let (meta, payload) = bench.batches[at].clone();
    let sends = |meta: FrameMeta, payload: Bytes| {
        bench
            .mend(&move |_| {
                Ok(answer(Cleaned::default(), |out| {
                    push_batch(out, 0, &meta, &payload);
                }))
            })
            .unwrap_err()
    };
    for byte in [0, payload.len() / 2, payload.len() - 1] {
        let mut damaged = payload.to_vec();
        damaged[byte] ^= 1;
        let error = sends(meta, Bytes::from(damaged));
        assert!(matches!(error, MendError::Sealed { .. }), "{error}");
    }
    let error = sends(meta, bench.batches[at + 1].1.clone());
    assert!(
        matches!(error, MendError::Sealed { .. }),
        "of another place: {error}"
    );
    for lie in [
        FrameMeta {
            last_offset: Offset(meta.last_offset.0 + 1),
            ..meta
        },
        FrameMeta {
            max_timestamp: meta.max_timestamp + 1,
            ..meta
        },
        FrameMeta {
            record_count: 1,
            ..meta
        },
    ] {
        let error = sends(lie, payload.clone());
        assert!(matches!(error, MendError::Differs(_)), "{error}");
    }
    let other = bench.batches[at + 1].clone();
    let error = sends(other.0, other.1);
    assert!(matches!(error, MendError::Log(_)), "a gap: {error}");
}

#[test]
fn a_source_that_has_nothing_or_talks_nonsense_is_left() {
    let bench = Bench::new();
    let error = bench.mend(&|_| Err("damaged here too".to_owned()));
    assert_eq!(error.unwrap_err().to_string(), "damaged here too");
    let error = bench.mend(&|_| Ok(answer(Cleaned::default(), |_| {})));
    assert_eq!(error.unwrap_err().to_string(), "nothing came");
    let error = bench.mend(&|_| Ok(answer(Cleaned::default(), |out| out.push(9))));
    assert!(matches!(error, Err(MendError::Malformed(_))));
    let gap = |question: Question| {
        Ok(answer(Cleaned::default(), |out| {
            push_gap(out, 0, question.to)
        }))
    };
    assert!(matches!(bench.mend(&gap), Err(MendError::Changed)));
    let beyond = |question: Question| {
        let to = Offset(question.to.0 + 1);
        Ok(answer(Cleaned::default(), |out| push_hole(out, 0, to)))
    };
    assert!(matches!(bench.mend(&beyond), Err(MendError::Log(_))));
}

#[test]
fn where_compaction_was_at_work_everything_comes_from_the_start() {
    let bench = Bench::new();
    let damaged = bench.log.quarantined()[0].clone();
    let cleaned = |tombstones| Cleaned {
        until: Offset(30),
        tombstones: Offset(tombstones),
    };
    let first = Cell::new(None);
    let ask = |tombstones: fn(i64) -> i64| {
        let (bench, first) = (&bench, &first);
        move |question: Question| {
            first.set(first.get().or(Some(question.from)).min(Some(question.from)));
            // Every second batch was compacted away.
            Ok(answer(cleaned(tombstones(question.from.0)), |out| {
                let next = Offset((question.from.0 + 2).min(question.to.0));
                match question.from.0 % 4 {
                    0 => {
                        let (meta, payload) = &bench.batches[question.from.0 as usize / 2];
                        push_batch(out, 0, meta, payload);
                    }
                    _ => push_hole(out, 0, next),
                }
            }))
        }
    };
    let error = bench.mend(&ask(|from| if from < 4 { 0 } else { 10 }));
    assert!(matches!(error, Err(MendError::Changed)), "a tombstone went");
    assert!(bench.log.repair(RepairScope::FromStart, 1000).is_some());
    assert_eq!(bench.mend(&ask(|_| 6)).unwrap(), 1);
    assert_eq!(first.get(), Some(Offset(0)));
    assert_eq!(
        bench.log.cleaned(),
        Cleaned {
            until: damaged.end.min(Offset(30)),
            tombstones: Offset(6)
        }
    );
    let (mut at, mut left) = (Offset(0), Vec::new());
    while at < damaged.end {
        let meta = bench.log.read(at, 1).unwrap()[0].0;
        at = Offset(meta.last_offset.0 + 1);
        left.push(meta.base_offset.0);
    }
    left.retain(|base| *base < damaged.end.0);
    let wanted: Vec<_> = (0..damaged.end.0).step_by(4).collect();
    assert_eq!(left, wanted);
}

/// What a compaction has taken out here, the source may still have: the range begins where the log does, not where its first file does.
#[test]
fn what_was_compacted_away_before_the_first_file_comes_as_well() {
    let bench = Bench::new();
    let first = bench.log.closed_segments()[0].clone();
    assert_eq!(first.base, Offset(0));
    let mut rewrite = bench.log.rewrite(std::slice::from_ref(&first)).unwrap();
    while !rewrite.next(1000).unwrap().is_empty() {}
    let cleaned = Cleaned {
        until: first.end,
        tombstones: Offset(0),
    };
    rewrite.commit(cleaned).unwrap();
    assert!(bench.log.state().segments[0].base > Offset(0));
    let end = bench.log.quarantined()[0].end;
    bench.mend(&|question| bench.honest(question)).unwrap();
    assert_eq!(bench.log.cleaned().until, Offset(0));
    let (mut at, mut found) = (Offset(0), Vec::new());
    while at < end {
        let meta = bench.log.read(at, 1).unwrap()[0].0;
        at = Offset(meta.last_offset.0 + 1);
        found.push(meta.base_offset.0);
    }
    let wanted: Vec<_> = (0..end.0).step_by(2).collect();
    assert_eq!(found, wanted);
}
