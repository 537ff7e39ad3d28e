//! Membership of consumer groups: JoinGroup (11), SyncGroup (14), Heartbeat (12), LeaveGroup (13).

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
        LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
        join_group_response::JoinGroupResponseMember, leave_group_response::MemberResponse,
    },
    protocol::StrBytes,
};
use palisade_coordinator::group::{
    GroupError, JoinRequest, LeavingMember, Membership, SyncRequest,
};
use palisade_security::acl::{Operation, ResourceType};

use super::Context;
use crate::{
    groups::Seat,
    kafka_error::{KafkaError, of_group},
};

/// First version in which a member must come back with the id it is given (KIP-394).
const KNOWN_MEMBER: i16 = 4;
/// First version in which the leader can be told to skip the assignment (KIP-814).
const SKIP_ASSIGNMENT: i16 = 9;
/// First version in which an absent protocol name is null.
const NULL_PROTOCOL: i16 = 7;
/// First version in which several members can leave (KIP-345).
const LEAVE_MANY: i16 = 3;

fn millis(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

fn text(value: Option<&StrBytes>) -> Option<String> {
    value.map(StrBytes::to_string)
}

/// A copy: what a group keeps must not hold on to the memory of a whole request.
fn copied(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn may_read(ctx: &Context, group: &str) -> Result<Seat, KafkaError> {
    if !ctx.allows(Operation::Read, ResourceType::Group, group) {
        return Err(KafkaError::GroupAuthorizationFailed);
    }
    seat(ctx, group)
}

/// Whether groups like this one are asked for here: who leads the shard that keeps a group's offsets is its coordinator. If so, what was kept of its members
/// has been loaded.
pub(super) fn seat(ctx: &Context, group: &str) -> Result<Seat, KafkaError> {
    ctx.broker
        .coordinates(group)
        .ok_or(KafkaError::NotCoordinator)
}

pub(crate) async fn join(ctx: &Context, request: JoinGroupRequest) -> JoinGroupResponse {
    let failed = |error: KafkaError, member: String| {
        let protocol = (ctx.version < NULL_PROTOCOL).then(StrBytes::default);
        JoinGroupResponse::default()
            .with_error_code(ctx.code(error))
            .with_generation_id(-1)
            .with_protocol_name(protocol)
            .with_member_id(member.into())
    };
    let seat = match may_read(ctx, &request.group_id) {
        Ok(seat) => seat,
        Err(error) => return failed(error, request.member_id.to_string()),
    };
    let session_timeout = millis(request.session_timeout_ms);
    let join = JoinRequest {
        group: request.group_id.to_string(),
        member: request.member_id.to_string(),
        instance: text(request.group_instance_id.as_ref()),
        client_id: ctx.client_id.clone(),
        client_host: format!("/{}", ctx.session.host),
        session_timeout,
        rebalance_timeout: if ctx.version == 0 {
            session_timeout
        } else {
            millis(request.rebalance_timeout_ms)
        },
        protocol_type: request.protocol_type.to_string(),
        protocols: request
            .protocols
            .iter()
            .map(|protocol| (protocol.name.to_string(), copied(&protocol.metadata)))
            .collect(),
        require_known_member: ctx.version >= KNOWN_MEMBER,
        can_skip_assignment: ctx.version >= SKIP_ASSIGNMENT,
        fresh_id: uuid::Uuid::new_v4(),
    };
    // The request's memory goes back before the wait for the rest of the group.
    drop(request);
    match ctx.broker.groups.join(seat, join).await {
        Err(failure) => failed(of_group(failure.error), failure.member),
        Ok(joined) => {
            let members = joined
                .members
                .into_iter()
                .map(|member| {
                    JoinGroupResponseMember::default()
                        .with_member_id(member.member.into())
                        .with_group_instance_id(member.instance.map(Into::into))
                        .with_metadata(member.metadata)
                })
                .collect();
            JoinGroupResponse::default()
                .with_generation_id(joined.generation)
                .with_protocol_type(Some(joined.protocol_type.into()))
                .with_protocol_name(Some(joined.protocol.into()))
                .with_leader(joined.leader.into())
                .with_skip_assignment(joined.skip_assignment)
                .with_member_id(joined.member.into())
                .with_members(members)
        }
    }
}

pub(crate) async fn sync(ctx: &Context, request: SyncGroupRequest) -> SyncGroupResponse {
    let failed = |error| SyncGroupResponse::default().with_error_code(ctx.code(error));
    let seat = match may_read(ctx, &request.group_id) {
        Ok(seat) => seat,
        Err(error) => return failed(error),
    };
    let sync = SyncRequest {
        from: Membership {
            group: request.group_id.to_string(),
            member: request.member_id.to_string(),
            instance: text(request.group_instance_id.as_ref()),
            generation: request.generation_id,
        },
        protocol_type: text(request.protocol_type.as_ref()),
        protocol: text(request.protocol_name.as_ref()),
        assignments: request
            .assignments
            .iter()
            .map(|assigned| (assigned.member_id.to_string(), copied(&assigned.assignment)))
            .collect(),
    };
    drop(request);
    match ctx.broker.groups.sync(seat, sync).await {
        Err(error) => failed(of_group(error)),
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(Some(synced.protocol_type.into()))
            .with_protocol_name(Some(synced.protocol.into()))
            .with_assignment(synced.assignment),
    }
}

pub(crate) fn heartbeat(ctx: &Context, request: &HeartbeatRequest) -> HeartbeatResponse {
    let alive = may_read(ctx, &request.group_id).and_then(|seat| {
        let from = Membership {
            group: request.group_id.to_string(),
            member: request.member_id.to_string(),
            instance: text(request.group_instance_id.as_ref()),
            generation: request.generation_id,
        };
        let groups = &ctx.broker.groups;
        groups
            .ask(seat, |groups, now| groups.heartbeat(now, &from))
            .map_err(of_group)
    });
    match alive {
        Ok(()) => HeartbeatResponse::default(),
        // Every member is told so in every rebalance; that is no error to count.
        Err(KafkaError::RebalanceInProgress) => {
            HeartbeatResponse::default().with_error_code(KafkaError::RebalanceInProgress.code())
        }
        Err(error) => HeartbeatResponse::default().with_error_code(ctx.code(error)),
    }
}

pub(crate) fn leave(ctx: &Context, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let response = LeaveGroupResponse::default();
    let seat = match may_read(ctx, &request.group_id) {
        Ok(seat) => seat,
        Err(error) => return response.with_error_code(ctx.code(error)),
    };
    let leaving: Vec<LeavingMember> = if ctx.version < LEAVE_MANY {
        vec![LeavingMember {
            member: request.member_id.to_string(),
            instance: None,
        }]
    } else {
        request
            .members
            .iter()
            .map(|member| LeavingMember {
                member: member.member_id.to_string(),
                instance: text(member.group_instance_id.as_ref()),
            })
            .collect()
    };
    let group = request.group_id.as_str();
    let asked = ctx
        .broker
        .groups
        .ask_with_effects(seat, |groups, now| groups.leave(now, group, &leaving));
    let outcomes = match asked {
        Ok(outcomes) => outcomes,
        Err(error) => return response.with_error_code(ctx.code(of_group(error))),
    };
    let code = |outcome: &Result<(), GroupError>| match outcome {
        Ok(()) => 0,
        Err(error) => ctx.code(of_group(*error)),
    };
    if ctx.version < LEAVE_MANY {
        return response.with_error_code(outcomes.first().map_or(0, code));
    }
    let members = request
        .members
        .into_iter()
        .zip(&outcomes)
        .map(|(member, outcome)| {
            MemberResponse::default()
                .with_member_id(member.member_id)
                .with_group_instance_id(member.group_instance_id)
                .with_error_code(code(outcome))
        })
        .collect();
    response.with_members(members)
}
