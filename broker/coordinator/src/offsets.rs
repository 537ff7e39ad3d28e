//! Committed offsets, what a group has read of which partition, and the records of groups: who is a member of which generation.
//!
//! Every replica of a shard applies the same [`OffsetCommand`]s in the same order, so nothing here may depend on a clock
//! or on memory that is not replicated: commit times are part of the command, and expiry is a command that names what
//! expires, and when that had been committed, so that a commit which overtakes it is safe.

mod record;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use record::{GroupRecord, MAX_RECORD_BYTES, MemberRecord};

/// Longest commit metadata in bytes (Kafka's `offset.metadata.max.bytes`).
pub const MAX_METADATA_BYTES: usize = 4096;
/// Leader epoch of a commit that names none.
pub const NO_LEADER_EPOCH: i32 = -1;

/// What commands are written in that the first version knows; those that add [`OffsetCommand::SetGroup`].
const COMMAND_FORMAT: u8 = 1;
const COMMAND_FORMAT_WITH_RECORDS: u8 = 2;
/// What checkpoints are written in as long as there are no records of groups, and with them.
const CHECKPOINT_FORMAT: u8 = 1;
const CHECKPOINT_FORMAT_WITH_RECORDS: u8 = 2;
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

impl CommittedOffset {
    /// When it expires if it is not in use since `unused_since`: `retention` after the later of that and its commit, or at its own `expires_at`.
    fn expires(&self, unused_since: i64, retention: i64) -> i64 {
        self.expires_at.unwrap_or_else(|| {
            unused_since
                .max(self.committed_at)
                .saturating_add(retention)
        })
    }

    /// Whether it expires by `now` if nothing uses it. Most are younger, and nobody needs to find out who uses them.
    fn is_old(&self, now: i64, retention: i64) -> bool {
        self.expires(i64::MIN, retention) <= now
    }
}

/// A change of the committed offsets, or of a group's record.
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
    /// Forgets all offsets of a group and its record (`DeleteGroups`).
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
    /// Sets or forgets the record of a group. Since format 2. See [`OffsetCommand::set_group`].
    SetGroup {
        /// The group.
        group: String,
        /// The term of the coordinator that says so. In another one it means nothing: somebody else may have coordinated the group meanwhile.
        term: u64,
        /// Its record; `None` when it has no members any more.
        record: Option<Box<GroupRecord>>,
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
    /// Sets the record of a group, or forgets it when there is none or it is larger than [`MAX_RECORD_BYTES`].
    #[must_use]
    pub fn set_group(group: String, term: u64, record: Option<Box<GroupRecord>>) -> Self {
        Self::SetGroup {
            group,
            term,
            record: record.filter(|record| record.fits()),
        }
    }

    /// The only term in whose entries the command may be applied; `None`: in any.
    #[must_use]
    pub const fn term(&self) -> Option<u64> {
        match self {
            Self::SetGroup { term, .. } => Some(*term),
            _ => None,
        }
    }

    /// The command as a log entry: a format byte, then postcard.
    ///
    /// # Errors
    /// When it cannot be serialised, which no command does.
    pub fn encode(&self) -> Result<Vec<u8>, OffsetDecodeError> {
        let format = match self {
            Self::SetGroup { .. } => COMMAND_FORMAT_WITH_RECORDS,
            _ => COMMAND_FORMAT,
        };
        encode(format, self)
    }

    /// Reads a log entry.
    ///
    /// # Errors
    /// [`OffsetDecodeError`]; deterministic, so every replica refuses the same entries.
    pub fn decode(bytes: &[u8]) -> Result<Self, OffsetDecodeError> {
        match split(bytes)? {
            (COMMAND_FORMAT | COMMAND_FORMAT_WITH_RECORDS, body) => Ok(postcard::from_bytes(body)?),
            (format, _) => Err(OffsetDecodeError::Format(format)),
        }
    }
}

type GroupOffsets = BTreeMap<TopicPartition, CommittedOffset>;

/// The committed offsets of the groups of a shard, and their records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetStore {
    groups: BTreeMap<String, GroupOffsets>,
    records: BTreeMap<String, GroupRecord>,
}

impl OffsetStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies a command; returns how many offsets were set or forgotten, and 1 for a record. Whether its [`OffsetCommand::term`] is the entry's is for the
    /// caller to look at.
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
            OffsetCommand::DeleteGroup { group } => {
                self.records.remove(&group);
                self.groups
                    .remove(&group)
                    .map_or(0, |offsets| offsets.len())
            }
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
            OffsetCommand::SetGroup { group, record, .. } => {
                match record {
                    Some(record) => drop(self.records.insert(group, *record)),
                    None => drop(self.records.remove(&group)),
                }
                1
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

    /// Whether anything is kept of a group: committed offsets, or a record.
    #[must_use]
    pub fn contains(&self, group: &str) -> bool {
        self.groups.contains_key(group) || self.records.contains_key(group)
    }

    /// The record of a group.
    #[must_use]
    pub fn record(&self, group: &str) -> Option<&GroupRecord> {
        self.records.get(group)
    }

    /// Groups that have a record, in order.
    pub fn records(&self) -> impl Iterator<Item = (&str, &GroupRecord)> {
        self.records
            .iter()
            .map(|(group, record)| (group.as_str(), record))
    }

    /// Groups of which something may have expired at `now` (milliseconds of Unix time), in order: [`OffsetStore::expired`] has nothing of the others, whatever
    /// they use.
    pub fn groups_with_old(&self, now: i64, retention: i64) -> impl Iterator<Item = &str> {
        self.groups
            .iter()
            .filter(move |(_, offsets)| offsets.values().any(|it| it.is_old(now, retention)))
            .map(|(group, _)| group.as_str())
    }

    /// What of a group should expire at `now` (milliseconds of Unix time), as commands to propose.
    ///
    /// `unused_since` says since when the group does not use a topic any more: `None` while it does (it has members that
    /// subscribe to it), `Some(i64::MIN)` when nothing is known but the commit. An offset expires `retention` after the
    /// later of that and its commit, or at its own `expires_at`, if it is not in use.
    #[must_use]
    pub fn expired(
        &self,
        group: &str,
        now: i64,
        retention: i64,
        unused_since: impl Fn(Uuid) -> Option<i64>,
    ) -> Vec<OffsetCommand> {
        let due: Vec<(TopicPartition, i64)> = self
            .of_group(group)
            .filter(|(partition, offset)| {
                offset.is_old(now, retention)
                    && unused_since(partition.topic)
                        .is_some_and(|since| offset.expires(since, retention) <= now)
            })
            .map(|(partition, offset)| (*partition, offset.committed_at))
            .collect();
        due.chunks(EXPIRE_BATCH)
            .map(|batch| OffsetCommand::Expire {
                group: group.to_owned(),
                offsets: batch.to_vec(),
            })
            .collect()
    }

    /// The store as checkpoint bytes: a format byte, then postcard. The caller seals them.
    ///
    /// # Errors
    /// When it cannot be serialised, which no store does.
    pub fn encode(&self) -> Result<Vec<u8>, OffsetDecodeError> {
        if self.records.is_empty() {
            encode(CHECKPOINT_FORMAT, &self.groups)
        } else {
            let both = (&self.groups, &self.records);
            encode(CHECKPOINT_FORMAT_WITH_RECORDS, &both)
        }
    }

    /// Reads checkpoint bytes.
    ///
    /// # Errors
    /// [`OffsetDecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, OffsetDecodeError> {
        match split(bytes)? {
            (CHECKPOINT_FORMAT, body) => Ok(Self {
                groups: postcard::from_bytes(body)?,
                records: BTreeMap::new(),
            }),
            (CHECKPOINT_FORMAT_WITH_RECORDS, body) => {
                let (groups, records) = postcard::from_bytes(body)?;
                Ok(Self { groups, records })
            }
            (format, _) => Err(OffsetDecodeError::Format(format)),
        }
    }
}

fn encode<T: Serialize>(format: u8, value: &T) -> Result<Vec<u8>, OffsetDecodeError> {
    Ok(postcard::to_extend(value, vec![format])?)
}

/// The format byte, and what follows it.
fn split(bytes: &[u8]) -> Result<(u8, &[u8]), OffsetDecodeError> {
    let (format, body) = bytes.split_first().ok_or(OffsetDecodeError::Empty)?;
    Ok((*format, body))
}

#[cfg(test)]
mod tests;
