//! FindCoordinator (10): who manages a group.

use kafka_protocol::{
    messages::{
        BrokerId, FindCoordinatorRequest, FindCoordinatorResponse,
        find_coordinator_response::Coordinator,
    },
    protocol::StrBytes,
};
use palisade_security::acl::{Operation, ResourceType};

use super::{Context, metadata::reachable};
use crate::kafka_error::KafkaError;

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
/// First version that asks for several keys at once.
const BATCHED: i16 = 4;

type Found = Result<(BrokerId, StrBytes, i32), (KafkaError, Option<&'static str>)>;

pub(crate) fn handle(ctx: &Context, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    if ctx.version < BATCHED {
        let response = FindCoordinatorResponse::default();
        return match find(ctx, request.key_type, &request.key) {
            Ok((id, host, port)) => response.with_node_id(id).with_host(host).with_port(port),
            Err((error, message)) => response
                .with_node_id(BrokerId(-1))
                .with_port(-1)
                .with_error_code(ctx.code(error))
                .with_error_message(message.map(Into::into)),
        };
    }
    let coordinators = request
        .coordinator_keys
        .into_iter()
        .map(|key| {
            let found = find(ctx, request.key_type, &key);
            let coordinator = Coordinator::default().with_key(key);
            match found {
                Ok((id, host, port)) => {
                    coordinator.with_node_id(id).with_host(host).with_port(port)
                }
                Err((error, message)) => coordinator
                    .with_node_id(BrokerId(-1))
                    .with_port(-1)
                    .with_error_code(ctx.code(error))
                    .with_error_message(message.map(Into::into)),
            }
        })
        .collect();
    FindCoordinatorResponse::default().with_coordinators(coordinators)
}

fn find(ctx: &Context, key_type: i8, key: &str) -> Found {
    match key_type {
        GROUP if ctx.allows(Operation::Describe, ResourceType::Group, key) => {}
        GROUP => return Err((KafkaError::GroupAuthorizationFailed, None)),
        TRANSACTION if ctx.allows(Operation::Describe, ResourceType::TransactionalId, key) => {
            return Err((
                KafkaError::InvalidRequest,
                Some("transactions are not supported by this broker: remove transactional.id"),
            ));
        }
        TRANSACTION => return Err((KafkaError::TransactionalIdAuthorizationFailed, None)),
        _ => return Err((KafkaError::InvalidRequest, Some("unknown coordinator type"))),
    }
    let coordinator = ctx
        .image
        .shard_of_group(key)
        .and_then(|shard| ctx.broker.cluster.leader(shard))
        .ok_or((KafkaError::CoordinatorNotAvailable, None))?;
    reachable(ctx)
        .find(|(id, ..)| id.0 == coordinator.node.broker())
        .map(|(id, host, port, _)| (id, host, port))
        .ok_or((KafkaError::CoordinatorNotAvailable, None))
}
