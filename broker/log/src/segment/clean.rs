//! Rewriting closed segments: how a cleaner takes batches out, or seals them anew, without anybody who reads or appends noticing.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use palisade_seal::{DekVersion, KekId, KeyRing};
use parking_lot::MutexGuard;
use serde::{Deserialize, Serialize};

use super::{
    FrameMeta, PartitionLog, PartitionState, SegmentState,
    file::{Segment, earliest},
};
use crate::{LogError, Offset, frame::FrameWriter};

/// How much is written before it is synced, so that the last sync does not hold up everybody else's.
const SYNC_EVERY: u64 = 8 << 20;

/// How far a log was compacted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned {
    /// No key has two records before this offset.
    pub until: Offset,
    /// Offset after the last tombstone that was removed because its time was over. A replica whose log ends before it may hold records that were deleted, and
    /// will not learn it from the records that are left: it needs the log from its start.
    pub tombstones: Offset,
}

impl Cleaned {
    fn merged(self, other: Self) -> Self {
        Self {
            until: self.until.max(other.until),
            tombstones: self.tombstones.max(other.tombstones),
        }
    }
}

/// Segment files under one KEK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilesUnder {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How a rewriting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// The new segment is in place of the old ones.
    Replaced,
    /// The old ones were removed or damaged meanwhile; everything is as it was.
    Overtaken,
}

impl PartitionLog {
    /// How far the log was compacted.
    #[must_use]
    pub fn cleaned(&self) -> Cleaned {
        self.inner.read().cleaned
    }

    /// Takes note of what was compacted without anything to rewrite.
    pub fn set_cleaned(&self, cleaned: Cleaned) {
        let mut inner = self.inner.write();
        inner.cleaned = inner.cleaned.merged(cleaned);
    }

    /// The segments that are not appended to any more, in order.
    #[must_use]
    pub fn closed_segments(&self) -> Vec<SegmentState> {
        let inner = self.inner.read();
        let closed = match inner.segments.last() {
            Some(last) if !last.is_closed() => inner.segments.len().saturating_sub(1),
            _ => inner.segments.len(),
        };
        inner
            .segments
            .iter()
            .take(closed)
            .map(|segment| segment.state())
            .collect()
    }

    /// Wraps the roots of all segment files under the current KEK. Returns how many, and how many bytes, are not under it yet: those whose header has no place
    /// for the new KEK's name are copied, which ends with the next manifest, or, for the one that is appended to, once it is closed.
    ///
    /// # Errors
    /// Trouble with the disk or the keys. What was wrapped before it stays so.
    pub fn rewrap(&self) -> Result<(usize, u64), LogError> {
        let (segments, retired) = {
            let inner = self.inner.read();
            (inner.segments.clone(), inner.retired.clone())
        };
        let mut left = (0, 0);
        for segment in segments.iter().chain(&retired) {
            let done = match segment.rewrap() {
                _ if segment.is_removed() => true,
                outcome => outcome.inspect_err(|error| self.found(segment, error))?,
            };
            if done {
                continue;
            }
            left = (left.0 + 1, left.1 + segment.length());
            if segments.iter().any(|one| Arc::ptr_eq(one, segment)) {
                self.close_active();
                self.copy(&segment.state())?;
            }
        }
        Ok(left)
    }

    /// Adds up which KEK the segment files are under, with those that are only kept until the next manifest. Returns how many nobody has looked at yet, which
    /// [`PartitionLog::rewrap`] does. A file that no key opens is not counted.
    pub fn count_keks(&self, under: &mut BTreeMap<KekId, FilesUnder>) -> u64 {
        let inner = self.inner.read();
        let mut unknown = 0u64;
        for segment in inner.segments.iter().chain(&inner.retired) {
            match segment.kek() {
                Some(kek) => {
                    let count = under.entry(kek).or_default();
                    count.files = count.files.saturating_add(1);
                    count.bytes = count.bytes.saturating_add(segment.length());
                }
                None if segment.damage().is_some() => {}
                None => unknown = unknown.saturating_add(1),
            }
        }
        unknown
    }

    /// Rewrites a segment as it is, under a header of its own.
    fn copy(&self, segment: &SegmentState) -> Result<(), LogError> {
        let Some(mut rewrite) = self.rewrite(std::slice::from_ref(segment)) else {
            return Ok(());
        };
        loop {
            let batches = rewrite.next(1 << 20)?;
            if batches.is_empty() {
                rewrite.horizon = segment.horizon;
                return rewrite.commit(Cleaned::default()).map(|_| ());
            }
            for (meta, payload) in batches {
                rewrite.put(&meta, &payload, None)?;
            }
        }
    }

    /// Goes on at `to`, for a log that is filled from another in which nothing is left between its end and there.
    pub fn skip_to(&self, to: Offset) {
        let _writer = self.writer.lock();
        let mut inner = self.inner.write();
        inner.end = inner.end.max(to);
    }

    /// Lets the next append begin a new segment, so that the last one can be rewritten.
    pub fn close_active(&self) {
        let _writer = self.writer.lock();
        let inner = self.inner.read();
        if let Some(last) = inner.segments.last()
            && inner.backlog.is_empty()
            && last.end() > last.base
        {
            last.close();
        }
    }

    /// Oldest version of the topic's key that anything of this log is sealed under, also what is only kept until the next manifest.
    #[must_use]
    pub fn oldest_key(&self) -> Option<DekVersion> {
        let inner = self.inner.read();
        let segments = inner.segments.iter().chain(&inner.retired);
        let written = segments.filter_map(|segment| segment.state().oldest_key);
        let waiting = inner
            .backlog
            .iter()
            .filter_map(|(_, payload)| KeyRing::version_of(payload).ok());
        written.chain(waiting).min()
    }

    /// How many segments hold something sealed under an older version of the topic's key than `newest`, and their bytes.
    #[must_use]
    pub fn older_than(&self, newest: DekVersion) -> (usize, u64) {
        let inner = self.inner.read();
        let segments = inner.segments.iter().chain(&inner.retired);
        let states = segments.map(|segment| segment.state());
        states
            .filter(|state| state.oldest_key.is_some_and(|oldest| oldest < newest))
            .fold((0, 0), |(count, bytes), state| {
                (count + 1, bytes + state.length)
            })
    }

    /// Begins to rewrite closed segments that stand side by side into one. `None` when they are not there (any more), one is damaged, or another rewriting of
    /// this log is under way: two of the same segments would write to the same new file.
    #[must_use]
    pub fn rewrite(&self, segments: &[SegmentState]) -> Option<Rewrite<'_>> {
        let alone = self.rewriting.try_lock()?;
        let inner = self.inner.read();
        let first = segments.first()?;
        let at = inner
            .segments
            .iter()
            .position(|segment| segment.base == first.base)?;
        let sources = inner.segments.get(at..at.checked_add(segments.len())?)?;
        let same = |(segment, wanted): (&Arc<Segment>, &SegmentState)| {
            segment.base == wanted.base
                && segment.generation == wanted.generation
                && segment.damage().is_none()
        };
        let is_last = at + segments.len() == inner.segments.len();
        let all_closed = !is_last || sources.last().is_some_and(|last| last.is_closed());
        (all_closed && sources.iter().zip(segments).all(same)).then(|| Rewrite {
            log: self,
            _alone: alone,
            sources: sources.to_vec(),
            at: 0,
            from: first.base,
            target: None,
            scratch: Vec::new(),
            unsynced: 0,
            horizon: None,
        })
    }

    /// Says that a manifest with `state` is durable: files of segments that were rewritten, and that it does not list, are removed.
    pub fn saved(&self, state: &PartitionState) {
        let listed = |segment: &Arc<Segment>| {
            state.segments.iter().any(|listed| {
                listed.base == segment.base && listed.generation == segment.generation
            })
        };
        let gone: Vec<_> = {
            let mut inner = self.inner.write();
            inner
                .retired
                .extract_if(.., |segment| !listed(segment))
                .collect()
        };
        for segment in gone {
            // Left behind, it is a stray for the next start to remove.
            if let Err(error) = segment.remove() {
                tracing::warn!(%error, "cannot remove a segment that was rewritten");
            }
        }
    }
}

/// A rewriting under way: read with [`Rewrite::next`], write what stays with [`Rewrite::put`], then [`Rewrite::commit`]. Dropped before, it leaves nothing.
#[derive(Debug)]
pub struct Rewrite<'a> {
    log: &'a PartitionLog,
    _alone: MutexGuard<'a, ()>,
    sources: Vec<Arc<Segment>>,
    /// Which source is read, and from where.
    at: usize,
    from: Offset,
    target: Option<(Segment, FrameWriter)>,
    scratch: Vec<u8>,
    unsynced: u64,
    horizon: Option<i64>,
}

impl Rewrite<'_> {
    /// The next batches of the old segments, about `max_bytes` of them; empty at the end.
    ///
    /// # Errors
    /// As [`PartitionLog::read`]; a damaged segment is quarantined.
    pub fn next(&mut self, max_bytes: usize) -> Result<Vec<(FrameMeta, Bytes)>, LogError> {
        while let Some(source) = self.sources.get(self.at) {
            let entries = source
                .read(self.from, max_bytes)
                .inspect_err(|error| self.log.found(source, error))?;
            if let Some((last, _)) = entries.last() {
                self.from = Offset(last.last_offset.0.saturating_add(1));
                return Ok(entries);
            }
            self.at = self.at.saturating_add(1);
            if let Some(source) = self.sources.get(self.at) {
                self.from = source.base;
            }
        }
        Ok(Vec::new())
    }

    /// Writes a batch to the new segment. `horizon` is when the tombstones in it may be removed, ms, when there are any that were compacted.
    ///
    /// # Errors
    /// Trouble with the disk, and what is no sealed batch.
    pub fn put(
        &mut self,
        meta: &FrameMeta,
        payload: &[u8],
        horizon: Option<i64>,
    ) -> Result<(), LogError> {
        let (segment, writer) = match &mut self.target {
            Some(target) => target,
            slot => slot.insert(create(self.log, &self.sources)?),
        };
        let before = segment.length();
        segment.append(writer, &mut self.scratch, meta, payload, 0)?;
        self.horizon = earliest(self.horizon, horizon);
        self.unsynced = self
            .unsynced
            .saturating_add(segment.length().saturating_sub(before));
        if self.unsynced >= SYNC_EVERY {
            segment.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Bytes of the files that are replaced.
    #[must_use]
    pub fn source_bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.length()).sum()
    }

    /// Makes the new segment durable and lets it take the place of the old ones.
    ///
    /// # Errors
    /// Trouble with the disk; everything is as it was then.
    pub fn commit(mut self, cleaned: Cleaned) -> Result<Rewritten, LogError> {
        let (Some(first), Some(last)) = (self.sources.first(), self.sources.last()) else {
            return Ok(Rewritten::Overtaken);
        };
        let log = self.log;
        if let Some((segment, _)) = &self.target {
            // It was begun before the KEK changed, perhaps, and nobody has counted it.
            if !segment.rewrap()? {
                return Ok(Rewritten::Overtaken);
            }
            let begun = first.state().begun_at;
            let sources = self.sources.iter();
            let appended = sources.map(|source| source.state().appended_at).max();
            segment.finish(last.end(), begun, appended.unwrap_or(begun), self.horizon);
            segment.sync()?;
            let dir = &log.around.dir;
            log.around
                .fs
                .sync_dir(dir)
                .map_err(LogError::io("sync", dir))?;
        }
        let mut writer = log.writer.lock();
        let mut inner = log.inner.write();
        let at = inner
            .segments
            .iter()
            .position(|segment| Arc::ptr_eq(segment, first));
        let Some(range) = at.map(|at| at..at + self.sources.len()) else {
            return Ok(Rewritten::Overtaken);
        };
        let there = inner.segments.get(range.clone()).unwrap_or_default();
        let untouched = there.len() == self.sources.len()
            && there
                .iter()
                .zip(&self.sources)
                .all(|(one, other)| Arc::ptr_eq(one, other) && one.damage().is_none());
        if !untouched || log.is_removed() {
            return Ok(Rewritten::Overtaken);
        }
        // A writer of the last segment is one for a file that is not appended to any more.
        writer.frames = None;
        let target = self.target.take().map(|(segment, _)| Arc::new(segment));
        let replaced: Vec<_> = inner.segments.splice(range, target).collect();
        inner.retired.extend(replaced);
        inner.cleaned = inner.cleaned.merged(cleaned);
        Ok(Rewritten::Replaced)
    }
}

impl Drop for Rewrite<'_> {
    fn drop(&mut self) {
        if let Some((segment, _)) = self.target.take()
            && let Err(error) = segment.remove()
        {
            tracing::warn!(%error, "cannot remove a segment that was not finished");
        }
    }
}

fn create(
    log: &PartitionLog,
    sources: &[Arc<Segment>],
) -> Result<(Segment, FrameWriter), LogError> {
    let generation = sources.iter().map(|source| source.generation).max();
    let generation = generation
        .and_then(|generation| generation.checked_add(1))
        .ok_or_else(|| LogError::Invalid("a segment cannot be rewritten again".to_owned()))?;
    let base = sources.first().map_or(Offset::ZERO, |first| first.base);
    Segment::create(&log.around, base, generation, 0)
}
