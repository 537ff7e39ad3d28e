//! Produce (0): appends batches.

use std::{future::Future, time::Duration};

use futures::future::join_all;
use kafka_protocol::messages::{
    ProduceRequest, ProduceResponse,
    produce_request::{PartitionProduceData, TopicProduceData},
    produce_response::{PartitionProduceResponse, TopicProduceResponse},
};
use palisade_data::{Acks, Appended, DataError};
use palisade_metadata::Topic;
use palisade_security::{
    acl::{Operation, ResourceType},
    quota::QuotaKey,
};
use tokio::time::{Instant, timeout_at};

use super::Context;
use crate::kafka_error::{KafkaError, of_data};

/// First version that names topics by id.
const BY_ID: i16 = 13;

/// An answer, and whether every batch was taken.
#[derive(Debug)]
pub(crate) struct Produced {
    pub(crate) response: ProduceResponse,
    pub(crate) failed: bool,
}

enum Outcome<F> {
    Known(KafkaError, Option<String>),
    Pending(F),
}

/// Gives every batch its place in the log before it first waits, so that requests of a connection keep their order.
pub(crate) async fn handle(ctx: &Context, request: ProduceRequest) -> Produced {
    let acks = match request.acks {
        0 => Ok(Acks::None),
        1 => Ok(Acks::Leader),
        -1 => Ok(Acks::All),
        _ => Err(KafkaError::InvalidRequiredAcks),
    };
    let forbidden = request
        .transactional_id
        .as_ref()
        .and_then(|id| transactional(ctx, id));
    let timeout = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0).max(1));
    let mut bytes = 0;
    let mut topics = Vec::with_capacity(request.topic_data.len());
    for data in request.topic_data {
        let topic = forbidden.map_or_else(|| find(ctx, &data), Err);
        let mut partitions = Vec::with_capacity(data.partition_data.len());
        for partition in data.partition_data {
            bytes += partition
                .records
                .as_ref()
                .map_or(0, |records| records.len());
            let index = partition.index;
            let outcome = match (&topic, &acks) {
                (Err(error), _) | (_, Err(error)) => Outcome::Known(*error, None),
                (Ok(topic), Ok(acks)) => begin(ctx, topic, partition, *acks),
            };
            partitions.push((index, outcome));
        }
        topics.push((data.name, data.topic_id, partitions));
    }
    charge(ctx, bytes);

    // One deadline, and all at once: what is settled of a partition when it is known must not wait for another.
    let deadline = Instant::now() + timeout;
    let topics = topics
        .into_iter()
        .map(|(name, topic_id, partitions)| async move {
            let answers = partitions
                .into_iter()
                .map(|(index, outcome)| async move { (index, finish(outcome, deadline).await) });
            (name, topic_id, join_all(answers).await)
        });
    let mut failed = false;
    let responses = join_all(topics)
        .await
        .into_iter()
        .map(|(name, topic_id, answers)| {
            let partitions = answers
                .into_iter()
                .map(|(index, result)| {
                    failed |= result.is_err();
                    answer(ctx, index, result)
                })
                .collect();
            TopicProduceResponse::default()
                .with_name(name)
                .with_topic_id(topic_id)
                .with_partition_responses(partitions)
        })
        .collect();
    Produced {
        response: ProduceResponse::default().with_responses(responses),
        failed,
    }
}

/// Why a transactional producer gets nowhere: not permitted, or not here.
fn transactional(ctx: &Context, id: &str) -> Option<KafkaError> {
    if ctx.allows(Operation::Write, ResourceType::TransactionalId, id) {
        Some(KafkaError::InvalidTxnState)
    } else {
        Some(KafkaError::TransactionalIdAuthorizationFailed)
    }
}

fn find<'a>(ctx: &'a Context, data: &TopicProduceData) -> Result<&'a Topic, KafkaError> {
    if ctx.version < BY_ID {
        return ctx
            .topic(Operation::Write, &data.name)
            .map(|topic| &**topic);
    }
    let topic = ctx
        .image
        .topics
        .get(palisade_log::TopicId(data.topic_id))
        .ok_or(KafkaError::UnknownTopicId)?;
    if ctx.allows(Operation::Write, ResourceType::Topic, &topic.name) {
        Ok(topic)
    } else {
        Err(KafkaError::TopicAuthorizationFailed)
    }
}

fn begin(
    ctx: &Context,
    topic: &Topic,
    partition: PartitionProduceData,
    acks: Acks,
) -> Outcome<impl Future<Output = Result<Appended, DataError>> + use<>> {
    let index = match ctx.partition(topic, partition.index) {
        Ok(index) => index,
        Err(error) => return Outcome::Known(error, None),
    };
    match partition.records {
        Some(records) if !records.is_empty() => {
            Outcome::Pending(ctx.broker.data.produce(topic.id, index, records, acks))
        }
        _ => Outcome::Known(
            KafkaError::InvalidRecord,
            Some("the request holds no record batch for the partition".to_owned()),
        ),
    }
}

async fn finish<F: Future<Output = Result<Appended, DataError>>>(
    outcome: Outcome<F>,
    deadline: Instant,
) -> Result<Appended, (KafkaError, Option<String>)> {
    match outcome {
        Outcome::Known(error, message) => Err((error, message)),
        Outcome::Pending(append) => match timeout_at(deadline, append).await {
            Ok(Ok(appended)) => Ok(appended),
            Ok(Err(error)) => Err((of_data(&error), Some(error.to_string()))),
            Err(_) => Err((KafkaError::RequestTimedOut, None)),
        },
    }
}

fn answer(
    ctx: &Context,
    index: i32,
    result: Result<Appended, (KafkaError, Option<String>)>,
) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(index);
    match result {
        Ok(appended) => response
            .with_base_offset(appended.base_offset.0)
            .with_log_append_time_ms(appended.log_append_time.unwrap_or(-1))
            .with_log_start_offset(appended.log_start_offset.0),
        Err((error, message)) => response
            .with_error_code(ctx.code(error))
            .with_error_message(message.map(Into::into))
            .with_base_offset(-1)
            .with_log_append_time_ms(-1)
            .with_log_start_offset(-1),
    }
}

#[expect(clippy::cast_precision_loss, reason = "no request has 2^52 bytes")]
fn charge(ctx: &Context, bytes: usize) {
    ctx.broker.metrics.produce_bytes.inc_by(bytes as u64);
    if let Some(client) = ctx.client() {
        let wait = ctx.broker.quotas.record(
            &ctx.image.quotas,
            client,
            QuotaKey::ProducerByteRate,
            bytes as f64,
        );
        ctx.broker
            .metrics
            .throttled(QuotaKey::ProducerByteRate.as_str(), wait);
        ctx.throttle(wait);
    }
}
