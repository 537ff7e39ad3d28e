//! What every reconcile needs.

use std::{fmt::Debug, time::Duration};

use kube::{Client, Resource, runtime::events::Recorder};
use palisade_crds::{Acl, CertRotation, Quota, SecureCluster, Topic, User};

use crate::{access::AccessCache, kubernetes::Index, metrics::Metrics};

/// How long the first list of a kind may take before the log says that it is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How this operator was started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of the broker.
    pub broker_image: String,
    /// When kubelets pull it: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Names of Secrets with credentials for it, in the namespace of the cluster.
    pub image_pull_secrets: Vec<String>,
    /// Namespace the operator runs in; its pods are admitted to the brokers' own ports.
    pub operator_namespace: String,
}

/// What the watches have seen.
#[derive(Clone)]
pub struct Indexes {
    /// Clusters.
    pub clusters: Index<SecureCluster>,
    /// Users.
    pub users: Index<User>,
    /// Access rules.
    pub acls: Index<Acl>,
    /// Quotas.
    pub quotas: Index<Quota>,
    /// Topics.
    pub topics: Index<Topic>,
    /// Rotations.
    pub rotations: Index<CertRotation>,
}

impl Indexes {
    /// Waits until every kind was listed. Before that an object that is missing here may well exist, and nothing may be decided by its absence.
    pub async fn ready(&self) {
        tokio::join!(
            listed(&self.clusters),
            listed(&self.users),
            listed(&self.acls),
            listed(&self.quotas),
            listed(&self.topics),
            listed(&self.rotations),
        );
    }
}

/// Waits for the first list of a kind, and says so when that takes long.
async fn listed<K>(index: &Index<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + 'static,
{
    let mut ready = std::pin::pin!(index.ready());
    if tokio::time::timeout(PATIENCE, &mut ready).await.is_err() {
        tracing::warn!(
            kind = %K::kind(&()),
            "nothing is reconciled until all objects of this kind were listed: see that its definition is installed, and that the operator may list it in every namespace that it watches"
        );
        ready.await;
    }
}

/// What every reconcile needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// How this operator was started.
    pub settings: Settings,
    /// Publishes Events.
    pub recorder: Recorder,
    /// Counts.
    pub metrics: std::sync::Arc<Metrics>,
    /// What the watches have seen.
    pub indexes: Indexes,
    /// Connections to brokers.
    pub access: AccessCache,
}
