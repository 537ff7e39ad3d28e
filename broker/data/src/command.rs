//! What is replicated in a data shard.

use palisade_log::{LeaderEpoch, Offset, PartitionIndex, TopicId};
use serde::{Deserialize, Serialize};

use crate::{producers::ProducerBatch, types::DataError};

const FORMAT: u8 = 1;

/// A partition of a topic, as a key.
pub(crate) type Key = (TopicId, PartitionIndex);

/// One entry of a data shard's log. Lies in an entry's meta, which the write-ahead log seals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DataCommand {
    /// Appends the payload, a sealed batch.
    Append(Append),
    /// Makes a partition, the first time something is appended to it.
    CreatePartition {
        key: Key,
        /// Version of the metadata in which its topic was seen.
        seen: u64,
    },
    /// Raises the first offset: records were deleted or have expired.
    AdvanceStart { key: Key, offset: Offset },
    /// Removes everything of a topic.
    DropTopic { topic: TopicId },
    /// Forgets idempotent producers that appended nothing since then, ms.
    ExpireProducers { before: i64 },
    /// Changes committed offsets: an encoded `OffsetCommand` of the coordinator.
    Offsets(Vec<u8>),
}

/// The place and shape of a sealed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Append {
    pub(crate) key: Key,
    pub(crate) base_offset: Offset,
    pub(crate) record_count: u32,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) max_timestamp: i64,
    /// The leader's clock, ms.
    pub(crate) appended_at: i64,
    pub(crate) producer: Option<ProducerBatch>,
}

/// What applying a command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataResponse {
    Appended {
        base_offset: Offset,
        log_start: Offset,
        duplicate: bool,
        /// Index of this command.
        index: u64,
    },
    /// A partition is there, its first offset was raised, ...
    Start(Offset),
    /// Offsets changed, or partitions removed.
    Count(usize),
    Refused(Refusal),
}

/// Why a command was not applied. The same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    UnknownPartition(Key),
    /// It does not begin at the end of the log, or comes from another leader's time.
    OutOfTurn,
    Fenced {
        producer_id: i64,
        epoch: i16,
        current: i16,
    },
    OutOfOrder {
        producer_id: i64,
        sequence: i32,
        expected: i32,
    },
    OldDuplicate {
        producer_id: i64,
        sequence: i32,
    },
    Malformed(String),
}

impl DataCommand {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, DataError> {
        postcard::to_extend(self, vec![FORMAT])
            .map_err(|error| DataError::Command(error.to_string()))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&FORMAT, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
            Some((format, _)) => Err(format!(
                "format {format} was written by a newer version of the broker"
            )),
            None => Err("it is empty".to_owned()),
        }
    }
}

impl From<Refusal> for DataError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnknownPartition((topic, partition)) => {
                Self::UnknownPartition { topic, partition }
            }
            Refusal::OutOfTurn => Self::OutOfTurn,
            Refusal::Fenced {
                producer_id,
                epoch,
                current,
            } => Self::ProducerFenced {
                producer_id,
                epoch,
                current,
            },
            Refusal::OutOfOrder {
                producer_id,
                sequence,
                expected,
            } => Self::OutOfOrderSequence {
                producer_id,
                sequence,
                expected,
            },
            Refusal::OldDuplicate {
                producer_id,
                sequence,
            } => Self::DuplicateSequence {
                producer_id,
                sequence,
            },
            Refusal::Malformed(reason) => Self::Command(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn commands() -> [DataCommand; 6] {
        let key = (TopicId::random(), PartitionIndex(3));
        [
            DataCommand::Append(Append {
                key,
                base_offset: Offset(1000),
                record_count: 12,
                leader_epoch: LeaderEpoch(4),
                max_timestamp: 1_700_000_000_000,
                appended_at: 1_700_000_000_001,
                producer: None,
            }),
            DataCommand::CreatePartition { key, seen: 9 },
            DataCommand::AdvanceStart {
                key,
                offset: Offset(7),
            },
            DataCommand::DropTopic { topic: key.0 },
            DataCommand::ExpireProducers { before: -1 },
            DataCommand::Offsets(vec![1; 200]),
        ]
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_command_or_refused(
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..100),
                prop::sample::select(commands().map(|command| command.encode().unwrap()).to_vec()),
            ],
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            for (at, byte) in damage {
                let at = at.index(bytes.len().max(1));
                if let Some(there) = bytes.get_mut(at) {
                    *there = byte;
                }
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            if let Ok(command) = DataCommand::decode(&bytes) {
                let again = DataCommand::decode(&command.encode().unwrap());
                prop_assert_eq!(again, Ok(command));
            }
        }
    }
}
