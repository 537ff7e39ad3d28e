//! Answering those who repair.

use bytes::Bytes;
use palisade_log::Offset;

use super::wire::{Answer, Question};
use crate::{
    shard_data::ShardData,
    snapshot::{CHUNK, read_onto},
};

/// Reads about 1 MiB of what is asked for, from the segments. May block on a disk. The error says what the other side is told: it then asks somebody else.
pub(crate) fn serve(data: &ShardData, question: &Question) -> Result<Answer, String> {
    let partition = data
        .slot(question.key)
        .and_then(|slot| slot.partition())
        .filter(|partition| partition.created == question.created)
        .ok_or("the partition is not here")?;
    let log = &partition.log;
    if log.end_offset() < question.to {
        return Err("it was not applied here yet".to_owned());
    }
    if log.start_offset() > question.from {
        return Err("it has expired here".to_owned());
    }
    let cleaned = log.cleaned();
    let mut entries = Vec::new();
    let mut at: Offset = question.from;
    while at < question.to && entries.len() < CHUNK {
        // What is damaged here fails, and is quarantined.
        at = read_onto(&partition, 0, at, question.to, &mut entries)
            .map_err(|error| error.to_string())?;
    }
    // How far it was compacted must be true of all that was read: it says which tombstones have nothing left to delete.
    if log.cleaned() != cleaned {
        return Err("it was compacted while it was read; retry".to_owned());
    }
    Ok(Answer {
        cleaned,
        entries: Bytes::from(entries),
    })
}
