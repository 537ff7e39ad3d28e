//! CreateTopics (19).

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse,
    create_topics_request::CreatableTopic,
    create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
};
use palisade_data::dek_context;
use palisade_log::TopicId;
use palisade_metadata::{
    Image, MetadataCommand, MetadataError,
    config::{Effective, TOPIC_CONFIGS},
    topic_name::check_topic_name,
};
use palisade_seal::SecretKey;
use palisade_security::acl::{CLUSTER_NAME, Operation, ResourceType};

use super::{Context, mutation};
use crate::{
    cluster::ChangeError,
    kafka_error::{KafkaError, of_change, of_metadata},
};

/// Partitions of a topic for which the request names no number.
const DEFAULT_PARTITIONS: u32 = 1;
/// First version whose clients understand `THROTTLING_QUOTA_EXCEEDED` (KIP-599).
const STRICT_QUOTA: i16 = 6;

type Refusal = (KafkaError, Option<String>);

pub(crate) async fn handle(ctx: &Context, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let mut seen = BTreeSet::new();
    let mut twice = BTreeSet::new();
    for topic in &request.topics {
        if !seen.insert(topic.name.as_str()) {
            twice.insert(topic.name.clone());
        }
    }
    let mut answered = BTreeSet::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        if twice.contains(&topic.name) {
            if answered.insert(topic.name.clone()) {
                let refusal = (
                    KafkaError::InvalidRequest,
                    Some("Duplicate topic name.".to_owned()),
                );
                topics.push(refused(ctx, &topic, refusal));
            }
            continue;
        }
        let created = match authorized(ctx, &topic) {
            Ok(()) => create(ctx, &topic, request.validate_only).await,
            Err(refusal) => Err(refusal),
        };
        topics.push(created.unwrap_or_else(|refusal| refused(ctx, &topic, refusal)));
    }
    CreateTopicsResponse::default().with_topics(topics)
}

fn refused(
    ctx: &Context,
    topic: &CreatableTopic,
    (error, message): Refusal,
) -> CreatableTopicResult {
    CreatableTopicResult::default()
        .with_name(topic.name.clone())
        .with_error_code(ctx.code(error))
        .with_error_message(message.map(Into::into))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_configs(Some(Vec::new()))
}

fn authorized(ctx: &Context, topic: &CreatableTopic) -> Result<(), Refusal> {
    let allowed = ctx.shows(Operation::Create, ResourceType::Cluster, CLUSTER_NAME)
        || ctx.allows(Operation::Create, ResourceType::Topic, &topic.name);
    if allowed {
        Ok(())
    } else {
        Err((
            KafkaError::TopicAuthorizationFailed,
            Some("Authorization failed.".to_owned()),
        ))
    }
}

async fn create(
    ctx: &Context,
    topic: &CreatableTopic,
    validate_only: bool,
) -> Result<CreatableTopicResult, Refusal> {
    check_topic_name(&topic.name)
        .map_err(|error| (KafkaError::InvalidTopicException, Some(error.to_string())))?;
    let image = ctx.broker.image();
    // Before anything else that may be wrong: clients take this answer for success.
    if image.topics.by_name(&topic.name).is_some() {
        let message = format!("Topic '{}' already exists.", topic.name.as_str());
        return Err((KafkaError::TopicAlreadyExists, Some(message)));
    }
    let (partitions, replication_factor) = shape(ctx, topic)?;
    let config = overrides(topic)?;
    let id = TopicId::random();
    let keys_failed = |error| {
        let error = ChangeError::Keys(error);
        (of_change(&error), Some(error.to_string()))
    };
    let dek = SecretKey::generate().map_err(keys_failed)?;
    let dek = ctx
        .broker
        .provider
        .wrap(&dek, &dek_context(id))
        .map_err(keys_failed)?;
    let command = MetadataCommand::CreateTopic {
        name: topic.name.to_string(),
        id,
        partitions,
        replication_factor,
        config: config.clone(),
        dek,
    };
    // First: a topic that is refused costs its client nothing, and shards that are made for one stay when it is refused after all.
    validate(ctx, &image, replication_factor, &command)
        .map_err(|error| (of_metadata(&error), Some(error.to_string())))?;
    if !validate_only {
        mutation(ctx, partitions, ctx.version >= STRICT_QUOTA)?;
        prepare_pool(ctx, replication_factor).await?;
        ctx.broker
            .change(&command)
            .await
            .map_err(|error| (of_change(&error), Some(error.to_string())))?;
    }
    let result = CreatableTopicResult::default()
        .with_name(topic.name.clone())
        .with_topic_id(if validate_only {
            uuid::Uuid::nil()
        } else {
            id.0
        });
    Ok(
        if ctx.shows(Operation::DescribeConfigs, ResourceType::Topic, &topic.name) {
            let effective = TOPIC_CONFIGS
                .iter()
                .map(|definition| shown(&definition.effective(&config, &ctx.image.broker_configs)))
                .collect();
            result
                .with_num_partitions(i32::try_from(partitions).unwrap_or(i32::MAX))
                .with_replication_factor(i16::try_from(replication_factor).unwrap_or(i16::MAX))
                .with_configs(Some(effective))
        } else {
            let result = result
                .with_num_partitions(-1)
                .with_replication_factor(-1)
                .with_configs(Some(Vec::new()));
            if ctx.version >= 5 {
                result.with_topic_config_error_code(KafkaError::TopicAuthorizationFailed.code())
            } else {
                result
            }
        },
    )
}

/// The configuration overrides that the request names.
fn overrides(topic: &CreatableTopic) -> Result<BTreeMap<String, String>, Refusal> {
    let (mut overrides, mut null) = (BTreeMap::new(), Vec::new());
    for config in &topic.configs {
        match &config.value {
            Some(value) => drop(overrides.insert(config.name.to_string(), value.to_string())),
            None => null.push(config.name.as_str()),
        }
    }
    if null.is_empty() {
        return Ok(overrides);
    }
    let message = format!(
        "Null value not supported for topic configs: {}",
        null.join(", ")
    );
    Err((KafkaError::InvalidConfig, Some(message)))
}

/// What creating would answer, with the shards that it would make first.
fn validate(
    ctx: &Context,
    image: &Image,
    replication_factor: u16,
    command: &MetadataCommand,
) -> Result<(), MetadataError> {
    if image.pools.contains_key(&replication_factor) {
        return image.admit(command).map(drop);
    }
    let mut image = image.clone();
    let pool = new_pool(ctx, &image, replication_factor)?;
    image.apply(pool)?;
    image.admit(command).map(drop)
}

/// The command that makes the shards for topics of this replication factor: on brokers that can form them now, when these are enough.
fn new_pool(
    ctx: &Context,
    image: &Image,
    replication_factor: u16,
) -> Result<MetadataCommand, MetadataError> {
    let able = ctx.broker.cluster.able();
    image.new_pool_among(replication_factor, false, |broker| able.contains(&broker))
}

/// As many as the shards that keep committed offsets have: three, where there are as many brokers.
fn default_replication_factor(image: &Image) -> u16 {
    let shard = image
        .cluster
        .as_ref()
        .and_then(|cluster| cluster.group_shards.first());
    shard
        .and_then(|shard| image.shards.get(shard))
        .map_or(1, |shard| shard.replication_factor)
}

/// Makes the shards for topics of this replication factor, if there are none yet.
async fn prepare_pool(ctx: &Context, replication_factor: u16) -> Result<(), Refusal> {
    let image = ctx.broker.image();
    if image.pools.contains_key(&replication_factor) {
        return Ok(());
    }
    let pool = new_pool(ctx, &image, replication_factor)
        .map_err(|error| (of_metadata(&error), Some(error.to_string())))?;
    ctx.broker
        .change(&pool)
        .await
        .map(drop)
        .map_err(|error| (of_change(&error), Some(error.to_string())))
}

fn shown(effective: &Effective<'_>) -> CreatableTopicConfigs {
    CreatableTopicConfigs::default()
        .with_name(effective.definition.name.into())
        .with_value(Some(effective.value.to_owned().into()))
        .with_config_source(effective.source.code())
}

/// Partitions and replicas, by number or by an assignment to brokers.
fn shape(ctx: &Context, topic: &CreatableTopic) -> Result<(u32, u16), Refusal> {
    if topic.assignments.is_empty() {
        let partitions = match topic.num_partitions {
            -1 => DEFAULT_PARTITIONS,
            number => u32::try_from(number)
                .ok()
                .filter(|number| *number > 0)
                .ok_or_else(|| {
                    let message = "Number of partitions was set to an invalid non-positive value.";
                    (KafkaError::InvalidPartitions, Some(message.to_owned()))
                })?,
        };
        let replicas = match topic.replication_factor {
            // As many as the cluster keeps of its own data.
            -1 => default_replication_factor(&ctx.image),
            number => u16::try_from(number)
                .ok()
                .filter(|number| *number > 0)
                .ok_or_else(|| {
                    let message =
                        "Replication factor must be larger than 0, or -1 to use the default value.";
                    (
                        KafkaError::InvalidReplicationFactor,
                        Some(message.to_owned()),
                    )
                })?,
        };
        return Ok((partitions, replicas));
    }
    let invalid = |message: &str| {
        (
            KafkaError::InvalidReplicaAssignment,
            Some(message.to_owned()),
        )
    };
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        let message = "A manual partition assignment was specified, but numPartitions or replicationFactor was not set to -1.";
        return Err((KafkaError::InvalidRequest, Some(message.to_owned())));
    }
    let indexes: BTreeSet<i32> = topic
        .assignments
        .iter()
        .map(|assigned| assigned.partition_index)
        .collect();
    let count = topic.assignments.len();
    let consecutive = (0..).zip(&indexes).all(|(wanted, index)| wanted == *index);
    if indexes.len() != count || !consecutive {
        return Err(invalid(
            "partitions should be a consecutive 0-based integer sequence",
        ));
    }
    let replicas = topic
        .assignments
        .first()
        .map_or(0, |assigned| assigned.broker_ids.len());
    for assigned in &topic.assignments {
        let distinct: BTreeSet<i32> = assigned.broker_ids.iter().map(|id| id.0).collect();
        if assigned.broker_ids.len() != replicas || replicas == 0 || distinct.len() != replicas {
            return Err(invalid(
                "every partition needs the same number of distinct replicas",
            ));
        }
        if let Some(unknown) = distinct
            .iter()
            .find(|id| !ctx.image.brokers.contains_key(*id))
        {
            return Err(invalid(&format!("broker {unknown} is not registered")));
        }
    }
    let too_many = |_| invalid("too many partitions or replicas");
    Ok((
        u32::try_from(count).map_err(too_many)?,
        u16::try_from(replicas).map_err(|_| invalid("too many replicas"))?,
    ))
}
