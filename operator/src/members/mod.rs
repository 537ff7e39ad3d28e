//! What User, Acl, Quota, Topic and CertRotation have in common: they belong to a cluster, wait for it, and are revoked before they disappear.

mod claims;

use std::{future::Future, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp,
};
use kube::{Api, ResourceExt, runtime::events::EventType};
use palisade_crds::{ClusterRef, ConditionType, Reason, SecureCluster, conditions, guard};

pub use claims::{claim, has_successor};

use crate::{
    Context, Error,
    access::ClusterAccess,
    kafka::KafkaError,
    kubernetes::{Index, StatusObject, publish, write_status},
    pki::PkiError,
};
use claims::deletion;

/// How soon an object that waits is looked at again, and one in which nothing is amiss (drift on brokers sends no event).
pub const WAITING: Duration = Duration::from_secs(5);
/// See [`WAITING`].
pub const SETTLED: Duration = Duration::from_secs(60);
/// How long the deletion of an object in a namespace that is going away waits for brokers that do not answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why an object is not in effect: something its author, or somebody, has to mend or wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Why.
    pub reason: Reason,
    /// What to do.
    pub message: String,
}

impl Blocked {
    /// A reason and what to do.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// Of an error that trying again does not mend: whoever can mend it has to see it in a status.
    #[must_use]
    pub fn by(error: &Error) -> Option<Self> {
        let reason = match error {
            Error::NotOurs { kind, .. } if kind == "Secret" => Reason::SecretConflict,
            Error::NotOurs { .. } => Reason::Conflict,
            // What an authority past its end would issue is not valid at any moment.
            Error::Pki(PkiError::Validity(_)) => Reason::SecretInvalid,
            error if error.is_refusal() => Reason::Retrying,
            _ => return None,
        };
        Some(Self::new(reason, error.to_string()))
    }
}

/// What stops a reconcile: a condition, or an error to try again.
#[derive(Debug)]
pub enum Stop {
    /// The object gets a condition.
    Blocked(Blocked),
    /// The reconcile is tried again.
    Failed(Error),
}

impl From<Blocked> for Stop {
    fn from(blocked: Blocked) -> Self {
        Self::Blocked(blocked)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match Blocked::by(&error) {
            Some(blocked) => Self::Blocked(blocked),
            None => Self::Failed(error),
        }
    }
}

impl From<kube::Error> for Stop {
    fn from(error: kube::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<PkiError> for Stop {
    fn from(error: PkiError) -> Self {
        Error::from(error).into()
    }
}

impl From<KafkaError> for Stop {
    fn from(error: KafkaError) -> Self {
        let reason = match &error {
            KafkaError::Refused { .. } | KafkaError::Unsupported { .. } => Reason::BrokerRefused,
            _ => Reason::BrokersUnreachable,
        };
        Self::Blocked(Blocked::new(reason, error.to_string()))
    }
}

/// A kind that belongs to a cluster.
pub trait Member: StatusObject {
    /// The cluster it names.
    fn cluster_ref(&self) -> &ClusterRef;

    /// Whether, by its status, the brokers hold something of it that has to be withdrawn before another object takes its place. Topics and rotations leave nothing
    /// of that kind: data is deleted only on behalf of an object that the cluster admits.
    fn in_effect(&self) -> bool;
}

macro_rules! member {
    ($($kind:ty: $in_effect:expr),* $(,)?) => {
        $(impl Member for $kind {
            fn cluster_ref(&self) -> &ClusterRef {
                &self.spec.cluster_ref
            }

            fn in_effect(&self) -> bool {
                self.status.as_ref().is_some_and($in_effect)
            }
        })*
    };
}

member!(
    palisade_crds::User: |status| status.principal.is_some(),
    palisade_crds::Acl: |status| status.principal.is_some(),
    palisade_crds::Quota: |status| status.entity.is_some(),
    palisade_crds::Topic: |_| false,
    palisade_crds::CertRotation: |_| false,
);

/// Namespace and name of the cluster that an object of `namespace` refers to.
#[must_use]
pub fn cluster_key(reference: &ClusterRef, namespace: &str) -> (String, String) {
    (
        reference
            .namespace
            .clone()
            .unwrap_or_else(|| namespace.to_owned()),
        reference.name.clone(),
    )
}

/// Whether an object refers to this cluster, and may.
#[must_use]
pub fn refers_to(
    object: &impl ResourceExt,
    reference: &ClusterRef,
    cluster: &SecureCluster,
) -> bool {
    let namespace = object.namespace().unwrap_or_default();
    cluster_key(reference, &namespace)
        == (cluster.namespace().unwrap_or_default(), cluster.name_any())
        && cluster.admits_namespace(&namespace)
}

/// The cluster an object belongs to.
///
/// # Errors
/// [`Blocked`] when it does not exist, is going away, or does not admit the object's namespace.
pub fn resolve(
    reference: &ClusterRef,
    namespace: &str,
    clusters: &Index<SecureCluster>,
) -> Result<Arc<SecureCluster>, Blocked> {
    let (cluster_namespace, name) = cluster_key(reference, namespace);
    let cluster = clusters.get(&cluster_namespace, &name);
    admit(cluster, namespace, &cluster_namespace, &name)
}

fn admit(
    cluster: Option<Arc<SecureCluster>>,
    namespace: &str,
    cluster_namespace: &str,
    name: &str,
) -> Result<Arc<SecureCluster>, Blocked> {
    let Some(cluster) = cluster else {
        return Err(Blocked::new(
            Reason::ClusterNotFound,
            format!("SecureCluster {cluster_namespace}/{name} does not exist yet"),
        ));
    };
    if !cluster.admits_namespace(namespace) {
        return Err(Blocked::new(
            Reason::NamespaceNotAllowed,
            format!(
                "SecureCluster {cluster_namespace}/{name} does not admit namespace {namespace}: list it in its spec.allowedNamespaces"
            ),
        ));
    }
    if cluster.metadata.deletion_timestamp.is_some() {
        return Err(Blocked::new(
            Reason::ClusterDeleting,
            format!("SecureCluster {cluster_namespace}/{name} is being deleted"),
        ));
    }
    Ok(cluster)
}

/// Stops unless the admission rules hold and brokers serve; otherwise the cluster and the way to its brokers.
///
/// # Errors
/// [`Stop`].
pub async fn bind<K: Member + guard::Guarded>(
    context: &Context,
    object: &K,
) -> Result<(Arc<SecureCluster>, Arc<ClusterAccess>), Stop> {
    guard::check(object).map_err(|error| Blocked::new(Reason::InvalidSpec, error.to_string()))?;
    let namespace = object.namespace().unwrap_or_default();
    let cluster = resolve(object.cluster_ref(), &namespace, &context.indexes.clusters)?;
    let ready = cluster
        .status
        .as_ref()
        .is_some_and(|status| status.ready_replicas > 0);
    if !ready {
        let name = cluster.name_any();
        return Err(Blocked::new(
            Reason::ClusterNotReady,
            format!("waiting for SecureCluster {name}: no broker serves clients yet"),
        )
        .into());
    }
    match context.access.get(&context.client, &cluster).await {
        Ok(access) => Ok((cluster, access)),
        Err(Error::Access(error)) => {
            Err(Blocked::new(Reason::ClusterNotReady, error.to_string()).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes into the status what is about to reach the brokers, before it does: so whoever has to withdraw it after a crash knows of it. Nothing else of the status
/// that a reconcile works on is written yet.
///
/// # Errors
/// What the API server answers.
pub async fn announce<K: Member>(
    context: &Context,
    object: &K,
    status: &mut K::Status,
    change: impl Fn(&mut K::Status),
) -> Result<(), Error> {
    let mut announced = object.status().cloned().unwrap_or_default();
    change(&mut announced);
    change(status);
    write_status(context, object, &announced).await
}

/// Withdraws what the brokers hold of an object that is blocked for one of `reasons`, such as that its cluster admits its namespace no more, and returns
/// whether that is done.
pub async fn expel<K: Member>(
    object: &K,
    blocked: &mut Blocked,
    reasons: &[Reason],
    revocation: impl Future<Output = Result<(), Error>>,
) -> bool {
    if !reasons.contains(&blocked.reason) || !object.in_effect() {
        return false;
    }
    match revocation.await {
        Ok(()) => true,
        Err(error) => {
            blocked.message = format!(
                "{}; what the brokers hold of this object is not withdrawn yet: {error}",
                blocked.message
            );
            false
        }
    }
}

/// Conditions after a reconcile that had an outcome: Ready, Synced and ReconciliationPaused.
#[must_use]
pub fn outcome(
    former: &[Condition],
    generation: Option<i64>,
    result: Result<(Reason, &str), &Blocked>,
) -> Vec<Condition> {
    let mut list = former.to_vec();
    let now = Timestamp::now();
    let mut set = |condition, holds: bool, reason, message: &str| {
        conditions::set(
            &mut list, condition, holds, reason, message, generation, now,
        );
    };
    match result {
        Ok((reason, message)) => {
            set(ConditionType::Ready, true, reason, message);
            set(ConditionType::Synced, true, Reason::Synced, message);
        }
        Err(blocked) => {
            set(
                ConditionType::Ready,
                false,
                blocked.reason,
                &blocked.message,
            );
            set(
                ConditionType::Synced,
                false,
                blocked.reason,
                &blocked.message,
            );
        }
    }
    set(
        ConditionType::ReconciliationPaused,
        false,
        Reason::NotPaused,
        "",
    );
    list
}

/// Conditions of an object that is paused: what stood stands.
#[must_use]
pub fn paused(former: &[Condition], generation: Option<i64>) -> Vec<Condition> {
    let mut list = former.to_vec();
    let message = "remove the annotation palisade.dev/paused to go on";
    conditions::set(
        &mut list,
        ConditionType::ReconciliationPaused,
        true,
        Reason::Paused,
        message,
        generation,
        Timestamp::now(),
    );
    list
}

/// Before an object disappears: what its cluster needs for revoking it, or nothing where there is nothing left to revoke.
///
/// # Errors
/// When the brokers do not answer now and it is worth waiting for them.
pub async fn revocable<K: Member>(
    context: &Context,
    object: &K,
) -> Result<Option<(Arc<SecureCluster>, Arc<ClusterAccess>)>, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let (cluster_namespace, name) = cluster_key(object.cluster_ref(), &namespace);
    let cluster = context.indexes.clusters.get(&cluster_namespace, &name);
    let Some(cluster) = cluster.filter(|cluster| may_hold(cluster, object)) else {
        return Ok(None);
    };
    match context.access.get(&context.client, &cluster).await {
        Ok(access) => Ok(Some((cluster, access))),
        // Without an authority no broker ever ran.
        Err(Error::Access(crate::access::AccessError::NoAuthority(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a cluster's brokers may hold something of an object: not when they go away themselves, nor when the cluster never admitted it.
fn may_hold<K: Member>(cluster: &SecureCluster, object: &K) -> bool {
    cluster.metadata.deletion_timestamp.is_none()
        && (cluster.admits_namespace(&object.namespace().unwrap_or_default()) || object.in_effect())
}

/// Whether a cleanup that failed is given up: only in a namespace that is going away, and only after some patience, so that deleting a namespace never hangs on
/// brokers, or on rights of the operator, that are gone with it.
pub async fn give_up<K: StatusObject>(context: &Context, object: &K, error: &Error) -> bool {
    let Some(since) = deletion(object) else {
        return false;
    };
    let waited = Timestamp::now()
        .as_second()
        .saturating_sub(since.as_second());
    if u64::try_from(waited).is_ok_and(|waited| waited < PATIENCE.as_secs()) {
        return false;
    }
    let name = object.namespace().unwrap_or_default();
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let leaving = match namespaces.get_opt(&name).await {
        Ok(namespace) => {
            namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some())
        }
        Err(_) => false,
    };
    if leaving {
        let note = format!(
            "the namespace is going away and cleaning up after this object failed, so something of it may remain on the brokers or on volumes: {error}"
        );
        tracing::warn!(namespace = name, object = object.name_any(), %error, "giving up a cleanup");
        publish(context, object, EventType::Warning, Reason::Deleting, note).await;
    }
    leaving
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_crds::User;
    use serde_json::json;

    use super::*;
    use crate::kubernetes::FINALIZER;

    pub(super) fn cluster(change: impl FnOnce(&mut SecureCluster)) -> Option<Arc<SecureCluster>> {
        let mut cluster: SecureCluster = serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "SecureCluster",
            "metadata": { "name": "events", "namespace": "messaging" },
            "spec": {
                "storage": { "size": "1Gi" },
                "logEncryption": { "keyProvider": { "secret": { "name": "kek" } } },
                "listeners": [{ "name": "internal", "port": 9093, "authentication": ["ScramSha512"] }],
                "allowedNamespaces": ["shop"]
            }
        }))
        .unwrap();
        change(&mut cluster);
        Some(Arc::new(cluster))
    }

    #[test]
    fn an_object_waits_for_a_cluster_that_it_may_use() {
        let reason = |cluster, namespace| {
            admit(cluster, namespace, "messaging", "events")
                .err()
                .map(|blocked| blocked.reason)
        };
        assert_eq!(reason(None, "messaging"), Some(Reason::ClusterNotFound));
        assert_eq!(reason(cluster(|_| {}), "messaging"), None);
        assert_eq!(reason(cluster(|_| {}), "shop"), None);
        assert_eq!(
            reason(cluster(|_| {}), "other"),
            Some(Reason::NamespaceNotAllowed)
        );
        let leaving = cluster(|cluster| {
            cluster.metadata.deletion_timestamp = Some(
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH),
            );
        });
        assert_eq!(reason(leaving, "messaging"), Some(Reason::ClusterDeleting));
    }

    /// A user of a namespace, and what became of it.
    pub(super) fn user(namespace: &str, uid: &str, second: i64, principal: Option<&str>) -> User {
        let mut user: User = serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "User",
            "metadata": { "name": "alice", "namespace": namespace, "uid": uid, "finalizers": [FINALIZER] },
            "spec": {
                "clusterRef": { "name": "events", "namespace": "messaging" },
                "authentication": { "type": "ScramSha512" }
            },
            "status": { "principal": principal }
        }))
        .unwrap();
        user.metadata.creation_timestamp = at(second);
        user
    }

    pub(super) fn at(second: i64) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time> {
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            Timestamp::from_second(second).unwrap(),
        ))
    }

    #[test]
    fn brokers_may_hold_what_was_in_effect_when_its_namespace_was_taken_off_the_list() {
        let admitting = cluster(|_| {}).unwrap();
        let of = |namespace, principal| may_hold(&admitting, &user(namespace, "u", 10, principal));
        assert!(of("shop", None));
        assert!(!of("foreign", None));
        assert!(of("foreign", Some("User:alice")));
        let leaving = cluster(|cluster| cluster.metadata.deletion_timestamp = at(40)).unwrap();
        assert!(!may_hold(
            &leaving,
            &user("shop", "u", 10, Some("User:alice"))
        ));
    }

    #[tokio::test]
    async fn an_object_is_expelled_once_and_says_so_when_the_brokers_do_not_answer() {
        let reasons = [Reason::NamespaceNotAllowed];
        let not_allowed = || Blocked::new(Reason::NamespaceNotAllowed, "not admitted");
        let held = user("foreign", "u", 10, Some("User:alice"));
        assert!(expel(&held, &mut not_allowed(), &reasons, async { Ok(()) }).await);
        let mut blocked = not_allowed();
        let failing = async { Err(Error::Configuration("no broker".to_owned())) };
        assert!(!expel(&held, &mut blocked, &reasons, failing).await);
        assert_eq!(
            blocked.message,
            "not admitted; what the brokers hold of this object is not withdrawn yet: no broker"
        );
        // Nothing is asked of the brokers for an object that never was in effect, or that waits for something else.
        let never = user("foreign", "u", 10, None);
        assert!(!expel(&never, &mut not_allowed(), &reasons, async { Ok(()) }).await);
        let mut waiting = Blocked::new(Reason::ClusterNotReady, "waiting");
        assert!(!expel(&held, &mut waiting, &reasons, async { Ok(()) }).await);
    }

    #[test]
    fn what_the_api_server_refuses_is_shown_and_its_silence_is_tried_again() {
        let answer = |code| {
            Stop::from(kube::Error::Api(
                kube::core::Status::failure("no", "Why")
                    .with_code(code)
                    .boxed(),
            ))
        };
        for code in [400, 403, 422] {
            assert!(
                matches!(answer(code), Stop::Blocked(blocked) if blocked.reason == Reason::Retrying)
            );
        }
        for code in [404, 409, 429, 500] {
            assert!(matches!(answer(code), Stop::Failed(_)));
        }
    }

    #[test]
    fn what_an_ended_authority_cannot_issue_is_shown_and_a_lack_of_randomness_is_tried_again() {
        let ended = Stop::from(PkiError::Validity(time::Duration::ZERO));
        assert!(matches!(ended, Stop::Blocked(blocked) if blocked.reason == Reason::SecretInvalid));
        assert!(matches!(Stop::from(PkiError::Random), Stop::Failed(_)));
    }

    #[test]
    fn refusals_and_silence_of_brokers_are_told_apart() {
        let reason = |error| match Stop::from(error) {
            Stop::Blocked(blocked) => blocked.reason,
            Stop::Failed(_) => Reason::Retrying,
        };
        assert_eq!(
            reason(KafkaError::NoBroker {
                last: String::new()
            }),
            Reason::BrokersUnreachable
        );
        assert_eq!(
            reason(KafkaError::Unsupported { api: "CreateAcls" }),
            Reason::BrokerRefused
        );
    }

    #[test]
    fn an_outcome_sets_ready_and_synced_and_the_same_outcome_changes_nothing() {
        let blocked = Blocked::new(Reason::ClusterNotFound, "waiting");
        let first = outcome(&[], Some(1), Err(&blocked));
        assert_eq!(first.len(), 3);
        assert_eq!(outcome(&first, Some(1), Err(&blocked)), first);
        let second = outcome(&first, Some(1), Ok((Reason::Synced, "done")));
        assert!(conditions::is_true(&second, ConditionType::Ready));
    }
}
