//! The cluster itself: its identity, its brokers, its shards.

use std::{collections::BTreeSet, sync::Arc};

use palisade_log::ShardId;
use palisade_shard::NodeId;
use uuid::Uuid;

use super::{Outcome, limit};
use crate::{
    BrokerRegistration, Cluster, Image, MetadataCommand, MetadataError, MetadataResponse,
    ShardInfo, command::BrokerEndpoint,
};

/// Brokers that a cluster may have.
pub(crate) const MAX_BROKERS: usize = 1000;
/// Shards that a cluster may have.
pub(crate) const MAX_SHARDS: usize = 50_000;

impl Image {
    pub(super) fn bootstrap(&mut self, cluster_id: String, data_shards: u32) -> Outcome {
        match &self.cluster {
            None if data_shards == 0 => Err(MetadataError::DataShards {
                found: 1,
                wanted: 0,
            }),
            None => {
                self.cluster = Some(Cluster::new(cluster_id, data_shards));
                Ok(MetadataResponse::Done)
            }
            Some(cluster) if cluster.id != cluster_id => Err(MetadataError::ClusterId {
                found: cluster.id.clone(),
                wanted: cluster_id,
            }),
            Some(cluster) if cluster.data_shards != data_shards => Err(MetadataError::DataShards {
                found: cluster.data_shards,
                wanted: data_shards,
            }),
            Some(_) => Ok(MetadataResponse::Done),
        }
    }

    /// `reads` is up to which format the broker reads commands, if it has said it.
    pub(super) fn register_broker(
        &mut self,
        id: i32,
        incarnation: Uuid,
        rack: Option<String>,
        endpoints: Vec<BrokerEndpoint>,
        reads: Option<u8>,
    ) -> Outcome {
        let invalid = |reason: &'static str| MetadataError::InvalidBroker {
            id,
            reason: reason.into(),
        };
        if id < 0 {
            return Err(invalid("a broker id is not negative"));
        }
        let listeners: BTreeSet<&str> = endpoints
            .iter()
            .map(|endpoint| endpoint.listener.as_str())
            .collect();
        if listeners.len() != endpoints.len() {
            return Err(invalid("two endpoints have the same listener"));
        }
        let before = self.brokers.get(&id);
        if before.is_none() && self.brokers.len() >= MAX_BROKERS {
            return Err(limit("brokers", MAX_BROKERS));
        }
        let latest = self.brokers.values().map(|broker| broker.epoch).max();
        let registration = BrokerRegistration {
            id,
            incarnation,
            // The version grows with this very command, so it is above every epoch given before, removed ones included.
            epoch: (self.version + 1).max(latest.unwrap_or(0) + 1),
            rack,
            endpoints,
            draining: before.is_some_and(|before| before.draining),
        };
        let epoch = registration.epoch;
        if let Some(before) = before
            && before.incarnation != incarnation
        {
            let (old, new) = (before.node(), registration.node());
            if old == new {
                // Once in four billion: the shards would take the empty disk for the one that they know.
                return Err(invalid(
                    "its new data directory cannot be told from the one before: delete it and start again",
                ));
            }
            self.replace_node(old, new);
        }
        Arc::make_mut(&mut self.brokers).insert(id, registration);
        self.note_reads(id, reads);
        Ok(MetadataResponse::BrokerRegistered { epoch })
    }

    fn note_reads(&mut self, id: i32, reads: Option<u8>) {
        if self.reads.get(&id).copied() == reads {
            return;
        }
        let all = Arc::make_mut(&mut self.reads);
        match reads {
            Some(reads) => all.insert(id, reads),
            None => all.remove(&id),
        };
    }

    fn replace_node(&mut self, old: NodeId, new: NodeId) {
        if self
            .shards
            .values()
            .any(|shard| shard.replicas.contains(&old))
        {
            for shard in Arc::make_mut(&mut self.shards).values_mut() {
                shard.replace(old, new);
            }
        }
    }

    pub(super) fn unregister_broker(&mut self, id: i32) -> Outcome {
        let found = self
            .brokers
            .get(&id)
            .ok_or(MetadataError::UnknownBroker(id))?;
        let replicas = self.shards_on(id).count();
        if replicas > 0 {
            return Err(MetadataError::BrokerHasReplicas { id, replicas });
        }
        if !found.draining {
            return Err(MetadataError::NotDraining(id));
        }
        Arc::make_mut(&mut self.brokers).remove(&id);
        self.note_reads(id, None);
        Ok(MetadataResponse::Done)
    }

    pub(super) fn set_draining(&mut self, id: i32, draining: bool) -> Outcome {
        let found = self
            .brokers
            .get(&id)
            .ok_or(MetadataError::UnknownBroker(id))?;
        if draining {
            self.check_spare(id)?;
        }
        if found.draining != draining
            && let Some(broker) = Arc::make_mut(&mut self.brokers).get_mut(&id)
        {
            broker.draining = draining;
        }
        Ok(MetadataResponse::Done)
    }

    /// Whether the replicas of every shard find room on the brokers that take some without this one. Those without a topic count too, until their pool is retired.
    fn check_spare(&self, id: i32) -> Result<(), MetadataError> {
        let others = self.brokers.values().filter(|broker| broker.id != id);
        let left = others.filter(|broker| !broker.draining).count();
        match self.pools.last_key_value() {
            Some((replication_factor, _)) if usize::from(*replication_factor) > left => {
                Err(MetadataError::BrokerNeeded {
                    id,
                    left,
                    replication_factor: *replication_factor,
                })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn create_pool(
        &mut self,
        replication_factor: u16,
        replicas: Vec<Vec<NodeId>>,
        for_groups: bool,
    ) -> Outcome {
        let shards = match self.pools.get(&replication_factor) {
            Some(existing) => existing.clone(),
            None => self.new_shards(replication_factor, replicas)?,
        };
        if let Some(cluster) = &mut self.cluster
            && for_groups
            && cluster.group_shards.is_empty()
        {
            cluster.group_shards.clone_from(&shards);
        }
        Ok(MetadataResponse::Pool { shards })
    }

    fn new_shards(
        &mut self,
        replication_factor: u16,
        replicas: Vec<Vec<NodeId>>,
    ) -> Result<Vec<ShardId>, MetadataError> {
        if self.cluster.is_none() {
            return Err(MetadataError::NotBootstrapped);
        }
        self.check_replication_factor(replication_factor)?;
        if replicas.is_empty() {
            return Err(MetadataError::Replicas(
                "a pool has at least one shard".to_owned(),
            ));
        }
        if self.shards.len().saturating_add(replicas.len()) > MAX_SHARDS {
            return Err(limit("shards", MAX_SHARDS));
        }
        for nodes in &replicas {
            self.check_replicas(replication_factor, nodes, &[])?;
        }
        // Numbers are never used twice.
        let last = self.shards.last_key_value().map_or(0, |(last, _)| last.0);
        let last = last.max(self.retired);
        let shards: Vec<ShardId> = (last + 1..).take(replicas.len()).map(ShardId).collect();
        let infos = replicas
            .into_iter()
            .map(|nodes| ShardInfo::new(replication_factor, nodes));
        Arc::make_mut(&mut self.shards).extend(shards.iter().copied().zip(infos));
        Arc::make_mut(&mut self.pools).insert(replication_factor, shards.clone());
        Ok(shards)
    }

    pub(super) fn retire_pool(&mut self, replication_factor: u16) -> Outcome {
        let pool = self
            .pools
            .get(&replication_factor)
            .ok_or(MetadataError::NoPool(replication_factor))?;
        if self.is_used(replication_factor) {
            return Err(MetadataError::PoolInUse(replication_factor));
        }
        let numbers = pool.iter().map(|shard| shard.0);
        self.retired = numbers.fold(self.retired, u32::max);
        let shards = Arc::make_mut(&mut self.shards);
        for shard in pool {
            shards.remove(shard);
        }
        Arc::make_mut(&mut self.pools).remove(&replication_factor);
        if let Some(cluster) = &mut self.cluster {
            cluster.cursors.remove(&replication_factor);
        }
        Ok(MetadataResponse::Done)
    }

    /// Whether the shards of a replication factor hold a topic, or committed offsets.
    fn is_used(&self, replication_factor: u16) -> bool {
        let mut topics = self.topics.iter();
        let keeps_offsets = |shard: &ShardId| {
            let cluster = self.cluster.as_ref();
            cluster.is_some_and(|cluster| cluster.group_shards.contains(shard))
        };
        topics.any(|topic| topic.replication_factor == replication_factor)
            || self
                .pools
                .get(&replication_factor)
                .is_some_and(|pool| pool.iter().any(keeps_offsets))
    }

    /// What makes room for a broker to leave: the commands that give up pools which are wider than the brokers that would be left, and which nothing uses.
    #[must_use]
    pub fn room_to_leave(&self, broker: i32) -> Vec<MetadataCommand> {
        let staying = |other: &&BrokerRegistration| other.id != broker && !other.draining;
        let left = self.brokers.values().filter(staying).count();
        let wide = |replication_factor: &u16| {
            usize::from(*replication_factor) > left && !self.is_used(*replication_factor)
        };
        let wide = self.pools.keys().copied().filter(wide);
        wide.map(|replication_factor| MetadataCommand::RetirePool { replication_factor })
            .collect()
    }

    pub(super) fn assign_shard(
        &mut self,
        shard: ShardId,
        generation: u32,
        replicas: Vec<NodeId>,
    ) -> Outcome {
        let found = self.shard_at(shard, generation)?;
        self.check_replicas(found.replication_factor, &replicas, &found.replicas)?;
        let mut next = found.clone();
        if next.assign(replicas) {
            let generation = next.generation;
            Arc::make_mut(&mut self.shards).insert(shard, next);
            return Ok(MetadataResponse::ShardAssigned { generation });
        }
        Ok(MetadataResponse::ShardAssigned { generation })
    }

    pub(super) fn shard_settled(&mut self, shard: ShardId, generation: u32) -> Outcome {
        let found = self.shard_at(shard, generation)?;
        if !found.is_unsettled() {
            return Err(MetadataError::NothingToSettle(shard));
        }
        let mut next = found.clone();
        next.founders.clone_from(&next.replicas);
        Arc::make_mut(&mut self.shards).insert(shard, next);
        Ok(MetadataResponse::Done)
    }

    /// A shard that nobody has assigned anew since it had this generation.
    fn shard_at(&self, shard: ShardId, generation: u32) -> Result<&ShardInfo, MetadataError> {
        let found = self
            .shards
            .get(&shard)
            .ok_or(MetadataError::UnknownShard(shard))?;
        if found.generation != generation {
            return Err(MetadataError::ShardGeneration {
                shard,
                found: found.generation,
                wanted: generation,
            });
        }
        Ok(found)
    }

    /// Whether there are enough brokers that take replicas.
    pub(crate) fn check_replication_factor(&self, wanted: u16) -> Result<(), MetadataError> {
        let draining = self
            .brokers
            .values()
            .filter(|broker| broker.draining)
            .count();
        let brokers = self.brokers.len() - draining;
        if wanted == 0 || usize::from(wanted) > brokers {
            return Err(MetadataError::ReplicationFactor {
                wanted,
                brokers,
                draining,
            });
        }
        Ok(())
    }

    /// Whether these can be a shard's replicas: as many as it has, all different, all registered, and no draining one that has none yet (`present` have one).
    fn check_replicas(
        &self,
        replication_factor: u16,
        nodes: &[NodeId],
        present: &[NodeId],
    ) -> Result<(), MetadataError> {
        let wrong = |reason: String| Err(MetadataError::Replicas(reason));
        let distinct: BTreeSet<i32> = nodes.iter().map(|node| node.broker()).collect();
        if nodes.len() != usize::from(replication_factor) || distinct.len() != nodes.len() {
            return wrong(format!(
                "a shard of replication factor {replication_factor} has that many, each on another broker"
            ));
        }
        for node in nodes {
            match self.brokers.get(&node.broker()) {
                Some(broker) if broker.node() != *node => {
                    return wrong(format!(
                        "{node} is not the current data directory of its broker"
                    ));
                }
                Some(broker) if broker.draining && !present.contains(node) => {
                    return wrong(format!("{node} is being drained"));
                }
                Some(_) => {}
                None => return wrong(format!("{node} is not registered")),
            }
        }
        Ok(())
    }

    /// Takes the shards of `count` new partitions, one after the other round all of the pool.
    pub(super) fn next_shards(
        &mut self,
        replication_factor: u16,
        count: u32,
    ) -> Result<Vec<ShardId>, MetadataError> {
        let cluster = self
            .cluster
            .as_mut()
            .ok_or(MetadataError::NotBootstrapped)?;
        let pool = self
            .pools
            .get(&replication_factor)
            .filter(|pool| !pool.is_empty())
            .ok_or(MetadataError::NoPool(replication_factor))?;
        let cursor = cluster.cursors.entry(replication_factor).or_default();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let start = *cursor % pool.len();
        *cursor = (start + count) % pool.len();
        Ok(pool
            .iter()
            .copied()
            .cycle()
            .skip(start)
            .take(count)
            .collect())
    }
}
