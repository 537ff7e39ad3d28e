//! Groups as administrators see them: DescribeGroups (15), ListGroups (16), DeleteGroups (42).

use std::collections::{BTreeMap, HashSet};

use kafka_protocol::{
    messages::{
        DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
        GroupId, ListGroupsRequest, ListGroupsResponse,
        delete_groups_response::DeletableGroupResult,
        describe_groups_response::{DescribedGroup, DescribedGroupMember},
        list_groups_response::ListedGroup,
    },
    protocol::StrBytes,
};
use palisade_coordinator::{
    group::{GroupDescription, GroupState},
    offsets::OffsetCommand,
};
use palisade_security::acl::{CLUSTER_NAME, Operation, ResourceType};

use super::{Context, groups::seat, offsets::coordinator};
use crate::kafka_error::{KafkaError, of_data, of_group};

/// First version in which a group that does not exist is an error and not a dead group (KIP-1043).
const NOT_FOUND: i16 = 6;
/// The protocol of all groups here.
const CLASSIC: &str = "classic";

/// Whether a group has members or committed offsets.
pub(crate) fn exists(ctx: &Context, group: &str) -> bool {
    is_kept(ctx, group)
        || ctx
            .broker
            .groups
            .with(|groups, _| groups.describe(group).is_some())
}

fn is_kept(ctx: &Context, group: &str) -> bool {
    ctx.broker
        .data
        .read_offsets(group, |store| store.contains(group))
        .unwrap_or(false)
}

pub(crate) fn describe(ctx: &Context, request: &DescribeGroupsRequest) -> DescribeGroupsResponse {
    let mut seen = HashSet::new();
    let groups = request
        .groups
        .iter()
        .filter(|group| seen.insert(*group))
        .map(|group| {
            let described = describe_one(ctx, group);
            let allowed = described.error_code == 0 && request.include_authorized_operations;
            if allowed {
                described.with_authorized_operations(ctx.operations(ResourceType::Group, group))
            } else {
                described
            }
        })
        .collect();
    DescribeGroupsResponse::default().with_groups(groups)
}

fn describe_one(ctx: &Context, group: &GroupId) -> DescribedGroup {
    let described = DescribedGroup::default().with_group_id(group.clone());
    if !ctx.allows(Operation::Describe, ResourceType::Group, group) {
        return described.with_error_code(ctx.code(KafkaError::GroupAuthorizationFailed));
    }
    let asked = seat(ctx, group).and_then(|seat| {
        let groups = &ctx.broker.groups;
        groups
            .ask(seat, |groups, _| Ok(groups.describe(group)))
            .map_err(of_group)
    });
    match asked {
        Ok(Some(found)) => return present(described, found),
        Ok(None) => {}
        Err(error) => return described.with_error_code(ctx.code(error)),
    }
    let state = if is_kept(ctx, group) {
        GroupState::Empty
    } else {
        GroupState::Dead
    };
    let described = described.with_group_state(state.as_str().into());
    if state == GroupState::Dead && ctx.version >= NOT_FOUND {
        let message = format!("Group {} not found.", group.as_str());
        return described
            .with_error_code(ctx.code(KafkaError::GroupIdNotFound))
            .with_error_message(Some(message.into()));
    }
    described
}

fn present(described: DescribedGroup, found: GroupDescription) -> DescribedGroup {
    let members = found
        .members
        .into_iter()
        .map(|member| {
            DescribedGroupMember::default()
                .with_member_id(member.member.into())
                .with_group_instance_id(member.instance.map(Into::into))
                .with_client_id(member.client_id.into())
                .with_client_host(member.client_host.into())
                .with_member_metadata(member.metadata)
                .with_member_assignment(member.assignment)
        })
        .collect();
    described
        .with_group_state(found.state.as_str().into())
        .with_protocol_type(found.protocol_type.into())
        .with_protocol_data(found.protocol.into())
        .with_members(members)
}

pub(crate) fn list(ctx: &Context, request: &ListGroupsRequest) -> ListGroupsResponse {
    let everything = ctx.shows(Operation::Describe, ResourceType::Cluster, CLUSTER_NAME);
    let mut groups: BTreeMap<String, (GroupState, String)> = BTreeMap::new();
    ctx.broker.take_up_groups();
    ctx.broker.data.each_offset_store(|_, store| {
        let recorded = store.records().map(|(group, _)| group);
        for group in store.groups().chain(recorded) {
            groups.insert(group.to_owned(), (GroupState::Empty, String::new()));
        }
    });
    ctx.broker.groups.with(|known, _| {
        for listing in known.list() {
            groups.insert(listing.group, (listing.state, listing.protocol_type));
        }
    });
    let selected = |filter: &[StrBytes], value: &str| {
        filter.is_empty()
            || filter
                .iter()
                .any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let listed = groups
        .into_iter()
        .filter(|(group, (state, _))| {
            selected(&request.states_filter, state.as_str())
                && selected(&request.types_filter, CLASSIC)
                && (everything || ctx.shows(Operation::Describe, ResourceType::Group, group))
        })
        .map(|(group, (state, protocol_type))| {
            ListedGroup::default()
                .with_group_id(GroupId(group.into()))
                .with_protocol_type(protocol_type.into())
                .with_group_state(state.as_str().into())
                .with_group_type(CLASSIC.into())
        })
        .collect();
    ListGroupsResponse::default().with_groups(listed)
}

pub(crate) async fn delete(ctx: &Context, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for group in request.groups_names {
        let outcome = delete_one(ctx, &group).await;
        results.push(
            DeletableGroupResult::default()
                .with_group_id(group)
                .with_error_code(outcome.err().map_or(0, |error| ctx.code(error))),
        );
    }
    DeleteGroupsResponse::default().with_results(results)
}

async fn delete_one(ctx: &Context, group: &str) -> Result<(), KafkaError> {
    if !ctx.allows(Operation::Delete, ResourceType::Group, group) {
        return Err(KafkaError::GroupAuthorizationFailed);
    }
    let seat = seat(ctx, group)?;
    if !exists(ctx, group) {
        return Err(KafkaError::GroupIdNotFound);
    }
    ctx.broker
        .groups
        .ask(seat, |groups, _| groups.delete(group))
        .map_err(of_group)?;
    let command = OffsetCommand::DeleteGroup {
        group: group.to_owned(),
    };
    ctx.broker
        .data
        .apply_offsets(group, command)
        .await
        .map(drop)
        .map_err(|error| coordinator(of_data(&error)))
}
