//! What the data plane takes and gives.

use std::path::PathBuf;

use palisade_log::{LeaderEpoch, LogError, Offset, PartitionIndex, TopicId};
use palisade_seal::SealError;
use palisade_shard::{MembersError, ProposeError};
use thiserror::Error;

use crate::{plane::SealedRecords, records::RecordError};

/// What a producer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Nothing; the answer may be dropped.
    None,
    /// The leader. Palisade commits before it answers all the same: see the design of replication.
    Leader,
    /// All replicas in sync, which must be `min.insync.replicas` at least.
    All,
}

/// Which replica answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The leader only.
    Leader,
    /// Any: what it has applied, which may be less than the leader has (KIP-392).
    Replica,
}

/// Which records a consumer may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Up to the high watermark.
    ReadUncommitted,
    /// Up to the last stable offset, which is the high watermark as long as there are no transactions.
    ReadCommitted,
}

/// Where a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of its first record. For a duplicate: the one it got the first time.
    pub base_offset: Offset,
    /// The time the broker stamped, ms, when the topic uses log append time.
    pub log_append_time: Option<i64>,
    /// First offset of the partition.
    pub log_start_offset: Offset,
}

/// What a fetch found.
#[derive(Debug)]
pub struct Fetched {
    /// Whole batches; the first may begin before the offset asked for (clients skip), and is there even when it is larger
    /// than the limit, so that a consumer always gets on. Empty at the end of the log.
    pub records: SealedRecords,
    /// First offset that is not yet visible.
    pub high_watermark: Offset,
    /// First offset of the partition.
    pub log_start_offset: Offset,
    /// First offset that a committed reader may not see yet.
    pub last_stable_offset: Offset,
}

/// What a list offsets query asks for (KIP-79, KIP-734).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListQuery {
    /// Log start offset (`-2`, and `-4`: all of the log is local).
    Earliest,
    /// High watermark (`-1`).
    Latest,
    /// The record with the largest timestamp (`-3`).
    MaxTimestamp,
    /// The first record at or after this time, ms.
    At(i64),
}

/// Answer to a [`ListQuery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset.
    pub offset: Offset,
    /// Timestamp of the record, ms; -1 for the earliest and the latest offset.
    pub timestamp: i64,
    /// Epoch of the leader that appended there.
    pub leader_epoch: LeaderEpoch,
}

/// Size and ends of one partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSize {
    /// Topic.
    pub topic: TopicId,
    /// Partition.
    pub partition: PartitionIndex,
    /// Bytes on disk.
    pub bytes: u64,
    /// First offset.
    pub start: Offset,
    /// High watermark.
    pub end: Offset,
}

/// What is known about an idempotent producer of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerInfo {
    /// Producer id.
    pub producer_id: i64,
    /// Its latest epoch.
    pub epoch: i16,
    /// Sequence number of its last record.
    pub last_sequence: i32,
    /// Largest timestamp of its last batch, ms.
    pub last_timestamp: i64,
}

/// A file that is damaged and therefore not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Topic.
    pub topic: TopicId,
    /// Partition.
    pub partition: PartitionIndex,
    /// The file, under the name it was given.
    pub file: PathBuf,
    /// Position of the damage in the file, bytes; 0 for all of it.
    pub position: u64,
    /// What is wrong.
    pub reason: String,
    /// First offset that is not served.
    pub base: Offset,
    /// Offset after the last that is not served.
    pub end: Offset,
}

/// Why the data plane refuses. The server maps each to one Kafka error.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is no such topic or partition in the metadata.
    #[error("topic {topic} has no partition {partition}; it may have been deleted")]
    UnknownPartition {
        /// Topic.
        topic: TopicId,
        /// Partition.
        partition: PartitionIndex,
    },
    /// This broker does not lead the partition's shard now (or not yet); another try finds the leader.
    #[error("this broker does not lead the shard of the partition now; retry")]
    NotLeader,
    /// A batch was refused because one before it was: the order of the partition would have been broken. The producer sends again.
    #[error("an append before this one failed, so its place in the log is taken; retry")]
    OutOfTurn,
    /// The batch is damaged or against the topic's rules.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Fewer brokers hold the partition than `min.insync.replicas` asks for.
    #[error("{have} replicas are in sync where min.insync.replicas asks for {need}")]
    NotEnoughReplicas {
        /// Replicas in sync.
        have: u32,
        /// Replicas asked for.
        need: u32,
    },
    /// An older incarnation of a producer (KIP-98).
    #[error("producer {producer_id} sent epoch {epoch} after epoch {current} was seen")]
    ProducerFenced {
        /// Producer.
        producer_id: i64,
        /// The epoch it sent.
        epoch: i16,
        /// The epoch that is valid.
        current: i16,
    },
    /// A gap in a producer's sequence: a batch before this one was lost.
    #[error("producer {producer_id} sent sequence {sequence} where {expected} is next")]
    OutOfOrderSequence {
        /// Producer.
        producer_id: i64,
        /// First sequence of the batch.
        sequence: i32,
        /// The one that is next.
        expected: i32,
    },
    /// Older than what is remembered of a producer, and known to be appended before.
    #[error("producer {producer_id} sent sequence {sequence} again, which was appended earlier")]
    DuplicateSequence {
        /// Producer.
        producer_id: i64,
        /// First sequence of the batch.
        sequence: i32,
    },
    /// The offset is not in the log.
    #[error("offset {offset} is outside of the log, which holds {start} up to {end}")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// First offset.
        start: Offset,
        /// High watermark.
        end: Offset,
    },
    /// The offset may be in the log, but this replica has not applied it yet.
    #[error(
        "offset {offset} is not here yet, this replica has applied up to {end}; retry, or ask the leader"
    )]
    OffsetNotAvailable {
        /// The offset asked for.
        offset: Offset,
        /// Offset after the last one that is here.
        end: Offset,
    },
    /// The replicas of a shard, or its leader, were not changed.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// No space is left: nothing is appended until there is some again.
    #[error("the disk is full; records can be read, none can be appended until space is freed")]
    DiskFull,
    /// Something on disk is damaged and was quarantined.
    #[error("{0}")]
    Corrupt(String),
    /// Writing or reading failed.
    #[error(transparent)]
    Log(LogError),
    /// A key is missing or wrong.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// More waits to be written than memory is given for it.
    #[error("too much waits to be written; retry")]
    Busy,
    /// The shard failed.
    #[error("the shard failed: {0}")]
    Shard(String),
    /// The broker is shutting down.
    #[error("the broker is shutting down")]
    Stopped,
    /// A command could not be encoded or decoded.
    #[error("a replicated command is malformed: {0}")]
    Command(String),
}

impl From<ProposeError> for DataError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Full => Self::DiskFull,
            ProposeError::NotLeader(_) => Self::NotLeader,
            ProposeError::Busy(_) => Self::Busy,
            ProposeError::TooLarge { bytes, limit } => {
                RecordError::TooLarge { size: bytes, limit }.into()
            }
            ProposeError::Stopped(_) => Self::Stopped,
            other => Self::Shard(other.to_string()),
        }
    }
}
