mod adopt;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use palisade_seal::FileKeys;
use parking_lot::{Mutex, RwLock};

use super::{
    Cleaned, FrameMeta, PartitionState, QuarantinedSegment, Rolling,
    file::{Segment, Surroundings},
    state::retention_start,
};
use crate::{LogError, Offset, PartitionIndex, TopicId, frame::FrameWriter, fs::FileSystem};

/// Which partition a directory is for: bound into its files.
#[derive(Clone, Debug)]
pub struct PartitionPlace {
    /// The partition's own directory.
    pub dir: PathBuf,
    /// Topic.
    pub topic: TopicId,
    /// Partition.
    pub partition: PartitionIndex,
}

/// Where an appended batch is now.
#[derive(Debug)]
pub enum Stored {
    /// In the segment file.
    OnDisk,
    /// In memory, because the file could not be written; [`PartitionLog::flush`] tries again.
    InMemory(LogError),
}

/// The log of one partition. One thread appends; any thread reads.
#[derive(Debug)]
pub struct PartitionLog {
    pub(super) around: Arc<Surroundings>,
    pub(super) writer: Mutex<Writer>,
    /// Held by the one rewriting that may be under way.
    pub(super) rewriting: Mutex<()>,
    pub(super) inner: RwLock<Inner>,
    pub(super) dir_changed: AtomicBool,
    /// Held while the directory is synced: who comes second must not take that for done.
    pub(super) dir_sync: Mutex<()>,
    /// Set before the directory goes.
    removed: AtomicBool,
    /// Where it began, before anything was taken out of it.
    begin: Offset,
}

#[derive(Debug, Default)]
pub(super) struct Writer {
    /// The active segment's frame writer, and that segment's base offset.
    pub(super) frames: Option<(Offset, FrameWriter)>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) start: Offset,
    pub(super) end: Offset,
    /// In the order of their offsets; the last one is appended to, unless it is closed.
    pub(super) segments: Vec<Arc<Segment>>,
    /// What could not be written yet, after the last segment.
    pub(super) backlog: VecDeque<(FrameMeta, Bytes)>,
    /// Rewritten since, but a stored manifest may still list them.
    pub(super) retired: Vec<Arc<Segment>>,
    pub(super) cleaned: Cleaned,
}

impl PartitionLog {
    /// Takes a partition's log back to `state`; a new partition has the default state. Nothing is made on the disk before the first append.
    ///
    /// # Errors
    /// When the directory cannot be read or cleaned. A segment that is shorter than it should be, or gone, is no error here: what is replayed may remove it.
    /// See [`PartitionLog::quarantined`].
    pub fn open(
        place: PartitionPlace,
        state: &PartitionState,
        fs: Arc<dyn FileSystem>,
        keys: Arc<FileKeys>,
    ) -> Result<Self, LogError> {
        let around = Surroundings::of(place, fs, keys);
        remove_strays(&around, state)?;
        let mut segments = Vec::with_capacity(state.segments.len());
        for remembered in &state.segments {
            let segment = Segment::reopen(&around, remembered)?;
            segments.push(Arc::new(segment));
        }
        let log = Self::with(around, state.start, state.end, segments);
        log.inner.write().cleaned = state.cleaned;
        Ok(log)
    }

    /// A log in a directory that nobody has used, without records: the first one gets offset `end`. Touches no disk, so it cannot fail. `start` may lie behind
    /// `end` for a log that is to be filled with batches from elsewhere, of which the first begins before the first offset that exists.
    #[must_use]
    pub fn empty(
        place: PartitionPlace,
        start: Offset,
        end: Offset,
        fs: Arc<dyn FileSystem>,
        keys: Arc<FileKeys>,
    ) -> Self {
        Self::with(Surroundings::of(place, fs, keys), start, end, Vec::new())
    }

    fn with(
        around: Arc<Surroundings>,
        start: Offset,
        end: Offset,
        segments: Vec<Arc<Segment>>,
    ) -> Self {
        Self {
            begin: segments.first().map_or(end, |segment| segment.base),
            around,
            writer: Mutex::default(),
            rewriting: Mutex::default(),
            inner: RwLock::new(Inner {
                start,
                end,
                segments,
                backlog: VecDeque::new(),
                retired: Vec::new(),
                cleaned: Cleaned::default(),
            }),
            dir_changed: AtomicBool::new(false),
            dir_sync: Mutex::new(()),
            removed: AtomicBool::new(false),
        }
    }

    /// Appends a batch, which must begin at the end of the log. `rolling` says when a new segment begins, `now_ms` the broker's clock.
    ///
    /// # Errors
    /// [`LogError::Invalid`] when the batch does not follow the one before or is no sealed batch. Trouble with the disk is no error, see [`Stored`].
    pub fn append(
        &self,
        meta: FrameMeta,
        payload: Bytes,
        rolling: Rolling,
        now_ms: i64,
    ) -> Result<Stored, LogError> {
        let mut writer = self.writer.lock();
        let (end, backlog_empty) = {
            let inner = self.inner.read();
            (inner.end, inner.backlog.is_empty())
        };
        let next = meta
            .last_offset
            .checked_add(1)
            .filter(|_| meta.base_offset == end && meta.last_offset >= end);
        let Some(next) = next else {
            return Err(LogError::Invalid(format!(
                "a batch of offsets {} to {} does not follow a log that ends at {end}",
                meta.base_offset, meta.last_offset
            )));
        };
        let outcome = if backlog_empty {
            self.write(&mut writer, &meta, &payload, rolling, now_ms)
        } else {
            Err(LogError::Invalid(
                "batches before it wait to be written".to_owned(),
            ))
        };
        let mut inner = self.inner.write();
        inner.end = next;
        match outcome {
            Ok(()) => Ok(Stored::OnDisk),
            Err(error) => {
                inner.backlog.push_back((meta, payload));
                Ok(Stored::InMemory(error))
            }
        }
    }

    /// Writes what waits in memory.
    ///
    /// # Errors
    /// The first failure; the rest goes on waiting.
    pub fn flush(&self, rolling: Rolling, now_ms: i64) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        if self.is_removed() {
            return Ok(());
        }
        loop {
            let Some((meta, payload)) = self.inner.read().backlog.front().cloned() else {
                return Ok(());
            };
            self.write(&mut writer, &meta, &payload, rolling, now_ms)?;
            self.inner.write().backlog.pop_front();
        }
    }

    /// Bytes that wait in memory to be written.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.inner
            .read()
            .backlog
            .iter()
            .map(|(_, payload)| payload.len())
            .sum()
    }

    /// Reads batches from the one that holds `from`, about `max_bytes` of them, at least one when there is any. One call may return less than there is: read
    /// on from the last offset.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when the place is damaged, found now or before; I/O errors.
    pub fn read(
        &self,
        mut from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<(FrameMeta, Bytes)>, LogError> {
        loop {
            let segment = {
                let inner = self.inner.read();
                match inner.segment_of(from) {
                    Some(segment) => Arc::clone(segment),
                    None => return Ok(inner.read_backlog(from, max_bytes)),
                }
            };
            self.check(&segment)?;
            match segment.read(from, max_bytes) {
                // Taken out of the list before it was removed: the next turn finds another.
                Err(_) if segment.is_removed() => {}
                // Compacted away up to its end.
                Ok(found) if found.is_empty() && segment.end() > from => from = segment.end(),
                outcome => return outcome.inspect_err(|error| self.found(&segment, error)),
            }
        }
    }

    /// Base offset of the first batch at or after `from` that reaches `timestamp`, ms. Which record of it does is for its reader to see.
    ///
    /// # Errors
    /// As [`PartitionLog::read`]; damaged segments are passed over.
    pub fn offset_for_timestamp(
        &self,
        timestamp: i64,
        from: Offset,
    ) -> Result<Option<Offset>, LogError> {
        let (start, segments) = {
            let inner = self.inner.read();
            (inner.start.max(from), inner.segments.clone())
        };
        for segment in segments {
            if segment.max_timestamp() < timestamp
                || segment.end() <= start
                || segment.damage().is_some()
            {
                continue;
            }
            let found = match segment.find_time(timestamp, start) {
                Err(_) if segment.is_removed() => continue,
                outcome => outcome.inspect_err(|error| self.found(&segment, error))?,
            };
            if let Some(frame) = found {
                return Ok(Some(frame.base_offset));
            }
        }
        let inner = self.inner.read();
        let mut waiting = inner.backlog.iter().map(|(meta, _)| meta);
        let found =
            waiting.find(|meta| meta.max_timestamp >= timestamp && meta.last_offset >= start);
        Ok(found.map(|meta| meta.base_offset))
    }

    /// The latest timestamp in the log, ms; `None` when no record has one.
    #[must_use]
    pub fn max_timestamp(&self) -> Option<i64> {
        let inner = self.inner.read();
        let on_disk = inner
            .segments
            .iter()
            .filter(|segment| segment.damage().is_none())
            .map(|segment| segment.max_timestamp());
        let waiting = inner.backlog.iter().map(|(meta, _)| meta.max_timestamp);
        on_disk
            .chain(waiting)
            .max()
            .filter(|timestamp| *timestamp >= 0)
    }

    /// First offset that exists.
    #[must_use]
    pub fn start_offset(&self) -> Offset {
        self.inner.read().start
    }

    /// Offset that the next record gets.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.inner.read().end
    }

    /// Bytes of the segments' files.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner
            .read()
            .segments
            .iter()
            .map(|segment| segment.length())
            .sum()
    }

    /// Raises the first offset, never lowers it, and removes the segments that lie before it. Returns the first offset then.
    pub fn advance_start(&self, to: Offset) -> Offset {
        let _writer = self.writer.lock();
        let (start, gone) = {
            let mut inner = self.inner.write();
            inner.start = inner.start.max(to.min(inner.end));
            let start = inner.start;
            let (gone, kept) = std::mem::take(&mut inner.segments).into_iter().partition(
                |segment: &Arc<Segment>| segment.end() <= start && segment.end() > segment.base,
            );
            inner.segments = kept;
            (start, gone)
        };
        for segment in gone {
            self.dir_changed.store(true, Ordering::Release);
            // Left behind, it is a stray for the next start to remove.
            if let Err(error) = segment.remove() {
                tracing::warn!(%error, "cannot remove a segment that is not needed any more");
            }
        }
        start
    }

    /// The first offset that the limits allow, when it is higher than the one now: what to call [`PartitionLog::advance_start`] with.
    #[must_use]
    pub fn retention_start(
        &self,
        now_ms: i64,
        retention_ms: Option<i64>,
        retention_bytes: Option<u64>,
    ) -> Option<Offset> {
        let state = self.state();
        retention_start(&state.segments, now_ms, retention_ms, retention_bytes)
            .filter(|offset| *offset > state.start)
    }

    /// Makes everything appended so far durable, so that [`PartitionLog::state`] may go into a manifest. Whether there was anything to do.
    ///
    /// # Errors
    /// When something cannot be written; another call tries again. [`LogError::SyncFailed`] stays, see there.
    pub fn sync(&self, rolling: Rolling, now_ms: i64) -> Result<bool, LogError> {
        self.flush(rolling, now_ms)?;
        let segments = self.inner.read().segments.clone();
        let mut synced = false;
        for segment in segments {
            if segment.damage().is_none() {
                match segment.sync() {
                    Err(_) if segment.is_removed() => {}
                    outcome => synced |= outcome?,
                }
            }
        }
        if self.is_removed() {
            return Ok(synced);
        }
        let _one = self.dir_sync.lock();
        if self.dir_changed.swap(false, Ordering::AcqRel) {
            synced = true;
            if let Err(error) = self.around.fs.sync_dir(&self.around.dir) {
                self.dir_changed.store(true, Ordering::Release);
                return Err(LogError::io("sync", &self.around.dir)(error));
            }
        }
        Ok(synced)
    }

    /// What a manifest needs to bring the log back.
    #[must_use]
    pub fn state(&self) -> PartitionState {
        let inner = self.inner.read();
        PartitionState {
            start: inner.start,
            end: inner.end,
            segments: inner
                .segments
                .iter()
                .map(|segment| segment.state())
                .collect(),
            cleaned: inner.cleaned,
        }
    }

    /// Segments that are not served because they are damaged.
    #[must_use]
    pub fn quarantined(&self) -> Vec<QuarantinedSegment> {
        let inner = self.inner.read();
        let damaged = inner.segments.iter().filter_map(|segment| {
            let damage = segment.damage()?;
            Some(QuarantinedSegment {
                file: segment.path(),
                position: damage.position,
                reason: damage.reason,
                base: segment.base,
                end: segment.end(),
            })
        });
        damaged.collect()
    }

    /// Takes the segment that holds `offset` out of service: for a reader that found the batch there to be damaged under the topic's key.
    pub fn quarantine(&self, offset: Offset, reason: &str) {
        let segment = self.inner.read().segment_of(offset).cloned();
        if let Some(segment) = segment.filter(|segment| !segment.is_removed())
            && segment.quarantine(0, reason)
        {
            self.dir_changed.store(true, Ordering::Release);
            report(&segment.path(), 0, reason);
        }
    }

    /// Closes the files that were not used since the last call.
    pub fn close_idle(&self) {
        for segment in &self.inner.read().segments {
            segment.close_if_idle();
        }
    }

    /// Whether [`PartitionLog::retire`] was called: nothing can be read then, which is no damage.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Ends the use of the log, whose files are about to go: it is empty for those who still hold it.
    pub fn retire(&self) {
        // No batch is on its way to a file then, and none will be.
        let mut writer = self.writer.lock();
        writer.frames = None;
        self.removed.store(true, Ordering::Release);
        {
            let mut inner = self.inner.write();
            let inner = &mut *inner;
            for segment in inner.segments.drain(..).chain(inner.retired.drain(..)) {
                segment.set_removed();
            }
            inner.backlog.clear();
        }
    }

    /// Retires the log, and removes its directory with everything in it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(&self) -> Result<(), LogError> {
        self.retire();
        match self.around.fs.remove_dir_all(&self.around.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LogError::io("remove", &self.around.dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes one entry into the active segment, a new one when that is needed.
    fn write(
        &self,
        writer: &mut Writer,
        meta: &FrameMeta,
        payload: &Bytes,
        rolling: Rolling,
        now_ms: i64,
    ) -> Result<(), LogError> {
        let active = self.inner.read().segments.last().cloned();
        let active = active.filter(|segment| {
            segment.damage().is_none()
                && !segment.is_closed()
                && (segment.end() == segment.base || !rolling.is_full(&segment.state(), now_ms))
        });
        if let Some(segment) = active {
            match self.write_to(&segment, writer, meta, payload, now_ms) {
                // What cannot be read back must not be appended to: go on in a new segment.
                Err(error @ LogError::Corrupt { .. }) => self.found(&segment, &error),
                outcome => return outcome,
            }
        }
        let segment = self.roll(writer, meta.base_offset, now_ms)?;
        self.write_to(&segment, writer, meta, payload, now_ms)
    }

    fn write_to(
        &self,
        segment: &Segment,
        writer: &mut Writer,
        meta: &FrameMeta,
        payload: &Bytes,
        now_ms: i64,
    ) -> Result<(), LogError> {
        let frames = match &mut writer.frames {
            Some((base, frames)) if *base == segment.base => frames,
            slot => &mut slot.insert((segment.base, segment.writer()?)).1,
        };
        segment.append(frames, &mut writer.scratch, meta, payload, now_ms)
    }

    fn roll(
        &self,
        writer: &mut Writer,
        base: Offset,
        now_ms: i64,
    ) -> Result<Arc<Segment>, LogError> {
        let dir = &self.around.dir;
        if self.inner.read().segments.is_empty() {
            self.around
                .fs
                .create_dir_all(dir)
                .map_err(LogError::io("create", dir))?;
        }
        let (segment, frames) = Segment::create(&self.around, base, 0, now_ms)?;
        let segment = Arc::new(segment);
        self.dir_changed.store(true, Ordering::Release);
        writer.frames = Some((base, frames));
        let mut inner = self.inner.write();
        // An empty segment is only left when it is damaged; the new one takes its place.
        inner.segments.retain(|other| other.base != base);
        inner.segments.push(Arc::clone(&segment));
        Ok(segment)
    }

    fn check(&self, segment: &Segment) -> Result<(), LogError> {
        match segment.damage() {
            None => Ok(()),
            Some(damage) => Err(LogError::Corrupt {
                file: segment.path(),
                offset: damage.position,
                reason: format!("{}; the segment is quarantined", damage.reason),
            }),
        }
    }

    /// Takes the segment out of service when `error` says that it is damaged.
    pub(super) fn found(&self, segment: &Segment, error: &LogError) {
        if !segment.is_removed()
            && let LogError::Corrupt {
                file,
                offset,
                reason,
            } = error
            && segment.quarantine(*offset, reason)
        {
            self.dir_changed.store(true, Ordering::Release);
            report(file, *offset, reason);
        }
    }
}

impl Inner {
    /// The segment that holds `offset`, or the next one when nothing does.
    fn segment_of(&self, offset: Offset) -> Option<&Arc<Segment>> {
        let after = self
            .segments
            .partition_point(|segment| segment.base <= offset);
        self.segments
            .iter()
            .skip(after.saturating_sub(1))
            .find(|segment| segment.end() > offset)
    }

    fn read_backlog(&self, from: Offset, max_bytes: usize) -> Vec<(FrameMeta, Bytes)> {
        let mut bytes = 0usize;
        self.backlog
            .iter()
            .filter(|(meta, _)| meta.last_offset >= from)
            .take_while(|(_, payload)| {
                let first = bytes == 0;
                bytes = bytes.saturating_add(payload.len());
                first || bytes <= max_bytes
            })
            .cloned()
            .collect()
    }
}

/// Removes files that the state does not list: made after the manifest was, or left when a removal failed.
fn remove_strays(around: &Surroundings, state: &PartitionState) -> Result<(), LogError> {
    let names = match around.fs.list(&around.dir) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LogError::io("list", &around.dir)(error)),
    };
    for name in names {
        let path = around.dir.join(&name);
        let listed = state.segments.iter().any(|segment| {
            let quarantined = around.quarantine_path(segment.base, segment.generation);
            let expected = around.path(segment.base, segment.generation);
            // Quarantined after the manifest was written: the mark is made again, the file must stay for repair.
            (path == expected && segment.damage.is_none()) || path == quarantined
        });
        if !listed && name.contains(".seg") {
            around
                .fs
                .remove_file(&path)
                .map_err(LogError::io("remove", &path))?;
        }
    }
    Ok(())
}

fn report(file: &Path, position: u64, reason: &str) {
    tracing::error!(file = %file.display(), position, reason, "a segment is damaged and was taken out of service");
}
