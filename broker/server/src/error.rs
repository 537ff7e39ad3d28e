//! Why the broker does not start.

use std::{net::SocketAddr, path::PathBuf};

/// Why the broker does not start; the message names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why, and what to write instead.
        reason: String,
    },
    /// A file or directory cannot be read, made or written.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Another process has the data directory.
    #[error("data directory {} is in use by another process: stop it, or choose another directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The data directory belongs to another cluster or broker.
    #[error("data directory {} was written by {found}, but the configuration says {wanted}: point storage.data_dir elsewhere, or correct node.cluster_id and node.id", path.display())]
    Identity {
        /// The directory.
        path: PathBuf,
        /// Who wrote it.
        found: String,
        /// Who we are.
        wanted: String,
    },
    /// A port cannot be bound.
    #[error("cannot listen on {address} (listener {name}): {error}")]
    Bind {
        /// The listener.
        name: String,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The TLS files of a listener cannot be used.
    #[error("listener {name}: {reason}")]
    Tls {
        /// The listener.
        name: String,
        /// Which file, and why.
        reason: String,
    },
    /// The key-encryption keys cannot be used.
    #[error("the key provider does not answer: {0}")]
    Keys(#[source] palisade_seal::SealError),
    /// The write-ahead log or the data cannot be opened.
    #[error("cannot open the data: {0}")]
    Storage(String),
    /// A development certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[source] rcgen::Error),
    /// The system has no randomness to give.
    #[error("the system's random source failed")]
    Random,
    /// The async runtime does not start.
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
}
