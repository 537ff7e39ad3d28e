//! The Palisade operator: keeps clusters, users, access, quotas, topics and rotations the way their resources say.

pub mod kafka;
pub mod pki;
