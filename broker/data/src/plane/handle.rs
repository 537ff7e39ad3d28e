//! One shard as this broker hosts it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use palisade_log::{LogError, Wal, WalRecord};
use palisade_shard::{Formation, LeaderView, Leadership, NodeId, Shard, ShardConfig, Transport};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};

use super::Leaders;
use crate::{
    machine::DataMachine,
    shard_data::{ShardData, ShardSetup},
    types::DataError,
};

/// A shard that runs.
pub(super) struct ShardHandle {
    pub(super) shard: Shard<DataMachine>,
    pub(super) data: Arc<ShardData>,
    leadership: watch::Receiver<Option<Leadership>>,
    pub(super) leader: watch::Receiver<LeaderView>,
    /// Damage that was found on disk was reported.
    pub(super) reported: AtomicBool,
    /// Nothing that peers send reaches the replica.
    deaf: AtomicBool,
    follower: Mutex<Option<JoinHandle<()>>>,
}

/// What a shard is started with besides its files.
pub(super) struct Start {
    pub(super) config: ShardConfig,
    pub(super) wal: Arc<Wal>,
    pub(super) replay: Vec<WalRecord>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) formation: Formation,
    pub(super) leaders: watch::Sender<Leaders>,
}

/// A shard's files, opened.
pub(super) async fn open(setup: ShardSetup) -> Result<(DataMachine, Arc<ShardData>), DataError> {
    tokio::task::spawn_blocking(move || DataMachine::open(setup))
        .await
        .map_err(|error| DataError::Shard(error.to_string()))?
}

impl ShardHandle {
    pub(super) async fn start(
        machine: DataMachine,
        data: Arc<ShardData>,
        start: Start,
    ) -> Result<Self, DataError> {
        let shard = Shard::start(
            start.config,
            start.wal,
            start.replay,
            machine,
            start.transport,
            start.formation,
        )
        .await
        .map_err(|error| DataError::Shard(error.to_string()))?;
        let (leadership, leader) = (shard.leadership(), shard.leader());
        let follower = tokio::spawn(follow(
            Arc::clone(&data),
            leadership.clone(),
            leader.clone(),
            start.leaders,
        ));
        Ok(Self {
            shard,
            data,
            leadership,
            leader,
            reported: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            follower: Mutex::new(Some(follower)),
        })
    }

    /// The term in which this broker leads the shard.
    pub(super) fn term(&self) -> Option<u64> {
        self.leadership
            .borrow()
            .as_ref()
            .map(|leadership| leadership.term)
    }

    /// Whether this broker leads the shard, or follows and has applied what it knows to be committed.
    pub(super) fn is_current(&self, me: NodeId) -> bool {
        if self.term().is_some() {
            return true;
        }
        let follows = self
            .leader
            .borrow()
            .leader
            .is_some_and(|leader| leader != me);
        follows && {
            let status = self.shard.status();
            status.applied > 0 && status.applied >= status.committed
        }
    }

    /// Says once what of the shard is damaged.
    pub(super) fn report_once(&self, report: impl FnOnce()) {
        if !self.reported.swap(true, Ordering::Relaxed) {
            report();
        }
    }

    /// Keeps everything that peers send from the replica, for as long as the answer lives.
    pub(super) fn deafen(&self) -> Deaf<'_> {
        self.deaf.store(true, Ordering::SeqCst);
        Deaf(self)
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::SeqCst)
    }

    /// Stops the shard. What is on disk stays.
    pub(super) async fn stop(&self) {
        self.shard.shutdown().await;
        let follower = self.follower.lock().take();
        if let Some(follower) = follower {
            follower.abort();
        }
        self.data.wake_all();
    }

    /// Syncs nearly everything that a checkpoint has to, beside the appends; how many logs that were.
    pub(super) async fn sync(&self) -> Result<usize, LogError> {
        let data = Arc::clone(&self.data);
        tokio::task::spawn_blocking(move || data.sync())
            .await
            .unwrap_or_else(|error| Err(LogError::Invalid(error.to_string())))
    }
}

/// See [`ShardHandle::deafen`].
pub(super) struct Deaf<'a>(&'a ShardHandle);

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        self.0.deaf.store(false, Ordering::SeqCst);
    }
}

/// Tells who leads, and wakes those who wait for records whenever that changes: they wait at the wrong broker then.
async fn follow(
    data: Arc<ShardData>,
    mut leadership: watch::Receiver<Option<Leadership>>,
    mut leader: watch::Receiver<LeaderView>,
    leaders: watch::Sender<Leaders>,
) {
    loop {
        let view = *leader.borrow_and_update();
        leadership.mark_unchanged();
        leaders.send_if_modified(|leaders| {
            let changed = leaders.get(&data.id) != Some(&view);
            if changed {
                Arc::make_mut(leaders).insert(data.id, view);
            }
            changed
        });
        data.wake_all();
        let gone = tokio::select! {
            changed = leader.changed() => changed.is_err(),
            changed = leadership.changed() => changed.is_err(),
        };
        if gone {
            data.wake_all();
            return;
        }
    }
}
