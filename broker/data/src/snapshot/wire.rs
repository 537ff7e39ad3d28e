//! How a snapshot looks on its way. What comes in was sent by a broker that proved its identity, and is checked all the same.

use std::collections::HashSet;

use bytes::Bytes;
use palisade_coordinator::offsets::OffsetStore;
use palisade_log::{LeaderEpoch, Offset, segment::FrameMeta};
use palisade_seal::PAYLOAD_OVERHEAD;
use serde::{Deserialize, Serialize};

use crate::{command::Key, epochs::Epochs, producers::Producers, types::DataError};

const FORMAT: u8 = 1;
const BATCH: u8 = 0;
const GAP: u8 = 1;
const HOLE: u8 = 2;

/// The state of a shard at one position, without batches.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    /// Term and index.
    pub(super) applied: (u64, u64),
    pub(super) partitions: Vec<PartitionDescription>,
    /// Committed offsets, as the coordinator encodes them.
    pub(super) offsets: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartitionDescription {
    pub(super) key: Key,
    pub(super) seen: u64,
    /// Index of the command that made it.
    pub(super) created: u64,
    pub(super) start: Offset,
    pub(super) end: Offset,
    /// Offset after the last tombstone that compaction removed: who ends before it needs all of the partition.
    pub(super) tombstones: Offset,
    pub(super) producers: Producers,
    pub(super) epochs: Epochs,
}

impl Description {
    pub(super) fn encode(&self) -> Result<Vec<u8>, DataError> {
        postcard::to_extend(self, vec![FORMAT])
            .map_err(|error| DataError::Command(error.to_string()))
    }

    /// Reads a description; also the committed offsets in it.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, OffsetStore), DataError> {
        let description: Self = versioned(bytes)?;
        let mut keys = HashSet::new();
        for partition in &description.partitions {
            if partition.start < Offset::ZERO || partition.end < partition.start {
                return Err(malformed("a partition ends before it begins"));
            }
            if !keys.insert(partition.key) {
                return Err(malformed("a partition is there twice"));
            }
        }
        let offsets = OffsetStore::decode(&description.offsets)
            .map_err(|error| malformed(&error.to_string()))?;
        Ok((description, offsets))
    }
}

/// What the receiver has: for each partition of the description the offset from which on it lacks everything.
pub(super) fn encode_have(from: &[Offset]) -> Result<Vec<u8>, DataError> {
    postcard::to_extend(from, vec![FORMAT]).map_err(|error| DataError::Command(error.to_string()))
}

pub(super) fn decode_have(bytes: &[u8]) -> Result<Vec<Offset>, DataError> {
    versioned(bytes)
}

fn versioned<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DataError> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => {
            postcard::from_bytes(body).map_err(|error| malformed(&error.to_string()))
        }
        Some((format, _)) => Err(malformed(&format!("format {format} is unknown"))),
        None => Err(malformed("it is empty")),
    }
}

pub(super) fn malformed(reason: &str) -> DataError {
    DataError::Command(format!("a snapshot: {reason}"))
}

/// One part of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Batch(FrameMeta, Bytes),
    /// What lies before this offset has expired.
    Gap(Offset),
    /// What lies before this offset was compacted away.
    Hole(Offset),
}

pub(crate) fn push_batch(out: &mut Vec<u8>, partition: u32, meta: &FrameMeta, payload: &[u8]) {
    out.push(BATCH);
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let fields: [&[u8]; 7] = [
        &partition.to_be_bytes(),
        &meta.base_offset.0.to_be_bytes(),
        &meta.last_offset.0.to_be_bytes(),
        &meta.leader_epoch.0.to_be_bytes(),
        &meta.max_timestamp.to_be_bytes(),
        &meta.record_count.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    for field in fields {
        out.extend_from_slice(field);
    }
    out.extend_from_slice(payload);
}

pub(crate) fn push_gap(out: &mut Vec<u8>, partition: u32, to: Offset) {
    out.push(GAP);
    out.extend_from_slice(&partition.to_be_bytes());
    out.extend_from_slice(&to.0.to_be_bytes());
}

pub(crate) fn push_hole(out: &mut Vec<u8>, partition: u32, to: Offset) {
    out.push(HOLE);
    out.extend_from_slice(&partition.to_be_bytes());
    out.extend_from_slice(&to.0.to_be_bytes());
}

/// Takes the next entry and its partition off `part`; `None` at its end.
pub(crate) fn next_entry(part: &mut Bytes) -> Result<Option<(usize, Entry)>, DataError> {
    if part.is_empty() {
        return Ok(None);
    }
    let cut = || malformed("a chunk ends within an entry");
    let [kind] = take(part).ok_or_else(cut)?;
    let partition = u32::from_be_bytes(take(part).ok_or_else(cut)?) as usize;
    if kind == GAP || kind == HOLE {
        let to = Offset(i64::from_be_bytes(take(part).ok_or_else(cut)?));
        let entry = if kind == GAP {
            Entry::Gap(to)
        } else {
            Entry::Hole(to)
        };
        return Ok(Some((partition, entry)));
    }
    if kind != BATCH {
        return Err(malformed(&format!("entries of kind {kind} are unknown")));
    }
    let meta = FrameMeta {
        base_offset: Offset(i64::from_be_bytes(take(part).ok_or_else(cut)?)),
        last_offset: Offset(i64::from_be_bytes(take(part).ok_or_else(cut)?)),
        leader_epoch: LeaderEpoch(i32::from_be_bytes(take(part).ok_or_else(cut)?)),
        max_timestamp: i64::from_be_bytes(take(part).ok_or_else(cut)?),
        record_count: u32::from_be_bytes(take(part).ok_or_else(cut)?),
    };
    let length = u32::from_be_bytes(take(part).ok_or_else(cut)?) as usize;
    if length > part.len() {
        return Err(cut());
    }
    if length < PAYLOAD_OVERHEAD {
        return Err(malformed("a payload is no sealed batch"));
    }
    let payload = part.split_to(length);
    Ok(Some((partition, Entry::Batch(meta, payload))))
}

fn take<const N: usize>(part: &mut Bytes) -> Option<[u8; N]> {
    let field = *part.first_chunk::<N>()?;
    let _ = part.split_to(N);
    Some(field)
}
