//! What waits for the writer: the boundary between those who append and the one thread that writes.

use std::{collections::BTreeMap, mem};

use palisade_seal::KekId;
use parking_lot::{Condvar, Mutex};

use super::{WalError, WalRecord, WalStats};
use crate::ShardId;

pub(super) type Done = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// Records that are acknowledged together.
pub(super) struct Group {
    pub(super) records: Vec<WalRecord>,
    pub(super) done: Done,
    /// Whether they wait for space on a full disk.
    pub(super) waits: bool,
}

impl Group {
    /// What the records take in a batch, in bytes.
    pub(super) fn cost(&self) -> usize {
        self.records
            .iter()
            .fold(0, |sum, record| record.cost().saturating_add(sum))
    }
}

/// What the writer takes at once.
pub(super) struct Work {
    pub(super) groups: Vec<Group>,
    pub(super) releases: BTreeMap<ShardId, u64>,
    /// The present file is to be left when it is under an old KEK.
    pub(super) renew: bool,
    /// Nothing will follow.
    pub(super) closed: bool,
}

#[derive(Default)]
struct State {
    groups: Vec<Group>,
    bytes: usize,
    releases: BTreeMap<ShardId, u64>,
    renew: bool,
    closed: bool,
    failed: Option<WalError>,
    stats: WalStats,
    /// How many files are under which KEK.
    keks: BTreeMap<KekId, u64>,
}

pub(super) struct Queue {
    limit: usize,
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// Adds a group. One that does not wait for space waits here for room; one that is larger than all of the room is let
    /// in alone.
    pub(super) fn push(&self, group: Group) {
        let mut state = self.state.lock();
        while !group.waits && state.bytes >= self.limit && !state.closed && state.failed.is_none() {
            self.room.wait(&mut state);
        }
        let refused = match &state.failed {
            Some(error) => Some(error.clone()),
            None => state.closed.then_some(WalError::Closed),
        };
        if let Some(error) = refused {
            drop(state);
            (group.done)(Err(error));
            return;
        }
        state.bytes = state.bytes.saturating_add(group.cost());
        state.groups.push(group);
        self.work.notify_one();
    }

    /// As [`Queue::push`], for what forgets a shard: a release from before must not come after it.
    pub(super) fn forget(&self, shard: ShardId, group: Group) {
        self.state.lock().releases.remove(&shard);
        self.push(group);
    }

    pub(super) fn release(&self, shard: ShardId, through: u64) {
        let mut state = self.state.lock();
        let released = state.releases.entry(shard).or_default();
        *released = through.max(*released);
        self.work.notify_one();
    }

    /// Asks for [`Work::renew`].
    pub(super) fn renew(&self) {
        self.state.lock().renew = true;
        self.work.notify_one();
    }

    /// Waits for something to do. Everything that waits is taken: groups that do not fit into one batch are written in
    /// several, without another round through the queue.
    pub(super) fn take(&self) -> Work {
        let mut state = self.state.lock();
        while state.groups.is_empty() && state.releases.is_empty() && !state.renew && !state.closed
        {
            self.work.wait(&mut state);
        }
        self.take_all(&mut state)
    }

    /// What waits now, if anything.
    pub(super) fn take_now(&self) -> Work {
        self.take_all(&mut self.state.lock())
    }

    fn take_all(&self, state: &mut State) -> Work {
        state.bytes = 0;
        self.room.notify_all();
        Work {
            groups: mem::take(&mut state.groups),
            releases: mem::take(&mut state.releases),
            renew: mem::take(&mut state.renew),
            closed: state.closed,
        }
    }

    /// For the writer while it waits for space: what arrived meanwhile and does not want to wait, and all releases.
    pub(super) fn take_unwilling(&self) -> Work {
        let mut state = self.state.lock();
        let (waiting, groups) = mem::take(&mut state.groups)
            .into_iter()
            .partition(|group| group.waits);
        state.groups = waiting;
        state.bytes = state.groups.iter().map(Group::cost).sum();
        self.room.notify_all();
        Work {
            groups,
            releases: mem::take(&mut state.releases),
            renew: false,
            closed: state.closed,
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Nothing can be written any more: what waits and every later append gets `error`.
    pub(super) fn fail(&self, error: &WalError) {
        let mut state = self.state.lock();
        state.failed = Some(error.clone());
        state.bytes = 0;
        let groups = mem::take(&mut state.groups);
        self.room.notify_all();
        drop(state);
        for group in groups {
            (group.done)(Err(error.clone()));
        }
    }

    pub(super) fn stats(&self) -> WalStats {
        self.state.lock().stats
    }

    /// How many files are under which KEK.
    pub(super) fn keks(&self) -> BTreeMap<KekId, u64> {
        self.state.lock().keks.clone()
    }

    pub(super) fn set_keks(&self, keks: BTreeMap<KekId, u64>) {
        self.state.lock().keks = keks;
    }

    pub(super) fn update_stats(&self, update: impl FnOnce(&mut WalStats)) {
        update(&mut self.state.lock().stats);
    }
}
