//! The receiver's side: batches are kept aside until all of them are there.

use std::sync::Arc;

use bytes::Bytes;
use palisade_coordinator::offsets::OffsetStore;
use palisade_log::{
    Offset,
    segment::{FrameMeta, PartitionLog, Rolling, Stored},
};
use palisade_shard::{CheckpointError, Incoming, LogPosition};

use super::wire::{self, Description, Entry, PartitionDescription, malformed};
use crate::{
    shard_data::{ShardData, now_ms},
    slot::Partition,
    types::DataError,
};

/// A snapshot that is being received. Dropping it removes what was kept aside.
#[derive(Debug)]
pub(crate) struct DataIncoming {
    data: Arc<ShardData>,
    pub(super) description: Description,
    pub(super) offsets: OffsetStore,
    /// For each partition of the description.
    pub(super) parts: Vec<Part>,
    /// The partition that is being received.
    current: usize,
}

/// What is received of one partition.
#[derive(Debug)]
pub(super) struct Part {
    /// Everything before it is there, here or aside.
    pub(super) position: Offset,
    /// What is here already is a part of it: what is received continues it.
    pub(super) continues: bool,
    pub(super) staged: Option<Staged>,
}

/// Batches that are kept aside.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) dir: u64,
    pub(super) begin: Offset,
    pub(super) log: PartitionLog,
}

impl DataIncoming {
    /// Begins to receive what `description` describes; also returns what is here already.
    pub(crate) fn begin(
        data: &Arc<ShardData>,
        applied: Option<LogPosition>,
        description: &[u8],
    ) -> Result<(Self, Bytes), DataError> {
        let (description, offsets) = Description::decode(description)?;
        if applied.is_some_and(|at| at.index >= description.applied.1) {
            return Err(malformed("it is older than what is here"));
        }
        let parts: Vec<_> = description
            .partitions
            .iter()
            .map(|wanted| {
                let here = data.slot(wanted.key).and_then(|slot| slot.partition());
                let continues = here.is_some_and(|here| continues(&here, wanted));
                let position = match data.slot(wanted.key).and_then(|slot| slot.partition()) {
                    Some(here) if continues => here.log.end_offset(),
                    _ => wanted.start,
                };
                Part {
                    position,
                    continues,
                    staged: None,
                }
            })
            .collect();
        let from: Vec<_> = parts.iter().map(|part| part.position).collect();
        let have = Bytes::from(wire::encode_have(&from)?);
        let incoming = Self {
            data: Arc::clone(data),
            description,
            offsets,
            parts,
            current: 0,
        };
        Ok((incoming, have))
    }

    fn take(&mut self, mut chunk: Bytes) -> Result<(), DataError> {
        while let Some((index, entry)) = wire::next_entry(&mut chunk)? {
            if index < self.current {
                return Err(malformed("partitions are out of order"));
            }
            if index > self.current {
                self.rest(self.current)?;
                self.current = index;
            }
            let (Some(wanted), Some(part)) = (
                self.description.partitions.get(index),
                self.parts.get_mut(index),
            ) else {
                return Err(malformed("it has a partition that was not described"));
            };
            match entry {
                Entry::Gap(to) => part.skip(to, wanted.end)?,
                Entry::Hole(to) => part.pass(&self.data, wanted, to)?,
                Entry::Batch(meta, payload) => part.append(&self.data, wanted, meta, payload)?,
            }
        }
        Ok(())
    }

    /// Makes what was received of a partition durable, and closes its file.
    fn rest(&mut self, index: usize) -> Result<(), DataError> {
        let Some(staged) = self.parts.get(index).and_then(|part| part.staged.as_ref()) else {
            return Ok(());
        };
        staged
            .log
            .sync(self.data.default_rolling(), now_ms())
            .map_err(DataError::Log)?;
        // Once to say that it was used, once to see that it was not used since.
        staged.log.close_idle();
        staged.log.close_idle();
        Ok(())
    }

    /// Checks that everything is there, and makes it durable.
    pub(super) fn finish(&mut self) -> Result<(), DataError> {
        let complete = self
            .description
            .partitions
            .iter()
            .zip(&self.parts)
            .all(|(wanted, part)| part.position == wanted.end);
        if !complete {
            return Err(malformed("it was not received to its end"));
        }
        self.rest(self.current)
    }
}

/// Whether what is here is a beginning, or all, of what is wanted. When something here is damaged, it is received anew.
pub(super) fn continues(here: &Partition, wanted: &PartitionDescription) -> bool {
    let end = here.log.end_offset();
    here.created == wanted.created
        && end >= wanted.start
        && end <= wanted.end
        && end >= wanted.tombstones.min(wanted.end)
        && here.log.quarantined().is_empty()
}

impl Part {
    /// What lies before `to` has expired at the sender: what is here and aside lies before it as well.
    fn skip(&mut self, to: Offset, end: Offset) -> Result<(), DataError> {
        if to <= self.position || to > end {
            return Err(malformed("a gap leads nowhere"));
        }
        if let Some(staged) = self.staged.take() {
            staged.log.remove().map_err(DataError::Log)?;
        }
        self.continues = false;
        self.position = to;
        Ok(())
    }

    fn append(
        &mut self,
        data: &ShardData,
        wanted: &PartitionDescription,
        meta: FrameMeta,
        payload: Bytes,
    ) -> Result<(), DataError> {
        let next = meta.last_offset.checked_add(1);
        // Compaction leaves fewer records than offsets.
        let next = next.filter(|next| {
            meta.base_offset <= meta.last_offset
                && meta
                    .base_offset
                    .checked_add(i64::from(meta.record_count))
                    .is_some_and(|filled| filled <= *next)
                && *next > self.position
                && *next <= wanted.end
        });
        let follows = meta.base_offset == self.position
            // The first one that is wanted may begin before the first offset that is.
            || (meta.base_offset < self.position && self.staged.is_none() && !self.continues);
        let (Some(next), true) = (next.filter(|_| meta.base_offset >= Offset::ZERO), follows)
        else {
            return Err(malformed("a batch does not follow the one before"));
        };
        let rolling: Rolling = data
            .slot(wanted.key)
            .map_or_else(|| data.default_rolling(), |slot| slot.rolling());
        match self.staged_at(data, wanted, meta.base_offset).log.append(
            meta,
            payload,
            rolling,
            now_ms(),
        ) {
            Ok(Stored::OnDisk) => {}
            Ok(Stored::InMemory(error)) | Err(error) => return Err(DataError::Log(error)),
        }
        self.position = next;
        Ok(())
    }

    /// What lies before `to` was compacted away.
    fn pass(
        &mut self,
        data: &ShardData,
        wanted: &PartitionDescription,
        to: Offset,
    ) -> Result<(), DataError> {
        if to <= self.position || to > wanted.end {
            return Err(malformed("a hole leads nowhere"));
        }
        self.staged_at(data, wanted, self.position).log.skip_to(to);
        self.position = to;
        Ok(())
    }

    /// What is kept aside, begun at `begin` when nothing is yet.
    fn staged_at(
        &mut self,
        data: &ShardData,
        wanted: &PartitionDescription,
        begin: Offset,
    ) -> &Staged {
        self.staged.get_or_insert_with(|| {
            let (dir, log) = data.new_log(wanted.key, wanted.start, begin);
            Staged { dir, begin, log }
        })
    }
}

impl Incoming for DataIncoming {
    fn chunk(&mut self, part: Bytes) -> Result<(), CheckpointError> {
        self.take(part)
            .map_err(|error| CheckpointError::Write(error.to_string()))
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

impl Drop for DataIncoming {
    fn drop(&mut self) {
        for staged in self.parts.iter_mut().filter_map(|part| part.staged.take()) {
            if let Err(error) = staged.log.remove() {
                // The next start does.
                tracing::warn!(%error, "cannot remove what was received of a snapshot");
            }
        }
    }
}
