//! Files that are ready to be written: made ahead of the need by a thread of their own, or used before.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{BLOCK, WalOptions};
use crate::{
    LogError,
    fs::{FileSystem, LogFile, is_full, numbered},
};

/// How often making a file is tried again after it failed.
const RETRY: Duration = Duration::from_millis(500);
/// Files that are kept ready ahead of the need.
const AHEAD: usize = 1;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
const PREFIX: &str = "spare-";
const SUFFIX: &str = ".log";

/// A file full of zeros, or of frames of an earlier incarnation; all of its blocks are allocated.
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn LogFile>,
    pub(super) length: u64,
}

/// Why there is no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoSpare {
    Full,
    Failed(String),
    Closed,
}

#[derive(Default)]
struct State {
    spares: Vec<Spare>,
    next: u64,
    trouble: Option<NoSpare>,
    closed: bool,
}

pub(super) struct Pool {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    file_bytes: u64,
    keep: usize,
    /// Whether no thread makes files ahead of the need.
    alone: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Pool {
    /// The spare files of a directory that holds `names`. Those of another size, which may be unfinished ones, are
    /// removed.
    pub(super) fn open(options: &WalOptions, names: &[String]) -> Result<Self, LogError> {
        let mut spares = Vec::new();
        let mut next = 0;
        for (number, name) in numbered(names, PREFIX, SUFFIX) {
            next = number.saturating_add(1);
            let path = options.dir.join(name);
            let file = options
                .fs
                .open(&path)
                .map_err(LogError::io("open", &path))?;
            let length = file
                .len()
                .map_err(LogError::io("read the length of", &path))?;
            if length >= BLOCK {
                // A crash may have come before it.
                erase(&*file).map_err(LogError::io("erase", &path))?;
            }
            if length == options.file_bytes && spares.len() < options.spare_files {
                spares.push(Spare { path, file, length });
            } else {
                options
                    .fs
                    .remove_file(&path)
                    .map_err(LogError::io("remove", &path))?;
            }
        }
        Ok(Self {
            fs: Arc::clone(&options.fs),
            dir: options.dir.clone(),
            file_bytes: options.file_bytes,
            keep: options.spare_files.max(AHEAD),
            alone: options.pumped.is_some(),
            state: Mutex::new(State {
                spares,
                next,
                trouble: None,
                closed: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// Keeps files ready until the pool is closed.
    pub(super) fn run(&self) {
        let mut state = self.state.lock();
        while !state.closed {
            if state.spares.len() >= AHEAD {
                self.changed.wait(&mut state);
                continue;
            }
            let path = self.name_next(&mut state);
            drop(state);
            let made = make(&*self.fs, &path, self.file_bytes);
            state = self.state.lock();
            match made {
                Ok(spare) => {
                    state.spares.push(spare);
                    if state.trouble.take().is_some() {
                        tracing::info!(dir = %self.dir.display(), "the write-ahead log has space again");
                    }
                    self.changed.notify_all();
                }
                Err(error) => {
                    let trouble = no_spare(&error);
                    if state.spares.is_empty() && state.trouble.as_ref() != Some(&trouble) {
                        tracing::error!(dir = %self.dir.display(), %error, "cannot prepare a write-ahead log file; new records are refused until it works");
                    }
                    // A file may have been released meanwhile.
                    state.trouble = state.spares.is_empty().then_some(trouble);
                    self.changed.notify_all();
                    self.changed.wait_for(&mut state, RETRY);
                }
            }
        }
    }

    /// A file to write to, at once if one is ready; waits while one is being made.
    pub(super) fn take(&self) -> Result<Spare, NoSpare> {
        let mut state = self.state.lock();
        loop {
            if let Some(spare) = state.spares.pop() {
                self.changed.notify_all();
                return Ok(spare);
            }
            if state.closed {
                return Err(NoSpare::Closed);
            }
            if let Some(trouble) = &state.trouble {
                return Err(trouble.clone());
            }
            if self.alone {
                let path = self.name_next(&mut state);
                return make(&*self.fs, &path, self.file_bytes).map_err(|error| no_spare(&error));
            }
            self.changed.wait(&mut state);
        }
    }

    /// Gives a file back that was taken and not used.
    pub(super) fn put_back(&self, spare: Spare) {
        self.state.lock().spares.push(spare);
    }

    /// Takes over a file of the log in which nothing is needed any more, or removes it when there are enough.
    pub(super) fn recycle(&self, path: &Path, file: Arc<dyn LogFile>) -> io::Result<()> {
        let length = file.len()?;
        let mut state = self.state.lock();
        if state.spares.len() >= self.keep || length != self.file_bytes {
            drop(state);
            self.fs.remove_file(path)?;
            self.fs.sync_dir(&self.dir)?;
            return erase(&*file);
        }
        let spare = self.name_next(&mut state);
        self.fs.rename(path, &spare)?;
        // Before the header is written over: the old name must never lead to a header of another file.
        self.fs.sync_dir(&self.dir)?;
        erase(&*file)?;
        state.spares.push(Spare {
            path: spare,
            file,
            length,
        });
        state.trouble = None;
        self.changed.notify_all();
        Ok(())
    }

    /// Whether no file is ready and none can be made.
    pub(super) fn is_full(&self) -> bool {
        self.state.lock().trouble == Some(NoSpare::Full)
    }

    /// Waits until it may be worth taking again.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        if state.spares.is_empty() && !state.closed {
            self.changed.wait_for(&mut state, RETRY);
        }
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    fn name_next(&self, state: &mut State) -> PathBuf {
        let number = state.next;
        state.next = number.saturating_add(1);
        self.dir.join(format!("{PREFIX}{number:016}{SUFFIX}"))
    }
}

/// Writes over the header of a file that is not part of the log any more: without it nothing that was written there can be opened, by no key. A spare may wait for
/// long until it is used, and the blocks of a removed file stay as they are.
fn erase(file: &dyn LogFile) -> io::Result<()> {
    file.write_all_at(&[0; BLOCK as usize], 0)?;
    file.sync_data()
}

fn no_spare(error: &io::Error) -> NoSpare {
    if is_full(error) {
        NoSpare::Full
    } else {
        NoSpare::Failed(error.to_string())
    }
}

/// Makes a file of zeros, all of it on the disk. After an error nothing is left of it.
pub(super) fn make(fs: &dyn FileSystem, path: &Path, length: u64) -> io::Result<Spare> {
    let file = fs.create(path)?;
    let filled = fill(&*file, length);
    if filled.is_err() {
        // What matters is the error above; a leftover has the wrong size and is removed at the next start.
        let _ = fs.remove_file(path);
    }
    filled.map(|()| Spare {
        path: path.to_path_buf(),
        file,
        length,
    })
}

fn fill(file: &dyn LogFile, length: u64) -> io::Result<()> {
    // Says at once when there is not enough space, without using up what there is.
    file.allocate(length)?;
    let mut position = 0u64;
    while position < length {
        let rest = usize::try_from(length - position).unwrap_or(usize::MAX);
        let zeros = ZEROS.get(..rest).unwrap_or(&ZEROS);
        file.write_all_at(zeros, position)?;
        position = position.saturating_add(zeros.len() as u64);
    }
    file.sync_data()
}
