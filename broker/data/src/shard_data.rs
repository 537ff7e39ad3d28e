//! The state of one data shard on this broker: written by its state machine, read by everyone.

use std::{
    collections::HashMap,
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use palisade_coordinator::offsets::OffsetStore;
use palisade_log::{
    LogError, Offset, ShardId, TopicId,
    fs::{FileSystem, Volume},
    segment::{PartitionLog, PartitionPlace, Rolling, sync_together},
};
use palisade_seal::{FileKeys, KekId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::{
    catalog::TopicSettings,
    command::Key,
    manifest::{self, Manifest, PartitionManifest},
    slot::{Partition, Replicated, Slot},
    types::DataError,
};

/// How many threads sync logs at once, besides the one that asks for it, and how many logs are worth another thread.
const SYNC_THREADS: usize = 15;
const SYNCS_PER_THREAD: usize = 8;
/// From so many files and directories on, the whole volume is synced at once. It is usually the broker's own; where it is not, this writes what others have left in
/// memory, too, which few files are not worth.
const SYNCED_TOGETHER: usize = 32;

/// Shared by a shard's state machine, the data plane and its readers.
#[derive(Debug)]
pub(crate) struct ShardData {
    pub(crate) id: ShardId,
    pub(crate) dir: PathBuf,
    pub(crate) fs: Arc<dyn FileSystem>,
    /// Where the directory is, opened before anything was written to a log; `None` when it cannot be synced as a whole.
    volume: Option<Box<dyn Volume>>,
    pub(crate) keys: Arc<FileKeys>,
    pub(crate) offsets: RwLock<OffsetStore>,
    /// Bytes applied since the last checkpoint: what a restart would have to replay.
    pub(crate) unsaved: AtomicU64,
    /// Rung when `unsaved` passes `checkpoint_bytes`.
    pub(crate) checkpoint_due: Arc<Notify>,
    checkpoint_bytes: u64,
    /// Some batch waits in memory, because the disk is full or fails.
    pub(crate) backlogged: AtomicBool,
    default_segment_bytes: u64,
    /// Number of the next directory of a partition: none is used twice, so that a partition never meets the files of another.
    next_dir: AtomicU64,
    slots: RwLock<HashMap<Key, Arc<Slot>>>,
    /// Some slot has not been told yet when its topic wants segments to be rolled.
    unsettled: AtomicBool,
    /// The KEK that the manifest on disk is under.
    manifest_kek: Mutex<KekId>,
}

/// What a shard is opened with.
#[derive(Clone, Debug)]
pub(crate) struct ShardSetup {
    pub(crate) id: ShardId,
    pub(crate) dir: PathBuf,
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) keys: Arc<FileKeys>,
    pub(crate) checkpoint_due: Arc<Notify>,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) segment_bytes: u64,
}

impl ShardData {
    pub(crate) fn new(setup: ShardSetup, offsets: OffsetStore, manifest_kek: KekId) -> Self {
        let volume = setup.fs.volume(&setup.dir).unwrap_or_else(|error| {
            tracing::warn!(dir = %setup.dir.display(), %error, "the volume cannot be synced as a whole, so files are synced one by one");
            None
        });
        Self {
            id: setup.id,
            dir: setup.dir,
            fs: setup.fs,
            volume,
            keys: setup.keys,
            offsets: RwLock::new(offsets),
            unsaved: AtomicU64::new(0),
            checkpoint_due: setup.checkpoint_due,
            checkpoint_bytes: setup.checkpoint_bytes,
            backlogged: AtomicBool::new(false),
            default_segment_bytes: setup.segment_bytes,
            next_dir: AtomicU64::new(0),
            slots: RwLock::default(),
            unsettled: AtomicBool::new(false),
            manifest_kek: Mutex::new(manifest_kek),
        }
    }

    pub(crate) fn slot(&self, key: Key) -> Option<Arc<Slot>> {
        self.slots.read().get(&key).cloned()
    }

    /// The slot of a partition that is known to exist, made when it is not there.
    pub(crate) fn slot_or_new(&self, key: Key) -> Arc<Slot> {
        if let Some(slot) = self.slot(key) {
            return slot;
        }
        let mut slots = self.slots.write();
        let slot = slots.entry(key).or_insert_with(|| {
            self.unsettled.store(true, Ordering::Release);
            Arc::new(Slot::new(key, self.default_rolling()))
        });
        Arc::clone(slot)
    }

    /// Whether slots were made since this was asked last: they roll segments by [`Self::default_rolling`] until they are told better.
    pub(crate) fn take_unsettled(&self) -> bool {
        // It is read again and again, and written hardly ever.
        self.unsettled.load(Ordering::Relaxed) && self.unsettled.swap(false, Ordering::AcqRel)
    }

    /// When segments are rolled as long as nobody has looked at the topic's settings.
    pub(crate) fn default_rolling(&self) -> Rolling {
        Rolling {
            bytes: self.default_segment_bytes,
            age_ms: i64::MAX,
        }
    }

    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.read().values().cloned().collect()
    }

    /// Takes the slots of a topic out.
    pub(crate) fn remove_topic(&self, topic: TopicId) -> Vec<Arc<Slot>> {
        self.slots
            .write()
            .extract_if(|(id, _), _| *id == topic)
            .map(|(_, slot)| slot)
            .collect()
    }

    /// Takes the slot of a partition out.
    pub(crate) fn remove_slot(&self, key: Key) {
        self.slots.write().remove(&key);
    }

    /// Wakes everybody who waits for records of any partition.
    pub(crate) fn wake_all(&self) {
        for slot in self.slots() {
            slot.waiters.wake();
        }
    }

    /// Takes out the slots that never got a partition, unless their topic is `known`.
    pub(crate) fn remove_empty(&self, known: impl Fn(TopicId) -> bool) {
        self.slots
            .write()
            .retain(|(topic, _), slot| slot.partition().is_some() || known(*topic));
    }

    /// When segments of a topic are rolled; the size is the broker's own when the topic has none.
    pub(crate) fn rolling(&self, settings: &TopicSettings) -> Rolling {
        Rolling {
            bytes: settings.segment_bytes.unwrap_or(self.default_segment_bytes),
            age_ms: settings.segment_age_ms,
        }
    }

    /// A partition without records. Touches no disk, so that it cannot fail on one replica and not on another.
    pub(crate) fn new_partition(
        &self,
        key: Key,
        seen: u64,
        created: u64,
        ends: (Offset, Offset),
        replicated: Replicated,
    ) -> Partition {
        let (dir, log) = self.new_log(key, ends.0, ends.1);
        Partition {
            seen,
            created,
            dir,
            log,
            replicated: replicated.into(),
        }
    }

    /// A log in a directory of its own, with the directory's number.
    pub(crate) fn new_log(&self, key: Key, start: Offset, end: Offset) -> (u64, PartitionLog) {
        let dir = self.next_dir.fetch_add(1, Ordering::Relaxed);
        let log = PartitionLog::empty(
            self.place(key, dir),
            start,
            end,
            Arc::clone(&self.fs),
            Arc::clone(&self.keys),
        );
        (dir, log)
    }

    /// Takes a partition back.
    pub(crate) fn reopen_partition(&self, manifest: PartitionManifest) -> Result<(), DataError> {
        let log = PartitionLog::open(
            self.place(manifest.key, manifest.dir),
            &manifest.log,
            Arc::clone(&self.fs),
            Arc::clone(&self.keys),
        )
        .map_err(DataError::Log)?;
        self.next_dir
            .fetch_max(manifest.dir.saturating_add(1), Ordering::Relaxed);
        let replicated = Replicated {
            producers: manifest.producers,
            epochs: manifest.epochs,
        };
        self.slot_or_new(manifest.key).set_partition(Partition {
            seen: manifest.seen,
            created: manifest.created,
            dir: manifest.dir,
            log,
            replicated: replicated.into(),
        });
        Ok(())
    }

    fn place(&self, key: Key, dir: u64) -> PartitionPlace {
        PartitionPlace {
            dir: self.dir.join(dir_name(key, dir)),
            topic: key.0,
            partition: key.1,
        }
    }

    /// Replaces the shard's manifest; durable when this returns.
    pub(crate) fn store(&self, manifest: &Manifest) -> Result<(), DataError> {
        let kek = manifest::store(self.fs.as_ref(), &self.keys, &self.dir, self.id, manifest)
            .map_err(DataError::Log)?;
        *self.manifest_kek.lock() = kek;
        Ok(())
    }

    /// The KEK that the manifest on disk is under.
    pub(crate) fn manifest_kek(&self) -> KekId {
        self.manifest_kek.lock().clone()
    }

    /// Counts what a restart would replay.
    pub(crate) fn applied_bytes(&self, bytes: u64) {
        let before = self.unsaved.fetch_add(bytes, Ordering::Relaxed);
        if before < self.checkpoint_bytes && before.saturating_add(bytes) >= self.checkpoint_bytes {
            self.checkpoint_due.notify_one();
        }
    }

    /// Syncs every log, so that a checkpoint right after it has little to do; how many files and directories had anything to sync. Many are synced with their
    /// volume. Blocks.
    pub(crate) fn sync(&self) -> Result<usize, LogError> {
        let together = self.sync_volume();
        Ok(self.sync_files()?.saturating_add(together))
    }

    /// Syncs every log by itself; how many had anything to sync. Blocks for what was written to them, and nothing else.
    ///
    /// Several at a time: a file system journals what is asked for at once together, and thousands of partitions would take many seconds one after the other.
    pub(crate) fn sync_files(&self) -> Result<usize, LogError> {
        let now = now_ms();
        let slots = self.slots();
        let (next, synced) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Some(partition) = slot.partition()
                    && partition.log.sync(slot.rolling(), now)?
                {
                    synced.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        let threads = (slots.len() / SYNCS_PER_THREAD).min(SYNC_THREADS);
        std::thread::scope(|scope| {
            let others: Vec<_> = (0..threads)
                // Without one more thread it takes longer.
                .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let mut outcome = work();
            for other in others {
                outcome = outcome.and(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            outcome
        })?;
        Ok(synced.into_inner())
    }

    /// Syncs the whole volume when that is less work than file by file; how many files and directories have that behind them.
    fn sync_volume(&self) -> usize {
        let Some(volume) = &self.volume else {
            return 0;
        };
        let slots = self.slots();
        let partitions: Vec<_> = slots.iter().filter_map(|slot| slot.partition()).collect();
        let logs: Vec<_> = partitions.iter().map(|partition| &partition.log).collect();
        sync_together(volume.as_ref(), &logs, SYNCED_TOGETHER).unwrap_or_else(|error| {
            tracing::warn!(shard = %self.id, %error, "the volume could not be synced as a whole: the sync of each file will say what is wrong");
            0
        })
    }

    /// Says that a manifest is durable: what it does not need any more goes.
    pub(crate) fn saved(&self, manifest: &crate::manifest::Manifest) {
        for saved in &manifest.partitions {
            if let Some(partition) = self.slot(saved.key).and_then(|slot| slot.partition()) {
                partition.log.saved(&saved.log);
            }
        }
    }

    /// Tries to write what waits in memory. True when nothing waits any more.
    pub(crate) fn flush_backlog(&self) -> bool {
        if !self.backlogged.load(Ordering::Acquire) {
            return true;
        }
        // Before looking: an append that fails from now on raises it again.
        self.backlogged.store(false, Ordering::Release);
        let now = now_ms();
        let mut failed = false;
        for slot in self.slots() {
            if let Some(partition) = slot.partition()
                && let Err(error) = partition.log.flush(slot.rolling(), now)
            {
                tracing::debug!(%error, "batches still wait in memory");
                failed = true;
            }
        }
        if failed {
            self.backlogged.store(true, Ordering::Release);
        } else {
            tracing::info!(shard = %self.id, "the disk takes records again");
        }
        !failed
    }
}

/// Name of a partition's directory.
pub(crate) fn dir_name((topic, partition): Key, dir: u64) -> String {
    format!("{topic}-{partition}.{dir}")
}

/// The broker's clock in ms since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|age| i64::try_from(age.as_millis()).ok())
        .unwrap_or(0)
}
