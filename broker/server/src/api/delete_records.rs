//! DeleteRecords (21): moves the start of a log.

use kafka_protocol::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse,
    delete_records_request::DeleteRecordsPartition,
    delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult},
};
use palisade_log::Offset;
use palisade_metadata::Topic;
use palisade_security::acl::Operation;

use super::Context;
use crate::kafka_error::{KafkaError, of_data};

/// Stands for the high watermark.
const ALL: i64 = -1;

pub(crate) async fn handle(ctx: &Context, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = ctx.topic(Operation::Delete, &asked.name);
        let mut partitions = Vec::with_capacity(asked.partitions.len());
        for partition in &asked.partitions {
            let deleted = match &topic {
                Ok(topic) => delete(ctx, topic, partition).await,
                Err(error) => Err(*error),
            };
            let result = DeleteRecordsPartitionResult::default()
                .with_partition_index(partition.partition_index);
            partitions.push(match deleted {
                Ok(start) => result.with_low_watermark(start.0),
                Err(error) => result
                    .with_low_watermark(-1)
                    .with_error_code(ctx.code(error)),
            });
        }
        topics.push(
            DeleteRecordsTopicResult::default()
                .with_name(asked.name)
                .with_partitions(partitions),
        );
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

async fn delete(
    ctx: &Context,
    topic: &Topic,
    asked: &DeleteRecordsPartition,
) -> Result<Offset, KafkaError> {
    let index = ctx.partition(topic, asked.partition_index)?;
    let before = match asked.offset {
        ALL => None,
        offset if offset >= 0 => Some(Offset(offset)),
        _ => return Err(KafkaError::OffsetOutOfRange),
    };
    ctx.broker
        .data
        .delete_records(topic.id, index, before)
        .await
        .map_err(|error| of_data(&error))
}
