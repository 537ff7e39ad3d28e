//! Acl: what a principal may and may not do.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, schema};

/// Access rules of one principal of a SecureCluster.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "palisade.dev",
    version = "v1alpha1",
    kind = "Acl",
    plural = "acls",
    namespaced,
    status = "AclStatus",
    derive = "PartialEq",
    shortname = "kacl",
    category = "palisade",
    doc = "Access rules of one principal of a SecureCluster. What no rule allows is denied; a Deny always wins.",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name",
        description = "SecureCluster it belongs to"
    ),
    printcolumn(
        name = "Principal",
        type_ = "string",
        json_path = ".status.principal",
        description = "Principal the rules are for"
    ),
    printcolumn(
        name = "Bindings",
        type_ = "integer",
        json_path = ".status.bindings",
        description = "ACL bindings the brokers hold for it"
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
pub struct AclSpec {
    /// The SecureCluster whose brokers enforce the rules; immutable.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is immutable: delete this Acl and create one for the other cluster"))]
    pub cluster_ref: ClusterRef,
    /// Whom the rules are for.
    pub principal: AclPrincipal,
    /// The rules, 1 to 128. Every resource, operation and host of a rule becomes one Kafka ACL binding.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rules: Vec<AclRule>,
}

/// Whom the rules are for: a User object, or a principal by its full name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.userRef) != has(self.name)", "write exactly one of userRef (a User object) and name (a principal such as User:CN=legacy, or User:*)"))]
pub struct AclPrincipal {
    /// Name of a User object in the namespace of this Acl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub user_ref: Option<String>,
    /// A principal as the brokers see it, such as `User:CN=legacy`, or `User:*` for everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = (schema::PRINCIPAL_RULE, "not a principal: write User:<name>, or User:* for everyone"),
        validation = (schema::NO_CONTROL_RULE, "a principal must not contain control characters such as line breaks: remove them")
    )]
    pub name: Option<String>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (schema::TOPIC_OPERATIONS_RULE, "operations of a Topic are All, Read, Write, Create, Delete, Alter, Describe, DescribeConfigs and AlterConfigs: remove the others"),
    validation = (schema::GROUP_OPERATIONS_RULE, "operations of a Group are All, Read, Delete, Describe, DescribeConfigs and AlterConfigs: remove the others"),
    validation = (schema::CLUSTER_OPERATIONS_RULE, "operations of the Cluster are All, Create, Alter, Describe, ClusterAction, DescribeConfigs, AlterConfigs and IdempotentWrite: remove the others"),
    validation = (schema::TRANSACTIONAL_ID_OPERATIONS_RULE, "operations of a TransactionalId are All, Write and Describe: remove the others")
)]
pub struct AclRule {
    /// What the rule is about.
    pub resource: AclResource,
    /// What is allowed or denied. `All` stands for every operation; Read, Write, Delete and Alter include Describe, AlterConfigs
    /// includes DescribeConfigs. `CreateTokens` and `DescribeTokens` are refused in this version.
    #[schemars(length(min = 1, max = 12))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = ("!self.exists(o, o == 'CreateTokens' || o == 'DescribeTokens')", "there are no delegation tokens in this version: remove CreateTokens and DescribeTokens")
    )]
    pub operations: Vec<AclOperation>,
    /// Allow or Deny; Deny always wins.
    #[serde(default)]
    pub permission: AclPermission,
    /// Client addresses the rule is for: `*`, or IP addresses without a mask.
    #[serde(default = "any_host")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 45)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = ("self.all(h, h == '*' || isIP(h))", "hosts are \"*\" or IP addresses such as 10.0.0.9: write one of them, without a mask or a name")
    )]
    pub hosts: Vec<String>,
}

fn any_host() -> Vec<String> {
    vec!["*".to_owned()]
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.type == 'Cluster' || has(self.name)", "name is missing: write the resource's name, or \"*\" for all of its type"),
    validation = ("self.type != 'Cluster' || ((!has(self.name) || self.name == 'kafka-cluster') && self.pattern == 'Literal')", "a Cluster resource has the name kafka-cluster and the pattern Literal: leave both out")
)]
pub struct AclResource {
    /// Type of the resource. `DelegationToken` and `User` are refused in this version.
    #[serde(rename = "type")]
    #[x_kube(validation = ("self != 'DelegationToken' && self != 'User'", "there are no delegation tokens in this version, and rules about a User are about its tokens: write Topic, Group, Cluster or TransactionalId"))]
    pub type_: AclResourceType,
    /// Its name, a prefix of it with `pattern: Prefixed`, or `*` for all; left out for `Cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    #[x_kube(validation = (schema::NO_CONTROL_RULE, "a resource name must not contain control characters such as line breaks: remove them"))]
    pub name: Option<String>,
    /// Whether `name` is the whole name or a prefix.
    #[serde(default)]
    pub pattern: PatternType,
}

impl AclResource {
    /// The name that the binding carries: `kafka-cluster` for the cluster itself.
    #[must_use]
    pub fn resource_name(&self) -> &str {
        self.name.as_deref().unwrap_or("kafka-cluster")
    }
}

/// Types of resource, as Kafka has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AclResourceType {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// The cluster itself.
    Cluster,
    /// A transactional id.
    TransactionalId,
    /// A delegation token.
    DelegationToken,
    /// A user, for operations on its tokens.
    User,
}

/// How `name` matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PatternType {
    /// The whole name.
    #[default]
    Literal,
    /// Every name that begins with it.
    Prefixed,
}

/// Allow or Deny.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AclPermission {
    /// The operations are allowed.
    #[default]
    Allow,
    /// The operations are denied, whatever allows them.
    Deny,
}

/// Operations, as Kafka has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AclOperation {
    /// Every operation.
    All,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Create.
    Create,
    /// Delete.
    Delete,
    /// Alter.
    Alter,
    /// Describe.
    Describe,
    /// What brokers do among themselves.
    ClusterAction,
    /// Read configurations.
    DescribeConfigs,
    /// Change configurations.
    AlterConfigs,
    /// Produce idempotently (implied by Write on any topic).
    IdempotentWrite,
    /// Create delegation tokens.
    CreateTokens,
    /// Describe delegation tokens.
    DescribeTokens,
}

/// What was observed of an Acl.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AclStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Synced and ReconciliationPaused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The principal that the brokers hold rules for, such as `User:alice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// ACL bindings that the brokers hold for it on behalf of this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bindings: Option<i32>,
}
