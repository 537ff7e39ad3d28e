//! DescribeTopicPartitions (75): topics page by page (KIP-966).

use std::collections::BTreeSet;

use kafka_protocol::messages::{
    BrokerId, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, TopicName,
    describe_topic_partitions_response::{
        Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
    },
};
use palisade_metadata::Topic;
use palisade_security::acl::{Operation, ResourceType};

use super::{Context, metadata::whereabouts};
use crate::kafka_error::KafkaError;

/// Partitions of one answer, whatever the client asks for.
const MAX_PARTITIONS: usize = 2000;

pub(crate) fn handle(
    ctx: &Context,
    request: &DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let all = request.topics.is_empty();
    let names: BTreeSet<&str> = if all {
        ctx.image
            .topics
            .iter()
            .map(|topic| topic.name.as_str())
            .collect()
    } else {
        request
            .topics
            .iter()
            .map(|topic| topic.name.as_str())
            .collect()
    };
    let (first_topic, first_partition) = request.cursor.as_ref().map_or(("", 0), |cursor| {
        (cursor.topic_name.as_str(), cursor.partition_index.max(0))
    });
    let mut room = usize::try_from(request.response_partition_limit)
        .unwrap_or(MAX_PARTITIONS)
        .clamp(1, MAX_PARTITIONS);
    let mut topics = Vec::new();
    let mut next = None;
    for name in names.into_iter().filter(|name| *name >= first_topic) {
        let shown = if all {
            ctx.shows(Operation::Describe, ResourceType::Topic, name)
        } else {
            ctx.allows(Operation::Describe, ResourceType::Topic, name)
        };
        if !shown {
            if !all {
                topics.push(failed(ctx, KafkaError::TopicAuthorizationFailed, name));
            }
            continue;
        }
        let Some(topic) = ctx.image.topics.by_name(name) else {
            topics.push(failed(ctx, KafkaError::UnknownTopicOrPartition, name));
            continue;
        };
        let begin = if name == first_topic {
            first_partition
        } else {
            0
        };
        let end = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
        if room == 0 {
            next = Some((name, begin));
            break;
        }
        let partitions: Vec<_> = (begin..end)
            .take(room)
            .map(|index| partition(ctx, topic, index))
            .collect();
        room -= partitions.len();
        let reached = begin.saturating_add(i32::try_from(partitions.len()).unwrap_or(i32::MAX));
        topics.push(
            DescribeTopicPartitionsResponseTopic::default()
                .with_name(Some(TopicName(topic.name.clone().into())))
                .with_topic_id(topic.id.0)
                .with_partitions(partitions)
                .with_topic_authorized_operations(ctx.operations(ResourceType::Topic, name)),
        );
        if reached < end {
            next = Some((name, reached));
            break;
        }
    }
    let cursor = next.map(|(name, index)| {
        Cursor::default()
            .with_topic_name(TopicName(name.to_owned().into()))
            .with_partition_index(index)
    });
    DescribeTopicPartitionsResponse::default()
        .with_topics(topics)
        .with_next_cursor(cursor)
}

fn failed(ctx: &Context, error: KafkaError, name: &str) -> DescribeTopicPartitionsResponseTopic {
    DescribeTopicPartitionsResponseTopic::default()
        .with_error_code(ctx.code(error))
        .with_name(Some(TopicName(name.to_owned().into())))
}

fn partition(ctx: &Context, topic: &Topic, index: i32) -> DescribeTopicPartitionsResponsePartition {
    let found = whereabouts(ctx, topic, index);
    let response = DescribeTopicPartitionsResponsePartition::default()
        .with_partition_index(index)
        .with_replica_nodes(found.replicas)
        .with_isr_nodes(found.in_sync)
        .with_offline_replicas(found.offline)
        // Java's admin client takes these two for lists, never null.
        .with_eligible_leader_replicas(Some(Vec::new()))
        .with_last_known_elr(Some(Vec::new()));
    match found.leader {
        Some((id, epoch)) => response.with_leader_id(id).with_leader_epoch(epoch),
        None => response
            .with_leader_id(BrokerId(-1))
            .with_error_code(KafkaError::LeaderNotAvailable.code()),
    }
}
