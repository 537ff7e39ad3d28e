//! How the operator writes to the API server: only what differs, under one field manager, with the state of the world read before and after.

mod apply;
mod index;
mod lease;
mod mounts;
pub mod names;
mod report;

pub(crate) use apply::is_less_than;
pub use apply::{Applied, apply, covers, digest, is_ours};
pub use index::Index;
pub use lease::{Leadership, LeaseLock};
pub use mounts::{refresh_mounts, refresh_secret};
pub use report::{StatusObject, is_paused, publish, write_status};

/// The one field manager of everything the operator writes.
pub const FIELD_MANAGER: &str = "palisade-operator";
/// The one finalizer of every kind.
pub const FINALIZER: &str = "palisade.dev/operator";
