//! ListOffsets (2): offsets by time, and the ends of a log.

use std::collections::HashSet;

use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse,
    list_offsets_request::ListOffsetsPartition,
    list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
};
use palisade_data::{ListQuery, ListedOffset};
use palisade_metadata::Topic;
use palisade_security::acl::Operation;

use super::Context;
use crate::kafka_error::{KafkaError, of_data};

/// Special timestamps (KIP-79, KIP-734, KIP-405, KIP-1005).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

pub(crate) fn handle(ctx: &Context, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let mut seen = HashSet::new();
    let topics = request
        .topics
        .into_iter()
        .map(|mut asked| {
            asked
                .partitions
                .retain(|partition| seen.insert((asked.name.clone(), partition.partition_index)));
            let topic = ctx.topic(Operation::Describe, &asked.name);
            let partitions = asked
                .partitions
                .iter()
                .map(|partition| {
                    let listed = topic
                        .as_ref()
                        .map_err(|error| *error)
                        .and_then(|topic| list(ctx, topic, partition));
                    answer(ctx, partition.partition_index, listed)
                })
                .collect();
            ListOffsetsTopicResponse::default()
                .with_name(asked.name)
                .with_partitions(partitions)
        })
        .collect();
    ListOffsetsResponse::default().with_topics(topics)
}

fn list(
    ctx: &Context,
    topic: &Topic,
    asked: &ListOffsetsPartition,
) -> Result<Option<ListedOffset>, KafkaError> {
    let index = ctx.partition(topic, asked.partition_index)?;
    ctx.check_epoch(topic, index, asked.current_leader_epoch)?;
    let query = match asked.timestamp {
        LATEST => ListQuery::Latest,
        EARLIEST | EARLIEST_LOCAL => ListQuery::Earliest,
        MAX_TIMESTAMP => ListQuery::MaxTimestamp,
        // No part of the log is in another tier.
        LATEST_TIERED => return Ok(None),
        time if time >= 0 => ListQuery::At(time),
        _ => return Err(KafkaError::UnsupportedVersion),
    };
    ctx.broker
        .data
        .list_offset(topic.id, index, query)
        .map_err(|error| of_data(&error))
}

fn answer(
    ctx: &Context,
    partition: i32,
    listed: Result<Option<ListedOffset>, KafkaError>,
) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default()
        .with_partition_index(partition)
        .with_offset(-1)
        .with_timestamp(-1);
    match listed {
        Err(error) => response.with_error_code(ctx.code(error)),
        Ok(None) => response,
        Ok(Some(found)) => {
            let response = response
                .with_offset(found.offset.0)
                .with_timestamp(found.timestamp);
            if ctx.version >= 4 {
                response.with_leader_epoch(found.leader_epoch.0)
            } else {
                response
            }
        }
    }
}
