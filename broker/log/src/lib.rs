//! The sealed logs of a broker.
//!
//! - [`frame`]: the authenticated frame that every file below is made of;
//! - [`fs`]: the file system as a trait, so that tests can put faults under the logs;
//! - [`Wal`]: the write-ahead log;
//! - [`segment`]: the segments of a partition.
//!
//! The write-ahead log makes many writers durable with one `fdatasync`; segments hold what was applied from it, one
//! directory for each partition, and are made durable by checkpoints.

mod error;
pub mod frame;
pub mod fs;
mod ids;
pub mod segment;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod wal;

pub use error::LogError;
pub use ids::{LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId};
pub use wal::{Wal, WalError, WalOptions, WalRecord, WalStats};
