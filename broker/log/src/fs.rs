//! The file system below the log, as a trait: every fault a disk can have can be put under a test here.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

/// What the log needs of a file system. All paths are absolute or relative to the process.
pub trait FileSystem: Send + Sync + fmt::Debug + 'static {
    /// Creates a file for reading and writing, private to this user; fails when it exists.
    ///
    /// # Errors
    /// The operating system's.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Gives a file another name, replacing what had that name.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and everything in it.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and those above it, private to this user; succeeds when it exists.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no order. Names that are not UTF-8 are none of ours and left out.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Creates `path` when it does not exist and locks it until what is returned is dropped, so that no second process
    /// uses the directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds the lock; the operating system's otherwise.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        lock(path)
    }

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The volume that a directory is on, to be synced as a whole; `None` when nobody would hear there of a write that failed. Open it before what it is to
    /// answer for is written.
    ///
    /// # Errors
    /// The operating system's.
    fn volume(&self, dir: &Path) -> io::Result<Option<Box<dyn Volume>>> {
        let _ = dir;
        Ok(None)
    }
}

/// A whole file system.
pub trait Volume: Send + Sync + fmt::Debug {
    /// Makes everything durable that was done to any file or directory of it before, by whomever (`syncfs`).
    ///
    /// # Errors
    /// The operating system's: also when something failed to be written since the volume was opened or last synced. Which file it was, [`LogFile::sync_data`] of
    /// that file still says.
    fn sync(&self) -> io::Result<()>;
}

/// One open file. Positions are bytes from its start; there is no cursor, so it can be shared by threads.
pub trait LogFile: Send + Sync + fmt::Debug {
    /// Reads up to `buffer.len()` bytes; 0 at or after the end.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;

    /// Writes all of `bytes`; after an error any part of them may have been written.
    ///
    /// # Errors
    /// The operating system's.
    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Makes the content durable, and as much of the metadata as is needed to read it (`fdatasync`).
    ///
    /// # Errors
    /// The operating system's. After an error nobody can say what of the content is durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Reserves space for the first `length` bytes and makes the file at least that long. Does nothing on file systems
    /// that cannot reserve.
    ///
    /// # Errors
    /// The operating system's, in particular when there is not that much space.
    fn allocate(&self, length: u64) -> io::Result<()> {
        let _ = length;
        Ok(())
    }

    /// Cuts the file or extends it by a hole.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is nothing in it.
    ///
    /// # Errors
    /// The operating system's.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|length| length == 0)
    }

    /// Reads until `buffer` is full or the file ends; returns how much was read.
    ///
    /// # Errors
    /// The operating system's.
    fn read_full_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut filled = 0usize;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, position.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled = filled.saturating_add(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl FileSystem for RealFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        palisade_seal::create_private(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn volume(&self, dir: &Path) -> io::Result<Option<Box<dyn Volume>>> {
        // Of a system that hides it nothing is known.
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if !reports_writeback(&release) {
            return Ok(None);
        }
        Ok(Some(Box::new(RealVolume(fs::File::open(dir)?))))
    }
}

/// Whether `syncfs` says when something could not be written, which it does since Linux 5.8 (syncfs(2)).
fn reports_writeback(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    number().zip(number()) >= Some((5, 8))
}

#[derive(Debug)]
struct RealVolume(fs::File);

impl Volume for RealVolume {
    fn sync(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.0).map_err(Into::into)
    }
}

fn lock(path: &Path) -> io::Result<Box<dyn Send + Sync>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => {
            io::Error::new(io::ErrorKind::WouldBlock, "another process is using it")
        }
        fs::TryLockError::Error(error) => error,
    })?;
    Ok(Box::new(file))
}

#[derive(Debug)]
struct RealFile(fs::File);

impl LogFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.0, bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, length) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            result => result.map_err(Into::into),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }
}

/// Lets this process have as many open files as the system permits it: every partition in use has one, and the usual limit of 1,024 is meant for programs that count
/// on less. How many that are; `None` without a limit.
///
/// # Errors
/// The operating system's.
pub fn raise_file_limit() -> io::Result<Option<u64>> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(limit.current)
}

/// Has the system write no image of this process to a disk when it crashes, where keys and records would lie in the clear: it ends itself on purpose when a disk
/// fails.
///
/// # Errors
/// The operating system's.
pub fn forbid_core_dumps() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // A program that takes images through a pipe is not asked by that limit.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Whether an error says that the disk is full, or the quota used up.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// The names that have a number between `prefix` and `suffix`, in the order of the numbers.
pub(crate) fn numbered(names: &[String], prefix: &str, suffix: &str) -> Vec<(u64, String)> {
    let mut found: Vec<_> = names
        .iter()
        .filter_map(|name| {
            let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = is_number.then(|| digits.parse().ok())??;
            Some((number, name.clone()))
        })
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_keeps_write_errors_to_itself_is_told_by_its_release() {
        for release in ["5.8.0", "5.10.0-28-amd64", "6.1.0", "6.18.44-x", "10.0"] {
            assert!(reports_writeback(release), "{release}");
        }
        for release in ["5.7.19", "4.18.0-553.el8_10.x86_64", "5", "", "linux"] {
            assert!(!reports_writeback(release), "{release}");
        }
    }
}
