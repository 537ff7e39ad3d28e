//! What was observed of a SecureCluster: nothing here is inferred, every value was reported by a broker or read from the API server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::CertificateStatus;

/// What was observed of a SecureCluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecureClusterStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing, Degraded, CertificatesValid, SecurityCompliant and ReconciliationPaused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Broker pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Brokers that serve clients.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the broker pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Kafka cluster id that the brokers report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Version of the configuration that the operator wants the brokers to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_version: Option<String>,
    /// Where clients connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub listeners: Vec<ListenerStatus>,
    /// What each broker reported last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pod".into()]))]
    pub brokers: Vec<BrokerObservation>,
    /// The authorities in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<AuthoritiesStatus>,
    /// The security checklist, one entry per check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub checklist: Vec<ChecklistEntry>,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Name of the listener.
    pub name: String,
    /// `bootstrap.servers` of clients inside the cluster, such as `events-bootstrap.messaging.svc:9093`.
    pub bootstrap_servers: String,
}

/// What one broker reported on its admin port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerObservation {
    /// Name of the pod.
    pub pod: String,
    /// Kafka broker id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_id: Option<i32>,
    /// Where it stands, when `spec.brokers.rackKey` is given and its node has that label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Version of the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it serves clients.
    pub ready: bool,
    /// Version of the configuration that it has loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_version: Option<String>,
    /// Id of the key-encryption key that it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kek_id: Option<String>,
    /// What each of its endpoints has loaded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub endpoints: Vec<EndpointObservation>,
    /// What does not work as it should.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub problems: Vec<String>,
}

/// What one endpoint of a broker has loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointObservation {
    /// Name of the listener; `CONTROL` and `ADMIN` are the broker's own.
    pub name: String,
    /// Serial number of the certificate it presents, lower-case hexadecimal.
    pub certificate_serial: String,
    /// End of that certificate's validity.
    pub not_after: Time,
    /// SHA-256 fingerprints of the authorities it trusts clients of, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub trusted_authorities: Vec<String>,
}

/// The two authorities of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthoritiesStatus {
    /// The authority of the brokers' certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<AuthorityStatus>,
    /// The authority of client certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<AuthorityStatus>,
}

/// An authority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityStatus {
    /// The certificate that issues now.
    pub certificate: CertificateStatus,
    /// SHA-256 fingerprints of the certificates that are distributed as trusted; more than one while a rotation runs. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub trusted: Vec<String>,
}

/// One check of the security checklist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChecklistEntry {
    /// Name of the check, such as `EncryptionInTransit`.
    pub name: String,
    /// Its outcome.
    pub result: CheckResult,
    /// What was observed.
    pub evidence: String,
    /// What to do about a failure; absent when it passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CheckResult {
    /// What was observed is as it should be.
    Pass,
    /// It is not.
    Fail,
    /// It could not be observed.
    Unknown,
}
