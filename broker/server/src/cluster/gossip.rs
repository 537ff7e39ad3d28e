//! Who leads which shard, as brokers tell each other.

use std::collections::BTreeMap;

use palisade_log::ShardId;
use palisade_shard::NodeId;
use serde::{Deserialize, Serialize};

/// The newest that was heard of each shard: merging is the same in any order and any number of times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaderTable(BTreeMap<ShardId, Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Entry {
    term: u64,
    /// A term has one leader at most: that it has one is newer than that none is known.
    leader: Option<NodeId>,
}

impl LeaderTable {
    /// The leader of a shard and its term, unless a newer term is known without a leader.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<(NodeId, u64)> {
        let entry = self.0.get(&shard)?;
        Some((entry.leader?, entry.term))
    }

    /// Takes note of one shard; true when that is news.
    pub(crate) fn note(&mut self, shard: ShardId, term: u64, leader: Option<NodeId>) -> bool {
        self.note_unless(shard, Entry { term, leader }, |_| false)
    }

    /// As [`LeaderTable::note`]; what names a node that is gone for good counts less than anything else. A shard whose only replica has lost its volume begins
    /// again with the first term.
    fn note_unless(
        &mut self,
        shard: ShardId,
        heard: Entry,
        is_gone: impl Fn(NodeId) -> bool,
    ) -> bool {
        if heard.leader.is_some_and(&is_gone) {
            return false;
        }
        match self.0.get_mut(&shard) {
            Some(known) if known.leader.is_some_and(&is_gone) => {
                *known = heard;
                true
            }
            // Entries are in the order of their age: the later one counts.
            Some(known) if *known >= heard => false,
            Some(known) => {
                *known = heard;
                true
            }
            None => {
                self.0.insert(shard, heard);
                true
            }
        }
    }

    /// Takes note of what another broker knows, but not of nodes that are gone for good; true when something is news.
    pub(crate) fn merge(&mut self, other: &Self, is_gone: impl Fn(NodeId) -> bool) -> bool {
        let mut news = false;
        for (shard, entry) in &other.0 {
            news |= self.note_unless(*shard, *entry, &is_gone);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(entries: &[(u32, u64, Option<u64>)]) -> LeaderTable {
        let mut table = LeaderTable::default();
        for (shard, term, leader) in entries {
            // One leader a term: it follows from the term.
            table.note(
                ShardId(*shard),
                *term,
                leader.map(|_| NodeId(*term * 10 + u64::from(*shard))),
            );
        }
        table
    }

    fn tables() -> impl Strategy<Value = LeaderTable> {
        proptest::collection::vec((0_u32..4, 0_u64..5, proptest::option::of(0_u64..1)), 0..12)
            .prop_map(|entries| table(&entries))
    }

    fn merged(first: &LeaderTable, second: &LeaderTable) -> LeaderTable {
        let mut both = first.clone();
        both.merge(second, |_| false);
        both
    }

    proptest! {
        #[test]
        fn merging_is_the_same_in_any_order_and_number(a in tables(), b in tables(), c in tables()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            let mut again = merged(&a, &b);
            prop_assert!(!again.merge(&b, |_| false));
        }
    }

    #[test]
    fn what_names_a_node_that_is_gone_for_good_is_forgotten() {
        let shard = ShardId(3);
        let (old, new) = (NodeId::of(2, 1), NodeId::of(2, 2));
        let is_gone = |node| node == old;
        let (mut before, mut after) = (LeaderTable::default(), LeaderTable::default());
        before.note(shard, 9, Some(old));
        after.note(shard, 1, Some(new));
        let mut table = before.clone();
        assert!(table.merge(&after, is_gone));
        assert_eq!(table.leader(shard), Some((new, 1)));
        // Somebody tells of it again.
        assert!(!table.merge(&before, is_gone));
        assert_eq!(table.leader(shard), Some((new, 1)));
    }

    #[test]
    fn a_newer_term_hides_the_leader_of_an_older_one() {
        let shard = ShardId(3);
        let mut table = LeaderTable::default();
        assert!(table.note(shard, 4, Some(NodeId(1))));
        assert_eq!(table.leader(shard), Some((NodeId(1), 4)));
        assert!(table.note(shard, 5, None));
        assert_eq!(table.leader(shard), None);
        assert!(!table.note(shard, 4, Some(NodeId(1))));
        assert!(table.note(shard, 5, Some(NodeId(2))));
        assert_eq!(table.leader(shard), Some((NodeId(2), 5)));
    }
}
