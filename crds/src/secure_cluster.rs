//! SecureCluster: the brokers, their storage, listeners, certificates and defaults.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Affinity, Toleration, TopologySpreadConstraint},
        networking::v1::NetworkPolicyPeer,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    AuthenticationType, NameRef, Period, QuotaLimits, ReclaimPolicy, SecureClusterStatus, Size,
    schema,
};

/// A cluster of Kafka-protocol brokers that is encrypted, authenticated and authorised throughout.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "palisade.dev",
    version = "v1alpha1",
    kind = "SecureCluster",
    plural = "secureclusters",
    namespaced,
    status = "SecureClusterStatus",
    derive = "PartialEq",
    shortname = "scl",
    category = "palisade",
    doc = "A cluster of Kafka-protocol brokers that is encrypted in transit and at rest, authenticated and authorised throughout.",
    scale(
        spec_replicas_path = ".spec.brokers.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Brokers", type_ = "integer", json_path = ".spec.brokers.replicas", description = "Brokers asked for"),
    printcolumn(name = "Serving", type_ = "integer", json_path = ".status.readyReplicas", description = "Brokers that serve clients"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Certificates", type_ = "string", json_path = ".status.conditions[?(@.type==\"CertificatesValid\")].status", description = "Whether every certificate is valid and not due"),
    printcolumn(name = "Compliant", type_ = "string", json_path = ".status.conditions[?(@.type==\"SecurityCompliant\")].status", description = "Whether every check of the security checklist passes"),
    printcolumn(name = "Bootstrap", type_ = "string", json_path = ".status.listeners[0].bootstrapServers", description = "Where clients of the first listener connect", priority = "1"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 40",
        "metadata.name becomes part of host names: use at most 40 lower-case letters, digits and hyphens, beginning with a letter"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.audit)", "the audit trail is not available in this version: remove audit"),
    validation = ("!has(self.maintenanceWindows) || size(self.maintenanceWindows) == 0", "maintenance windows are not available in this version: remove maintenanceWindows")
)]
pub struct SecureClusterSpec {
    /// The broker pods.
    #[serde(default)]
    pub brokers: Brokers,
    /// The volume of each broker.
    pub storage: Storage,
    /// Encryption of the log; always on, the provider of its key is what varies.
    pub log_encryption: LogEncryption,
    /// The ports for clients, 1 to 16; TLS on all of them.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = ("self.all(l, self.exists_one(other, other.port == l.port))", "two listeners have the same port: give each its own")
    )]
    pub listeners: Vec<Listener>,
    /// The authorities and what they issue.
    #[serde(default)]
    pub certificates: Certificates,
    /// Who is above the access rules.
    #[serde(default)]
    pub authorization: Authorization,
    /// The audit trail; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// What applies where no other object says otherwise.
    #[serde(default)]
    pub defaults: Defaults,
    /// When voluntary disruption is allowed, such as `Sun 02:00-04:00 UTC`; refused in this version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub maintenance_windows: Vec<String>,
    /// Namespaces whose User, Acl, Quota, Topic and CertRotation objects may refer to this cluster besides its own; `*` is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(
            length(min = 1, max = 63),
            regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?|\*)$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_namespaces: Vec<String>,
}

/// The broker pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Brokers {
    /// How many. Three or more survive the loss of one without losing a record. More may be added later, and those after the third removed: the last one first,
    /// each stopped when everything it holds has moved to the others, and refused while a topic's replicas need it.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 99))]
    #[x_kube(validation = ("self >= oldSelf || self >= 3", "the first three brokers cannot be removed: write 3 or more, or the former number"))]
    pub replicas: i32,
    /// Node label whose value is the broker's rack (`broker.rack`): brokers and replicas are spread over racks, and consumers that name their rack read from a
    /// replica in it. `topology.kubernetes.io/zone` or `topology.kubernetes.io/region`, which Kubernetes (since 1.35) copies from nodes to pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    #[x_kube(validation = ("self in ['topology.kubernetes.io/zone', 'topology.kubernetes.io/region']", "rackKey is not a label that Kubernetes copies from nodes to pods: write topology.kubernetes.io/zone or topology.kubernetes.io/region"))]
    pub rack_key: Option<String>,
    /// CPU and memory of each broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Additions to the broker pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<BrokerTemplate>,
}

impl Default for Brokers {
    fn default() -> Self {
        Self {
            replicas: one(),
            rack_key: None,
            resources: None,
            template: None,
        }
    }
}

const fn one() -> i32 {
    1
}

/// CPU and memory of a container, as Kubernetes quantities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside, such as `{cpu: "1", memory: 1Gi}`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "quantities"
    )]
    #[schemars(extend("maxProperties" = 8))]
    pub requests: BTreeMap<String, Quantity>,
    /// What it may use at most, such as `{memory: 2Gi}`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "quantities"
    )]
    #[schemars(extend("maxProperties" = 8))]
    pub limits: BTreeMap<String, Quantity>,
}

/// Quantities as YAML has them: `cpu: 1` is a number to it and is stored as one.
fn quantities<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Quantity>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(i64),
        Text(String),
    }
    let written = BTreeMap::<String, Written>::deserialize(deserializer)?;
    let quantity = |written| match written {
        Written::Number(number) => Quantity(number.to_string()),
        Written::Text(text) => Quantity(text),
    };
    Ok(written
        .into_iter()
        .map(|(name, value)| (name, quantity(value)))
        .collect())
}

/// Additions to the broker pods, merged into what the operator makes; its own labels, annotations and security settings win.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerTemplate {
    /// Labels and annotations to add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BrokerTemplateMetadata>,
    /// Where the pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<BrokerTemplateSpec>,
}

/// Labels and annotations to add to the broker pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerTemplateMetadata {
    /// Labels to add; `palisade.dev/` and `app.kubernetes.io/` are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = (schema::OWN_KEYS_RULE, "labels under palisade.dev/ and app.kubernetes.io/ belong to the operator: remove them"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations to add; `palisade.dev/` and `app.kubernetes.io/` are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = (schema::OWN_KEYS_RULE, "annotations under palisade.dev/ and app.kubernetes.io/ belong to the operator: remove them"))]
    pub annotations: BTreeMap<String, String>,
}

/// Where the broker pods run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerTemplateSpec {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
    /// Affinity to nodes and other pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// How the pods are spread over the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
}

/// The volume of each broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.storageClassName) == has(oldSelf.storageClassName)", "storageClassName is immutable: write what the cluster was created with, or create another one"))]
pub struct Storage {
    /// Size of each volume, such as `100Gi`; growing it expands the claims in place where the storage class can.
    #[x_kube(
        validation = ("quantity(self).compareTo(quantity(oldSelf)) >= 0", "storage cannot shrink: write the former size or a larger one"),
        validation = ("quantity(self).compareTo(quantity('1Gi')) >= 0", "a broker needs 1Gi of storage at least: write 1Gi or more")
    )]
    pub size: Size,
    /// Storage class of the claims; absent: the default one. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    #[x_kube(validation = ("self == oldSelf", "storageClassName is immutable: write what the cluster was created with, or create another one"))]
    pub storage_class_name: Option<String>,
    /// Encryption of the volumes beneath the sealed log.
    #[serde(default)]
    pub volume_encryption: VolumeEncryption,
    /// What happens to the claims when the cluster is deleted, and to the claim of a broker that was removed.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

/// Encryption of the volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.mode == 'None' && !has(self.keyRef)", "encrypted volumes are not available in this version: write mode: None and no keyRef; the log is sealed in any case"))]
pub struct VolumeEncryption {
    /// `None`, or `Luks`, which is refused in this version.
    #[serde(default)]
    pub mode: VolumeEncryptionMode,
    /// Secret that holds the key of `Luks`; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_ref: Option<NameRef>,
}

/// How volumes are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum VolumeEncryptionMode {
    /// Not beneath the sealed log.
    #[default]
    None,
    /// LUKS.
    Luks,
}

/// Encryption of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.rotateEvery)", "rotation of the log's key is not available in this version: remove rotateEvery"))]
pub struct LogEncryption {
    /// Where the key-encryption key comes from; immutable.
    #[x_kube(validation = ("self == oldSelf", "keyProvider is immutable: the log is sealed under its key; create another cluster and move the data"))]
    pub key_provider: KeyProvider,
    /// How often the key-encryption key is replaced; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_every: Option<Period>,
}

/// Where the key-encryption key comes from: exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.vault)", "keys in Vault are not available in this version: write secret"),
    validation = ("!has(self.awsKms)", "keys in AWS KMS are not available in this version: write secret"),
    validation = ("has(self.secret) || has(self.vault) || has(self.awsKms)", "write secret: {name: ...}; the operator makes the Secret when it does not exist")
)]
pub struct KeyProvider {
    /// A Secret of this namespace: `current` names the key in use, `<id>.key` holds 32 bytes in base64. The operator makes it when it
    /// does not exist and never deletes it: without it the data cannot be read, so back it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<NameRef>,
    /// Vault's transit engine; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultProvider>,
    /// AWS KMS; refused in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws_kms: Option<AwsKmsProvider>,
}

/// A key of Vault's transit engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VaultProvider {
    /// Name of the transit key.
    #[schemars(length(min = 1, max = 253))]
    pub key_name: String,
}

/// A key of AWS KMS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwsKmsProvider {
    /// Id or ARN of the key.
    #[schemars(length(min = 1, max = 2048))]
    pub key_id: String,
}

/// A port for clients. TLS is always on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name, unique in the cluster: at most 15 lower-case letters, digits and hyphens; `control` and `admin` are taken.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    )]
    #[x_kube(validation = ("self != 'control' && self != 'admin'", "control and admin are the brokers' own listeners: choose another name"))]
    pub name: String,
    /// TCP port, 1024 or above; 9090 and 9091 are the brokers' own.
    #[schemars(range(min = 1024, max = 65_535))]
    #[x_kube(validation = ("self != 9090 && self != 9091", "ports 9090 and 9091 are the brokers' own: choose another one, such as 9093"))]
    pub port: i32,
    /// How clients reach it. `NodePort`, `LoadBalancer` and `Ingress` are refused in this version.
    #[serde(rename = "type", default)]
    #[x_kube(validation = ("self == 'ClusterIP'", "listeners outside the cluster are not available in this version: write type: ClusterIP"))]
    pub type_: ListenerType,
    /// How clients may prove who they are, at least one. With MutualTls alone a client certificate is required; beside others it is asked for.
    #[schemars(length(min = 1, max = 6))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = ("!self.exists(a, a == 'Kerberos' || a == 'OAuthBearer')", "Kerberos and OAuthBearer are not available in this version: write Plain, ScramSha256, ScramSha512 or MutualTls")
    )]
    pub authentication: Vec<AuthenticationType>,
    /// Who may connect, as peers of a NetworkPolicy; empty: every pod of the cluster's own namespace and of `spec.allowedNamespaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub allow_from: Vec<NetworkPolicyPeer>,
    /// Limits of connections on each broker.
    #[serde(default)]
    pub limits: ListenerLimits,
}

/// How clients reach a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ListenerType {
    /// From inside the Kubernetes cluster.
    #[default]
    ClusterIP,
    /// By a port of every node.
    NodePort,
    /// By a load balancer.
    LoadBalancer,
    /// By an ingress that passes TLS through.
    Ingress,
}

/// Limits of connections on each broker; what is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerLimits {
    /// Connections at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<i32>,
    /// Connections at once from one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections_per_ip: Option<i32>,
    /// Exceptions to `maxConnectionsPerIp`, by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "connections_by_address")]
    #[x_kube(validation = ("self.all(ip, ip.size() <= 45 && isIP(ip))", "maxConnectionsPerIpOverrides has a key that is not an address: write IP addresses such as 10.0.0.9"))]
    pub max_connections_per_ip_overrides: BTreeMap<String, i32>,
}

fn connections_by_address(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 1_000_000 },
    })
}

/// The authorities and what they issue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(schema::not_longer("self.leafValidity", "self.clusterAuthority.renewBefore"))
        .message("leafValidity must not be longer than clusterAuthority.renewBefore: a certificate would outlive its authority"),
    validation = Rule::new(schema::not_longer("self.leafValidity", "self.clientsAuthority.renewBefore"))
        .message("leafValidity must not be longer than clientsAuthority.renewBefore: a certificate would outlive its authority")
)]
pub struct Certificates {
    /// Issues the brokers' certificates.
    #[serde(default)]
    pub cluster_authority: CertificateAuthority,
    /// Issues client certificates of MutualTls users.
    #[serde(default)]
    pub clients_authority: CertificateAuthority,
    /// How long broker and client certificates are valid, 1h to 36500d; they are renewed after two thirds of it.
    #[serde(default = "default_leaf_validity")]
    #[x_kube(validation = Rule::new(schema::validity("self")).message("leafValidity is not possible: write 1h to 36500d, such as 90d"))]
    pub leaf_validity: Period,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            cluster_authority: CertificateAuthority::default(),
            clients_authority: CertificateAuthority::default(),
            leaf_validity: default_leaf_validity(),
        }
    }
}

const fn default_leaf_validity() -> Period {
    Period::from_days(90)
}

/// An authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(schema::shorter("self.renewBefore", "self.validity"))
    .message("renewBefore must be shorter than validity: the authority would be due as soon as it is made"))]
pub struct CertificateAuthority {
    /// Where its key comes from. `SecretRef`, `CertManager` and `Vault` are refused in this version.
    #[serde(default)]
    #[x_kube(validation = ("self == 'Generated'", "this certificate source is not available in this version: write source: Generated"))]
    pub source: AuthoritySource,
    /// How long the authority's certificate is valid, 1h to 36500d.
    #[serde(default = "default_authority_validity")]
    #[x_kube(validation = Rule::new(schema::validity("self")).message("validity is not possible: write 1h to 36500d, such as 1095d"))]
    pub validity: Period,
    /// How long before its end the authority is replaced, 1h to 36500d.
    #[serde(default = "default_renew_before")]
    #[x_kube(validation = Rule::new(schema::validity("self")).message("renewBefore is not possible: write 1h to 36500d, such as 90d"))]
    pub renew_before: Period,
    /// Algorithm of its key and of the keys of what it issues; a change takes effect with the next rotation that replaces the key.
    #[serde(default)]
    pub key_algorithm: KeyAlgorithm,
}

impl Default for CertificateAuthority {
    fn default() -> Self {
        Self {
            source: AuthoritySource::default(),
            validity: default_authority_validity(),
            renew_before: default_renew_before(),
            key_algorithm: KeyAlgorithm::default(),
        }
    }
}

const fn default_authority_validity() -> Period {
    Period::from_days(1095)
}

const fn default_renew_before() -> Period {
    Period::from_days(90)
}

/// Where an authority's key comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AuthoritySource {
    /// The operator generates it.
    #[default]
    Generated,
    /// A Secret holds it.
    SecretRef,
    /// cert-manager issues.
    CertManager,
    /// Vault's PKI engine issues.
    Vault,
}

/// Algorithm of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256.
    #[default]
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// RSA of 3072 bits.
    Rsa3072,
}

/// Who is above the access rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// Principals that may do everything, such as `User:platform-admin`; keep the list short.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = ("self.all(p, p.startsWith('User:') && size(p) > 5 && p != 'User:*')", "superUsers has an entry that is not one principal: write User:<name>"),
        validation = (r"self.all(p, !p.matches('[\\x00-\\x1f\\x7f]'))", "superUsers has an entry with control characters such as line breaks: remove them")
    )]
    pub super_users: Vec<String>,
}

/// The audit trail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// How long records of the trail are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Period>,
    /// Where records are sent besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sinks: Vec<AuditSink>,
}

/// Where audit records are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditSink {
    /// Name of the sink.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What applies where no other object says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Defaults {
    /// Limits of every user that no Quota names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("!has(self.connectionCreationRate)", "connectionCreationRate limits an address: put it in a Quota whose entity is an ip, such as ip: \"*\""))]
    pub quota: Option<QuotaLimits>,
}

impl SecureCluster {
    /// The Secret that holds the key-encryption key; `None` with a provider that admission refuses.
    #[must_use]
    pub fn key_secret(&self) -> Option<&str> {
        self.spec
            .log_encryption
            .key_provider
            .secret
            .as_ref()
            .map(|secret| secret.name.as_str())
    }

    /// Whether objects of `namespace` may refer to this cluster.
    #[must_use]
    pub fn admits_namespace(&self, namespace: &str) -> bool {
        self.metadata.namespace.as_deref() == Some(namespace)
            || self
                .spec
                .allowed_namespaces
                .iter()
                .any(|allowed| allowed == "*" || allowed == namespace)
    }
}
