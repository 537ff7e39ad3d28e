//! A data plane on a disk that can fail, with topics that a test makes up.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use palisade_log::{
    Offset, PartitionIndex, ShardId, TopicId, Wal, WalOptions, WalRecord,
    fs::{FileSystem, RealFs},
    testing::FaultFs,
};
use palisade_seal::{
    DekVersion, DirectoryProvider, FileKeys, KeyProvider, KeyRing, SealError, SecretKey,
};
use palisade_shard::{Formation, NoPeers};
use parking_lot::Mutex;

use crate::{
    Acks, Appended, Catalog, CleanerOptions, DataError, DataOptions, DataPlane, Fetched, Isolation,
    TopicSettings, TopicView,
    records::{
        Rules, TimestampType, batches,
        builder::{TestBatch, TestRecord},
    },
    shard_data::now_ms,
};

pub(super) const P0: PartitionIndex = PartitionIndex(0);

/// Topics as a test says.
#[derive(Default)]
pub(super) struct TestCatalog {
    version: AtomicU64,
    /// Its answers may be old, and it knows.
    pub(super) lags: AtomicBool,
    topics: Mutex<HashMap<TopicId, Arc<TopicView>>>,
}

impl TestCatalog {
    pub(super) fn create(
        &self,
        partitions: u32,
        change: impl FnOnce(&mut TopicSettings),
    ) -> TopicId {
        let id = TopicId::random();
        let keys = KeyRing::new();
        keys.insert(DekVersion(1), SecretKey::generate().unwrap());
        let mut settings = TopicSettings {
            rules: Rules {
                max_batch_bytes: 1 << 20,
                max_expanded_bytes: 64 << 20,
                timestamp_type: TimestampType::CreateTime,
                before_max_ms: i64::MAX,
                after_max_ms: i64::MAX,
                keys_required: false,
            },
            min_insync_replicas: 1,
            segment_bytes: Some(16 << 10),
            segment_age_ms: i64::MAX,
            retention_ms: None,
            retention_bytes: None,
            delete: true,
            compaction: None,
        };
        change(&mut settings);
        let partitions = (0..partitions).map(|n| ShardId(1 + n % 2)).collect();
        self.topics.lock().insert(
            id,
            Arc::new(TopicView {
                partitions,
                settings,
                keys: Arc::new(keys),
            }),
        );
        self.version.fetch_add(1, Ordering::SeqCst);
        id
    }

    pub(super) fn change(&self, id: TopicId, change: impl FnOnce(&mut TopicSettings)) {
        let mut topics = self.topics.lock();
        let old = &topics[&id];
        let mut settings = old.settings;
        change(&mut settings);
        let view = TopicView {
            partitions: old.partitions.clone(),
            settings,
            keys: Arc::clone(&old.keys),
        };
        topics.insert(id, Arc::new(view));
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn delete(&self, id: TopicId) {
        self.topics.lock().remove(&id);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// As on a broker that lags behind.
    pub(super) fn forget(&self, id: TopicId, version: u64) -> Option<Arc<TopicView>> {
        self.version.store(version, Ordering::SeqCst);
        self.topics.lock().remove(&id)
    }

    pub(super) fn remember(&self, id: TopicId, view: Arc<TopicView>, version: u64) {
        self.version.store(version, Ordering::SeqCst);
        self.topics.lock().insert(id, view);
    }
}

impl Catalog for TestCatalog {
    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn topic(&self, id: TopicId) -> Result<Option<Arc<TopicView>>, SealError> {
        Ok(self.topics.lock().get(&id).cloned())
    }

    fn contains(&self, id: TopicId) -> bool {
        self.topics.lock().contains_key(&id)
    }

    fn is_current(&self) -> bool {
        !self.lags.load(Ordering::SeqCst)
    }

    fn shard_of_group(&self, group: &str) -> Option<ShardId> {
        Some(ShardId(1 + u32::from(group.len() % 2 == 1)))
    }
}

/// Everything but the running broker: what survives a crash.
pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) wal_fs: FaultFs,
    pub(super) data_fs: FaultFs,
    pub(super) catalog: Arc<TestCatalog>,
    pub(super) wal_file_bytes: u64,
    pub(super) checkpoint_wal_bytes: u64,
    pub(super) cleaner: CleanerOptions,
    /// Without the file system that can fail, which remembers what was written.
    pub(super) real_files: bool,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            wal_fs: FaultFs::new(),
            data_fs: FaultFs::new(),
            catalog: Arc::default(),
            wal_file_bytes: 4 << 20,
            checkpoint_wal_bytes: u64::MAX,
            // Only when a test says so.
            cleaner: CleanerOptions {
                interval: Duration::from_secs(3600),
                ..CleanerOptions::default()
            },
            real_files: false,
        }
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(super) fn keys(&self) -> Arc<FileKeys> {
        let provider: Arc<dyn KeyProvider> =
            Arc::new(DirectoryProvider::create(self.dir.path().join("kek")).unwrap());
        Arc::new(FileKeys::new(provider))
    }

    pub(super) fn fs(&self, faulty: &FaultFs) -> Arc<dyn FileSystem> {
        if self.real_files {
            Arc::new(RealFs)
        } else {
            Arc::new(faulty.clone())
        }
    }

    pub(super) fn open_wal(
        &self,
        keys: &Arc<FileKeys>,
    ) -> (Arc<Wal>, BTreeMap<ShardId, Vec<WalRecord>>) {
        let options = WalOptions {
            fs: self.fs(&self.wal_fs),
            file_bytes: self.wal_file_bytes,
            // A crash in a test kills the file system, not the process.
            on_failure: Arc::new(|_| {}),
            ..WalOptions::new(self.dir.path().join("wal"))
        };
        // The threads of the one before may still hold the lock for a moment.
        let (wal, records) = (0..3000)
            .find_map(|_| {
                let opened = Wal::open(options.clone(), Arc::clone(keys));
                if matches!(&opened, Err(error) if error.to_string().contains("lock")) {
                    std::thread::sleep(Duration::from_millis(10));
                    return None;
                }
                Some(opened.unwrap())
            })
            .expect("the lock is released");
        let mut by_shard = BTreeMap::<ShardId, Vec<WalRecord>>::new();
        for record in records {
            by_shard.entry(record.shard).or_default().push(record);
        }
        (Arc::new(wal), by_shard)
    }

    pub(super) async fn try_start(&self, keys: Arc<FileKeys>) -> Result<Arc<DataPlane>, DataError> {
        let (wal, recovered) = self.open_wal(&keys);
        let options = DataOptions {
            checkpoint_wal_bytes: self.checkpoint_wal_bytes,
            housekeeping: Duration::from_millis(100),
            fs: self.fs(&self.data_fs),
            on_sync_failure: Arc::new(|_| {}),
            cleaner: self.cleaner,
            ..DataOptions::new(self.data_dir())
        };
        let catalog: Arc<dyn Catalog> = Arc::clone(&self.catalog) as _;
        let plane =
            DataPlane::open(options, wal, recovered, keys, catalog, Arc::new(NoPeers)).await?;
        for shard in [1, 2] {
            plane.host(ShardId(shard), Formation::Alone).await?;
        }
        plane.ready().await;
        Ok(plane)
    }

    pub(super) async fn start(&self) -> Arc<DataPlane> {
        self.try_start(self.keys()).await.unwrap()
    }

    /// Stops as kill -9 does: nothing is synced, nothing is checkpointed.
    pub(super) async fn kill(&self, plane: Arc<DataPlane>) {
        // Its files are closed at this moment; what they hold stays, for a machine that goes on.
        self.wal_fs.crash(|| true).unwrap();
        self.data_fs.crash(|| true).unwrap();
        if let Some(task) = plane.housekeeper.lock().take() {
            task.abort();
        }
        if let Some(task) = plane.cleaner.lock().take() {
            task.abort();
        }
        for task in plane.repairers.lock().drain(..) {
            task.abort();
        }
        for handle in plane.handles().values() {
            handle.stop().await;
        }
        drop(plane);
    }
}

/// A batch of records `text-0`, `text-1`, ...
pub(super) fn batch(text: &str, count: usize) -> TestBatch {
    let now = now_ms();
    TestBatch::new(
        (0..count)
            .map(|n| TestRecord::new(now, "key", &format!("{text}-{n}")))
            .collect(),
    )
}

pub(super) async fn produce(
    plane: &DataPlane,
    topic: TopicId,
    batch: &TestBatch,
) -> Result<Appended, DataError> {
    plane
        .produce(topic, P0, Bytes::from(batch.build()), Acks::All)
        .await
}

/// What a fetch found, opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) records: Vec<u8>,
    pub(super) high_watermark: Offset,
    pub(super) log_start_offset: Offset,
    pub(super) last_stable_offset: Offset,
}

impl Opened {
    pub(super) fn of(fetched: Fetched) -> Result<Self, DataError> {
        let length = fetched.records.len();
        let records = fetched.records.open_all()?;
        assert_eq!(records.len(), length, "as announced");
        Ok(Self {
            records,
            high_watermark: fetched.high_watermark,
            log_start_offset: fetched.log_start_offset,
            last_stable_offset: fetched.last_stable_offset,
        })
    }
}

pub(super) fn fetch(plane: &DataPlane, topic: TopicId, offset: i64) -> Result<Opened, DataError> {
    let isolation = Isolation::ReadUncommitted;
    Opened::of(plane.fetch(topic, P0, Offset(offset), 1 << 20, isolation)?)
}

/// Reads a partition from its start and returns the values in order; offsets must have no gaps.
pub(super) fn read_values(plane: &DataPlane, topic: TopicId) -> Vec<String> {
    let (start, end) = plane.offsets_of(topic, P0).unwrap();
    let mut values = Vec::new();
    let mut next = start.0;
    while next < end.0 {
        let fetched = fetch(plane, topic, next).unwrap();
        assert!(
            !fetched.records.is_empty(),
            "nothing at {next}, which is before {end}"
        );
        for part in batches(&fetched.records) {
            let (header, bytes) = part.unwrap();
            assert_eq!(header.crc, crc_fast::crc32_iscsi(&bytes[21..]));
            assert!(
                header.base_offset <= next && header.last_offset() >= next,
                "no gap"
            );
            next = header.last_offset() + 1;
            values.extend(values_of(bytes));
        }
    }
    values
}

/// The values of an uncompressed batch of [`batch`]'s records, found by their shape.
pub(super) fn values_of(bytes: &[u8]) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = &bytes[61..];
    while let Some((length, after)) = varint(rest) {
        let (body, after) = after.split_at(length as usize);
        let (_, body) = varint(&body[1..]).unwrap();
        let (_, body) = varint(body).unwrap();
        let (key, body) = varint(body).unwrap();
        let (value, body) = varint(&body[key as usize..]).unwrap();
        values.push(String::from_utf8(body[..value as usize].to_vec()).unwrap());
        rest = after;
    }
    values
}

fn varint(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (mut value, mut shift) = (0u64, 0);
    for (at, byte) in bytes.iter().enumerate() {
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some((
                (value >> 1) as i64 ^ -((value & 1) as i64),
                &bytes[at + 1..],
            ));
        }
    }
    None
}

/// Waits until something holds, which must be soon.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("still not: {what}");
}
