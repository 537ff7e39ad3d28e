//! User: a principal of a cluster and the Secret that its workload mounts.
//!
//! The Secret is the operator's memory of a generated password, and is written only after the brokers accepted what it will hold. Whether a password was
//! pushed already is told without keeping it anywhere else: the Secret remembers a salt and the iteration count that was drawn when it was pushed, the
//! status a digest of salt and password, and the brokers report the iteration count.

mod credential;
mod files;
mod revocation;
mod secret;

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Api, ResourceExt, runtime::controller::Action, runtime::events::EventType};
use palisade_crds::{AuthenticationType, Reason, SecureCluster, User, UserStatus};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use revocation::cleanup;
pub use secret::USER_CERTIFICATE;

use crate::{
    Context, Error,
    access::ClusterAccess,
    authorities::AuthorityRecord,
    cluster::{self, CLUSTER_TRUST, ClientListener, report::certificate_status},
    kafka::{
        KafkaError,
        scram::{SaltedPassword, ScramMechanism},
    },
    kubernetes::{apply, digest, is_paused, names, publish, refresh_secret, write_status},
    members::{self, Blocked, Stop},
    pki::{CertificateInfo, CommonName, LeafKey, LeafUse, certificates, fingerprint},
};
use credential::CredentialRecord;
use secret::{Material, Plan};

/// The name that brokers authorise a user by.
#[must_use]
pub fn principal(user: &User) -> String {
    match user.spec.authentication.type_ {
        AuthenticationType::MutualTls => format!("User:CN={}", user.name_any()),
        _ => format!("User:{}", user.name_any()),
    }
}

/// Brings one user to the brokers and its Secret to the API server.
///
/// # Errors
/// What is worth another try.
pub async fn reconcile(object: &User, context: &Context) -> Result<Action, Error> {
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
            let result = if object.spec.suspended {
                (
                    Reason::Suspended,
                    "the brokers refuse this user until spec.suspended is false",
                )
            } else {
                (
                    Reason::Synced,
                    "the brokers accept the credential in the Secret",
                )
            };
            status.conditions = members::outcome(former, generation, Ok(result));
            Action::requeue(members::SETTLED)
        }
        Err(Stop::Blocked(mut blocked)) => {
            let reasons = [Reason::NamespaceNotAllowed];
            let gone =
                members::expel(object, &mut blocked, &reasons, cleanup(object, context)).await;
            if gone {
                revocation::forget(&mut status);
            } else if blocked.reason == Reason::Conflict {
                revocation::lose(&mut status);
            }
            status.conditions = members::outcome(former, generation, Err(&blocked));
            Action::requeue(members::WAITING)
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    write_status(context, object, &status).await?;
    Ok(action)
}

async fn sync(object: &User, context: &Context, status: &mut UserStatus) -> Result<(), Stop> {
    let (cluster, access) = members::bind(context, object).await?;
    let name = CommonName::new(object.name_any())
        .map_err(|error| Blocked::new(Reason::InvalidSpec, format!("metadata.name: {error}")))?;
    let principal = principal(object);
    // Whatever their authentication: one of them would delete the credential of the other.
    members::claim(
        object,
        &cluster,
        &context.indexes.users,
        |other| other.name_any() == object.name_any(),
        &format!("the name {}", object.name_any()),
    )?;
    let validated = cluster::validate(&cluster)
        .map_err(|message| Blocked::new(Reason::ClusterNotReady, message))?;
    let listener = listener(object, &validated.listeners)?;
    let held = held_secret(object, context).await?;
    let bundle = trust(context, &cluster).await?;
    revocation::of_former(context, &cluster, &access, status, &principal).await?;
    members::announce(context, object, status, |status| {
        status.principal = Some(principal.clone());
    })
    .await?;
    revocation::in_force(object, context, &cluster, &access, &principal).await?;

    let material = if object.spec.authentication.type_ == AuthenticationType::MutualTls {
        // A credential of that name that somebody made by hand is left alone.
        if status.credential_fingerprint.is_some() {
            revocation::drop_credentials(object, context, &access).await?;
            status.credential_fingerprint = None;
        }
        let material =
            certificate(object, context, &cluster, listener, &name, held.as_ref()).await?;
        if let Material::Certificate { chain, .. } = &material {
            status.certificate = Some(certificate_status(&CertificateInfo::from_pem(chain)?));
        }
        material
    } else {
        status.certificate = None;
        password(object, context, &access, status, held.as_ref()).await?
    };
    let plan = Plan {
        user: object,
        cluster: &cluster.name_any(),
        bootstrap: &validated.bootstrap_servers(listener),
        bundle: &bundle,
        material: &material,
        held: held.as_ref(),
    };
    let api: Api<Secret> = Api::namespaced(
        context.client.clone(),
        &object.namespace().unwrap_or_default(),
    );
    let secret = plan.build()?;
    let written = apply(&api, &secret, &context.metrics).await?.is_written();
    // While authorities change, pods that missed the write are found too: the operator may have ended just after it.
    if held.is_some() && (written || cluster::is_rotating(&cluster)) {
        let namespace = object.namespace().unwrap_or_default();
        let revision = digest(&secret.data);
        refresh_secret(context, &namespace, object.secret_name(), &revision).await?;
    }
    status.principal = Some(principal);
    status.secret_name = Some(object.secret_name().to_owned());
    status.trusted_authorities = certificates(&bundle)?
        .iter()
        .map(|der| fingerprint(der))
        .collect();
    status.trusted_authorities.sort();
    Ok(())
}

/// The first listener that offers what the user needs.
fn listener<'a>(
    object: &User,
    listeners: &'a [ClientListener],
) -> Result<&'a ClientListener, Blocked> {
    let wanted = object.spec.authentication.type_;
    listeners.iter().find(|listener| listener.authentication.contains(&wanted)).ok_or_else(|| {
        Blocked::new(
            Reason::NoListenerForAuthentication,
            format!("no listener of the cluster offers {wanted}: add it to the authentication of one, or change authentication.type"),
        )
    })
}

/// The user's Secret, if it stands.
async fn held_secret(object: &User, context: &Context) -> Result<Option<Secret>, Stop> {
    let name = object.secret_name();
    let api: Api<Secret> = Api::namespaced(
        context.client.clone(),
        &object.namespace().unwrap_or_default(),
    );
    let Some(secret) = api.get_opt(name).await? else {
        return Ok(None);
    };
    let ours = secret
        .owner_references()
        .iter()
        .any(|owner| Some(&owner.uid) == object.uid().as_ref());
    if ours {
        return Ok(Some(secret));
    }
    Err(Blocked::new(
        Reason::SecretConflict,
        format!("Secret {name} exists and is not this User's: delete it, or write another credentials.secretName"),
    )
    .into())
}

/// The trust bundle of the cluster authority.
async fn trust(context: &Context, cluster: &SecureCluster) -> Result<String, Stop> {
    let name = names::trust_secret(&cluster.name_any());
    let api: Api<Secret> = Api::namespaced(
        context.client.clone(),
        &cluster.namespace().unwrap_or_default(),
    );
    let secret = api.get_opt(&name).await?;
    let bundle = secret
        .as_ref()
        .and_then(|secret| secret.data.as_ref()?.get(CLUSTER_TRUST))
        .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
        .filter(|bundle| !bundle.is_empty());
    Ok(bundle.ok_or_else(|| {
        Blocked::new(
            Reason::ClusterNotReady,
            format!("Secret {name} holds no trust bundle yet"),
        )
    })?)
}

/// Sees to it that the brokers accept the password, and returns it.
async fn password(
    object: &User,
    context: &Context,
    access: &ClusterAccess,
    status: &mut UserStatus,
    held: Option<&Secret>,
) -> Result<Material, Stop> {
    let user = object.name_any();
    let password = source(object, context, held).await?;
    let mechanism = match object.spec.authentication.type_ {
        AuthenticationType::ScramSha256 => ScramMechanism::Sha256,
        // PLAIN is checked against the strongest verifier; the brokers never store a password.
        _ => ScramMechanism::Sha512,
    };
    if object.spec.suspended {
        revocation::drop_credentials(object, context, access).await?;
        let record = held
            .and_then(CredentialRecord::read)
            .map_or_else(CredentialRecord::draw, Ok)?;
        return Ok(Material::Password {
            username: user,
            password,
            record,
        });
    }
    let stored = access.admin.describe_scram(&user).await?;
    let former = held.and_then(CredentialRecord::read);
    if let Some(record) = &former
        && status.credential_fingerprint.as_deref()
            == Some(&record.fingerprint(mechanism, &user, &password))
        && credential::stands(&stored, mechanism, record)
    {
        return Ok(Material::Password {
            username: user,
            password,
            record: record.clone(),
        });
    }
    let was_ours = former.as_ref().is_some_and(|record| {
        status.credential_fingerprint.as_deref()
            == Some(&record.fingerprint(mechanism, &user, &password))
    });
    let record = CredentialRecord::draw()?;
    let salted = {
        let (password, iterations) = (password.clone(), record.iterations());
        // Milliseconds of CPU each; a thousand users must not stall the others.
        tokio::task::spawn_blocking(move || {
            SaltedPassword::derive(mechanism, &password, iterations)
        })
        .await
        .map_err(|_| Error::Kafka(KafkaError::Crypto("the derivation was interrupted")))??
    };
    let withdrawn: Vec<_> = stored
        .iter()
        .map(|stored| stored.mechanism)
        .filter(|other| *other != mechanism)
        .collect();
    context.metrics.broker_write("User");
    access
        .admin
        .alter_scram(&user, Some(&salted), &withdrawn)
        .await?;
    if was_ours {
        context.metrics.drift_corrected("User");
        publish(
            context,
            object,
            EventType::Warning,
            Reason::DriftCorrected,
            format!("the credential of {user} was changed on the brokers"),
        )
        .await;
    }
    status.credential_fingerprint = Some(record.fingerprint(mechanism, &user, &password));
    Ok(Material::Password {
        username: user,
        password,
        record,
    })
}

/// The password: a user's own, the one generated before, or a new one.
async fn source(
    object: &User,
    context: &Context,
    held: Option<&Secret>,
) -> Result<Zeroizing<String>, Stop> {
    let from = object
        .spec
        .credentials
        .password_from
        .clone()
        .unwrap_or_default();
    let Some(reference) = &from.secret_key_ref else {
        if let Some(password) = held
            .and_then(|secret| secret::text(secret, "password"))
            .filter(|password| credential::check(password).is_ok())
        {
            return Ok(Zeroizing::new(password));
        }
        let length = from.generate.unwrap_or_default().length;
        return Ok(credential::generate(
            usize::try_from(length).unwrap_or(32).clamp(16, 128),
        )?);
    };
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let secret = api.get_opt(&reference.name).await?.ok_or_else(|| {
        Blocked::new(Reason::SecretNotFound, format!("Secret {} does not exist in namespace {namespace}: create it or correct passwordFrom.secretKeyRef", reference.name))
    })?;
    let password = secret::text(&secret, &reference.key)
        .map(Zeroizing::new)
        .ok_or_else(|| {
            Blocked::new(
                Reason::SecretInvalid,
                format!(
                    "Secret {} has no text under key {}: put the password there",
                    reference.name, reference.key
                ),
            )
        })?;
    credential::check(&password).map_err(|problem| {
        Blocked::new(
            Reason::SecretInvalid,
            format!(
                "key {} of Secret {}: {problem}",
                reference.key, reference.name
            ),
        )
    })?;
    Ok(password)
}

/// The certificate: the one that stands, or a new one, once the brokers accept its issuer.
async fn certificate(
    object: &User,
    context: &Context,
    cluster: &SecureCluster,
    listener: &ClientListener,
    name: &CommonName,
    held: Option<&Secret>,
) -> Result<Material, Stop> {
    let now = OffsetDateTime::now_utc();
    let secret_name = names::clients_authority_secret(&cluster.name_any());
    let api: Api<Secret> = Api::namespaced(
        context.client.clone(),
        &cluster.namespace().unwrap_or_default(),
    );
    let secret = api.get_opt(&secret_name).await?.ok_or_else(|| {
        Blocked::new(
            Reason::ClusterNotReady,
            format!("Secret {secret_name} does not exist yet"),
        )
    })?;
    let record = AuthorityRecord::read(&secret).map_err(|error| {
        Blocked::new(
            Reason::SecretInvalid,
            format!("Secret {secret_name}: {error}"),
        )
    })?;
    let authority = record.current();
    let pair = held.and_then(|secret| {
        Some((
            secret::text(secret, USER_CERTIFICATE)?,
            secret::text(secret, secret::USER_KEY)?,
        ))
    });
    let held_chain = pair.as_ref().map(|(chain, _)| chain.as_str());
    let accepted = is_accepted(cluster, &listener.name, held_chain, authority.info());
    if let Some((chain, key)) = pair
        && secret::certificate_stands(&chain, &key, authority.info(), now)
    {
        return Ok(Material::Certificate {
            chain,
            key: Zeroizing::new(key),
        });
    }
    if !accepted {
        return Err(Blocked::new(
            Reason::CertificatesPending,
            format!(
                "waiting until every broker reports that listener {} trusts the clients authority",
                listener.name
            ),
        )
        .into());
    }
    let validity = cluster::validate(cluster)
        .map_err(|message| Blocked::new(Reason::ClusterNotReady, message))?;
    let key = LeafKey::New(validity.clients_policy.algorithm);
    let leaf = authority.issue(name, &[], LeafUse::Client, key, validity.leaf_validity, now)?;
    tracing::info!(user = object.name_any(), "issuing a client certificate");
    Ok(Material::Certificate {
        chain: leaf.certificate,
        key: leaf.key,
    })
}

/// Whether the brokers accept what an authority issues. Where it issued the certificate that is held they do already, and a renewal waits for no broker that is
/// silent; otherwise every broker has to report it.
fn is_accepted(
    cluster: &SecureCluster,
    listener: &str,
    held_chain: Option<&str>,
    authority: &CertificateInfo,
) -> bool {
    let renews = held_chain
        .and_then(|chain| CertificateInfo::from_pem(chain).ok())
        .is_some_and(|held| held.is_issued_by(authority));
    renews || trusted_by_all(cluster, listener, &authority.fingerprint)
}

/// Whether every broker reports that a listener trusts an authority.
fn trusted_by_all(cluster: &SecureCluster, listener: &str, authority: &str) -> bool {
    let Some(status) = &cluster.status else {
        return false;
    };
    !status.brokers.is_empty()
        && status.brokers.iter().all(|broker| {
            broker.endpoints.iter().any(|endpoint| {
                endpoint.name == listener
                    && endpoint
                        .trusted_authorities
                        .iter()
                        .any(|trusted| trusted == authority)
            })
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use time::Duration;

    use super::*;
    use crate::pki::{Authority, KeyAlgorithm};

    pub(super) fn user(name: &str, kind: &str) -> User {
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "User",
            "metadata": { "name": name, "namespace": "shop", "uid": "u-1" },
            "spec": { "clusterRef": { "name": "events", "namespace": "messaging" }, "authentication": { "type": kind } }
        }))
        .unwrap()
    }

    #[test]
    fn principals_are_what_brokers_authorise() {
        assert_eq!(principal(&user("alice", "ScramSha512")), "User:alice");
        assert_eq!(principal(&user("alice", "MutualTls")), "User:CN=alice");
    }

    #[test]
    fn a_user_needs_a_listener_that_offers_its_authentication() {
        let cluster: SecureCluster = serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "SecureCluster", "metadata": { "name": "events", "namespace": "messaging" },
            "spec": {
                "storage": { "size": "1Gi" }, "logEncryption": { "keyProvider": { "secret": { "name": "kek" } } },
                "listeners": [
                    { "name": "first", "port": 9093, "authentication": ["ScramSha512"] },
                    { "name": "second", "port": 9094, "authentication": ["MutualTls"] }
                ]
            }
        }))
        .unwrap();
        let listeners = cluster::validate(&cluster).unwrap().listeners;
        assert_eq!(
            listener(&user("a", "MutualTls"), &listeners).unwrap().name,
            "second"
        );
        let blocked = listener(&user("a", "Plain"), &listeners).unwrap_err();
        assert_eq!(blocked.reason, Reason::NoListenerForAuthentication);
        assert!(
            blocked.message.contains("offers Plain"),
            "{}",
            blocked.message
        );
    }

    fn taking_certificates() -> SecureCluster {
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "SecureCluster", "metadata": { "name": "events", "namespace": "messaging" },
            "spec": {
                "storage": { "size": "1Gi" }, "logEncryption": { "keyProvider": { "secret": { "name": "kek" } } },
                "listeners": [{ "name": "first", "port": 9093, "authentication": ["MutualTls"] }]
            }
        }))
        .unwrap()
    }

    #[test]
    fn a_certificate_waits_until_every_broker_trusts_its_issuer() {
        let mut cluster = taking_certificates();
        assert!(!trusted_by_all(&cluster, "first", "ca"));
        cluster.status = Some(
            serde_json::from_value(json!({
                "brokers": [{ "pod": "events-0", "ready": true, "endpoints": [
                    { "name": "first", "certificateSerial": "01", "notAfter": "2030-01-01T00:00:00Z", "trustedAuthorities": ["ca"] }
                ] }]
            }))
            .unwrap(),
        );
        assert!(trusted_by_all(&cluster, "first", "ca"));
        assert!(!trusted_by_all(&cluster, "first", "other"));
        assert!(!trusted_by_all(&cluster, "second", "ca"));
    }

    #[test]
    fn a_renewal_under_the_same_authority_waits_for_no_broker() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let authority = || {
            let name = CommonName::new("events-clients").unwrap();
            Authority::generate(&name, KeyAlgorithm::EcdsaP256, Duration::days(9), now).unwrap()
        };
        let (present, other) = (authority(), authority());
        let chain = |authority: &Authority| {
            let name = CommonName::new("alice").unwrap();
            let (usage, key) = (LeafUse::Client, LeafKey::New(KeyAlgorithm::EcdsaP256));
            let leaf = authority.issue(&name, &[], usage, key, Duration::days(5), now);
            leaf.unwrap().certificate
        };
        // No broker of this cluster reports anything.
        let silent = taking_certificates();
        let accepted = |held: Option<&str>| is_accepted(&silent, "first", held, present.info());
        assert!(accepted(Some(&chain(&present))));
        assert!(!accepted(Some(&chain(&other))));
        assert!(!accepted(Some("nonsense")));
        assert!(!accepted(None));
    }
}
