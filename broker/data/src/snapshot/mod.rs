//! What a replica of a data shard that has fallen behind is sent.
//!
//! The description is the shard's state at one position, without batches: for each partition its ends, producers and epochs; and the committed offsets. The
//! receiver says up to where it has each partition, in the description's order, and is sent what lies between there and the end: batches as they are in the
//! segments, the same ciphertext on every replica.
//!
//! ```text
//! chunk   entry *
//! entry   kind u8, partition u32 (its place in the description), then
//!         batch  0   base i64, last i64, epoch i32, latest timestamp i64, records u32, length u32, payload
//!         gap    1   to i64: what lies before has expired at the sender meanwhile. The command that says so follows in the log.
//!         hole   2   to i64: what lies before was compacted away
//! ```
//!
//! # Compaction
//!
//! Every replica compacts by itself, so one is sent what its sender has left. A tombstone that the sender has removed was removed with everything that it
//! deleted; a replica that ends before it may hold some of that, and is sent the partition from its start. When tombstones are removed while the partition is
//! being sent, the transfer ends, and another begins.
//!
//! # Crash safety
//!
//! Received batches go to segments in directories of their own, which no manifest lists. Installing touches nothing that the old manifest lists until the new one
//! is durable: it adds files, stores the manifest, and only then removes what is not needed any more. Whenever it ends before, opening the shard removes what was
//! added.

mod install;
mod receive;
mod send;
mod wire;

pub(crate) use install::install;
pub(crate) use receive::DataIncoming;
pub(crate) use send::{CHUNK, describe, read_onto};
pub(crate) use wire::{Entry, next_entry};
#[cfg(test)]
pub(crate) use wire::{push_batch, push_gap, push_hole};

#[cfg(test)]
mod tests;
