//! Quota: how much a user, a client id or an address may use.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, QuotaLimits, schema};

/// Limits of one entity of a SecureCluster.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "palisade.dev",
    version = "v1alpha1",
    kind = "Quota",
    plural = "quotas",
    namespaced,
    status = "QuotaStatus",
    derive = "PartialEq",
    shortname = "kquota",
    category = "palisade",
    doc = "How much a user, a client id or an address may use of a SecureCluster. The most specific Quota applies, in Kafka's order of precedence.",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name",
        description = "SecureCluster it belongs to"
    ),
    printcolumn(
        name = "Entity",
        type_ = "string",
        json_path = ".status.entity",
        description = "Whom it limits"
    ),
    printcolumn(
        name = "Producer",
        type_ = "string",
        json_path = ".spec.limits.producerByteRate",
        description = "Bytes a second that may be produced"
    ),
    printcolumn(
        name = "Consumer",
        type_ = "string",
        json_path = ".spec.limits.consumerByteRate",
        description = "Bytes a second that may be fetched"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.limits.connectionCreationRate) || has(self.entity.ip)", "connectionCreationRate limits an address: put it in a Quota whose entity is an ip"),
    validation = ("!has(self.entity.ip) || !(has(self.limits.producerByteRate) || has(self.limits.consumerByteRate) || has(self.limits.requestPercentage) || has(self.limits.controllerMutationRate))", "an ip can only have a connectionCreationRate: put the other limits in a Quota of a user or a clientId")
)]
pub struct QuotaSpec {
    /// The SecureCluster whose brokers enforce the limits; immutable.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is immutable: delete this Quota and create one for the other cluster"))]
    pub cluster_ref: ClusterRef,
    /// Whom the limits are for; immutable.
    #[x_kube(validation = ("self == oldSelf", "entity is immutable: delete this Quota and create one for the other entity"))]
    pub entity: QuotaEntity,
    /// The limits, at least one.
    #[x_kube(validation = (
        "has(self.producerByteRate) || has(self.consumerByteRate) || has(self.requestPercentage) || has(self.controllerMutationRate) || has(self.connectionCreationRate)",
        "a Quota without a limit does nothing: write at least one, such as producerByteRate: 10Mi"
    ))]
    pub limits: QuotaLimits,
}

/// Whom a Quota limits. A user and a client id together limit that client of that user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.userRef) || has(self.user) || has(self.clientId) || has(self.ip) || (has(self.default) && self.default)", "entity is empty: write userRef, user, clientId, ip, or default: true for every user that no other Quota names"),
    validation = ("!(has(self.userRef) && has(self.user))", "userRef and user name the same thing: write one of them"),
    validation = ("!has(self.ip) || !(has(self.userRef) || has(self.user) || has(self.clientId))", "an ip stands alone: put the user or clientId in another Quota"),
    validation = ("!(has(self.default) && self.default) || !(has(self.userRef) || has(self.user) || has(self.clientId) || has(self.ip))", "default: true stands alone and means every user: for a default beside another part write \"*\", such as clientId: \"*\"")
)]
pub struct QuotaEntity {
    /// Name of a User object in the namespace of this Quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub user_ref: Option<String>,
    /// Name of a user without `User:`, such as `CN=legacy`; `*` is every user that no other Quota names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = (schema::NO_CONTROL_RULE, "a user must not contain control characters such as line breaks: remove them"))]
    pub user: Option<String>,
    /// Client id as the client sends it (`client.id`); `*` is every client id that no other Quota names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = (schema::NO_CONTROL_RULE, "a clientId must not contain control characters such as line breaks: remove them"))]
    pub client_id: Option<String>,
    /// IP address of the client; `*` is every address that no other Quota names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 45))]
    #[x_kube(validation = ("self == '*' || isIP(self)", "not an address: write an IP address such as 10.0.0.9, or \"*\""))]
    pub ip: Option<String>,
    /// `true`, alone: every user that no other Quota names (the same as `user: "*"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<bool>,
}

/// What was observed of a Quota.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Synced and ReconciliationPaused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Whom the brokers limit, such as `user=alice, client-id=client-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// The user part of the entity that the brokers hold, once `userRef` is resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}
