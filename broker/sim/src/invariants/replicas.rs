//! Replicas are equal: every node applies the same entry at the same index, at any time, and has the same records in the end.

use std::collections::BTreeMap;

use palisade_log::ShardId;
use palisade_shard::{LogPosition, NodeId};

use crate::oracle::{History, Replica};

/// Its name.
pub const NAME: &str = "replicas";

/// A node has applied an entry.
///
/// # Errors
/// When another has applied something else there.
pub fn on_applied(
    history: &mut History,
    node: NodeId,
    shard: ShardId,
    at: LogPosition,
    content: u64,
) -> Result<(), String> {
    let (term, known, first) = *history
        .applied
        .entry((shard, at.index))
        .or_insert((at.term, content, node));
    if (term, known) != (at.term, content) {
        return Err(format!(
            "{node} applied entry {} of {shard} with term {} and hash {content:016x}; {first} had applied one of term {term} and hash {known:016x} there",
            at.index, at.term
        ));
    }
    Ok(())
}

/// Compares what consumers read.
///
/// # Errors
/// The first two that differ.
pub fn check(_: &History, replicas: &[Replica]) -> Result<(), String> {
    let mut first: BTreeMap<ShardId, &Replica> = BTreeMap::new();
    for replica in replicas {
        let other = *first.entry(replica.shard).or_insert(replica);
        if other.partitions != replica.partitions {
            return Err(format!(
                "{} and {} have different records in {}",
                other.node, replica.node, replica.shard
            ));
        }
    }
    Ok(())
}
