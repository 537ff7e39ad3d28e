//! What several kinds share.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Size;

/// The SecureCluster that an object belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of the SecureCluster.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Namespace of the SecureCluster; absent: the namespace of this object. Another namespace works only when that SecureCluster
    /// lists the namespace of this object in `spec.allowedNamespaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,
}

/// An object of the same namespace, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// Name of the object.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// How a client proves who it is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum AuthenticationType {
    /// SASL PLAIN over TLS.
    Plain,
    /// SASL SCRAM-SHA-256.
    ScramSha256,
    /// SASL SCRAM-SHA-512.
    ScramSha512,
    /// A client certificate of the clients authority.
    MutualTls,
    /// SASL GSSAPI.
    Kerberos,
    /// SASL OAUTHBEARER.
    OAuthBearer,
}

impl AuthenticationType {
    /// Kafka's name of the SASL mechanism; `None` for mutual TLS.
    #[must_use]
    pub const fn sasl_mechanism(self) -> Option<&'static str> {
        match self {
            Self::Plain => Some("PLAIN"),
            Self::ScramSha256 => Some("SCRAM-SHA-256"),
            Self::ScramSha512 => Some("SCRAM-SHA-512"),
            Self::MutualTls => None,
            Self::Kerberos => Some("GSSAPI"),
            Self::OAuthBearer => Some("OAUTHBEARER"),
        }
    }
}

impl fmt::Display for AuthenticationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What deleting an object does to the data it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// The data stays.
    #[default]
    Retain,
    /// The data is deleted with the object.
    Delete,
}

/// Client quotas; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaLimits {
    /// Bytes a second that may be produced on one broker, such as `10Mi`; above it the broker delays its answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer_byte_rate: Option<Size>,
    /// Bytes a second that may be fetched from one broker, such as `20Mi`; above it the broker delays its answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_byte_rate: Option<Size>,
    /// Share of one broker's request threads, in percent of one thread; above it the broker delays its answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub request_percentage: Option<i32>,
    /// Partitions a second that may be created or deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub controller_mutation_rate: Option<i32>,
    /// Connections a second that one broker accepts from an address; only in a Quota of an `ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connection_creation_rate: Option<i32>,
}

/// A certificate that was issued or is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate's DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// Start of its validity.
    pub not_before: Time,
    /// End of its validity.
    pub not_after: Time,
}
