use std::{
    io,
    path::{Path, PathBuf},
};

use palisade_seal::SealError;

/// What can go wrong while a log is opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Bytes on the disk are not what was written there.
    #[error("{} is corrupt at byte {offset}: {reason}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Position of the frame that is bad, in bytes from the start of the file.
        offset: u64,
        /// How it shows.
        reason: String,
    },
    /// The key of a file is missing or wrong, or the key provider does not answer.
    #[error("cannot use the key of {}: {source}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong with the key and what to do.
        source: SealError,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A segment could not be synced. The kernel may have dropped what was to be written, so a later success would prove
    /// nothing: the file is not trusted until a restart has written it again from the write-ahead log.
    #[error("cannot sync {}: {source}; what it holds is unknown until a restart writes it again", file.display())]
    SyncFailed {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An argument that no log can satisfy.
    #[error("{0}")]
    Invalid(String),
}

impl LogError {
    /// For `map_err` on an I/O result.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// For `map_err` on the opening of a file's header: damage is corruption at byte 0, the rest is about keys.
    pub fn header(file: &Path) -> impl FnOnce(SealError) -> Self {
        let file = file.to_path_buf();
        move |source| {
            if source.is_corruption() {
                Self::Corrupt {
                    file,
                    offset: 0,
                    reason: source.to_string(),
                }
            } else {
                Self::Key { file, source }
            }
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if crate::fs::is_full(source))
    }
}
