//! Everything that a reconcile of a cluster reads from the API server and the brokers.

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret},
};
use kube::{Api, Client, api::ListParams};
use palisade_config::status::BrokerStatus;

use super::Cluster;
use crate::{Error, kubernetes::names};

/// One broker as it was seen.
#[derive(Clone, Debug)]
pub struct BrokerView {
    /// Its pod.
    pub pod: String,
    /// What it said, or why it said nothing.
    pub status: Result<BrokerStatus, String>,
}

/// What the API server holds of a cluster.
#[derive(Debug)]
pub struct Observed {
    /// Secret of the authority of brokers.
    pub cluster_authority: Option<Secret>,
    /// Secret of the authority of users.
    pub clients_authority: Option<Secret>,
    /// Secret of the brokers' certificates.
    pub certificates: Option<Secret>,
    /// Secret of the key-encryption key.
    pub key: Option<Secret>,
    /// The configuration.
    pub config: Option<ConfigMap>,
    /// The StatefulSet.
    pub stateful_set: Option<StatefulSet>,
    /// The brokers' pods.
    pub pods: Vec<Pod>,
    /// The brokers' claims.
    pub claims: Vec<PersistentVolumeClaim>,
}

/// Reads what the API server holds.
///
/// # Errors
/// What the API server answers.
pub async fn read(client: &Client, cluster: &Cluster) -> Result<Observed, Error> {
    let namespace = cluster.namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let own = of_cluster(&cluster.name);
    let name = cluster.name.as_str();
    let secret = |name: String| {
        let secrets = secrets.clone();
        async move { secrets.get_opt(&name).await }
    };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let map_name = names::config_map(name);
    let (
        cluster_authority,
        clients_authority,
        certificates,
        key,
        config,
        stateful_set,
        pods,
        claims,
    ) = futures::try_join!(
        secret(names::cluster_authority_secret(name)),
        secret(names::clients_authority_secret(name)),
        secret(names::broker_certificates_secret(name)),
        secret(cluster.kek_secret.clone()),
        maps.get_opt(&map_name),
        sets.get_opt(name),
        pods.list(&own),
        claims.list(&own),
    )?;
    Ok(Observed {
        cluster_authority,
        clients_authority,
        certificates,
        key,
        config,
        stateful_set,
        pods: pods.items,
        claims: claims.items,
    })
}

/// Selects the objects of a cluster.
#[must_use]
pub fn of_cluster(name: &str) -> ListParams {
    ListParams::default().labels(&format!("{}={name}", names::CLUSTER_LABEL))
}

#[cfg(test)]
pub(crate) mod tests {
    use palisade_config::status::{EndpointCertificate, EndpointTrust};

    use super::*;

    /// A broker that reports what it should.
    pub(crate) fn broker(cluster: &Cluster) -> BrokerView {
        let endpoints: Vec<_> = cluster
            .listeners
            .iter()
            .map(|listener| listener.name.clone())
            .chain(["CONTROL".to_owned(), "ADMIN".to_owned()])
            .collect();
        BrokerView {
            pod: "events-0".to_owned(),
            status: Ok(BrokerStatus {
                broker_id: 0,
                cluster_id: cluster.config.node.cluster_id.clone(),
                version: "0.1.0".to_owned(),
                config_version: cluster.config.version.clone(),
                ready: true,
                problems: Vec::new(),
                certificates: endpoints
                    .iter()
                    .map(|listener| EndpointCertificate {
                        listener: listener.clone(),
                        serial: "01".to_owned(),
                        fingerprint: "leaf".to_owned(),
                        issuer: "CN=events-cluster".to_owned(),
                        not_before: "2026-01-01T00:00:00Z".to_owned(),
                        not_after: "2030-01-01T00:00:00Z".to_owned(),
                    })
                    .collect(),
                trust: vec![EndpointTrust {
                    listener: "CONTROL".to_owned(),
                    authorities: vec!["ca".to_owned()],
                }],
                kek_id: "k1".to_owned(),
                topics: 0,
                partitions: 0,
                connections: 0,
                quarantined: Vec::new(),
                repairs: Default::default(),
                controller: Some(0),
                shards: Vec::new(),
                peers: Vec::new(),
                under_replicated_partitions: 0,
                draining: false,
                drained: false,
                ..BrokerStatus::default()
            }),
        }
    }

    /// A broker that does not answer.
    pub(crate) fn silent(pod: &str) -> BrokerView {
        BrokerView {
            pod: pod.to_owned(),
            status: Err("no answer within 3 s".to_owned()),
        }
    }
}
