//! Acl: what a principal may and may not do.
//!
//! Several Acl objects may speak of one principal: what brokers hold for it is the union of their rules. A principal that no object names is left alone.

mod plan;

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use palisade_crds::{Acl, AclStatus, ConditionType, Reason, conditions};

pub use plan::{Change, bindings, is_revocation, plan, revocation};

use crate::{
    Context, Error,
    access::ClusterAccess,
    kafka::{KafkaError, acls::AclBinding},
    kubernetes::{is_paused, publish, write_status},
    members::{self, Blocked, Stop},
    user,
};

/// Bindings in one request.
const BATCH: usize = 500;

/// Why rules are withdrawn while their object stays. A User that is gone may be followed by somebody else of the same name, who was granted nothing.
const FORFEITED: [Reason; 2] = [Reason::NamespaceNotAllowed, Reason::UserNotFound];

/// Brings the rules of one principal to the brokers.
///
/// # Errors
/// What is worth another try.
pub async fn reconcile(object: &Acl, context: &Context) -> Result<Action, Error> {
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
        Ok(held) => {
            status.bindings = i32::try_from(held).ok();
            status.conditions = members::outcome(
                former,
                generation,
                Ok((Reason::Synced, "the brokers enforce these rules")),
            );
            Action::requeue(members::SETTLED)
        }
        Err(Stop::Blocked(mut blocked)) => {
            if members::expel(object, &mut blocked, &FORFEITED, cleanup(object, context)).await {
                (status.principal, status.bindings) = (None, None);
            }
            status.conditions = members::outcome(former, generation, Err(&blocked));
            Action::requeue(members::WAITING)
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    write_status(context, object, &status).await?;
    Ok(action)
}

/// Returns how many bindings the brokers hold on behalf of the object.
async fn sync(object: &Acl, context: &Context, status: &mut AclStatus) -> Result<usize, Stop> {
    let (_, access) = members::bind(context, object).await?;
    let principal = principal(object, context)?;
    // The rules may have been another principal's until now.
    let former = object
        .status
        .as_ref()
        .and_then(|status| status.principal.as_ref());
    if let Some(former) = former.filter(|former| **former != principal) {
        apply(
            context,
            &access,
            former,
            &union(object, context, former, false),
        )
        .await?;
    }
    members::announce(context, object, status, |status| {
        status.principal = Some(principal.clone());
    })
    .await?;
    let wanted = union(object, context, &principal, true);
    let settled = peers(&cluster_of(object), context, &principal)
        .iter()
        .all(|peer| is_settled(peer));
    let change = apply(context, &access, &principal, &wanted).await?;
    if settled && !change.is_empty() {
        context.metrics.drift_corrected("Acl");
        let note = format!("ACLs of {principal} were changed on the brokers: {change}");
        publish(
            context,
            object,
            EventType::Warning,
            Reason::DriftCorrected,
            note,
        )
        .await;
    }
    Ok(bindings(&principal, &object.spec.rules).len())
}

/// Brings what brokers hold for a principal to `wanted`, and returns what was changed.
async fn apply(
    context: &Context,
    access: &ClusterAccess,
    principal: &str,
    wanted: &BTreeSet<AclBinding>,
) -> Result<Change, KafkaError> {
    let held = access
        .admin
        .describe_acls(principal)
        .await?
        .into_iter()
        .collect();
    let change = plan(wanted, &held);
    if !change.is_empty() {
        context.metrics.broker_write("Acl");
        tracing::info!(principal, %change, "changing ACLs");
    }
    // In this order nothing is allowed at any moment that neither the old nor the new set allows.
    for batch in change.new_denies.chunks(BATCH) {
        access.admin.create_acls(batch).await?;
    }
    for batch in change.withdrawn_allows.chunks(BATCH) {
        access.admin.delete_acls(batch).await?;
    }
    for batch in change.new_allows.chunks(BATCH) {
        access.admin.create_acls(batch).await?;
    }
    for batch in change.withdrawn_denies.chunks(BATCH) {
        access.admin.delete_acls(batch).await?;
    }
    Ok(change)
}

/// Whether the object's present generation is in effect, so that a difference is somebody else's doing.
fn is_settled(object: &Acl) -> bool {
    object.status.as_ref().is_some_and(|status| {
        status.observed_generation == object.metadata.generation
            && conditions::is_true(&status.conditions, ConditionType::Synced)
    })
}

fn cluster_of(object: &Acl) -> (String, String) {
    members::cluster_key(
        &object.spec.cluster_ref,
        &object.namespace().unwrap_or_default(),
    )
}

/// The objects of a cluster that speak of a principal.
fn peers(cluster: &(String, String), context: &Context, of: &str) -> Vec<std::sync::Arc<Acl>> {
    context
        .indexes
        .acls
        .all()
        .into_iter()
        .filter(|other| {
            let namespace = other.namespace().unwrap_or_default();
            cluster_of(other) == *cluster
                && other.metadata.deletion_timestamp.is_none()
                && members::resolve(
                    &other.spec.cluster_ref,
                    &namespace,
                    &context.indexes.clusters,
                )
                .is_ok()
                && principal(other, context).is_ok_and(|theirs| theirs == of)
        })
        .collect()
}

/// Whether an Acl object declares this binding for the cluster.
#[must_use]
pub fn is_declared(cluster: &(String, String), context: &Context, binding: &AclBinding) -> bool {
    peers(cluster, context, &binding.principal)
        .iter()
        .any(|peer| bindings(&binding.principal, &peer.spec.rules).contains(binding))
}

/// The rules of every object that speaks of the principal; of this one in the state that is being reconciled, or not at all.
fn union(object: &Acl, context: &Context, principal: &str, with_own: bool) -> BTreeSet<AclBinding> {
    let mut wanted: BTreeSet<_> = peers(&cluster_of(object), context, principal)
        .iter()
        .filter(|peer| peer.uid() != object.uid())
        .flat_map(|peer| bindings(principal, &peer.spec.rules))
        .collect();
    if with_own {
        wanted.extend(bindings(principal, &object.spec.rules));
    }
    wanted
}

/// The principal the rules are for.
fn principal(object: &Acl, context: &Context) -> Result<String, Blocked> {
    let spec = &object.spec.principal;
    let namespace = object.namespace().unwrap_or_default();
    match (&spec.user_ref, &spec.name) {
        (Some(name), None) => {
            let user = context.indexes.users.get(&namespace, name).ok_or_else(|| {
                Blocked::new(Reason::UserNotFound, format!("User {name} does not exist in namespace {namespace}: create it or correct principal.userRef"))
            })?;
            Ok(user::principal(&user))
        }
        (None, Some(name))
            if name.starts_with("User:")
                && name.len() > "User:".len()
                && !name.chars().any(char::is_control) =>
        {
            Ok(name.clone())
        }
        _ => Err(Blocked::new(
            Reason::InvalidSpec,
            "principal: write exactly one of userRef and name (User:<name>)",
        )),
    }
}

/// Withdraws the rules before the object disappears.
///
/// # Errors
/// When the brokers do not answer and it is worth waiting for them.
pub async fn cleanup(object: &Acl, context: &Context) -> Result<(), Error> {
    // The User may be gone by now; the status remembers whom the rules were for. Without it nothing reached the brokers.
    let Some(principal) = object
        .status
        .as_ref()
        .and_then(|status| status.principal.clone())
    else {
        return Ok(());
    };
    let Some((_, access)) = members::revocable(context, object).await? else {
        return Ok(());
    };
    apply(
        context,
        &access,
        &principal,
        &union(object, context, &principal, false),
    )
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn rules_do_not_outlive_the_user_that_they_name() {
        let acl = |principal: Option<&str>| -> Acl {
            serde_json::from_value(json!({
                "apiVersion": "palisade.dev/v1alpha1", "kind": "Acl", "metadata": { "name": "orders", "namespace": "shop" },
                "spec": {
                    "clusterRef": { "name": "events", "namespace": "messaging" }, "principal": { "userRef": "alice" },
                    "rules": [{ "resource": { "type": "Topic", "name": "orders" }, "operations": ["Write"] }]
                },
                "status": { "principal": principal }
            }))
            .unwrap()
        };
        let missing = || Blocked::new(Reason::UserNotFound, "User alice does not exist");
        let held = acl(Some("User:alice"));
        assert!(members::expel(&held, &mut missing(), &FORFEITED, async { Ok(()) }).await);
        let mut blocked = missing();
        let failing = async { Err(Error::Configuration("no broker".to_owned())) };
        assert!(!members::expel(&held, &mut blocked, &FORFEITED, failing).await);
        assert!(
            blocked.message.ends_with("not withdrawn yet: no broker"),
            "{}",
            blocked.message
        );
        // Once that is done, the brokers are not asked again.
        assert!(!members::expel(&acl(None), &mut missing(), &FORFEITED, async { Ok(()) }).await);
    }
}
