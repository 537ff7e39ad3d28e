//! Quota: limits of one entity.

mod plan;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use palisade_crds::{Quota, QuotaStatus, Reason, SecureCluster, User};

pub use plan::{Change, entity, plan, values};

use crate::{
    Context, Error,
    access::ClusterAccess,
    kafka::{
        KafkaError,
        quotas::{QuotaEntity, QuotaValues},
    },
    kubernetes::{is_paused, publish, write_status},
    members::{self, Blocked, Stop},
    user,
};

/// Brings one quota to the brokers.
///
/// # Errors
/// What is worth another try.
pub async fn reconcile(object: &Quota, context: &Context) -> Result<Action, Error> {
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
        Ok(()) => {
            status.conditions = members::outcome(
                former,
                generation,
                Ok((Reason::Synced, "the brokers hold these limits")),
            );
            Action::requeue(members::SETTLED)
        }
        Err(Stop::Blocked(mut blocked)) => {
            let reasons = [Reason::NamespaceNotAllowed];
            if members::expel(object, &mut blocked, &reasons, cleanup(object, context)).await {
                (status.entity, status.user) = (None, None);
            }
            status.conditions = members::outcome(former, generation, Err(&blocked));
            Action::requeue(members::WAITING)
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    write_status(context, object, &status).await?;
    Ok(action)
}

async fn sync(object: &Quota, context: &Context, status: &mut QuotaStatus) -> Result<(), Stop> {
    let (cluster, access) = members::bind(context, object).await?;
    let entity = resolved(object, context)?;
    let same = |other: &Quota| resolved(other, context).is_ok_and(|theirs| theirs == entity);
    members::claim(
        object,
        &cluster,
        &context.indexes.quotas,
        same,
        &format!("the limits of {entity}"),
    )?;
    // The entity was another one while the User that it names had another authentication.
    if let Some(former) = held_entity(object).filter(|former| *former != entity) {
        withdraw(object, context, &cluster, &access, &former).await?;
    }
    members::announce(context, object, status, |status| {
        status.entity = Some(entity.to_string());
        status.user = entity.user_name();
    })
    .await?;
    let held = access.admin.describe_quota(&entity).await?;
    let change = plan(&values(&object.spec.limits), &held);
    if !change.is_empty() {
        let drift = was_synced(object.status.as_ref(), object.metadata.generation);
        context.metrics.broker_write("Quota");
        access
            .admin
            .alter_quota(&entity, &change.set, &change.removed)
            .await?;
        if drift {
            context.metrics.drift_corrected("Quota");
            publish(
                context,
                object,
                EventType::Warning,
                Reason::DriftCorrected,
                format!("limits of {entity} were changed on the brokers: {change}"),
            )
            .await;
        }
    }
    Ok(())
}

/// Whether this generation was in effect already, so that a difference is somebody else's doing.
fn was_synced(status: Option<&QuotaStatus>, generation: Option<i64>) -> bool {
    status.is_some_and(|status| {
        status.observed_generation == generation
            && palisade_crds::conditions::is_true(
                &status.conditions,
                palisade_crds::ConditionType::Synced,
            )
    })
}

/// The entity, its `userRef` resolved.
fn resolved(object: &Quota, context: &Context) -> Result<QuotaEntity, Blocked> {
    let namespace = object.namespace().unwrap_or_default();
    let user = match &object.spec.entity.user_ref {
        Some(name) => Some(context.indexes.users.get(&namespace, name).ok_or_else(|| {
            Blocked::new(Reason::UserNotFound, format!("User {name} does not exist in namespace {namespace}: create it or correct entity.userRef"))
        })?),
        None => None,
    };
    entity(object, user.as_deref().map(name_of)).ok_or_else(|| {
        Blocked::new(
            Reason::InvalidSpec,
            "entity is empty: write userRef, user, clientId, ip, or default: true",
        )
    })
}

/// The name brokers know a user by.
fn name_of(user: &User) -> String {
    let principal = user::principal(user);
    principal
        .strip_prefix("User:")
        .unwrap_or(&principal)
        .to_owned()
}

/// The entity that, by the status, the brokers may hold limits of on behalf of the object. A userRef may be gone by now, or mean another name; the status
/// remembers whom it meant.
fn held_entity(object: &Quota) -> Option<QuotaEntity> {
    let status = object.status.as_ref()?;
    status.entity.as_ref()?;
    entity(object, status.user.clone())
}

/// Removes the limits of an entity, unless another Quota of the cluster speaks of it.
async fn withdraw(
    object: &Quota,
    context: &Context,
    cluster: &SecureCluster,
    access: &ClusterAccess,
    entity: &QuotaEntity,
) -> Result<(), KafkaError> {
    let same = |other: &Quota| resolved(other, context).is_ok_and(|theirs| theirs == *entity);
    if members::has_successor(object, cluster, &context.indexes.quotas, same) {
        return Ok(());
    }
    let held = access.admin.describe_quota(entity).await?;
    if held.is_empty() {
        return Ok(());
    }
    let removed: Vec<String> = held.into_keys().collect();
    context.metrics.broker_write("Quota");
    access
        .admin
        .alter_quota(entity, &QuotaValues::new(), &removed)
        .await
}

/// Removes the limits before the object disappears.
///
/// # Errors
/// When the brokers do not answer and it is worth waiting for them.
pub async fn cleanup(object: &Quota, context: &Context) -> Result<(), Error> {
    let Some(entity) = held_entity(object) else {
        return Ok(());
    };
    let Some((cluster, access)) = members::revocable(context, object).await? else {
        return Ok(());
    };
    Ok(withdraw(object, context, &cluster, &access, &entity).await?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn quota(status: &Value) -> Quota {
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "Quota", "metadata": { "name": "q", "namespace": "shop" },
            "spec": { "clusterRef": { "name": "events" }, "entity": { "userRef": "alice" }, "limits": { "producerByteRate": "1Mi" } },
            "status": status
        }))
        .unwrap()
    }

    #[test]
    fn the_status_remembers_whom_the_brokers_limit() {
        let former = quota(&json!({ "entity": "user=CN=alice", "user": "CN=alice" }));
        let entity = held_entity(&former).unwrap();
        assert_eq!(entity.user_name().as_deref(), Some("CN=alice"));
        assert_eq!(held_entity(&quota(&json!({}))), None);
    }
}
