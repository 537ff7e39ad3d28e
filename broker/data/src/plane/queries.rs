//! What can be asked of partitions besides their records, and deleting records.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use palisade_log::{
    LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, segment::QuarantinedSegment,
};
use palisade_shard::Command;

use super::{DataPlane, fetch::data_error, handle::ShardHandle, produce::unexpected};
use crate::{
    command::{DataCommand, DataResponse},
    records::{first_record_at_or_after, first_record_with_max_timestamp},
    types::{DataError, ListQuery, ListedOffset, LogSize, ProducerInfo, Quarantined},
};

impl DataPlane {
    /// Finds an offset by time or by its role. `None`: there is no such record.
    ///
    /// # Errors
    /// As [`DataPlane::fetch`].
    pub fn list_offset(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
        query: ListQuery,
    ) -> Result<Option<ListedOffset>, DataError> {
        let led = self.locate(topic, partition)?;
        let Some(partition) = led.at.partition() else {
            let empty = ListedOffset {
                offset: Offset::ZERO,
                timestamp: -1,
                leader_epoch: led.epoch(),
            };
            return Ok(matches!(query, ListQuery::Earliest | ListQuery::Latest).then_some(empty));
        };
        let log = &partition.log;
        let epoch_at = |offset| {
            partition
                .replicated
                .lock()
                .epochs
                .of(offset)
                .unwrap_or_else(|| led.epoch())
        };
        let timestamp = match query {
            ListQuery::Earliest => {
                let offset = log.start_offset();
                return Ok(Some(ListedOffset {
                    offset,
                    timestamp: -1,
                    leader_epoch: epoch_at(offset),
                }));
            }
            ListQuery::Latest => {
                return Ok(Some(ListedOffset {
                    offset: log.end_offset(),
                    timestamp: -1,
                    leader_epoch: led.epoch(),
                }));
            }
            ListQuery::MaxTimestamp => log.max_timestamp(),
            ListQuery::At(timestamp) => Some(timestamp),
        };
        let Some(timestamp) = timestamp else {
            return Ok(None);
        };
        let mut from = log.start_offset();
        // Usually the first batch found has the record; not when its only one was deleted with the records before the start.
        while let Some(base) = log
            .offset_for_timestamp(timestamp, from)
            .map_err(data_error)?
        {
            let Some(batch) = led.at.read_batch(&partition, base.max(from))? else {
                return Ok(None);
            };
            let found = match query {
                ListQuery::MaxTimestamp => first_record_with_max_timestamp(&batch)?,
                _ => first_record_at_or_after(&batch, timestamp, from.0)?,
            };
            if let Some((offset, timestamp)) = found {
                let offset = Offset(offset);
                return Ok(Some(ListedOffset {
                    offset,
                    timestamp,
                    leader_epoch: epoch_at(offset),
                }));
            }
            let header = crate::records::BatchHeader::parse(&batch)?;
            from = from.max(Offset(header.last_offset().saturating_add(1)));
        }
        Ok(None)
    }

    /// Deletes the records before an offset, all of them for `None`. Returns the first offset then.
    ///
    /// # Errors
    /// [`DataError::OffsetOutOfRange`] for an offset beyond the end; what a proposal can fail with.
    pub async fn delete_records(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
        before: Option<Offset>,
    ) -> Result<Offset, DataError> {
        let located = self.locate(topic, partition)?.at;
        let (start, end) = located.ends();
        let offset = before.unwrap_or(end);
        if offset > end || offset < Offset::ZERO {
            return Err(DataError::OffsetOutOfRange { offset, start, end });
        }
        if offset <= start {
            return Ok(start);
        }
        match self
            .command(
                &located.handle,
                &DataCommand::AdvanceStart {
                    key: located.key,
                    offset,
                },
            )
            .await?
        {
            DataResponse::Start(start) => Ok(start),
            other => Err(unexpected(other)),
        }
    }

    /// Where the log of the leader with that epoch ended (KIP-101): the largest epoch that is not later, and the offset after its last record. `None` for an
    /// epoch that is later than the current one.
    ///
    /// # Errors
    /// [`DataError::UnknownPartition`], [`DataError::NotLeader`].
    pub fn offset_for_leader_epoch(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
        epoch: LeaderEpoch,
    ) -> Result<Option<(LeaderEpoch, Offset)>, DataError> {
        let led = self.locate(topic, partition)?;
        let current = led.epoch();
        let Some(partition) = led.at.partition() else {
            return Ok((epoch <= current).then_some((epoch, Offset::ZERO)));
        };
        let end = partition.log.end_offset();
        Ok(partition
            .replicated
            .lock()
            .epochs
            .end_of(epoch, current, end))
    }

    /// The epoch in which this broker leads the partition; `None` when it does not.
    #[must_use]
    pub fn leader_epoch(&self, topic: TopicId, partition: PartitionIndex) -> Option<LeaderEpoch> {
        self.locate(topic, partition).ok().map(|led| led.epoch())
    }

    /// First offset and high watermark.
    ///
    /// # Errors
    /// [`DataError::UnknownPartition`], [`DataError::NotLeader`].
    pub fn offsets_of(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
    ) -> Result<(Offset, Offset), DataError> {
        self.locate(topic, partition).map(|led| led.at.ends())
    }

    /// First offset and the one after the last as far as is applied here, whoever leads.
    ///
    /// # Errors
    /// [`DataError::UnknownPartition`], [`DataError::NotLeader`] when this broker does not host the partition.
    pub fn offsets_here(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
    ) -> Result<(Offset, Offset), DataError> {
        self.locate_replica(topic, partition)
            .map(|located| located.ends())
    }

    /// First offset that is not visible yet.
    ///
    /// # Errors
    /// As [`DataPlane::offsets_of`].
    pub fn high_watermark(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
    ) -> Result<Offset, DataError> {
        self.offsets_of(topic, partition).map(|(_, end)| end)
    }

    /// First offset.
    ///
    /// # Errors
    /// As [`DataPlane::offsets_of`].
    pub fn log_start(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
    ) -> Result<Offset, DataError> {
        self.offsets_of(topic, partition).map(|(start, _)| start)
    }

    /// Idempotent producers of a partition.
    ///
    /// # Errors
    /// [`DataError::UnknownPartition`], [`DataError::NotLeader`].
    pub fn producers(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
    ) -> Result<Vec<ProducerInfo>, DataError> {
        let partition = self.locate(topic, partition)?.at.partition();
        Ok(partition.map_or_else(Vec::new, |partition| {
            partition.replicated.lock().producers.list()
        }))
    }

    /// Size and ends of every partition that has a log here.
    #[must_use]
    pub fn log_sizes(&self) -> Vec<LogSize> {
        let mut sizes = Vec::new();
        self.each_partition(|_, slot, partition| {
            let (topic, index) = slot.key;
            let log = &partition.log;
            sizes.push(LogSize {
                topic,
                partition: index,
                bytes: log.size(),
                start: log.start_offset(),
                end: log.end_offset(),
            });
        });
        sizes
    }

    /// Files that are damaged and therefore not served.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.quarantined_by_shard()
            .into_iter()
            .map(|(_, damaged)| damaged)
            .collect()
    }

    pub(super) fn quarantined_by_shard(&self) -> Vec<(ShardId, Quarantined)> {
        let mut list = Vec::new();
        self.each_partition(|handle, slot, partition| {
            let (topic, index) = slot.key;
            let damaged = |segment: QuarantinedSegment| Quarantined {
                topic,
                partition: index,
                file: segment.file,
                position: segment.position,
                reason: segment.reason,
                base: segment.base,
                end: segment.end,
            };
            let damaged = partition.log.quarantined().into_iter().map(damaged);
            list.extend(damaged.map(|one| (handle.data.id, one)));
        });
        list
    }

    /// Bytes that a restart would replay.
    #[must_use]
    pub fn unsaved_bytes(&self) -> u64 {
        self.handles()
            .values()
            .map(|handle| handle.data.unsaved.load(Ordering::Relaxed))
            .sum()
    }

    pub(super) fn each_partition(
        &self,
        mut visit: impl FnMut(&ShardHandle, &crate::slot::Slot, &crate::slot::Partition),
    ) {
        for handle in self.handles().values() {
            for slot in handle.data.slots() {
                if let Some(partition) = slot.partition() {
                    visit(handle, &slot, &partition);
                }
            }
        }
    }

    /// Replicates a command that has no payload.
    pub(super) async fn command(
        &self,
        handle: &ShardHandle,
        command: &DataCommand,
    ) -> Result<DataResponse, DataError> {
        let meta = command.encode()?;
        match handle
            .shard
            .propose(Command::new(meta, Bytes::new()))
            .await?
        {
            DataResponse::Refused(refusal) => Err(refusal.into()),
            response => Ok(response),
        }
    }
}
