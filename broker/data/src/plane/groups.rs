//! Committed offsets of consumer groups and the records of their members, kept in the shard of the group.

use std::sync::Arc;

use palisade_coordinator::offsets::{GroupRecord, OffsetCommand, OffsetStore};
use palisade_log::ShardId;

use super::{DataPlane, handle::ShardHandle, produce::unexpected};
use crate::{
    command::{DataCommand, DataResponse},
    types::DataError,
};

impl DataPlane {
    /// Replicates a change of a group's committed offsets or of its record; returns how many were set or forgotten. 0 for a record: this broker does not lead
    /// the shard in the command's term any more.
    ///
    /// # Errors
    /// [`DataError::NotLeader`] when another broker coordinates the group, [`DataError::DiskFull`], ...
    pub async fn apply_offsets(
        &self,
        group: &str,
        command: OffsetCommand,
    ) -> Result<usize, DataError> {
        if self.is_stopping() {
            return Err(DataError::Stopped);
        }
        let handle = self.group_shard(group)?;
        let encoded = command
            .encode()
            .map_err(|error| DataError::Command(error.to_string()))?;
        match self
            .command(&handle, &DataCommand::Offsets(encoded))
            .await?
        {
            DataResponse::Count(count) => Ok(count),
            other => Err(unexpected(other)),
        }
    }

    /// Reads the committed offsets of the shard that keeps a group's.
    ///
    /// # Errors
    /// [`DataError::NotLeader`] when another broker coordinates the group.
    pub fn read_offsets<R>(
        &self,
        group: &str,
        read: impl FnOnce(&OffsetStore) -> R,
    ) -> Result<R, DataError> {
        let handle = self.group_shard(group)?;
        Ok(read(&handle.data.offsets.read()))
    }

    /// Reads the committed offsets of every shard that this broker leads: to list groups, and to find what has expired.
    pub fn each_offset_store(&self, mut read: impl FnMut(ShardId, &OffsetStore)) {
        for (id, handle) in self.handles().iter() {
            if handle.term().is_some() {
                read(*id, &handle.data.offsets.read());
            }
        }
    }

    /// The records of the groups of a shard, as they are applied here. Complete when this broker leads the shard.
    #[must_use]
    pub fn group_records(&self, shard: ShardId) -> Vec<(String, GroupRecord)> {
        let Some(handle) = self.handle_of(shard) else {
            return Vec::new();
        };
        let offsets = handle.data.offsets.read();
        offsets
            .records()
            .map(|(group, record)| (group.to_owned(), record.clone()))
            .collect()
    }

    fn group_shard(&self, group: &str) -> Result<Arc<ShardHandle>, DataError> {
        let shard = self
            .catalog
            .shard_of_group(group)
            .ok_or(DataError::NotLeader)?;
        self.handle_of(shard)
            .filter(|handle| handle.term().is_some())
            .ok_or(DataError::NotLeader)
    }
}
