//! Authorities, the certificates they issue, and the files that carry them.
//!
//! Nothing here talks to Kubernetes or reads a clock: the time of every decision is an argument. Names are checked ([`CommonName`]) before they can
//! reach a certificate's subject.

mod authority;
mod inspect;
mod names;
mod stores;

use time::Duration;

pub use authority::{Authority, KeyAlgorithm, Leaf, LeafKey, LeafUse};
pub use inspect::{CertificateInfo, certificates, fingerprint};
pub use names::{CommonName, NameError};
pub use stores::{key_store, trust_store};

/// How far a certificate's validity reaches into the past, for clocks that are behind.
pub const BACKDATE: Duration = Duration::minutes(5);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The library refused to make a certificate or a key.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Bytes that should be a certificate or a key are not.
    #[error("cannot read {what}: {reason}")]
    Read {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key and a certificate that do not belong together.
    #[error(
        "the private key does not belong to certificate `{0}`: put the pair back together or delete the Secret to have a new one made"
    )]
    Mismatch(String),
    /// A PKCS#12 file could not be written.
    #[error("cannot write a PKCS#12 store: {0}")]
    Store(String),
    /// A validity that ends before it starts or beyond what a certificate can say.
    #[error("a validity of {0} is not possible: use 1 hour to 100 years")]
    Validity(Duration),
    /// The system has no randomness.
    #[error("the system has no randomness")]
    Random,
}
