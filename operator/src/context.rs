//! What every reconcile needs.

use kube::{Client, runtime::events::Recorder};
use palisade_crds::{Acl, CertRotation, Quota, SecureCluster, Topic, User};

use crate::{access::AccessCache, kubernetes::Index, metrics::Metrics};

/// How this operator was started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of the broker.
    pub broker_image: String,
    /// When kubelets pull it: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
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
