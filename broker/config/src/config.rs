//! `broker.toml`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// The whole configuration of one broker process.
///
/// One file serves every pod of a StatefulSet: the placeholders `{pod}` (the host name up to the first dot) and `{ordinal}` (the number at its end) are
/// replaced in `advertised_host`, `certificate`, `key` and the addresses of `cluster.seeds` when the file is read, see [`BrokerConfig::for_pod`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// What the operator calls this version of the configuration; reported back in `status.config_version`, otherwise unused.
    #[serde(default)]
    pub version: String,
    /// Who this broker is.
    pub node: NodeConfig,
    /// Where data lives and how it is sealed.
    pub storage: StorageConfig,
    /// The port for brokers and the operator.
    pub control: ControlConfig,
    /// The port for health, metrics and status.
    pub admin: AdminConfig,
    /// The brokers that form the cluster; absent: this broker is a cluster of its own.
    #[serde(default, skip_serializing_if = "ClusterConfig::is_alone")]
    pub cluster: ClusterConfig,
    /// The ports for clients, at least one.
    pub listeners: Vec<ListenerConfig>,
    /// Principals that may do everything, as `User:<name>`. Reloaded without a restart.
    #[serde(default)]
    pub super_users: Vec<String>,
}

/// Who this broker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Kafka broker id; absent: the number at the end of the pod's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i32>,
    /// Kafka cluster id, 1 to 64 characters of `A-Z a-z 0-9 _ -`; a data directory written under another id is refused.
    pub cluster_id: String,
    /// Reported to clients as `broker.rack`. The replicas of a shard are spread over racks, and a consumer may read from the one in its own (KIP-392).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
}

/// How brokers find each other before they know each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Where to ask for the cluster, and who forms it when there is none yet: one to five brokers, all with the same list. A broker that is not in it joins the
    /// cluster that the others have formed. Only read while a broker knows no cluster, and later as addresses of brokers that the metadata do not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<Seed>,
}

impl ClusterConfig {
    /// Whether there is nobody to look for: this broker is a cluster of its own.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.seeds.is_empty()
    }

    /// The seed with this id.
    #[must_use]
    pub fn seed(&self, id: i32) -> Option<&Seed> {
        self.seeds.iter().find(|seed| seed.id == id)
    }
}

/// A broker that is known before the cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Its Kafka broker id.
    pub id: i32,
    /// Its control port, as `host:port`; an IPv6 address in brackets.
    pub address: String,
}

impl Seed {
    /// Host (without brackets) and port; `None` when the address is not `host:port`.
    #[must_use]
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port > 0)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .filter(|address| address.parse::<Ipv6Addr>().is_ok())?,
            None => Some(host).filter(|host| is_host(host))?,
        };
        Some((host, port))
    }
}

/// A DNS name or an IPv4 address.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

/// Where data lives and how it is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// The data directory, made when absent (mode 0700).
    pub data_dir: PathBuf,
    /// Where the key-encryption key comes from; never on the data volume in production.
    pub key_provider: KeyProviderConfig,
    /// Size of one write-ahead-log file; files are pre-written and recycled.
    #[serde(default = "default_wal_file_size")]
    pub wal_file_size: ByteSize,
    /// Size at which a partition's segment is rolled, unless the topic says otherwise (`segment.bytes`).
    #[serde(default = "default_segment_size")]
    pub segment_size: ByteSize,
    /// Data shards that a new pool of shards has for each broker; fixed once the cluster is formed.
    #[serde(default = "default_data_shards")]
    pub data_shards: u32,
}

/// Source of the key-encryption key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum KeyProviderConfig {
    /// A directory of key files: `current` names the key in use, `<id>.key` holds 32 bytes in base64. A mounted Kubernetes Secret has this shape.
    Directory {
        /// The directory.
        path: PathBuf,
    },
}

/// PEM files of a TLS endpoint. All of them are watched and reloaded while connections go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Private key of the leaf, PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
    /// Authorities whose client certificates are accepted (concatenated PEM); needed unless `client_auth` is `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// Whether a TLS client must present a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Certificates are not asked for.
    #[default]
    None,
    /// Asked for; a client without one goes on to SASL.
    Requested,
    /// A handshake without one fails.
    Required,
}

/// The port for brokers and the operator: mutual TLS against the cluster authority, no SASL; its principals are `System:<common name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// Address to bind.
    pub bind: IpAddr,
    /// Port to bind.
    pub port: u16,
    /// Host name that Metadata answers give on this listener.
    pub advertised_host: String,
    /// Certificates; `client_ca` (the cluster authority) is mandatory here.
    pub tls: TlsConfig,
}

/// The admin port (HTTPS): `/healthz` and `/readyz` for anyone, `/metrics` for any certificate of `client_ca`, `/status` for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address to bind.
    pub bind: IpAddr,
    /// Port to bind.
    pub port: u16,
    /// Certificates; `client_ca` is the cluster authority.
    pub tls: TlsConfig,
    /// Serve `/metrics` to scrapers without a certificate as well (a network policy is then what limits who reads it).
    #[serde(default)]
    pub anonymous_metrics: bool,
}

/// How a client may prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mechanism {
    /// SASL PLAIN (RFC 4616), checked against the stored SCRAM verifier; refused at start on a listener without TLS.
    #[serde(rename = "PLAIN")]
    Plain,
    /// SASL SCRAM-SHA-256 (RFC 7677).
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// SASL SCRAM-SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// One port for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Name, unique among listeners, `[A-Za-z][A-Za-z0-9-]*`, 25 characters at most; not `CONTROL`.
    pub name: String,
    /// Address to bind.
    pub bind: IpAddr,
    /// Port to bind.
    pub port: u16,
    /// Host name that Metadata answers give on this listener.
    pub advertised_host: String,
    /// Port that Metadata answers give; absent: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised_port: Option<u16>,
    /// TLS; absent: plaintext, which only makes sense on loopback for tests, and never with PLAIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Whether a client certificate is asked for.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// SASL mechanisms offered. Empty with `client_auth = "required"`: mutual TLS only.
    #[serde(default)]
    pub sasl_mechanisms: Vec<Mechanism>,
    /// Kafka's `ssl.principal.mapping.rules` for certificate subjects; empty: the RFC 2253 subject as it is.
    #[serde(default)]
    pub principal_mapping_rules: Vec<String>,
    /// Connection limits.
    #[serde(default)]
    pub limits: ConnectionLimits,
}

/// Connection limits of a listener; absent means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionLimits {
    /// Connections at once on this listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Connections at once from one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections_per_ip: Option<u32>,
    /// Exceptions to `max_connections_per_ip`.
    #[serde(default)]
    pub max_connections_per_ip_overrides: BTreeMap<IpAddr, u32>,
}

const fn default_wal_file_size() -> ByteSize {
    ByteSize(64 << 20)
}

const fn default_segment_size() -> ByteSize {
    ByteSize(256 << 20)
}

const fn default_data_shards() -> u32 {
    4
}
