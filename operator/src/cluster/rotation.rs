//! Carries out the steps of [`crate::authorities`] for both authorities of a cluster.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt, api::PostParams, runtime::events::EventType};
use palisade_crds::{ConditionType, Reason, SecureCluster, User};
use time::{Duration, OffsetDateTime};

use super::{
    Cluster, objects,
    observe::{BrokerView, Observed},
};
use crate::{
    Context, Error,
    authorities::{
        AuthorityPolicy, AuthorityRecord, BrokerReport, ClientReport, Evidence, Step,
        clients_evidence, cluster_evidence, next_step,
    },
    kubernetes::{FIELD_MANAGER, Index, is_ours, names, publish},
    members,
    pki::{CertificateInfo, CommonName, PkiError},
};

/// Endpoints of a broker that take certificates of the cluster authority.
const OWN_ENDPOINTS: [&str; 2] = ["CONTROL", "ADMIN"];

/// How long after a user's certificate was issued it counts as in use: its Secret has reached the pods that mount it by then.
const ARRIVAL: Duration = Duration::seconds(10);

/// An authority and the Secret it was read from.
pub(super) struct Held {
    pub(super) record: AuthorityRecord,
    secret: Secret,
}

/// Both authorities of a cluster.
pub(super) struct Authorities {
    pub(super) cluster: Held,
    pub(super) clients: Held,
}

/// Reads both authorities, and makes those that do not exist yet.
pub(super) async fn load(
    context: &Context,
    object: &SecureCluster,
    cluster: &Cluster,
    observed: &Observed,
    now: OffsetDateTime,
) -> Result<Authorities, Error> {
    let (cluster_name, clients_name) = authority_names(cluster)?;
    let secret = names::cluster_authority_secret(&cluster.name);
    let of_cluster = ensure(
        context,
        object,
        observed.cluster_authority.as_ref(),
        secret,
        &cluster_name,
        &cluster.cluster_policy,
        now,
    )
    .await?;
    let secret = names::clients_authority_secret(&cluster.name);
    let of_clients = ensure(
        context,
        object,
        observed.clients_authority.as_ref(),
        secret,
        &clients_name,
        &cluster.clients_policy,
        now,
    )
    .await?;
    Ok(Authorities {
        cluster: of_cluster,
        clients: of_clients,
    })
}

/// Whether a cluster trusts more than one authority of a kind, which is when users' reports matter to it.
#[must_use]
pub fn is_rotating(cluster: &SecureCluster) -> bool {
    cluster
        .status
        .as_ref()
        .and_then(|status| status.authorities.as_ref())
        .is_some_and(|authorities| {
            [&authorities.cluster, &authorities.clients]
                .into_iter()
                .flatten()
                .any(|authority| authority.trusted.len() > 1)
        })
}

fn authority_names(cluster: &Cluster) -> Result<(CommonName, CommonName), PkiError> {
    let bad = |error: crate::pki::NameError| PkiError::Read {
        what: "the cluster's name",
        reason: error.to_string(),
    };
    Ok((
        cluster.cluster_authority_name().map_err(bad)?,
        cluster.clients_authority_name().map_err(bad)?,
    ))
}

async fn ensure(
    context: &Context,
    object: &SecureCluster,
    held: Option<&Secret>,
    secret_name: String,
    name: &CommonName,
    policy: &AuthorityPolicy,
    now: OffsetDateTime,
) -> Result<Held, Error> {
    let mut desired = objects::secrets::authority(object, secret_name);
    if let Some(secret) = held {
        if !is_ours(secret, &desired) {
            return Err(Error::NotOurs {
                kind: "Secret".to_owned(),
                name: secret.name_any(),
            });
        }
        return Ok(Held {
            record: AuthorityRecord::read(secret)?,
            secret: secret.clone(),
        });
    }
    let record = AuthorityRecord::generate(name, policy, now)?;
    record.write(&mut desired);
    let api: Api<Secret> = Api::namespaced(
        context.client.clone(),
        &object.namespace().unwrap_or_default(),
    );
    context.metrics.api_write("Secret");
    // Created, never applied: of two operators that both found none, the second fails and reads the first one's.
    let secret = api
        .create(
            &PostParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            },
            &desired,
        )
        .await?;
    Ok(Held { record, secret })
}

/// Takes each authority one step further where the evidence allows, and returns what is waited for.
pub(super) async fn advance(
    context: &Context,
    object: &SecureCluster,
    cluster: &Cluster,
    observed: &Observed,
    authorities: &mut Authorities,
    brokers: &[BrokerView],
    now: OffsetDateTime,
) -> Result<Option<String>, Error> {
    let leaves: Vec<Option<CertificateInfo>> = brokers
        .iter()
        .map(|broker| leaf(observed, &broker.pod))
        .collect();
    let reports: Vec<BrokerReport<'_>> = brokers
        .iter()
        .zip(&leaves)
        .map(|(broker, leaf)| BrokerReport {
            pod: &broker.pod,
            status: broker.status.as_ref().ok(),
            leaf: leaf.as_ref().map(|leaf| leaf.fingerprint.as_str()),
            leaf_is_current: leaf
                .as_ref()
                .is_some_and(|leaf| leaf.is_issued_by(authorities.cluster.record.current().info())),
        })
        .collect();
    let users = issued_users(&context.indexes.users, object);
    let full_names: Vec<String> = users
        .iter()
        .map(|user| super::report::full_name(user.as_ref()))
        .collect();
    let mut clients = Vec::new();
    for (user, name) in users.iter().zip(&full_names) {
        let trusted = user
            .status
            .as_ref()
            .map(|status| status.trusted_authorities.as_slice())
            .unwrap_or_default();
        // Certificates are read only while somebody waits for them.
        let leaf_is_current = if authorities.clients.record.has_previous() {
            let authority = authorities.clients.record.current().info();
            certificate_is_current(context, user, authority, now).await?
        } else {
            None
        };
        clients.push(ClientReport {
            name,
            trusted,
            leaf_is_current,
            is_stuck: is_stuck(user),
        });
    }
    let listeners: Vec<&str> = cluster
        .listeners
        .iter()
        .filter(|listener| listener.takes_certificates())
        .map(|listener| listener.name.as_str())
        .collect();
    let (cluster_name, clients_name) = authority_names(cluster)?;
    let evidence = cluster_evidence(
        &authorities.cluster.record,
        &reports,
        &clients,
        &OWN_ENDPOINTS,
    );
    let of_cluster = take(
        context,
        object,
        &mut authorities.cluster,
        &cluster_name,
        &cluster.cluster_policy,
        &evidence,
        now,
    )
    .await?;
    let evidence = clients_evidence(&authorities.clients.record, &reports, &clients, &listeners);
    let of_clients = take(
        context,
        object,
        &mut authorities.clients,
        &clients_name,
        &cluster.clients_policy,
        &evidence,
        now,
    )
    .await?;
    let waits = [
        of_cluster.map(|wait| format!("cluster authority: {wait}")),
        of_clients.map(|wait| format!("clients authority: {wait}")),
    ];
    let waits: Vec<String> = waits.into_iter().flatten().collect();
    Ok((!waits.is_empty()).then(|| waits.join("; ")))
}

/// Carries out one step and says what is under way.
async fn take(
    context: &Context,
    object: &SecureCluster,
    held: &mut Held,
    name: &CommonName,
    policy: &AuthorityPolicy,
    evidence: &Evidence,
    now: OffsetDateTime,
) -> Result<Option<String>, Error> {
    let step = next_step(&held.record, policy, evidence, now);
    let message = match &step {
        Step::Settled => return Ok(None),
        Step::AwaitTrust(missing) => {
            return Ok(Some(format!(
                "waiting for trust in the new authority: {}",
                listed(missing)
            )));
        }
        Step::AwaitLeaves(missing) => {
            return Ok(Some(format!(
                "waiting for certificates of the new authority: {}",
                listed(missing)
            )));
        }
        Step::Begin { id, mode } => {
            held.record.begin(id.clone(), *mode, name, policy, now)?;
            "distributing trust in the new authority"
        }
        Step::Switch => {
            held.record.switch(now)?;
            "the new authority issues from now on"
        }
        Step::Withdraw => {
            held.record.withdraw();
            "withdrawing trust in the former authority"
        }
    };
    let mut secret = held.secret.clone();
    held.record.write(&mut secret);
    let api: Api<Secret> = Api::namespaced(
        context.client.clone(),
        &secret.namespace().unwrap_or_default(),
    );
    context.metrics.api_write("Secret");
    tracing::info!(secret = secret.name_any(), ?step, "rotating an authority");
    // The Secret carries the version it was read at: if anyone changed it since, this fails and everything is decided anew.
    held.secret = api
        .replace(
            &secret.name_any(),
            &PostParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            },
            &secret,
        )
        .await?;
    let behind = left_behind(&step, evidence);
    if !behind.is_empty() {
        let note = format!(
            "{}: {message}, without waiting for {}",
            secret.name_any(),
            listed(&behind)
        );
        let (kind, reason) = (EventType::Warning, Reason::RotationInProgress);
        publish(context, object, kind, reason, note).await;
    }
    Ok(Some(message.to_owned()))
}

/// Whom a step is not good for: those who cannot follow, and those who would still be waited for if the authority did not end.
fn left_behind(step: &Step, evidence: &Evidence) -> Vec<String> {
    let late = match step {
        Step::Switch => &evidence.distrusting,
        Step::Withdraw => &evidence.on_old_leaves,
        _ => return Vec::new(),
    };
    [late.as_slice(), evidence.left_out.as_slice()].concat()
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

fn leaf(observed: &Observed, pod: &str) -> Option<CertificateInfo> {
    let bytes = observed
        .certificates
        .as_ref()?
        .data
        .as_ref()?
        .get(&format!("{pod}.crt"))?;
    CertificateInfo::from_pem(std::str::from_utf8(&bytes.0).ok()?).ok()
}

/// Users of the cluster whose Secret was written and who are not going away. Those that the cluster does not admit are not asked, for nobody keeps their Secrets
/// up to date.
fn issued_users(users: &Index<User>, cluster: &SecureCluster) -> Vec<std::sync::Arc<User>> {
    let mut users: Vec<_> = users
        .all()
        .into_iter()
        .filter(|user| {
            members::refers_to(user.as_ref(), &user.spec.cluster_ref, cluster)
                && user.metadata.deletion_timestamp.is_none()
                && !crate::kubernetes::is_paused(user.as_ref())
                && user
                    .status
                    .as_ref()
                    .is_some_and(|status| status.secret_name.is_some())
        })
        .collect();
    users.sort_by_key(|user| (user.namespace(), user.name_any()));
    users
}

/// Whether a user's Secret stays as it is until somebody mends what the status complains of: nothing that a rotation waits for would come.
fn is_stuck(user: &User) -> bool {
    const REASONS: [Reason; 5] = [
        Reason::InvalidSpec,
        Reason::NoListenerForAuthentication,
        Reason::SecretNotFound,
        Reason::SecretInvalid,
        Reason::SecretConflict,
    ];
    user.status.as_ref().is_some_and(|status| {
        status.conditions.iter().any(|condition| {
            condition.type_ == ConditionType::Ready.as_str()
                && condition.status == "False"
                // What is said of a former spec may be mended by the present one.
                && condition.observed_generation == user.metadata.generation
                && REASONS.iter().any(|reason| reason.as_str() == condition.reason)
        })
    })
}

/// Whether the certificate in a user's Secret is of the present clients authority, and has had time to arrive; nothing for a user
/// without one.
async fn certificate_is_current(
    context: &Context,
    user: &User,
    authority: &CertificateInfo,
    now: OffsetDateTime,
) -> Result<Option<bool>, Error> {
    if user
        .status
        .as_ref()
        .is_none_or(|status| status.certificate.is_none())
    {
        return Ok(None);
    }
    let api: Api<Secret> = Api::namespaced(
        context.client.clone(),
        &user.namespace().unwrap_or_default(),
    );
    let Some(secret) = api.get_opt(user.secret_name()).await? else {
        return Ok(Some(false));
    };
    let info = secret
        .data
        .as_ref()
        .and_then(|data| data.get(crate::user::USER_CERTIFICATE))
        .and_then(|bytes| CertificateInfo::from_pem(std::str::from_utf8(&bytes.0).ok()?).ok());
    Ok(Some(info.is_some_and(|info| {
        info.is_issued_by(authority) && now - info.issued_at() >= ARRIVAL
    })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kube::runtime::{reflector, watcher};
    use serde_json::json;

    use super::*;
    use crate::cluster::validate::tests::fixture;

    #[test]
    fn a_rotation_waits_only_for_users_that_the_cluster_admits_and_that_have_a_secret() {
        let (store, mut writer) = reflector::store::<User>();
        for (namespace, secret) in [
            ("messaging", Some("alice")),
            ("shop", Some("alice")),
            ("other", Some("alice")),
            ("shop-two", None),
        ] {
            let user = json!({
                "apiVersion": "palisade.dev/v1alpha1", "kind": "User",
                "metadata": { "name": "alice", "namespace": namespace },
                "spec": { "clusterRef": { "name": "events", "namespace": "messaging" }, "authentication": { "type": "ScramSha512" } },
                "status": { "secretName": secret }
            });
            let user = serde_json::from_value(user).unwrap();
            writer.apply_watcher_event(&watcher::Event::Apply(user));
        }
        let mut cluster = fixture();
        cluster.spec.allowed_namespaces.push("shop-two".to_owned());
        let namespaces: Vec<_> = issued_users(&Index::new(vec![store]), &cluster)
            .iter()
            .filter_map(|user| user.namespace())
            .collect();
        assert_eq!(namespaces, ["messaging", "shop"]);
    }

    #[test]
    fn a_user_is_stuck_while_its_present_spec_waits_for_somebody() {
        let user = |ready: &str, reason: &str, generation: i64| -> User {
            serde_json::from_value(json!({
                "apiVersion": "palisade.dev/v1alpha1", "kind": "User",
                "metadata": { "name": "alice", "namespace": "shop", "generation": 2 },
                "spec": { "clusterRef": { "name": "events", "namespace": "messaging" }, "authentication": { "type": "MutualTls" } },
                "status": { "secretName": "alice", "conditions": [{
                    "type": "Ready", "status": ready, "reason": reason, "message": "", "observedGeneration": generation,
                    "lastTransitionTime": "2027-01-01T00:00:00Z"
                }] }
            }))
            .unwrap()
        };
        for reason in [
            "InvalidSpec",
            "NoListenerForAuthentication",
            "SecretNotFound",
            "SecretInvalid",
            "SecretConflict",
        ] {
            assert!(is_stuck(&user("False", reason, 2)), "{reason}");
            assert!(!is_stuck(&user("False", reason, 1)), "{reason}");
        }
        assert!(!is_stuck(&user("False", "BrokersUnreachable", 2)));
        assert!(!is_stuck(&user("True", "Suspended", 2)));
    }

    #[test]
    fn a_step_names_whom_it_leaves_behind() {
        let names = |name: &str| vec![name.to_owned()];
        let evidence = Evidence {
            distrusting: names("broker events-0"),
            on_old_leaves: names("user shop/bob"),
            left_out: names("user shop/alice"),
        };
        assert_eq!(
            left_behind(&Step::Switch, &evidence),
            ["broker events-0", "user shop/alice"]
        );
        assert_eq!(
            left_behind(&Step::Withdraw, &evidence),
            ["user shop/bob", "user shop/alice"]
        );
        assert_eq!(left_behind(&Step::Settled, &evidence), [""; 0]);
    }

    #[test]
    fn long_waits_are_shortened() {
        let names: Vec<String> = (0..7).map(|index| format!("user {index}")).collect();
        assert_eq!(listed(&names[..1]), "user 0");
        assert_eq!(
            listed(&names[..5]),
            "user 0, user 1, user 2, user 3, user 4"
        );
        assert_eq!(
            listed(&names),
            "user 0, user 1, user 2, user 3, user 4 and 2 more"
        );
    }
}
