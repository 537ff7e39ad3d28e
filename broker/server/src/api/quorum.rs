//! DescribeQuorum (55): who leads the metadata, and how far the others are, as `kafka-metadata-quorum` shows (KIP-836, KIP-853).
//!
//! Kafka's offsets of the metadata log are indexes of shard 0's log here. The directory id of a replica is the incarnation of its broker's volume.

use kafka_protocol::{
    messages::{
        BrokerId, DescribeQuorumRequest, DescribeQuorumResponse,
        describe_quorum_response::{Listener, Node, PartitionData, ReplicaState, TopicData},
    },
    protocol::StrBytes,
};
use palisade_metadata::{Image, node_of};
use palisade_security::acl::Operation;
use palisade_shard::NodeId;
use uuid::Uuid;

use super::{Context, offsets::now_ms};
use crate::{cluster::Quorum, kafka_error::KafkaError};

/// What Kafka calls the log of the metadata.
const METADATA_TOPIC: &str = "__cluster_metadata";
/// First version that has directories and nodes (KIP-853).
const DIRECTORIES: i16 = 2;
/// Told instead of an offset or a time that nobody knows.
const UNKNOWN: i64 = -1;

pub(crate) async fn describe(
    ctx: &Context,
    request: DescribeQuorumRequest,
) -> DescribeQuorumResponse {
    if !ctx.allows_cluster(Operation::Describe) {
        let error = KafkaError::ClusterAuthorizationFailed;
        return DescribeQuorumResponse::default().with_error_code(ctx.code(error));
    }
    let quorum = ctx.broker.cluster.metadata_quorum().await;
    let now = now_ms();
    let topics = request.topics.into_iter().map(|asked| {
        let partitions = asked.partitions.iter().map(|partition| {
            let index = partition.partition_index;
            let data = PartitionData::default().with_partition_index(index);
            let (error, message) = match &quorum {
                _ if &**asked.topic_name != METADATA_TOPIC || index != 0 => (
                    KafkaError::UnknownTopicOrPartition,
                    "only partition 0 of __cluster_metadata has a quorum",
                ),
                Some(quorum) => {
                    return fill(data, quorum, now, &|node| match ctx.version {
                        DIRECTORIES.. => directory(&ctx.image, node),
                        _ => Uuid::nil(),
                    });
                }
                None => (
                    KafkaError::NotLeaderOrFollower,
                    "no broker that leads the metadata answered; retry",
                ),
            };
            data.with_error_code(ctx.code(error))
                .with_error_message(Some(StrBytes::from_static_str(message)))
        });
        TopicData::default()
            .with_partitions(partitions.collect())
            .with_topic_name(asked.topic_name.clone())
    });
    let response = DescribeQuorumResponse::default().with_topics(topics.collect());
    match ctx.version {
        DIRECTORIES.. => response.with_nodes(nodes(ctx)),
        _ => response,
    }
}

fn fill(
    data: PartitionData,
    quorum: &Quorum,
    now: i64,
    directory: &dyn Fn(NodeId) -> Uuid,
) -> PartitionData {
    let state =
        |node: &NodeId| replica(*node, quorum, now).with_replica_directory_id(directory(*node));
    data.with_leader_id(BrokerId(quorum.leader.broker()))
        .with_leader_epoch(i32::try_from(quorum.term).unwrap_or(i32::MAX))
        .with_high_watermark(end(quorum.committed))
        .with_current_voters(quorum.voters.iter().map(state).collect())
        .with_observers(quorum.learners.iter().map(state).collect())
}

/// What the leader knows of a replica. Times are told only of those that have everything: then they are now.
fn replica(node: NodeId, quorum: &Quorum, now: i64) -> ReplicaState {
    let matched = match node == quorum.leader {
        true => Some(quorum.last_index),
        false => quorum.matched.get(&node).copied(),
    };
    let caught_up = matched.is_some_and(|matched| matched >= quorum.committed);
    let time = if caught_up { now } else { UNKNOWN };
    ReplicaState::default()
        .with_replica_id(BrokerId(node.broker()))
        .with_log_end_offset(matched.map_or(UNKNOWN, end))
        .with_last_fetch_timestamp(time)
        .with_last_caught_up_timestamp(time)
}

/// The offset after an index.
fn end(index: u64) -> i64 {
    i64::try_from(index.saturating_add(1)).unwrap_or(i64::MAX)
}

/// Nil when the broker has another volume now, or is not registered yet.
fn directory(image: &Image, node: NodeId) -> Uuid {
    let registered = image.brokers.get(&node.broker());
    let incarnations = registered.map(|broker| broker.incarnation);
    incarnations
        .filter(|incarnation| node_of(node.broker(), *incarnation) == node)
        .unwrap_or_default()
}

/// Brokers that are registered, where clients of this listener reach them.
fn nodes(ctx: &Context) -> Vec<Node> {
    let name = &ctx.session.listener.name;
    let endpoints = ctx.image.brokers.values().filter_map(|broker| {
        let endpoint = broker.endpoint(name)?;
        let listener = Listener::default()
            // Kafka names listeners in capitals, and its client accepts nothing else here.
            .with_name(name.to_uppercase().into())
            .with_host(endpoint.host.clone().into())
            .with_port(endpoint.port);
        Some(
            Node::default()
                .with_node_id(BrokerId(broker.id))
                .with_listeners(vec![listener]),
        )
    });
    endpoints.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use kafka_protocol::messages::{ApiKey, ResponseKind};

    use super::*;
    use crate::codec::encode_response;

    #[test]
    fn every_version_can_be_encoded() {
        let quorum = Quorum {
            leader: NodeId::of(0, 7),
            term: 1,
            last_index: 1,
            committed: 1,
            voters: BTreeSet::from([NodeId::of(0, 7)]),
            learners: BTreeSet::new(),
            matched: BTreeMap::new(),
        };
        for version in 0..=2 {
            let of = |_| match version {
                DIRECTORIES.. => Uuid::from_u128(9),
                _ => Uuid::nil(),
            };
            let described = fill(PartitionData::default(), &quorum, 1, &of);
            let refused = PartitionData::default()
                .with_error_code(3)
                .with_error_message(Some(StrBytes::from_static_str("no")));
            let topic = TopicData::default().with_partitions(vec![described, refused]);
            let response = DescribeQuorumResponse::default().with_topics(vec![topic]);
            let body = ResponseKind::DescribeQuorum(response);
            let encoded = encode_response(ApiKey::DescribeQuorum, version, 1, &body);
            assert!(encoded.is_ok(), "version {version}");
        }
    }

    #[test]
    fn who_lacks_nothing_is_caught_up_now() {
        let [a, b, c, d] = [0, 1, 2, 3].map(|broker| NodeId::of(broker, 7));
        let quorum = Quorum {
            leader: a,
            term: 4,
            last_index: 12,
            committed: 10,
            voters: BTreeSet::from([a, b, c]),
            learners: BTreeSet::from([d]),
            // What the leader notes of itself lags behind its log.
            matched: BTreeMap::from([(a, 9), (b, 10), (c, 3)]),
        };
        let data = fill(PartitionData::default(), &quorum, 5000, &|node| {
            Uuid::from_u128(node.broker() as u128)
        });
        assert_eq!((data.leader_id, data.leader_epoch), (BrokerId(0), 4));
        assert_eq!(data.high_watermark, 11);
        let told = |states: &[ReplicaState]| -> Vec<(i32, i64, i64)> {
            let told = states.iter().map(|state| {
                let id = state.replica_id.0;
                (id, state.log_end_offset, state.last_caught_up_timestamp)
            });
            told.collect()
        };
        assert_eq!(
            told(&data.current_voters),
            [(0, 13, 5000), (1, 11, 5000), (2, 4, -1)]
        );
        assert_eq!(told(&data.observers), [(3, -1, -1)]);
        let directory = data.observers[0].replica_directory_id;
        assert_eq!(directory, Uuid::from_u128(3));
    }
}
