//! What a command does to the image: one function, the same on every broker.
//!
//! Either a command changes everything it says, or it is refused and changes nothing. What is checked here depends on
//! the state or is fixed for ever; checks of values that may change between versions are in [`admit`], on the proposer.

mod admit;
mod cluster;
mod keys;
mod topics;

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use palisade_security::acl::{AclBinding, AclFilter, AclSet};
use palisade_security::{ScramCredential, ScramMechanism};

use crate::{
    Image, MetadataCommand, MetadataError, MetadataResponse,
    command::{ConfigOp, ConfigResource},
    config::Namespace,
};

/// ACLs that a cluster may have.
pub(crate) const MAX_ACLS: usize = 100_000;
/// Users with SCRAM credentials that a cluster may have.
pub(crate) const MAX_SCRAM_USERS: usize = 100_000;
/// Quota entities that a cluster may have.
pub(crate) const MAX_QUOTAS: usize = 100_000;

type Outcome = Result<MetadataResponse, MetadataError>;

impl Image {
    /// Applies a log entry.
    ///
    /// # Errors
    /// [`MetadataError`]: the entry is no command, or the command is refused; nothing has changed then.
    pub fn apply_entry(&mut self, entry: &[u8]) -> Outcome {
        self.apply(MetadataCommand::decode(entry)?)
    }

    /// Applies a command.
    ///
    /// # Errors
    /// [`MetadataError`] when the command is refused; nothing has changed then.
    pub fn apply(&mut self, command: MetadataCommand) -> Outcome {
        use MetadataCommand as C;
        let response = match command {
            C::Bootstrap {
                cluster_id,
                data_shards,
            } => self.bootstrap(cluster_id, data_shards),
            C::RegisterBroker {
                id,
                incarnation,
                rack,
                endpoints,
            } => self.register_broker(id, incarnation, rack, endpoints, None),
            C::UnregisterBroker { id } => self.unregister_broker(id),
            C::SetDraining { id, draining } => self.set_draining(id, draining),
            C::CreatePool {
                replication_factor,
                replicas,
                for_groups,
            } => self.create_pool(replication_factor, replicas, for_groups),
            C::AssignShard {
                shard,
                generation,
                replicas,
            } => self.assign_shard(shard, generation, replicas),
            C::CreateTopic {
                name,
                id,
                partitions,
                replication_factor,
                config,
                dek,
            } => self.create_topic(name, id, partitions, replication_factor, config, dek),
            C::DeleteTopic { id } => self.delete_topic(id),
            C::CreatePartitions { id, total } => self.create_partitions(id, total),
            C::AlterConfigs {
                resource,
                replace,
                ops,
            } => self.alter_configs(&resource, replace, &ops),
            C::CreateAcls { bindings } => self.create_acls(bindings),
            C::DeleteAcls { filters } => Ok(self.delete_acls(&filters)),
            C::AlterScram {
                user,
                upserts,
                deletions,
            } => self.alter_scram(user, upserts, &deletions),
            C::AlterQuotas { entity, changes } => {
                if self.quotas.get(&entity).is_none() && self.quotas.iter().count() >= MAX_QUOTAS {
                    return Err(limit("quotas", MAX_QUOTAS));
                }
                // Checked before the section is copied, so that a refusal does not even cost that.
                let mut quotas = (*self.quotas).clone();
                quotas.alter(&entity, &changes)?;
                self.quotas = Arc::new(quotas);
                Ok(MetadataResponse::Done)
            }
            C::AllocateProducerIds { count } => self.allocate_producer_ids(count),
            C::SetSystemKey { version, key } => self.set_system_key(version, key),
            C::SetTopicKey { id, version, key } => self.set_topic_key(id, version, key),
            C::DropTopicKey { id, version } => self.drop_topic_key(id, version),
            C::AddTopicKey { id, version, key } => self.add_topic_key(id, version, key),
            C::RetirePool { replication_factor } => self.retire_pool(replication_factor),
            C::ShardSettled { shard, generation } => self.shard_settled(shard, generation),
            C::Register {
                id,
                incarnation,
                rack,
                endpoints,
                reads,
            } => self.register_broker(id, incarnation, rack, endpoints, Some(reads)),
        }?;
        self.version += 1;
        Ok(response)
    }

    fn alter_configs(
        &mut self,
        resource: &ConfigResource,
        replace: bool,
        ops: &[ConfigOp],
    ) -> Outcome {
        match resource {
            ConfigResource::Topic(id) => {
                let topic = self.topic(*id)?;
                let config = Namespace::Topic.altered(&topic.config, replace, ops);
                let mut topic = (**topic).clone();
                topic.config = config;
                Arc::make_mut(&mut self.topics).insert(Arc::new(topic));
            }
            ConfigResource::Brokers => {
                let config = Namespace::Broker.altered(&self.broker_configs, replace, ops);
                self.broker_configs = Arc::new(config);
            }
        }
        Ok(MetadataResponse::Done)
    }

    fn create_acls(&mut self, bindings: Vec<AclBinding>) -> Outcome {
        if self.acls.len().saturating_add(bindings.len()) > MAX_ACLS {
            return Err(limit("ACLs", MAX_ACLS));
        }
        for binding in &bindings {
            binding.check()?;
        }
        let acls = Arc::make_mut(&mut self.acls);
        let added = bindings
            .into_iter()
            .filter(|binding| acls.insert(binding.clone()))
            .count();
        Ok(MetadataResponse::AclsCreated { added })
    }

    fn delete_acls(&mut self, filters: &[AclFilter]) -> MetadataResponse {
        let acls: &mut AclSet = Arc::make_mut(&mut self.acls);
        MetadataResponse::AclsDeleted {
            removed: filters.iter().map(|filter| acls.remove(filter)).collect(),
        }
    }

    fn alter_scram(
        &mut self,
        user: String,
        upserts: Vec<ScramCredential>,
        deletions: &[ScramMechanism],
    ) -> Outcome {
        palisade_security::name::check_user_name(&user)?;
        let mut seen = BTreeSet::new();
        let changed = upserts
            .iter()
            .map(ScramCredential::mechanism)
            .chain(deletions.iter().copied());
        for mechanism in changed {
            if !seen.insert(mechanism) {
                return Err(MetadataError::DuplicateCredential { user, mechanism });
            }
        }
        for mechanism in deletions.iter().copied() {
            if self.scram.get(&user, mechanism).is_none() {
                return Err(MetadataError::UnknownCredential { user, mechanism });
            }
        }
        if !self.scram.contains(&user) && self.scram.users.len() >= MAX_SCRAM_USERS {
            return Err(limit("users with credentials", MAX_SCRAM_USERS));
        }
        let users = &mut Arc::make_mut(&mut self.scram).users;
        let credentials = users.entry(user.clone()).or_default();
        for mechanism in deletions {
            credentials.remove(mechanism);
        }
        for credential in upserts {
            credentials.insert(credential.mechanism(), credential);
        }
        if credentials.is_empty() {
            users.remove(&user);
        }
        Ok(MetadataResponse::Done)
    }

    fn allocate_producer_ids(&mut self, count: u32) -> Outcome {
        let first = self.next_producer_id;
        let next = first.checked_add(i64::from(count));
        match next {
            Some(next) if count > 0 => {
                self.next_producer_id = next;
                Ok(MetadataResponse::ProducerIds { first, count })
            }
            _ => Err(MetadataError::ProducerIds(count)),
        }
    }
}

const fn limit(what: &'static str, limit: usize) -> MetadataError {
    MetadataError::Limit {
        what: Cow::Borrowed(what),
        limit,
    }
}

#[cfg(test)]
mod tests;
