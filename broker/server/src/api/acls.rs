//! DescribeAcls (29), CreateAcls (30) and DeleteAcls (31).

use std::collections::BTreeMap;

use kafka_protocol::messages::{
    CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse,
    DescribeAclsRequest, DescribeAclsResponse,
    create_acls_request::AclCreation,
    create_acls_response::AclCreationResult,
    delete_acls_request::DeleteAclsFilter,
    delete_acls_response::{DeleteAclsFilterResult, DeleteAclsMatchingAcl},
    describe_acls_response::{AclDescription, DescribeAclsResource},
};
use palisade_metadata::{MetadataCommand, MetadataResponse};
use palisade_security::acl::{AclBinding, AclFilter, BindingError, FilterError, Operation};
use tracing::info;

use super::Context;
use crate::kafka_error::{KafkaError, of_change};

pub(crate) fn describe(ctx: &Context, request: &DescribeAclsRequest) -> DescribeAclsResponse {
    let failed = |error, message: Option<String>| {
        DescribeAclsResponse::default()
            .with_error_code(ctx.code(error))
            .with_error_message(message.map(Into::into))
    };
    if !ctx.allows_cluster(Operation::Describe) {
        return failed(KafkaError::ClusterAuthorizationFailed, None);
    }
    let filter = AclFilter::from_codes(
        request.resource_type_filter,
        request
            .resource_name_filter
            .as_ref()
            .map(ToString::to_string),
        request.pattern_type_filter,
        request.principal_filter.as_ref().map(ToString::to_string),
        request.host_filter.as_ref().map(ToString::to_string),
        request.operation,
        request.permission_type,
    );
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => return failed(KafkaError::InvalidRequest, Some(error.to_string())),
    };
    let mut resources: BTreeMap<(i8, &str, i8), Vec<AclDescription>> = BTreeMap::new();
    for binding in ctx.image.acls.matching(&filter) {
        let resource = (
            binding.resource_type.code(),
            binding.resource_name.as_str(),
            binding.pattern.code(),
        );
        resources.entry(resource).or_default().push(
            AclDescription::default()
                .with_principal(binding.principal.clone().into())
                .with_host(binding.host.clone().into())
                .with_operation(binding.operation.code())
                .with_permission_type(binding.permission.code()),
        );
    }
    let resources = resources
        .into_iter()
        .map(|((resource_type, name, pattern), acls)| {
            DescribeAclsResource::default()
                .with_resource_type(resource_type)
                .with_resource_name(name.to_owned().into())
                .with_pattern_type(pattern)
                .with_acls(acls)
        })
        .collect();
    DescribeAclsResponse::default().with_resources(resources)
}

pub(crate) async fn create(ctx: &Context, request: CreateAclsRequest) -> CreateAclsResponse {
    let forbidden = !ctx.allows_cluster(Operation::Alter);
    let parsed: Vec<Result<AclBinding, (KafkaError, String)>> = request
        .creations
        .iter()
        .map(|creation| {
            if forbidden {
                let error = KafkaError::ClusterAuthorizationFailed;
                return Err((error, error.to_string()));
            }
            binding(creation).map_err(|error| (KafkaError::InvalidRequest, error.to_string()))
        })
        .collect();
    // What is right is added although other parts are wrong, as in Kafka.
    let bindings: Vec<AclBinding> = parsed.iter().flatten().cloned().collect();
    let changed = if bindings.is_empty() {
        Ok(())
    } else {
        for binding in &bindings {
            info!(by = %ctx.session.principal, ?binding, "adding an ACL");
        }
        let command = MetadataCommand::CreateAcls { bindings };
        ctx.broker.change(&command).await.map(drop)
    };
    let results = parsed
        .into_iter()
        .map(|parsed| {
            let outcome = match (parsed, &changed) {
                (Err(refusal), _) => Err(refusal),
                (Ok(_), Err(error)) => Err((of_change(error), error.to_string())),
                (Ok(_), Ok(())) => Ok(()),
            };
            match outcome {
                Ok(()) => AclCreationResult::default(),
                Err((error, message)) => AclCreationResult::default()
                    .with_error_code(ctx.code(error))
                    .with_error_message(Some(message.into())),
            }
        })
        .collect();
    CreateAclsResponse::default().with_results(results)
}

fn binding(creation: &AclCreation) -> Result<AclBinding, BindingError> {
    AclBinding::from_codes(
        creation.resource_type,
        creation.resource_name.to_string(),
        creation.resource_pattern_type,
        creation.principal.to_string(),
        creation.host.to_string(),
        creation.operation,
        creation.permission_type,
    )
}

pub(crate) async fn delete(ctx: &Context, request: DeleteAclsRequest) -> DeleteAclsResponse {
    let failed = |error: KafkaError, message: String| {
        DeleteAclsFilterResult::default()
            .with_error_code(ctx.code(error))
            .with_error_message(Some(message.into()))
    };
    if !ctx.allows_cluster(Operation::Alter) {
        let error = KafkaError::ClusterAuthorizationFailed;
        let results = request
            .filters
            .iter()
            .map(|_| failed(error, error.to_string()))
            .collect();
        return DeleteAclsResponse::default().with_filter_results(results);
    }
    let parsed: Vec<Result<AclFilter, FilterError>> = request.filters.iter().map(filter).collect();
    let filters: Vec<AclFilter> = parsed.iter().flatten().cloned().collect();
    for filter in &filters {
        info!(by = %ctx.session.principal, ?filter, "removing ACLs");
    }
    let command = MetadataCommand::DeleteAcls { filters };
    let mut removed = match ctx.broker.change(&command).await {
        Ok(MetadataResponse::AclsDeleted { removed }) => Ok(removed.into_iter()),
        Ok(_) => Ok(Vec::new().into_iter()),
        Err(error) => Err(error),
    };
    let results = parsed
        .into_iter()
        .map(|parsed| match (parsed, &mut removed) {
            (Err(error), _) => failed(KafkaError::InvalidRequest, error.to_string()),
            (Ok(_), Err(error)) => failed(of_change(error), error.to_string()),
            (Ok(_), Ok(removed)) => {
                let gone = removed.next().unwrap_or_default();
                DeleteAclsFilterResult::default()
                    .with_matching_acls(gone.iter().map(matching).collect())
            }
        })
        .collect();
    DeleteAclsResponse::default().with_filter_results(results)
}

fn filter(filter: &DeleteAclsFilter) -> Result<AclFilter, FilterError> {
    AclFilter::from_codes(
        filter.resource_type_filter,
        filter
            .resource_name_filter
            .as_ref()
            .map(ToString::to_string),
        filter.pattern_type_filter,
        filter.principal_filter.as_ref().map(ToString::to_string),
        filter.host_filter.as_ref().map(ToString::to_string),
        filter.operation,
        filter.permission_type,
    )
}

fn matching(binding: &AclBinding) -> DeleteAclsMatchingAcl {
    DeleteAclsMatchingAcl::default()
        .with_resource_type(binding.resource_type.code())
        .with_resource_name(binding.resource_name.clone().into())
        .with_pattern_type(binding.pattern.code())
        .with_principal(binding.principal.clone().into())
        .with_host(binding.host.clone().into())
        .with_operation(binding.operation.code())
        .with_permission_type(binding.permission.code())
}
