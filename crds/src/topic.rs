//! Topic.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, ReclaimPolicy};

/// A topic of a SecureCluster.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "palisade.dev",
    version = "v1alpha1",
    kind = "Topic",
    plural = "topics",
    namespaced,
    status = "TopicStatus",
    derive = "PartialEq",
    shortname = "ktopic",
    category = "palisade",
    doc = "A topic of a SecureCluster. Topics are never created by clients that merely name them.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "SecureCluster it belongs to"),
    printcolumn(name = "Topic", type_ = "string", json_path = ".status.topicName", description = "Name that clients use"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".status.partitions", description = "Partitions the brokers report"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicationFactor", description = "Replicas of each partition"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (
        "(has(self.spec.topicName) ? self.spec.topicName : self.metadata.name) == (has(oldSelf.spec.topicName) ? oldSelf.spec.topicName : oldSelf.metadata.name)",
        "topicName is immutable: create another Topic and move the data"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct TopicSpec {
    /// The SecureCluster that holds the topic; immutable.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is immutable: create a Topic for the other cluster and move the data"))]
    pub cluster_ref: ClusterRef,
    /// Name that clients use; absent: `metadata.name`. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    #[x_kube(
        validation = ("self.matches('^[a-zA-Z0-9._-]+$') && self != '.' && self != '..'", "not a topic name: use letters, digits, dots, underscores and hyphens"),
        validation = ("!self.startsWith('__')", "names that begin with __ belong to the brokers: choose another one")
    )]
    pub topic_name: Option<String>,
    /// Number of partitions; may grow. More partitions spread keys differently from then on.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    #[x_kube(validation = ("self >= oldSelf", "partitions may only grow: write the former number or a higher one"))]
    pub partitions: i32,
    /// Replicas of each partition, on as many brokers: 3 survive the loss of one broker, 5 of two.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 5))]
    #[x_kube(validation = ("self == 1 || self == 3 || self == 5", "an even number of replicas survives no more than one less: write replicationFactor: 1, 3 or 5"))]
    pub replication_factor: i32,
    /// Kafka topic configurations, such as `retention.ms: "604800000"`; values are strings. What is left out has the broker's default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "configurations")]
    #[x_kube(validation = ("self.all(key, key.matches('^[a-z][a-z0-9.]{0,99}$'))", "not a topic configuration: write Kafka's name in lower case with dots, such as retention.ms"))]
    pub config: BTreeMap<String, String>,
    /// What deleting this object does: `Retain` keeps the topic and its data, `Delete` deletes both.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

fn configurations(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 1024 },
    })
}

impl Topic {
    /// The name that clients use.
    #[must_use]
    pub fn topic_name(&self) -> &str {
        self.spec
            .topic_name
            .as_deref()
            .or(self.metadata.name.as_deref())
            .unwrap_or_default()
    }
}

const fn one() -> i32 {
    1
}

/// What was observed of a Topic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopicStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Synced and ReconciliationPaused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Name that clients use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_name: Option<String>,
    /// Id that the brokers gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// Partitions the brokers report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Replicas of each partition the brokers report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<i32>,
}
