//! Who leads which shard, as far as a broker has heard: from its own replicas, and from what other brokers tell.
//!
//! What is heard is merged by one rule, so that everybody ends at the same whatever the order and however often they hear it: a later term counts; within a
//! term, a known leader counts more than none.

use std::collections::{BTreeMap, BTreeSet};

use palisade_log::ShardId;
use palisade_shard::NodeId;
use serde::{Deserialize, Serialize};

use super::messages::MessageError;

const FORMAT: u8 = 1;
/// Most updates that are sent at once: as many as a cluster may have shards.
pub(crate) const MAX_UPDATES: usize = 50_000;
/// Longest encoding of as many: shard, term and node at their longest, and how many there are.
const MAX_BYTES: usize = 1 + 5 + MAX_UPDATES * (5 + 10 + 1 + 10);

/// Who leads a shard in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaderUpdate {
    pub(crate) shard: ShardId,
    pub(crate) term: u64,
    /// `None`: the term has begun, and nobody is known to have won it.
    pub(crate) leader: Option<NodeId>,
}

/// What counts more is greater. Raft has one leader in a term, so that the order of two nodes only matters for the rule to be one.
type Claim = (u64, Option<NodeId>);

/// The leaders of all shards that anything is known of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaderTable {
    claims: BTreeMap<ShardId, Claim>,
    /// Brokers that are believed to be gone, until they speak.
    gone: BTreeSet<i32>,
}

impl LeaderTable {
    /// The newest term of a shard that was heard of, and its leader.
    pub(crate) fn get(&self, shard: ShardId) -> Option<LeaderUpdate> {
        let (term, leader) = *self.claims.get(&shard)?;
        Some(LeaderUpdate {
            shard,
            term,
            leader,
        })
    }

    /// The broker that leads a shard.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<i32> {
        self.get(shard)?.leader.map(NodeId::broker)
    }

    /// Takes over what the broker `from` says (this broker itself, of its own replicas). Returns what is new here, which is worth telling others.
    ///
    /// That a broker leads which is believed to be gone is believed only of itself.
    pub(crate) fn merge(
        &mut self,
        from: i32,
        updates: impl IntoIterator<Item = LeaderUpdate>,
    ) -> Vec<LeaderUpdate> {
        self.gone.remove(&from);
        let mut changed = BTreeSet::new();
        for update in updates {
            let leader = update
                .leader
                .filter(|leader| !self.gone.contains(&leader.broker()));
            let claim: Claim = (update.term, leader);
            let known = self.claims.get(&update.shard);
            if known.is_none_or(|known| *known < claim) {
                self.claims.insert(update.shard, claim);
                changed.insert(update.shard);
            }
        }
        changed
            .into_iter()
            .filter_map(|shard| self.get(shard))
            .collect()
    }

    /// A broker is gone: what it led has no leader until one is heard of. Returns what is new by that. What others have not yet forgotten does not bring it back.
    pub(crate) fn forget(&mut self, broker: i32) -> Vec<LeaderUpdate> {
        self.gone.insert(broker);
        let mut changed = Vec::new();
        for (shard, (term, leader)) in &mut self.claims {
            if leader.is_some_and(|leader| leader.broker() == broker) {
                *leader = None;
                changed.push(LeaderUpdate {
                    shard: *shard,
                    term: *term,
                    leader: None,
                });
            }
        }
        changed
    }

    /// Everything that is known, by shard: what a broker is told first.
    pub(crate) fn snapshot(&self) -> Vec<LeaderUpdate> {
        self.claims
            .keys()
            .filter_map(|shard| self.get(*shard))
            .collect()
    }
}

/// Updates as bytes: a format byte, then postcard.
///
/// # Errors
/// [`MessageError::TooLarge`] when there are more than [`MAX_UPDATES`].
pub(crate) fn encode(updates: &[LeaderUpdate]) -> Result<Vec<u8>, MessageError> {
    if updates.len() > MAX_UPDATES {
        return Err(MessageError::TooLarge(updates.len()));
    }
    postcard::to_extend(updates, vec![FORMAT])
        .map_err(|error| MessageError::Malformed(error.to_string()))
}

/// Reads updates.
///
/// # Errors
/// [`MessageError`] with what is wrong.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<LeaderUpdate>, MessageError> {
    if bytes.len() > MAX_BYTES {
        return Err(MessageError::TooLarge(bytes.len()));
    }
    let updates: Vec<LeaderUpdate> = match bytes.split_first() {
        Some((&FORMAT, body)) => super::messages::read(body)?,
        Some((format, _)) => return Err(MessageError::Format(*format)),
        None => return Err(MessageError::Malformed("it is empty".to_owned())),
    };
    if updates.len() > MAX_UPDATES {
        return Err(MessageError::TooLarge(updates.len()));
    }
    Ok(updates)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    fn update(shard: u32, term: u64, leader: Option<i32>) -> LeaderUpdate {
        LeaderUpdate {
            shard: ShardId(shard),
            term,
            leader: leader.map(|broker| NodeId::of(broker, 7)),
        }
    }

    fn table(updates: &[LeaderUpdate]) -> LeaderTable {
        let mut table = LeaderTable::default();
        table.merge(0, updates.iter().copied());
        table
    }

    #[test]
    fn a_later_term_counts_and_within_a_term_a_known_leader() {
        let mut table = table(&[update(1, 5, None)]);
        let won = update(1, 5, Some(2));
        assert_eq!(table.merge(3, [won]), [won]);
        assert_eq!(
            table.merge(3, [won, update(1, 5, None), update(1, 4, Some(1))]),
            []
        );
        assert_eq!(table.leader(ShardId(1)), Some(2));
        let lost = update(1, 6, None);
        assert_eq!(table.merge(3, [update(1, 5, None), lost]), [lost]);
        assert_eq!(table.leader(ShardId(1)), None);
        assert_eq!(
            (table.leader(ShardId(9)), table.get(ShardId(9))),
            (None, None)
        );
    }

    #[test]
    fn a_forgotten_broker_leads_nothing_until_it_speaks_itself() {
        let mut table = table(&[
            update(1, 5, Some(2)),
            update(2, 5, Some(3)),
            update(3, 1, Some(2)),
        ]);
        assert_eq!(table.forget(2), [update(1, 5, None), update(3, 1, None)]);
        assert_eq!(table.forget(2), []);
        assert_eq!(table.leader(ShardId(2)), Some(3));
        // Another broker that has not noticed yet.
        assert_eq!(table.merge(3, [update(1, 5, Some(2))]), []);
        // A term that is new counts, whoever is said to lead in it.
        assert_eq!(
            table.merge(3, [update(1, 6, Some(2))]),
            [update(1, 6, None)]
        );
        assert_eq!(
            table.merge(2, [update(1, 6, Some(2))]),
            [update(1, 6, Some(2))]
        );
        assert_eq!(
            table.merge(3, [update(3, 1, Some(2))]),
            [update(3, 1, Some(2))]
        );
    }

    #[test]
    fn what_is_no_list_of_updates_is_refused() {
        assert!(matches!(decode(&[]), Err(MessageError::Malformed(_))));
        assert_eq!(decode(&[9, 0]), Err(MessageError::Format(9)));
        assert_eq!(decode(&[FORMAT, 0]), Ok(vec![]));
        assert!(matches!(
            decode(&[FORMAT, 0, 0]),
            Err(MessageError::Malformed(_))
        ));
        // A length that nothing follows.
        assert!(matches!(
            decode(&[FORMAT, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            Err(MessageError::Malformed(_))
        ));
        let many = vec![update(1, 1, None); MAX_UPDATES + 1];
        assert_eq!(encode(&many), Err(MessageError::TooLarge(MAX_UPDATES + 1)));
        // Short ones fit the length, not the number.
        let bytes = postcard::to_extend(&many, vec![FORMAT]).unwrap();
        assert_eq!(decode(&bytes), Err(MessageError::TooLarge(MAX_UPDATES + 1)));
        assert_eq!(
            decode(&vec![FORMAT; MAX_BYTES + 1]),
            Err(MessageError::TooLarge(MAX_BYTES + 1))
        );
        let longest = LeaderUpdate {
            shard: ShardId(u32::MAX),
            term: u64::MAX,
            leader: Some(NodeId(u64::MAX)),
        };
        let longest = vec![longest; MAX_UPDATES];
        assert_eq!(decode(&encode(&longest).unwrap()), Ok(longest));
    }

    fn any_update() -> impl Strategy<Value = LeaderUpdate> {
        (0..4_u32, 0..4_u64, prop::option::of(0..3_i32))
            .prop_map(|(shard, term, leader)| update(shard, term, leader))
    }

    fn any_updates() -> impl Strategy<Value = Vec<LeaderUpdate>> {
        prop::collection::vec(any_update(), 0..12)
    }

    fn merged(mut one: LeaderTable, other: &LeaderTable) -> LeaderTable {
        one.merge(1, other.snapshot());
        one
    }

    proptest! {
        #[test]
        fn the_order_of_hearsay_does_not_matter(one in any_updates(), two in any_updates(), three in any_updates()) {
            let (one, two, three) = (table(&one), table(&two), table(&three));
            prop_assert_eq!(merged(one.clone(), &two), merged(two.clone(), &one));
            prop_assert_eq!(
                merged(merged(one.clone(), &two), &three),
                merged(one.clone(), &merged(two, &three))
            );
            prop_assert_eq!(merged(one.clone(), &one), one);
        }

        #[test]
        fn what_changed_is_all_that_others_need(before in any_updates(), news in any_updates()) {
            let mut here = table(&before);
            let there = here.clone();
            let changed = here.merge(1, news);
            let mut other = there.clone();
            other.merge(1, changed.iter().copied());
            prop_assert_eq!(&other, &here);
            prop_assert_eq!(changed.is_empty(), here == there);
            for update in &changed {
                prop_assert_ne!(there.get(update.shard), here.get(update.shard));
            }
        }

        #[test]
        fn nobody_who_is_forgotten_leads(before in any_updates(), news in any_updates(), gone in 0..3_i32, from in 3..5_i32) {
            let mut table = table(&before);
            table.forget(gone);
            table.merge(from, news);
            prop_assert!(table.snapshot().iter().all(|known| known.leader.is_none_or(|node| node.broker() != gone)));
        }

        #[test]
        fn updates_read_back_equal(updates in any_updates()) {
            prop_assert_eq!(decode(&encode(&updates).unwrap()), Ok(updates));
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            bytes.insert(0, FORMAT);
            let _ = decode(&bytes);
        }
    }
}
