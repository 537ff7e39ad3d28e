//! A spec becomes a [`Cluster`], or a message that says what to write instead. Nothing past this point reads the raw spec.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::ResourceExt;
use palisade_config::BrokerConfig;
use palisade_crds::{
    AuthenticationType, CertificateAuthority, KeyAlgorithm, Period, ReclaimPolicy, SecureCluster,
};
use time::Duration;

use super::config;
use crate::{
    authorities::AuthorityPolicy,
    kubernetes::names,
    pki::{self, CommonName},
};

/// A cluster whose spec makes sense.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Number of brokers that the spec asks for.
    pub wanted: i32,
    /// Number of brokers that stand: more than are asked for while some of them leave.
    pub replicas: i32,
    /// Node label whose value is a broker's rack.
    pub rack_key: Option<String>,
    /// The ports for clients.
    pub listeners: Vec<ClientListener>,
    /// The authority of brokers' certificates.
    pub cluster_policy: AuthorityPolicy,
    /// The authority of users' certificates.
    pub clients_policy: AuthorityPolicy,
    /// How long what they issue is valid.
    pub leaf_validity: Duration,
    /// Secret with the key-encryption key.
    pub kek_secret: String,
    /// Size of each volume in bytes.
    pub volume_bytes: u64,
    /// Storage class of the volumes.
    pub storage_class: Option<String>,
    /// What deleting the cluster does to the volumes.
    pub reclaim_policy: ReclaimPolicy,
    /// Namespaces besides its own whose objects may refer to it.
    pub allowed_namespaces: Vec<String>,
    /// Principals above the rules.
    pub super_users: Vec<String>,
    /// What brokers read, its version filled in.
    pub config: BrokerConfig,
}

/// Node labels that Kubernetes copies to pods (KEP-4742), so that a broker learns its rack without a right to read nodes.
const RACK_KEYS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// A port for clients.
#[derive(Clone, Debug)]
pub struct ClientListener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// How clients prove who they are.
    pub authentication: Vec<AuthenticationType>,
    /// Who may connect; empty: the namespaces that may refer to the cluster.
    pub allow_from: Vec<NetworkPolicyPeer>,
    /// Connection limits.
    pub limits: palisade_config::ConnectionLimits,
}

impl ClientListener {
    /// Whether client certificates are asked for.
    #[must_use]
    pub fn takes_certificates(&self) -> bool {
        self.authentication.contains(&AuthenticationType::MutualTls)
    }
}

impl Cluster {
    /// Common name, less its key's identifier, of the authority of brokers.
    ///
    /// # Errors
    /// Never for a name that the API server accepted.
    pub fn cluster_authority_name(&self) -> Result<CommonName, pki::NameError> {
        CommonName::new(format!("{}-cluster", self.name))
    }

    /// Common name, less its key's identifier, of the authority of users.
    ///
    /// # Errors
    /// Never for a name that the API server accepted.
    pub fn clients_authority_name(&self) -> Result<CommonName, pki::NameError> {
        CommonName::new(format!("{}-clients", self.name))
    }

    /// The same cluster with this many brokers standing.
    ///
    /// # Errors
    /// What the brokers would not accept; never for a number between those that the spec and its StatefulSet name.
    pub fn with_brokers(mut self, replicas: i32) -> Result<Self, String> {
        if self.replicas != replicas {
            self.replicas = replicas;
            self.config = config::skeleton(cluster_id(&self.namespace, &self.name));
            self.config = config::broker_config(&self)?;
        }
        Ok(self)
    }

    /// Names of its brokers' pods, by ordinal.
    #[must_use]
    pub fn pods(&self) -> Vec<String> {
        (0..self.replicas)
            .map(|ordinal| names::pod(&self.name, ordinal))
            .collect()
    }

    /// DNS names of a broker's certificate: its own, and those of the bootstrap Service.
    #[must_use]
    pub fn dns_names(&self, ordinal: i32) -> Vec<String> {
        let host = names::broker_host(&self.name, &self.namespace, ordinal);
        let bootstrap = format!(
            "{}.{}",
            names::bootstrap_service(&self.name),
            self.namespace
        );
        let mut dns = vec![
            format!("{host}.cluster.local"),
            host,
            format!("{bootstrap}.svc.cluster.local"),
            format!("{bootstrap}.svc"),
            bootstrap,
        ];
        dns.sort();
        dns
    }

    /// `bootstrap.servers` of a listener.
    #[must_use]
    pub fn bootstrap_servers(&self, listener: &ClientListener) -> String {
        bootstrap_servers(&self.name, &self.namespace, listener.port)
    }
}

/// `bootstrap.servers` of a cluster's listener.
#[must_use]
pub fn bootstrap_servers(cluster: &str, namespace: &str, port: u16) -> String {
    format!(
        "{}.{namespace}.svc:{port}",
        names::bootstrap_service(cluster)
    )
}

/// Kafka cluster id: 22 characters that depend on the cluster's name alone, so that a cluster made anew on the volumes it left behind accepts them.
#[must_use]
pub(super) fn cluster_id(namespace: &str, name: &str) -> String {
    let hash = digest::digest(&digest::SHA256, format!("{namespace}/{name}").as_bytes());
    let mut id = URL_SAFE_NO_PAD.encode(hash.as_ref().get(..16).unwrap_or_default());
    // A leading dash reads as an option on a command line.
    if id.starts_with('-') {
        id.replace_range(..1, "A");
    }
    id
}

/// Checks a spec. Admission has refused most of this already; an object may have been stored before a rule existed.
///
/// # Errors
/// What to write instead.
pub fn validate(cluster: &SecureCluster) -> Result<Cluster, String> {
    let spec = &cluster.spec;
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    CommonName::new(names::pod(&name, spec.brokers.replicas))
        .map_err(|error| format!("metadata.name: {error}"))?;
    if !(1..=99).contains(&spec.brokers.replicas) {
        return Err(format!(
            "spec.brokers.replicas is {}: write 1 to 99",
            spec.brokers.replicas
        ));
    }
    if let Some(key) = &spec.brokers.rack_key
        && !RACK_KEYS.contains(&key.as_str())
    {
        return Err(format!(
            "spec.brokers.rackKey `{key}` is not a label that Kubernetes copies from nodes to pods: write {}",
            RACK_KEYS.join(" or ")
        ));
    }
    let kek_secret = cluster
        .key_secret()
        .ok_or("spec.logEncryption.keyProvider names no Secret: write secret: {name: ...}")?
        .to_owned();
    if [
        names::cluster_authority_secret(&name),
        names::clients_authority_secret(&name),
        names::trust_secret(&name),
        names::broker_certificates_secret(&name),
    ]
    .contains(&kek_secret)
    {
        return Err(format!(
            "spec.logEncryption.keyProvider.secret.name `{kek_secret}` is a Secret of the operator's own: choose another name"
        ));
    }
    let listeners = spec
        .listeners
        .iter()
        .map(|listener| {
            let port = u16::try_from(listener.port)
                .map_err(|_| format!("port {} of listener `{}` is none: write 1024 to 65535", listener.port, listener.name))?;
            let mut overrides = BTreeMap::new();
            for (address, limit) in &listener.limits.max_connections_per_ip_overrides {
                let address = address.parse().map_err(|_| format!("`{address}` in maxConnectionsPerIpOverrides of listener `{}` is not an IP address", listener.name))?;
                overrides.insert(address, limit_of(*limit, "maxConnectionsPerIpOverrides", &listener.name)?);
            }
            let limit = |value: Option<i32>, field| value.map(|value| limit_of(value, field, &listener.name)).transpose();
            if let Some(other) = listener
                .authentication
                .iter()
                .find(|kind| matches!(kind, AuthenticationType::Kerberos | AuthenticationType::OAuthBearer))
            {
                return Err(format!("{other} of listener `{}` is not available in this version: remove it", listener.name));
            }
            Ok(ClientListener {
                name: listener.name.clone(),
                port,
                authentication: listener.authentication.clone(),
                allow_from: listener.allow_from.clone(),
                limits: palisade_config::ConnectionLimits {
                    max_connections: limit(listener.limits.max_connections, "maxConnections")?,
                    max_connections_per_ip: limit(listener.limits.max_connections_per_ip, "maxConnectionsPerIp")?,
                    max_connections_per_ip_overrides: overrides,
                },
            })
        })
        .collect::<Result<Vec<_>, String>>()?;
    if let Some(user) = spec
        .authorization
        .super_users
        .iter()
        .find(|user| *user == "User:*" || user.chars().any(char::is_control))
    {
        return Err(format!(
            "spec.authorization.superUsers has {user:?}, which is not one principal: write User:<name>"
        ));
    }
    let mut validated = Cluster {
        cluster_policy: policy(&spec.certificates.cluster_authority, "clusterAuthority")?,
        clients_policy: policy(&spec.certificates.clients_authority, "clientsAuthority")?,
        leaf_validity: duration(spec.certificates.leaf_validity, "leafValidity")?,
        wanted: spec.brokers.replicas,
        replicas: spec.brokers.replicas,
        rack_key: spec.brokers.rack_key.clone(),
        listeners,
        kek_secret,
        volume_bytes: spec.storage.size.bytes(),
        storage_class: spec.storage.storage_class_name.clone(),
        reclaim_policy: spec.storage.reclaim_policy,
        allowed_namespaces: spec.allowed_namespaces.clone(),
        super_users: spec.authorization.super_users.clone(),
        config: config::skeleton(cluster_id(&namespace, &name)),
        name,
        namespace,
    };
    // The brokers' own parser has the last word on what the listeners add up to.
    validated.config = config::broker_config(&validated)?;
    Ok(validated)
}

fn limit_of(value: i32, field: &str, listener: &str) -> Result<u32, String> {
    u32::try_from(value)
        .map_err(|_| format!("{field} of listener `{listener}` is {value}: write 1 or more"))
}

fn policy(authority: &CertificateAuthority, field: &str) -> Result<AuthorityPolicy, String> {
    let policy = AuthorityPolicy {
        validity: duration(authority.validity, field)?,
        renew_before: duration(authority.renew_before, field)?,
        algorithm: match authority.key_algorithm {
            KeyAlgorithm::EcdsaP256 => pki::KeyAlgorithm::EcdsaP256,
            KeyAlgorithm::EcdsaP384 => pki::KeyAlgorithm::EcdsaP384,
            KeyAlgorithm::Rsa3072 => pki::KeyAlgorithm::Rsa3072,
        },
    };
    if policy.renew_before >= policy.validity {
        return Err(format!(
            "spec.certificates.{field} contradicts itself: renewBefore {} is not shorter than validity {}",
            authority.renew_before, authority.validity
        ));
    }
    Ok(policy)
}

fn duration(period: Period, field: &str) -> Result<Duration, String> {
    let seconds = i64::try_from(period.seconds()).unwrap_or(i64::MAX);
    let duration = Duration::seconds(seconds);
    if duration < Duration::hours(1) || duration > Duration::days(36_500) {
        return Err(format!(
            "spec.certificates.{field}: a period of {period} is not possible, write 1h to 36500d"
        ));
    }
    Ok(duration)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    /// A cluster as a user writes it.
    pub(crate) fn fixture() -> SecureCluster {
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1",
            "kind": "SecureCluster",
            "metadata": { "name": "events", "namespace": "messaging", "uid": "0f1d", "generation": 3 },
            "spec": {
                "brokers": { "replicas": 1, "resources": { "requests": { "cpu": "500m", "memory": "256Mi" }, "limits": { "memory": "1Gi" } } },
                "storage": { "size": "10Gi" },
                "logEncryption": { "keyProvider": { "secret": { "name": "events-log-kek" } } },
                "listeners": [
                    { "name": "internal", "port": 9093, "authentication": ["ScramSha512", "MutualTls"],
                      "allowFrom": [{ "podSelector": { "matchLabels": { "tier": "application" } } }],
                      "limits": { "maxConnections": 500 } },
                    { "name": "batch", "port": 9094, "authentication": ["MutualTls"] }
                ],
                "authorization": { "superUsers": ["User:platform-admin"] },
                "allowedNamespaces": ["shop"]
            }
        }))
        .unwrap()
    }

    fn refused(change: impl FnOnce(&mut SecureCluster)) -> String {
        let mut cluster = fixture();
        change(&mut cluster);
        validate(&cluster).unwrap_err()
    }

    #[test]
    fn a_good_spec_becomes_a_cluster() {
        let cluster = validate(&fixture()).unwrap();
        assert_eq!(
            cluster.bootstrap_servers(&cluster.listeners[0]),
            "events-bootstrap.messaging.svc:9093"
        );
        assert_eq!(cluster.pods(), ["events-0"]);
        let dns = cluster.dns_names(0);
        assert!(dns.contains(&"events-0.events-brokers.messaging.svc".to_owned()));
        assert!(dns.contains(&"events-bootstrap.messaging.svc.cluster.local".to_owned()));
        assert!(!dns.iter().any(|name| name.contains("localhost")));
    }

    #[test]
    fn brokers_that_leave_change_no_configuration() {
        let with = |replicas| {
            let mut cluster = fixture();
            cluster.spec.brokers.replicas = replicas;
            validate(&cluster).unwrap()
        };
        let leaving = with(3).with_brokers(5).unwrap();
        assert_eq!((leaving.wanted, leaving.replicas), (3, 5));
        assert_eq!(leaving.pods().len(), 5);
        assert_eq!(leaving.config, with(5).config);
        assert_eq!(leaving.with_brokers(3).unwrap().config, with(3).config);
        // Below three it would, which is why that is refused.
        assert_ne!(with(1).config, with(1).with_brokers(3).unwrap().config);
    }

    #[test]
    fn a_spec_that_contradicts_itself_is_refused_with_advice() {
        let message = refused(|cluster| {
            cluster.spec.certificates.cluster_authority.renew_before = Period::from_days(2000)
        });
        assert_eq!(
            message,
            "spec.certificates.clusterAuthority contradicts itself: renewBefore 2000d is not shorter than validity 1095d"
        );
        let message = refused(|cluster| cluster.spec.listeners[1].port = 9093);
        assert!(message.contains("already taken"), "{message}");
        let message = refused(|cluster| cluster.spec.listeners[1].port = 9091);
        assert!(message.contains("already taken"), "{message}");
        let message = refused(|cluster| cluster.spec.listeners[1].name = "INTERNAL".to_owned());
        assert!(message.contains("used twice"), "{message}");
        let message = refused(|cluster| cluster.spec.listeners[1].authentication.clear());
        assert!(message.contains("nobody has authenticated"), "{message}");
        let message =
            refused(|cluster| cluster.spec.authorization.super_users = vec!["User:*".to_owned()]);
        assert!(message.contains("not one principal"), "{message}");
        let message = refused(|cluster| {
            cluster.spec.brokers.rack_key = Some("example.com/room".to_owned());
        });
        assert!(
            message.ends_with("write topology.kubernetes.io/zone or topology.kubernetes.io/region"),
            "{message}"
        );
        let message = refused(|cluster| {
            cluster.spec.log_encryption.key_provider.secret = Some(palisade_crds::NameRef {
                name: "events-cluster-ca".to_owned(),
            });
        });
        assert!(message.contains("choose another name"), "{message}");
    }

    #[test]
    fn the_cluster_id_depends_on_the_name_alone() {
        assert_eq!(
            cluster_id("messaging", "events"),
            cluster_id("messaging", "events")
        );
        assert_ne!(
            cluster_id("messaging", "events"),
            cluster_id("messaging2", "events")
        );
        assert_eq!(cluster_id("messaging", "events").len(), 22);
        for index in 0..200 {
            assert!(!cluster_id("n", &index.to_string()).starts_with('-'));
        }
    }
}
