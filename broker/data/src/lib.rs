//! The data shards of a broker: what producers send is checked, sealed once, replicated through a shard's log, kept in partition segments, and served to
//! consumers.
//!
//! - [`records`]: record batches, checked down to every record;
//! - [`DataPlane`]: what a server calls;
//! - [`Catalog`]: what the data plane needs to know of topics.
//!
//! ```text
//! produce: validate -> give offsets, seal for that place -> propose -> (write-ahead log, one fdatasync for many) -> apply -> segment, answer
//! fetch:   segment -> open -> batches as the producer sent them
//! ```
//!
//! Everything replicated is in the state machine of the shard; the leader's own promises (offsets given, not yet applied) are checked there again. A
//! checkpoint syncs the segments and stores a manifest; what came after it is replayed from the write-ahead log.

mod catalog;
mod cleaner;
mod command;
mod epochs;
mod machine;
mod manifest;
mod plane;
mod producers;
pub mod records;
mod repair;
mod sealing;
mod shard_data;
mod slot;
mod snapshot;
mod types;

pub use catalog::{Catalog, Compaction, ImageCatalog, TopicSettings, TopicView};
pub use cleaner::{CleanerOptions, CleanerStats, KeyRotation};
pub use plane::{
    DataOptions, DataPlane, KekCensus, RepairStats, ScrubOptions, SealedRecords, SyncFailureHook,
};
pub use sealing::{dek_context, system_key_context};
pub use types::{
    Access, Acks, Appended, DataError, Fetched, Isolation, ListQuery, ListedOffset, LogSize,
    ProducerInfo, Quarantined,
};
