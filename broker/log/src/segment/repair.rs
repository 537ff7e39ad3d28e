//! Repairing damaged segments: what they held comes from another replica and is written to new files, which take their place.
//!
//! The new files are of the next generation and durable before they are part of [`PartitionLog::state`], exactly as for a rewriting: the manifest is the one
//! atomic step. Until [`PartitionLog::saved`] says that a manifest without it is durable, the damaged file stays beside them as `*.seg.quarantined`; then it is
//! removed. A repair therefore needs as much space as it replaces, and not for longer than until the next checkpoint.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{
    Cleaned, FrameMeta, PartitionLog, Rewritten, SegmentState,
    file::{Segment, earliest},
};
use crate::{LogError, Offset, frame::FrameWriter};

/// How much is written before it is synced, so that the last sync does not hold up everybody else's.
const SYNC_EVERY: u64 = 8 << 20;

/// What of a log is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairScope {
    /// The damaged segment that begins here alone: for a log of which nothing was compacted, here or where the replacement comes from.
    Segment(Offset),
    /// Everything from the first record to the end of what is damaged, and of what was compacted. Replicas compact by themselves, so a part of one's log does not
    /// fit into another's: it may lack a tombstone whose records are still here. From the start on, it is consistent.
    FromStart,
}

/// A repair under way: hand it what is [`wanted`](Self::wanted) with [`Repair::put`] and [`Repair::skip`], then [`Repair::commit`]. Dropped before, it leaves
/// everything as it was.
#[derive(Debug)]
pub struct Repair<'a> {
    log: &'a PartitionLog,
    _alone: MutexGuard<'a, ()>,
    scope: RepairScope,
    sources: Vec<Arc<Segment>>,
    generation: u32,
    segment_bytes: u64,
    /// Where the first segment begins that is replaced.
    begin: Offset,
    /// The first offset that is wanted: what lies before has expired.
    from: Offset,
    /// Everything before it is there.
    position: Offset,
    to: Offset,
    done: Vec<Arc<Segment>>,
    target: Option<(Segment, FrameWriter)>,
    scratch: Vec<u8>,
    unsynced: u64,
    horizon: Option<i64>,
}

impl PartitionLog {
    /// Begins to repair what is damaged, as [`PartitionLog::quarantined`] lists it. New segments are not made larger than about `segment_bytes`. `None` when nothing
    /// is damaged, or when a rewriting or another repair of this log is under way.
    #[must_use]
    pub fn repair(&self, scope: RepairScope, segment_bytes: u64) -> Option<Repair<'_>> {
        let alone = self.rewriting.try_lock()?;
        if self.is_removed() {
            return None;
        }
        // No batch is on its way into a damaged segment any more: what is taken for its end is its end.
        let _writer = self.writer.lock();
        let inner = self.inner.read();
        let is_damaged = |segment: &Arc<Segment>| segment.damage().is_some();
        let range = match scope {
            RepairScope::Segment(base) => {
                let wanted = |segment: &Arc<Segment>| segment.base == base && is_damaged(segment);
                let at = inner.segments.iter().position(wanted)?;
                at..at.checked_add(1)?
            }
            RepairScope::FromStart => {
                if !inner.segments.iter().any(is_damaged) {
                    return None;
                }
                let until = inner.cleaned.until;
                let last = inner
                    .segments
                    .iter()
                    .rposition(|segment| is_damaged(segment) || segment.base < until)?;
                0..last.checked_add(1)?
            }
        };
        let sources = inner.segments.get(range)?.to_vec();
        // Also a last one that is whole: after a start, nothing else says that it was closed once. What is appended from here on lies behind what is replaced.
        for source in sources.iter().filter(|source| source.end() > source.base) {
            source.close();
        }
        let (first, to) = (sources.first()?.base, sources.last()?.end());
        let begin = match scope {
            RepairScope::Segment(_) => first,
            // What came before the first segment was compacted away, here; how far the log is compacted is what it will be there.
            RepairScope::FromStart => first.min(inner.start),
        };
        // Files that nobody needs any more may still have their names.
        let files = sources.iter().chain(&inner.retired);
        let newest = files.map(|source| source.generation).max()?;
        let from = begin.max(inner.start).min(to);
        Some(Repair {
            log: self,
            _alone: alone,
            scope,
            generation: newest.checked_add(1)?,
            sources,
            segment_bytes,
            begin,
            from,
            position: from,
            to,
            done: Vec::new(),
            target: None,
            scratch: Vec::new(),
            unsynced: 0,
            horizon: None,
        })
    }

    /// Checks about `max_bytes` of a closed segment against its tags, from `position` on; 0 is its beginning. Returns where to go on; `None` at its end, or when
    /// it is not there any more. What is damaged is taken out of service.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for damage that was not known; I/O errors.
    pub fn scrub(
        &self,
        segment: &SegmentState,
        position: u64,
        max_bytes: usize,
    ) -> Result<Option<u64>, LogError> {
        let found = {
            let inner = self.inner.read();
            let wanted = |one: &&Arc<Segment>| {
                (one.base, one.generation) == (segment.base, segment.generation)
            };
            inner.segments.iter().find(wanted).cloned()
        };
        let Some(found) = found.filter(|found| found.damage().is_none()) else {
            return Ok(None);
        };
        match found.check(position, max_bytes) {
            Err(_) if found.is_removed() || found.damage().is_some() => Ok(None),
            outcome => outcome.inspect_err(|error| self.found(&found, error)),
        }
    }
}

impl Repair<'_> {
    /// What is still to come: batches from the one that holds the first offset on, up to the second one. `None`: all of it is there.
    #[must_use]
    pub fn wanted(&self) -> Option<(Offset, Offset)> {
        (self.position < self.to).then_some((self.position, self.to))
    }

    /// Writes the next batch. `horizon` is when the tombstones in it may be removed, ms, when there are any that were compacted.
    ///
    /// # Errors
    /// [`LogError::Invalid`] for a batch that does not follow the one before, or is no sealed batch; trouble with the disk.
    pub fn put(
        &mut self,
        meta: &FrameMeta,
        payload: &[u8],
        horizon: Option<i64>,
    ) -> Result<(), LogError> {
        let next = meta.last_offset.checked_add(1).filter(|next| {
            *next > self.position && *next <= self.to && meta.base_offset <= meta.last_offset
        });
        let follows = meta.base_offset == self.position
            // The first offset that is wanted may lie within a batch.
            || (self.position == self.from && meta.base_offset < self.position);
        let Some(next) = next.filter(|_| follows && meta.base_offset >= self.begin) else {
            return Err(LogError::Invalid(format!(
                "a batch of offsets {} to {} does not continue a repair at {} that ends at {}",
                meta.base_offset, meta.last_offset, self.position, self.to
            )));
        };
        let full = |(segment, _): &(Segment, FrameWriter)| segment.length() >= self.segment_bytes;
        if self.target.as_ref().is_some_and(full) {
            self.close(self.position)?;
        }
        let (segment, writer) = match &mut self.target {
            Some(target) => target,
            slot => {
                // The first one has the place of the first that is replaced, whatever is left of that.
                let base = if self.done.is_empty() {
                    self.begin
                } else {
                    meta.base_offset
                };
                let around = &self.log.around;
                // The damage may be that the directory is gone.
                let dir = &around.dir;
                // With a log that was removed meanwhile its directory went for good.
                if self.log.is_removed() {
                    return Err(LogError::Invalid("the log was removed".to_owned()));
                }
                around
                    .fs
                    .create_dir_all(dir)
                    .map_err(LogError::io("create", dir))?;
                slot.insert(Segment::create(around, base, self.generation, 0)?)
            }
        };
        let before = segment.length();
        segment.append(writer, &mut self.scratch, meta, payload, 0)?;
        self.horizon = earliest(self.horizon, horizon);
        let written = segment.length().saturating_sub(before);
        self.unsynced = self.unsynced.saturating_add(written);
        if self.unsynced >= SYNC_EVERY {
            segment.sync()?;
            self.unsynced = 0;
        }
        self.position = next;
        Ok(())
    }

    /// Goes on at `to`: nothing is left before it, because it was compacted away.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when that is not ahead, or beyond what is wanted.
    pub fn skip(&mut self, to: Offset) -> Result<(), LogError> {
        if to <= self.position || to > self.to {
            return Err(LogError::Invalid(format!(
                "a repair at {} that ends at {} cannot go on at {to}",
                self.position, self.to
            )));
        }
        self.position = to;
        Ok(())
    }

    /// Bytes of the files that are replaced.
    #[must_use]
    pub fn source_bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.length()).sum()
    }

    /// How many of the files that are replaced are damaged.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        let damaged = self.sources.iter().filter(|one| one.damage().is_some());
        damaged.count() as u64
    }

    /// Makes the new segments durable and lets them take the place of the old ones. `cleaned` says how far the log was compacted that they come from.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when something is still wanted; trouble with the disk. Everything is as it was then.
    pub fn commit(mut self, cleaned: Cleaned) -> Result<Rewritten, LogError> {
        if let Some((position, to)) = self.wanted() {
            return Err(LogError::Invalid(format!(
                "a repair that ends at {to} has only come to {position}"
            )));
        }
        self.close(self.to)?;
        let log = self.log;
        for segment in &self.done {
            // It was begun before the KEK changed, perhaps, and nobody has counted it.
            if !segment.rewrap()? {
                return Ok(Rewritten::Overtaken);
            }
            segment.sync()?;
        }
        if !self.done.is_empty() {
            let dir = &log.around.dir;
            log.around
                .fs
                .sync_dir(dir)
                .map_err(LogError::io("sync", dir))?;
        }
        let mut writer = log.writer.lock();
        let mut inner = log.inner.write();
        let at = self.sources.first().and_then(|first| {
            let mut segments = inner.segments.iter();
            segments.position(|segment| Arc::ptr_eq(segment, first))
        });
        let Some(range) = at.map(|at| at..at.saturating_add(self.sources.len())) else {
            return Ok(Rewritten::Overtaken);
        };
        let there = inner.segments.get(range.clone()).unwrap_or_default();
        let untouched = there.len() == self.sources.len()
            && there
                .iter()
                .zip(&self.sources)
                .all(|(one, other)| Arc::ptr_eq(one, other))
            && there.last().is_some_and(|last| last.end() == self.to);
        if !untouched || log.is_removed() {
            return Ok(Rewritten::Overtaken);
        }
        // A writer of the last segment is one for a file that is not appended to any more.
        writer.frames = None;
        let replaced: Vec<_> = inner.segments.splice(range, self.done.drain(..)).collect();
        inner.retired.extend(replaced);
        if self.scope == RepairScope::FromStart {
            // Here it may have been compacted further: what is there now was not.
            inner.cleaned = Cleaned {
                until: cleaned.until.min(self.to),
                tombstones: inner
                    .cleaned
                    .tombstones
                    .max(cleaned.tombstones.min(self.to)),
            };
        }
        Ok(Rewritten::Replaced)
    }

    /// Ends the segment that is being written, at `end`. How old it counts as follows from what it replaces.
    fn close(&mut self, end: Offset) -> Result<(), LogError> {
        let Some((segment, _)) = self.target.take() else {
            // Compacted away up to there: the one before covers it.
            return Ok(());
        };
        let replaced = self
            .sources
            .iter()
            .filter(|source| source.end() > segment.base && source.base < end)
            .map(|source| source.state());
        let ages = replaced.map(|state| (state.begun_at, state.appended_at));
        let (begun, appended) = ages
            .reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
            .unwrap_or_default();
        segment.finish(end, begun, appended, self.horizon.take());
        let synced = segment.sync();
        self.unsynced = 0;
        self.done.push(Arc::new(segment));
        synced.map(drop)
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        let unfinished = self.target.take().map(|(segment, _)| Arc::new(segment));
        for segment in self.done.drain(..).chain(unfinished) {
            // Left behind, it is a stray for the next start to remove.
            if let Err(error) = segment.remove() {
                tracing::warn!(%error, "cannot remove a segment that was not finished");
            }
        }
    }
}
