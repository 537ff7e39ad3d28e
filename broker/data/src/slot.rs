//! One partition as this broker holds it.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::AtomicU64},
};

use palisade_log::{
    Offset,
    segment::{PartitionLog, Rolling},
};
use palisade_seal::Sealer;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::{command::Key, epochs::Epochs, producers::Producers};

/// A partition, and what this broker does with it. The slot may be there before the partition is: it is made by the first append.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: Key,
    /// What the leader has promised so far.
    pub(crate) leader: Mutex<LeaderSide>,
    /// Who waits for records.
    pub(crate) waiters: Waiters,
    /// Bytes of all batches appended since the start, as consumers get them.
    pub(crate) appended_bytes: AtomicU64,
    rolling: Mutex<Rolling>,
    partition: RwLock<Option<Arc<Partition>>>,
}

impl Slot {
    pub(crate) fn new(key: Key, rolling: Rolling) -> Self {
        Self {
            key,
            leader: Mutex::default(),
            waiters: Waiters::default(),
            appended_bytes: AtomicU64::new(0),
            rolling: Mutex::new(rolling),
            partition: RwLock::new(None),
        }
    }

    pub(crate) fn partition(&self) -> Option<Arc<Partition>> {
        self.partition.read().clone()
    }

    /// Returns what was in its place.
    pub(crate) fn set_partition(&self, partition: Partition) -> Option<Arc<Partition>> {
        self.partition.write().replace(Arc::new(partition))
    }

    /// When a segment is rolled, as the topic says at the moment.
    pub(crate) fn rolling(&self) -> Rolling {
        *self.rolling.lock()
    }

    pub(crate) fn set_rolling(&self, rolling: Rolling) {
        *self.rolling.lock() = rolling;
    }
}

/// What was applied of a partition.
#[derive(Debug)]
pub(crate) struct Partition {
    /// Version of the metadata in which its topic was seen: older metadata cannot say that the topic is gone.
    pub(crate) seen: u64,
    /// Index of the command that made it: tells it from one that was dropped, and made again under the same key.
    pub(crate) created: u64,
    /// Number of its directory on this broker.
    pub(crate) dir: u64,
    pub(crate) log: PartitionLog,
    pub(crate) replicated: Mutex<Replicated>,
}

/// State that every replica has alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replicated {
    pub(crate) producers: Producers,
    pub(crate) epochs: Epochs,
}

/// The leader's side of a partition: offsets are promised here, before the batches are replicated, and checked again when they are applied.
#[derive(Default)]
pub(crate) struct LeaderSide {
    /// Term for which the rest is valid.
    pub(crate) term: u64,
    /// Offset of the next batch.
    pub(crate) next: Offset,
    /// Commands that were proposed and are not answered yet.
    pub(crate) in_flight: u32,
    /// A promised offset was not used: nothing that was promised after it can be applied. New promises wait until all answers are here.
    pub(crate) broken: bool,
    /// Whether the partition was made, or is about to be.
    pub(crate) created: bool,
    pub(crate) sealer: Option<Arc<Sealer>>,
}

impl fmt::Debug for LeaderSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderSide")
            .field("term", &self.term)
            .field("next", &self.next)
            .field("in_flight", &self.in_flight)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// Readers that wait for records. Whoever waits holds the other end; entries of those who gave up are dropped on the way.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Vec<Weak<Notify>>>);

impl Waiters {
    /// Beyond this many, those who gave up are looked for when another comes.
    const CROWD: usize = 32;

    pub(crate) fn add(&self, waiter: &Arc<Notify>) {
        let mut waiters = self.0.lock();
        if waiters.len() >= Self::CROWD {
            waiters.retain(|waiter| waiter.strong_count() > 0);
        }
        waiters.push(Arc::downgrade(waiter));
    }

    pub(crate) fn wake(&self) {
        self.0
            .lock()
            .retain(|waiter| waiter.upgrade().map(|waiter| waiter.notify_one()).is_some());
    }
}
