//! What follows from where the keys are: pure decisions.

use std::collections::{BTreeMap, BTreeSet};

use palisade_config::status::{KekNeeds, KeyEncryption};
use palisade_data::KekCensus;
use palisade_seal::KekId;

/// Where keys are in use on this broker.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) current: KekId,
    pub(super) loaded: BTreeSet<KekId>,
    /// Files of the write-ahead log.
    pub(super) wal: BTreeMap<KekId, u64>,
    pub(super) data: KekCensus,
    /// The metadata checkpoint on disk and the keys in it.
    pub(super) checkpoint: BTreeSet<KekId>,
    /// Wrapped keys in the metadata now.
    pub(super) keys: BTreeMap<KekId, u64>,
}

/// What a broker has to do so that nothing needs another key than the current one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Todo {
    /// Wrap what data shards have.
    pub(super) rewrap: bool,
    /// Begin a new file of the write-ahead log.
    pub(super) renew: bool,
    /// Write the checkpoints of data shards, which release old files.
    pub(super) checkpoint_data: bool,
    /// Write the metadata checkpoint.
    pub(super) checkpoint_metadata: bool,
}

impl Facts {
    /// What each key is needed for.
    pub(super) fn report(&self) -> KeyEncryption {
        let mut needed = BTreeMap::<&KekId, KekNeeds>::new();
        for (kek, count) in &self.wal {
            needed.entry(kek).or_default().wal_files = *count;
        }
        for (kek, under) in &self.data.segments {
            let needs = needed.entry(kek).or_default();
            needs.segments = under.files;
            needs.segment_bytes = under.bytes;
        }
        for (kek, count) in &self.data.manifests {
            needed.entry(kek).or_default().manifests = *count;
        }
        for kek in &self.checkpoint {
            needed.entry(kek).or_default().checkpoints = 1;
        }
        for (kek, count) in &self.keys {
            needed.entry(kek).or_default().keys = *count;
        }
        let settled = self.data.unknown == 0 && needed.keys().all(|kek| **kek == self.current);
        let named = |(kek, needs): (&KekId, KekNeeds)| KekNeeds {
            kek: kek.as_str().to_owned(),
            ..needs
        };
        KeyEncryption {
            current: self.current.as_str().to_owned(),
            loaded: self
                .loaded
                .iter()
                .map(|kek| kek.as_str().to_owned())
                .collect(),
            settled,
            needed: needed.into_iter().map(named).collect(),
            unknown_segments: self.data.unknown,
        }
    }

    /// Whether something is known to be under another key than the current one.
    pub(super) fn is_stale(&self) -> bool {
        let is_old = |kek: &KekId| *kek != self.current;
        self.data.segments.keys().any(is_old) || self.data.manifests.keys().any(is_old)
    }

    /// What has to be done here.
    pub(super) fn todo(&self) -> Todo {
        let is_old = |kek: &KekId| *kek != self.current;
        let segments = self.data.segments.keys().any(is_old);
        let manifests = self.data.manifests.keys().any(is_old);
        let wal = self.wal.keys().any(is_old);
        Todo {
            rewrap: segments || manifests || self.data.unknown > 0,
            renew: wal,
            checkpoint_data: segments || manifests || wal,
            checkpoint_metadata: wal || self.checkpoint.iter().any(is_old),
        }
    }

    /// Keys that are needed and not there: what they protect is lost with the next restart unless they come back.
    pub(super) fn missing(&self) -> Vec<String> {
        let report = self.report();
        let missing = report
            .needed
            .iter()
            .filter(|needs| !report.loaded.contains(&needs.kek));
        missing
            .map(|needs| {
                let (kek, items) = (&needs.kek, needs.items());
                format!(
                    "key `{kek}` is not loaded any more, but {items} things on this broker are wrapped under it: restore `{kek}.key` until none is"
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_log::segment::FilesUnder;
    use proptest::prelude::*;

    use super::*;

    fn kek(name: &str) -> KekId {
        KekId::new(name).unwrap()
    }

    fn facts() -> Facts {
        let one = || BTreeMap::from([(kek("k2"), 1)]);
        let under = FilesUnder {
            files: 3,
            bytes: 300,
        };
        Facts {
            current: kek("k2"),
            loaded: BTreeSet::from([kek("k1"), kek("k2")]),
            wal: one(),
            data: KekCensus {
                segments: BTreeMap::from([(kek("k2"), under)]),
                manifests: one(),
                unknown: 0,
            },
            checkpoint: BTreeSet::from([kek("k2")]),
            keys: one(),
        }
    }

    #[test]
    fn nothing_is_to_be_done_when_everything_is_under_the_current_key() {
        let facts = facts();
        assert_eq!(facts.todo(), Todo::default());
        let report = facts.report();
        assert!(report.settled);
        assert_eq!(report.needed.len(), 1);
        assert_eq!(report.needed[0].items(), 3 + 1 + 1 + 1 + 1);
        assert_eq!(report.needed[0].segment_bytes, 300);
        assert!(facts.missing().is_empty());
    }

    #[test]
    fn a_file_that_nobody_has_looked_at_may_need_any_key() {
        let mut facts = facts();
        facts.data.unknown = 1;
        assert!(!facts.report().settled);
        assert!(facts.todo().rewrap);
    }

    #[test]
    fn an_old_key_is_not_needed_before_its_last_use_is_gone() {
        type Use = fn(&mut Facts);
        let uses: [(Use, Todo); 5] = [
            (
                |facts| {
                    facts.wal.insert(kek("k1"), 2);
                },
                Todo {
                    renew: true,
                    checkpoint_data: true,
                    checkpoint_metadata: true,
                    ..Todo::default()
                },
            ),
            (
                |facts| {
                    facts.data.segments.insert(kek("k1"), FilesUnder::default());
                },
                Todo {
                    rewrap: true,
                    checkpoint_data: true,
                    ..Todo::default()
                },
            ),
            (
                |facts| {
                    facts.data.manifests.insert(kek("k1"), 1);
                },
                Todo {
                    rewrap: true,
                    checkpoint_data: true,
                    ..Todo::default()
                },
            ),
            (
                |facts| {
                    facts.checkpoint.insert(kek("k1"));
                },
                Todo {
                    checkpoint_metadata: true,
                    ..Todo::default()
                },
            ),
            // The leader of the metadata does that.
            (
                |facts| {
                    facts.keys.insert(kek("k1"), 7);
                },
                Todo::default(),
            ),
        ];
        for (number, (add, todo)) in uses.into_iter().enumerate() {
            let mut facts = facts();
            add(&mut facts);
            let report = facts.report();
            assert!(!report.settled, "use {number}");
            assert_eq!(report.needed.len(), 2, "use {number}");
            assert_eq!(facts.todo(), todo, "use {number}");
            assert!(facts.missing().is_empty());
            facts.loaded.remove(&kek("k1"));
            assert!(facts.missing()[0].contains("restore `k1.key`"));
        }
    }

    proptest! {
        /// Whoever is told that nothing needs a key may destroy it.
        #[test]
        fn settled_means_that_no_other_key_is_in_any_place(
            wal in proptest::collection::btree_map(0_u8..4, 0_u64..3, 0..3),
            segments in proptest::collection::btree_map(0_u8..4, 0_u64..3, 0..3),
            manifests in proptest::collection::btree_map(0_u8..4, 0_u64..3, 0..3),
            checkpoint in proptest::collection::btree_set(0_u8..4, 0..3),
            keys in proptest::collection::btree_map(0_u8..4, 0_u64..3, 0..3),
            unknown in 0_u64..2,
            current in 0_u8..4,
        ) {
            let name = |number: u8| kek(&format!("k{number}"));
            let named = |counts: &BTreeMap<u8, u64>| -> BTreeMap<KekId, u64> {
                counts.iter().map(|(number, count)| (name(*number), *count)).collect()
            };
            let used: BTreeSet<u8> = wal.keys().chain(segments.keys()).chain(manifests.keys())
                .chain(&checkpoint).chain(keys.keys()).copied().collect();
            let under = |(number, count): (&u8, &u64)| {
                (name(*number), FilesUnder { files: *count, bytes: 0 })
            };
            let facts = Facts {
                current: name(current),
                loaded: BTreeSet::from([name(current)]),
                wal: named(&wal),
                data: KekCensus {
                    segments: segments.iter().map(under).collect(),
                    manifests: named(&manifests),
                    unknown,
                },
                checkpoint: checkpoint.iter().map(|number| name(*number)).collect(),
                keys: named(&keys),
            };
            let others = used.iter().filter(|number| **number != current).count();
            let report = facts.report();
            prop_assert_eq!(report.settled, others == 0 && unknown == 0);
            prop_assert_eq!(report.needed.len(), used.len());
            prop_assert_eq!(facts.missing().len(), others);
            // What this broker can do by itself it does; keys in the metadata are the leader's.
            let alone = others > 0 && used.iter().any(|number| *number != current && !keys.contains_key(number));
            prop_assert!(!(alone || unknown > 0) || facts.todo() != Todo::default());
        }
    }
}
