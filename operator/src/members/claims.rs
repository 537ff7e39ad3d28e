//! Which of several objects that declare the same thing counts.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use palisade_crds::{Reason, SecureCluster};

use super::{Blocked, Member, cluster_key, refers_to};
use crate::kubernetes::{FINALIZER, Index};

/// Of several objects that declare the same thing, the one that counts: the oldest, and of equally old ones the first by name.
fn first_claim<'a, K: ResourceExt + 'a>(
    claims: impl IntoIterator<Item = &'a Arc<K>>,
) -> Option<&'a Arc<K>> {
    claims.into_iter().min_by_key(|claim| {
        (
            claim.creation_timestamp().map(|time| time.0),
            claim.namespace(),
            claim.name_any(),
        )
    })
}

/// Whether another object has the older claim on the same thing in this cluster.
///
/// # Errors
/// [`Blocked`] naming the other.
pub fn claim<K: Member>(
    object: &K,
    cluster: &SecureCluster,
    index: &Index<K>,
    same: impl Fn(&K) -> bool,
    what: &str,
) -> Result<(), Blocked> {
    let rivals: Vec<_> = index
        .all()
        .into_iter()
        .filter(|other| counts(other.as_ref(), cluster) && same(other.as_ref()))
        .collect();
    match first_claim(&rivals) {
        Some(first) if first.uid() != object.uid() => Err(Blocked::new(
            Reason::Conflict,
            format!(
                "{} {}/{} declares {what} already and is older: delete one of the two",
                K::kind(&()),
                first.namespace().unwrap_or_default(),
                first.name_any()
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether an object has a claim on what it declares for a cluster: the cluster admits it, or did and the brokers hold something of it still. One that is
/// going away has it until it was revoked: nothing may come in between that the revocation would take.
fn counts<K: Member>(object: &K, cluster: &SecureCluster) -> bool {
    let namespace = object.namespace().unwrap_or_default();
    cluster_key(object.cluster_ref(), &namespace)
        == (cluster.namespace().unwrap_or_default(), cluster.name_any())
        && (cluster.admits_namespace(&namespace) || object.in_effect())
        && (deletion(object).is_none() || object.finalizers().iter().any(|held| held == FINALIZER))
}

/// Whether, beside this one, an object that the cluster admits and that is not going away declares the same thing.
pub fn has_successor<K: Member>(
    object: &K,
    cluster: &SecureCluster,
    index: &Index<K>,
    same: impl Fn(&K) -> bool,
) -> bool {
    index.all().into_iter().any(|other| {
        other.uid() != object.uid()
            && deletion(other.as_ref()).is_none()
            && refers_to(other.as_ref(), other.cluster_ref(), cluster)
            && same(other.as_ref())
    })
}

/// When an object began to go away.
pub(super) fn deletion(object: &impl ResourceExt) -> Option<Timestamp> {
    object.meta().deletion_timestamp.as_ref().map(|time| time.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_crds::{Topic, User};
    use serde_json::json;

    use super::*;
    use crate::members::tests::{at, cluster, user};

    #[test]
    fn of_two_claims_the_older_counts_and_of_equals_the_first_by_name() {
        let topic = |name: &str, second: i64| {
            let mut topic: Topic = serde_json::from_value(json!({
                "apiVersion": "palisade.dev/v1alpha1", "kind": "Topic",
                "metadata": { "name": name, "namespace": "shop" },
                "spec": { "clusterRef": { "name": "events" } }
            }))
            .unwrap();
            topic.metadata.creation_timestamp = at(second);
            Arc::new(topic)
        };
        assert_eq!(
            first_claim(&[topic("young", 20), topic("old", 10)])
                .unwrap()
                .name_any(),
            "old"
        );
        assert_eq!(
            first_claim(&[topic("b", 10), topic("a", 10)])
                .unwrap()
                .name_any(),
            "a"
        );
    }

    fn index(users: &[User]) -> Index<User> {
        let (store, mut writer) = kube::runtime::reflector::store();
        for user in users {
            writer.apply_watcher_event(&kube::runtime::watcher::Event::Apply(user.clone()));
        }
        Index::new(vec![store])
    }

    #[test]
    fn a_namespace_that_the_cluster_does_not_admit_claims_nothing_unless_brokers_hold_something_of_it()
     {
        let cluster = cluster(|_| {}).unwrap();
        let ours = user("shop", "ours", 20, None);
        let is_claimed = |other: User| {
            let all = index(&[ours.clone(), other]);
            claim(&ours, &cluster, &all, |_| true, "alice").is_err()
        };
        let in_effect = Some("User:alice");
        assert!(is_claimed(user("messaging", "other", 10, None)));
        assert!(!is_claimed(user("messaging", "other", 30, None)));
        assert!(!is_claimed(user("foreign", "other", 10, None)));
        assert!(is_claimed(user("foreign", "other", 10, in_effect)));
        // What goes away counts until it was revoked.
        let mut leaving = user("messaging", "other", 10, in_effect);
        leaving.metadata.deletion_timestamp = at(40);
        assert!(is_claimed(leaving.clone()));
        leaving.metadata.finalizers = None;
        assert!(!is_claimed(leaving));
    }

    #[test]
    fn only_an_admitted_object_that_stays_succeeds_another() {
        let cluster = cluster(|_| {}).unwrap();
        let ours = user("shop", "ours", 20, Some("User:alice"));
        let succeeds = |other: User| {
            let all = index(&[ours.clone(), other]);
            has_successor(&ours, &cluster, &all, |_| true)
        };
        assert!(succeeds(user("messaging", "other", 30, None)));
        assert!(!succeeds(user("foreign", "other", 10, None)));
        let mut leaving = user("messaging", "other", 30, None);
        leaving.metadata.deletion_timestamp = at(40);
        assert!(!succeeds(leaving));
    }
}
