//! Why a reconcile failed in a way that is worth another try. What the user has to mend is a condition instead, see [`crate::members::Blocked`].

use crate::{access::AccessError, kafka::KafkaError, pki::PkiError};

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("the API server: {0}")]
    Kube(#[from] Box<kube::Error>),
    /// An object of that name stands already and is not the operator's to change.
    #[error(
        "{kind} {name} exists and belongs to something else: delete or rename it, or give the object that needs this name another one"
    )]
    NotOurs {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// An object could not be written as JSON.
    #[error("cannot encode an object: {0}")]
    Encode(#[source] serde_json::Error),
    /// A certificate could not be made or read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The brokers refused or did not answer.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The cluster's credentials for the operator are not usable yet.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A finalizer could not be set or removed.
    #[error("finalizer: {0}")]
    Finalizer(String),
    /// `broker.toml` could not be written.
    #[error("{0}")]
    Configuration(String),
}

impl Error {
    /// Whether the API server refuses what it was asked for, so that the same request fails again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Kube(error) if matches!(&**error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422)))
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Kube(Box::new(error))
    }
}
