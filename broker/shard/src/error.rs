use palisade_log::ShardId;
use thiserror::Error;

/// Why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This broker does not lead the shard (any more). When leadership was lost after the proposal had entered the log, it may still be applied.
    #[error("this broker does not lead shard {0}")]
    NotLeader(ShardId),
    /// No space to write to. A proposal that had entered the log already keeps its place and is applied when there is space again.
    #[error("the disk of the write-ahead log is full; free space on it, writing goes on by itself")]
    Full,
    /// Too much waits to be written; try again later.
    #[error("too many bytes wait to be written to shard {0}; try again")]
    Busy(ShardId),
    /// Larger than a record of the write-ahead log may be.
    #[error("a command of {bytes} bytes exceeds the write-ahead log's limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The shard was shut down, or failed; the log says why.
    #[error("shard {0} has stopped")]
    Stopped(ShardId),
}

/// Why a shard cannot start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShardError {
    /// A record of the write-ahead log is not one of a shard.
    #[error("the write-ahead log holds a record of shard {shard} that cannot be read: {reason}")]
    Record {
        /// Whose.
        shard: ShardId,
        /// What is wrong with it.
        reason: String,
    },
    /// The state machine is behind or ahead of the log: files of the data directory were lost or come from elsewhere.
    #[error(
        "shard {shard} was checkpointed at {checkpoint}, but its log begins after {released}: part of the data directory is missing; restore it whole"
    )]
    Gap {
        /// Whose.
        shard: ShardId,
        /// Index that the state machine's checkpoint covers.
        checkpoint: u64,
        /// Index through which the log was released.
        released: u64,
    },
    /// The Raft engine refused or stopped.
    #[error("shard {shard} has stopped: {reason}")]
    Raft {
        /// Whose.
        shard: ShardId,
        /// What it said.
        reason: String,
    },
}

/// Why a checkpoint was not made. The shard goes on, the log is not released.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The state machine could not write its state.
    #[error("cannot write a checkpoint: {0}")]
    Write(String),
    /// The shard has stopped.
    #[error("the shard has stopped")]
    Stopped,
}
