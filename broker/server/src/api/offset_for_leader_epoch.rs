//! OffsetForLeaderEpoch (23): where an epoch ended, for consumers that check their position (KIP-320).

use kafka_protocol::messages::{
    OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
    offset_for_leader_epoch_request::OffsetForLeaderPartition,
    offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
};
use palisade_log::{LeaderEpoch, Offset};
use palisade_metadata::Topic;
use palisade_security::acl::Operation;

use super::Context;
use crate::kafka_error::{KafkaError, of_data};

pub(crate) fn handle(
    ctx: &Context,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request
        .topics
        .into_iter()
        .map(|asked| {
            let topic = ctx.topic(Operation::Describe, &asked.topic);
            let partitions = asked
                .partitions
                .iter()
                .map(|partition| {
                    let end = topic
                        .as_ref()
                        .map_err(|error| *error)
                        .and_then(|topic| find(ctx, topic, partition));
                    let response = EpochEndOffset::default()
                        .with_partition(partition.partition)
                        .with_leader_epoch(-1)
                        .with_end_offset(-1);
                    match end {
                        Err(error) => response.with_error_code(ctx.code(error)),
                        Ok(None) => response,
                        Ok(Some((epoch, offset))) => response
                            .with_leader_epoch(epoch.0)
                            .with_end_offset(offset.0),
                    }
                })
                .collect();
            OffsetForLeaderTopicResult::default()
                .with_topic(asked.topic)
                .with_partitions(partitions)
        })
        .collect();
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

fn find(
    ctx: &Context,
    topic: &Topic,
    asked: &OffsetForLeaderPartition,
) -> Result<Option<(LeaderEpoch, Offset)>, KafkaError> {
    let index = ctx.partition(topic, asked.partition)?;
    ctx.check_epoch(topic, index, asked.current_leader_epoch)?;
    ctx.broker
        .data
        .offset_for_leader_epoch(topic.id, index, LeaderEpoch(asked.leader_epoch))
        .map_err(|error| of_data(&error))
}
