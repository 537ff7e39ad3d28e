//! Quota: limits of one entity.

mod plan;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use palisade_crds::{Quota, QuotaStatus, Reason, User};

pub use plan::{Change, entity, plan, values};

use crate::{
    Context, Error,
    kafka::quotas::QuotaEntity,
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
    let action = match sync(object, context).await {
        Ok(entity) => {
            status.user = match &entity.user {
                Some(crate::kafka::quotas::EntityName::Named(name)) => Some(name.clone()),
                _ => None,
            };
            status.entity = Some(entity.to_string());
            status.conditions = members::outcome(
                former,
                generation,
                Ok((Reason::Synced, "the brokers hold these limits")),
            );
            Action::requeue(members::SETTLED)
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

async fn sync(object: &Quota, context: &Context) -> Result<QuotaEntity, Stop> {
    let (_, access) = members::bind(context, object).await?;
    let entity = resolved(object, context)?;
    let same = |other: &Quota| resolved(other, context).is_ok_and(|theirs| theirs == entity);
    members::claim(
        object,
        &context.indexes.quotas,
        same,
        &format!("the limits of {entity}"),
    )?;
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
    Ok(entity)
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

/// Removes the limits before the object disappears.
///
/// # Errors
/// When the brokers do not answer and it is worth waiting for them.
pub async fn cleanup(object: &Quota, context: &Context) -> Result<(), Error> {
    let Some((_, access)) = members::revocable(context, object).await? else {
        return Ok(());
    };
    // A userRef may be gone by now; the status remembers whom it meant.
    let user = object
        .status
        .as_ref()
        .and_then(|status| status.user.clone());
    let Some(entity) = entity(object, user) else {
        return Ok(());
    };
    let another = context.indexes.quotas.all().iter().any(|other| {
        other.uid() != object.uid()
            && other.metadata.deletion_timestamp.is_none()
            && resolved(other, context).is_ok_and(|theirs| theirs == entity)
    });
    if another
        || object
            .status
            .as_ref()
            .is_none_or(|status| status.entity.is_none())
    {
        return Ok(());
    }
    let removed: Vec<String> = access
        .admin
        .describe_quota(&entity)
        .await?
        .into_keys()
        .collect();
    context.metrics.broker_write("Quota");
    Ok(access
        .admin
        .alter_quota(&entity, &crate::kafka::quotas::QuotaValues::new(), &removed)
        .await?)
}
