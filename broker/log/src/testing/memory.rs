//! A file system in memory with a disk that can lose power between any two operations, can fail to sync, and keeps what a real one would.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::SECTOR;
use crate::fs::{FileSystem, LogFile, Volume};

/// A disk in memory.
///
/// What a crash leaves: of a file's unsynced writes, each sector as it was before, after, or in between; of its unsynced lengths, one; of the unsynced creations,
/// renames and removals, a beginning in their order, as with a journal. A synced file whose name was not synced may be gone.
#[derive(Clone, Debug, Default)]
pub struct MemoryFs {
    state: Arc<Mutex<State>>,
    /// Counts crashes: what was opened before one is dead after it.
    life: Arc<AtomicU64>,
    /// Dead after the crash that ended this life; `None`: never.
    born: Option<u64>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, Arc<Node>>,
    dirs: BTreeSet<PathBuf>,
    /// Changes of names that a crash may undo, in order.
    journal: Vec<Change>,
    locks: BTreeSet<PathBuf>,
    /// Operations that change something until the power fails.
    power: Option<u64>,
    off: bool,
    /// Syncs that succeed before one fails.
    failing_sync: Option<u64>,
    /// One has failed since the last crash.
    sync_failed: bool,
    /// Syncs do nothing and say that they did.
    lying: bool,
    syncs: u64,
}

enum Change {
    Created(PathBuf),
    Renamed {
        from: PathBuf,
        to: PathBuf,
        replaced: Option<Arc<Node>>,
    },
    Removed(PathBuf, Arc<Node>),
}

impl Change {
    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Created(path) | Self::Renamed { to: path, .. } | Self::Removed(path, _)) = self;
        path.parent() == Some(dir)
    }
}

#[derive(Default)]
struct Node(Mutex<Content>);

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    unsynced: Vec<Overwritten>,
    /// A sync of the volume could not write it, which the next sync of the file has to say.
    failed: bool,
}

/// What a write or a change of length replaced.
struct Overwritten {
    is_length: bool,
    position: usize,
    before: Vec<u8>,
    length: usize,
}

impl MemoryFs {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same disk as one process sees it: dead after the next crash.
    #[must_use]
    pub fn session(&self) -> Self {
        Self {
            born: Some(self.life.load(Ordering::SeqCst)),
            ..self.clone()
        }
    }

    fn alive(&self) -> io::Result<()> {
        let now = self.life.load(Ordering::SeqCst);
        match self.born.is_none_or(|born| born == now) {
            true => Ok(()),
            false => Err(power_failed()),
        }
    }

    /// The power fails within the operation that comes after `operations` further ones that change something: a write may then have reached the disk in part.
    /// From then on everything fails; [`MemoryFs::crash`] brings the disk back.
    pub fn fail_power_after(&self, operations: u64) {
        self.state.lock().power = Some(operations);
    }

    /// One sync of a file fails, after `syncs` that succeed.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.state.lock().failing_sync = Some(syncs);
    }

    /// Whether syncing does nothing, and says that it did: a disk that lies.
    pub fn lie_about_syncs(&self, lie: bool) {
        self.state.lock().lying = lie;
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.state.lock().off
    }

    /// Whether the power is off or a sync has failed: what a process found in the way was a fault, not what it had written.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let state = self.state.lock();
        state.off || state.sync_failed
    }

    /// How often a file, or the whole disk, was synced.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The power fails now, and is back: `choose(n)` says with a number from 0 to `n` what of what was not synced is kept. Every open file is dead.
    pub fn crash(&self, mut choose: impl FnMut(u64) -> u64) {
        let mut state = self.state.lock();
        self.life.fetch_add(1, Ordering::SeqCst);
        state.off = false;
        state.power = None;
        state.failing_sync = None;
        state.sync_failed = false;
        state.locks.clear();
        let journal = std::mem::take(&mut state.journal);
        let kept = usize::try_from(choose(journal.len() as u64)).unwrap_or(usize::MAX);
        for change in journal.into_iter().skip(kept).rev() {
            match change {
                Change::Created(path) => {
                    state.names.remove(&path);
                }
                Change::Renamed { from, to, replaced } => {
                    if let Some(node) = state.names.remove(&to) {
                        state.names.insert(from, node);
                    }
                    if let Some(node) = replaced {
                        state.names.insert(to, node);
                    }
                }
                Change::Removed(path, node) => {
                    state.names.insert(path, node);
                }
            }
        }
        for node in state.names.values() {
            node.0.lock().lose(&mut choose);
        }
    }

    /// The bytes of a file, for those who compare.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        Some(state.names.get(path)?.0.lock().bytes.clone())
    }

    fn wrap(&self, node: Arc<Node>) -> Arc<dyn LogFile> {
        Arc::new(MemoryFile {
            node,
            fs: self.clone(),
            born: self.life.load(Ordering::SeqCst),
        })
    }
}

impl Content {
    fn lose(&mut self, choose: &mut impl FnMut(u64) -> u64) {
        let mut length = None;
        for write in std::mem::take(&mut self.unsynced).into_iter().rev() {
            if !write.is_length {
                for (index, before) in write.before.chunks(SECTOR).enumerate() {
                    if choose(1) == 0 {
                        let start = write.position.saturating_add(index.saturating_mul(SECTOR));
                        self.put(start, before);
                    }
                }
            }
            if length.is_some() {
                continue;
            }
            if choose(1) == 1 {
                length = Some(self.bytes.len());
            } else {
                self.bytes.resize(write.length, 0);
                if write.is_length {
                    self.put(write.position, &write.before);
                }
            }
        }
        if let Some(length) = length {
            self.bytes.truncate(length);
        }
    }

    fn put(&mut self, start: usize, bytes: &[u8]) {
        let end = start.saturating_add(bytes.len());
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(start..end) {
            place.copy_from_slice(bytes);
        }
    }

    /// Remembers what stands from `start` to `end`, and the length.
    fn remember(&mut self, start: usize, end: usize, is_length: bool) {
        let end = end.min(self.bytes.len());
        self.unsynced.push(Overwritten {
            is_length,
            position: start,
            before: self.bytes.get(start..end).unwrap_or_default().to_vec(),
            length: self.bytes.len(),
        });
    }
}

impl State {
    /// Takes one operation that changes something from what the power lasts for; `true` when it fails within it.
    fn step(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(power_failed());
        }
        match &mut self.power {
            Some(0) => self.off = true,
            Some(left) => *left = left.saturating_sub(1),
            None => {}
        }
        Ok(self.off)
    }

    /// Whether this is the sync of a file that fails.
    fn sync_fails(&mut self) -> bool {
        match &mut self.failing_sync {
            Some(0) => {
                self.failing_sync = None;
                self.sync_failed = true;
                return true;
            }
            Some(left) => *left = left.saturating_sub(1),
            None => {}
        }
        false
    }

    fn find(&self, path: &Path) -> io::Result<Arc<Node>> {
        if self.off {
            return Err(power_failed());
        }
        self.names
            .get(path)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn power_failed() -> io::Error {
    io::Error::other("the power failed")
}

fn result(failed: bool) -> io::Result<()> {
    if failed { Err(power_failed()) } else { Ok(()) }
}

fn position(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(io::Error::other)
}

impl FileSystem for MemoryFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.alive()?;
        let mut state = self.state.lock();
        let failed = state.step()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = Arc::<Node>::default();
        state.names.insert(path.to_path_buf(), Arc::clone(&node));
        state.journal.push(Change::Created(path.to_path_buf()));
        result(failed).map(|()| self.wrap(node))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.alive()?;
        self.state.lock().find(path).map(|node| self.wrap(node))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        let mut state = self.state.lock();
        let failed = state.step()?;
        let Some(node) = state.names.remove(from) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let replaced = state.names.insert(to.to_path_buf(), node);
        state.journal.push(Change::Renamed {
            from: from.to_path_buf(),
            to: to.to_path_buf(),
            replaced,
        });
        result(failed)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let mut state = self.state.lock();
        let node = state.find(path)?;
        let failed = state.step()?;
        state.names.remove(path);
        state
            .journal
            .push(Change::Removed(path.to_path_buf(), node));
        result(failed)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let inside: Vec<_> = {
            let mut state = self.state.lock();
            if !state.dirs.iter().any(|dir| dir.starts_with(path)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            state.dirs.retain(|dir| !dir.starts_with(path));
            state
                .names
                .keys()
                .filter(|name| name.starts_with(path))
                .cloned()
                .collect()
        };
        inside.iter().try_for_each(|name| self.remove_file(name))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let mut state = self.state.lock();
        let failed = state.step()?;
        state.dirs.extend(path.ancestors().map(Path::to_path_buf));
        result(failed)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.alive()?;
        let state = self.state.lock();
        if state.off {
            return Err(power_failed());
        }
        if !state.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state
            .names
            .keys()
            .chain(&state.dirs)
            .filter(|name| name.parent() == Some(path))
            .filter_map(|name| name.file_name()?.to_str().map(str::to_owned))
            .collect())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.alive()?;
        if !self.state.lock().locks.insert(path.to_path_buf()) {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process is using it",
            ));
        }
        Ok(Box::new(Lock {
            fs: self.clone(),
            path: path.to_path_buf(),
            born: self.life.load(Ordering::SeqCst),
        }))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let mut state = self.state.lock();
        let failed = state.step()?;
        if !failed && !state.lying {
            state.journal.retain(|change| !change.is_in(path));
        }
        result(failed)
    }

    fn volume(&self, _: &Path) -> io::Result<Option<Box<dyn Volume>>> {
        self.alive()?;
        Ok(Some(Box::new(MemoryVolume {
            fs: self.clone(),
            born: self.life.load(Ordering::SeqCst),
        })))
    }
}

#[derive(Debug)]
struct MemoryVolume {
    fs: MemoryFs,
    born: u64,
}

impl Volume for MemoryVolume {
    fn sync(&self) -> io::Result<()> {
        if self.born != self.fs.life.load(Ordering::SeqCst) {
            return Err(power_failed());
        }
        let mut state = self.fs.state.lock();
        if state.step()? {
            return Err(power_failed());
        }
        state.syncs = state.syncs.saturating_add(1);
        let mut outcome = Ok(());
        let nodes: Vec<_> = state.names.values().cloned().collect();
        for node in nodes {
            let mut content = node.0.lock();
            if content.unsynced.is_empty() {
                continue;
            }
            if state.sync_fails() {
                content.failed = true;
                outcome = Err(io::Error::other("injected sync error"));
            } else if !state.lying {
                content.unsynced.clear();
            }
        }
        if !state.lying {
            state.journal.clear();
        }
        outcome
    }
}

struct Lock {
    fs: MemoryFs,
    path: PathBuf,
    born: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.fs.state.lock();
        if self.born == self.fs.life.load(Ordering::SeqCst) {
            state.locks.remove(&self.path);
        }
    }
}

struct MemoryFile {
    node: Arc<Node>,
    fs: MemoryFs,
    born: u64,
}

impl MemoryFile {
    fn alive(&self) -> io::Result<()> {
        if self.born == self.fs.life.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(power_failed())
        }
    }

    fn step(&self) -> io::Result<bool> {
        self.alive()?;
        self.fs.state.lock().step()
    }
}

impl LogFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.alive()?;
        if self.fs.is_off() {
            return Err(power_failed());
        }
        let content = self.node.0.lock();
        let rest = content.bytes.get(position(at)?..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(into), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            into.copy_from_slice(from);
        }
        Ok(count)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let failed = self.step()?;
        let start = position(at)?;
        let mut content = self.node.0.lock();
        content.remember(start, start.saturating_add(bytes.len()), false);
        content.put(start, bytes);
        result(failed)
    }

    fn sync_data(&self) -> io::Result<()> {
        let failed = self.step()?;
        let mut state = self.fs.state.lock();
        let mut content = self.node.0.lock();
        if state.sync_fails() || std::mem::take(&mut content.failed) {
            return Err(io::Error::other("injected sync error"));
        }
        state.syncs = state.syncs.saturating_add(1);
        if !failed && !state.lying {
            content.unsynced.clear();
        }
        result(failed)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        if length > self.len()? {
            return self.set_len(length);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let failed = self.step()?;
        let length = position(length)?;
        let mut content = self.node.0.lock();
        content.remember(length, usize::MAX, true);
        content.bytes.resize(length, 0);
        result(failed)
    }

    fn len(&self) -> io::Result<u64> {
        self.alive()?;
        Ok(self.node.0.lock().bytes.len() as u64)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(fs: &MemoryFs, name: &str, bytes: &[u8]) -> Arc<dyn LogFile> {
        let file = fs.create(Path::new(name)).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may_not() {
        let fs = MemoryFs::new();
        fs.create_dir_all(Path::new("/d")).unwrap();
        let file = write(&fs, "/d/a", b"one");
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        file.write_all_at(b"two and more", 0).unwrap();
        write(&fs, "/d/b", b"x").sync_data().unwrap();
        fs.crash(|_| 0);
        assert_eq!(fs.content(Path::new("/d/a")).unwrap(), b"one");
        assert_eq!(
            fs.content(Path::new("/d/b")),
            None,
            "its name was not synced"
        );
        assert!(file.len().is_err(), "it was opened before the crash");
    }

    #[test]
    fn a_rename_that_was_not_synced_is_taken_back_whole() {
        let fs = MemoryFs::new();
        fs.create_dir_all(Path::new("/d")).unwrap();
        write(&fs, "/d/old", b"old").sync_data().unwrap();
        write(&fs, "/d/new", b"new").sync_data().unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.rename(Path::new("/d/new"), Path::new("/d/old")).unwrap();
        fs.crash(|_| 0);
        assert_eq!(fs.content(Path::new("/d/old")).unwrap(), b"old");
        assert_eq!(fs.content(Path::new("/d/new")).unwrap(), b"new");
    }

    #[test]
    fn the_power_fails_within_a_write() {
        let fs = MemoryFs::new();
        fs.create_dir_all(Path::new("/d")).unwrap();
        let file = write(&fs, "/d/a", &[1; 2 * SECTOR]);
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.fail_power_after(1);
        file.sync_data().unwrap();
        assert!(file.write_all_at(&[2; 2 * SECTOR], 0).is_err());
        assert!(fs.is_off() && fs.open(Path::new("/d/a")).is_err());
        let mut asked = 0;
        fs.crash(|_| {
            asked += 1;
            u64::from(asked == 3)
        });
        let bytes = fs.content(Path::new("/d/a")).unwrap();
        assert_eq!((bytes[0], bytes[SECTOR]), (1, 2), "one sector of two");
    }

    #[test]
    fn a_length_that_was_not_synced_is_taken_back() {
        let fs = MemoryFs::new();
        fs.create_dir_all(Path::new("/d")).unwrap();
        let file = write(&fs, "/d/a", b"12345");
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        file.set_len(2).unwrap();
        file.write_all_at(b"abcdef", 2).unwrap();
        fs.crash(|_| 0);
        assert_eq!(fs.content(Path::new("/d/a")).unwrap(), b"12345");
    }
}
