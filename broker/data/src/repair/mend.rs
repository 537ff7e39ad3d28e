//! Putting new segments in the place of damaged ones.

use palisade_log::{
    LogError, Offset,
    segment::{Cleaned, FrameMeta, PartitionLog, Repair, RepairScope, Rewritten},
};
use palisade_seal::{KeyRing, SealError};

use super::wire::{Answer, Question};
use crate::{
    command::Key,
    records::{BatchHeader, RecordError},
    sealing::batch_aad,
    snapshot::{Entry, next_entry},
    types::DataError,
};

/// Why nothing was repaired, this time and from there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MendError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("what came makes no sense: {0}")]
    Malformed(#[from] DataError),
    #[error("the batch at offset {offset} that came cannot be opened: {source}")]
    Sealed { offset: Offset, source: SealError },
    #[error("the batch at offset {offset} that came is no batch: {source}")]
    Record { offset: Offset, source: RecordError },
    #[error("the batch at offset {0} that came is not what its sender says of it")]
    Differs(Offset),
    #[error("{0}")]
    Refused(String),
    #[error("it changed there while it was read")]
    Changed,
    #[error("something else happened to the log meanwhile")]
    Overtaken,
}

/// What was repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Damaged segments that are not there any more.
    pub(crate) segments: u64,
    /// Bytes of the files that were replaced.
    pub(crate) bytes: u64,
    /// First offset of what came.
    pub(crate) from: Offset,
    /// Offset after its last.
    pub(crate) to: Offset,
}

/// One partition with damage, and somebody to ask.
pub(crate) struct Mend<'a> {
    pub(crate) key: Key,
    pub(crate) created: u64,
    pub(crate) log: &'a PartitionLog,
    pub(crate) keys: &'a KeyRing,
    pub(crate) segment_bytes: u64,
    /// Asks the source; blocks until it has answered.
    pub(crate) ask: &'a dyn Fn(Question) -> Result<Answer, String>,
}

impl Mend<'_> {
    /// Repairs the first damaged segment that can be, or, of a log that was compacted here or there, all of them. `None`: nothing is damaged, or the log is being
    /// rewritten. Blocks.
    pub(crate) fn run(&self) -> Result<Option<Mended>, MendError> {
        if was_compacted(self.log.cleaned()) {
            return self.attempt(RepairScope::FromStart);
        }
        let mut outcome = Ok(None);
        for segment in self.log.quarantined() {
            match self.attempt(RepairScope::Segment(segment.base)) {
                Err(MendError::Changed) => return self.attempt(RepairScope::FromStart),
                Ok(None) => {}
                // The next one may be whole there.
                Err(error) => outcome = Err(error),
                mended => return mended,
            }
        }
        outcome
    }

    fn attempt(&self, scope: RepairScope) -> Result<Option<Mended>, MendError> {
        let Some(mut repair) = self.log.repair(scope, self.segment_bytes) else {
            return Ok(None);
        };
        let (from, to) = repair.wanted().unwrap_or_default();
        let mut there: Option<Cleaned> = None;
        while let Some((position, to)) = repair.wanted() {
            let question = Question {
                key: self.key,
                created: self.created,
                from: position,
                to,
            };
            let answer = (self.ask)(question).map_err(MendError::Refused)?;
            let now = answer.cleaned;
            let first = there.get_or_insert(now);
            let changed = match scope {
                RepairScope::Segment(_) => was_compacted(now),
                // A tombstone that went since may have deleted something that came before, and one that came may delete nothing that is left there.
                RepairScope::FromStart => *first != now,
            };
            if changed {
                return Err(MendError::Changed);
            }
            self.take(&mut repair, answer)?;
            if repair.wanted().is_some_and(|(next, _)| next <= position) {
                return Err(MendError::Refused("nothing came".to_owned()));
            }
        }
        let mended = Mended {
            segments: repair.damaged(),
            bytes: repair.source_bytes(),
            from,
            to,
        };
        match repair.commit(there.unwrap_or_default())? {
            Rewritten::Replaced => Ok(Some(mended)),
            Rewritten::Overtaken => Err(MendError::Overtaken),
        }
    }

    fn take(&self, repair: &mut Repair<'_>, answer: Answer) -> Result<(), MendError> {
        let mut entries = answer.entries;
        while let Some((_, entry)) = next_entry(&mut entries)? {
            match entry {
                Entry::Batch(meta, payload) => {
                    let horizon = self.verify(&meta, &payload)?;
                    repair.put(&meta, &payload, horizon)?;
                }
                Entry::Hole(to) => repair.skip(to)?,
                // The command that says so follows here as well.
                Entry::Gap(_) => return Err(MendError::Changed),
            }
        }
        Ok(())
    }

    /// Opens a batch under the topic's key: its tag binds it to its place. Returns when tombstones in it may be removed.
    fn verify(&self, meta: &FrameMeta, payload: &[u8]) -> Result<Option<i64>, MendError> {
        let offset = meta.base_offset;
        let (topic, partition) = self.key;
        let aad = batch_aad(topic, partition, offset, meta.leader_epoch);
        let batch = self
            .keys
            .open(&aad, payload)
            .map_err(|source| MendError::Sealed { offset, source })?;
        let header =
            BatchHeader::parse(&batch).map_err(|source| MendError::Record { offset, source })?;
        let is_the_same = header.size == batch.len()
            && header.base_offset == offset.0
            && header.last_offset() == meta.last_offset.0
            && u32::try_from(header.record_count) == Ok(meta.record_count)
            // Of a batch that compaction has emptied, the header still says when its last record was.
            && (header.max_timestamp == meta.max_timestamp || meta.record_count == 0);
        match is_the_same {
            true => Ok(header.delete_horizon()),
            false => Err(MendError::Differs(offset)),
        }
    }
}

fn was_compacted(cleaned: Cleaned) -> bool {
    cleaned != Cleaned::default()
}
