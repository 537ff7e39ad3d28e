//! A file system with faults, for tests of the logs and of what is above them.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::fs::{FileSystem, LogFile, RealFs};

mod memory;

pub use memory::MemoryFs;

/// The unit in which a crash keeps or loses what was written.
const SECTOR: usize = 512;

/// The real file system with a disk that can be full, can fail to sync, and can lose power.
#[derive(Clone, Debug, Default)]
pub struct FaultFs {
    state: Arc<Mutex<State>>,
    /// Counts crashes: what was opened before one is dead after it.
    life: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    /// Bytes by which files may still grow; `None` is no limit.
    space: Option<u64>,
    fail_syncs: bool,
    fail_writes: bool,
    full_within_writes: bool,
    before_writes: Option<Arc<dyn Fn() + Send + Sync>>,
    syncs: u64,
    /// Changes of the disk that still succeed; `None` is no limit.
    steps: Option<u64>,
    /// Files that were created since their directory was synced last.
    created: Vec<PathBuf>,
    /// What was overwritten since the last sync of each file, in order.
    unsynced: Vec<Unsynced>,
}

struct Unsynced {
    file: Arc<dyn LogFile>,
    /// A sync is of the file, through whichever handle it was written.
    inode: u64,
    position: u64,
    before: Vec<u8>,
}

impl FaultFs {
    /// A disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits by how many bytes files may still grow; `None` is no limit.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.state.lock().space = bytes;
    }

    /// Whether syncing a file fails.
    pub fn fail_syncs(&self, fail: bool) {
        self.state.lock().fail_syncs = fail;
    }

    /// Whether writing to a file fails, after half of the bytes.
    pub fn fail_writes(&self, fail: bool) {
        self.state.lock().fail_writes = fail;
    }

    /// Whether a write finds no space after half of the bytes, although the file does not grow: as on a file system that writes nothing in its old place.
    pub fn fill_up_within_writes(&self, full: bool) {
        self.state.lock().full_within_writes = full;
    }

    /// Has something happen whenever a file is about to be written to.
    pub fn before_writes(&self, action: impl Fn() + Send + Sync + 'static) {
        self.state.lock().before_writes = Some(Arc::new(action));
    }

    /// Lets that many more changes of the disk succeed (each write, sync, creation, renaming and removal is one); after them everything fails, until
    /// [`FaultFs::crash`].
    pub fn set_steps(&self, steps: Option<u64>) {
        self.state.lock().steps = steps;
    }

    /// How often a file was synced.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The power fails: of what was not synced, each sector is kept or lost as `keep` says, and every open file is dead.
    ///
    /// # Errors
    /// When the files below cannot be changed.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) -> io::Result<()> {
        let mut state = self.state.lock();
        self.life.fetch_add(1, Ordering::SeqCst);
        state.steps = None;
        for write in std::mem::take(&mut state.unsynced).into_iter().rev() {
            for (position, sector) in (write.position..)
                .step_by(SECTOR)
                .zip(write.before.chunks(SECTOR))
            {
                if !keep() {
                    write.file.write_all_at(sector, position)?;
                }
            }
        }
        for path in std::mem::take(&mut state.created) {
            if !keep() {
                match RealFs.remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn wrap(&self, path: &Path, file: Arc<dyn LogFile>) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(FaultFile {
            file,
            inode: std::fs::metadata(path)?.ino(),
            fs: self.clone(),
            born: self.life.load(Ordering::SeqCst),
        }))
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        if let Some(steps) = &mut self.steps {
            *steps = steps
                .checked_sub(1)
                .ok_or_else(|| io::Error::other("no more steps"))?;
        }
        Ok(())
    }
}

impl FileSystem for FaultFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state.lock();
        state.step()?;
        let file = RealFs.create(path)?;
        state.created.push(path.to_path_buf());
        drop(state);
        self.wrap(path, file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        RealFs.open(path).and_then(|file| self.wrap(path, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        RealFs.rename(from, to)?;
        state.created.retain(|created| created != from);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.state.lock().step()?;
        RealFs.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealFs.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealFs.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        RealFs.sync_dir(path)?;
        state
            .created
            .retain(|created| created.parent() != Some(path));
        Ok(())
    }
}

struct FaultFile {
    file: Arc<dyn LogFile>,
    inode: u64,
    fs: FaultFs,
    born: u64,
}

impl FaultFile {
    fn alive(&self) -> io::Result<()> {
        if self.born == self.fs.life.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(io::Error::other("the power failed"))
        }
    }

    /// Takes the space that a file of `length` bytes needs beyond what it has.
    fn grow(&self, state: &mut State, length: u64) -> io::Result<()> {
        let growth = length.saturating_sub(self.file.len()?);
        if let Some(space) = &mut state.space {
            *space = space
                .checked_sub(growth)
                .ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        }
        Ok(())
    }
}

impl LogFile for FaultFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.alive()?;
        self.file.read_at(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let before = self.fs.state.lock().before_writes.clone();
        if let Some(before) = before {
            before();
        }
        let mut state = self.fs.state.lock();
        self.alive()?;
        state.step()?;
        self.grow(&mut state, position.saturating_add(bytes.len() as u64))?;
        let mut before = vec![0; bytes.len()];
        // What was beyond the end reads as zeros after a crash, as on a file system that had reserved it.
        self.file.read_full_at(&mut before, position)?;
        state.unsynced.push(Unsynced {
            file: Arc::clone(&self.file),
            inode: self.inode,
            position,
            before,
        });
        if state.fail_writes || state.full_within_writes {
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
            self.file.write_all_at(half, position)?;
            return Err(match state.fail_writes {
                true => io::Error::other("injected write error"),
                false => io::ErrorKind::StorageFull.into(),
            });
        }
        self.file.write_all_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.fs.state.lock();
        self.alive()?;
        state.step()?;
        if state.fail_syncs {
            return Err(io::Error::other("injected sync error"));
        }
        state.syncs = state.syncs.saturating_add(1);
        state.unsynced.retain(|write| write.inode != self.inode);
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut state = self.fs.state.lock();
        self.alive()?;
        self.grow(&mut state, length)?;
        self.file.set_len(length)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.fs.state.lock();
        self.alive()?;
        self.grow(&mut state, length)?;
        self.file.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        self.alive()?;
        self.file.len()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl fmt::Debug for FaultFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultFile").finish_non_exhaustive()
    }
}
