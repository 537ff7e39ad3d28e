//! Metadata (3): brokers, and topics with their partitions.

use std::collections::HashSet;

use kafka_protocol::{
    messages::{
        BrokerId, MetadataRequest, MetadataResponse, TopicName,
        metadata_request::MetadataRequestTopic,
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
    },
    protocol::StrBytes,
};
use palisade_log::{PartitionIndex, TopicId};
use palisade_metadata::{Topic, topic_name::check_topic_name};
use palisade_security::acl::{Operation, ResourceType};
use uuid::Uuid;

use super::Context;
use crate::kafka_error::KafkaError;

pub(crate) fn handle(ctx: &Context, request: &MetadataRequest) -> MetadataResponse {
    // Version 0 has no null list: there, an empty one asks for everything.
    let all = match &request.topics {
        None => true,
        Some(topics) => ctx.version == 0 && topics.is_empty(),
    };
    let operations = request.include_topic_authorized_operations;
    let topics = if all {
        ctx.image
            .topics
            .iter()
            .filter(|topic| ctx.shows(Operation::Describe, ResourceType::Topic, &topic.name))
            .map(|topic| describe(ctx, topic, operations))
            .collect()
    } else {
        let mut seen = HashSet::new();
        request
            .topics
            .iter()
            .flatten()
            // What is asked for twice is answered once, as in Kafka: an answer must not be many times as large as the metadata.
            .filter(|asked| seen.insert((asked.name.clone(), asked.topic_id)))
            .map(|asked| one(ctx, asked, operations))
            .collect()
    };
    let response = MetadataResponse::default()
        .with_brokers(brokers(ctx))
        .with_cluster_id(Some(ctx.broker.cluster_id.clone().into()))
        .with_controller_id(BrokerId(ctx.broker.cluster.controller().unwrap_or(-1)))
        .with_topics(topics);
    if request.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(ctx.cluster_operations())
    } else {
        response
    }
}

/// Every broker that clients of this listener can reach now, as far as it can be told from here.
fn brokers(ctx: &Context) -> Vec<MetadataResponseBroker> {
    reachable(ctx)
        .map(|(id, host, port, rack)| {
            MetadataResponseBroker::default()
                .with_node_id(id)
                .with_host(host)
                .with_port(port)
                .with_rack(rack)
        })
        .collect()
}

/// Id, host, port and rack of the brokers behind this listener.
pub(crate) fn reachable(
    ctx: &Context,
) -> impl Iterator<Item = (BrokerId, StrBytes, i32, Option<StrBytes>)> {
    let cluster = &ctx.broker.cluster;
    // Who cannot reach the others does not know whether clients can. A client that believed it to be the only one would have nobody else to ask.
    let has_lost_them = !cluster.is_in_touch();
    let alive = ctx
        .image
        .brokers
        .values()
        .filter(move |broker| has_lost_them || cluster.is_alive(broker.id));
    alive.filter_map(|broker| {
        let endpoint = broker.endpoint(&ctx.session.listener.name)?;
        Some((
            BrokerId(broker.id),
            endpoint.host.clone().into(),
            i32::from(endpoint.port),
            broker.rack.clone().map(Into::into),
        ))
    })
}

fn one(ctx: &Context, asked: &MetadataRequestTopic, operations: bool) -> MetadataResponseTopic {
    let failed = |error: KafkaError, name: Option<TopicName>, id: Uuid| {
        MetadataResponseTopic::default()
            .with_error_code(ctx.code(error))
            .with_name(name)
            .with_topic_id(id)
    };
    let Some(name) = &asked.name else {
        let Some(topic) = ctx.image.topics.get(TopicId(asked.topic_id)) else {
            return failed(KafkaError::UnknownTopicId, unnamed(ctx), asked.topic_id);
        };
        if !ctx.allows(Operation::Describe, ResourceType::Topic, &topic.name) {
            // Ids are no secret, names are.
            return failed(
                KafkaError::TopicAuthorizationFailed,
                unnamed(ctx),
                asked.topic_id,
            );
        }
        return describe(ctx, topic, operations);
    };
    if !ctx.allows(Operation::Describe, ResourceType::Topic, name) {
        return failed(
            KafkaError::TopicAuthorizationFailed,
            Some(name.clone()),
            Uuid::nil(),
        );
    }
    match ctx.image.topics.by_name(name) {
        Some(topic) => describe(ctx, topic, operations),
        None if check_topic_name(name).is_err() => failed(
            KafkaError::InvalidTopicException,
            Some(name.clone()),
            Uuid::nil(),
        ),
        None => failed(
            KafkaError::UnknownTopicOrPartition,
            Some(name.clone()),
            Uuid::nil(),
        ),
    }
}

/// The name of a topic whose name must not be told; only versions from 12 on have room for none.
fn unnamed(ctx: &Context) -> Option<TopicName> {
    (ctx.version < 12).then(TopicName::default)
}

fn describe(ctx: &Context, topic: &Topic, operations: bool) -> MetadataResponseTopic {
    let partitions = (0..)
        .zip(&topic.partitions)
        .map(|(index, _)| partition(ctx, topic, index))
        .collect();
    let response = MetadataResponseTopic::default()
        .with_name(Some(TopicName(topic.name.clone().into())))
        .with_topic_id(topic.id.0)
        .with_partitions(partitions);
    if operations {
        response.with_topic_authorized_operations(ctx.operations(ResourceType::Topic, &topic.name))
    } else {
        response
    }
}

/// Where a partition is and who leads it, as far as it is known here now.
pub(crate) struct Whereabouts {
    pub(crate) replicas: Vec<BrokerId>,
    /// Replicas that can be reached; whether they have caught up is known to the leader only.
    pub(crate) in_sync: Vec<BrokerId>,
    pub(crate) offline: Vec<BrokerId>,
    /// Leader and its epoch.
    pub(crate) leader: Option<(BrokerId, i32)>,
}

pub(crate) fn whereabouts(ctx: &Context, topic: &Topic, index: i32) -> Whereabouts {
    let cluster = &ctx.broker.cluster;
    let id = topic.shard(PartitionIndex(index));
    let shard = id.and_then(|id| ctx.image.shards.get(&id));
    let (all, alive) = shard.map_or_else(Default::default, |shard| cluster.replicas(shard));
    let offline = all.iter().filter(|broker| !alive.contains(broker));
    let leader = id.and_then(|id| cluster.leader(id)).map(|leader| {
        let epoch = i32::try_from(leader.term).unwrap_or(i32::MAX);
        (BrokerId(leader.node.broker()), epoch)
    });
    Whereabouts {
        offline: offline.copied().map(BrokerId).collect(),
        replicas: all.iter().copied().map(BrokerId).collect(),
        in_sync: alive.into_iter().map(BrokerId).collect(),
        leader,
    }
}

fn partition(ctx: &Context, topic: &Topic, index: i32) -> MetadataResponsePartition {
    let found = whereabouts(ctx, topic, index);
    let response = MetadataResponsePartition::default()
        .with_partition_index(index)
        .with_replica_nodes(found.replicas)
        .with_isr_nodes(found.in_sync)
        .with_offline_replicas(found.offline);
    match found.leader {
        Some((id, epoch)) => response.with_leader_id(id).with_leader_epoch(epoch),
        None => response
            .with_leader_id(BrokerId(-1))
            .with_error_code(KafkaError::LeaderNotAvailable.code()),
    }
}
