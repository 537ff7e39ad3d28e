//! What a broker says of itself on `GET /status` of its admin port. The operator copies it into the status of resources, so every
//! field is something the broker has loaded, never something it was told.

use serde::{Deserialize, Serialize};

/// The state of one broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// Kafka broker id.
    pub broker_id: i32,
    /// Kafka cluster id.
    pub cluster_id: String,
    /// Version of the binary.
    pub version: String,
    /// `version` of the configuration that is in effect.
    pub config_version: String,
    /// True once the broker serves clients.
    pub ready: bool,
    /// Why it is not ready, or what is degraded (full disk, key provider lost, quarantined files); empty when all is well.
    pub problems: Vec<String>,
    /// Leaf certificate of each endpoint, by listener name (`CONTROL` and `ADMIN` among them).
    pub certificates: Vec<EndpointCertificate>,
    /// Trust bundles, by listener name.
    pub trust: Vec<EndpointTrust>,
    /// Id of the key-encryption key in use.
    pub kek_id: String,
    /// Topics, partitions and open client connections.
    pub topics: u64,
    /// Partitions of all topics.
    pub partitions: u64,
    /// Client connections open now.
    pub connections: u64,
    /// Files set aside as corrupt: path and byte offset of the bad frame.
    pub quarantined: Vec<QuarantinedFile>,
}

/// The leaf certificate that an endpoint presents now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCertificate {
    /// Listener name.
    pub listener: String,
    /// Serial number, lower-case hex without separators.
    pub serial: String,
    /// SHA-256 of the leaf's DER, lower-case hex.
    pub fingerprint: String,
    /// Issuer, RFC 2253.
    pub issuer: String,
    /// Start of validity, RFC 3339.
    pub not_before: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
}

/// The authorities that an endpoint accepts client certificates from now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTrust {
    /// Listener name.
    pub listener: String,
    /// SHA-256 of each trusted certificate's DER, lower-case hex, sorted.
    pub authorities: Vec<String>,
}

/// A file that failed authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantinedFile {
    /// Path relative to the data directory.
    pub file: String,
    /// Byte offset of the first bad frame.
    pub offset: u64,
}
