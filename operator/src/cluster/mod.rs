//! SecureCluster: observe → validate → plan → apply → report.
//!
//! The plan is made of pure builders ([`objects`]) and pure decisions ([`leaves`], [`scale`], [`crate::authorities::next_step`]); this file is what reads, writes and
//! calls them in order.

mod checklist;
pub mod config;
mod defaults;
pub mod leaves;
pub mod objects;
pub mod observe;
mod removal;
pub mod report;
mod rotation;
pub mod scale;
mod validate;
mod verdicts;
mod volumes;

use std::time::Duration;

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
    runtime::controller::Action,
};
use palisade_crds::{Reason, SecureCluster, guard};
use time::OffsetDateTime;

pub use config::{CLIENTS_TRUST, CLUSTER_TRUST};
pub use rotation::is_rotating;
pub use validate::{ClientListener, Cluster, bootstrap_servers, validate};

#[cfg(test)]
pub(crate) use validate::tests::fixture;

use crate::{
    Context, Error,
    kubernetes::{FIELD_MANAGER, apply, digest, is_paused, refresh_mounts, write_status},
    members::Blocked,
};
use observe::{BrokerView, Observed};

/// Port for brokers and the operator: the Kafka protocol over mutual TLS.
pub const CONTROL_PORT: u16 = 9090;
/// Port for health, metrics and status.
pub const ADMIN_PORT: u16 = 9091;

/// How soon a cluster is looked at again when something is on its way, and when nothing is.
const SOON: Duration = Duration::from_secs(2);
const SETTLED: Duration = Duration::from_secs(30);

/// Brings a cluster to what its spec says, as far as it can be brought now.
///
/// # Errors
/// What is worth another try.
pub async fn reconcile(object: &SecureCluster, context: &Context) -> Result<Action, Error> {
    let now = Timestamp::now();
    let error = match attempt(object, context, now).await {
        Err(error) => error,
        outcome => return outcome,
    };
    let Some(blocked) = Blocked::by(&error) else {
        return Err(error);
    };
    let status = report::blocked(object, blocked.reason, &blocked.message, now);
    write_status(context, object, &status).await?;
    Err(error)
}

async fn attempt(
    object: &SecureCluster,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    if is_paused(object) {
        let status = report::blocked(
            object,
            Reason::Paused,
            "remove the annotation palisade.dev/paused to go on",
            now,
        );
        write_status(context, object, &status).await?;
        return Ok(Action::await_change());
    }
    let cluster = match guard::check(object)
        .map_err(|error| error.to_string())
        .and_then(|()| validate(object))
    {
        Ok(cluster) => cluster,
        Err(message) => {
            write_status(
                context,
                object,
                &report::blocked(object, Reason::InvalidSpec, &message, now),
            )
            .await?;
            return Ok(Action::await_change());
        }
    };
    let observed = observe::read(&context.client, &cluster).await?;
    // Brokers stand until nothing is left on them, whatever the spec says by now.
    let standing = standing(&observed).unwrap_or(0).max(cluster.replicas);
    let cluster = cluster
        .with_brokers(standing)
        .map_err(Error::Configuration)?;
    if let Err((reason, message)) = key_secret(context, &cluster, &observed).await? {
        write_status(
            context,
            object,
            &report::blocked(object, reason, &message, now),
        )
        .await?;
        return Ok(Action::requeue(SETTLED));
    }
    let reconcile = Reconcile {
        object,
        context,
        cluster,
        observed,
        written: false,
        problems: Vec::new(),
    };
    match reconcile.run(now).await {
        // Only a Secret that somebody changed cannot be read; making a new authority over it would cut every client off.
        Err(Error::Pki(error)) => {
            write_status(
                context,
                object,
                &report::blocked(object, Reason::SecretInvalid, &error.to_string(), now),
            )
            .await?;
            Ok(Action::requeue(SOON))
        }
        outcome => outcome,
    }
}

/// Deletes what the reclaim policy says; everything else goes with its owner.
///
/// # Errors
/// What is worth another try.
pub async fn cleanup(object: &SecureCluster, context: &Context) -> Result<(), Error> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    context.access.forget(&namespace, &name);
    context.metrics.certificate_expiries(&namespace, &name, &[]);
    if object.spec.storage.reclaim_policy == palisade_crds::ReclaimPolicy::Delete {
        volumes::delete(context, &namespace, &name).await?;
    }
    Ok(())
}

/// The key-encryption key: made when neither it nor any data exists, checked when it does, and never made anew over data that an older one seals.
async fn key_secret(
    context: &Context,
    cluster: &Cluster,
    observed: &Observed,
) -> Result<Result<(), (Reason, String)>, Error> {
    match &observed.key {
        Some(secret) => {
            Ok(objects::key_secret::check(secret)
                .map_err(|message| (Reason::SecretInvalid, message)))
        }
        None if !observed.claims.is_empty() => Ok(Err((
            Reason::SecretNotFound,
            format!(
                "Secret {} with the key of the sealed log does not exist, and volumes sealed under it do: restore the Secret from a backup, or delete the claims of the cluster to begin without data",
                cluster.kek_secret
            ),
        ))),
        None => {
            let secret = objects::key_secret::build(cluster)?;
            let api: Api<Secret> = Api::namespaced(context.client.clone(), &cluster.namespace);
            context.metrics.api_write("Secret");
            api.create(
                &PostParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PostParams::default()
                },
                &secret,
            )
            .await?;
            Ok(Ok(()))
        }
    }
}

/// Brokers of the StatefulSet; `None` when there is none.
fn standing(observed: &Observed) -> Option<i32> {
    observed.stateful_set.as_ref()?.spec.replicas
}

struct Reconcile<'a> {
    object: &'a SecureCluster,
    context: &'a Context,
    cluster: Cluster,
    observed: Observed,
    written: bool,
    problems: Vec<String>,
}

impl Reconcile<'_> {
    async fn run(mut self, now: Timestamp) -> Result<Action, Error> {
        let clock = OffsetDateTime::now_utc();
        let mut authorities = rotation::load(
            self.context,
            self.object,
            &self.cluster,
            &self.observed,
            clock,
        )
        .await?;
        // An authority past its end gives no access; the rotation below mends that.
        let access = self.context.access.with(
            self.object,
            self.cluster.replicas,
            &authorities.cluster.record,
            clock,
        );
        let mut brokers = self.brokers(access.as_deref()).await;
        let admin = access.as_deref().ok().map(|access| &access.admin);
        let scaling = self.scale(&mut brokers, admin).await?;
        let rotation = rotation::advance(
            self.context,
            self.object,
            &self.cluster,
            &self.observed,
            &mut authorities,
            &brokers,
            clock,
        )
        .await?;
        let leaves = leaves::leaves(
            &self.cluster,
            &authorities.cluster.record,
            self.observed.certificates.as_ref(),
            clock,
        )?;
        self.count_down(&authorities, &leaves);

        let certificates =
            objects::secrets::broker_certificates(self.object, &self.cluster, &leaves);
        let trust = objects::secrets::trust(
            self.object,
            &self.cluster,
            &authorities.cluster.record,
            &authorities.clients.record,
        );
        let ready = brokers
            .iter()
            .all(|broker| broker.status.as_ref().is_ok_and(|status| status.ready));
        let default_quota = match &access {
            Ok(access) => self.default_quota(&access.admin, ready).await,
            Err(_) => self
                .observed
                .config
                .as_ref()
                .is_some_and(defaults::is_marked),
        };
        let mut config = objects::config_map::build(self.object, &self.cluster)?;
        defaults::mark(&mut config, default_quota);
        let mounted = digest(&(&certificates.data, &trust.data, &config.data));

        self.apply::<ServiceAccount>(&objects::service_account::build(self.object, &self.cluster))
            .await?;
        self.apply(&trust).await?;
        self.apply(&certificates).await?;
        self.apply::<ConfigMap>(&config).await?;
        self.apply::<Service>(&objects::services::headless(self.object, &self.cluster))
            .await?;
        self.apply::<Service>(&objects::services::bootstrap(self.object, &self.cluster))
            .await?;
        let policies = self.network_policies().await?;
        self.apply::<PodDisruptionBudget>(&objects::disruption_budget::build(
            self.object,
            &self.cluster,
        ))
        .await?;
        let claims = self
            .observed
            .stateful_set
            .as_ref()
            .and_then(|set| set.spec.volume_claim_templates.clone());
        let set = objects::stateful_set::build(
            self.object,
            &self.cluster,
            &self.context.settings,
            claims,
        );
        let stateful_set = self.apply(&set).await?;
        let (context, namespace) = (self.context, &self.cluster.namespace);
        self.written |= refresh_mounts(context, namespace, &self.observed.pods, &mounted).await?;
        if let Err(error) = volumes::grow(self.context, &self.cluster, &self.observed.claims).await
        {
            self.problems.push(format!(
                "a volume cannot be grown to {}: {error}",
                self.object.spec.storage.size
            ));
        }

        // A status tells what stands after the writes, not before them.
        let brokers = if self.written {
            self.brokers(access.as_deref()).await
        } else {
            brokers
        };
        let checklist = checklist::run(&checklist::Evidence {
            cluster: &self.cluster,
            brokers: &brokers,
            stateful_set: Some(&stateful_set),
            policies: &policies,
            now: clock,
        });
        let status = report::status(
            self.object,
            report::Findings {
                cluster: &self.cluster,
                brokers: &brokers,
                stateful_set: Some(&stateful_set),
                leaves: &leaves,
                cluster_authority: &authorities.cluster.record,
                clients_authority: &authorities.clients.record,
                checklist,
                problems: std::mem::take(&mut self.problems),
                rotation,
                scaling,
                now,
            },
        );
        let settled = !self.written
            && palisade_crds::conditions::is_true(
                &status.conditions,
                palisade_crds::ConditionType::Ready,
            )
            && palisade_crds::conditions::is_true(
                &status.conditions,
                palisade_crds::ConditionType::CertificatesValid,
            )
            && !palisade_crds::conditions::is_true(
                &status.conditions,
                palisade_crds::ConditionType::Progressing,
            );
        write_status(self.context, self.object, &status).await?;
        Ok(Action::requeue(if settled { SETTLED } else { SOON }))
    }

    /// Tells the metrics when each certificate ends.
    fn count_down(&self, authorities: &rotation::Authorities, leaves: &[leaves::BrokerLeaf]) {
        let ends = [
            (
                "cluster-authority",
                authorities.cluster.record.current().info(),
            ),
            (
                "clients-authority",
                authorities.clients.record.current().info(),
            ),
        ];
        let leaves = leaves.iter().map(|leaf| (leaf.pod.as_str(), &leaf.info));
        let ends: Vec<_> = ends
            .into_iter()
            .chain(leaves)
            .map(|(certificate, info)| (certificate, info.not_after.unix_timestamp()))
            .collect();
        self.context.metrics.certificate_expiries(
            &self.cluster.namespace,
            &self.cluster.name,
            &ends,
        );
    }

    /// What every broker reports. Where there is no pod there is nobody to ask.
    async fn brokers(
        &self,
        access: Result<&crate::access::ClusterAccess, &Error>,
    ) -> Vec<BrokerView> {
        let nobody = |why: &str| {
            self.cluster
                .pods()
                .into_iter()
                .map(|pod| BrokerView {
                    pod,
                    status: Err(why.to_owned()),
                })
                .collect::<Vec<_>>()
        };
        if self.observed.pods.is_empty() {
            return nobody("its pod does not exist yet");
        }
        let access = match access {
            Ok(access) => access,
            Err(error) => return nobody(&error.to_string()),
        };
        // Without those that were stopped a moment ago.
        let standing = self.cluster.pods().len();
        access
            .statuses()
            .await
            .into_iter()
            .take(standing)
            .map(|(pod, status)| BrokerView {
                pod,
                status: status.map_err(|error| error.to_string()),
            })
            .collect()
    }

    async fn apply<K>(&mut self, desired: &K) -> Result<K, Error>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.context.client.clone(), &self.cluster.namespace);
        let applied = apply(&api, desired, &self.context.metrics).await?;
        self.written |= applied.is_written();
        Ok(applied.into_inner())
    }

    /// Applies the policies, deletes those of listeners that are gone, and returns the names of those that stand.
    async fn network_policies(&mut self) -> Result<Vec<String>, Error> {
        let desired = objects::network_policies::build(
            self.object,
            &self.cluster,
            &self.context.settings.operator_namespace,
        );
        let mut names = Vec::new();
        for policy in &desired {
            names.push(self.apply(policy).await?.name_any());
        }
        let api: Api<NetworkPolicy> =
            Api::namespaced(self.context.client.clone(), &self.cluster.namespace);
        for standing in api.list(&observe::of_cluster(&self.cluster.name)).await? {
            let ours = standing
                .owner_references()
                .iter()
                .any(|owner| Some(&owner.uid) == self.object.uid().as_ref());
            if ours && !names.contains(&standing.name_any()) {
                self.context.metrics.api_write("NetworkPolicy");
                api.delete(&standing.name_any(), &DeleteParams::default())
                    .await?;
                self.written = true;
            }
        }
        Ok(names)
    }

    /// Keeps the quota of users without one; returns whether brokers may hold one that the operator set.
    async fn default_quota(&mut self, admin: &crate::kafka::AdminClient, ready: bool) -> bool {
        let marked = self
            .observed
            .config
            .as_ref()
            .is_some_and(defaults::is_marked);
        let wanted = self.object.spec.defaults.quota.as_ref();
        if wanted.is_none() && !marked || defaults::is_claimed(self.context, self.object) {
            return false;
        }
        if !ready {
            return marked;
        }
        match defaults::sync(self.context, admin, wanted).await {
            Ok(()) => wanted.is_some(),
            Err(error) => {
                self.problems
                    .push(format!("spec.defaults.quota is not in effect: {error}"));
                true
            }
        }
    }
}
