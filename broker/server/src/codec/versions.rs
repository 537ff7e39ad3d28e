//! The APIs and versions that the broker speaks; what ApiVersions advertises.

use kafka_protocol::messages::ApiKey;

/// One API.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Api {
    pub(crate) key: ApiKey,
    pub(crate) name: &'static str,
    /// Lowest version that a request may have.
    pub(crate) accept_min: i16,
    /// Lowest version that ApiVersions names.
    pub(crate) advertise_min: i16,
    /// Highest version.
    pub(crate) max: i16,
}

macro_rules! api {
    ($key:ident, $min:literal, $max:literal) => {
        api!($key, $min, $min, $max)
    };
    ($key:ident, $advertise_min:literal, $accept_min:literal, $max:literal) => {
        Api {
            key: ApiKey::$key,
            name: stringify!($key),
            accept_min: $accept_min,
            advertise_min: $advertise_min,
            max: $max,
        }
    };
}

/// Everything the broker serves, by API key.
pub(crate) const SUPPORTED: &[Api] = &[
    // librdkafka drops compression silently when Produce 0 to 2 are not advertised; nobody sends them any more.
    api!(Produce, 0, 3, 13),
    api!(Fetch, 4, 18),
    api!(ListOffsets, 1, 10),
    api!(Metadata, 0, 13),
    api!(OffsetCommit, 2, 9),
    api!(OffsetFetch, 1, 9),
    api!(FindCoordinator, 0, 6),
    api!(JoinGroup, 0, 9),
    api!(Heartbeat, 0, 4),
    api!(LeaveGroup, 0, 5),
    api!(SyncGroup, 0, 5),
    api!(DescribeGroups, 0, 6),
    api!(ListGroups, 0, 5),
    api!(SaslHandshake, 0, 1),
    api!(ApiVersions, 0, 4),
    api!(CreateTopics, 2, 7),
    api!(DeleteTopics, 1, 6),
    api!(DeleteRecords, 0, 2),
    api!(InitProducerId, 0, 5),
    api!(OffsetForLeaderEpoch, 2, 4),
    api!(DescribeAcls, 1, 3),
    api!(CreateAcls, 1, 3),
    api!(DeleteAcls, 1, 3),
    api!(DescribeConfigs, 1, 4),
    api!(AlterConfigs, 0, 2),
    api!(DescribeLogDirs, 1, 4),
    api!(SaslAuthenticate, 0, 2),
    api!(CreatePartitions, 0, 3),
    api!(DeleteGroups, 0, 2),
    api!(ElectLeaders, 0, 2),
    api!(IncrementalAlterConfigs, 0, 1),
    api!(ListPartitionReassignments, 0, 0),
    api!(OffsetDelete, 0, 0),
    api!(DescribeClientQuotas, 0, 1),
    api!(AlterClientQuotas, 0, 1),
    api!(DescribeUserScramCredentials, 0, 0),
    api!(AlterUserScramCredentials, 0, 0),
    api!(DescribeQuorum, 0, 2),
    api!(DescribeCluster, 0, 2),
    api!(DescribeProducers, 0, 0),
    api!(UnregisterBroker, 0, 0),
    api!(ListConfigResources, 0, 1),
    api!(DescribeTopicPartitions, 0, 0),
];

/// The entry of an API.
pub(crate) fn supported(key: ApiKey) -> Option<&'static Api> {
    SUPPORTED.iter().find(|api| api.key == key)
}

/// The name of an API, for metrics and logs.
pub(crate) fn name(key: ApiKey) -> &'static str {
    supported(key).map_or("unsupported", |api| api.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_advertised_version_can_be_encoded_and_decoded() {
        for api in SUPPORTED {
            let valid = api.key.valid_versions();
            assert!(
                valid.min <= api.accept_min && api.max <= valid.max,
                "{}",
                api.name
            );
        }
    }
}
