//! What is asked about the cluster as a whole: DescribeCluster (60), DescribeLogDirs (35), ListPartitionReassignments (46),
//! UnregisterBroker (64).

use std::collections::BTreeMap;

use kafka_protocol::messages::{
    BrokerId, DescribeClusterRequest, DescribeClusterResponse, DescribeLogDirsRequest,
    DescribeLogDirsResponse, ListPartitionReassignmentsResponse, TopicName,
    UnregisterBrokerRequest, UnregisterBrokerResponse,
    describe_cluster_response::DescribeClusterBroker,
    describe_log_dirs_response::{
        DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
    },
};
use palisade_security::acl::Operation;
use tracing::info;

use super::{Context, metadata::reachable};
use crate::kafka_error::{KafkaError, of_removal};

const ENDPOINT_BROKERS: i8 = 1;

pub(crate) fn describe(ctx: &Context, request: &DescribeClusterRequest) -> DescribeClusterResponse {
    if request.endpoint_type != ENDPOINT_BROKERS {
        return DescribeClusterResponse::default()
            .with_error_code(ctx.code(KafkaError::MismatchedEndpointType))
            .with_error_message(Some(
                "the endpoint is one of brokers, there are no separate controllers".into(),
            ));
    }
    let brokers = reachable(ctx)
        .map(|(id, host, port, rack)| {
            DescribeClusterBroker::default()
                .with_broker_id(id)
                .with_host(host)
                .with_port(port)
                .with_rack(rack)
        })
        .collect();
    let response = DescribeClusterResponse::default()
        .with_cluster_id(ctx.broker.cluster_id.clone().into())
        .with_controller_id(BrokerId(ctx.broker.cluster.controller().unwrap_or(-1)))
        .with_brokers(brokers);
    if request.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(ctx.cluster_operations())
    } else {
        response
    }
}

pub(crate) fn log_dirs(ctx: &Context, request: &DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    if !ctx.allows_cluster(Operation::Describe) {
        return DescribeLogDirsResponse::default()
            .with_error_code(ctx.code(KafkaError::ClusterAuthorizationFailed));
    }
    let wanted = |name: &str, index: i32| match &request.topics {
        None => true,
        Some(topics) => topics
            .iter()
            .any(|topic| &**topic.topic == name && topic.partitions.contains(&index)),
    };
    let mut topics: BTreeMap<&str, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    let mut total = 0;
    for size in ctx.broker.data.log_sizes() {
        let bytes = i64::try_from(size.bytes).unwrap_or(i64::MAX);
        total += bytes;
        let Some(topic) = ctx.image.topics.get(size.topic) else {
            continue;
        };
        if wanted(&topic.name, size.partition.0) {
            topics.entry(&topic.name).or_default().push(
                DescribeLogDirsPartition::default()
                    .with_partition_index(size.partition.0)
                    .with_partition_size(bytes),
            );
        }
    }
    let topics = topics
        .into_iter()
        .map(|(name, partitions)| {
            DescribeLogDirsTopic::default()
                .with_name(TopicName(name.to_owned().into()))
                .with_partitions(partitions)
        })
        .collect();
    let dir = DescribeLogDirsResult::default()
        .with_log_dir(ctx.broker.data_dir.clone().into())
        .with_topics(topics)
        .with_total_bytes(total);
    DescribeLogDirsResponse::default().with_results(vec![dir])
}

/// Partitions stay in their shard, so no reassignment is ever under way.
pub(crate) fn list_reassignments(ctx: &Context) -> ListPartitionReassignmentsResponse {
    let response = ListPartitionReassignmentsResponse::default();
    if ctx.allows_cluster(Operation::Describe) {
        response
    } else {
        response.with_error_code(ctx.code(KafkaError::ClusterAuthorizationFailed))
    }
}

/// Forgets a broker for good, which has to be drained before ([`super::draining`]).
pub(crate) async fn unregister(
    ctx: &Context,
    request: &UnregisterBrokerRequest,
) -> UnregisterBrokerResponse {
    let response = UnregisterBrokerResponse::default();
    if !ctx.allows_cluster(Operation::Alter) {
        return response.with_error_code(ctx.code(KafkaError::ClusterAuthorizationFailed));
    }
    let broker = request.broker_id.0;
    info!(by = %ctx.session.principal, broker, "unregistering a broker");
    let cluster = &ctx.broker.cluster;
    match cluster.unregister(&ctx.broker.data, broker).await {
        Ok(()) => response,
        Err(error) => response
            .with_error_code(ctx.code(of_removal(&error)))
            .with_error_message(Some(error.to_string().into())),
    }
}
