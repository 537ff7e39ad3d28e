//! The data plane: everything a server needs of the data shards of this broker.

mod cleaning;
mod fetch;
mod groups;
mod housekeeping;
mod produce;
mod queries;
mod wait;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use palisade_log::{
    LeaderEpoch, LogError, PartitionIndex, ShardId, TopicId, Wal, WalRecord,
    fs::{FileSystem, RealFs},
};
use palisade_seal::FileKeys;
use palisade_shard::{Leadership, NodeId, Shard, ShardConfig};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    catalog::{Catalog, TopicView},
    cleaner::CleanerOptions,
    command::Key,
    machine::{DataMachine, epoch_of},
    shard_data::{ShardData, ShardSetup},
    slot::Slot,
    types::DataError,
};

/// How the data plane is set up.
#[derive(Clone)]
pub struct DataOptions {
    /// Directory for partitions and manifests, made when it is not there.
    pub dir: PathBuf,
    /// This broker in the shards' Raft groups.
    pub node: NodeId,
    /// Number of data shards; they are numbered from 1.
    pub data_shards: u32,
    /// Size at which a segment is rolled when the topic does not say.
    pub segment_bytes: u64,
    /// A shard is checkpointed once this much was applied since the last time: about what its part of a restart replays.
    pub checkpoint_wal_bytes: u64,
    /// How often retention is enforced.
    pub housekeeping: Duration,
    /// How closed segments are compacted and sealed anew.
    pub cleaner: CleanerOptions,
    /// The file system, for tests that inject faults.
    pub fs: Arc<dyn FileSystem>,
    /// Called when a segment could not be synced: what it holds is then unknown. The default ends the process; the next one writes it again from the
    /// write-ahead log.
    pub on_sync_failure: SyncFailureHook,
}

/// What happens after [`LogError::SyncFailed`].
pub type SyncFailureHook = Arc<dyn Fn(&LogError) + Send + Sync>;

impl std::fmt::Debug for DataOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataOptions")
            .field("dir", &self.dir)
            .field("node", &self.node)
            .field("data_shards", &self.data_shards)
            .finish_non_exhaustive()
    }
}

impl DataOptions {
    /// Defaults for a broker that is alone.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            node: NodeId(0),
            data_shards: 4,
            segment_bytes: 256 << 20,
            checkpoint_wal_bytes: 32 << 20,
            housekeeping: Duration::from_secs(10),
            cleaner: CleanerOptions::default(),
            fs: Arc::new(RealFs),
            on_sync_failure: Arc::new(|_| std::process::abort()),
        }
    }
}

/// The data shards of this broker. See the crate's documentation.
pub struct DataPlane {
    shards: BTreeMap<ShardId, ShardHandle>,
    catalog: Arc<dyn Catalog>,
    runtime: tokio::runtime::Handle,
    stop: watch::Sender<bool>,
    housekeeper: Mutex<Option<JoinHandle<()>>>,
    cleaner: Mutex<Option<JoinHandle<()>>>,
    cleaning: cleaning::Cleaning,
    checkpoint_due: Arc<Notify>,
    /// Shards are checkpointed one after the other: each takes the disk for itself.
    checkpointing: tokio::sync::Mutex<()>,
    housekeeping: Duration,
    checkpoint_bytes: u64,
    on_sync_failure: SyncFailureHook,
}

struct ShardHandle {
    shard: Shard<DataMachine>,
    data: Arc<ShardData>,
    leadership: watch::Receiver<Option<Leadership>>,
}

impl ShardHandle {
    async fn start(
        setup: ShardSetup,
        node: NodeId,
        wal: Arc<Wal>,
        replay: Vec<WalRecord>,
    ) -> Result<Self, DataError> {
        let config = ShardConfig::new(setup.id, node);
        let opened = tokio::task::spawn_blocking(move || DataMachine::open(setup)).await;
        let (machine, data) = opened.map_err(|error| DataError::Shard(error.to_string()))??;
        let shard = Shard::start(
            config,
            wal,
            replay,
            machine,
            Arc::new(palisade_shard::NoPeers),
            palisade_shard::Formation::Alone,
        )
        .await
        .map_err(|error| DataError::Shard(error.to_string()))?;
        let leadership = shard.leadership();
        Ok(Self {
            shard,
            data,
            leadership,
        })
    }

    fn term(&self) -> Option<u64> {
        self.leadership
            .borrow()
            .as_ref()
            .map(|leadership| leadership.term)
    }
}

/// A partition that this broker leads, found for one request.
struct Located<'a> {
    key: Key,
    view: Arc<TopicView>,
    handle: &'a ShardHandle,
    term: u64,
}

impl Located<'_> {
    fn slot(&self) -> Arc<Slot> {
        self.handle.data.slot_or_new(self.key)
    }

    fn epoch(&self) -> LeaderEpoch {
        epoch_of(self.term)
    }
}

impl DataPlane {
    /// Opens every data shard: its last checkpoint, then what the write-ahead log brought since (`recovered`). The catalog must be current: what it does not
    /// know any more is removed.
    ///
    /// # Errors
    /// When a shard's manifest is damaged, gone, or sealed under a key that is not there; when the disk cannot be used.
    pub async fn open(
        options: DataOptions,
        wal: Arc<Wal>,
        mut recovered: BTreeMap<ShardId, Vec<WalRecord>>,
        keys: Arc<FileKeys>,
        catalog: Arc<dyn Catalog>,
    ) -> Result<Arc<Self>, DataError> {
        let checkpoint_due = Arc::new(Notify::new());
        // Side by side: each replays its part of the write-ahead log.
        let mut starting = JoinSet::new();
        for id in (1..=options.data_shards).map(ShardId) {
            let setup = ShardSetup {
                id,
                dir: options.dir.join(format!("shard-{id}")),
                fs: Arc::clone(&options.fs),
                keys: Arc::clone(&keys),
                checkpoint_due: Arc::clone(&checkpoint_due),
                checkpoint_bytes: options.checkpoint_wal_bytes,
                segment_bytes: options.segment_bytes,
            };
            let replay = recovered.remove(&id).unwrap_or_default();
            starting.spawn(ShardHandle::start(
                setup,
                options.node,
                Arc::clone(&wal),
                replay,
            ));
        }
        let mut shards = BTreeMap::new();
        while let Some(started) = starting.join_next().await {
            let handle = started.map_err(|error| DataError::Shard(error.to_string()))??;
            shards.insert(handle.data.id, handle);
        }
        let plane = Arc::new(Self {
            shards,
            catalog,
            runtime: tokio::runtime::Handle::current(),
            stop: watch::Sender::new(false),
            housekeeper: Mutex::new(None),
            cleaner: Mutex::new(None),
            cleaning: cleaning::Cleaning::default(),
            checkpoint_due,
            checkpointing: tokio::sync::Mutex::new(()),
            housekeeping: options.housekeeping,
            checkpoint_bytes: options.checkpoint_wal_bytes,
            on_sync_failure: options.on_sync_failure,
        });
        let housekeeper = tokio::spawn(housekeeping::run(
            Arc::downgrade(&plane),
            plane.stop.subscribe(),
            Arc::clone(&plane.checkpoint_due),
        ));
        *plane.housekeeper.lock() = Some(housekeeper);
        let cleaner = tokio::spawn(cleaning::run(
            Arc::downgrade(&plane),
            plane.stop.subscribe(),
            options.cleaner,
        ));
        *plane.cleaner.lock() = Some(cleaner);
        Ok(plane)
    }

    /// Whether this broker leads all of its shards, i.e. serves.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shards.values().all(|handle| handle.term().is_some())
    }

    /// Waits until [`DataPlane::is_ready`].
    pub async fn ready(&self) {
        for handle in self.shards.values() {
            // An error says that the shard stopped: then nobody needs to wait for it.
            let _ = handle.leadership.clone().wait_for(Option::is_some).await;
        }
    }

    /// Whether batches wait in memory because the disk is full or fails; no more are accepted until they are written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shards
            .values()
            .any(|handle| handle.data.backlogged.load(Ordering::Acquire))
    }

    /// Makes everything applied so far durable in segments and manifests, so that a restart has nothing to replay.
    ///
    /// # Errors
    /// The first failure, when all shards were tried.
    pub async fn checkpoint(&self) -> Result<(), DataError> {
        let _alone = self.checkpointing.lock().await;
        let mut outcome = Ok(());
        for handle in self.shards.values() {
            if let Err(error) = self.checkpoint_shard(handle).await {
                tracing::warn!(shard = %handle.data.id, %error, "checkpoint failed; the write-ahead log keeps what it would have covered");
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    async fn checkpoint_shard(&self, handle: &ShardHandle) -> Result<(), DataError> {
        if handle.data.unsaved.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        // Nearly all of the syncing happens here, beside the appends; the checkpoint itself, which appends wait for, has little left to sync.
        let data = Arc::clone(&handle.data);
        let synced = self.runtime.spawn_blocking(move || data.sync()).await;
        if let Err(error) = synced.map_err(|_| DataError::Stopped)? {
            if matches!(error, LogError::SyncFailed { .. }) {
                tracing::error!(shard = %handle.data.id, %error, "the disk does not keep what is written to it");
                (self.on_sync_failure)(&error);
            }
            return Err(DataError::Log(error));
        }
        handle
            .shard
            .checkpoint()
            .await
            .map_err(|error| DataError::Shard(error.to_string()))?;
        Ok(())
    }

    /// Stops accepting, makes everything durable and stops the shards.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let housekeeper = self.housekeeper.lock().take();
        if let Some(housekeeper) = housekeeper {
            // It ends at its next step; a panic in it was reported where it happened.
            let _ = housekeeper.await;
        }
        let cleaner = self.cleaner.lock().take();
        if let Some(cleaner) = cleaner {
            let _ = cleaner.await;
        }
        // Logged where it failed; what is not covered is replayed.
        let _ = self.checkpoint().await;
        for handle in self.shards.values() {
            handle.shard.shutdown().await;
        }
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Finds a partition that this broker leads.
    fn locate(&self, topic: TopicId, partition: PartitionIndex) -> Result<Located<'_>, DataError> {
        let unknown = || DataError::UnknownPartition { topic, partition };
        let view = self.catalog.topic(topic)?.ok_or_else(unknown)?;
        let shard = view.shard(partition).ok_or_else(unknown)?;
        let handle = self.shards.get(&shard).ok_or(DataError::NotLeader)?;
        let term = handle.term().ok_or(DataError::NotLeader)?;
        Ok(Located {
            key: (topic, partition),
            view,
            handle,
            term,
        })
    }
}

impl std::fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlane")
            .field("shards", &self.shards.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
