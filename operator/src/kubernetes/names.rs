//! Names and labels of what the operator makes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use palisade_crds::SecureCluster;

/// `app.kubernetes.io/name` of the broker pods.
pub const BROKER: &str = "palisade-broker";
/// `app.kubernetes.io/name` of the operator's own pods, which a NetworkPolicy of each cluster admits.
pub const OPERATOR: &str = "palisade-operator";
/// Label that ties an object to a cluster.
pub const CLUSTER_LABEL: &str = "palisade.dev/cluster";
/// Label of everything the operator makes; what it watches is selected by it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Name of the headless Service, part of every broker's host name.
#[must_use]
pub fn brokers_service(cluster: &str) -> String {
    format!("{cluster}-brokers")
}

/// Name of the Service clients bootstrap from.
#[must_use]
pub fn bootstrap_service(cluster: &str) -> String {
    format!("{cluster}-bootstrap")
}

/// Secret of the authority that issues brokers' certificates.
#[must_use]
pub fn cluster_authority_secret(cluster: &str) -> String {
    format!("{cluster}-cluster-ca")
}

/// Secret of the authority that issues users' certificates.
#[must_use]
pub fn clients_authority_secret(cluster: &str) -> String {
    format!("{cluster}-clients-ca")
}

/// Secret with one certificate and key for each broker.
#[must_use]
pub fn broker_certificates_secret(cluster: &str) -> String {
    format!("{cluster}-broker-certs")
}

/// Secret with the trust bundles.
#[must_use]
pub fn trust_secret(cluster: &str) -> String {
    format!("{cluster}-trust")
}

/// ConfigMap with `broker.toml`.
#[must_use]
pub fn config_map(cluster: &str) -> String {
    format!("{cluster}-config")
}

/// Name of a broker's pod.
#[must_use]
pub fn pod(cluster: &str, ordinal: i32) -> String {
    format!("{cluster}-{ordinal}")
}

/// Host name of a broker, resolvable in the whole Kubernetes cluster whatever its domain is called.
#[must_use]
pub fn broker_host(cluster: &str, namespace: &str, ordinal: i32) -> String {
    format!(
        "{}.{}.{namespace}.svc",
        pod(cluster, ordinal),
        brokers_service(cluster)
    )
}

/// Labels that select a cluster's broker pods.
#[must_use]
pub fn broker_selector(cluster: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", BROKER),
        ("app.kubernetes.io/instance", cluster),
        (CLUSTER_LABEL, cluster),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Labels of every object of a cluster.
#[must_use]
pub fn cluster_labels(cluster: &str) -> BTreeMap<String, String> {
    let mut labels = broker_selector(cluster);
    labels.insert(MANAGED_BY_LABEL.to_owned(), super::FIELD_MANAGER.to_owned());
    labels
}

/// Metadata of an object that lives and dies with its cluster.
#[must_use]
pub fn owned_metadata(cluster: &SecureCluster, name: impl Into<String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: cluster.namespace(),
        labels: Some(cluster_labels(&cluster.name_any())),
        owner_references: cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}
