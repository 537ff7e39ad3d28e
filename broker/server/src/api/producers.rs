//! InitProducerId (22) and DescribeProducers (61): idempotent producers.

use std::collections::HashSet;

use kafka_protocol::messages::{
    DescribeProducersRequest, DescribeProducersResponse, InitProducerIdRequest,
    InitProducerIdResponse, ProducerId,
    describe_producers_response::{PartitionResponse, ProducerState, TopicResponse},
};
use palisade_metadata::Topic;
use palisade_security::acl::{Operation, ResourceType};

use super::Context;
use crate::kafka_error::{KafkaError, of_change, of_data};

/// Gives a producer an id. Transactions do not exist here yet, which FindCoordinator has told a transactional producer before.
pub(crate) async fn init(ctx: &Context, request: &InitProducerIdRequest) -> InitProducerIdResponse {
    let failed = |error| {
        InitProducerIdResponse::default()
            .with_error_code(ctx.code(error))
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    };
    if let Some(id) = &request.transactional_id {
        let allowed = ctx.allows(Operation::Write, ResourceType::TransactionalId, id);
        return failed(if allowed {
            KafkaError::InvalidRequest
        } else {
            KafkaError::TransactionalIdAuthorizationFailed
        });
    }
    // Since Kafka 2.8 who may write to any topic may be idempotent.
    if !ctx.allows_some(Operation::Write, ResourceType::Topic)
        && !ctx.allows_cluster(Operation::IdempotentWrite)
    {
        return failed(KafkaError::ClusterAuthorizationFailed);
    }
    match ctx.broker.next_producer_id().await {
        Ok(id) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(0),
        Err(error) => failed(of_change(&error)),
    }
}

pub(crate) fn describe(
    ctx: &Context,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let mut seen = HashSet::new();
    let topics = request
        .topics
        .into_iter()
        .map(|mut asked| {
            asked
                .partition_indexes
                .retain(|index| seen.insert((asked.name.clone(), *index)));
            let topic = ctx.topic(Operation::Read, &asked.name);
            let partitions = asked
                .partition_indexes
                .iter()
                .map(|index| {
                    let producers = topic
                        .as_ref()
                        .map_err(|error| *error)
                        .and_then(|topic| active(ctx, topic, *index));
                    let response = PartitionResponse::default().with_partition_index(*index);
                    match producers {
                        Ok(producers) => response.with_active_producers(producers),
                        Err(error) => response.with_error_code(ctx.code(error)),
                    }
                })
                .collect();
            TopicResponse::default()
                .with_name(asked.name)
                .with_partitions(partitions)
        })
        .collect();
    DescribeProducersResponse::default().with_topics(topics)
}

fn active(ctx: &Context, topic: &Topic, index: i32) -> Result<Vec<ProducerState>, KafkaError> {
    let index = ctx.partition(topic, index)?;
    let producers = ctx
        .broker
        .data
        .producers(topic.id, index)
        .map_err(|error| of_data(&error))?;
    Ok(producers
        .into_iter()
        .map(|producer| {
            ProducerState::default()
                .with_producer_id(ProducerId(producer.producer_id))
                .with_producer_epoch(i32::from(producer.epoch))
                .with_last_sequence(producer.last_sequence)
                .with_last_timestamp(producer.last_timestamp)
                .with_coordinator_epoch(-1)
                .with_current_txn_start_offset(-1)
        })
        .collect())
}
