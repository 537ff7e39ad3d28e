//! Which key-encryption keys the data shards of this broker need, and moving them to the current one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use palisade_log::segment::FilesUnder;
use palisade_seal::KekId;

use super::DataPlane;
use crate::types::DataError;

/// What of the data shards on this broker is under which KEK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KekCensus {
    /// Segment files, with those that are only kept until the next checkpoint.
    pub segments: BTreeMap<KekId, FilesUnder>,
    /// Manifests, one for each shard.
    pub manifests: BTreeMap<KekId, u64>,
    /// Segment files that nobody has looked at since the start.
    pub unknown: u64,
}

impl DataPlane {
    /// Adds up what is under which KEK, as far as it is known. Reads no file.
    #[must_use]
    pub fn count_keks(&self) -> KekCensus {
        let mut census = KekCensus::default();
        for data in self.cleaner_shards() {
            let manifests = census.manifests.entry(data.manifest_kek()).or_default();
            *manifests = manifests.saturating_add(1);
            for partition in data.slots().iter().filter_map(|slot| slot.partition()) {
                let unknown = partition.log.count_keks(&mut census.segments);
                census.unknown = census.unknown.saturating_add(unknown);
            }
        }
        census
    }

    /// Wraps segments under the current KEK for about `budget`, and has the next checkpoint write every manifest that is not under it, or that lists a segment which had to be
    /// copied. What is left shows in [`DataPlane::count_keks`]; another call goes on. Blocks.
    ///
    /// # Errors
    /// The first failure, when all partitions were tried.
    pub fn rewrap(&self, budget: Duration) -> Result<(), DataError> {
        let begun = Instant::now();
        let current = self.keys.current_kek();
        let mut outcome = Ok(());
        for data in self.cleaner_shards() {
            let mut is_stale = data.manifest_kek() != current;
            for partition in data.slots().iter().filter_map(|slot| slot.partition()) {
                if self.is_stopping() || begun.elapsed() >= budget {
                    break;
                }
                match partition.log.rewrap() {
                    Ok((segments, _)) => is_stale |= segments > 0,
                    Err(_) if partition.log.is_removed() => {}
                    Err(error) => outcome = outcome.and(Err(DataError::Log(error))),
                }
            }
            if is_stale {
                data.applied_bytes(1);
            }
        }
        outcome
    }
}
