//! The shape of every request that the broker accepts: field by field, what its bytes look like in each version.
//!
//! [`super::walk`] checks a request against its shape before the decoder sees it. The shapes follow Apache Kafka's message
//! definitions; the tests of `walk` compare them with the decoder on random input.

mod admin;
mod client;

use kafka_protocol::messages::ApiKey;

/// What the bytes of one field look like.
#[derive(Debug)]
pub(super) enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A length and UTF-8 text.
    Str,
    /// A length and bytes.
    Blob,
    /// A length and so many elements.
    Array(&'static Kind),
    /// One byte that says whether the rest is there.
    Optional(&'static Kind),
    /// Fields in order, then (in flexible versions) tagged fields; the second list are the tags the decoder knows.
    Struct(&'static [Field], &'static [(u32, Field)]),
}

/// One field and the versions that have it.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) since: i16,
    pub(super) until: i16,
    pub(super) kind: Kind,
}

const fn all(name: &'static str, kind: Kind) -> Field {
    between(0, i16::MAX, name, kind)
}

const fn since(since: i16, name: &'static str, kind: Kind) -> Field {
    between(since, i16::MAX, name, kind)
}

const fn until(until: i16, name: &'static str, kind: Kind) -> Field {
    between(0, until, name, kind)
}

const fn between(since: i16, until: i16, name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        since,
        until,
        kind,
    }
}

/// The shape of a request, absent for one that the broker does not accept.
pub(super) fn shape(api: ApiKey) -> Option<&'static Kind> {
    Some(match api {
        ApiKey::Produce => &client::PRODUCE,
        ApiKey::Fetch => &client::FETCH,
        ApiKey::ListOffsets => &client::LIST_OFFSETS,
        ApiKey::Metadata => &client::METADATA,
        ApiKey::OffsetCommit => &client::OFFSET_COMMIT,
        ApiKey::OffsetFetch => &client::OFFSET_FETCH,
        ApiKey::FindCoordinator => &client::FIND_COORDINATOR,
        ApiKey::JoinGroup => &client::JOIN_GROUP,
        ApiKey::Heartbeat => &client::HEARTBEAT,
        ApiKey::LeaveGroup => &client::LEAVE_GROUP,
        ApiKey::SyncGroup => &client::SYNC_GROUP,
        ApiKey::DescribeGroups => &admin::DESCRIBE_GROUPS,
        ApiKey::ListGroups => &admin::LIST_GROUPS,
        ApiKey::SaslHandshake => &client::SASL_HANDSHAKE,
        ApiKey::ApiVersions => &client::API_VERSIONS,
        ApiKey::CreateTopics => &admin::CREATE_TOPICS,
        ApiKey::DeleteTopics => &admin::DELETE_TOPICS,
        ApiKey::DeleteRecords => &admin::DELETE_RECORDS,
        ApiKey::InitProducerId => &client::INIT_PRODUCER_ID,
        ApiKey::OffsetForLeaderEpoch => &client::OFFSET_FOR_LEADER_EPOCH,
        ApiKey::DescribeAcls => &admin::DESCRIBE_ACLS,
        ApiKey::CreateAcls => &admin::CREATE_ACLS,
        ApiKey::DeleteAcls => &admin::DELETE_ACLS,
        ApiKey::DescribeConfigs => &admin::DESCRIBE_CONFIGS,
        ApiKey::AlterConfigs => &admin::ALTER_CONFIGS,
        ApiKey::DescribeLogDirs => &admin::DESCRIBE_LOG_DIRS,
        ApiKey::SaslAuthenticate => &client::SASL_AUTHENTICATE,
        ApiKey::CreatePartitions => &admin::CREATE_PARTITIONS,
        ApiKey::DeleteGroups => &admin::DELETE_GROUPS,
        ApiKey::ElectLeaders => &admin::ELECT_LEADERS,
        ApiKey::IncrementalAlterConfigs => &admin::INCREMENTAL_ALTER_CONFIGS,
        ApiKey::ListPartitionReassignments => &admin::LIST_PARTITION_REASSIGNMENTS,
        ApiKey::OffsetDelete => &admin::OFFSET_DELETE,
        ApiKey::DescribeClientQuotas => &admin::DESCRIBE_CLIENT_QUOTAS,
        ApiKey::AlterClientQuotas => &admin::ALTER_CLIENT_QUOTAS,
        ApiKey::DescribeUserScramCredentials => &admin::DESCRIBE_USER_SCRAM_CREDENTIALS,
        ApiKey::AlterUserScramCredentials => &admin::ALTER_USER_SCRAM_CREDENTIALS,
        ApiKey::DescribeQuorum => &admin::DESCRIBE_QUORUM,
        ApiKey::DescribeCluster => &admin::DESCRIBE_CLUSTER,
        ApiKey::DescribeProducers => &admin::DESCRIBE_PRODUCERS,
        ApiKey::UnregisterBroker => &admin::UNREGISTER_BROKER,
        ApiKey::ListConfigResources => &admin::LIST_CONFIG_RESOURCES,
        ApiKey::DescribeTopicPartitions => &admin::DESCRIBE_TOPIC_PARTITIONS,
        _ => return None,
    })
}
