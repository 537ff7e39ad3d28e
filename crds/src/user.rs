//! User: a principal of a SecureCluster and the Secret that its workload mounts.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{AuthenticationType, CertificateStatus, ClusterRef, Period};

/// A principal of a SecureCluster.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "palisade.dev",
    version = "v1alpha1",
    kind = "User",
    plural = "users",
    namespaced,
    status = "UserStatus",
    derive = "PartialEq",
    shortname = "kuser",
    category = "palisade",
    doc = "A principal of a SecureCluster, named by metadata.name, and the Secret that its workload mounts.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "SecureCluster it belongs to"),
    printcolumn(name = "Authentication", type_ = "string", json_path = ".spec.authentication.type", description = "How it proves who it is"),
    printcolumn(name = "Principal", type_ = "string", json_path = ".status.principal", description = "Name that the brokers authorise"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretName", description = "Secret to mount"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspended", priority = "1"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (
        "self.metadata.name.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
        "metadata.name becomes the user's name and the common name of its certificate: use at most 63 lower-case letters, digits, dots and hyphens"
    ),
    validation = (
        "(has(self.spec.credentials.secretName) ? self.spec.credentials.secretName : self.metadata.name) == (has(oldSelf.spec.credentials.secretName) ? oldSelf.spec.credentials.secretName : oldSelf.metadata.name)",
        "secretName is immutable: workloads mount the Secret by it; create another User"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.authentication.type != 'MutualTls' || !has(self.credentials.passwordFrom)",
    "a MutualTls user has a certificate and no password: remove credentials.passwordFrom"
))]
pub struct UserSpec {
    /// The SecureCluster that knows the user; immutable.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is immutable: delete this User and create one for the other cluster"))]
    pub cluster_ref: ClusterRef,
    /// How the user proves who it is.
    pub authentication: Authentication,
    /// Where its password comes from and where the workload finds it.
    #[serde(default)]
    pub credentials: Credentials,
    /// `true`: the brokers refuse the credential; nothing is deleted, and `false` lets it in again.
    #[serde(default)]
    pub suspended: bool,
}

/// How a user proves who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.type != 'Kerberos' && !has(self.kerberos)", "Kerberos is not available in this version: write Plain, ScramSha256, ScramSha512 or MutualTls"),
    validation = ("self.type != 'OAuthBearer' && !has(self.oAuthBearer)", "OAuthBearer is not available in this version: write Plain, ScramSha256, ScramSha512 or MutualTls")
)]
pub struct Authentication {
    /// The mechanism; a listener of the cluster has to offer it. `Kerberos` and `OAuthBearer` are refused in this version.
    #[serde(rename = "type")]
    pub type_: AuthenticationType,
    /// Details of `type: Kerberos`; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kerberos: Option<KerberosAuthentication>,
    /// Details of `type: OAuthBearer`; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub o_auth_bearer: Option<OAuthBearerAuthentication>,
}

/// Details of Kerberos.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KerberosAuthentication {
    /// Kerberos principal, such as `alice@EXAMPLE.ORG`.
    #[schemars(length(min = 1, max = 256))]
    pub principal: String,
}

/// Details of OAuthBearer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OAuthBearerAuthentication {
    /// ServiceAccount of this namespace whose projected token is the credential.
    #[schemars(length(min = 1, max = 253))]
    pub service_account: String,
}

/// Where a password comes from and where the workload finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.rotateEvery)", "rotateEvery is not available in this version: remove it; a new password is generated when the Secret is deleted"),
    validation = ("!has(self.overlap)", "overlap is not available in this version: remove it")
)]
pub struct Credentials {
    /// Source of the password; absent: a generated one of 32 characters. Not for MutualTls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_from: Option<PasswordFrom>,
    /// Name of the Secret that the operator writes in this namespace for the workload to mount; absent: `metadata.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub secret_name: Option<String>,
    /// How often the credential is replaced; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_every: Option<Period>,
    /// How long the old credential keeps working after a rotation; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Period>,
}

/// Source of a password: exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.vault)", "passwords from Vault are not available in this version: write generate or secretKeyRef"),
    validation = ("!has(self.awsSecretsManager)", "passwords from AWS Secrets Manager are not available in this version: write generate or secretKeyRef"),
    validation = ("has(self.vault) || has(self.awsSecretsManager) || has(self.generate) != has(self.secretKeyRef)", "write exactly one of generate and secretKeyRef")
)]
pub struct PasswordFrom {
    /// The operator generates it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<GeneratePassword>,
    /// A key of a Secret of this namespace holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// Vault holds it; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultSecretRef>,
    /// AWS Secrets Manager holds it; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws_secrets_manager: Option<AwsSecretRef>,
}

/// How a password is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GeneratePassword {
    /// Characters, from letters and digits.
    #[serde(default = "default_length")]
    #[schemars(range(min = 16, max = 128))]
    pub length: i32,
}

const fn default_length() -> i32 {
    32
}

impl Default for GeneratePassword {
    fn default() -> Self {
        Self {
            length: default_length(),
        }
    }
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Key within it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A field of a secret in Vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VaultSecretRef {
    /// Path of the secret.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
    /// Field within it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A secret in AWS Secrets Manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwsSecretRef {
    /// Its name or ARN.
    #[schemars(length(min = 1, max = 2048))]
    pub secret_id: String,
}

impl User {
    /// The name of the Secret that the operator writes.
    #[must_use]
    pub fn secret_name(&self) -> &str {
        self.spec
            .credentials
            .secret_name
            .as_deref()
            .or(self.metadata.name.as_deref())
            .unwrap_or_default()
    }
}

/// What was observed of a User.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Synced and ReconciliationPaused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Name that the brokers authorise, such as `User:alice` or `User:CN=alice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The Secret that holds what the workload needs, once the brokers accept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Fingerprint of the credential that the brokers accepted; not reversible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_fingerprint: Option<String>,
    /// The client certificate in the Secret; only with MutualTls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// SHA-256 fingerprints of the cluster authorities that the Secret trusts, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub trusted_authorities: Vec<String>,
}
