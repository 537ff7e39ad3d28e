//! The sender's side: the state described, and read piece by piece from the segments while the shard goes on.

use std::sync::Arc;

use bytes::Bytes;
use palisade_log::{Offset, segment::PartitionLog};
use palisade_shard::{CheckpointError, LogPosition, Snapshot};

use super::wire::{self, Description, PartitionDescription, malformed};
use crate::{machine::encode_offsets, shard_data::ShardData, slot::Partition, types::DataError};

/// About how much is sent at once.
pub(crate) const CHUNK: usize = 1 << 20;

/// A shard at one position.
#[derive(Debug)]
pub(crate) struct DataSnapshot {
    description: Bytes,
    /// In the order of the description, as they were at that position. They go on growing.
    partitions: Vec<Held>,
}

/// A partition as it was described.
#[derive(Debug)]
struct Held {
    partition: Arc<Partition>,
    start: Offset,
    end: Offset,
    tombstones: Offset,
}

/// Describes a shard. Nothing may be applied meanwhile.
pub(crate) fn describe(
    data: &ShardData,
    applied: Option<LogPosition>,
) -> Result<DataSnapshot, DataError> {
    let at = applied.ok_or_else(|| malformed("nothing was applied yet"))?;
    let mut held = Vec::new();
    let mut partitions = Vec::new();
    for slot in data.slots() {
        let Some(partition) = slot.partition() else {
            continue;
        };
        let (start, end) = (partition.log.start_offset(), partition.log.end_offset());
        let tombstones = partition.log.cleaned().tombstones;
        let replicated = partition.replicated.lock().clone();
        partitions.push(PartitionDescription {
            key: slot.key,
            seen: partition.seen,
            created: partition.created,
            start,
            end,
            tombstones,
            producers: replicated.producers,
            epochs: replicated.epochs,
        });
        held.push(Held {
            partition,
            start,
            end,
            tombstones,
        });
    }
    let description = Description {
        applied: (at.term, at.index),
        partitions,
        offsets: encode_offsets(&data.offsets.read())?,
    };
    Ok(DataSnapshot {
        description: Bytes::from(description.encode()?),
        partitions: held,
    })
}

impl Snapshot for DataSnapshot {
    fn description(&self) -> Bytes {
        self.description.clone()
    }

    /// The cursor counts the offsets that were sent of all that the receiver lacks, one partition after the other.
    fn chunk(&self, have: &[u8], cursor: u64) -> Result<Option<(Bytes, u64)>, CheckpointError> {
        self.read(have, cursor)
            .map_err(|error| CheckpointError::Write(error.to_string()))
    }
}

impl DataSnapshot {
    fn read(&self, have: &[u8], cursor: u64) -> Result<Option<(Bytes, u64)>, DataError> {
        let from = wire::decode_have(have)?;
        if from.len() != self.partitions.len() {
            return Err(malformed("the receiver speaks of other partitions"));
        }
        let mut part = Vec::new();
        let (mut passed, mut cursor) = (0u64, cursor);
        for (index, (held, from)) in self.partitions.iter().zip(&from).enumerate() {
            let Held { start, end, .. } = held;
            let index = u32::try_from(index).map_err(|_| malformed("too many partitions"))?;
            if from < start || from > end {
                return Err(malformed("the receiver has what is not in it"));
            }
            let lacking = from.0.abs_diff(end.0);
            let after = passed
                .checked_add(lacking)
                .ok_or_else(|| malformed("it holds too many records"))?;
            while cursor < after && part.len() < CHUNK {
                let at = i64::try_from(cursor.saturating_sub(passed))
                    .ok()
                    .and_then(|done| from.checked_add(done))
                    .ok_or_else(|| malformed("its cursor lies outside of it"))?;
                let next = read_onto(&held.partition, index, at, *end, &mut part)?;
                held.check(at)?;
                cursor = cursor.saturating_add(next.0.abs_diff(at.0));
            }
            if part.len() >= CHUNK {
                break;
            }
            passed = after;
        }
        Ok((!part.is_empty()).then(|| (Bytes::from(part), cursor)))
    }
}

impl Held {
    /// Whether what was sent before `at` and what was read from there on fit together, after it was read.
    fn check(&self, at: Offset) -> Result<(), DataError> {
        let tombstones = self.partition.log.cleaned().tombstones;
        if at > self.start && tombstones > self.tombstones && tombstones > at {
            return Err(malformed(
                "tombstones were removed while it was sent; another one is needed",
            ));
        }
        Ok(())
    }
}

/// Whether nothing is left from `from` to `to` because it was compacted.
fn is_hole(log: &PartitionLog, from: Offset, to: Offset) -> bool {
    from >= log.start_offset() && to <= log.cleaned().until
}

/// Puts batches from the one that holds `at` on, but none from `end` on, onto `part`. Returns the offset up to which everything is sent then, which is higher.
pub(crate) fn read_onto(
    partition: &Partition,
    index: u32,
    at: Offset,
    end: Offset,
    part: &mut Vec<u8>,
) -> Result<Offset, DataError> {
    let log = &partition.log;
    let left = CHUNK.saturating_sub(part.len());
    let entries = log.read(at, left).map_err(DataError::Log)?;
    let mut next = at;
    for (meta, payload) in entries {
        if meta.base_offset > next && next < end && is_hole(log, next, meta.base_offset) {
            next = meta.base_offset.min(end);
            wire::push_hole(part, index, next);
        }
        if meta.base_offset >= end || meta.base_offset > next {
            break;
        }
        wire::push_batch(part, index, &meta, &payload);
        next = Offset(meta.last_offset.0.saturating_add(1)).min(end);
    }
    if next > at {
        return Ok(next);
    }
    // It was there when the snapshot was made: either it has expired since, or it is lost.
    let to = if log.is_removed() {
        end
    } else {
        log.start_offset().min(end)
    };
    if to <= at {
        return Err(malformed(&format!(
            "the batch at offset {at} is not there any more"
        )));
    }
    wire::push_gap(part, index, to);
    Ok(to)
}
