//! DeleteTopics (20) and CreatePartitions (37).

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
    TopicName, create_partitions_request::CreatePartitionsTopic,
    create_partitions_response::CreatePartitionsTopicResult,
    delete_topics_request::DeleteTopicState, delete_topics_response::DeletableTopicResult,
};
use palisade_log::TopicId;
use palisade_metadata::{MetadataCommand, Topic};
use palisade_security::acl::{Operation, ResourceType};
use uuid::Uuid;

use super::{Context, mutation};
use crate::kafka_error::{KafkaError, of_change, of_metadata};

/// First version of DeleteTopics that may name topics by id.
const DELETE_BY_ID: i16 = 6;
/// First versions whose clients understand `THROTTLING_QUOTA_EXCEEDED` (KIP-599).
const DELETE_STRICT_QUOTA: i16 = 5;
const PARTITIONS_STRICT_QUOTA: i16 = 3;

type Refusal = (KafkaError, Option<String>);

pub(crate) async fn delete(ctx: &Context, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let asked: Vec<DeleteTopicState> = if ctx.version >= DELETE_BY_ID {
        request.topics
    } else {
        let names = request.topic_names.into_iter();
        names
            .map(|name| DeleteTopicState::default().with_name(Some(name)))
            .collect()
    };
    let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for state in &asked {
        // What is named in both ways, or in neither, is refused as such.
        let is_named = state.name.is_some() == state.topic_id.is_nil();
        if is_named && !seen.insert((&state.name, state.topic_id)) {
            twice.insert((state.name.clone(), state.topic_id));
        }
    }
    let mut answered = BTreeSet::new();
    let mut responses = Vec::with_capacity(asked.len());
    for state in asked {
        let result = DeletableTopicResult::default();
        let named = (state.name.clone(), state.topic_id);
        let outcome = if !twice.contains(&named) {
            delete_one(ctx, &state).await
        } else if answered.insert(named) {
            let message = match state.name {
                Some(_) => "Duplicate topic name.",
                None => "Duplicate topic id.",
            };
            Err((KafkaError::InvalidRequest, Some(message.to_owned())))
        } else {
            continue;
        };
        responses.push(match outcome {
            Ok(topic) => result
                .with_name(Some(TopicName(topic.name.clone().into())))
                .with_topic_id(topic.id.0),
            Err((error, message)) => result
                .with_name(state.name)
                .with_topic_id(state.topic_id)
                .with_error_code(ctx.code(error))
                .with_error_message(message.map(Into::into)),
        });
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

async fn delete_one<'a>(ctx: &'a Context, state: &DeleteTopicState) -> Result<&'a Topic, Refusal> {
    let forbidden = || {
        (
            KafkaError::TopicAuthorizationFailed,
            Some("Authorization failed.".to_owned()),
        )
    };
    let topic = match (&state.name, state.topic_id) {
        (Some(_), id) if !id.is_nil() => {
            let message = "a topic is named by its name or its id, not both";
            return Err((KafkaError::InvalidRequest, Some(message.to_owned())));
        }
        (None, id) if id == Uuid::nil() => {
            let message = "neither the name nor the id of a topic is given";
            return Err((KafkaError::InvalidRequest, Some(message.to_owned())));
        }
        (Some(name), _) => {
            // Whether a topic exists is told only to those who may describe it, and deleting implies describing.
            if !ctx.allows(Operation::Delete, ResourceType::Topic, name) {
                return Err(forbidden());
            }
            ctx.image
                .topics
                .by_name(name)
                .ok_or((KafkaError::UnknownTopicOrPartition, None))?
        }
        (None, id) => {
            let topic = ctx
                .image
                .topics
                .get(TopicId(id))
                .ok_or((KafkaError::UnknownTopicId, None))?;
            if !ctx.allows(Operation::Delete, ResourceType::Topic, &topic.name) {
                return Err(forbidden());
            }
            topic
        }
    };
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    mutation(ctx, partitions, ctx.version >= DELETE_STRICT_QUOTA)?;
    ctx.broker
        .change(&MetadataCommand::DeleteTopic { id: topic.id })
        .await
        .map_err(|error| (of_change(&error), Some(error.to_string())))?;
    Ok(topic)
}

pub(crate) async fn create_partitions(
    ctx: &Context,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let mut times: BTreeMap<TopicName, usize> = BTreeMap::new();
    for topic in &request.topics {
        *times.entry(topic.name.clone()).or_default() += 1;
    }
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let outcome = if times.get(&topic.name).is_some_and(|times| *times > 1) {
            Err((
                KafkaError::InvalidRequest,
                Some("Duplicate topic name.".to_owned()),
            ))
        } else {
            grow(ctx, &topic, request.validate_only).await
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name);
        results.push(match outcome {
            Ok(()) => result,
            Err((error, message)) => result
                .with_error_code(ctx.code(error))
                .with_error_message(message.map(Into::into)),
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

async fn grow(
    ctx: &Context,
    asked: &CreatePartitionsTopic,
    validate_only: bool,
) -> Result<(), Refusal> {
    let topic = ctx
        .topic(Operation::Alter, &asked.name)
        .map_err(|error| (error, None))?;
    let invalid = |message: String| (KafkaError::InvalidPartitions, Some(message));
    let present = topic.partitions.len();
    let total = u32::try_from(asked.count)
        .ok()
        .filter(|total| *total as usize > present)
        .ok_or_else(|| {
            invalid(format!(
                "The topic {} currently has {present} partition(s); {} would not be an increase.",
                topic.name, asked.count
            ))
        })?;
    let added = total as usize - present;
    if let Some(assignments) = &asked.assignments
        && assignments.len() != added
    {
        let message = format!(
            "Attempted to add {added} additional partition(s), but only {} assignment(s) were specified.",
            assignments.len()
        );
        return Err((KafkaError::InvalidReplicaAssignment, Some(message)));
    }
    let command = MetadataCommand::CreatePartitions {
        id: topic.id,
        total,
    };
    if validate_only {
        ctx.broker
            .image()
            .admit(&command)
            .map_err(|error| (of_metadata(&error), Some(error.to_string())))?;
        return Ok(());
    }
    mutation(
        ctx,
        u32::try_from(added).unwrap_or(u32::MAX),
        ctx.version >= PARTITIONS_STRICT_QUOTA,
    )?;
    ctx.broker
        .change(&command)
        .await
        .map_err(|error| (of_change(&error), Some(error.to_string())))?;
    Ok(())
}
