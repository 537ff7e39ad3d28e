//! What the metadata say of the cluster itself: its identity, its brokers, and where the shards' replicas are to be.

use std::collections::{BTreeMap, BTreeSet};

use palisade_log::ShardId;
use palisade_shard::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Image, MetadataCommand, MetadataError, command::BrokerEndpoint, placement, placement::Site,
};

/// The identity of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Kafka cluster id.
    pub id: String,
    /// Data shards that a new pool has for each broker.
    pub data_shards: u32,
    /// The shards that keep the groups' committed offsets; empty until a pool for them is made, fixed for ever then.
    pub group_shards: Vec<ShardId>,
    /// Where the next new partition of each pool goes, as an index into it.
    pub(crate) cursors: BTreeMap<u16, usize>,
}

impl Cluster {
    pub(crate) const fn new(id: String, data_shards: u32) -> Self {
        Self {
            id,
            data_shards,
            group_shards: Vec::new(),
            cursors: BTreeMap::new(),
        }
    }

    /// The data shard that owns a group's committed offsets; the same on every broker and for ever.
    #[must_use]
    pub fn shard_of_group(&self, group: &str) -> Option<ShardId> {
        // FNV-1a: fixed by its definition, whatever the platform or the version of this program.
        let hash = group.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let index = hash.checked_rem(self.group_shards.len() as u64)?;
        self.group_shards.get(usize::try_from(index).ok()?).copied()
    }
}

/// A registered broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRegistration {
    /// Kafka broker id.
    pub id: i32,
    /// Changes with its data directory.
    pub incarnation: Uuid,
    /// Grows with every registration of any broker.
    pub epoch: u64,
    /// Where it stands.
    pub rack: Option<String>,
    /// How it is reached.
    pub endpoints: Vec<BrokerEndpoint>,
    /// It is to lose its replicas.
    pub draining: bool,
}

impl BrokerRegistration {
    /// Its name in the shards.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        node_of(self.id, self.incarnation)
    }

    /// How clients of this listener reach the broker.
    #[must_use]
    pub fn endpoint(&self, listener: &str) -> Option<&BrokerEndpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.listener == listener)
    }
}

/// The name in the shards of a broker whose data directory has this incarnation.
#[must_use]
pub const fn node_of(broker: i32, incarnation: Uuid) -> NodeId {
    let [a, b, c, d, ..] = *incarnation.as_bytes();
    NodeId::of(broker, u32::from_be_bytes([a, b, c, d]))
}

/// A shard of data and where its replicas are to be. Where they are is known to the shard itself, which follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// How many replicas it has.
    pub replication_factor: u16,
    /// Its replicas; the first is the one that should lead.
    pub replicas: Vec<NodeId>,
    /// 0 as created; grows with every change of `replicas`.
    pub generation: u32,
    /// Who may form the shard's Raft group, all of them together: its first replicas, until it is assigned anew; later a sole one with nobody to wait for.
    pub founders: Vec<NodeId>,
}

impl ShardInfo {
    pub(crate) fn new(replication_factor: u16, replicas: Vec<NodeId>) -> Self {
        Self {
            replication_factor,
            founders: replicas.clone(),
            replicas,
            generation: 0,
        }
    }

    /// The replica that should lead.
    #[must_use]
    pub fn preferred(&self) -> Option<NodeId> {
        self.replicas.first().copied()
    }

    /// Its replicas, as the voters of a Raft group.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.replicas.iter().copied().collect()
    }

    /// The voters with which `node` may form the shard, if it has nothing of it on its disk. `None`: there may be a group already, which adds this node.
    ///
    /// A node that was never among the founders has no say in this, nor has one that was removed and came back: its empty disk says nothing of the group.
    #[must_use]
    pub fn formation(&self, node: NodeId) -> Option<BTreeSet<NodeId>> {
        self.founders
            .contains(&node)
            .then(|| self.founders.iter().copied().collect())
    }

    /// Whether its sole replica came to it by a move, and is not known to be all there is of it; see [`MetadataCommand::ShardSettled`].
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.replicas.len() == 1 && self.founders.is_empty()
    }

    /// Changes the replicas; `false` when they are these already.
    pub(crate) fn assign(&mut self, replicas: Vec<NodeId>) -> bool {
        if self.replicas == replicas {
            return false;
        }
        let moved = self.voters() != replicas.iter().copied().collect();
        self.replicas = replicas;
        self.generation = self.generation.saturating_add(1);
        if moved {
            self.founders.clear();
        }
        true
    }

    /// A broker has lost its data directory: the new node takes the place of the old one.
    pub(crate) fn replace(&mut self, old: NodeId, new: NodeId) {
        let Some(place) = self.replicas.iter_mut().find(|node| **node == old) else {
            return;
        };
        *place = new;
        self.generation = self.generation.saturating_add(1);
        // The data of a sole replica are gone, and there is nobody to wait for. Otherwise the others form the group, if they have not yet.
        if self.founders == [old] {
            self.founders = vec![new];
        }
    }
}

impl Image {
    /// The data shard that owns a group's committed offsets; `None` until there are shards for them.
    #[must_use]
    pub fn shard_of_group(&self, group: &str) -> Option<ShardId> {
        self.cluster.as_ref()?.shard_of_group(group)
    }

    /// The node of a registered broker.
    #[must_use]
    pub fn node_of(&self, broker: i32) -> Option<NodeId> {
        self.brokers.get(&broker).map(BrokerRegistration::node)
    }

    /// Brokers that take replicas, by id.
    #[must_use]
    pub fn sites(&self) -> Vec<Site> {
        self.brokers
            .values()
            .filter(|broker| !broker.draining)
            .map(|broker| Site {
                node: broker.node(),
                rack: broker.rack.clone(),
            })
            .collect()
    }

    /// Shards of which a replica is assigned to this broker, whatever its incarnation.
    pub fn shards_on(&self, broker: i32) -> impl Iterator<Item = (ShardId, &ShardInfo)> {
        self.shards
            .iter()
            .filter(move |(_, shard)| shard.replicas.iter().any(|node| node.broker() == broker))
            .map(|(id, shard)| (*id, shard))
    }

    /// The command that makes the pool of a replication factor on the brokers there are.
    ///
    /// # Errors
    /// [`MetadataError`] when there is no cluster yet, or too few brokers.
    pub fn new_pool(
        &self,
        replication_factor: u16,
        for_groups: bool,
    ) -> Result<MetadataCommand, MetadataError> {
        self.new_pool_among(replication_factor, for_groups, |_| true)
    }

    /// As [`Image::new_pool`], with replicas only on brokers that are `alive`, when these are enough: the others could not take part in anything. There are as
    /// many shards all the same, and [`Image::rebalance`] gives every broker its share.
    ///
    /// # Errors
    /// As [`Image::new_pool`].
    pub fn new_pool_among(
        &self,
        replication_factor: u16,
        for_groups: bool,
        alive: impl Fn(i32) -> bool,
    ) -> Result<MetadataCommand, MetadataError> {
        let cluster = self
            .cluster
            .as_ref()
            .ok_or(MetadataError::NotBootstrapped)?;
        self.check_replication_factor(replication_factor)?;
        let mut sites = self.sites();
        let per_broker = usize::try_from(cluster.data_shards).unwrap_or(usize::MAX);
        let count = per_broker.saturating_mul(sites.len());
        let is_alive = |site: &Site| alive(site.node.broker());
        if sites.iter().filter(|site| is_alive(site)).count() >= usize::from(replication_factor) {
            sites.retain(is_alive);
        }
        Ok(MetadataCommand::CreatePool {
            replication_factor,
            replicas: placement::place_pool(&sites, replication_factor, count),
            for_groups,
        })
    }

    /// What to assign anew so that every broker has its share and those that are drained have nothing; empty when all is well.
    #[must_use]
    pub fn rebalance(&self) -> Vec<placement::Assignment> {
        placement::rebalance(&self.sites(), &self.shards)
    }

    /// Brokers that should vote on the metadata; the others follow. See [`placement::shard0_voters`].
    #[must_use]
    pub fn metadata_voters(&self) -> BTreeSet<NodeId> {
        placement::shard0_voters(&self.sites())
    }
}
