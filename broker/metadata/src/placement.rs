//! Where replicas go: pure functions of the brokers and of where replicas are now.
//!
//! What is aimed at, the more important first:
//!
//! 1. A shard's replicas are on different brokers, and no rack has more of them than it must: with three racks and three replicas, one in each.
//! 2. Within a pool (the shards of one replication factor), brokers have as many replicas as each other, or one more. Racks of different sizes make that
//!    impossible where the first rule leaves no choice; the difference is then as small as that rule allows.
//! 3. The same holds of the leaders that are preferred.
//! 4. Of several pools, the odd replicas and leaders go to different brokers.
//! 5. Two brokers share about as many shards as any other two, so that the work of one that fails is taken over by many.
//!
//! Brokers whose rack is not known count as one rack.

mod layout;
mod paths;

use std::collections::{BTreeMap, BTreeSet};

use palisade_log::ShardId;
use palisade_shard::NodeId;

use crate::{MetadataCommand, ShardInfo};
use layout::{Layout, Totals};

/// Voters of the metadata's shard: more make every change slower and outlive no more than two failures at once need.
const MAX_METADATA_VOTERS: usize = 5;

/// A broker that may have replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name in the shards.
    pub node: NodeId,
    /// Where it stands.
    pub rack: Option<String>,
}

/// Where a shard's replicas are to be from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The shard.
    pub shard: ShardId,
    /// Its generation when this was decided.
    pub generation: u32,
    /// Its replicas, the preferred leader first.
    pub replicas: Vec<NodeId>,
}

impl From<Assignment> for MetadataCommand {
    fn from(assignment: Assignment) -> Self {
        Self::AssignShard {
            shard: assignment.shard,
            generation: assignment.generation,
            replicas: assignment.replicas,
        }
    }
}

/// The replicas of a new pool's shards, so many of them. Empty when there are fewer brokers than replicas.
#[must_use]
pub fn place_pool(sites: &[Site], replication_factor: u16, count: usize) -> Vec<Vec<NodeId>> {
    let mut totals = Totals::new(sites);
    match Layout::new(
        sites,
        replication_factor,
        &mut totals,
        &vec![&[][..]; count],
    ) {
        Some(mut layout) => {
            layout.settle();
            layout.replicas()
        }
        None => Vec::new(),
    }
}

/// What to assign anew, with as few moves as possible, so that the rules above hold on these brokers: after some were added, or with those left out that are to
/// be drained. Empty when they hold already. A pool that has more replicas than there are brokers stays as it is.
#[must_use]
pub fn rebalance(sites: &[Site], shards: &BTreeMap<ShardId, ShardInfo>) -> Vec<Assignment> {
    let mut pools: BTreeMap<u16, Vec<(ShardId, &ShardInfo)>> = BTreeMap::new();
    for (id, shard) in shards {
        pools
            .entry(shard.replication_factor)
            .or_default()
            .push((*id, shard));
    }
    let mut totals = Totals::new(sites);
    let mut assignments = Vec::new();
    for (replication_factor, members) in pools {
        let current: Vec<&[NodeId]> = members
            .iter()
            .map(|(_, shard)| shard.replicas.as_slice())
            .collect();
        let Some(mut layout) = Layout::new(sites, replication_factor, &mut totals, &current) else {
            continue;
        };
        layout.settle();
        for ((shard, info), replicas) in members.into_iter().zip(layout.replicas()) {
            if is_other(&info.replicas, &replicas) {
                assignments.push(Assignment {
                    shard,
                    generation: info.generation,
                    replicas,
                });
            }
        }
    }
    assignments
}

/// Whether the leader or the set differs; the order of the others means nothing.
fn is_other(current: &[NodeId], next: &[NodeId]) -> bool {
    let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
    current.first() != next.first() || set(current) != set(next)
}

/// The brokers that vote on the metadata: one, three or five, as many as there are brokers for, spread over the racks, lower ids first. Three where one rack
/// would have most of five, but not of three.
#[must_use]
pub fn shard0_voters(sites: &[Site]) -> BTreeSet<NodeId> {
    let mut racks: BTreeMap<Option<&str>, BTreeSet<NodeId>> = BTreeMap::new();
    for site in sites {
        racks
            .entry(site.rack.as_deref())
            .or_default()
            .insert(site.node);
    }
    let brokers: usize = racks.values().map(BTreeSet::len).sum();
    let most = brokers.min(MAX_METADATA_VOTERS);
    let voters = if most.is_multiple_of(2) {
        most.saturating_sub(1)
    } else {
        most
    };
    // Round the racks, beginning with the one that has the lowest id.
    let mut racks: Vec<Vec<NodeId>> = racks
        .into_values()
        .map(|nodes| nodes.into_iter().collect())
        .collect();
    racks.sort_unstable();
    let longest = racks.iter().map(Vec::len).max().unwrap_or(0);
    let order: Vec<(usize, NodeId)> = (0..longest)
        .flat_map(|round| {
            let numbered = racks.iter().enumerate();
            numbered.filter_map(move |(rack, nodes)| Some((rack, *nodes.get(round)?)))
        })
        .collect();
    let fewer = MAX_METADATA_VOTERS - 2;
    let voters = if depends_on_a_rack(&order, voters) && !depends_on_a_rack(&order, fewer) {
        voters.min(fewer)
    } else {
        voters
    };
    let chosen = order.into_iter().take(voters);
    chosen.map(|(_, node)| node).collect()
}

/// Whether the first `count` voters lose their majority with one rack.
fn depends_on_a_rack(order: &[(usize, NodeId)], count: usize) -> bool {
    let voters = order.get(..count).unwrap_or(order);
    voters.iter().any(|(rack, _)| {
        let here = voters.iter().filter(|(other, _)| other == rack).count();
        here * 2 > voters.len()
    })
}

#[cfg(test)]
mod tests;
