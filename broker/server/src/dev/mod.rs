//! `palisade-broker dev`: a broker on loopback that needs nothing but a directory.
//!
//! Everything a cluster gets from the operator is made here once and kept: an authority, a certificate, sealed log keys, an
//! administrator, and the files that Kafka's tools and kcat read. A second start serves the same data to the same credentials.

pub(crate) mod certificates;
mod files;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use palisade_config::{
    AdminConfig, BrokerConfig, ByteSize, ClientAuth, ControlConfig, KeyProviderConfig,
    ListenerConfig, Mechanism, NodeConfig, StorageConfig, TlsConfig,
};
use palisade_seal::DirectoryProvider;

use crate::{assembly::BootstrapUser, error::StartError};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Host name that clients are told.
const HOST: &str = "localhost";
/// Name of the one client listener.
const LISTENER: &str = "client";
/// The administrator.
const ADMIN: &str = "admin";
/// A laptop's disk is not a server's: smaller files than the defaults.
const WAL_FILE_SIZE: ByteSize = ByteSize(16 << 20);

/// What `palisade-broker dev` is told.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// Where everything is kept; made when absent.
    pub data_dir: PathBuf,
    /// Port for clients; 0: any free one.
    pub port: u16,
    /// Port for health, metrics and status; absent: the one after `port`; 0: any free one.
    pub admin_port: Option<u16>,
}

/// A prepared directory. `Debug` does not show the greeting, which names the password.
pub struct DevBroker {
    /// The configuration to run, which is also in `broker.toml`.
    pub config_file: PathBuf,
    /// The administrator, made in the metadata when absent there.
    pub admin: BootstrapUser,
    /// What to print once clients are served.
    pub greeting: String,
}

impl std::fmt::Debug for DevBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevBroker")
            .field("config_file", &self.config_file)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

/// Makes or completes the directory.
///
/// # Errors
/// [`StartError`] that names the file.
pub fn prepare(options: &DevOptions) -> Result<DevBroker, StartError> {
    let made = |path: &Path, error| StartError::Io {
        action: "make",
        path: path.to_owned(),
        error,
    };
    palisade_seal::create_private(&options.data_dir)
        .map_err(|error| made(&options.data_dir, error))?;
    let dir =
        fs::canonicalize(&options.data_dir).map_err(|error| made(&options.data_dir, error))?;

    let kek = dir.join("kek");
    if !kek.join("current").exists() {
        DirectoryProvider::create(&kek).map_err(StartError::Keys)?;
    }
    certificates::renew(&dir)?;
    let password = files::admin_password(&dir)?;

    let config_file = dir.join("broker.toml");
    let config = configuration(&dir, &config_file, &kek, options)?;
    let text = config.render().map_err(|reason| StartError::Config {
        path: config_file.clone(),
        reason,
    })?;
    files::write(&config_file, text.as_bytes(), 0o600)?;

    let port = config
        .listeners
        .iter()
        .find(|listener| listener.name == LISTENER)
        .map_or(options.port, |listener| listener.port);
    let client_properties = files::client_properties(&dir, port, ADMIN, &password);
    files::write(
        &dir.join("client.properties"),
        client_properties.as_bytes(),
        0o600,
    )?;
    let librdkafka = files::librdkafka(&dir, port, ADMIN, &password);
    files::write(&dir.join("librdkafka.conf"), librdkafka.as_bytes(), 0o600)?;

    Ok(DevBroker {
        greeting: greeting(&dir, port, config.admin.port, &client_properties),
        config_file,
        admin: BootstrapUser {
            name: ADMIN.to_owned(),
            password,
        },
    })
}

/// The configuration: the one that is there with ports and paths as they are now, else a new one.
fn configuration(
    dir: &Path,
    file: &Path,
    kek: &Path,
    options: &DevOptions,
) -> Result<BrokerConfig, StartError> {
    let invalid = |reason: String| StartError::Config {
        path: file.to_owned(),
        reason,
    };
    let kept = match fs::read_to_string(file) {
        Ok(text) => Some(BrokerConfig::parse(&text).map_err(|error| {
            invalid(format!(
                "{error}; correct the file, or remove it to have it written anew"
            ))
        })?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(StartError::Io {
                action: "read",
                path: file.to_owned(),
                error,
            });
        }
    };
    let mut taken = BTreeSet::new();
    let port = port(options.port, &mut taken)?;
    let admin_port = match options.admin_port {
        Some(admin_port) => self::port(admin_port, &mut taken)?,
        None => self::port(port.checked_add(1).unwrap_or(0), &mut taken)?,
    };
    let control_port = self::port(0, &mut taken)?;
    let tls = TlsConfig {
        certificate: dir.join("tls/server.crt"),
        key: dir.join("tls/server.key"),
        client_ca: Some(dir.join("ca.crt")),
    };
    let mut config = kept.unwrap_or_else(|| BrokerConfig {
        version: "dev".to_owned(),
        node: NodeConfig {
            id: Some(0),
            cluster_id: format!("dev-{}", uuid::Uuid::new_v4().simple()),
            rack: None,
        },
        storage: StorageConfig {
            data_dir: dir.join("data"),
            key_provider: KeyProviderConfig::Directory {
                path: kek.to_owned(),
            },
            wal_file_size: WAL_FILE_SIZE,
            segment_size: ByteSize(64 << 20),
            data_shards: 2,
        },
        control: ControlConfig {
            bind: LOOPBACK,
            port: control_port,
            advertised_host: HOST.to_owned(),
            tls: TlsConfig {
                client_ca: Some(dir.join("tls/control-ca.crt")),
                ..tls.clone()
            },
        },
        admin: AdminConfig {
            bind: LOOPBACK,
            port: admin_port,
            tls: tls.clone(),
            anonymous_metrics: true,
        },
        listeners: vec![ListenerConfig {
            name: LISTENER.to_owned(),
            bind: LOOPBACK,
            port,
            advertised_host: HOST.to_owned(),
            advertised_port: None,
            tls: Some(tls),
            client_auth: ClientAuth::Requested,
            sasl_mechanisms: vec![
                Mechanism::ScramSha512,
                Mechanism::ScramSha256,
                Mechanism::Plain,
            ],
            principal_mapping_rules: Vec::new(),
            limits: palisade_config::ConnectionLimits::default(),
        }],
        super_users: vec![format!("User:{ADMIN}")],
        cluster: palisade_config::ClusterConfig::default(),
    });
    config.control.port = control_port;
    config.admin.port = admin_port;
    if let Some(listener) = config
        .listeners
        .iter_mut()
        .find(|listener| listener.name == LISTENER)
    {
        listener.port = port;
    }
    Ok(config)
}

/// The port itself, or a free one for 0 or when it is taken within this process already.
fn port(wanted: u16, taken: &mut BTreeSet<u16>) -> Result<u16, StartError> {
    let mut candidate = wanted;
    while candidate == 0 || taken.contains(&candidate) {
        let free = TcpListener::bind((LOOPBACK, 0)).and_then(|socket| socket.local_addr());
        candidate = free
            .map_err(|error| StartError::Bind {
                name: LISTENER.to_owned(),
                address: (LOOPBACK, 0).into(),
                error,
            })?
            .port();
    }
    taken.insert(candidate);
    Ok(candidate)
}

fn greeting(dir: &Path, port: u16, admin_port: u16, client_properties: &str) -> String {
    let dir = dir.display();
    let shown = client_properties
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect::<String>();
    format!(
        "palisade-broker is ready\n\n  clients          {HOST}:{port} (SASL_SSL)\n  health, metrics  https://{HOST}:{admin_port}/readyz /metrics\n\n  {dir}/client.properties, for Apache Kafka's tools:\n{shown}\n  kafka-topics.sh --bootstrap-server {HOST}:{port} --command-config {dir}/client.properties --create --topic demo --partitions 3\n  echo hello | kcat -F {dir}/librdkafka.conf -t demo -P\n  kcat -F {dir}/librdkafka.conf -t demo -C -e\n"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn start(dir: &Path) -> DevBroker {
        prepare(&DevOptions {
            data_dir: dir.to_owned(),
            port: 0,
            admin_port: Some(0),
        })
        .unwrap()
    }

    #[test]
    fn a_second_start_keeps_cluster_authority_and_password() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made");
        let first = start(&dir);
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        let (ca, config) = (
            read("ca.crt"),
            BrokerConfig::parse(&read("broker.toml")).unwrap(),
        );
        assert!(read("client.properties").contains("sasl.mechanism=SCRAM-SHA-512\n"));
        assert!(
            read("librdkafka.conf")
                .lines()
                .all(|line| line.contains('='))
        );
        let second = start(&dir);
        assert_eq!(*first.admin.password, *second.admin.password);
        assert_eq!(ca, read("ca.crt"));
        let again = BrokerConfig::parse(&read("broker.toml")).unwrap();
        assert_eq!(config.node, again.node);
        assert_eq!(config.storage, again.storage);
    }

    #[test]
    fn what_people_add_to_the_configuration_stays() {
        let dir = tempfile::tempdir().unwrap();
        let broker = start(dir.path());
        let mut config =
            BrokerConfig::parse(&fs::read_to_string(&broker.config_file).unwrap()).unwrap();
        config.super_users.push("User:second".to_owned());
        fs::write(&broker.config_file, config.render().unwrap()).unwrap();
        start(dir.path());
        let kept = BrokerConfig::parse(&fs::read_to_string(&broker.config_file).unwrap()).unwrap();
        assert!(kept.super_users.contains(&"User:second".to_owned()));
    }

    #[test]
    fn an_unreadable_configuration_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let broker = start(dir.path());
        fs::write(&broker.config_file, "nonsense").unwrap();
        let options = DevOptions {
            data_dir: dir.path().to_owned(),
            port: 0,
            admin_port: None,
        };
        let message = prepare(&options).unwrap_err().to_string();
        assert!(
            message.contains("broker.toml")
                && message.contains("remove it to have it written anew"),
            "{message}"
        );
    }
}
