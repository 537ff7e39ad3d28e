//! Reading.

mod sealed;

use std::sync::Arc;

use palisade_log::{LogError, Offset, PartitionIndex, TopicId};

pub use sealed::SealedRecords;

use super::{DataPlane, Located};
use crate::{
    slot::Partition,
    types::{Access, DataError, Fetched, Isolation},
};

impl DataPlane {
    /// Reads batches from the one that holds `offset`, about `max_bytes` of them, at least one when there is any. They are opened as they are sent.
    ///
    /// Both isolation levels see the same, as there are no transactions yet.
    ///
    /// # Errors
    /// [`DataError::OffsetOutOfRange`], [`DataError::Corrupt`] when the place is damaged (and quarantined then), [`DataError::NotLeader`], ...
    pub fn fetch(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
        offset: Offset,
        max_bytes: usize,
        _isolation: Isolation,
    ) -> Result<Fetched, DataError> {
        let led = self.locate(topic, partition)?;
        led.at
            .fetch(Access::Leader, offset, max_bytes)
            .inspect_err(|error| self.met(error))
    }

    /// As [`DataPlane::fetch`], from any broker that hosts the partition, up to what is applied there (KIP-392).
    ///
    /// # Errors
    /// [`DataError::NotLeader`] when this broker does not host it, [`DataError::OffsetNotAvailable`] for an offset that it has not applied yet; as
    /// [`DataPlane::fetch`].
    pub fn fetch_replica(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
        offset: Offset,
        max_bytes: usize,
        _isolation: Isolation,
    ) -> Result<Fetched, DataError> {
        let located = self.located_by(Access::Replica, topic, partition)?;
        located
            .fetch(Access::Replica, offset, max_bytes)
            .inspect_err(|error| self.met(error))
    }
}

impl Located {
    fn fetch(
        &self,
        access: Access,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Fetched, DataError> {
        let Some(partition) = self.partition() else {
            return check_range(access, offset, Offset::ZERO, Offset::ZERO)
                .map(|()| fetched(SealedRecords::of(self, None), Offset::ZERO, Offset::ZERO));
        };
        // The end before the records: what was appended in between is only seen the next time.
        let end = partition.log.end_offset();
        let start = partition.log.start_offset();
        check_range(access, offset, start, end)?;
        let mut records = SealedRecords::of(self, Some(Arc::clone(&partition)));
        let mut from = offset;
        while from < end && (records.is_empty() || records.len() < max_bytes) {
            let left = max_bytes.saturating_sub(records.len());
            let next = match self.read_some(&partition, from, left, &mut records) {
                Ok(next) => next,
                // What lies before the trouble is good: the next fetch begins at it.
                Err(_) if !records.is_empty() => break,
                Err(error) => return Err(error),
            };
            // Full, or nothing more.
            if next <= from || records.len() >= max_bytes {
                break;
            }
            from = next;
        }
        Ok(fetched(records, end, start))
    }
}

impl Located {
    pub(super) fn partition(&self) -> Option<Arc<Partition>> {
        self.handle.data.slot(self.key)?.partition()
    }

    /// First offset, and the one after the last.
    pub(super) fn ends(&self) -> (Offset, Offset) {
        self.partition()
            .map_or((Offset::ZERO, Offset::ZERO), |partition| {
                (partition.log.start_offset(), partition.log.end_offset())
            })
    }

    /// Takes some batches from the one that holds `from` on. Returns the offset after them.
    fn read_some(
        &self,
        partition: &Partition,
        from: Offset,
        max_bytes: usize,
        out: &mut SealedRecords,
    ) -> Result<Offset, DataError> {
        let mut next = from;
        let entries = partition.log.read(from, max_bytes).map_err(data_error)?;
        for (meta, payload) in entries {
            // A first batch that is larger than the limit goes out alone.
            if !out.is_empty() && next > from && payload.len() > max_bytes.saturating_sub(out.len())
            {
                break;
            }
            out.push(meta.base_offset, meta.leader_epoch, payload)?;
            next = Offset(meta.last_offset.0.saturating_add(1));
        }
        Ok(next)
    }

    /// Opens the batch that holds `offset`.
    pub(super) fn read_batch(
        &self,
        partition: &Arc<Partition>,
        offset: Offset,
    ) -> Result<Option<Vec<u8>>, DataError> {
        let Some((meta, payload)) = partition
            .log
            .read(offset, 0)
            .map_err(data_error)?
            .into_iter()
            .next()
        else {
            return Ok(None);
        };
        let mut records = SealedRecords::of(self, Some(Arc::clone(partition)));
        records.push(meta.base_offset, meta.leader_epoch, payload)?;
        Ok(Some(records.open_all()?))
    }
}

/// Damage is one thing to clients, whatever shows it.
pub(super) fn data_error(error: LogError) -> DataError {
    match error {
        LogError::Corrupt { .. } => DataError::Corrupt(error.to_string()),
        other => DataError::Log(other),
    }
}

fn check_range(
    access: Access,
    offset: Offset,
    start: Offset,
    end: Offset,
) -> Result<(), DataError> {
    if access == Access::Replica && offset > end {
        Err(DataError::OffsetNotAvailable { offset, end })
    } else if offset < start || offset > end {
        Err(DataError::OffsetOutOfRange { offset, start, end })
    } else {
        Ok(())
    }
}

fn fetched(records: SealedRecords, end: Offset, start: Offset) -> Fetched {
    Fetched {
        records,
        high_watermark: end,
        log_start_offset: start,
        last_stable_offset: end,
    }
}
