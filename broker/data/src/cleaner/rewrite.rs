//! Compacts a partition and seals it anew.

use std::collections::BTreeSet;

use bytes::Bytes;
use palisade_log::{
    LogError, Offset,
    segment::{Cleaned, FrameMeta, PartitionLog, Rewrite, Rewritten, SegmentState},
};
use palisade_seal::{KeyRing, SealError, Sealer};

use super::{CleanerStats, Facts, Step, key_map::KeyMap, next_step};
use crate::{
    catalog::Compaction,
    command::Key,
    records::{BatchHeader, Filter, Filtered, KeptRecords, RecordError, each_key},
    sealing::batch_aad,
};

/// How much is read at once.
const CHUNK: usize = 512 << 10;

/// Why a partition was not cleaned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CleanError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the batch at offset {offset}: {source}")]
    Record { offset: Offset, source: RecordError },
    #[error("the topic has no key")]
    NoKey,
    #[error("stopped")]
    Stopped,
}

/// One partition to clean.
pub(crate) struct Work<'a> {
    pub(crate) key: Key,
    pub(crate) log: &'a PartitionLog,
    pub(crate) keys: &'a KeyRing,
    pub(crate) compaction: Option<Compaction>,
    /// First offsets of the last batches of all producers that are remembered.
    pub(crate) last_of_producers: BTreeSet<Offset>,
    pub(crate) now_ms: i64,
    pub(crate) key_map_bytes: usize,
    /// Told of bytes that were read or written; may wait; false stops.
    pub(crate) pace: &'a dyn Fn(u64) -> bool,
}

/// The keys that a pass has read.
struct Known {
    map: KeyMap,
    /// Records from here on are not in it.
    until: Offset,
}

impl Work<'_> {
    /// Does one step. False when it was overtaken by what happened to the log meanwhile.
    pub(crate) fn run(&self, step: &Step, stats: &mut CleanerStats) -> Result<bool, CleanError> {
        match step {
            Step::CloseActive => {
                self.log.close_active();
                Ok(true)
            }
            Step::Rewrite(segment) => self.group(std::slice::from_ref(segment), None, stats),
            Step::Compact {
                from,
                until,
                groups,
            } => {
                let known = self.read_keys(*from, *until, stats)?;
                for group in groups {
                    let begins_before = group.first().is_some_and(|first| first.base < known.until);
                    if begins_before && !self.group(group, Some(&known), stats)? {
                        return Ok(false);
                    }
                }
                self.log.set_cleaned(Cleaned {
                    until: known.until,
                    tombstones: Offset::ZERO,
                });
                Ok(true)
            }
        }
    }

    /// Does what is to be done, step by step, until nothing is.
    pub(crate) fn run_all(
        &self,
        rolling: palisade_log::segment::Rolling,
        stats: &mut CleanerStats,
    ) -> Result<(), CleanError> {
        let mut last = None;
        loop {
            let (state, closed) = (self.log.state(), self.log.closed_segments());
            let step = next_step(&Facts {
                state: &state,
                closed: &closed,
                compaction: self.compaction,
                rolling,
                newest_key: self.keys.latest(),
                now_ms: self.now_ms,
            });
            // What was just done, or tried, and is still to be done, waits for the next time.
            match step {
                Some(step) if last.as_ref() != Some(&step) => {
                    if !self.run(&step, stats)? {
                        return Ok(());
                    }
                    last = Some(step);
                }
                _ => return Ok(()),
            }
        }
    }

    fn read_keys(
        &self,
        from: Offset,
        until: Offset,
        stats: &mut CleanerStats,
    ) -> Result<Known, CleanError> {
        let keys = u64::try_from(until.0.saturating_sub(from.0)).unwrap_or(0);
        let mut known = Known {
            map: KeyMap::new(self.key_map_bytes, keys)?,
            until: from,
        };
        while known.until < until {
            let entries = self.log.read(known.until, CHUNK)?;
            if entries.is_empty() {
                known.until = until;
            }
            for (meta, payload) in entries {
                if meta.base_offset >= until {
                    known.until = until;
                    break;
                }
                self.read(payload.len(), stats)?;
                let batch = self.open(&meta, &payload)?;
                let mut full_at = None;
                each_key(&batch, |offset, key| {
                    if offset < from.0 || known.map.insert(key, offset) {
                        return true;
                    }
                    full_at = Some(Offset(offset));
                    false
                })
                .map_err(|source| record_error(&meta, source))?;
                if let Some(full_at) = full_at {
                    known.until = full_at;
                    return Ok(known);
                }
                known.until = Offset(meta.last_offset.0.saturating_add(1));
            }
        }
        known.until = known.until.min(until);
        Ok(known)
    }

    /// Rewrites segments that stand side by side into one.
    fn group(
        &self,
        segments: &[SegmentState],
        known: Option<&Known>,
        stats: &mut CleanerStats,
    ) -> Result<bool, CleanError> {
        let Some(mut rewrite) = self.log.rewrite(segments) else {
            return Ok(false);
        };
        let sealer = self.keys.sealer()?.ok_or(CleanError::NoKey)?;
        let mut outcome = Outcome {
            changed: segments.len() > 1,
            ..Outcome::default()
        };
        loop {
            let entries = rewrite.next(CHUNK)?;
            if entries.is_empty() {
                break;
            }
            for (meta, payload) in entries {
                self.read(payload.len(), stats)?;
                self.batch(&mut rewrite, &meta, &payload, known, &sealer, &mut outcome)?;
            }
        }
        outcome.changed |= segments
            .first()
            .is_some_and(|segment| segment.horizon != outcome.horizon);
        if !outcome.changed {
            return Ok(true);
        }
        // Groups go in the order of offsets and each was filtered by the whole map: as far as this one goes, holes are holes already, also when the pass ends here.
        let end = segments.last().map_or(Offset::ZERO, |segment| segment.end);
        let until = known.map_or(Offset::ZERO, |known| known.until.min(end));
        let done = rewrite.commit(Cleaned {
            until,
            tombstones: outcome.tombstones,
        })?;
        stats.bytes_written = stats.bytes_written.saturating_add(outcome.written);
        stats.segments = stats.segments.saturating_add(segments.len() as u64);
        Ok(done == Rewritten::Replaced)
    }

    fn batch(
        &self,
        rewrite: &mut Rewrite<'_>,
        meta: &FrameMeta,
        payload: &Bytes,
        known: Option<&Known>,
        sealer: &Sealer,
        outcome: &mut Outcome,
    ) -> Result<(), CleanError> {
        let batch = self.open(meta, payload)?;
        let filtered = match &self.compaction {
            Some(compaction) => self
                .filter(compaction, meta, &batch, known, outcome)
                .map_err(|source| record_error(meta, source))?,
            None => Filtered::Same(KeptRecords {
                count: meta.record_count,
                max_timestamp: meta.max_timestamp,
                horizon: None,
            }),
        };
        let is_newest = KeyRing::version_of(payload)? == sealer.version();
        let seal = |batch: &[u8]| sealer.seal(&self.aad(meta), batch).map(Bytes::from);
        let (kept, sealed) = match filtered {
            Filtered::Gone => {
                outcome.changed = true;
                return Ok(());
            }
            Filtered::Same(kept) if is_newest => (kept, payload.clone()),
            Filtered::Same(kept) => {
                outcome.changed = true;
                (kept, seal(&batch)?)
            }
            Filtered::Changed(batch, kept) => {
                outcome.changed = true;
                (kept, seal(&batch)?)
            }
        };
        let meta = FrameMeta {
            record_count: kept.count,
            max_timestamp: kept.max_timestamp,
            ..*meta
        };
        rewrite.put(&meta, &sealed, kept.horizon)?;
        outcome.horizon = [outcome.horizon, kept.horizon].into_iter().flatten().min();
        outcome.written = outcome.written.saturating_add(sealed.len() as u64);
        self.go_on(sealed.len())
    }

    fn filter(
        &self,
        compaction: &Compaction,
        meta: &FrameMeta,
        batch: &[u8],
        known: Option<&Known>,
        outcome: &mut Outcome,
    ) -> Result<Filtered, RecordError> {
        let header = BatchHeader::parse(batch)?;
        // A rewriting without new keys is for what was compacted before.
        let until = known.map_or(self.log.cleaned().until, |known| known.until);
        let covered = meta.last_offset < until;
        let expired = covered && header.delete_horizon().is_some_and(|at| at <= self.now_ms);
        let is_last = meta.last_offset.0.saturating_add(1) == self.log.end_offset().0;
        let filter = Filter {
            now_ms: self.now_ms,
            delete_retention_ms: covered.then_some(compaction.delete_retention_ms),
            keep_empty: !covered || is_last || self.last_of_producers.contains(&meta.base_offset),
        };
        filter.apply(batch, |record| {
            if header.attributes.is_control() || record.offset >= until.0 {
                return true;
            }
            let Some(key) = record.key else {
                // Written before the topic was compacted: without a key it can never be replaced.
                return known.is_none();
            };
            let last = known.and_then(|known| known.map.last(key));
            if last.is_some_and(|last| last.0 > record.offset) {
                return false;
            }
            if expired && !record.has_value {
                outcome.tombstones = outcome
                    .tombstones
                    .max(Offset(record.offset.saturating_add(1)));
                return false;
            }
            true
        })
    }

    fn aad(&self, meta: &FrameMeta) -> [u8; 33] {
        let (topic, partition) = self.key;
        batch_aad(topic, partition, meta.base_offset, meta.leader_epoch)
    }

    fn open(&self, meta: &FrameMeta, payload: &Bytes) -> Result<Vec<u8>, CleanError> {
        self.keys
            .open(&self.aad(meta), payload)
            .inspect_err(|error| {
                if error.is_corruption() {
                    let reason = format!("the batch at offset {}: {error}", meta.base_offset);
                    self.log.quarantine(meta.base_offset, &reason);
                }
            })
            .map_err(CleanError::Seal)
    }

    fn read(&self, bytes: usize, stats: &mut CleanerStats) -> Result<(), CleanError> {
        stats.bytes_read = stats.bytes_read.saturating_add(bytes as u64);
        self.go_on(bytes)
    }

    fn go_on(&self, bytes: usize) -> Result<(), CleanError> {
        if (self.pace)(bytes as u64) && !self.log.is_removed() {
            Ok(())
        } else {
            Err(CleanError::Stopped)
        }
    }
}

/// What came of a group.
#[derive(Default)]
struct Outcome {
    changed: bool,
    written: u64,
    horizon: Option<i64>,
    /// Offset after the last tombstone that was removed.
    tombstones: Offset,
}

fn record_error(meta: &FrameMeta, source: RecordError) -> CleanError {
    CleanError::Record {
        offset: meta.base_offset,
        source,
    }
}
