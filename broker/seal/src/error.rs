use std::{io, path::PathBuf};

use crate::{DekVersion, KekId};

/// What can go wrong with keys and sealed data.
///
/// No variant carries key material or plaintext.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The key that wrapped the data is not known to the provider.
    #[error(
        "key `{kek}` is not in {place}; restore it (as `{kek}.key`), or the data it protects cannot be read"
    )]
    UnknownKek {
        /// The id that the data names.
        kek: KekId,
        /// Where the provider looked.
        place: String,
    },
    /// A key of the right name, but not the bytes that wrapped the data.
    #[error(
        "key `{kek}` in {place} is not the key that wrapped this data (its check value is {found}, the data needs \
         {expected}); restore the original `{kek}.key`, and give a new key a new name"
    )]
    WrongKek {
        /// The id that the data names.
        kek: KekId,
        /// Where the provider looked.
        place: String,
        /// Check value of the provider's key, in hex.
        found: String,
        /// Check value stored beside the data, in hex.
        expected: String,
    },
    /// The provider could not be used.
    #[error("key provider {place}: {reason}")]
    Provider {
        /// Which provider.
        place: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// No key of this version is in the ring.
    #[error(
        "data key version {version} is not loaded; known versions: {known}; the topic's key may have been destroyed"
    )]
    UnknownDek {
        /// The version that the data names.
        version: DekVersion,
        /// The versions in the ring, comma separated.
        known: String,
    },
    /// The tag does not match: damaged, moved to another place, or sealed under another key.
    #[error(
        "{what} failed authentication: it is damaged, was moved, or was sealed under another key"
    )]
    NotAuthentic {
        /// What was being opened.
        what: &'static str,
    },
    /// The bytes do not have the shape of what they should be.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// What was being decoded.
        what: &'static str,
        /// Why it cannot be right.
        reason: String,
    },
    /// A counter reached its end; sealing on would repeat a nonce.
    #[error("the nonces of this key are used up; begin a new session to seal more")]
    Exhausted,
    /// A key or a KEK id that cannot be used.
    #[error("{0}")]
    InvalidKey(String),
    /// The cryptographic library refused, which it does only when it is out of entropy or memory.
    #[error("the cryptographic library failed to {0}")]
    Library(&'static str),
    /// Reading or writing a key file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl SealError {
    pub(crate) fn malformed(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed {
            what,
            reason: reason.into(),
        }
    }

    /// Whether the data itself is bad, as opposed to a key that is missing or wrong.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::NotAuthentic { .. } | Self::Malformed { .. })
    }
}
