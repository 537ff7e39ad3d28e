//! Authenticated encryption of everything Palisade stores.
//!
//! # Key hierarchy
//!
//! ```text
//! KEK   held by a key provider, never on the data volume                       KeyProvider, DirectoryProvider
//!  ├─ DEK per topic and version, wrapped, kept in the metadata shard           SecretKey, WrappedKey, KeyRing
//!  │   └─ subkey = HKDF-SHA256(DEK, fresh 128-bit salt), one per Sealer
//!  │       └─ nonce = 64-bit counter                                           Sealer
//!  └─ file root, wrapped in the header of every file that uses it              FileKeys
//!      └─ file key = HKDF-SHA256(root, fresh 128-bit salt of the file)         FileKey
//!          └─ nonce = random 96-bit start of each writer, then counted         FrameSealer
//! ```
//!
//! The cipher is AES-256-GCM, the implementation is aws-lc-rs, and there is no negotiation: a format version stands in
//! front of everything that is stored, and a new cipher is a new version.
//!
//! # Formats (all integers big-endian)
//!
//! | what | bytes |
//! | --- | --- |
//! | sealed payload ([`Sealer`]) | format `u8` = 1, DEK version `u32`, salt 16, counter `u64`, ciphertext, tag 16 |
//! | wrapped key ([`WrappedKey`]) | format `u8` = 1, id length `u8`, KEK id, check value 8, nonce 12, ciphertext and tag 48 |
//! | file header ([`FileKeys`]) | magic 8, format `u16`, length `u16`, wrapped length `u16`, wrapped root, salt 16, SHA-256 prefix 8, HMAC-SHA-256 32 |
//!
//! The AAD of a sealed payload is the caller's; format, DEK version and salt are bound because the subkey is derived
//! from them, the counter because it is the nonce.
//!
//! # What this protects against
//!
//! Whoever reads the disk, its snapshots or its backups learns lengths, times and the ids of keys, and nothing of the
//! content. Whoever writes to the disk cannot make the broker serve bytes that it did not seal for that very place:
//! a changed, moved or exchanged frame fails authentication, and a file moved to another name fails in its header.
//!
//! Not protected against: whoever holds the KEK; the memory of a running broker; and putting back an *older state of
//! the whole disk*, which no key can tell from the truth (replication shows it: the other brokers are ahead).
//!
//! # Errors
//!
//! Three situations that look alike and need different actions are told apart: a key that is not there
//! ([`SealError::UnknownKek`]), a key of the right name with the wrong bytes ([`SealError::WrongKek`], by a check value
//! stored beside everything wrapped), and damaged data ([`SealError::NotAuthentic`], [`SealError::Malformed`]).

mod cipher;
mod crash_safe;
mod error;
mod file;
mod fingerprint;
mod key;
mod payload;
mod provider;
mod wrapped;

pub use cipher::NONCE_LEN;
pub use crash_safe::{create_private, write_atomically};
pub use error::SealError;
pub use file::{FileKey, FileKeys, FileKind, FrameSealer, HEADER_LIMIT};
pub use fingerprint::Fingerprints;
pub use key::{DekVersion, KekId, SecretKey};
pub use payload::{KeyRing, PAYLOAD_OVERHEAD, Sealer};
pub use provider::{DirectoryProvider, KeyProvider};
pub use wrapped::WrappedKey;

/// Length of an AES-GCM tag in bytes.
pub const TAG_LEN: usize = 16;
