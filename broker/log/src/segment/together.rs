//! Syncing many logs at once.

use std::{io, sync::Arc, sync::atomic::Ordering};

use parking_lot::MutexGuard;

use super::{PartitionLog, file::Segment};
use crate::fs::Volume;

/// Makes durable what `logs` have on `volume`, by one sync of the whole of it, when at least `worth` files and directories wait for one: each by itself would be a
/// flush of the disk, which the write-ahead log of all shards has to wait behind. Returns how many that were, 0 when it was not worth it.
///
/// [`PartitionLog::sync`] is due after it in any case: for what could not be written before, for what others were syncing, and after an error for everything.
///
/// # Errors
/// When the volume cannot be synced. Nothing counts as synced then; the sync of each file says which of them it was.
pub fn sync_together(
    volume: &dyn Volume,
    logs: &[&PartitionLog],
    worth: usize,
) -> io::Result<usize> {
    let unsynced: Vec<Arc<Segment>> = logs.iter().flat_map(|log| log.unsynced()).collect();
    let changed = || {
        logs.iter()
            .filter(|log| log.dir_changed.load(Ordering::Acquire))
    };
    if unsynced.len() + changed().count() < worth {
        return Ok(0);
    }
    let segments: Vec<_> = unsynced
        .iter()
        .filter_map(|segment| segment.join_sync())
        .collect();
    let dirs: Vec<_> = changed().filter_map(|log| JoinedDirSync::of(log)).collect();
    volume.sync()?;
    let synced = segments.len() + dirs.len();
    segments.into_iter().for_each(|segment| segment.done());
    dirs.into_iter().for_each(JoinedDirSync::done);
    Ok(synced)
}

/// A directory's part in it: until it is dropped, whoever syncs the directory waits.
struct JoinedDirSync<'a> {
    log: &'a PartitionLog,
    is_done: bool,
    _others_wait: MutexGuard<'a, ()>,
}

impl<'a> JoinedDirSync<'a> {
    fn of(log: &'a PartitionLog) -> Option<Self> {
        let others_wait = log.dir_sync.try_lock()?;
        // Before the sync: what changes during it needs another.
        log.dir_changed.swap(false, Ordering::AcqRel).then(|| Self {
            log,
            is_done: false,
            _others_wait: others_wait,
        })
    }

    fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for JoinedDirSync<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.log.dir_changed.store(true, Ordering::Release);
        }
    }
}

impl PartitionLog {
    /// The segments with something to sync.
    fn unsynced(&self) -> Vec<Arc<Segment>> {
        let inner = self.inner.read();
        let segments = inner.segments.iter();
        segments
            .filter(|segment| segment.is_unsynced() && segment.damage().is_none())
            .cloned()
            .collect()
    }
}
