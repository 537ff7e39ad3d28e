//! One partition, its key ring, and everything that was ever appended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use palisade_log::{
    LeaderEpoch, Offset, PartitionIndex, TopicId,
    segment::{FrameMeta, PartitionLog, PartitionPlace, PartitionState, Rolling},
    testing::FaultFs,
};
use palisade_seal::{DekVersion, DirectoryProvider, FileKeys, KeyProvider, KeyRing, SecretKey};

use crate::{
    catalog::Compaction,
    cleaner::{CleanError, CleanerStats, Work},
    records::{
        BatchHeader, Filter,
        builder::{TestBatch, TestRecord},
        first_record_at_or_after,
    },
    sealing::batch_aad,
};

const P: PartitionIndex = PartitionIndex(2);
pub(super) const ROLLING: Rolling = Rolling {
    bytes: 2048,
    age_ms: 1,
};

pub(super) fn put(timestamp: i64, key: &str, value: i64) -> TestRecord {
    TestRecord::new(timestamp, key, &value.to_string())
}

pub(super) fn tombstone(timestamp: i64, key: &str) -> TestRecord {
    TestRecord {
        value: None,
        ..TestRecord::new(timestamp, key, "")
    }
}

/// A record as it was appended.
#[derive(Clone, Debug)]
pub(super) struct Appended {
    pub(super) record: TestRecord,
    pub(super) at: i64,
}

/// A record as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) key: Option<Vec<u8>>,
    pub(super) has_value: bool,
    pub(super) timestamp: i64,
}

pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) fs: FaultFs,
    pub(super) files: Arc<FileKeys>,
    pub(super) topic: TopicId,
    pub(super) ring: KeyRing,
    pub(super) log: PartitionLog,
    pub(super) appended: BTreeMap<i64, Appended>,
    /// As they went to the log, for replays.
    pub(super) sealed: Vec<(FrameMeta, Bytes)>,
    producers: BTreeMap<i64, i64>,
    pub(super) saved: PartitionState,
    pub(super) start: i64,
    pub(super) now: i64,
    pub(super) compaction: Compaction,
    pub(super) key_map_bytes: usize,
    pub(super) stats: CleanerStats,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let provider: Arc<dyn KeyProvider> =
            Arc::new(DirectoryProvider::create(dir.path().join("kek")).unwrap());
        let (fs, files, topic) = (
            FaultFs::new(),
            Arc::new(FileKeys::new(provider)),
            TopicId::random(),
        );
        let ring = KeyRing::new();
        ring.insert(DekVersion(1), SecretKey::generate().unwrap());
        let state = PartitionState::default();
        let log = open(&dir, &fs, &files, topic, &state);
        Self {
            dir,
            fs,
            files,
            topic,
            ring,
            log,
            appended: BTreeMap::new(),
            sealed: Vec::new(),
            producers: BTreeMap::new(),
            saved: state,
            start: 0,
            now: 1000,
            compaction: Compaction {
                delete_retention_ms: 500,
                min_dirty_ratio: 0.0,
                min_lag_ms: 0,
                max_lag_ms: i64::MAX,
            },
            key_map_bytes: 1 << 20,
            stats: CleanerStats::default(),
        }
    }

    pub(super) fn append(&mut self, batch: &TestBatch) {
        let base = self.log.end_offset();
        let epoch = LeaderEpoch(4);
        let mut bytes = batch.build();
        bytes[..8].copy_from_slice(&base.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&epoch.0.to_be_bytes());
        let header = BatchHeader::parse(&bytes).unwrap();
        let aad = batch_aad(self.topic, P, base, epoch);
        let sealer = self.ring.sealer().unwrap().unwrap();
        let payload = Bytes::from(sealer.seal(&aad, &bytes).unwrap());
        let meta = FrameMeta {
            base_offset: base,
            last_offset: Offset(header.last_offset()),
            leader_epoch: epoch,
            max_timestamp: header.max_timestamp,
            record_count: header.record_count as u32,
        };
        for (n, record) in batch.records.iter().enumerate() {
            let appended = Appended {
                record: record.clone(),
                at: self.now,
            };
            self.appended.insert(base.0 + n as i64, appended);
        }
        if header.producer_id >= 0 {
            self.producers.insert(header.producer_id, base.0);
        }
        self.sealed.push((meta, payload.clone()));
        self.log
            .append(meta, payload, self.rolling(), self.now)
            .unwrap();
    }

    /// Segments of compacted logs are closed by age in these tests only when the cleaner looks at them.
    fn rolling(&self) -> Rolling {
        Rolling {
            age_ms: i64::MAX,
            ..ROLLING
        }
    }

    pub(super) fn try_clean(&mut self) -> Result<(), CleanError> {
        let mut stats = self.stats;
        let outcome = self.work(&self.ring, &|_| true).run_all(
            Rolling {
                age_ms: 0,
                ..ROLLING
            },
            &mut stats,
        );
        self.stats = stats;
        outcome
    }

    pub(super) fn work<'a>(&'a self, keys: &'a KeyRing, pace: &'a dyn Fn(u64) -> bool) -> Work<'a> {
        Work {
            key: (self.topic, P),
            log: &self.log,
            keys,
            compaction: Some(self.compaction),
            last_of_producers: self.producers.values().copied().map(Offset).collect(),
            now_ms: self.now,
            key_map_bytes: self.key_map_bytes,
            pace,
        }
    }

    /// The active segment too: the tests have no patience.
    pub(super) fn clean(&mut self) {
        self.try_clean().unwrap();
    }

    pub(super) fn try_save(&mut self) -> Result<(), palisade_log::LogError> {
        self.log.sync(self.rolling(), self.now)?;
        self.saved = self.log.state();
        self.log.saved(&self.saved);
        Ok(())
    }

    pub(super) fn save(&mut self) {
        self.try_save().unwrap();
    }

    /// Back to the last manifest, and what came since once more.
    pub(super) fn reopen(&mut self) {
        self.log = open(&self.dir, &self.fs, &self.files, self.topic, &self.saved);
        let end = self.log.end_offset();
        for (meta, payload) in &self.sealed {
            if meta.base_offset >= end {
                self.log
                    .append(*meta, payload.clone(), self.rolling(), self.now)
                    .unwrap();
            }
        }
        self.log.advance_start(Offset(self.start));
    }

    pub(super) fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path().join("p"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Every batch there is, opened.
    pub(super) fn batches(&self) -> Vec<(FrameMeta, Vec<u8>)> {
        self.read_from(self.log.start_offset(), 3000)
    }

    pub(super) fn read_from(&self, from: Offset, max: usize) -> Vec<(FrameMeta, Vec<u8>)> {
        let mut all = Vec::new();
        let mut from = from;
        while from < self.log.end_offset() {
            let part = self.log.read(from, max).unwrap();
            let last = part.last().expect("a reader always arrives at the end").0;
            assert!(last.last_offset >= from);
            from = Offset(last.last_offset.0 + 1);
            for (meta, payload) in part {
                let aad = batch_aad(self.topic, P, meta.base_offset, meta.leader_epoch);
                let batch = self.ring.open(&aad, &payload).unwrap();
                let header = BatchHeader::parse(&batch).unwrap();
                assert_eq!(header.crc, crc_fast::crc32_iscsi(&batch[21..]));
                assert_eq!(header.size, batch.len());
                assert_eq!(
                    (
                        header.base_offset,
                        header.last_offset(),
                        header.leader_epoch
                    ),
                    (meta.base_offset.0, meta.last_offset.0, meta.leader_epoch.0)
                );
                assert_eq!(header.record_count as u32, meta.record_count);
                all.push((meta, batch));
            }
        }
        all
    }

    pub(super) fn headers(&self) -> Vec<BatchHeader> {
        let parse = |(_, batch): &(FrameMeta, Vec<u8>)| BatchHeader::parse(batch).unwrap();
        self.batches().iter().map(parse).collect()
    }

    pub(super) fn records(&self) -> BTreeMap<i64, Found> {
        let mut found = BTreeMap::new();
        for (_, batch) in self.batches() {
            for (offset, key, has_value) in records_of(&batch) {
                let (_, timestamp) = first_record_at_or_after(&batch, i64::MIN, offset)
                    .unwrap()
                    .unwrap();
                found.insert(
                    offset,
                    Found {
                        key,
                        has_value,
                        timestamp,
                    },
                );
            }
        }
        found
    }

    pub(super) fn offsets(&self) -> Vec<i64> {
        self.records().into_keys().collect()
    }

    /// Everything that must hold at any time.
    pub(super) fn check(&self) {
        let records = self.records();
        for (offset, found) in &records {
            let record = &self.appended[offset].record;
            assert_eq!(
                *found,
                Found {
                    key: record.key.clone(),
                    has_value: record.value.is_some(),
                    timestamp: record.timestamp,
                },
                "record {offset}"
            );
        }
        let mut last = BTreeMap::new();
        for (offset, appended) in &self.appended {
            last.insert(appended.record.key.clone().unwrap(), (*offset, appended));
        }
        for (key, (offset, appended)) in &last {
            if *offset < self.start || records.contains_key(offset) {
                continue;
            }
            assert!(
                appended.record.value.is_none(),
                "record {offset} is the last of its key"
            );
            assert!(
                self.now >= appended.at + self.compaction.delete_retention_ms,
                "tombstone {offset} went too early"
            );
            let older = records
                .iter()
                .find(|(at, found)| **at >= self.start && found.key.as_ref() == Some(key));
            assert!(
                older.is_none(),
                "what tombstone {offset} deleted is back: {older:?}"
            );
        }
        let until = self.log.cleaned().until.0;
        let mut seen = BTreeSet::new();
        for (offset, found) in records.range(self.start..until.max(self.start)) {
            let later = self
                .appended
                .range(offset + 1..until)
                .any(|(_, other)| other.record.key == found.key);
            assert!(!later, "record {offset} was compacted, and is still there");
            assert!(seen.insert(found.key.clone()));
        }
        self.check_places();
    }

    fn check_places(&self) {
        let all = self.batches();
        let end = self.log.end_offset();
        if let Some((meta, _)) = all.last() {
            assert_eq!(meta.last_offset.0 + 1, end.0);
        }
        for base in self.producers.values().filter(|base| **base >= self.start) {
            assert!(
                all.iter().any(|(meta, _)| meta.base_offset.0 == *base),
                "the last batch of a producer, at {base}, is gone"
            );
        }
        for from in self.start..end.0 {
            let expected = all
                .iter()
                .find(|(meta, _)| meta.last_offset.0 >= from)
                .map(|(meta, _)| meta.base_offset);
            let got = self.log.read(Offset(from), 1).unwrap();
            assert_eq!(
                got.first().map(|(meta, _)| meta.base_offset),
                expected,
                "from {from}"
            );
        }
        let times: BTreeSet<_> = all.iter().map(|(meta, _)| meta.max_timestamp).collect();
        for time in times.into_iter().flat_map(|time| [time, time + 1]) {
            let expected = all
                .iter()
                .find(|(meta, _)| meta.max_timestamp >= time)
                .map(|(meta, _)| meta.base_offset);
            assert_eq!(
                self.log.offset_for_timestamp(time, Offset(0)).unwrap(),
                expected,
                "at {time}"
            );
        }
        assert!(self.log.quarantined().is_empty());
    }
}

/// Offset, key and whether there is a value, of every record of a batch.
pub(super) fn records_of(batch: &[u8]) -> Vec<(i64, Option<Vec<u8>>, bool)> {
    let filter = Filter {
        now_ms: 0,
        delete_retention_ms: None,
        keep_empty: true,
    };
    let mut records = Vec::new();
    filter
        .apply(batch, |record| {
            records.push((
                record.offset,
                record.key.map(<[u8]>::to_vec),
                record.has_value,
            ));
            true
        })
        .unwrap();
    records
}

pub(super) fn open(
    dir: &tempfile::TempDir,
    fs: &FaultFs,
    files: &Arc<FileKeys>,
    topic: TopicId,
    state: &PartitionState,
) -> PartitionLog {
    let place = PartitionPlace {
        dir: dir.path().join("p"),
        topic,
        partition: P,
    };
    PartitionLog::open(place, state, Arc::new(fs.clone()), Arc::clone(files)).unwrap()
}
