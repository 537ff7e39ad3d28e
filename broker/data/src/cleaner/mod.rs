//! Rewrites closed segments: compaction (`cleanup.policy=compact`), and sealing anew what lies under an older version of the topic's key.
//!
//! - [`plan`]: what is to be done with a partition, decided from its state, its topic's settings and the clock;
//! - [`key_map`]: the last offset of every key in a part of a log, in bounded memory;
//! - [`rewrite`]: doing it.
//!
//! Every replica cleans by itself. What readers see is the same on all of them but for when records go: offsets never change, the last record of every key
//! stays, and so does the last batch of every producer that is remembered, empty if need be. The last batch of the log stays as well, so that a reader of any
//! offset arrives at its end.
//!
//! # Passes
//!
//! A pass reads the part that was not compacted yet into a key map, as far as the map's budget goes, and then rewrites all closed segments up to there, from
//! the first on, side by side ones into one where they have become small. If the map was too small for all of it, more passes follow. The order makes it safe
//! to remove a tombstone once its time (`delete.retention.ms` after its first pass) is over, in whichever pass: the records that it deletes went before it.

mod key_map;
mod plan;
mod rewrite;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use plan::{Facts, Step, dirtiness, next_step};
pub(crate) use rewrite::{CleanError, Work};

/// How the cleaner works.
#[derive(Clone, Copy, Debug)]
pub struct CleanerOptions {
    /// How often it is looked for something to clean.
    pub interval: Duration,
    /// Memory for the keys of one pass, bytes; more keys take more passes.
    pub key_map_bytes: usize,
    /// Bytes read and written in a second at most; `None`: as fast as the disk.
    pub bytes_per_second: Option<u64>,
}

impl Default for CleanerOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            key_map_bytes: 16 << 20,
            bytes_per_second: Some(64 << 20),
        }
    }
}

/// What the cleaner has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleanerStats {
    /// Bytes of segments that were read to be rewritten.
    pub bytes_read: u64,
    /// Bytes that were written in their place.
    pub bytes_written: u64,
    /// Segments that were replaced.
    pub segments: u64,
    /// Partitions that could not be cleaned when it was tried last.
    pub failing: u64,
}

/// How far the move of a topic's data to the newest version of its key has come on this broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRotation {
    /// The topic.
    pub topic: palisade_log::TopicId,
    /// Newest version of its key.
    pub newest: palisade_seal::DekVersion,
    /// Oldest version that anything is sealed under.
    pub oldest: palisade_seal::DekVersion,
    /// Segments with something under an older version than the newest.
    pub segments_left: usize,
    /// Bytes of those segments.
    pub bytes_left: u64,
}
