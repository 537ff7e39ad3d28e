//! Reading and checking `broker.toml`: everything that can be known to be wrong without touching the disk or a socket.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    BrokerConfig, CONTROL_LISTENER, ClientAuth, ClusterConfig, ListenerConfig, Mechanism, Seed,
};

/// Brokers that form a cluster: as many as vote on its metadata.
const MAX_SEEDS: usize = 5;

/// What a write-ahead log file may have: one append takes half of it at most, which has to be more than the largest batch of a topic by default (1 MiB).
const WAL_FILE_BYTES: std::ops::RangeInclusive<u64> = 4 << 20..=4095 << 20;
/// Unit in which they are written.
const WAL_BLOCK: u64 = 4096;

/// Why a configuration is refused; the message says what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not TOML, an unknown field, or a value of the wrong type.
    #[error("cannot read the configuration: {0}")]
    Syntax(#[from] toml::de::Error),
    /// The host name carries no ordinal, and no id is written.
    #[error(
        "cannot tell the broker id from host name `{0}`: set node.id, or run under a name that ends in -<number>"
    )]
    NoOrdinal(String),
    /// The configuration contradicts itself.
    #[error("{0}")]
    Invalid(String),
}

impl BrokerConfig {
    /// Reads a configuration and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] with what to write instead.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.validate()?;
        Ok(config)
    }

    /// Writes the configuration as TOML; `parse` reads it back.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn render(&self) -> Result<String, String> {
        toml::to_string(self).map_err(|error| format!("cannot write the configuration: {error}"))
    }

    /// What works but is likely not meant, to be logged at start.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let seeds = self.cluster.seeds.len();
        let mut warnings = Vec::new();
        if seeds > 0 && seeds.is_multiple_of(2) {
            let voters = seeds - 1;
            warnings.push(format!(
                "cluster.seeds has {seeds} brokers: {voters} of them vote on the cluster's metadata, so that no more may fail than with {voters}; an odd number makes use of all"
            ));
        }
        warnings
    }

    /// The configuration of the pod with this host name: placeholders replaced, `node.id` filled in. `rack` takes the place of `node.rack`, and is empty where it
    /// is not known; one file serves pods in many racks.
    ///
    /// # Errors
    /// [`ConfigError::NoOrdinal`] when `node.id` is absent and the host name ends in no number.
    pub fn for_pod(mut self, hostname: &str, rack: Option<&str>) -> Result<Self, ConfigError> {
        if let Some(rack) = rack {
            self.node.rack = Some(rack.to_owned()).filter(|rack| !rack.is_empty());
        }
        let pod = hostname.split('.').next().unwrap_or(hostname);
        let ordinal = pod
            .rsplit_once('-')
            .and_then(|(_, digits)| digits.parse::<i32>().ok().filter(|number| *number >= 0));
        let id = self
            .node
            .id
            .or(ordinal)
            .ok_or_else(|| ConfigError::NoOrdinal(hostname.to_owned()))?;
        self.node.id = Some(id);
        let fill = |text: &str| {
            text.replace("{pod}", pod)
                .replace("{ordinal}", &ordinal.unwrap_or(id).to_string())
        };
        for seed in &mut self.cluster.seeds {
            seed.address = fill(&seed.address);
        }
        let endpoints = self
            .listeners
            .iter_mut()
            .map(|listener| (Some(&mut listener.advertised_host), listener.tls.as_mut()))
            .chain([
                (
                    Some(&mut self.control.advertised_host),
                    Some(&mut self.control.tls),
                ),
                (None, Some(&mut self.admin.tls)),
            ]);
        for (host, tls) in endpoints {
            if let Some(host) = host {
                *host = fill(host);
            }
            if let Some(tls) = tls {
                for path in [&mut tls.certificate, &mut tls.key] {
                    *path = fill(&path.to_string_lossy()).into();
                }
            }
        }
        Ok(self)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |message: String| Err(ConfigError::Invalid(message));
        if !is_cluster_id(&self.node.cluster_id) {
            return invalid(format!(
                "node.cluster_id `{}` must be 1 to 64 characters of A-Z a-z 0-9 _ -",
                self.node.cluster_id
            ));
        }
        if self.node.id.is_some_and(|id| id < 0) {
            return invalid("node.id must be 0 or more".to_owned());
        }
        validate_cluster(&self.cluster)?;
        if !(1..=64).contains(&self.storage.data_shards) {
            return invalid("storage.data_shards must be 1 to 64".to_owned());
        }
        let wal = self.storage.wal_file_size.bytes();
        if !WAL_FILE_BYTES.contains(&wal) || !wal.is_multiple_of(WAL_BLOCK) {
            return invalid(format!(
                "storage.wal_file_size is {wal} bytes: write a multiple of 4Ki from 4Mi to 4095Mi, such as 64Mi"
            ));
        }
        if self.storage.segment_size.bytes() < 1 << 20 {
            return invalid("storage.segment_size must be at least 1Mi".to_owned());
        }
        if self.control.tls.client_ca.is_none() {
            return invalid("control.tls.client_ca is missing: the control port accepts only certificates of the cluster authority".to_owned());
        }
        if self.admin.tls.client_ca.is_none() {
            return invalid("admin.tls.client_ca is missing: /status is served only to certificates of the cluster authority".to_owned());
        }
        if self.listeners.is_empty() {
            return invalid("no listener is configured: add at least one [[listeners]]".to_owned());
        }
        for user in &self.super_users {
            if !user.starts_with("User:") || user.len() == "User:".len() {
                return invalid(format!(
                    "super user `{user}` must be written as User:<name>"
                ));
            }
        }
        let mut names = BTreeSet::new();
        let mut ports = BTreeSet::from([self.control.port]);
        if self.admin.port != 0 && !ports.insert(self.admin.port) {
            return invalid(format!(
                "port {} is used by control and admin: give each its own",
                self.admin.port
            ));
        }
        for listener in &self.listeners {
            validate_listener(listener)?;
            if !names.insert(listener.name.to_ascii_uppercase()) {
                return invalid(format!(
                    "listener name `{}` is used twice: names must differ in more than case",
                    listener.name
                ));
            }
            if listener.port != 0 && !ports.insert(listener.port) {
                return invalid(format!(
                    "port {} of listener `{}` is already taken by another endpoint",
                    listener.port, listener.name
                ));
            }
        }
        Ok(())
    }
}

fn validate_cluster(cluster: &ClusterConfig) -> Result<(), ConfigError> {
    let invalid = |message: String| Err(ConfigError::Invalid(message));
    if cluster.seeds.len() > MAX_SEEDS {
        return invalid(format!(
            "cluster.seeds has {} brokers: name {MAX_SEEDS} at most, the others join the cluster that those form",
            cluster.seeds.len()
        ));
    }
    let mut ids = BTreeSet::new();
    let mut addresses = BTreeMap::new();
    for seed in &cluster.seeds {
        let (id, address) = (seed.id, &seed.address);
        if id < 0 {
            return invalid(format!("seed {id} must have an id of 0 or more"));
        }
        if !ids.insert(id) {
            return invalid(format!(
                "cluster.seeds names broker {id} twice: name each broker once"
            ));
        }
        // Placeholders stand for parts of a name.
        let filled = Seed {
            id,
            address: address.replace("{pod}", "pod").replace("{ordinal}", "0"),
        };
        if filled.host_and_port().is_none() {
            return invalid(format!(
                "address `{address}` of seed {id} is not <host>:<port> with a port from 1 to 65535; an IPv6 address is written in brackets, as in [::1]:9090"
            ));
        }
        if let Some(other) = addresses.insert(address, id) {
            return invalid(format!(
                "seeds {other} and {id} have the same address `{address}`: each broker has its own"
            ));
        }
    }
    Ok(())
}

fn validate_listener(listener: &ListenerConfig) -> Result<(), ConfigError> {
    let name = &listener.name;
    let invalid = |message: String| Err(ConfigError::Invalid(message));
    let well_formed = name.len() <= 25
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if !well_formed
        || name.eq_ignore_ascii_case(CONTROL_LISTENER)
        || name.eq_ignore_ascii_case("ADMIN")
    {
        return invalid(format!(
            "listener name `{name}` must be a letter followed by letters, digits or -, 25 characters at most, and not CONTROL or ADMIN"
        ));
    }
    let Some(tls) = &listener.tls else {
        if listener.sasl_mechanisms.contains(&Mechanism::Plain) {
            return invalid(format!(
                "listener `{name}` offers PLAIN without TLS, which would send passwords in the clear: add [listeners.tls] or remove PLAIN"
            ));
        }
        if listener.client_auth != ClientAuth::None {
            return invalid(format!(
                "listener `{name}` asks for client certificates without TLS: add [listeners.tls]"
            ));
        }
        if listener.sasl_mechanisms.is_empty() {
            return invalid(format!(
                "listener `{name}` has no way to authenticate clients: add sasl_mechanisms, or TLS with client_auth"
            ));
        }
        return Ok(());
    };
    if listener.client_auth != ClientAuth::None && tls.client_ca.is_none() {
        return invalid(format!(
            "listener `{name}` asks for client certificates but names no authority: set tls.client_ca"
        ));
    }
    if listener.sasl_mechanisms.is_empty() && listener.client_auth != ClientAuth::Required {
        return invalid(format!(
            "listener `{name}` would admit clients nobody has authenticated: set client_auth = \"required\" or add sasl_mechanisms"
        ));
    }
    Ok(())
}

fn is_cluster_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
        version = "7"
        super_users = ["User:platform-admin"]
        [node]
        cluster_id = "events"
        [storage]
        data_dir = "/var/lib/palisade"
        key_provider = { type = "directory", path = "/etc/palisade/kek" }
        [control]
        bind = "0.0.0.0"
        port = 9090
        advertised_host = "{pod}.events-brokers"
        tls = { certificate = "/tls/{pod}.crt", key = "/tls/{pod}.key", client_ca = "/trust/cluster.crt" }
        [admin]
        bind = "0.0.0.0"
        port = 9091
        tls = { certificate = "/tls/{pod}.crt", key = "/tls/{pod}.key", client_ca = "/trust/cluster.crt" }
        [[listeners]]
        name = "internal"
        bind = "0.0.0.0"
        port = 9093
        advertised_host = "{pod}.events-brokers"
        tls = { certificate = "/tls/{pod}.crt", key = "/tls/{pod}.key", client_ca = "/trust/clients.crt" }
        client_auth = "requested"
        sasl_mechanisms = ["SCRAM-SHA-512"]
        limits = { max_connections = 10, max_connections_per_ip_overrides = { "10.0.0.9" = 1000 } }
    "#;

    fn refused(change: impl FnOnce(&mut BrokerConfig)) -> String {
        let mut config: BrokerConfig = toml::from_str(GOOD).unwrap();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    /// One sign that is another, or missing, or the last: that is read, as what is written out reads back, or refused with a reason.
    #[test]
    fn a_configuration_with_a_slip_is_read_or_refused() {
        let (mut read, mut refused) = (0, 0);
        let signs = ["", "9", "-", "\"", "\n", "{", "]", ".", "=", "\0", "é"];
        for at in 0..GOOD.len() {
            let (before, rest) = GOOD.split_at(at);
            let after = rest.get(1..).unwrap_or_default();
            let edits = signs.map(|sign| format!("{before}{sign}{after}"));
            for text in edits.iter().map(String::as_str).chain([before]) {
                match BrokerConfig::parse(text) {
                    Ok(config) => {
                        read += 1;
                        let again = BrokerConfig::parse(&config.render().unwrap());
                        assert_eq!(again.unwrap(), config, "{text}");
                        // And what the pods make of it, also under names that they never have.
                        for host in ["events-broker-3", "events-broker-99999999999", "-", ""] {
                            drop(config.clone().for_pod(host, Some("a")));
                        }
                    }
                    Err(error) => {
                        refused += 1;
                        assert!(!error.to_string().is_empty(), "{text}");
                    }
                }
            }
        }
        assert!(read > 1000, "{read} were read");
        assert!(refused > 1000, "{refused} were refused");
    }

    #[test]
    fn a_rendered_configuration_reads_back_equal() {
        let config = BrokerConfig::parse(GOOD).unwrap();
        assert_eq!(
            BrokerConfig::parse(&config.render().unwrap()).unwrap(),
            config
        );
    }

    #[test]
    fn placeholders_and_the_id_come_from_the_host_name() {
        let config = BrokerConfig::parse(GOOD)
            .unwrap()
            .for_pod("events-2.events-brokers.messaging.svc", None)
            .unwrap();
        assert_eq!(config.node.id, Some(2));
        assert_eq!(config.control.advertised_host, "events-2.events-brokers");
        assert_eq!(
            config.listeners[0].tls.as_ref().unwrap().certificate,
            std::path::Path::new("/tls/events-2.crt")
        );
        assert_eq!(
            config.admin.tls.key,
            std::path::Path::new("/tls/events-2.key")
        );
        let error = BrokerConfig::parse(GOOD)
            .unwrap()
            .for_pod("laptop", None)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "cannot tell the broker id from host name `laptop`: set node.id, or run under a name that ends in -<number>"
        );
    }

    #[test]
    fn the_ordinal_is_that_of_the_host_name_whatever_the_id_is() {
        let mut config = BrokerConfig::parse(GOOD).unwrap();
        config.node.id = Some(7);
        config.control.advertised_host = "b{ordinal}.example".to_owned();
        let host = |name| {
            let pod = config.clone().for_pod(name, None).unwrap();
            (pod.node.id, pod.control.advertised_host)
        };
        assert_eq!(host("events-2"), (Some(7), "b2.example".to_owned()));
        assert_eq!(host("laptop"), (Some(7), "b7.example".to_owned()));
    }

    #[test]
    fn files_of_the_write_ahead_log_have_room_for_the_largest_batch() {
        for wrong in [1 << 20, (8 << 20) + 1, 4096 << 20] {
            let message = refused(|config| config.storage.wal_file_size = crate::ByteSize(wrong));
            assert!(
                message.contains("write a multiple of 4Ki from 4Mi"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_pods_rack_takes_the_place_of_the_configured_one() {
        let mut config = BrokerConfig::parse(GOOD).unwrap();
        config.node.rack = Some("room-1".to_owned());
        let rack = |given| {
            let pod = config.clone().for_pod("events-2", given).unwrap();
            pod.node.rack
        };
        assert_eq!(rack(None).as_deref(), Some("room-1"));
        assert_eq!(rack(Some("zone-b")).as_deref(), Some("zone-b"));
        assert_eq!(rack(Some("")), None);
    }

    #[test]
    fn plain_without_tls_is_refused() {
        let message = refused(|config| {
            config.listeners[0].tls = None;
            config.listeners[0].client_auth = ClientAuth::None;
            config.listeners[0].sasl_mechanisms = vec![Mechanism::Plain];
        });
        assert!(message.contains("offers PLAIN without TLS"), "{message}");
    }

    #[test]
    fn a_listener_that_authenticates_nobody_is_refused() {
        let message = refused(|config| config.listeners[0].sasl_mechanisms.clear());
        assert!(message.contains("nobody has authenticated"), "{message}");
    }

    #[test]
    fn endpoints_must_not_share_a_name_or_a_port() {
        let message = refused(|config| config.listeners.push(config.listeners[0].clone()));
        assert!(message.contains("used twice"), "{message}");
        let message = refused(|config| config.listeners[0].port = 9091);
        assert!(message.contains("already taken"), "{message}");
        let message = refused(|config| config.listeners[0].name = "control".to_owned());
        assert!(message.contains("not CONTROL"), "{message}");
    }

    fn with_seeds(seeds: &[(i32, &str)]) -> Result<BrokerConfig, String> {
        let mut config: BrokerConfig = toml::from_str(GOOD).unwrap();
        config.cluster.seeds = seeds
            .iter()
            .map(|(id, address)| Seed {
                id: *id,
                address: (*address).to_owned(),
            })
            .collect();
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_broker_without_seeds_is_alone_and_says_nothing_of_a_cluster() {
        let config = BrokerConfig::parse(GOOD).unwrap();
        assert!(config.cluster.is_alone());
        assert!(!config.render().unwrap().contains("[cluster]"));
        assert!(config.warnings().is_empty());
    }

    #[test]
    fn seeds_are_read_rendered_and_found_by_id() {
        let text = format!(
            "{GOOD}\n[cluster]\nseeds = [{{ id = 0, address = \"events-0.events-brokers:9090\" }}, {{ id = 1, address = \"[fd00::1]:9090\" }}, {{ id = 7, address = \"10.0.0.7:19090\" }}]"
        );
        let config = BrokerConfig::parse(&text).unwrap();
        let found = |id| config.cluster.seed(id).and_then(Seed::host_and_port);
        assert_eq!(found(0), Some(("events-0.events-brokers", 9090)));
        assert_eq!(found(1), Some(("fd00::1", 9090)));
        assert_eq!(found(7), Some(("10.0.0.7", 19_090)));
        assert_eq!(found(2), None);
        let rendered = config.render().unwrap();
        assert_eq!(BrokerConfig::parse(&rendered).unwrap(), config);
        // Neither a seed nor one that is not: both have a place in a cluster.
        for host in ["events-0", "events-4"] {
            assert!(config.clone().for_pod(host, None).is_ok());
        }
    }

    #[test]
    fn placeholders_are_replaced_in_seeds() {
        let config = with_seeds(&[(2, "{pod}.brokers:9090"), (3, "b{ordinal}x:9090")]).unwrap();
        let config = config.for_pod("events-2", None).unwrap();
        assert_eq!(config.cluster.seeds[0].address, "events-2.brokers:9090");
        assert_eq!(config.cluster.seeds[1].address, "b2x:9090");
    }

    #[test]
    fn seeds_that_name_no_place_are_refused() {
        for address in [
            "",
            ":9090",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+90",
            "host: 90",
            "a b:90",
            "http://host:90",
            "fd00::1:9090",
            "[fd00::1]",
            "[fd00::1:9090",
            "[host]:90",
            "[]:90",
            "a..b:90",
            "{host}:90",
        ] {
            let message = with_seeds(&[(0, address)]).unwrap_err();
            assert_eq!(
                message,
                format!(
                    "address `{address}` of seed 0 is not <host>:<port> with a port from 1 to 65535; an IPv6 address is written in brackets, as in [::1]:9090"
                )
            );
        }
        assert!(with_seeds(&[(0, "a.b.svc.cluster.local.:1")]).is_ok());
    }

    #[test]
    fn seeds_are_different_brokers_and_five_at_most() {
        assert_eq!(
            with_seeds(&[(-1, "a:1")]).unwrap_err(),
            "seed -1 must have an id of 0 or more"
        );
        assert_eq!(
            with_seeds(&[(1, "a:1"), (1, "b:1")]).unwrap_err(),
            "cluster.seeds names broker 1 twice: name each broker once"
        );
        assert_eq!(
            with_seeds(&[(1, "a:1"), (2, "a:1")]).unwrap_err(),
            "seeds 1 and 2 have the same address `a:1`: each broker has its own"
        );
        let many: Vec<String> = (0..6).map(|id| format!("b{id}:1")).collect();
        let seeds: Vec<(i32, &str)> = (0..).zip(many.iter().map(String::as_str)).collect();
        assert_eq!(
            with_seeds(&seeds).unwrap_err(),
            "cluster.seeds has 6 brokers: name 5 at most, the others join the cluster that those form"
        );
        assert!(with_seeds(&seeds[..5]).unwrap().warnings().is_empty());
        assert_eq!(
            with_seeds(&seeds[..4]).unwrap().warnings(),
            [
                "cluster.seeds has 4 brokers: 3 of them vote on the cluster's metadata, so that no more may fail than with 3; an odd number makes use of all"
            ]
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = GOOD.replace("version = \"7\"", "versoin = \"7\"");
        assert!(
            BrokerConfig::parse(&text)
                .unwrap_err()
                .to_string()
                .contains("versoin")
        );
    }
}
