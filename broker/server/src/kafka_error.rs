//! Kafka's error codes for what the lower crates refuse. Codes appear here and in `api`, nowhere below.

pub(crate) use kafka_protocol::ResponseError as KafkaError;
use palisade_coordinator::group::GroupError;
use palisade_data::{DataError, records::RecordError};
use palisade_metadata::{MetadataError, config::ConfigError};

use crate::cluster::{ChangeError, RemovalError};

/// The code for a refusal of the data plane.
pub(crate) fn of_data(error: &DataError) -> KafkaError {
    match error {
        DataError::UnknownPartition { .. } => KafkaError::UnknownTopicOrPartition,
        // Retriable: the client asks for metadata and sends again.
        DataError::NotLeader | DataError::OutOfTurn | DataError::Stopped => {
            KafkaError::NotLeaderOrFollower
        }
        DataError::Record(error) => of_record(error),
        // Retriable, and nothing was appended: the replicas do not keep up with what is waiting already.
        DataError::NotEnoughReplicas { .. } | DataError::Busy => KafkaError::NotEnoughReplicas,
        DataError::ProducerFenced { .. } => KafkaError::InvalidProducerEpoch,
        DataError::OutOfOrderSequence { .. } => KafkaError::OutOfOrderSequenceNumber,
        DataError::DuplicateSequence { .. } => KafkaError::DuplicateSequenceNumber,
        DataError::OffsetOutOfRange { .. } => KafkaError::OffsetOutOfRange,
        DataError::OffsetNotAvailable { .. } => KafkaError::OffsetNotAvailable,
        DataError::DiskFull | DataError::Corrupt(_) | DataError::Log(_) | DataError::Seal(_) => {
            KafkaError::KafkaStorageError
        }
        _ => KafkaError::UnknownServerError,
    }
}

fn of_record(error: &RecordError) -> KafkaError {
    match error {
        RecordError::Truncated { .. } | RecordError::Checksum { .. } => KafkaError::CorruptMessage,
        RecordError::UnsupportedMagic(_) => KafkaError::UnsupportedForMessageFormat,
        RecordError::UnknownCodec(_) => KafkaError::UnsupportedCompressionType,
        RecordError::TooLarge { .. } => KafkaError::MessageTooLarge,
        RecordError::Timestamp { .. } => KafkaError::InvalidTimestamp,
        _ => KafkaError::InvalidRecord,
    }
}

/// The code for a refusal of the metadata.
pub(crate) fn of_metadata(error: &MetadataError) -> KafkaError {
    match error {
        MetadataError::NotBootstrapped => KafkaError::CoordinatorNotAvailable,
        MetadataError::ClusterId { .. } => KafkaError::InconsistentClusterId,
        MetadataError::UnknownBroker(_) => KafkaError::BrokerIdNotRegistered,
        MetadataError::InvalidBroker { .. } => KafkaError::InvalidRegistration,
        MetadataError::BrokerHasReplicas { .. }
        | MetadataError::NotDraining(_)
        | MetadataError::PoolInUse(_) => KafkaError::InvalidRequest,
        MetadataError::Replicas(_)
        | MetadataError::UnknownShard(_)
        | MetadataError::NothingToSettle(_) => KafkaError::InvalidReplicaAssignment,
        MetadataError::ShardGeneration { .. } => KafkaError::InvalidUpdateVersion,
        // Retriable: the shards are made in a moment.
        MetadataError::NoPool(_) => KafkaError::CoordinatorNotAvailable,
        MetadataError::TopicExists(_) => KafkaError::TopicAlreadyExists,
        MetadataError::UnknownTopic(_) => KafkaError::UnknownTopicOrPartition,
        MetadataError::TopicName(_) | MetadataError::TopicCollision { .. } => {
            KafkaError::InvalidTopicException
        }
        MetadataError::Partitions(_) => KafkaError::InvalidPartitions,
        MetadataError::ReplicationFactor { .. } | MetadataError::BrokerNeeded { .. } => {
            KafkaError::InvalidReplicationFactor
        }
        MetadataError::Config(ConfigError::Duplicate(_)) => KafkaError::InvalidRequest,
        MetadataError::Config(_) => KafkaError::InvalidConfig,
        MetadataError::Limit { .. } => KafkaError::PolicyViolation,
        MetadataError::Acl(_) | MetadataError::Quota(_) | MetadataError::ProducerIds(_) => {
            KafkaError::InvalidRequest
        }
        MetadataError::UserName(_) | MetadataError::Credential(_) => {
            KafkaError::UnacceptableCredential
        }
        MetadataError::UnknownCredential { .. } => KafkaError::ResourceNotFound,
        MetadataError::DuplicateCredential { .. } => KafkaError::DuplicateResource,
        // As Kafka answers what needs a higher feature level.
        MetadataError::NotReadByAll { .. } => KafkaError::UnsupportedVersion,
        _ => KafkaError::UnknownServerError,
    }
}

/// The code for a change of the metadata that did not happen.
pub(crate) fn of_change(error: &ChangeError) -> KafkaError {
    match error {
        ChangeError::Refused(error) => of_metadata(error),
        ChangeError::Full => KafkaError::KafkaStorageError,
        ChangeError::NotController => KafkaError::NotController,
        ChangeError::Unanswered => KafkaError::RequestTimedOut,
        ChangeError::Keys(_) => KafkaError::KafkaStorageError,
        ChangeError::Unexpected(_) => KafkaError::UnknownServerError,
    }
}

/// The code for a broker that was not forgotten.
pub(crate) fn of_removal(error: &RemovalError) -> KafkaError {
    match error {
        RemovalError::StillNeeded { .. } => KafkaError::InvalidRequest,
        // Retriable: a leader is elected, or a change ends, in a moment.
        RemovalError::Unsettled(_) => KafkaError::LeaderNotAvailable,
        RemovalError::Change(error) => of_change(error),
    }
}

/// The code for a refusal of a group.
pub(crate) fn of_group(error: GroupError) -> KafkaError {
    match error {
        GroupError::InvalidGroupId => KafkaError::InvalidGroupId,
        GroupError::InvalidSessionTimeout => KafkaError::InvalidSessionTimeout,
        GroupError::UnknownMemberId => KafkaError::UnknownMemberId,
        GroupError::MemberIdRequired => KafkaError::MemberIdRequired,
        GroupError::FencedInstanceId => KafkaError::FencedInstanceId,
        GroupError::IllegalGeneration => KafkaError::IllegalGeneration,
        GroupError::RebalanceInProgress => KafkaError::RebalanceInProgress,
        GroupError::InconsistentGroupProtocol => KafkaError::InconsistentGroupProtocol,
        GroupError::GroupMaxSizeReached => KafkaError::GroupMaxSizeReached,
        GroupError::TooLarge => KafkaError::InvalidRequest,
        GroupError::TooManyGroups => KafkaError::CoordinatorNotAvailable,
        GroupError::NonEmptyGroup => KafkaError::NonEmptyGroup,
        GroupError::NotCoordinator => KafkaError::NotCoordinator,
        _ => KafkaError::UnknownServerError,
    }
}
