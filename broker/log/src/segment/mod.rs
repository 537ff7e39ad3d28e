//! Partition segments: where applied batches stay.
//!
//! # Files
//!
//! A partition is a directory. Each segment in it is one file, named by the offset of its first record:
//!
//! ```text
//! 00000000000000000000.seg
//!   header       palisade-seal's file header, kind `PALISEG1`; bound to topic, partition and base offset
//!   entry *
//!     frame      108 bytes, [`crate::frame`], no payload; its meta is the entry's [`FrameMeta`], payload length, CRC32C and tag
//!     payload    a sealed batch, as the leader made it
//! ```
//!
//! The payload is ciphertext that ends with its own tag under the topic's key. The frame repeats that tag, so an entry cannot be put together from parts of
//! two; and a CRC32C, so that damage is found here, without the topic's key. Since the frame is short, of fixed length and stands before the payload, an
//! index is made by reading frames only.
//!
//! # What is durable
//!
//! Appends are not synced. The owner calls [`PartitionLog::sync`], stores [`PartitionLog::state`] in its manifest, and only then lets go of the write-ahead
//! log. [`PartitionLog::open`] takes the state back from the manifest: what lies beyond it is cut off, since the write-ahead log will bring it again.
//! When many logs were written to, [`sync_together`] first syncs the whole volume, which costs one flush of the disk instead of one for each file.
//!
//! # When the disk is full, or writing fails
//!
//! An append never fails: what cannot be written now stays in memory, is readable, and is written by [`PartitionLog::flush`] later. The owner sees
//! [`PartitionLog::backlog`] and stops accepting; the backlog is therefore bounded by what was accepted before.
//!
//! # Rewriting
//!
//! A closed segment is rewritten (compacted, or sealed under a newer key) by [`PartitionLog::rewrite`] into a file of the next generation,
//! `<base>.<generation>.seg`, which is durable before it takes the place of the old ones in [`PartitionLog::state`]. The old files stay until
//! [`PartitionLog::saved`] says that a manifest without them is durable: that manifest is the one atomic step, and whichever of the two is found after a crash,
//! all files that it lists are there. Readers that are in an old segment finish with it; one that comes too late finds the new one.
//!
//! # Damage
//!
//! A frame or payload that is not what was written makes [`LogError::Corrupt`](crate::LogError::Corrupt) with file and position. The whole segment is then
//! quarantined: renamed to `*.seg.quarantined`, kept until it is repaired and listed by [`PartitionLog::quarantined`]; nothing of it is served any more.
//! [`PartitionLog::repair`] puts what another replica has in its place; [`PartitionLog::scrub`] looks for damage that nobody has met yet.

mod clean;
mod file;
mod index;
mod meta;
mod partition;
mod repair;
mod state;
mod together;

#[cfg(test)]
mod clean_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod together_tests;

pub use clean::{Cleaned, FilesUnder, Rewrite, Rewritten};
pub use meta::FrameMeta;
pub use partition::{PartitionLog, PartitionPlace, Stored};
pub use repair::{Repair, RepairScope};
pub use state::{Damage, PartitionState, QuarantinedSegment, Rolling, SegmentState};
pub use together::sync_together;
