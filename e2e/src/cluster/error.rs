//! What can go wrong while a cluster is driven.

use std::io;
use std::path::{Path, PathBuf};

/// Why this machine cannot run what was asked for, however often it is tried. Tests that meet it say loudly
/// what they left out; every other error is a failure.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Inability {
    /// Namespaces, mounts and control groups need root.
    #[error("it needs root (this is uid {uid})")]
    NotRoot {
        /// The effective user id of this process.
        uid: u32,
    },
    /// The kernel, or the sandbox around this process, gives no namespaces.
    #[error("it needs network and mount namespaces, which this machine refuses: {detail}")]
    NoNamespaces {
        /// What the attempt to make them answered.
        detail: String,
    },
    /// No control groups to put pods into.
    #[error("it needs control groups: {detail}")]
    NoControlGroups {
        /// What is missing.
        detail: String,
    },
    /// Programs that it calls are not installed.
    #[error("these programs are missing: {}; e2e/bootstrap.sh installs them on Debian", programs.join(", "))]
    MissingPrograms {
        /// The programs, by name or path.
        programs: Vec<String>,
    },
}

/// An error of the cluster driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// This machine cannot do it at all.
    #[error("this machine cannot run the built-in Kubernetes: {0}")]
    Unable(Inability),
    /// A program that was called could not be started or reported failure.
    #[error("{command} failed: {detail}")]
    Command {
        /// The command line.
        command: String,
        /// What it printed, or why it could not be started.
        detail: String,
    },
    /// A program of the cluster ended although it should serve.
    #[error("{program} stopped on its own; the end of its log {}:\n{tail}", log.display())]
    Stopped {
        /// The name of the program.
        program: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// Something did not come about in time.
    #[error("waited {seconds} s in vain for {what}: {last}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// The state that was seen last.
        last: String,
    },
    /// A file or directory could not be read, written or removed.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        error: io::Error,
    },
    /// A certificate could not be made.
    #[error("making the certificate of {subject}: {error}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// What the library answered.
        error: rcgen::Error,
    },
    /// A request was not one that can be met.
    #[error("{0}")]
    Invalid(String),
    /// The cluster of that name does not run.
    #[error(
        "no cluster named {name} is running; start it with `palisade-e2e cluster up --name {name}`"
    )]
    NotRunning {
        /// The cluster's name.
        name: String,
    },
    /// The Kubernetes client could not be made from the cluster's kubeconfig.
    #[error("making a client from {}: {detail}", kubeconfig.display())]
    Client {
        /// The kubeconfig.
        kubeconfig: PathBuf,
        /// What the library answered.
        detail: String,
    },
}

// Not by #[from]: the message holds the reason, and a cause that is printed after it would say it twice.
impl From<Inability> for ClusterError {
    fn from(reason: Inability) -> Self {
        Self::Unable(reason)
    }
}

impl ClusterError {
    /// Puts the path to an error of the system.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |error| Self::Io { path, error }
    }

    /// The reason for which this machine can never do what was asked, if the error is of that kind.
    pub fn inability(&self) -> Option<&Inability> {
        match self {
            Self::Unable(reason) => Some(reason),
            _ => None,
        }
    }
}
