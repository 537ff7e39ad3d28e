//! The state of the cluster's metadata at a moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use palisade_log::{PartitionIndex, ShardId, TopicId};
use palisade_seal::{DekVersion, WrappedKey};
use palisade_security::{ScramCredential, ScramMechanism, acl::AclSet, quota::QuotaSet};
use serde::{Deserialize, Serialize};

use crate::{
    BrokerRegistration, Cluster, MetadataError, ShardInfo,
    config::{Effective, TOPIC_CONFIGS},
    topic_name::collision_key,
};

/// What images are written in as long as no pool was retired, and since; and when brokers have said which commands they read.
const FORMAT: u8 = 2;
const FORMAT_WITH_RETIRED: u8 = 3;
const FORMAT_WITH_READS: u8 = 4;

/// The metadata at a moment. Sections are shared: a clone costs a few reference counts, a change copies its section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// How many commands have changed it.
    pub version: u64,
    /// The cluster's identity; `None` before it is bootstrapped.
    pub cluster: Option<Cluster>,
    /// Topics.
    pub topics: Arc<Topics>,
    /// ACLs.
    pub acls: Arc<AclSet>,
    /// SCRAM credentials.
    pub scram: Arc<ScramUsers>,
    /// Quotas.
    pub quotas: Arc<QuotaSet>,
    /// Dynamic defaults of all brokers, by their broker names (`log.retention.ms`).
    pub broker_configs: Arc<BTreeMap<String, String>>,
    /// Registered brokers by id.
    pub brokers: Arc<BTreeMap<i32, BrokerRegistration>>,
    /// Data shards.
    pub shards: Arc<BTreeMap<ShardId, ShardInfo>>,
    /// The shards that topics of a replication factor go to, in order; fixed once made, until the pool is retired.
    pub pools: Arc<BTreeMap<u16, Vec<ShardId>>>,
    /// Versions of the system key, which seals offsets and the like.
    pub system_keys: Arc<BTreeMap<DekVersion, WrappedKey>>,
    /// The next producer id that has never been given out.
    pub next_producer_id: i64,
    /// The highest number of a shard that was given up with its pool, 0 before there was one. A shard up to here that is not in `shards` is gone for good.
    pub retired: u32,
    /// Up to which format of commands each registered broker reads; one that is not in it: 5.
    pub reads: Arc<BTreeMap<i32, u8>>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// The shard of each partition.
    pub partitions: Vec<ShardId>,
    /// How many replicas it has.
    pub replication_factor: u16,
    /// Configuration overrides.
    pub config: BTreeMap<String, String>,
    /// Versions of its key.
    pub keys: BTreeMap<DekVersion, WrappedKey>,
}

impl Topic {
    /// The shard of a partition.
    #[must_use]
    pub fn shard(&self, partition: PartitionIndex) -> Option<ShardId> {
        let index = usize::try_from(partition.0).ok()?;
        self.partitions.get(index).copied()
    }

    /// The newest version of its key, which new batches are sealed with.
    #[must_use]
    pub fn current_key(&self) -> Option<(DekVersion, &WrappedKey)> {
        self.keys
            .last_key_value()
            .map(|(version, key)| (*version, key))
    }
}

/// The topics, by id and by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Arc<Topic>>", into = "Vec<Arc<Topic>>")]
pub struct Topics {
    by_id: BTreeMap<TopicId, Arc<Topic>>,
    by_name: BTreeMap<String, TopicId>,
    by_collision_key: BTreeMap<String, BTreeSet<String>>,
    partitions: usize,
}

impl Topics {
    /// The topic with this id.
    #[must_use]
    pub fn get(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.by_id.get(&id)
    }

    /// The topic with this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// Every topic, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values().filter_map(|id| self.by_id.get(id))
    }

    /// How many topics there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Partitions of all topics.
    #[must_use]
    pub const fn partition_count(&self) -> usize {
        self.partitions
    }

    /// An existing topic whose name differs from `name` only in dots and underscores.
    #[must_use]
    pub fn colliding(&self, name: &str) -> Option<&str> {
        self.by_collision_key
            .get(&collision_key(name))?
            .iter()
            .map(String::as_str)
            .find(|existing| *existing != name)
    }

    pub(crate) fn insert(&mut self, topic: Arc<Topic>) {
        self.remove(topic.id);
        self.partitions += topic.partitions.len();
        self.by_name.insert(topic.name.clone(), topic.id);
        self.by_collision_key
            .entry(collision_key(&topic.name))
            .or_default()
            .insert(topic.name.clone());
        self.by_id.insert(topic.id, topic);
    }

    pub(crate) fn remove(&mut self, id: TopicId) -> Option<Arc<Topic>> {
        let topic = self.by_id.remove(&id)?;
        self.partitions -= topic.partitions.len();
        self.by_name.remove(&topic.name);
        let key = collision_key(&topic.name);
        if let Some(names) = self.by_collision_key.get_mut(&key) {
            names.remove(&topic.name);
            if names.is_empty() {
                self.by_collision_key.remove(&key);
            }
        }
        Some(topic)
    }
}

impl From<Vec<Arc<Topic>>> for Topics {
    fn from(list: Vec<Arc<Topic>>) -> Self {
        let mut topics = Self::default();
        for topic in list {
            topics.insert(topic);
        }
        topics
    }
}

impl From<Topics> for Vec<Arc<Topic>> {
    fn from(topics: Topics) -> Self {
        topics.by_id.into_values().collect()
    }
}

/// SCRAM credentials by user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScramUsers {
    pub(crate) users: BTreeMap<String, BTreeMap<ScramMechanism, ScramCredential>>,
}

impl ScramUsers {
    /// A user's credential for a mechanism.
    #[must_use]
    pub fn get(&self, user: &str, mechanism: ScramMechanism) -> Option<&ScramCredential> {
        self.users.get(user)?.get(&mechanism)
    }

    /// A user's credential for PLAIN, where either serves: the stronger one that there is.
    #[must_use]
    pub fn any(&self, user: &str) -> Option<&ScramCredential> {
        self.users.get(user)?.values().next_back()
    }

    /// The credentials of a user, by mechanism.
    pub fn of_user(&self, user: &str) -> impl Iterator<Item = &ScramCredential> {
        self.users.get(user).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether the user has a credential.
    #[must_use]
    pub fn contains(&self, user: &str) -> bool {
        self.users.contains_key(user)
    }

    /// Users with a credential, in order.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }
}

impl Image {
    /// An empty cluster.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a topic's config and where it comes from: the topic, the brokers' dynamic defaults, or the built-in
    /// default. `None` for a config that does not exist.
    #[must_use]
    pub fn topic_config<'a>(&'a self, topic: &'a Topic, name: &str) -> Option<Effective<'a>> {
        let definition = TOPIC_CONFIGS.iter().find(|known| known.name == name)?;
        Some(definition.effective(&topic.config, &self.broker_configs))
    }

    /// Every config of a topic, in the order of the table.
    pub fn topic_configs<'a>(&'a self, topic: &'a Topic) -> impl Iterator<Item = Effective<'a>> {
        TOPIC_CONFIGS
            .iter()
            .map(|definition| definition.effective(&topic.config, &self.broker_configs))
    }

    /// The image as checkpoint bytes: a format byte, then postcard. The caller seals them.
    ///
    /// # Errors
    /// [`MetadataError::Malformed`] when it cannot be serialised, which no image does.
    pub fn encode(&self) -> Result<Vec<u8>, MetadataError> {
        let (format, unknown) = match (self.retired, self.reads.is_empty()) {
            (0, true) => (FORMAT, 2),
            (_, true) => (FORMAT_WITH_RETIRED, 1),
            (_, false) => (FORMAT_WITH_READS, 0),
        };
        let mut bytes = postcard::to_extend(self, vec![format])
            .map_err(|error| MetadataError::Malformed(error.to_string()))?;
        // The last fields, one byte each when they are 0 or empty, which brokers that know the format alone do not know.
        bytes.truncate(bytes.len().saturating_sub(unknown));
        Ok(bytes)
    }

    /// Reads checkpoint bytes.
    ///
    /// # Errors
    /// [`MetadataError::Malformed`] or [`MetadataError::Format`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MetadataError> {
        let whole = |body: &[u8]| match postcard::take_from_bytes(body) {
            Ok((image, [])) => Ok(image),
            Ok((_, rest)) => Err(MetadataError::Malformed(format!(
                "{} bytes follow its end",
                rest.len()
            ))),
            Err(error) => Err(MetadataError::Malformed(error.to_string())),
        };
        match bytes.split_first() {
            None => Err(MetadataError::Malformed("it is empty".to_owned())),
            Some((&FORMAT, body)) => whole(&[body, &[0, 0]].concat()),
            Some((&FORMAT_WITH_RETIRED, body)) => whole(&[body, &[0]].concat()),
            Some((&FORMAT_WITH_READS, body)) => whole(body),
            Some((format, _)) => Err(MetadataError::Format(*format)),
        }
    }
}
