//! `palisade.draining`, the one config that a single broker has: whether the cluster takes everything away from it.
//!
//! `kafka-configs --entity-type brokers --entity-name 3 --alter --add-config palisade.draining=true` begins a drain, and deleting the config ends it. A broker
//! that is drained is given no replica any more; those that it has, and its vote on the metadata, move to others, and leadership with them. Its `/status` says
//! `drained` when it has nothing left; then UnregisterBroker forgets it. As this moves replicas it needs what AlterPartitionReassignments needs in Kafka, ALTER on
//! the cluster, beside ALTER_CONFIGS. It is refused when replicas would not find room on the brokers that are left; shards that nothing uses, such as those of
//! topics with more replicas that were deleted, are given up first.

use kafka_protocol::messages::{
    DescribeConfigsRequest,
    describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsSynonym},
};
use palisade_metadata::{ConfigOp, Image, MetadataCommand, MetadataError};
use palisade_security::acl::Operation;
use tracing::{debug, info};

use super::{
    Context,
    configs::{Refusal, plain},
};
use crate::kafka_error::{KafkaError, of_change, of_metadata};

const NAME: &str = "palisade.draining";
const DOC: &str = "Whether the cluster takes all replicas away from this broker and gives it no new ones, so that it can be removed.";
/// Kafka's code of a boolean.
const BOOLEAN: i8 = 1;
/// Kafka's codes of sources.
const SOURCE_BROKER: i8 = 2;
const SOURCE_DEFAULT: i8 = 5;

pub(super) fn describe(
    ctx: &Context,
    broker: i32,
    request: &DescribeConfigsRequest,
) -> DescribeConfigsResourceResult {
    let draining = ctx
        .image
        .brokers
        .get(&broker)
        .is_some_and(|broker| broker.draining);
    let synonym = |value: &str, source: i8| {
        DescribeConfigsSynonym::default()
            .with_name(NAME.into())
            .with_value(Some(value.to_owned().into()))
            .with_source(source)
    };
    let mut synonyms = Vec::new();
    if request.include_synonyms {
        synonyms.extend(draining.then(|| synonym("true", SOURCE_BROKER)));
        synonyms.push(synonym("false", SOURCE_DEFAULT));
    }
    DescribeConfigsResourceResult::default()
        .with_name(NAME.into())
        .with_value(Some(draining.to_string().into()))
        .with_config_source(if draining {
            SOURCE_BROKER
        } else {
            SOURCE_DEFAULT
        })
        .with_config_type(BOOLEAN)
        .with_documentation(request.include_documentation.then(|| DOC.into()))
        .with_synonyms(synonyms)
}

pub(super) async fn alter(
    ctx: &Context,
    broker: i32,
    replace: bool,
    ops: &[ConfigOp],
    validate_only: bool,
) -> Result<(), Refusal> {
    let draining = wanted(replace, ops)?;
    if !ctx.allows_cluster(Operation::Alter) {
        return Err(plain(KafkaError::ClusterAuthorizationFailed));
    }
    info!(by = %ctx.session.principal, broker, draining, validate_only, "changing whether a broker is drained");
    let command = MetadataCommand::SetDraining {
        id: broker,
        draining,
    };
    let image = ctx.broker.image();
    let room = if draining {
        image.room_to_leave(broker)
    } else {
        Vec::new()
    };
    if validate_only {
        let admitted = with_room(&image, room).and_then(|image| image.admit(&command));
        admitted.map_err(|error| (of_metadata(&error), error.to_string()))?;
        return Ok(());
    }
    for command in room {
        // A topic may have come meanwhile; whether the broker can leave then is for the metadata to say.
        if let Err(error) = ctx.broker.change(&command).await {
            debug!(?command, %error, "shards that nothing seemed to use were not given up");
        }
    }
    let changed = ctx.broker.change(&command).await;
    changed.map_err(|error| (of_change(&error), error.to_string()))?;
    Ok(())
}

/// The metadata after pools were retired.
fn with_room(image: &Image, room: Vec<MetadataCommand>) -> Result<Image, MetadataError> {
    let mut image = image.clone();
    for command in room {
        image.apply(command)?;
    }
    Ok(image)
}

/// What the changes of one broker's configs come to.
fn wanted(replace: bool, ops: &[ConfigOp]) -> Result<bool, Refusal> {
    let invalid = |value: &str| {
        let message =
            format!("Invalid value {value} for configuration {NAME}: write true or false");
        (KafkaError::InvalidConfig, message)
    };
    match ops {
        [ConfigOp::Set { name, value }] if name == NAME && !replace => {
            value.parse().map_err(|_| invalid(value))
        }
        [ConfigOp::Delete { name }] if name == NAME && !replace => Ok(false),
        [op] if op.name() == NAME && !replace => Err((
            KafkaError::InvalidConfig,
            format!("{NAME} is no list: it is set or deleted"),
        )),
        _ => {
            let message = format!(
                "dynamic configs are set for all brokers together: use --entity-default; of one broker alone {NAME} can be set, and what else concerns it is in its configuration file"
            );
            Err((KafkaError::InvalidRequest, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> ConfigOp {
        ConfigOp::Set {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn one_config_is_set_and_deleted_and_every_other_is_refused() {
        let error = |replace, ops: &[ConfigOp]| wanted(replace, ops).map_err(|refused| refused.0);
        let delete = ConfigOp::Delete {
            name: NAME.to_owned(),
        };
        assert_eq!(error(false, &[set(NAME, "true")]), Ok(true));
        assert_eq!(error(false, &[set(NAME, "false")]), Ok(false));
        assert_eq!(error(false, &[delete]), Ok(false));
        let append = ConfigOp::Append {
            name: NAME.to_owned(),
            value: "true".to_owned(),
        };
        let invalid = Err(KafkaError::InvalidConfig);
        assert_eq!(error(false, &[set(NAME, "yes")]), invalid);
        assert_eq!(error(false, &[append]), invalid);
        let refused = Err(KafkaError::InvalidRequest);
        assert_eq!(error(false, &[set("log.retention.ms", "1")]), refused);
        assert_eq!(
            error(false, &[set(NAME, "true"), set("log.retention.ms", "1")]),
            refused
        );
        // The older API would take every config that is not named for one to reset.
        assert_eq!(error(true, &[set(NAME, "true")]), refused);
        assert_eq!(error(false, &[]), refused);
    }
}
