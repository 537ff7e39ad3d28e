//! One segment file: frames appended, found and read back.

mod check;
mod reading;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use palisade_seal::{DekVersion, FileKey, FileKeys, FileKind, HEADER_LIMIT, KekId, KeyRing};
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::{
    FrameMeta, PartitionPlace, SegmentState, index::SparseIndex, meta::EntryMeta, state::Damage,
};
use crate::{
    LogError, Offset,
    frame::{FRAME_OVERHEAD, FrameLimits, FrameWriter},
    fs::{FileSystem, LogFile},
};

const KIND: FileKind = FileKind(*b"PALISEG1");
/// Bytes of a frame in a segment, all of the same length.
pub(super) const FRAME: usize = FRAME_OVERHEAD + EntryMeta::LEN;
const LIMITS: FrameLimits = FrameLimits {
    meta: EntryMeta::LEN as u32,
    payload: 0,
};
/// A payload up to this long is copied behind its frame, to be written by one call; a longer one gets a call of its own.
const COPIED: usize = 32 << 10;

/// What all segments of a partition share.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) dir: PathBuf,
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) keys: Arc<FileKeys>,
    /// Topic and partition, bound into every header.
    pub(super) context: Vec<u8>,
}

impl Surroundings {
    pub(super) fn of(
        place: PartitionPlace,
        fs: Arc<dyn FileSystem>,
        keys: Arc<FileKeys>,
    ) -> Arc<Self> {
        let context = [
            place.topic.0.as_bytes().as_slice(),
            &place.partition.0.to_be_bytes(),
        ]
        .concat();
        Arc::new(Self {
            dir: place.dir,
            fs,
            keys,
            context,
        })
    }

    pub(super) fn path(&self, base: Offset, generation: u32) -> PathBuf {
        self.dir.join(match generation {
            0 => format!("{:020}.seg", base.0),
            _ => format!("{:020}.{generation}.seg", base.0),
        })
    }

    pub(super) fn quarantine_path(&self, base: Offset, generation: u32) -> PathBuf {
        let mut path = self.path(base, generation).into_os_string();
        path.push(".quarantined");
        path.into()
    }

    /// Gives a damaged segment's file its other name.
    fn set_aside(&self, base: Offset, generation: u32) {
        let from = self.path(base, generation);
        let to = self.quarantine_path(base, generation);
        // The file may be gone: that is the damage then. The state carries the mark in any case.
        if let Err(error) = self.fs.rename(&from, &to) {
            tracing::warn!(file = %from.display(), %error, "cannot rename a damaged segment");
        }
    }

    /// A segment that was rewritten is bound to its generation: none can be put in place of a later one.
    fn context_of(&self, base: Offset, generation: u32) -> Vec<u8> {
        let mut context = [self.context.as_slice(), &base.0.to_be_bytes()].concat();
        if generation > 0 {
            context.extend_from_slice(&generation.to_be_bytes());
        }
        context
    }
}

/// A segment. Readers share it with the one writer: what counts is what lies before `length`, which the writer moves last.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) base: Offset,
    pub(super) generation: u32,
    around: Arc<Surroundings>,
    length: AtomicU64,
    ends: Mutex<Ends>,
    handle: Mutex<Option<Arc<Handle>>>,
    index: RwLock<Option<SparseIndex>>,
    damage: Mutex<Option<Damage>>,
    dirty: AtomicBool,
    sync_failed: Mutex<bool>,
    used: AtomicBool,
    /// Set before the file goes: whoever does not find it then has not found damage.
    removed: AtomicBool,
    /// Nothing is appended to it any more, although it may be the last one.
    closed: AtomicBool,
    /// The KEK that the header was last seen under.
    kek: Mutex<Option<KekId>>,
    /// The header was written anew, and is not known to be durable: what the system shows of it then is not what the disk has.
    header_unsynced: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    end: Offset,
    begun_at: i64,
    max_timestamp: i64,
    appended_at: i64,
    oldest_key: Option<DekVersion>,
    horizon: Option<i64>,
}

#[derive(Debug)]
struct Handle {
    file: Arc<dyn LogFile>,
    key: FileKey,
    frames_begin: u64,
}

/// A segment's part in a sync of the whole volume: until it is dropped, whoever syncs the segment waits.
pub(super) struct JoinedSync<'a> {
    segment: &'a Segment,
    is_done: bool,
    _others_wait: MutexGuard<'a, bool>,
}

impl JoinedSync<'_> {
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for JoinedSync<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.segment.dirty.store(true, Ordering::Release);
        }
    }
}

/// Where a frame stands, and what it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) position: u64,
    pub(super) entry: EntryMeta,
}

impl Segment {
    /// Makes the file and writes its header. What an earlier attempt left there is removed.
    pub(super) fn create(
        around: &Arc<Surroundings>,
        base: Offset,
        generation: u32,
        now_ms: i64,
    ) -> Result<(Self, FrameWriter), LogError> {
        let path = around.path(base, generation);
        let fs = &around.fs;
        let (key, header) = around
            .keys
            .create(KIND, &around.context_of(base, generation))
            .map_err(LogError::header(&path))?;
        let kek = FileKeys::kek_of(KIND, &header).map_err(LogError::header(&path))?;
        let writer = FrameWriter::new(&key, LIMITS).map_err(LogError::header(&path))?;
        match fs.remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LogError::io("remove", &path)(error));
            }
            _ => {}
        }
        let file = fs.create(&path).map_err(LogError::io("create", &path))?;
        file.write_all_at(&header, 0)
            .map_err(LogError::io("write", &path))?;
        let frames_begin = header.len() as u64;
        let segment = Self {
            base,
            generation,
            around: Arc::clone(around),
            length: AtomicU64::new(frames_begin),
            ends: Mutex::new(Ends {
                end: base,
                begun_at: now_ms,
                max_timestamp: -1,
                appended_at: now_ms,
                oldest_key: None,
                horizon: None,
            }),
            handle: Mutex::new(Some(Arc::new(Handle {
                file,
                key,
                frames_begin,
            }))),
            index: RwLock::new(Some(SparseIndex::default())),
            damage: Mutex::new(None),
            dirty: AtomicBool::new(true),
            sync_failed: Mutex::new(false),
            used: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            kek: Mutex::new(Some(kek)),
            header_unsynced: AtomicBool::new(false),
        };
        Ok((segment, writer))
    }

    /// Takes back a segment that a manifest lists. The file is cut to the length that counts; when it is shorter or not there, the segment is damaged.
    pub(super) fn reopen(
        around: &Arc<Surroundings>,
        state: &SegmentState,
    ) -> Result<Self, LogError> {
        let path = around.path(state.base, state.generation);
        let damage = match &state.damage {
            Some(damage) => Some(damage.clone()),
            None => cut_to(around.fs.as_ref(), &path, state.length)?,
        };
        if damage.is_some() && state.damage.is_none() {
            around.set_aside(state.base, state.generation);
        }
        Ok(Self {
            base: state.base,
            generation: state.generation,
            around: Arc::clone(around),
            length: AtomicU64::new(state.length),
            ends: Mutex::new(Ends {
                end: state.end,
                begun_at: state.begun_at,
                max_timestamp: state.max_timestamp,
                appended_at: state.appended_at,
                oldest_key: state.oldest_key,
                horizon: state.horizon,
            }),
            handle: Mutex::new(None),
            index: RwLock::new(None),
            damage: Mutex::new(damage),
            dirty: AtomicBool::new(false),
            sync_failed: Mutex::new(false),
            used: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            kek: Mutex::new(None),
            header_unsynced: AtomicBool::new(false),
        })
    }

    /// Moves the file of a segment that was written elsewhere, and is durable, to where its partition is. Its content is bound to partition and offset, not to a
    /// directory.
    pub(super) fn adopt(around: &Arc<Surroundings>, other: &Self) -> Result<Self, LogError> {
        let (from, to) = (other.path(), around.path(other.base, other.generation));
        around
            .fs
            .rename(&from, &to)
            .map_err(LogError::io("rename", &from))?;
        let segment = Self::reopen(around, &other.state())?;
        *segment.kek.lock() = other.kek();
        // Whatever is in the way, it is left to whoever moves all the others.
        if let Err(error) = segment.rewrap() {
            tracing::debug!(%error, "a segment stays under the key-encryption key that it came with");
        }
        Ok(segment)
    }

    pub(super) fn state(&self) -> SegmentState {
        let ends = *self.ends.lock();
        SegmentState {
            base: self.base,
            generation: self.generation,
            end: ends.end,
            length: self.length(),
            max_timestamp: ends.max_timestamp,
            begun_at: ends.begun_at,
            appended_at: ends.appended_at,
            oldest_key: ends.oldest_key,
            horizon: ends.horizon,
            damage: self.damage(),
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) -> Offset {
        self.ends.lock().end
    }

    pub(super) fn max_timestamp(&self) -> i64 {
        self.ends.lock().max_timestamp
    }

    pub(super) fn damage(&self) -> Option<Damage> {
        self.damage.lock().clone()
    }

    /// The name that the file has now.
    pub(super) fn path(&self) -> PathBuf {
        if self.damage.lock().is_some() {
            self.around.quarantine_path(self.base, self.generation)
        } else {
            self.around.path(self.base, self.generation)
        }
    }

    /// A writer for a segment that was taken back.
    pub(super) fn writer(&self) -> Result<FrameWriter, LogError> {
        let handle = self.handle()?;
        FrameWriter::new(&handle.key, LIMITS).map_err(LogError::header(&self.path()))
    }

    /// Appends one entry. After an error nothing of it counts.
    pub(super) fn append(
        &self,
        writer: &mut FrameWriter,
        scratch: &mut Vec<u8>,
        frame: &FrameMeta,
        payload: &[u8],
        now_ms: i64,
    ) -> Result<(), LogError> {
        let path = || self.around.path(self.base, self.generation);
        let entry = EntryMeta::new(*frame, payload).ok_or_else(|| {
            LogError::Invalid(format!(
                "a payload of {} bytes is not a sealed batch",
                payload.len()
            ))
        })?;
        // The index must be there before the frame is, or it would lack the frames before.
        self.ensure_index()?;
        let handle = self.handle()?;
        let position = self.length();
        scratch.clear();
        writer
            .append(scratch, position, [], &entry.encode())
            .map_err(|error| LogError::Invalid(error.to_string()))?;
        let frame_len = scratch.len();
        // Set before anything is written: a sync in between must not miss it.
        self.dirty.store(true, Ordering::Release);
        if payload.len() <= COPIED {
            scratch.extend_from_slice(payload);
            handle
                .file
                .write_all_at(scratch, position)
                .map_err(LogError::io("write", &path()))?;
        } else {
            handle
                .file
                .write_all_at(scratch, position)
                .map_err(LogError::io("write", &path()))?;
            handle
                .file
                .write_all_at(payload, position + frame_len as u64)
                .map_err(LogError::io("write", &path()))?;
        }
        if let Some(index) = self.index.write().as_mut() {
            index.add(position, frame);
        }
        // Again: a sync meanwhile has taken it back, and may have come before the bytes.
        self.dirty.store(true, Ordering::Release);
        // Before the end: who sees that an offset is in this segment must find it there.
        self.length.store(
            position + (frame_len + payload.len()) as u64,
            Ordering::Release,
        );
        {
            let mut ends = self.ends.lock();
            ends.end = Offset(frame.last_offset.0.saturating_add(1));
            ends.max_timestamp = ends.max_timestamp.max(frame.max_timestamp);
            ends.appended_at = now_ms;
            ends.oldest_key = earliest(ends.oldest_key, KeyRing::version_of(payload).ok());
        }
        Ok(())
    }

    /// Makes what was appended durable; whether there was anything. Once this failed it fails until the file was written again.
    pub(super) fn sync(&self) -> Result<bool, LogError> {
        // Held to the end: who comes second must not take a sync under way for one that is done.
        let mut failed = self.sync_failed.lock();
        let file = self.around.path(self.base, self.generation);
        if *failed {
            let source = std::io::Error::other("an earlier sync of it failed");
            return Err(LogError::SyncFailed { file, source });
        }
        if !self.dirty.load(Ordering::Acquire) {
            return Ok(false);
        }
        let handle = self.handle()?;
        // Before the sync: what is appended during it needs another.
        self.dirty.store(false, Ordering::Release);
        handle.file.sync_data().map_err(|source| {
            *failed = true;
            self.dirty.store(true, Ordering::Release);
            LogError::SyncFailed { file, source }
        })?;
        Ok(true)
    }

    /// Whether something was appended that is not known to be durable.
    pub(super) fn is_unsynced(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Takes part in a sync of the whole volume that is about to begin. `None`: there is nothing to sync, or somebody is at it.
    pub(super) fn join_sync(&self) -> Option<JoinedSync<'_>> {
        let failed = self.sync_failed.try_lock().filter(|failed| !**failed)?;
        // Before the sync: what is appended during it needs another.
        self.dirty
            .swap(false, Ordering::AcqRel)
            .then(|| JoinedSync {
                segment: self,
                is_done: false,
                _others_wait: failed,
            })
    }

    /// Lets go of the file when it was not used since the last call, so that many partitions do not hold as many files open.
    pub(super) fn close_if_idle(&self) {
        // While it is being synced the open file is what will say that it could not be written.
        let Some(_nobody_syncs) = self.sync_failed.try_lock() else {
            return;
        };
        if !self.used.swap(false, Ordering::AcqRel) && !self.dirty.load(Ordering::Acquire) {
            *self.handle.lock() = None;
        }
    }

    /// Takes the segment out of service for good. False when it was before.
    pub(super) fn quarantine(&self, position: u64, reason: &str) -> bool {
        {
            let mut damage = self.damage.lock();
            if damage.is_some() {
                return false;
            }
            *damage = Some(Damage {
                position,
                reason: reason.to_owned(),
            });
        }
        *self.handle.lock() = None;
        self.around.set_aside(self.base, self.generation);
        true
    }

    /// The KEK that the header was last seen under; `None` when nobody has read it yet.
    pub(super) fn kek(&self) -> Option<KekId> {
        self.kek.lock().clone()
    }

    /// Wraps the file's root under the current KEK. False when the header would not have the place of the old one: the segment has to be rewritten then.
    ///
    /// The header lies within the first sector of the file, which a disk writes whole or not at all.
    pub(super) fn rewrap(&self) -> Result<bool, LogError> {
        match self.rewrap_header() {
            // What no key opens needs none.
            Err(LogError::Corrupt { .. }) if self.damage().is_some() => Ok(true),
            Err(LogError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && self.damage().is_some() =>
            {
                Ok(true)
            }
            outcome => outcome,
        }
    }

    fn rewrap_header(&self) -> Result<bool, LogError> {
        let keys = &self.around.keys;
        let is_unsynced = self.header_unsynced.load(Ordering::Acquire);
        if !is_unsynced && self.kek.lock().as_ref() == Some(&keys.current_kek()) {
            return Ok(true);
        }
        // Held to the end: nobody reads the header while it is written.
        let mut handle = self.handle.lock();
        let path = self.path();
        let file = self
            .around
            .fs
            .open(&path)
            .map_err(LogError::io("open", &path))?;
        let mut header = vec![0; HEADER_LIMIT];
        let read = file
            .read_full_at(&mut header, 0)
            .map_err(LogError::io("read", &path))?;
        header.truncate(read);
        let context = self.around.context_of(self.base, self.generation);
        let (_, length) = keys
            .open(KIND, &context, &header)
            .map_err(LogError::header(&path))?;
        let kek_of =
            |header: &[u8]| FileKeys::kek_of(KIND, header).map_err(LogError::header(&path));
        let new = keys
            .rewrap(KIND, &context, &header)
            .map_err(LogError::header(&path))?;
        let new = match new {
            Some(new) if new.len() != length => {
                // It may be there because of a write whose sync failed; then the disk has the one before.
                *self.kek.lock() = (!is_unsynced).then(|| kek_of(&header)).transpose()?;
                return Ok(false);
            }
            Some(new) => Some(new),
            // After a sync that failed the system may take the page for clean: it has to be written again to reach the disk.
            None if is_unsynced => header.get(..length).map(<[u8]>::to_vec),
            None => None,
        };
        if let Some(new) = new {
            self.header_unsynced.store(true, Ordering::Release);
            file.write_all_at(&new, 0)
                .map_err(LogError::io("write", &path))?;
            file.sync_data().map_err(LogError::io("sync", &path))?;
            self.header_unsynced.store(false, Ordering::Release);
            *handle = None;
            *self.kek.lock() = Some(kek_of(&new)?);
        } else {
            *self.kek.lock() = Some(kek_of(&header)?);
        }
        Ok(true)
    }

    /// Whether nothing is appended to it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Lets nothing more be appended.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Ends a segment that was rewritten from others: what it covers, and how old it counts as, are theirs.
    pub(super) fn finish(
        &self,
        end: Offset,
        begun_at: i64,
        appended_at: i64,
        horizon: Option<i64>,
    ) {
        self.close();
        let mut ends = self.ends.lock();
        ends.end = end;
        ends.begun_at = begun_at;
        ends.appended_at = appended_at;
        ends.horizon = horizon;
    }

    /// Whether the file was removed on purpose.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// The file is about to go together with its directory.
    pub(super) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// Removes the file. Readers that have it open can go on reading.
    pub(super) fn remove(&self) -> Result<(), LogError> {
        self.set_removed();
        let path = self.path();
        match self.around.fs.remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LogError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn handle(&self) -> Result<Arc<Handle>, LogError> {
        self.used.store(true, Ordering::Release);
        let mut slot = self.handle.lock();
        if let Some(handle) = slot.as_ref() {
            return Ok(Arc::clone(handle));
        }
        let handle = Arc::new(self.open()?);
        *slot = Some(Arc::clone(&handle));
        Ok(handle)
    }

    /// Opens the file. Whoever calls it holds the lock of the handle: the header must not be written meanwhile.
    fn open(&self) -> Result<Handle, LogError> {
        let path = self.around.path(self.base, self.generation);
        let file = self.around.fs.open(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                self.corrupt(0, "the file is gone")
            } else {
                LogError::io("open", &path)(error)
            }
        })?;
        let mut header = vec![0; HEADER_LIMIT];
        let read = file
            .read_full_at(&mut header, 0)
            .map_err(LogError::io("read", &path))?;
        header.truncate(read);
        let (key, frames_begin) = self
            .around
            .keys
            .open(
                KIND,
                &self.around.context_of(self.base, self.generation),
                &header,
            )
            .map_err(LogError::header(&path))?;
        let kek = FileKeys::kek_of(KIND, &header).map_err(LogError::header(&path))?;
        if !self.header_unsynced.load(Ordering::Acquire) {
            *self.kek.lock() = Some(kek);
        }
        Ok(Handle {
            file,
            key,
            frames_begin: frames_begin as u64,
        })
    }

    fn corrupt(&self, position: u64, reason: &str) -> LogError {
        LogError::Corrupt {
            file: self.around.path(self.base, self.generation),
            offset: position,
            reason: reason.to_owned(),
        }
    }
}

/// The lower of two that may not be there.
pub(super) fn earliest<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Cuts a file to `length`; says what is wrong when it is shorter or missing.
fn cut_to(fs: &dyn FileSystem, path: &Path, length: u64) -> Result<Option<Damage>, LogError> {
    let file = match fs.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Some(Damage {
                position: 0,
                reason: "the file is gone".to_owned(),
            }));
        }
        Err(error) => return Err(LogError::io("open", path)(error)),
    };
    let found = file.len().map_err(LogError::io("measure", path))?;
    if found < length {
        return Ok(Some(Damage {
            position: found,
            reason: format!("the file ends here, {length} bytes were written"),
        }));
    }
    if found > length {
        file.set_len(length).map_err(LogError::io("cut", path))?;
    }
    Ok(None)
}
