//! The changes that the metadata shard knows, and what they answer.
//!
//! Commands are log entries and stay on disks: a format byte, then postcard. Variants and fields are only ever added at
//! the end, under a new format byte with a reader for the old one.

use std::{collections::BTreeMap, fmt};

use palisade_log::{ShardId, TopicId};
use palisade_seal::{DekVersion, WrappedKey};
use palisade_security::{
    ScramCredential, ScramMechanism,
    acl::{AclBinding, AclFilter},
    quota::{QuotaEntity, QuotaKey},
};
use palisade_shard::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::MetadataError;

/// What commands are written in that brokers of the first version know; those that add [`MetadataCommand::AddTopicKey`], [`MetadataCommand::RetirePool`],
/// [`MetadataCommand::ShardSettled`] and [`MetadataCommand::Register`].
pub(crate) const FORMAT: u8 = 2;
const FORMAT_WITH_ADD_KEY: u8 = 3;
const FORMAT_WITH_RETIRE_POOL: u8 = 4;
const FORMAT_WITH_SHARD_SETTLED: u8 = 5;
const FORMAT_WITH_REGISTER: u8 = 6;
/// Longest command that is read: a bound for what a damaged entry can ask for, far above what requests carry.
pub const MAX_COMMAND_BYTES: usize = 16 << 20;

/// A change of the metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetadataCommand {
    /// Gives an empty cluster its id; later ones must agree with the first.
    Bootstrap {
        /// Kafka cluster id.
        cluster_id: String,
        /// Data shards that a new pool has for each broker.
        data_shards: u32,
    },
    /// A broker has started; it fences an earlier incarnation of the same id and takes its place in all shards. Brokers of before format 6 register with it; such
    /// a broker counts as one that reads format 5. Nothing registers with it now; it is in logs.
    RegisterBroker {
        /// Kafka broker id.
        id: i32,
        /// A fresh id for each data directory.
        incarnation: Uuid,
        /// Where it stands.
        rack: Option<String>,
        /// How it is reached.
        endpoints: Vec<BrokerEndpoint>,
    },
    /// A broker is gone for good; it must have no replicas any more.
    UnregisterBroker {
        /// Kafka broker id.
        id: i32,
    },
    /// A broker is to lose its replicas, or to take some again.
    SetDraining {
        /// Kafka broker id.
        id: i32,
        /// Whether.
        draining: bool,
    },
    /// Creates the shards that topics of one replication factor go to. A pool that exists stays as it is.
    CreatePool {
        /// How many replicas each shard has.
        replication_factor: u16,
        /// The replicas of each shard, its preferred leader first.
        replicas: Vec<Vec<NodeId>>,
        /// These shards keep the groups' committed offsets from now on, unless others do already.
        for_groups: bool,
    },
    /// Says where a shard's replicas are to be, if nobody else has said so meanwhile.
    AssignShard {
        /// The shard.
        shard: ShardId,
        /// Its generation as the proposer knows it.
        generation: u32,
        /// All its replicas, the preferred leader first.
        replicas: Vec<NodeId>,
    },
    /// Creates a topic.
    CreateTopic {
        /// Its name.
        name: String,
        /// Its id, made by the proposer.
        id: TopicId,
        /// How many partitions.
        partitions: u32,
        /// How many replicas.
        replication_factor: u16,
        /// Configuration overrides.
        config: BTreeMap<String, String>,
        /// Version 1 of its key.
        dek: WrappedKey,
    },
    /// Deletes a topic, and with it its wrapped keys: its data cannot be read by anyone from then on.
    DeleteTopic {
        /// Its id.
        id: TopicId,
    },
    /// Adds partitions to a topic.
    CreatePartitions {
        /// Its id.
        id: TopicId,
        /// How many partitions it has then.
        total: u32,
    },
    /// Changes configuration overrides, all or none.
    AlterConfigs {
        /// Whose.
        resource: ConfigResource,
        /// Forget all overrides first (the old `AlterConfigs`); otherwise the others stay (`IncrementalAlterConfigs`).
        replace: bool,
        /// The changes, in order.
        ops: Vec<ConfigOp>,
    },
    /// Adds ACLs.
    CreateAcls {
        /// The bindings.
        bindings: Vec<AclBinding>,
    },
    /// Removes ACLs.
    DeleteAcls {
        /// What selects them.
        filters: Vec<AclFilter>,
    },
    /// Sets and removes the SCRAM credentials of one user, all or none.
    AlterScram {
        /// The user.
        user: String,
        /// Credentials to set.
        upserts: Vec<ScramCredential>,
        /// Credentials to remove; they must exist.
        deletions: Vec<ScramMechanism>,
    },
    /// Sets (`Some`) and removes (`None`) quotas of one entity, all or none.
    AlterQuotas {
        /// Whose.
        entity: QuotaEntity,
        /// The changes.
        changes: Vec<(QuotaKey, Option<f64>)>,
    },
    /// Reserves producer ids.
    AllocateProducerIds {
        /// How many.
        count: u32,
    },
    /// Sets a version of the system key.
    SetSystemKey {
        /// The version: the next one, or an existing one that is wrapped anew.
        version: DekVersion,
        /// The key.
        key: WrappedKey,
    },
    /// Sets a version of a topic's key; [`MetadataCommand::AddTopicKey`] is what makes a new one.
    SetTopicKey {
        /// The topic's id.
        id: TopicId,
        /// The version: the next one, or an existing one that is wrapped anew.
        version: DekVersion,
        /// The key.
        key: WrappedKey,
    },
    /// Destroys an old version of a topic's key, when nothing is sealed with it any more.
    DropTopicKey {
        /// The topic's id.
        id: TopicId,
        /// The version; never the newest.
        version: DekVersion,
    },
    /// Gives a topic a new key. Unlike [`MetadataCommand::SetTopicKey`] it never takes the place of a version that exists: of two that were proposed, the second
    /// is refused, since something may be sealed under the first. Since format 3.
    AddTopicKey {
        /// The topic's id.
        id: TopicId,
        /// The version; higher than all others.
        version: DekVersion,
        /// The key.
        key: WrappedKey,
    },
    /// Gives up the shards of a replication factor, which nothing uses: they would need that many brokers for as long as the cluster lives. The next topic of that
    /// replication factor gets new ones. Since format 4.
    RetirePool {
        /// The replication factor.
        replication_factor: u16,
    },
    /// A shard's sole replica, which came to it by a move, is all there is of it: its confirmed members are this one, so that no replica of before can lead it
    /// any more. From now on it begins anew when its data are lost. Refused of a shard that is not [`crate::ShardInfo::is_unsettled`]. Since format 5.
    ShardSettled {
        /// The shard.
        shard: ShardId,
        /// Its generation as the proposer knows it.
        generation: u32,
    },
    /// As [`MetadataCommand::RegisterBroker`], and says up to which format this broker reads commands. Since format 6.
    Register {
        /// Kafka broker id.
        id: i32,
        /// A fresh id for each data directory.
        incarnation: Uuid,
        /// Where it stands.
        rack: Option<String>,
        /// How it is reached.
        endpoints: Vec<BrokerEndpoint>,
        /// Its [`MetadataCommand::NEWEST_FORMAT`].
        reads: u8,
    },
}

/// One way to reach a broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerEndpoint {
    /// Name of the listener.
    pub listener: String,
    /// Host name as clients see it.
    pub host: String,
    /// Port as clients see it.
    pub port: u16,
}

/// What a configuration belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConfigResource {
    /// A topic.
    Topic(TopicId),
    /// Every broker: the defaults of topics without an override.
    Brokers,
}

impl fmt::Display for ConfigResource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(id) => write!(formatter, "topic {id}"),
            Self::Brokers => formatter.write_str("the brokers' defaults"),
        }
    }
}

/// A change of one override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigOp {
    /// Sets it.
    Set {
        /// Name of the config.
        name: String,
        /// The value.
        value: String,
    },
    /// Removes it, so that the default counts again.
    Delete {
        /// Name of the config.
        name: String,
    },
    /// Adds items to a list.
    Append {
        /// Name of the config.
        name: String,
        /// The items, separated by commas.
        value: String,
    },
    /// Removes items from a list.
    Subtract {
        /// Name of the config.
        name: String,
        /// The items, separated by commas.
        value: String,
    },
}

impl ConfigOp {
    /// Name of the config.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Set { name, .. }
            | Self::Delete { name }
            | Self::Append { name, .. }
            | Self::Subtract { name, .. } => name,
        }
    }
}

/// What a command answers. Travels between brokers: commands are proposed on the leader of the metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MetadataResponse {
    /// Nothing but that it is done.
    Done,
    /// A broker is registered.
    BrokerRegistered {
        /// Grows with every registration; older ones are fenced.
        epoch: u64,
    },
    /// The shards of a pool, new or not.
    Pool {
        /// In order.
        shards: Vec<ShardId>,
    },
    /// A shard is assigned.
    ShardAssigned {
        /// Its generation now.
        generation: u32,
    },
    /// A topic exists or has grown.
    Partitions {
        /// Its id.
        id: TopicId,
        /// The shard of each partition, in order.
        shards: Vec<ShardId>,
    },
    /// A topic is gone.
    TopicDeleted {
        /// The name it had.
        name: String,
    },
    /// ACLs are added.
    AclsCreated {
        /// How many of them were new.
        added: usize,
    },
    /// ACLs are removed.
    AclsDeleted {
        /// What each filter removed, in the order of the filters.
        removed: Vec<Vec<AclBinding>>,
    },
    /// Producer ids are reserved.
    ProducerIds {
        /// The first of them.
        first: i64,
        /// How many.
        count: u32,
    },
}

impl MetadataCommand {
    /// The newest format of commands that this version reads, which its brokers register with.
    pub const NEWEST_FORMAT: u8 = FORMAT_WITH_REGISTER;
    /// What a broker reads that has not said it.
    pub(crate) const UNSAID_FORMAT: u8 = FORMAT_WITH_SHARD_SETTLED;

    /// The format it is written in: the first one that has it.
    pub(crate) const fn format(&self) -> u8 {
        match self {
            Self::AddTopicKey { .. } => FORMAT_WITH_ADD_KEY,
            Self::RetirePool { .. } => FORMAT_WITH_RETIRE_POOL,
            Self::ShardSettled { .. } => FORMAT_WITH_SHARD_SETTLED,
            Self::Register { .. } => FORMAT_WITH_REGISTER,
            _ => FORMAT,
        }
    }

    /// The command as a log entry. [`crate::Image::admit`] is what proposers call.
    ///
    /// # Errors
    /// [`MetadataError::Malformed`] when it cannot be serialised or is too large.
    pub fn encode(&self) -> Result<Vec<u8>, MetadataError> {
        let bytes = postcard::to_extend(self, vec![self.format()])
            .map_err(|error| MetadataError::Malformed(error.to_string()))?;
        if bytes.len() > MAX_COMMAND_BYTES {
            return Err(MetadataError::Malformed(format!(
                "{} bytes, at most {MAX_COMMAND_BYTES} are allowed",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Reads a log entry.
    ///
    /// # Errors
    /// [`MetadataError::Malformed`] or [`MetadataError::Format`]: every broker refuses the same entries.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetadataError> {
        let malformed = |reason: String| MetadataError::Malformed(reason);
        if bytes.len() > MAX_COMMAND_BYTES {
            return Err(malformed(format!("{} bytes", bytes.len())));
        }
        match bytes.split_first() {
            None => Err(malformed("it is empty".to_owned())),
            Some((FORMAT..=Self::NEWEST_FORMAT, body)) => match postcard::take_from_bytes(body) {
                Ok((command, [])) => Ok(command),
                Ok((_, rest)) => Err(malformed(format!("{} bytes follow its end", rest.len()))),
                Err(error) => Err(malformed(error.to_string())),
            },
            Some((format, _)) => Err(MetadataError::Format(*format)),
        }
    }
}
