//! DescribeClientQuotas (48) and AlterClientQuotas (49).

use std::collections::BTreeMap;

use kafka_protocol::{
    messages::{
        AlterClientQuotasRequest, AlterClientQuotasResponse, DescribeClientQuotasRequest,
        DescribeClientQuotasResponse, alter_client_quotas_request as alter_request,
        alter_client_quotas_response as alter_response,
        describe_client_quotas_request::ComponentData,
        describe_client_quotas_response::{EntityData, EntryData, ValueData},
    },
    protocol::StrBytes,
};
use palisade_metadata::{MetadataCommand, MetadataError};
use palisade_security::{
    acl::Operation,
    quota::{QuotaEntity, QuotaKey},
};
use tracing::info;

use super::Context;
use crate::kafka_error::{KafkaError, of_change, of_metadata};

/// How a component of a filter compares (KIP-546).
const MATCH_EXACT: i8 = 0;
const MATCH_DEFAULT: i8 = 1;
const MATCH_SPECIFIED: i8 = 2;
const ENTITY_TYPES: [&str; 3] = ["user", "client-id", "ip"];

pub(crate) fn describe(
    ctx: &Context,
    request: &DescribeClientQuotasRequest,
) -> DescribeClientQuotasResponse {
    let failed = |error: KafkaError, message: String| {
        DescribeClientQuotasResponse::default()
            .with_error_code(ctx.code(error))
            .with_error_message(Some(message.into()))
            .with_entries(None)
    };
    if !ctx.allows_cluster(Operation::DescribeConfigs) {
        let error = KafkaError::ClusterAuthorizationFailed;
        return failed(error, error.to_string());
    }
    let mut components = BTreeMap::new();
    for component in &request.components {
        let kind = component.entity_type.as_str();
        if !ENTITY_TYPES.contains(&kind) {
            return failed(
                KafkaError::UnsupportedVersion,
                format!("Unsupported entity type: {kind:?}"),
            );
        }
        if !(MATCH_EXACT..=MATCH_SPECIFIED).contains(&component.match_type) {
            return failed(
                KafkaError::InvalidRequest,
                format!("Unknown match type {}", component.match_type),
            );
        }
        if components.insert(kind, component).is_some() {
            return failed(
                KafkaError::InvalidRequest,
                format!("Entity type {kind} cannot appear more than once in the filter"),
            );
        }
    }
    let entries = ctx
        .image
        .quotas
        .iter()
        .filter(|(entity, _)| selects(&components, request.strict, entity))
        .map(|(entity, values)| {
            let values = values
                .iter()
                .map(|(key, value)| {
                    ValueData::default()
                        .with_key(key.as_str().into())
                        .with_value(*value)
                })
                .collect();
            let parts = entity
                .parts()
                .into_iter()
                .map(|(kind, name)| {
                    EntityData::default()
                        .with_entity_type(kind.into())
                        .with_entity_name(name.map(|name| name.to_owned().into()))
                })
                .collect();
            EntryData::default().with_entity(parts).with_values(values)
        })
        .collect();
    DescribeClientQuotasResponse::default().with_entries(Some(entries))
}

/// Whether a filter selects an entity: every component must fit; a strict filter wants no further part.
fn selects(
    components: &BTreeMap<&str, &ComponentData>,
    strict: bool,
    entity: &QuotaEntity,
) -> bool {
    let parts: BTreeMap<&str, Option<&str>> = entity.parts().into_iter().collect();
    if strict && parts.len() != components.len() {
        return false;
    }
    components
        .iter()
        .all(|(kind, component)| match parts.get(kind) {
            None => false,
            Some(name) => match component.match_type {
                MATCH_EXACT => *name == component._match.as_deref(),
                MATCH_DEFAULT => name.is_none(),
                _ => true,
            },
        })
}

pub(crate) async fn alter(
    ctx: &Context,
    request: AlterClientQuotasRequest,
) -> AlterClientQuotasResponse {
    let forbidden = !ctx.allows_cluster(Operation::AlterConfigs);
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let outcome = if forbidden {
            let error = KafkaError::ClusterAuthorizationFailed;
            Err((error, error.to_string()))
        } else {
            alter_one(ctx, &entry, request.validate_only).await
        };
        let entity = entry
            .entity
            .into_iter()
            .map(|part| {
                alter_response::EntityData::default()
                    .with_entity_type(part.entity_type)
                    .with_entity_name(part.entity_name)
            })
            .collect();
        let answer = alter_response::EntryData::default().with_entity(entity);
        entries.push(match outcome {
            Ok(()) => answer,
            Err((error, message)) => answer
                .with_error_code(ctx.code(error))
                .with_error_message(Some(message.into())),
        });
    }
    AlterClientQuotasResponse::default().with_entries(entries)
}

async fn alter_one(
    ctx: &Context,
    entry: &alter_request::EntryData,
    validate_only: bool,
) -> Result<(), (KafkaError, String)> {
    let refused = |error: MetadataError| (of_metadata(&error), error.to_string());
    let parts = entry.entity.iter().map(|part| {
        (
            part.entity_type.to_string(),
            part.entity_name.as_ref().map(StrBytes::to_string),
        )
    });
    let entity = QuotaEntity::from_parts(parts).map_err(|error| refused(error.into()))?;
    let mut changes = Vec::with_capacity(entry.ops.len());
    for op in &entry.ops {
        let key = QuotaKey::from_name(&op.key).ok_or_else(|| {
            (
                KafkaError::InvalidRequest,
                format!("Invalid configuration key {:?}", op.key),
            )
        })?;
        changes.push((key, (!op.remove).then_some(op.value)));
    }
    info!(by = %ctx.session.principal, ?entity, ?changes, validate_only, "changing quotas");
    let command = MetadataCommand::AlterQuotas { entity, changes };
    if validate_only {
        ctx.broker.image().admit(&command).map_err(refused)?;
    } else {
        let changed = ctx.broker.change(&command).await;
        changed.map_err(|error| (of_change(&error), error.to_string()))?;
    }
    Ok(())
}
