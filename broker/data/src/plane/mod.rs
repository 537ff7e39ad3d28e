//! The data plane: everything a server needs of the data shards of this broker.

mod cleaning;
mod fetch;
mod groups;
mod handle;
mod hosting;
mod housekeeping;
mod members;
mod produce;
mod queries;
mod repairing;
mod scrubbing;
mod wait;
mod wrapping;

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
use palisade_shard::{LeaderView, NodeId, ShardConfig, Timing, Transport};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use crate::{
    catalog::{Catalog, TopicView},
    cleaner::CleanerOptions,
    command::Key,
    machine::epoch_of,
    slot::Slot,
    types::DataError,
};
use handle::ShardHandle;

pub use fetch::SealedRecords;
pub use repairing::RepairStats;
pub use scrubbing::ScrubOptions;
pub use wrapping::KekCensus;

/// How the data plane is set up.
#[derive(Clone)]
pub struct DataOptions {
    /// Directory for partitions and manifests, made when it is not there.
    pub dir: PathBuf,
    /// This broker in the shards' Raft groups.
    pub node: NodeId,
    /// Size at which a segment is rolled when the topic does not say.
    pub segment_bytes: u64,
    /// A shard is checkpointed once this much was applied since the last time: about what its part of a restart replays.
    pub checkpoint_wal_bytes: u64,
    /// How often retention is enforced.
    pub housekeeping: Duration,
    /// How closed segments are compacted and sealed anew.
    pub cleaner: CleanerOptions,
    /// How sealed segments are looked through for damage.
    pub scrub: ScrubOptions,
    /// Bytes of each shard's log that stay in memory for replicas that are a little behind; those further behind are sent a snapshot.
    pub tail_bytes: usize,
    /// When the leader of a shard is given up and replaced.
    pub timing: Timing,
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
            segment_bytes: 256 << 20,
            checkpoint_wal_bytes: 32 << 20,
            housekeeping: Duration::from_secs(10),
            cleaner: CleanerOptions::default(),
            scrub: ScrubOptions::default(),
            tail_bytes: 8 << 20,
            timing: Timing::DEFAULT,
            fs: Arc::new(RealFs),
            on_sync_failure: Arc::new(|_| std::process::abort()),
        }
    }
}

/// The data shards of this broker. See the crate's documentation.
pub struct DataPlane {
    options: DataOptions,
    wal: Arc<Wal>,
    keys: Arc<FileKeys>,
    transport: Arc<dyn Transport>,
    catalog: Arc<dyn Catalog>,
    shards: RwLock<Shards>,
    /// Shards come and go one at a time.
    hosting: tokio::sync::Mutex<()>,
    /// What replicas have promised that were deleted here; see [`palisade_shard::kept`].
    promises: Mutex<BTreeMap<ShardId, Vec<WalRecord>>>,
    leaders: watch::Sender<Leaders>,
    runtime: tokio::runtime::Handle,
    stop: watch::Sender<bool>,
    housekeeper: Mutex<Option<JoinHandle<()>>>,
    cleaner: Mutex<Option<JoinHandle<()>>>,
    cleaning: cleaning::Cleaning,
    repairing: repairing::Repairing,
    /// Repairs damage, and looks for it.
    repairers: Mutex<Vec<JoinHandle<()>>>,
    checkpoint_due: Arc<Notify>,
    /// Shards are checkpointed one after the other: each takes the disk for itself.
    checkpointing: tokio::sync::Mutex<()>,
}

type Shards = Arc<BTreeMap<ShardId, Arc<ShardHandle>>>;
/// Who leads the shards that are hosted here.
type Leaders = Arc<BTreeMap<ShardId, LeaderView>>;

/// How often logs are synced beside the appends before a checkpoint, and how few of them are left to the checkpoint itself.
const SYNC_PASSES: usize = 3;
const FEW_LOGS: usize = 64;

/// A partition that is kept here, found for one request.
struct Located {
    key: Key,
    view: Arc<TopicView>,
    handle: Arc<ShardHandle>,
}

/// A partition that this broker leads.
struct Led {
    at: Located,
    term: u64,
}

impl Located {
    fn slot(&self) -> Arc<Slot> {
        self.handle.data.slot_or_new(self.key)
    }
}

impl Led {
    fn epoch(&self) -> LeaderEpoch {
        epoch_of(self.term)
    }
}

impl DataPlane {
    fn config(&self, shard: ShardId) -> ShardConfig {
        ShardConfig {
            tail_bytes: self.options.tail_bytes,
            timing: self.options.timing,
            ..ShardConfig::new(shard, self.options.node)
        }
    }

    /// Whether this broker serves all shards that it hosts: each is led by it, or follows a leader and has applied what it knows to be committed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.handles()
            .values()
            .all(|handle| handle.is_current(self.options.node))
    }

    /// Waits until [`DataPlane::is_ready`], or the data plane stops. A shard that has failed is not waited for.
    pub async fn ready(&self) {
        let mut leaders = self.leaders();
        let waits = |handle: &Arc<ShardHandle>| {
            !handle.is_current(self.options.node) && !handle.shard.status().stopped
        };
        while !self.is_stopping() && self.handles().values().any(waits) {
            // Nobody says when what is committed is applied.
            let _ = tokio::time::timeout(Duration::from_millis(20), leaders.changed()).await;
        }
    }

    /// Whether batches wait in memory because the disk is full or fails; no more are accepted until they are written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.handles()
            .values()
            .any(|handle| handle.data.backlogged.load(Ordering::Acquire))
    }

    /// Whether nothing more can be written here: the write-ahead log has no space, or batches wait in memory.
    #[must_use]
    pub fn cannot_write(&self) -> bool {
        self.wal.is_full() || self.is_full()
    }

    /// Makes everything applied so far durable in segments and manifests, so that a restart has nothing to replay.
    ///
    /// # Errors
    /// The first failure, when all shards were tried.
    pub async fn checkpoint(&self) -> Result<(), DataError> {
        let _alone = self.checkpointing.lock().await;
        let mut outcome = Ok(());
        for handle in self.handles().values() {
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
        // Nearly all of the syncing happens here, beside the appends; the checkpoint itself, which appends wait for, has little left to sync. What is written during a
        // long pass is for the next one.
        for _ in 0..SYNC_PASSES {
            match handle.sync().await {
                Ok(synced) if synced < FEW_LOGS => break,
                Ok(_) => {}
                Err(error) => {
                    if matches!(error, LogError::SyncFailed { .. }) {
                        tracing::error!(shard = %handle.data.id, %error, "the disk does not keep what is written to it");
                        (self.options.on_sync_failure)(&error);
                    }
                    return Err(DataError::Log(error));
                }
            }
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
        let _one = self.hosting.lock().await;
        let housekeeper = self.housekeeper.lock().take();
        if let Some(housekeeper) = housekeeper {
            // It ends at its next step; a panic in it was reported where it happened.
            let _ = housekeeper.await;
        }
        let cleaner = self.cleaner.lock().take();
        if let Some(cleaner) = cleaner {
            let _ = cleaner.await;
        }
        let repairers = std::mem::take(&mut *self.repairers.lock());
        for repairer in repairers {
            let _ = repairer.await;
        }
        // Logged where it failed; what is not covered is replayed.
        let _ = self.checkpoint().await;
        for handle in self.handles().values() {
            handle.shard.shutdown().await;
            handle.data.wake_all();
        }
    }

    fn handles(&self) -> Shards {
        Arc::clone(&self.shards.read())
    }

    fn handle_of(&self, shard: ShardId) -> Option<Arc<ShardHandle>> {
        self.shards.read().get(&shard).cloned()
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Finds a partition that this broker leads.
    fn locate(&self, topic: TopicId, partition: PartitionIndex) -> Result<Led, DataError> {
        let at = self.locate_replica(topic, partition)?;
        let term = at.handle.term().ok_or(DataError::NotLeader)?;
        Ok(Led { at, term })
    }

    /// Finds a partition that this broker keeps, whoever leads it.
    fn locate_replica(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
    ) -> Result<Located, DataError> {
        let unknown = || DataError::UnknownPartition { topic, partition };
        let view = self.catalog.topic(topic)?.ok_or_else(unknown)?;
        let shard = view.shard(partition).ok_or_else(unknown)?;
        let handle = self.handle_of(shard).ok_or(DataError::NotLeader)?;
        Ok(Located {
            key: (topic, partition),
            view,
            handle,
        })
    }
}

impl std::fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlane")
            .field("shards", &self.hosted())
            .finish_non_exhaustive()
    }
}
