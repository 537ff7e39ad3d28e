//! DescribeConfigs (32), IncrementalAlterConfigs (44), AlterConfigs (33) and ListConfigResources (74).
//!
//! Topics have configs of their own; the brokers share dynamic defaults for them (resource `""`). What a broker reads from its
//! configuration file is not among them. One broker alone has a single config, [`super::draining`].

use std::collections::HashSet;

use kafka_protocol::{
    messages::{
        AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
        IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
        ListConfigResourcesRequest, ListConfigResourcesResponse, alter_configs_response,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::{
            DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
        },
        incremental_alter_configs_response,
        list_config_resources_response::ConfigResource as ListedResource,
    },
    protocol::StrBytes,
};
use palisade_metadata::{
    ConfigOp, ConfigResource, MetadataCommand,
    config::{ConfigDefinition, Effective, Source, TOPIC_CONFIGS},
};
use palisade_security::acl::{Operation, ResourceType};
use tracing::info;

use super::{Context, draining};
use crate::kafka_error::{KafkaError, of_change, of_metadata};

/// Kafka's codes of config resources.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// Kafka's codes of sources.
const SOURCE_BROKERS: i8 = 3;
const SOURCE_DEFAULT: i8 = 5;
/// Kafka's codes of incremental operations.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

pub(super) type Refusal = (KafkaError, String);

pub(super) fn plain(error: KafkaError) -> Refusal {
    (error, error.to_string())
}

pub(crate) fn describe(ctx: &Context, request: &DescribeConfigsRequest) -> DescribeConfigsResponse {
    let mut seen = HashSet::new();
    let results = request
        .resources
        .iter()
        .filter(|resource| seen.insert((resource.resource_type, &resource.resource_name)))
        .map(|resource| {
            let result = DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone());
            match describe_one(ctx, resource, request) {
                Ok(configs) => result.with_configs(configs),
                Err((error, message)) => result
                    .with_error_code(ctx.code(error))
                    .with_error_message(Some(message.into())),
            }
        })
        .collect();
    DescribeConfigsResponse::default().with_results(results)
}

fn describe_one(
    ctx: &Context,
    resource: &DescribeConfigsResource,
    request: &DescribeConfigsRequest,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    let wanted = |name: &str| match &resource.configuration_keys {
        None => true,
        // Kafka takes an empty list for all as well.
        Some(keys) => keys.is_empty() || keys.iter().any(|key| &**key == name),
    };
    match resource.resource_type {
        TOPIC => {
            let name = resource.resource_name.as_str();
            if !ctx.allows(Operation::DescribeConfigs, ResourceType::Topic, name) {
                return Err(plain(KafkaError::TopicAuthorizationFailed));
            }
            let topic = ctx
                .image
                .topics
                .by_name(name)
                .ok_or_else(|| plain(KafkaError::UnknownTopicOrPartition))?;
            Ok(ctx
                .image
                .topic_configs(topic)
                .filter(|effective| wanted(effective.definition.name))
                .map(|effective| topic_config(ctx, &effective, request))
                .collect())
        }
        BROKER => {
            if !ctx.allows_cluster(Operation::DescribeConfigs) {
                return Err(plain(KafkaError::ClusterAuthorizationFailed));
            }
            let broker = broker_resource(ctx, &resource.resource_name)?;
            Ok(TOPIC_CONFIGS
                .iter()
                .filter_map(|definition| broker_config(ctx, definition, broker.is_none(), request))
                .chain(broker.map(|broker| draining::describe(ctx, broker, request)))
                .filter(|config| wanted(&config.name))
                .collect())
        }
        other => Err((
            KafkaError::InvalidRequest,
            format!("config resource type {other} is not supported"),
        )),
    }
}

/// The broker that a name means; `None` for all of them (the empty name).
fn broker_resource(ctx: &Context, name: &StrBytes) -> Result<Option<i32>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    match name.parse::<i32>() {
        Ok(id) if ctx.image.brokers.contains_key(&id) => Ok(Some(id)),
        Ok(id) => Err((
            KafkaError::InvalidRequest,
            format!("there is no broker {id}"),
        )),
        Err(_) => Err((
            KafkaError::InvalidRequest,
            format!("{name:?} is no broker id"),
        )),
    }
}

fn topic_config(
    ctx: &Context,
    effective: &Effective<'_>,
    request: &DescribeConfigsRequest,
) -> DescribeConfigsResourceResult {
    let definition = effective.definition;
    let mut synonyms = Vec::new();
    if request.include_synonyms {
        if effective.source == Source::Topic {
            synonyms.push(synonym(
                definition.name,
                effective.value,
                effective.source.code(),
            ));
        }
        synonyms.extend(defaults(ctx, definition));
    }
    config(
        definition.name,
        effective.value,
        effective.source.code(),
        definition,
        request,
    )
    .with_synonyms(synonyms)
}

/// The brokers' default and the built-in one, under the broker's name of the config.
fn defaults(ctx: &Context, definition: &ConfigDefinition) -> Vec<DescribeConfigsSynonym> {
    let Some(name) = definition.broker_name else {
        return Vec::new();
    };
    let dynamic = ctx.image.broker_configs.get(name);
    let mut synonyms: Vec<_> = dynamic
        .map(|value| synonym(name, value, SOURCE_BROKERS))
        .into_iter()
        .collect();
    synonyms.push(synonym(name, definition.default, SOURCE_DEFAULT));
    synonyms
}

/// A broker's view of a config; of all brokers together only what has been set for them.
fn broker_config(
    ctx: &Context,
    definition: &ConfigDefinition,
    whole: bool,
    request: &DescribeConfigsRequest,
) -> Option<DescribeConfigsResourceResult> {
    let name = definition.broker_name?;
    let (value, source) = match ctx.image.broker_configs.get(name) {
        Some(value) => (value.as_str(), SOURCE_BROKERS),
        None if whole => return None,
        None => (definition.default, SOURCE_DEFAULT),
    };
    let synonyms = if request.include_synonyms {
        defaults(ctx, definition)
    } else {
        Vec::new()
    };
    Some(config(name, value, source, definition, request).with_synonyms(synonyms))
}

fn synonym(name: &str, value: &str, source: i8) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default()
        .with_name(name.to_owned().into())
        .with_value(Some(value.to_owned().into()))
        .with_source(source)
}

fn config(
    name: &str,
    value: &str,
    source: i8,
    definition: &ConfigDefinition,
    request: &DescribeConfigsRequest,
) -> DescribeConfigsResourceResult {
    let documentation = request.include_documentation.then(|| definition.doc.into());
    DescribeConfigsResourceResult::default()
        .with_name(name.to_owned().into())
        .with_value(Some(value.to_owned().into()))
        .with_config_source(source)
        .with_config_type(definition.kind.code())
        .with_documentation(documentation)
}

/// A change of one resource, not yet decided.
struct Change {
    resource_type: i8,
    name: StrBytes,
    /// The request names the resource more than once.
    repeated: bool,
    replace: bool,
    ops: Result<Vec<ConfigOp>, Refusal>,
}

async fn alter(ctx: &Context, change: Change, validate_only: bool) -> Result<(), Refusal> {
    if change.repeated {
        let message = "Each resource must appear at most once.";
        return Err((KafkaError::InvalidRequest, message.to_owned()));
    }
    let resource = match change.resource_type {
        TOPIC => {
            if !ctx.allows(Operation::AlterConfigs, ResourceType::Topic, &change.name) {
                return Err(plain(KafkaError::TopicAuthorizationFailed));
            }
            let topic = ctx.image.topics.by_name(&change.name);
            let topic = topic.ok_or_else(|| plain(KafkaError::UnknownTopicOrPartition))?;
            ConfigResource::Topic(topic.id)
        }
        BROKER => {
            if !ctx.allows_cluster(Operation::AlterConfigs) {
                return Err(plain(KafkaError::ClusterAuthorizationFailed));
            }
            if let Some(broker) = broker_resource(ctx, &change.name)? {
                let ops = change.ops?;
                return draining::alter(ctx, broker, change.replace, &ops, validate_only).await;
            }
            ConfigResource::Brokers
        }
        other => {
            let message = format!("config resource type {other} is not supported");
            return Err((KafkaError::InvalidRequest, message));
        }
    };
    let ops = change.ops?;
    info!(by = %ctx.session.principal, %resource, ?ops, validate_only, "changing configs");
    let command = MetadataCommand::AlterConfigs {
        resource,
        replace: change.replace,
        ops,
    };
    if validate_only {
        let admitted = ctx.broker.image().admit(&command);
        admitted.map_err(|error| (of_metadata(&error), error.to_string()))?;
    } else {
        let changed = ctx.broker.change(&command).await;
        changed.map_err(|error| (of_change(&error), error.to_string()))?;
    }
    Ok(())
}

/// The resources that a request names more than once: which of the changes is meant cannot be told.
fn repeated<'a>(named: impl Iterator<Item = (i8, &'a StrBytes)>) -> HashSet<(i8, StrBytes)> {
    let mut seen = HashSet::new();
    named
        .filter(|resource| !seen.insert(*resource))
        .map(|(kind, name)| (kind, name.clone()))
        .collect()
}

pub(crate) async fn incremental_alter(
    ctx: &Context,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let named = request.resources.iter();
    let repeated = repeated(named.map(|named| (named.resource_type, &named.resource_name)));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let ops = resource
            .configs
            .iter()
            .map(|config| {
                let name = config.name.to_string();
                let value = config.value.as_ref().map(StrBytes::to_string);
                match (config.config_operation, value) {
                    (DELETE, _) => Ok(ConfigOp::Delete { name }),
                    (SET, Some(value)) => Ok(ConfigOp::Set { name, value }),
                    (APPEND, Some(value)) => Ok(ConfigOp::Append { name, value }),
                    (SUBTRACT, Some(value)) => Ok(ConfigOp::Subtract { name, value }),
                    (SET..=SUBTRACT, None) => Err((
                        KafkaError::InvalidRequest,
                        format!("Null value not supported for {name}"),
                    )),
                    (other, _) => Err((
                        KafkaError::InvalidRequest,
                        format!("unknown config operation {other}"),
                    )),
                }
            })
            .collect();
        let name = resource.resource_name.clone();
        let change = Change {
            resource_type: resource.resource_type,
            repeated: repeated.contains(&(resource.resource_type, name.clone())),
            name,
            replace: false,
            ops,
        };
        let outcome = alter(ctx, change, request.validate_only).await;
        let response = incremental_alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        responses.push(match outcome {
            Ok(()) => response,
            Err((error, message)) => response
                .with_error_code(ctx.code(error))
                .with_error_message(Some(message.into())),
        });
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

/// The older API: what is not named goes back to its default.
pub(crate) async fn replace(ctx: &Context, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let named = request.resources.iter();
    let repeated = repeated(named.map(|named| (named.resource_type, &named.resource_name)));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let ops = resource
            .configs
            .iter()
            .map(|config| match &config.value {
                Some(value) => Ok(ConfigOp::Set {
                    name: config.name.to_string(),
                    value: value.to_string(),
                }),
                None => Err((
                    KafkaError::InvalidRequest,
                    format!("Null value not supported for {}", config.name),
                )),
            })
            .collect();
        let name = resource.resource_name.clone();
        let change = Change {
            resource_type: resource.resource_type,
            repeated: repeated.contains(&(resource.resource_type, name.clone())),
            name,
            replace: true,
            ops,
        };
        let outcome = alter(ctx, change, request.validate_only).await;
        let response = alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        responses.push(match outcome {
            Ok(()) => response,
            Err((error, message)) => response
                .with_error_code(ctx.code(error))
                .with_error_message(Some(message.into())),
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}

/// Resources that can have configs. Version 0 asks for client metrics only, of which there are none.
pub(crate) fn list(
    ctx: &Context,
    request: &ListConfigResourcesRequest,
) -> ListConfigResourcesResponse {
    let response = ListConfigResourcesResponse::default();
    if !ctx.allows_cluster(Operation::DescribeConfigs) {
        return response.with_error_code(ctx.code(KafkaError::ClusterAuthorizationFailed));
    }
    if ctx.version == 0 {
        return response;
    }
    let wanted =
        |code: i8| request.resource_types.is_empty() || request.resource_types.contains(&code);
    let listed = |name: String, code| {
        ListedResource::default()
            .with_resource_name(name.into())
            .with_resource_type(code)
    };
    let mut resources = Vec::new();
    if wanted(TOPIC) {
        resources.extend(
            ctx.image
                .topics
                .iter()
                .map(|topic| listed(topic.name.clone(), TOPIC)),
        );
    }
    if wanted(BROKER) {
        resources.extend(
            ctx.image
                .brokers
                .keys()
                .map(|id| listed(id.to_string(), BROKER)),
        );
    }
    response.with_config_resources(resources)
}
