//! What can be asked of partitions besides their records, and deleting records.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use palisade_log::{LeaderEpoch, Offset, PartitionIndex, TopicId, segment::QuarantinedSegment};
use palisade_shard::Command;

use super::{DataPlane, ShardHandle, fetch::data_error, produce::unexpected};
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
        let located = self.locate(topic, partition)?;
        let Some(partition) = located.partition() else {
            let empty = ListedOffset {
                offset: Offset::ZERO,
                timestamp: -1,
                leader_epoch: located.epoch(),
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
                .unwrap_or_else(|| located.epoch())
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
                    leader_epoch: located.epoch(),
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
            let Some(batch) = located.read_batch(&partition, base.max(from))? else {
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
        let located = self.locate(topic, partition)?;
        let (start, end) = located
            .partition()
            .map_or((Offset::ZERO, Offset::ZERO), |partition| {
                (partition.log.start_offset(), partition.log.end_offset())
            });
        let offset = before.unwrap_or(end);
        if offset > end || offset < Offset::ZERO {
            return Err(DataError::OffsetOutOfRange { offset, start, end });
        }
        if offset <= start {
            return Ok(start);
        }
        match self
            .command(
                located.handle,
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
        let located = self.locate(topic, partition)?;
        let current = located.epoch();
        let Some(partition) = located.partition() else {
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
        self.locate(topic, partition)
            .ok()
            .map(|located| located.epoch())
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
        let partition = self.locate(topic, partition)?.partition();
        Ok(partition.map_or((Offset::ZERO, Offset::ZERO), |partition| {
            (partition.log.start_offset(), partition.log.end_offset())
        }))
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
        let partition = self.locate(topic, partition)?.partition();
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
        let mut list = Vec::new();
        self.each_partition(|_, slot, partition| {
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
            list.extend(partition.log.quarantined().into_iter().map(damaged));
        });
        list
    }

    /// Bytes that a restart would replay.
    #[must_use]
    pub fn unsaved_bytes(&self) -> u64 {
        self.shards
            .values()
            .map(|handle| handle.data.unsaved.load(Ordering::Relaxed))
            .sum()
    }

    pub(super) fn each_partition(
        &self,
        mut visit: impl FnMut(&ShardHandle, &crate::slot::Slot, &crate::slot::Partition),
    ) {
        for handle in self.shards.values() {
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
