//! A snapshot that was received becomes the shard's state.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use palisade_log::{Offset, segment::Cleaned};
use palisade_shard::LogPosition;

use super::{
    receive::{DataIncoming, Part, Staged, continues},
    wire::{PartitionDescription, malformed},
};
use crate::{
    manifest::{Manifest, PartitionManifest},
    shard_data::{ShardData, now_ms},
    slot::{Partition, Replicated},
    types::DataError,
};

/// How much is read at once when batches have to be copied.
const COPY: usize = 4 << 20;

/// What becomes of a partition.
enum Next {
    /// The one that is here goes on.
    Kept(Arc<Partition>),
    /// Another one takes its place.
    New(Box<Partition>),
}

/// Replaces the state of a shard. Nothing may be applied meanwhile; reading goes on. After an error the disk is as before, with files that no manifest lists, and
/// the memory may be half of both.
pub(crate) fn install(
    data: &Arc<ShardData>,
    at: LogPosition,
    mut incoming: DataIncoming,
) -> Result<(), DataError> {
    if incoming.description.applied != (at.term, at.index) {
        return Err(malformed(
            "it is to be installed at another place than its own",
        ));
    }
    incoming.finish()?;
    let mut partitions = Vec::with_capacity(incoming.parts.len());
    let mut next = Vec::with_capacity(incoming.parts.len());
    for (wanted, part) in incoming
        .description
        .partitions
        .iter()
        .zip(&mut incoming.parts)
    {
        let (one, manifest) = prepare(data, wanted, part)?;
        next.push((wanted, one));
        partitions.push(manifest);
    }
    let manifest = Manifest {
        applied: Some((at.term, at.index)),
        partitions,
        offsets: incoming.description.offsets.clone(),
    };
    // From here on the new state counts.
    data.store(&manifest)?;
    let wanted: HashSet<_> = next.iter().map(|(wanted, _)| wanted.key).collect();
    for slot in data.slots() {
        if !wanted.contains(&slot.key) {
            data.remove_slot(slot.key);
            discard(slot.partition());
            slot.waiters.wake();
        }
    }
    for (wanted, one) in next {
        switch(data, wanted, one);
    }
    data.saved(&manifest);
    *data.offsets.write() = std::mem::take(&mut incoming.offsets);
    // Everything was synced.
    data.backlogged.store(false, Ordering::Release);
    data.wake_all();
    Ok(())
}

/// Makes a partition's files as they are to be, beside those that the present manifest lists, and says what the next one lists.
fn prepare(
    data: &ShardData,
    wanted: &PartitionDescription,
    part: &mut Part,
) -> Result<(Next, PartitionManifest), DataError> {
    let replicated = replicated_of(wanted);
    let one = place(data, wanted, part, &replicated)?;
    let (dir, log) = match &one {
        Next::Kept(partition) => (partition.dir, &partition.log),
        Next::New(partition) => (partition.dir, &partition.log),
    };
    let rolling = data
        .slot(wanted.key)
        .map_or_else(|| data.default_rolling(), |slot| slot.rolling());
    log.set_cleaned(Cleaned {
        until: Offset::ZERO,
        tombstones: wanted.tombstones,
    });
    if matches!(one, Next::New(_)) {
        // While it was received nobody counted it among what needs a key, which may be about to go.
        log.rewrap().map_err(DataError::Log)?;
    }
    log.sync(rolling, now_ms()).map_err(DataError::Log)?;
    let manifest = PartitionManifest {
        key: wanted.key,
        seen: wanted.seen,
        created: wanted.created,
        dir,
        log: log.state().advanced_to(wanted.start),
        producers: replicated.producers,
        epochs: replicated.epochs,
    };
    Ok((one, manifest))
}

fn place(
    data: &ShardData,
    wanted: &PartitionDescription,
    part: &mut Part,
    replicated: &Replicated,
) -> Result<Next, DataError> {
    let here = data.slot(wanted.key).and_then(|slot| slot.partition());
    if let Some(here) = here.filter(|here| part.continues && continues(here, wanted)) {
        if let Some(staged) = part.staged.take() {
            extend(data, &here, wanted, &staged)?;
        }
        if here.log.end_offset() == wanted.end {
            return Ok(Next::Kept(here));
        }
    }
    if part.continues {
        return Err(malformed("what it was to continue is not here any more"));
    }
    let partition = match part.staged.take() {
        Some(Staged { dir, log, .. }) => Partition {
            seen: wanted.seen,
            created: wanted.created,
            dir,
            log,
            replicated: replicated.clone().into(),
        },
        None => data.new_partition(
            wanted.key,
            wanted.seen,
            wanted.created,
            (wanted.start, wanted.end),
            replicated.clone(),
        ),
    };
    Ok(Next::New(Box::new(partition)))
}

/// Continues the log that is here by what was received.
fn extend(
    data: &ShardData,
    here: &Partition,
    wanted: &PartitionDescription,
    staged: &Staged,
) -> Result<(), DataError> {
    let now = now_ms();
    let rolling = data
        .slot(wanted.key)
        .map_or_else(|| data.default_rolling(), |slot| slot.rolling());
    here.log.flush(rolling, now).map_err(DataError::Log)?;
    if staged.begin == here.log.end_offset() {
        return here
            .log
            .adopt(&staged.log, rolling, now)
            .map_err(DataError::Log);
    }
    // Some of it was applied here while the snapshot was on its way.
    while here.log.end_offset() < wanted.end {
        let from = here.log.end_offset();
        let batches = staged.log.read(from, COPY).map_err(DataError::Log)?;
        if batches.is_empty() {
            // Nothing but a hole is left, or it would have been missed before.
            here.log.skip_to(wanted.end);
        }
        for (meta, payload) in batches {
            here.log.skip_to(meta.base_offset);
            here.log
                .append(meta, payload, rolling, now)
                .map_err(DataError::Log)?;
        }
    }
    staged.log.remove().map_err(DataError::Log)
}

/// Lets readers see a partition's new state, and removes what is not a part of it any more.
fn switch(data: &ShardData, wanted: &PartitionDescription, one: Next) {
    let slot = data.slot_or_new(wanted.key);
    match one {
        Next::Kept(partition) => {
            partition.log.advance_start(wanted.start);
            *partition.replicated.lock() = replicated_of(wanted);
        }
        Next::New(partition) => discard(slot.set_partition(*partition)),
    }
    // More than anybody waits for: they look what came.
    slot.appended_bytes.fetch_add(1 << 32, Ordering::Relaxed);
}

fn discard(partition: Option<Arc<Partition>>) {
    if let Some(Err(error)) = partition.map(|partition| partition.log.remove()) {
        // The next start does: no manifest lists it any more.
        tracing::warn!(%error, "cannot remove the files of a partition that was replaced");
    }
}

fn replicated_of(wanted: &PartitionDescription) -> Replicated {
    Replicated {
        producers: wanted.producers.clone(),
        epochs: wanted.epochs.clone(),
    }
}
