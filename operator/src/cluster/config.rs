//! `broker.toml`, one for all pods of a cluster.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use palisade_config::{
    AdminConfig, BrokerConfig, ClientAuth, ClusterConfig, ControlConfig, KeyProviderConfig,
    ListenerConfig, Mechanism, NodeConfig, Seed, StorageConfig, TlsConfig,
};
use palisade_crds::AuthenticationType;

use super::{ADMIN_PORT, CONTROL_PORT, ClientListener, Cluster};
use crate::kubernetes::{digest, names};

/// Where the configuration is mounted.
pub const CONFIG_DIR: &str = "/etc/palisade/config";
/// Where the brokers' certificates are mounted.
pub const TLS_DIR: &str = "/etc/palisade/tls";
/// Where the trust bundles are mounted.
pub const TRUST_DIR: &str = "/etc/palisade/trust";
/// Where the key-encryption key is mounted.
pub const KEK_DIR: &str = "/etc/palisade/kek";
/// Where the volume is mounted.
pub const DATA_DIR: &str = "/var/lib/palisade";
/// Name of the configuration's file.
pub const CONFIG_FILE: &str = "broker.toml";
/// Key of the trust bundle of the cluster authority.
pub const CLUSTER_TRUST: &str = "cluster-ca.crt";
/// Key of the trust bundle of the clients authority.
pub const CLIENTS_TRUST: &str = "clients-ca.crt";

/// Brokers that form a cluster, when there are as many.
pub const FOUNDERS: i32 = 3;

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

fn tls(trust: Option<&str>) -> TlsConfig {
    TlsConfig {
        certificate: PathBuf::from(format!("{TLS_DIR}/{{pod}}.crt")),
        key: PathBuf::from(format!("{TLS_DIR}/{{pod}}.key")),
        client_ca: trust.map(|file| PathBuf::from(format!("{TRUST_DIR}/{file}"))),
    }
}

/// A configuration without listeners.
pub(super) fn skeleton(cluster_id: String) -> BrokerConfig {
    BrokerConfig {
        version: String::new(),
        node: NodeConfig {
            id: None,
            cluster_id,
            rack: None,
        },
        storage: StorageConfig {
            data_dir: DATA_DIR.into(),
            key_provider: KeyProviderConfig::Directory {
                path: KEK_DIR.into(),
            },
            wal_file_size: palisade_config::ByteSize(64 << 20),
            segment_size: palisade_config::ByteSize(256 << 20),
            data_shards: 4,
        },
        control: ControlConfig {
            bind: ANY,
            port: CONTROL_PORT,
            advertised_host: String::new(),
            tls: tls(Some(CLUSTER_TRUST)),
        },
        admin: AdminConfig {
            bind: ANY,
            port: ADMIN_PORT,
            tls: tls(Some(CLUSTER_TRUST)),
            anonymous_metrics: false,
        },
        listeners: Vec::new(),
        super_users: Vec::new(),
        cluster: ClusterConfig::default(),
    }
}

/// The whole configuration; its version is a digest of the rest.
pub(super) fn broker_config(cluster: &Cluster) -> Result<BrokerConfig, String> {
    let mut config = cluster.config.clone();
    let host = format!(
        "{{pod}}.{}.{}.svc",
        names::brokers_service(&cluster.name),
        cluster.namespace
    );
    config.control.advertised_host.clone_from(&host);
    config.cluster = seeds(cluster);
    config.listeners = cluster
        .listeners
        .iter()
        .map(|listener| listener_config(listener, &host))
        .collect();
    config.super_users.clone_from(&cluster.super_users);
    config.version = digest(&config);
    let text = config.render()?;
    BrokerConfig::parse(&text).map_err(|error| error.to_string())
}

/// The brokers that form the cluster: the first three at most, so that adding more restarts nobody. One broker alone is its own seed: without any, it would take in no
/// other, and those that are added would wait for it for ever.
fn seeds(cluster: &Cluster) -> ClusterConfig {
    ClusterConfig {
        seeds: (0..cluster.replicas.min(FOUNDERS))
            .map(|id| Seed {
                id,
                address: format!(
                    "{}:{CONTROL_PORT}",
                    names::broker_host(&cluster.name, &cluster.namespace, id)
                ),
            })
            .collect(),
    }
}

fn listener_config(listener: &ClientListener, host: &str) -> ListenerConfig {
    let sasl_mechanisms = listener
        .authentication
        .iter()
        .filter_map(|kind| match kind {
            AuthenticationType::Plain => Some(Mechanism::Plain),
            AuthenticationType::ScramSha256 => Some(Mechanism::ScramSha256),
            AuthenticationType::ScramSha512 => Some(Mechanism::ScramSha512),
            AuthenticationType::MutualTls
            | AuthenticationType::Kerberos
            | AuthenticationType::OAuthBearer => None,
        })
        .collect::<Vec<_>>();
    let client_auth = match (listener.takes_certificates(), sasl_mechanisms.is_empty()) {
        (true, true) => ClientAuth::Required,
        (true, false) => ClientAuth::Requested,
        (false, _) => ClientAuth::None,
    };
    ListenerConfig {
        name: listener.name.clone(),
        bind: ANY,
        port: listener.port,
        advertised_host: host.to_owned(),
        advertised_port: None,
        tls: Some(tls(listener.takes_certificates().then_some(CLIENTS_TRUST))),
        client_auth,
        sasl_mechanisms,
        principal_mapping_rules: Vec::new(),
        limits: listener.limits.clone(),
    }
}

/// A digest of what a running broker does not read again: when it differs, the pod is replaced.
#[must_use]
pub fn restart_digest(config: &BrokerConfig) -> String {
    digest(&BrokerConfig {
        version: String::new(),
        super_users: Vec::new(),
        ..config.clone()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    #[test]
    fn a_broker_accepts_the_file_and_finds_itself_in_it() {
        let config = validate(&fixture()).unwrap().config;
        let read = BrokerConfig::parse(&config.render().unwrap())
            .unwrap()
            .for_pod("events-0", None)
            .unwrap();
        assert_eq!(read.node.id, Some(0));
        assert_eq!(
            read.listeners[0].advertised_host,
            "events-0.events-brokers.messaging.svc"
        );
        assert_eq!(read.listeners[0].client_auth, ClientAuth::Requested);
        assert_eq!(read.listeners[0].sasl_mechanisms, [Mechanism::ScramSha512]);
        assert_eq!(read.listeners[1].client_auth, ClientAuth::Required);
        assert_eq!(
            read.control.tls.key,
            std::path::Path::new("/etc/palisade/tls/events-0.key")
        );
        assert!(read.listeners.iter().all(|listener| listener.tls.is_some()));
        assert!(!read.admin.anonymous_metrics);
    }

    #[test]
    fn brokers_find_each_other_by_the_first_three_of_them() {
        let mut cluster = fixture();
        // One broker too can take in others.
        let one = validate(&cluster).unwrap().config;
        assert_eq!(one.cluster.seeds.len(), 1);
        cluster.spec.brokers.replicas = 3;
        let three = validate(&cluster).unwrap().config;
        let seeds = three.cluster.seeds.clone();
        assert_eq!(seeds.len(), 3);
        assert_eq!(
            seeds[2].address,
            "events-2.events-brokers.messaging.svc:9090"
        );
        cluster.spec.brokers.replicas = 5;
        let five = validate(&cluster).unwrap().config;
        assert_eq!(restart_digest(&three), restart_digest(&five));
    }

    #[test]
    fn super_users_change_the_version_but_restart_nothing() {
        let before = validate(&fixture()).unwrap().config;
        let mut cluster = fixture();
        cluster
            .spec
            .authorization
            .super_users
            .push("User:second".to_owned());
        let after = validate(&cluster).unwrap().config;
        assert_ne!(before.version, after.version);
        assert_eq!(restart_digest(&before), restart_digest(&after));
        cluster.spec.listeners[0].limits.max_connections = Some(7);
        assert_ne!(
            restart_digest(&before),
            restart_digest(&validate(&cluster).unwrap().config)
        );
    }
}
