//! Why a command is refused.

use std::borrow::Cow;

use palisade_log::{ShardId, TopicId};
use palisade_security::{
    ScramMechanism, acl::BindingError, name::NameError, quota::QuotaError, scram::CredentialError,
};

use serde::{Deserialize, Serialize};

use crate::{config::ConfigError, topic_name::TopicNameError};

/// Why a command is refused; nothing has changed then. Each variant has one Kafka error code, which the server knows. Travels between brokers:
/// a change that was proposed on another broker is refused in the same words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MetadataError {
    /// The entry is no command.
    #[error("a metadata command is malformed: {0}")]
    Malformed(String),
    /// The entry is of a newer version.
    #[error("metadata command format {0} is unknown: written by a newer version of the broker")]
    Format(u8),
    /// The cluster has no id yet.
    #[error("the cluster has not been bootstrapped yet")]
    NotBootstrapped,
    /// The cluster has another id.
    #[error(
        "the data belongs to cluster `{found}`, the configuration says `{wanted}`: use the volume of this cluster, or correct node.cluster_id"
    )]
    ClusterId {
        /// The id in the metadata.
        found: String,
        /// The id in the command.
        wanted: String,
    },
    /// The number of data shards cannot change.
    #[error(
        "the cluster has {found} data shards a broker, the configuration says {wanted}: storage.data_shards cannot change after the first start"
    )]
    DataShards {
        /// The number in the metadata.
        found: u32,
        /// The number in the command.
        wanted: u32,
    },
    /// A broker id that nobody has.
    #[error("broker {0} is not registered")]
    UnknownBroker(i32),
    /// A registration that cannot be.
    #[error("the registration of broker {id} is not usable: {reason}")]
    InvalidBroker {
        /// The broker.
        id: i32,
        /// What is wrong.
        reason: Cow<'static, str>,
    },
    /// A broker that would take its replicas along.
    #[error("broker {id} still has {replicas} shard replica(s): drain it first")]
    BrokerHasReplicas {
        /// The broker.
        id: i32,
        /// How many are assigned to it.
        replicas: usize,
    },
    /// A set of replicas that cannot be.
    #[error("these replicas are not usable: {0}")]
    Replicas(String),
    /// A shard that does not exist.
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    /// Somebody else has assigned the shard meanwhile.
    #[error(
        "shard {shard} is at generation {found}, not {wanted}: it has been assigned anew meanwhile"
    )]
    ShardGeneration {
        /// The shard.
        shard: ShardId,
        /// Its generation.
        found: u32,
        /// The generation in the command.
        wanted: u32,
    },
    /// Nothing can be put anywhere: the pool has to be created first.
    #[error("there are no shards of replication factor {0} yet; retry")]
    NoPool(u16),
    /// The name is taken.
    #[error("topic `{0}` already exists")]
    TopicExists(String),
    /// No such topic.
    #[error("there is no topic with id {0}")]
    UnknownTopic(TopicId),
    /// The name is not allowed.
    #[error("{0}")]
    TopicName(#[from] TopicNameError),
    /// Differs from another topic only in dots and underscores.
    #[error(
        "topic `{name}` collides with the existing topic `{existing}`: names that differ only in `.` and `_` have the same metrics"
    )]
    TopicCollision {
        /// The new name.
        name: String,
        /// The other topic.
        existing: String,
    },
    /// A number of partitions that cannot be.
    #[error("{0}")]
    Partitions(String),
    /// A number of replicas that cannot be.
    #[error("{}", replication_factor(*wanted, *brokers, *draining))]
    ReplicationFactor {
        /// The number asked for.
        wanted: u16,
        /// The number of registered brokers that take replicas.
        brokers: usize,
        /// The number of registered brokers that are about to leave.
        draining: usize,
    },
    /// A configuration that cannot be.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// An ACL that cannot be.
    #[error("{0}")]
    Acl(#[from] BindingError),
    /// A quota that cannot be.
    #[error("{0}")]
    Quota(#[from] QuotaError),
    /// A user name that cannot be.
    #[error("{0}")]
    UserName(#[from] NameError),
    /// A credential that cannot be.
    #[error("{0}")]
    Credential(#[from] CredentialError),
    /// The credential to delete does not exist.
    #[error("user `{user}` has no {mechanism} credential to delete")]
    UnknownCredential {
        /// The user.
        user: String,
        /// The mechanism.
        mechanism: ScramMechanism,
    },
    /// The same credential twice in one request.
    #[error("the request changes the {mechanism} credential of user `{user}` more than once")]
    DuplicateCredential {
        /// The user.
        user: String,
        /// The mechanism.
        mechanism: ScramMechanism,
    },
    /// No producer ids left, or none asked for.
    #[error("cannot reserve {0} producer ids")]
    ProducerIds(u32),
    /// A key version out of order, or one that is still needed.
    #[error("key version {found} is not possible: {reason}")]
    KeyVersion {
        /// The version in the command.
        found: u32,
        /// What would be.
        reason: Cow<'static, str>,
    },
    /// More of something than a cluster may have.
    #[error("the cluster has as many {what} as it may: {limit}")]
    Limit {
        /// Of what.
        what: Cow<'static, str>,
        /// How many it may have.
        limit: usize,
    },
    /// A broker that may be given replicas at any moment.
    #[error(
        "broker {0} is not being drained: set its config palisade.draining to true first, so that it is given nothing while it leaves"
    )]
    NotDraining(i32),
    /// A broker without which replicas have no place.
    #[error(
        "broker {id} cannot be drained: {left} broker(s) would be left, and there are shards of replication factor {replication_factor}"
    )]
    BrokerNeeded {
        /// The broker.
        id: i32,
        /// How many brokers would take replicas then.
        left: usize,
        /// The largest replication factor that there are shards of.
        replication_factor: u16,
    },
    /// Shards that hold something are not given up.
    #[error("shards of replication factor {0} are in use")]
    PoolInUse(u16),
    /// A shard of which it is known already who may form it, or of which several replicas have the data.
    #[error("shard {0} has several replicas, or its sole one may form it already")]
    NothingToSettle(ShardId),
    /// A registered broker would stop at the command.
    #[error(
        "broker {broker} reads metadata commands up to format {reads}, not {format}: upgrade it, or remove it from the cluster, then try again"
    )]
    NotReadByAll {
        /// The broker; the first of them when there are several.
        broker: i32,
        /// The format of the command.
        format: u8,
        /// Up to which format the broker reads commands.
        reads: u8,
    },
}

/// Kafka's words, which its tools' users know, and the brokers that do not count.
fn replication_factor(wanted: u16, brokers: usize, draining: usize) -> String {
    let begin = format!("Unable to replicate the partition {wanted} time(s):");
    if wanted == 0 {
        return format!(
            "{begin} Invalid replication factor 0: the replication factor must be positive."
        );
    }
    let others = match draining {
        0 => String::new(),
        count => format!(" ({count} more are being drained)"),
    };
    format!(
        "{begin} The target replication factor of {wanted} cannot be reached because only {brokers} broker(s) are registered{others}."
    )
}
