//! The real file system with faults that a test switches on.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use palisade_log::fs::{FileSystem, LogFile, RealFs};

/// What goes wrong now. Shared by the file system and all files that it opened.
#[derive(Debug)]
pub struct Faults {
    /// Bytes that may still be written before the disk is full.
    space: AtomicI64,
    /// Every sync fails.
    pub fail_sync: AtomicBool,
    /// How many syncs were asked for.
    pub syncs: AtomicU64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            space: AtomicI64::new(i64::MAX),
            fail_sync: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
        }
    }
}

impl Faults {
    /// Leaves this many bytes of space.
    pub fn leave_space(&self, bytes: i64) {
        self.space.store(bytes, Ordering::SeqCst);
    }
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub struct FaultFs(pub Arc<Faults>);

#[derive(Debug)]
struct FaultFile(Arc<dyn LogFile>, Arc<Faults>);

impl FaultFs {
    fn wrap(&self, file: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(FaultFile(file, Arc::clone(&self.0)))
    }
}

impl FileSystem for FaultFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        RealFs.create(path).map(|file| self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        RealFs.open(path).map(|file| self.wrap(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
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
        RealFs.sync_dir(path)
    }
}

impl LogFile for FaultFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let left = self.1.space.load(Ordering::SeqCst);
        let fits = usize::try_from(left).unwrap_or(0).min(bytes.len());
        // As on a real disk: what fits is written before the error.
        self.0.write_all_at(&bytes[..fits], position)?;
        self.1.space.fetch_sub(fits as i64, Ordering::SeqCst);
        if fits < bytes.len() {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        } else {
            Ok(())
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        if self.1.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("injected"));
        }
        self.0.sync_data()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}
