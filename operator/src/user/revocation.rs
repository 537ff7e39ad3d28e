//! How a user is kept out: by suspension, by deletion, and when its way to prove itself changes.

use kube::{ResourceExt, runtime::events::EventType};
use palisade_crds::{Reason, SecureCluster, User, UserStatus};

use crate::{
    Context, Error,
    access::ClusterAccess,
    acl,
    kafka::KafkaError,
    kubernetes::publish,
    members::{self, Blocked, Stop},
};

/// Prefix of the principals of users with certificates.
const CERTIFICATE_PREFIX: &str = "User:CN=";

/// The principal of the certificates that a user has from before its authentication was changed: nothing takes those back but a denial.
fn former_certificates<'a>(status: &'a UserStatus, principal: &str) -> Option<&'a str> {
    status
        .principal
        .as_deref()
        .filter(|former| *former != principal && former.starts_with(CERTIFICATE_PREFIX))
}

/// Stops where denying a principal everything would not keep it out: brokers let super users pass before they look at any ACL.
fn require_revocable(cluster: &SecureCluster, principal: &str) -> Result<(), Blocked> {
    if principal.starts_with(CERTIFICATE_PREFIX)
        && cluster
            .spec
            .authorization
            .super_users
            .iter()
            .any(|user| user == principal)
    {
        return Err(Blocked::new(
            Reason::InvalidSpec,
            format!(
                "{principal} is a super user of SecureCluster {}, so its certificate cannot be refused: remove it from spec.authorization.superUsers there first",
                cluster.name_any()
            ),
        ));
    }
    Ok(())
}

/// Denies everything to the certificates that a user has from before its authentication was changed.
pub(super) async fn of_former(
    context: &Context,
    cluster: &SecureCluster,
    access: &ClusterAccess,
    status: &UserStatus,
    principal: &str,
) -> Result<(), Stop> {
    if let Some(former) = former_certificates(status, principal) {
        require_revocable(cluster, former)?;
        context.metrics.broker_write("User");
        access.admin.create_acls(&acl::revocation(former)).await?;
    }
    Ok(())
}

/// Puts the revocation of a suspended user into force, and lifts it from one that is not.
pub(super) async fn in_force(
    object: &User,
    context: &Context,
    cluster: &SecureCluster,
    access: &ClusterAccess,
    principal: &str,
) -> Result<(), Stop> {
    let held = access.admin.describe_acls(principal).await?;
    let place = members::cluster_key(
        &object.spec.cluster_ref,
        &object.namespace().unwrap_or_default(),
    );
    let bindings = acl::revocation(principal);
    if object.spec.suspended {
        let missing: Vec<_> = bindings
            .into_iter()
            .filter(|binding| !held.contains(binding))
            .collect();
        if !missing.is_empty() {
            context.metrics.broker_write("User");
            access.admin.create_acls(&missing).await?;
        }
        // The denial waits there until the principal is no super user any more.
        require_revocable(cluster, principal)?;
    } else {
        let lifted: Vec<_> = bindings
            .into_iter()
            .filter(|binding| held.contains(binding) && !acl::is_declared(&place, context, binding))
            .collect();
        if !lifted.is_empty() {
            context.metrics.broker_write("User");
            access.admin.delete_acls(&lifted).await?;
        }
    }
    Ok(())
}

/// Deletes every credential that the brokers hold for the user's name, and returns whether there was one.
async fn delete_credentials(object: &User, access: &ClusterAccess) -> Result<bool, KafkaError> {
    let name = object.name_any();
    let stored = access.admin.describe_scram(&name).await?;
    let mechanisms: Vec<_> = stored.iter().map(|stored| stored.mechanism).collect();
    access.admin.alter_scram(&name, None, &mechanisms).await?;
    Ok(!mechanisms.is_empty())
}

/// Deletes the user's credentials while it goes on to exist.
pub(super) async fn drop_credentials(
    object: &User,
    context: &Context,
    access: &ClusterAccess,
) -> Result<(), Stop> {
    if delete_credentials(object, access).await? {
        context.metrics.broker_write("User");
    }
    Ok(())
}

/// Takes out of a status what a user has that is in effect.
pub(super) fn forget(status: &mut UserStatus) {
    *status = UserStatus {
        observed_generation: status.observed_generation,
        conditions: std::mem::take(&mut status.conditions),
        ..UserStatus::default()
    };
}

/// Takes out of the status of a user what it has no more since another has the older claim on its name. The principal stays: unless it is the other's by now, it has
/// to be revoked with the object.
pub(super) fn lose(status: &mut UserStatus) {
    let principal = status.principal.take();
    forget(status);
    status.principal = principal;
}

/// Revokes the user before the object disappears: its credential is deleted, which ends its sessions; a certificate cannot be, so its principal is denied
/// everything, and the connections that it has stay open. A user that never was in effect has nothing to revoke, and what is another's by now is left to it.
///
/// # Errors
/// When the brokers do not answer and it is worth waiting for them.
pub async fn cleanup(object: &User, context: &Context) -> Result<(), Error> {
    let Some(status) = object.status.as_ref() else {
        return Ok(());
    };
    let Some(name) = status.principal.as_deref() else {
        return Ok(());
    };
    let Some((cluster, access)) = members::revocable(context, object).await? else {
        return Ok(());
    };
    let taken_over = members::has_successor(object, &cluster, &context.indexes.users, |other| {
        other
            .status
            .as_ref()
            .is_some_and(|held| held.principal == status.principal)
    });
    if taken_over {
        return Ok(());
    }
    context.metrics.broker_write("User");
    if name.starts_with(CERTIFICATE_PREFIX) {
        access.admin.create_acls(&acl::revocation(name)).await?;
        if let Err(blocked) = require_revocable(&cluster, name) {
            publish(
                context,
                object,
                EventType::Warning,
                blocked.reason,
                blocked.message,
            )
            .await;
        }
    }
    // A change from a password to a certificate may have come half the way.
    if !name.starts_with(CERTIFICATE_PREFIX) || status.credential_fingerprint.is_some() {
        delete_credentials(object, &access).await?;
    }
    if object.spec.suspended && !name.starts_with(CERTIFICATE_PREFIX) {
        access.admin.delete_acls(&acl::revocation(name)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::fixture;

    #[test]
    fn certificates_outlive_a_change_to_a_password_and_a_password_does_not() {
        let status = |principal: Option<&str>| UserStatus {
            principal: principal.map(ToOwned::to_owned),
            ..UserStatus::default()
        };
        for (former, now, expected) in [
            (Some("User:CN=alice"), "User:alice", Some("User:CN=alice")),
            (Some("User:CN=alice"), "User:CN=alice", None),
            (Some("User:alice"), "User:CN=alice", None),
            (None, "User:alice", None),
        ] {
            let status = status(former);
            assert_eq!(former_certificates(&status, now), expected, "{former:?}");
        }
    }

    #[test]
    fn a_super_users_certificate_cannot_be_refused_and_its_password_can() {
        let mut cluster = fixture();
        cluster.spec.authorization.super_users =
            vec!["User:CN=alice".to_owned(), "User:bob".to_owned()];
        let blocked = require_revocable(&cluster, "User:CN=alice").unwrap_err();
        assert_eq!(
            blocked.message,
            "User:CN=alice is a super user of SecureCluster events, so its certificate cannot be refused: remove it from spec.authorization.superUsers there first"
        );
        require_revocable(&cluster, "User:CN=carol").unwrap();
        require_revocable(&cluster, "User:bob").unwrap();
    }

    #[test]
    fn a_status_forgets_what_was_in_effect_and_keeps_its_conditions() {
        let mut status = UserStatus {
            observed_generation: Some(2),
            conditions: members::paused(&[], Some(2)),
            principal: Some("User:alice".to_owned()),
            secret_name: Some("alice".to_owned()),
            credential_fingerprint: Some("f".to_owned()),
            trusted_authorities: vec!["ca".to_owned()],
            ..UserStatus::default()
        };
        lose(&mut status);
        assert_eq!(status.principal.as_deref(), Some("User:alice"));
        assert_eq!(status.secret_name, None);
        forget(&mut status);
        assert_eq!(status.conditions.len(), 1);
        assert_eq!(
            status,
            UserStatus {
                observed_generation: Some(2),
                conditions: status.conditions.clone(),
                ..UserStatus::default()
            }
        );
    }
}
