//! Topic: created, grown and configured; deleted only when the policy says so.

mod plan;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::{controller::Action, events::EventType};
use palisade_crds::{ConditionType, Reason, ReclaimPolicy, Topic, TopicStatus, conditions};

use crate::{
    Context, Error,
    access::ClusterAccess,
    kafka::topics::TopicState,
    kubernetes::{is_paused, publish, write_status},
    members::{self, Blocked, Stop},
};
use plan::{Growth, config_change, growth};

/// Brings one topic to the brokers.
///
/// # Errors
/// What is worth another try.
pub async fn reconcile(object: &Topic, context: &Context) -> Result<Action, Error> {
    let former: &[Condition] = object
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let generation = object.metadata.generation;
    let mut status = object.status.clone().unwrap_or_default();
    if is_paused(object) {
        status.conditions = members::paused(former, generation);
        write_status(context, object, &status).await?;
        return Ok(Action::await_change());
    }
    status.observed_generation = generation;
    let action = match sync(object, context, &mut status).await {
        Ok(state) => {
            observed(&mut status, object, &state);
            let (result, action) = if state.leaderless == 0 {
                (
                    Ok((Reason::Synced, "the brokers hold the topic as declared")),
                    Action::requeue(members::SETTLED),
                )
            } else {
                (
                    Err(Blocked::new(
                        Reason::Applying,
                        format!(
                            "{} of {} partitions have no leader yet",
                            state.leaderless, state.partitions
                        ),
                    )),
                    Action::requeue(members::WAITING),
                )
            };
            status.conditions = members::outcome(former, generation, result.as_ref().map(|ok| *ok));
            action
        }
        Err(Stop::Blocked(blocked)) => {
            status.conditions = members::outcome(former, generation, Err(&blocked));
            Action::requeue(members::WAITING)
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    write_status(context, object, &status).await?;
    Ok(action)
}

fn observed(status: &mut TopicStatus, object: &Topic, state: &TopicState) {
    status.topic_name = Some(object.topic_name().to_owned());
    status.topic_id = Some(state.id.to_string());
    status.partitions = Some(state.partitions);
    status.replication_factor = Some(i32::from(state.replication_factor));
}

async fn sync(
    object: &Topic,
    context: &Context,
    status: &mut TopicStatus,
) -> Result<TopicState, Stop> {
    let (cluster, access) = members::bind(context, object).await?;
    let name = object.topic_name();
    members::claim(
        object,
        &cluster,
        &context.indexes.topics,
        |other| other.topic_name() == name,
        &format!("topic {name}"),
    )?;
    let Some(state) = access.admin.describe_topic(name).await? else {
        // The brokers may make it and their answer be lost.
        members::announce(context, object, status, |status| {
            status.topic_name = Some(name.to_owned());
        })
        .await?;
        create(object, &access, context).await?;
        return described(&access, name).await;
    };
    // This generation was in effect already, so a difference is somebody else's doing.
    let drift = object.status.as_ref().is_some_and(|status| {
        status.observed_generation == object.metadata.generation
            && conditions::is_true(&status.conditions, ConditionType::Synced)
    });
    let mut changed = Vec::new();
    match growth(object, &state) {
        Growth::Enough => {}
        Growth::To(count) => {
            context.metrics.broker_write("Topic");
            access.admin.create_partitions(name, count).await?;
            changed.push(format!("grown to {count} partitions"));
        }
        Growth::Impossible(message) => {
            return Err(Blocked::new(Reason::TopicChangeRefused, message).into());
        }
    }
    let change = config_change(
        &object.spec.config,
        &access.admin.describe_topic_config(name).await?,
    );
    if !change.is_empty() {
        context.metrics.broker_write("Topic");
        access
            .admin
            .alter_topic_config(name, &change.set, &change.removed)
            .await?;
        changed.push(change.to_string());
    }
    if changed.is_empty() {
        return Ok(state);
    }
    if drift {
        context.metrics.drift_corrected("Topic");
        publish(
            context,
            object,
            EventType::Warning,
            Reason::DriftCorrected,
            format!(
                "topic {name} was changed on the brokers: {}",
                changed.join("; ")
            ),
        )
        .await;
    }
    described(&access, name).await
}

async fn create(object: &Topic, access: &ClusterAccess, context: &Context) -> Result<(), Stop> {
    let factor = i16::try_from(object.spec.replication_factor).map_err(|_| {
        Blocked::new(
            Reason::InvalidSpec,
            "replicationFactor is out of range: write 1 to 5",
        )
    })?;
    context.metrics.broker_write("Topic");
    access
        .admin
        .create_topic(
            object.topic_name(),
            object.spec.partitions,
            factor,
            &object.spec.config,
        )
        .await?;
    Ok(())
}

async fn described(access: &ClusterAccess, name: &str) -> Result<TopicState, Stop> {
    let state = access.admin.describe_topic(name).await?;
    Ok(state.ok_or_else(|| {
        Blocked::new(
            Reason::Applying,
            format!("the brokers have accepted topic {name} and do not report it yet"),
        )
    })?)
}

/// Deletes the topic before the object disappears, where the policy says so.
///
/// # Errors
/// When the brokers do not answer and it is worth waiting for them.
pub async fn cleanup(object: &Topic, context: &Context) -> Result<(), Error> {
    if !is_deleted(object) {
        return Ok(());
    }
    // Where the cluster does not admit the object any more, its data stays.
    let Some((cluster, access)) = members::revocable(context, object).await? else {
        return Ok(());
    };
    let name = object.topic_name();
    let same = |other: &Topic| other.topic_name() == name;
    if members::has_successor(object, &cluster, &context.indexes.topics, same) {
        return Ok(());
    }
    context.metrics.broker_write("Topic");
    Ok(access.admin.delete_topic(name).await?)
}

/// Whether the topic goes with the object: the policy says so, and it was made or found by this one. A topic that another object claimed first was never this
/// one's to delete.
fn is_deleted(object: &Topic) -> bool {
    object.spec.reclaim_policy == ReclaimPolicy::Delete
        && object
            .status
            .as_ref()
            .is_some_and(|status| status.topic_id.is_some() || status.topic_name.is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_topic_goes_with_its_object_only_when_the_policy_says_so_and_it_may_be_there() {
        let topic = |policy: &str, status: Value| -> Topic {
            serde_json::from_value(json!({
                "apiVersion": "palisade.dev/v1alpha1", "kind": "Topic", "metadata": { "name": "orders", "namespace": "shop" },
                "spec": { "clusterRef": { "name": "events" }, "reclaimPolicy": policy },
                "status": status
            }))
            .unwrap()
        };
        let observed = json!({ "topicName": "orders", "topicId": "id" });
        assert!(is_deleted(&topic("Delete", observed.clone())));
        assert!(is_deleted(&topic(
            "Delete",
            json!({ "topicName": "orders" })
        )));
        assert!(!is_deleted(&topic("Delete", json!({}))));
        assert!(!is_deleted(&topic("Retain", observed)));
    }
}
