//! Committed offsets: what a group has read of which partition.
//!
//! Every replica of a shard applies the same [`OffsetCommand`]s in the same order, so nothing here may depend on a clock
//! or on memory that is not replicated: commit times are part of the command, and expiry is a command that names what
//! expires, and when that had been committed, so that a commit which overtakes it is safe.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest commit metadata in bytes (Kafka's `offset.metadata.max.bytes`).
pub const MAX_METADATA_BYTES: usize = 4096;
/// Leader epoch of a commit that names none.
pub const NO_LEADER_EPOCH: i32 = -1;

const COMMAND_FORMAT: u8 = 1;
const CHECKPOINT_FORMAT: u8 = 1;
/// Partitions that one expiry command names at most, so that it stays a small log entry.
const EXPIRE_BATCH: usize = 1000;

/// A partition of a topic. By the topic's id, so that a topic made again under an old name starts without offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic's id.
    pub topic: Uuid,
    /// The partition's index.
    pub partition: i32,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// Leader epoch of the last record read, or [`NO_LEADER_EPOCH`].
    pub leader_epoch: i32,
    /// What the consumer wrote beside it.
    pub metadata: String,
    /// When it was committed, in milliseconds of Unix time, by the leader's clock.
    pub committed_at: i64,
    /// When it expires whatever the group does, in milliseconds of Unix time (old clients' `retention_time`).
    pub expires_at: Option<i64>,
}

/// A change of the committed offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OffsetCommand {
    /// Sets offsets of a group.
    Commit {
        /// The group.
        group: String,
        /// Partition and offset.
        offsets: Vec<(TopicPartition, CommittedOffset)>,
    },
    /// Forgets some offsets of a group (`OffsetDelete`).
    Delete {
        /// The group.
        group: String,
        /// The partitions.
        partitions: Vec<TopicPartition>,
    },
    /// Forgets all offsets of a group (`DeleteGroups`).
    DeleteGroup {
        /// The group.
        group: String,
    },
    /// Forgets offsets that nobody has used for long, unless they have been committed again since.
    Expire {
        /// The group.
        group: String,
        /// Partition, and commit time of the offset that expires.
        offsets: Vec<(TopicPartition, i64)>,
    },
    /// Forgets every group's offsets of a topic that has been deleted.
    DropTopic {
        /// The topic's id.
        topic: Uuid,
    },
}

/// Why bytes are not a command or a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OffsetDecodeError {
    /// Nothing there.
    #[error("an offset command or checkpoint is empty")]
    Empty,
    /// Written by a newer version.
    #[error("offset format {0} is unknown: written by a newer version of the broker")]
    Format(u8),
    /// Damaged.
    #[error("an offset command or checkpoint is malformed: {0}")]
    Malformed(#[from] postcard::Error),
}

impl OffsetCommand {
    /// The command as a log entry: a format byte, then postcard.
    ///
    /// # Errors
    /// When it cannot be serialised, which no command does.
    pub fn encode(&self) -> Result<Vec<u8>, OffsetDecodeError> {
        encode(COMMAND_FORMAT, self)
    }

    /// Reads a log entry.
    ///
    /// # Errors
    /// [`OffsetDecodeError`]; deterministic, so every replica refuses the same entries.
    pub fn decode(bytes: &[u8]) -> Result<Self, OffsetDecodeError> {
        decode(COMMAND_FORMAT, bytes)
    }
}

type GroupOffsets = BTreeMap<TopicPartition, CommittedOffset>;

/// The committed offsets of the groups of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetStore {
    groups: BTreeMap<String, GroupOffsets>,
}

impl OffsetStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies a command; returns how many offsets were set or forgotten.
    pub fn apply(&mut self, command: OffsetCommand) -> usize {
        match command {
            OffsetCommand::Commit { group, offsets } => {
                if offsets.is_empty() {
                    return 0;
                }
                let count = offsets.len();
                self.groups.entry(group).or_default().extend(offsets);
                count
            }
            OffsetCommand::Delete { group, partitions } => self.forget(&group, |offsets| {
                for partition in &partitions {
                    offsets.remove(partition);
                }
            }),
            OffsetCommand::DeleteGroup { group } => self
                .groups
                .remove(&group)
                .map_or(0, |offsets| offsets.len()),
            OffsetCommand::Expire {
                group,
                offsets: expired,
            } => self.forget(&group, |offsets| {
                for (partition, committed_at) in &expired {
                    if offsets
                        .get(partition)
                        .is_some_and(|current| current.committed_at == *committed_at)
                    {
                        offsets.remove(partition);
                    }
                }
            }),
            OffsetCommand::DropTopic { topic } => {
                let groups: Vec<String> = self.groups.keys().cloned().collect();
                groups
                    .iter()
                    .map(|group| {
                        self.forget(group, |offsets| {
                            offsets.retain(|partition, _| partition.topic != topic);
                        })
                    })
                    .sum()
            }
        }
    }

    /// Lets `change` remove offsets of a group, and the group with its last one.
    fn forget(&mut self, group: &str, change: impl FnOnce(&mut GroupOffsets)) -> usize {
        let Some(offsets) = self.groups.get_mut(group) else {
            return 0;
        };
        let before = offsets.len();
        change(offsets);
        let removed = before - offsets.len();
        if offsets.is_empty() {
            self.groups.remove(group);
        }
        removed
    }

    /// The committed offset of a partition.
    #[must_use]
    pub fn get(&self, group: &str, partition: TopicPartition) -> Option<&CommittedOffset> {
        self.groups.get(group)?.get(&partition)
    }

    /// All committed offsets of a group, by topic id and partition.
    pub fn of_group(
        &self,
        group: &str,
    ) -> impl Iterator<Item = (&TopicPartition, &CommittedOffset)> {
        self.groups.get(group).into_iter().flatten()
    }

    /// Groups that have committed offsets, in order.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Whether a group has committed offsets.
    #[must_use]
    pub fn contains(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// What should expire at `now` (milliseconds of Unix time), as commands to propose.
    ///
    /// `unused_since` says since when a group does not use a topic any more: `None` while it does (it has members that
    /// subscribe to it), `Some(i64::MIN)` when nothing is known but the commit. An offset expires `retention` after the
    /// later of that and its commit, or at its own `expires_at`, if it is not in use.
    #[must_use]
    pub fn expired(
        &self,
        now: i64,
        retention: i64,
        unused_since: impl Fn(&str, Uuid) -> Option<i64>,
    ) -> Vec<OffsetCommand> {
        let mut commands = Vec::new();
        for (group, offsets) in &self.groups {
            let due: Vec<(TopicPartition, i64)> = offsets
                .iter()
                .filter(|(partition, offset)| {
                    let at = |since: i64| {
                        offset.expires_at.unwrap_or_else(|| {
                            since.max(offset.committed_at).saturating_add(retention)
                        })
                    };
                    // First what costs nothing: most offsets are young, and who uses them is long to find out.
                    at(i64::MIN) <= now
                        && unused_since(group, partition.topic)
                            .is_some_and(|since| at(since) <= now)
                })
                .map(|(partition, offset)| (*partition, offset.committed_at))
                .collect();
            commands.extend(due.chunks(EXPIRE_BATCH).map(|batch| OffsetCommand::Expire {
                group: group.clone(),
                offsets: batch.to_vec(),
            }));
        }
        commands
    }

    /// The store as checkpoint bytes: a format byte, then postcard. The caller seals them.
    ///
    /// # Errors
    /// When it cannot be serialised, which no store does.
    pub fn encode(&self) -> Result<Vec<u8>, OffsetDecodeError> {
        encode(CHECKPOINT_FORMAT, &self.groups)
    }

    /// Reads checkpoint bytes.
    ///
    /// # Errors
    /// [`OffsetDecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, OffsetDecodeError> {
        Ok(Self {
            groups: decode(CHECKPOINT_FORMAT, bytes)?,
        })
    }
}

fn encode<T: Serialize>(format: u8, value: &T) -> Result<Vec<u8>, OffsetDecodeError> {
    Ok(postcard::to_extend(value, vec![format])?)
}

fn decode<'a, T: Deserialize<'a>>(format: u8, bytes: &'a [u8]) -> Result<T, OffsetDecodeError> {
    match bytes.split_first() {
        None => Err(OffsetDecodeError::Empty),
        Some((found, body)) if *found == format => Ok(postcard::from_bytes(body)?),
        Some((found, _)) => Err(OffsetDecodeError::Format(*found)),
    }
}

#[cfg(test)]
mod tests;
