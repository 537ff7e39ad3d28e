//! The write-ahead log: one for each broker, shared by all its shards.
//!
//! # Constraints
//!
//! - What was acknowledged survives a crash at any moment; what was not may survive, in the order in which it was
//!   appended and never with a gap.
//! - One `fdatasync` makes everything durable that was waiting when it began (group commit).
//! - Writes go to files that were filled with zeros and synced before, because syncing a growing file costs several
//!   times as much. Files are used again when nothing in them is needed any more.
//! - A failed `fdatasync` ends the process: the kernel may have dropped the dirty pages, so no later success can be
//!   trusted. A full disk does not: those who wait get [`WalError::Full`], and the log goes on when there is space.
//!
//! # Files
//!
//! ```text
//! wal-<number>.log    numbers without gaps; the highest is being written
//! spare-<number>.log  ready to become the next one
//! lock                held while a process uses the directory
//! ```
//!
//! A file is a header in its first block ([`palisade_seal::FileKeys`], bound to the file's number) and one frame
//! ([`crate::frame`]) for each `fdatasync`, each beginning on a block of 4096 bytes, so that a block with acknowledged
//! data is never written again. A frame carries one batch:
//!
//! ```text
//! meta     sequence u64, count u32, then for each record
//!          shard u32, kind u8, index u64, meta length u32, payload length u32, meta
//! payload  the records' payloads, joined
//! ```
//!
//! Batches are numbered without gaps across all files. The first batch of a file repeats what must outlive older files:
//! how far each shard was released, and the newest record of each sticky kind. Of a shard that is forgotten only what was kept is repeated, and what lies before the record
//! that says so does not count; since files leave in their order, that record is there for as long as anything before it.
//!
//! # Recovery
//!
//! The files are read in order. Since a batch is written only after the one before it is durable, an unreadable batch is
//! the torn tail of a crash if and only if it is in the last file and no batch follows it: then it is cut off, it was
//! never acknowledged. Anything else is corruption and stops the start with file and offset. (Damage to the last batches, or
//! an end that somebody has cut off, looks like a torn tail: only other replicas still have it.)
//!
//! A reused file has a new key and frame marker, so what stood in it before can be neither read nor taken for new.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, thread};

use bytes::Bytes;
use palisade_seal::{FileKeys, FileKind, KekId};
use parking_lot::Mutex;

use crate::{
    LogError, ShardId,
    frame::FrameLimits,
    fs::{FileSystem, RealFs},
};

mod batch;
mod pool;
mod queue;
mod recover;
mod roll;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod kek_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use pool::Pool;
use queue::{Group, Queue};
use writer::Writer;

const KIND: FileKind = FileKind(*b"PALIWAL1");
/// Frames begin on multiples of it: the unit in which disks and page caches write.
const BLOCK: u64 = 4096;

/// One record of a shard in the write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalRecord {
    /// Whose record it is.
    pub shard: ShardId,
    /// What it is, as the shard defines it; see [`WalRecord::STICKY`].
    pub kind: u8,
    /// Its place in the shard's log; records up to an index are released together.
    pub index: u64,
    /// Encrypted with the frame.
    pub meta: Vec<u8>,
    /// Must be ciphertext already: authenticated with the frame, stored as it is.
    pub payload: Bytes,
}

impl WalRecord {
    /// Kinds from here on are state, not history: the newest record of each (shard, kind) is kept whatever is
    /// released, older ones are not. Their payload must be empty; keep their meta small.
    pub const STICKY: u8 = 0x80;

    /// Taken by the log itself: how far a shard was released.
    const RELEASED: u8 = 0xff;
    /// Taken by the log itself: everything of the shard before this record is gone.
    const FORGOTTEN: u8 = 0xfe;

    fn is_sticky(&self) -> bool {
        self.kind >= Self::STICKY
    }

    /// What it takes in a batch, in bytes: meta, payload and 21 more.
    #[must_use]
    pub fn cost(&self) -> usize {
        batch::RECORD_OVERHEAD
            .saturating_add(self.meta.len())
            .saturating_add(self.payload.len())
    }
}

/// Why records were not made durable. None of them will be found by a recovery, unless [`WalError::Failed`] is the
/// reason: then nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// There is no space for more.
    #[error("the disk of the write-ahead log is full; free space on it, writing goes on by itself")]
    Full,
    /// Records that no file can hold together.
    #[error("{bytes} bytes at once exceed the write-ahead log's limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A record that the log does not take.
    #[error("{0}")]
    Invalid(&'static str),
    /// A write or sync failed, or no key for a new file could be made.
    #[error("the write-ahead log cannot write: {0}")]
    Failed(String),
    /// The log was closed before the records were written.
    #[error("the write-ahead log is closed")]
    Closed,
}

/// How a write-ahead log is kept.
#[derive(Clone)]
pub struct WalOptions {
    /// The directory; it is created.
    pub dir: PathBuf,
    /// The file system it is on.
    pub fs: Arc<dyn FileSystem>,
    /// Size of a file in bytes. One append may take nearly half of it.
    pub file_bytes: u64,
    /// Most bytes that wait to be written before [`Wal::append`] makes its callers wait.
    pub queue_bytes: usize,
    /// Most bytes that are made durable by one `fdatasync`.
    pub batch_bytes: usize,
    /// Most released files that are kept for use again; more are removed.
    pub spare_files: usize,
    /// Called when a write or a sync failed and what is on the disk is unknown. The default ends the process.
    pub on_failure: Arc<dyn Fn(&io::Error) + Send + Sync>,
    /// `None`: threads of the log's own write. Else this is called when there is something to write, and somebody then calls [`Wal::pump`]: for simulations,
    /// which decide when a disk is done. A full disk is nothing that such a log waits for.
    pub pumped: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl WalOptions {
    /// The defaults for a log in `dir`: files of 64 MiB, on the real file system.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            fs: Arc::new(RealFs),
            file_bytes: 64 << 20,
            queue_bytes: 32 << 20,
            batch_bytes: 4 << 20,
            spare_files: 4,
            on_failure: Arc::new(|_| std::process::abort()),
            pumped: None,
        }
    }

    fn validate(&self) -> Result<(), LogError> {
        if self.file_bytes < 16 * BLOCK
            || self.file_bytes > u64::from(u32::MAX)
            || !self.file_bytes.is_multiple_of(BLOCK)
        {
            return Err(LogError::Invalid(format!(
                "a write-ahead log file of {} bytes is not possible; choose a multiple of {BLOCK} from {} to {}",
                self.file_bytes,
                16 * BLOCK,
                u32::MAX
            )));
        }
        Ok(())
    }

    /// Most that one append may take: any file has room for it beside what stands at its beginning.
    fn group_limit(&self) -> usize {
        usize::try_from(self.file_bytes / 2 - 2 * BLOCK).unwrap_or(usize::MAX)
    }

    fn limits(&self) -> FrameLimits {
        self.limits_of(self.file_bytes)
    }

    /// Of frames in a file of this length, which may have been made with another setting.
    fn limits_of(&self, length: u64) -> FrameLimits {
        let most = u32::try_from(self.file_bytes.max(length)).unwrap_or(u32::MAX);
        FrameLimits {
            meta: most,
            payload: most,
        }
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.dir.join(format!("wal-{number:016}.log"))
    }
}

impl std::fmt::Debug for WalOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalOptions")
            .field("dir", &self.dir)
            .field("file_bytes", &self.file_bytes)
            .finish_non_exhaustive()
    }
}

/// What a write-ahead log has done since it was opened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Batches written, i.e. calls of `fdatasync` for records.
    pub batches: u64,
    /// Records written.
    pub records: u64,
    /// Bytes written, with everything that frames add.
    pub bytes: u64,
    /// Nanoseconds spent in `fdatasync` for records.
    pub sync_nanos: u64,
    /// Files that hold something that is needed, with the one being written.
    pub files: u64,
}

/// An open write-ahead log. Dropping it writes what is queued and waits for that.
pub struct Wal {
    queue: Arc<Queue>,
    pool: Arc<Pool>,
    group_limit: usize,
    threads: Vec<thread::JoinHandle<()>>,
    pumped: Option<Pumped>,
    _lock: Box<dyn Send + Sync>,
}

/// What stands in for the threads of a log without any.
struct Pumped {
    wake: Arc<dyn Fn() + Send + Sync>,
    /// `None`: nothing can be written any more.
    writer: Mutex<Option<Writer>>,
}

impl Wal {
    /// Opens the log in `options.dir`, or begins it, and returns the records that are not released: first the newest of
    /// each sticky kind, then the others in the order in which they were appended.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with file and offset, [`LogError::Key`] when a key is missing or wrong,
    /// [`LogError::Io`] otherwise, also when another process uses the directory.
    pub fn open(
        options: WalOptions,
        keys: Arc<FileKeys>,
    ) -> Result<(Self, Vec<WalRecord>), LogError> {
        options.validate()?;
        let dir = options.dir.as_path();
        options
            .fs
            .create_dir_all(dir)
            .map_err(LogError::io("create", dir))?;
        let lock_path = dir.join("lock");
        let lock = options
            .fs
            .lock(&lock_path)
            .map_err(LogError::io("lock", &lock_path))?;
        let names = options.fs.list(dir).map_err(LogError::io("list", dir))?;
        let recovered = recover::recover(&options, &keys, &names)?;
        let pool = Arc::new(Pool::open(&options, &names)?);
        let queue = Arc::new(Queue::new(options.queue_bytes));
        let group_limit = options.group_limit();
        let wake = options.pumped.clone();
        let (writer, records) = Writer::start(
            options,
            keys,
            recovered,
            Arc::clone(&queue),
            Arc::clone(&pool),
        )?;
        let mut wal = Self {
            queue,
            pool: Arc::clone(&pool),
            group_limit,
            threads: Vec::new(),
            pumped: None,
            _lock: lock,
        };
        if let Some(wake) = wake {
            let writer = Mutex::new(Some(writer));
            wal.pumped = Some(Pumped { wake, writer });
            return Ok((wal, records));
        }
        // The writer first: it is what ends the other one.
        for (name, run) in [
            (
                "wal-writer",
                Box::new(move || writer.run()) as Box<dyn FnOnce() + Send>,
            ),
            ("wal-files", Box::new(move || pool.run())),
        ] {
            let thread = thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(LogError::io("start a thread for", &lock_path))?;
            wal.threads.push(thread);
        }
        Ok((wal, records))
    }

    /// Appends `records` and calls `done` once all of them are durable, or none ever will be: they are written in one
    /// batch, which a crash leaves whole or not at all. `done` is called by the
    /// writer's thread, in the order of the appends: it must not block.
    ///
    /// On a full disk `done` gets [`WalError::Full`]; records that were appended after these may still be written.
    ///
    /// Blocks while more than [`WalOptions::queue_bytes`] wait to be written.
    pub fn append(
        &self,
        records: Vec<WalRecord>,
        done: impl FnOnce(Result<(), WalError>) + Send + 'static,
    ) {
        self.push(records, Box::new(done), false);
    }

    /// As [`Wal::append`], but on a full disk the records keep their place and wait for space, and everything that was
    /// appended after them waits behind them: for those who cannot go on without, and must not reorder.
    ///
    /// Never blocks: on a full disk that would be for as long as it is full. So whoever calls it bounds what waits.
    pub fn append_waiting(
        &self,
        records: Vec<WalRecord>,
        done: impl FnOnce(Result<(), WalError>) + Send + 'static,
    ) {
        self.push(records, Box::new(done), true);
    }

    fn push(&self, records: Vec<WalRecord>, done: queue::Done, waits: bool) {
        let group = Group {
            records,
            done,
            waits,
        };
        match self.refuse(&group) {
            Some(error) => (group.done)(Err(error)),
            None => self.queue.push(group),
        }
        self.wake();
    }

    fn wake(&self) {
        if let Some(pumped) = &self.pumped {
            (pumped.wake)();
        }
    }

    /// Writes what waits and calls back, here and now. Does nothing where threads do it; see [`WalOptions::pumped`].
    pub fn pump(&self) {
        let Some(pumped) = &self.pumped else {
            return;
        };
        let mut writer = pumped.writer.lock();
        if !writer
            .as_mut()
            .is_none_or(|writer| writer.step(self.queue.take_now()))
        {
            *writer = None;
        }
    }

    fn refuse(&self, group: &Group) -> Option<WalError> {
        let cost = group.cost();
        if cost > self.group_limit {
            return Some(WalError::TooLarge {
                bytes: cost,
                limit: self.group_limit,
            });
        }
        group.records.iter().find_map(|record| {
            if record.kind >= WalRecord::FORGOTTEN {
                return Some(WalError::Invalid(
                    "the record kinds 254 and 255 are the log's own",
                ));
            }
            (record.is_sticky() && !record.payload.is_empty())
                .then_some(WalError::Invalid("a sticky record has no payload"))
        })
    }

    /// Says that the records of `shard` up to and including index `through` are not needed any more. Recovery does not
    /// return them, and files in which nothing is needed are used again.
    pub fn release(&self, shard: ShardId, through: u64) {
        self.queue.release(shard, through);
        self.wake();
    }

    /// Goes on in a new file, soon, when the present one is under another KEK than the current one. The files before leave as always: when everything in
    /// them was released. Does nothing on a full disk; ask again.
    pub fn renew(&self) {
        self.queue.renew();
        self.wake();
    }

    /// How many files that hold something needed are under which KEK. Files that wait to be used again count for none: they get a new header before anything
    /// is read from them.
    #[must_use]
    pub fn keks(&self) -> BTreeMap<KekId, u64> {
        self.queue.keks()
    }

    /// Gives up everything of `shard`, also its sticky records and how far it was released: afterwards it is as if there had never been more than `keep`, so that
    /// a replica that comes back under its number begins with that. `keep` holds sticky records of the shard; others are left out. It becomes durable together
    /// with the rest, or not at all. `done` is called as by [`Wal::append_waiting`], once this is durable. Nothing of the shard may be on its way to the log any
    /// more.
    pub fn forget(
        &self,
        shard: ShardId,
        keep: Vec<WalRecord>,
        done: impl FnOnce(Result<(), WalError>) + Send + 'static,
    ) {
        let fits = |record: &WalRecord| {
            let kind = WalRecord::STICKY..WalRecord::FORGOTTEN;
            record.shard == shard && kind.contains(&record.kind) && record.payload.is_empty()
        };
        let mark = WalRecord {
            shard,
            kind: WalRecord::FORGOTTEN,
            index: 0,
            meta: Vec::new(),
            payload: Bytes::new(),
        };
        self.queue.forget(
            shard,
            Group {
                records: std::iter::once(mark)
                    .chain(keep.into_iter().filter(fits))
                    .collect(),
                done: Box::new(done),
                waits: true,
            },
        );
        self.wake();
    }

    /// Whether there is no space for a further file. Appends still succeed while the present file has room, which is to
    /// be left to those who must write; others should refuse new work.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pool.is_full()
    }

    /// Most bytes that the records of one append may take, each counted as [`WalRecord::cost`].
    #[must_use]
    pub fn append_limit(&self) -> usize {
        self.group_limit
    }

    /// What the log has done.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        self.queue.stats()
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.queue.close();
        self.pump();
        for thread in self.threads.drain(..) {
            // A callback may hold the last reference; the writer cannot wait for itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the write-ahead log panicked");
            }
        }
    }
}

/// The next multiple of a block.
fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// What the header of the file with this number is bound to.
fn context(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}
