//! The two systems, started alike: brokers on loopback with the same certificates, user and ports for clients.

mod kafka;
mod palisade;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

pub use kafka::{VERSION as KAFKA_VERSION, class_path as kafka_class_path};

use crate::{
    pki::{self, Pki},
    proc,
    process::{Background, Scratch, free_ports, wait_until},
    wire::{Client, NewTopic},
};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    Palisade,
    Kafka,
}

impl System {
    pub const BOTH: [Self; 2] = [Self::Palisade, Self::Kafka];
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Palisade => "Palisade",
            Self::Kafka => "Kafka",
        })
    }
}

/// Longest wait for a broker to serve its first request; Kafka with thousands of partitions takes minutes.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// Where programs are and what is to be kept.
#[derive(Clone, Debug)]
pub struct Programs {
    pub broker: PathBuf,
    /// Class path of Apache Kafka.
    pub kafka: String,
    /// Data directories are made here.
    pub work: PathBuf,
    /// Logs of brokers that failed are kept here.
    pub logs: PathBuf,
}

/// How a client of librdkafka or of ours gets in.
#[derive(Clone, Debug)]
pub struct Access {
    pub bootstrap: String,
    /// Ports of SASL_SSL, one per broker.
    pub ports: Vec<u16>,
    /// Ports of mutual TLS, one per broker.
    pub mtls_ports: Vec<u16>,
    pub pki: Pki,
    /// Empty: no login, as with the sink.
    pub password: String,
}

impl Access {
    /// librdkafka's settings for the connection.
    pub fn settings(&self) -> Vec<(String, String)> {
        let ca = self.pki.authority().display().to_string();
        let mut settings = vec![
            ("bootstrap.servers", self.bootstrap.clone()),
            ("broker.address.family", "v4".to_owned()),
            ("ssl.ca.location", ca),
        ];
        if self.password.is_empty() {
            settings.push(("security.protocol", "ssl".to_owned()));
        } else {
            settings.extend([
                ("security.protocol", "sasl_ssl".to_owned()),
                ("sasl.mechanism", "SCRAM-SHA-512".to_owned()),
                ("sasl.username", pki::CLIENT.to_owned()),
                ("sasl.password", self.password.clone()),
            ]);
        }
        settings
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }

    /// A connection to one broker, logged in with SCRAM.
    pub fn connect(&self, broker: usize) -> Result<Client> {
        let port = self.ports.get(broker).context("no such broker")?;
        let mut client = Client::connect(*port, self.pki.client(false)?)?;
        client.login(&self.password)?;
        Ok(client)
    }

    /// A connection to one broker, logged in with the client's certificate.
    pub fn connect_mtls(&self, broker: usize) -> Result<Client> {
        let port = self.mtls_ports.get(broker).context("no such broker")?;
        Client::connect(*port, self.pki.client(true)?)
    }
}

/// Ports of one broker.
#[derive(Clone, Copy, Debug)]
struct Ports {
    client: u16,
    mtls: u16,
    /// Kafka: between brokers. Palisade: the admin port.
    inner: u16,
    /// Kafka: the controller. Palisade: the control port.
    control: u16,
}

/// What a broker is started with.
#[derive(Debug)]
struct Node {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Background>,
}

/// Brokers of one system; stopped, and their data removed, when dropped.
#[derive(Debug)]
pub struct Cluster {
    pub system: System,
    pub access: Access,
    // Processes are gone before their directory is.
    nodes: Vec<Node>,
    home: Scratch,
    logs: PathBuf,
    /// Set when all went well, so that no logs are kept.
    healthy: bool,
}

impl Cluster {
    /// Writes the configuration of so many brokers, and starts none.
    pub fn prepare(system: System, brokers: usize, programs: &Programs) -> Result<Self> {
        let home = Scratch::new(&programs.work, &system.to_string().to_lowercase())?;
        let pki = Pki::create(&home.path().join("tls"))?;
        let mut all = Vec::with_capacity(brokers);
        for _ in 0..brokers {
            let [client, mtls, inner, control] = free_ports()?;
            all.push(Ports {
                client,
                mtls,
                inner,
                control,
            });
        }
        let password = uuid::Uuid::new_v4().simple().to_string();
        let nodes = match system {
            System::Palisade => palisade::prepare(home.path(), &pki, &all, programs)?,
            System::Kafka => kafka::prepare(home.path(), &pki, &all, &password, programs)?,
        };
        let hosts: Vec<String> = all
            .iter()
            .map(|ports| format!("localhost:{}", ports.client))
            .collect();
        Ok(Self {
            system,
            access: Access {
                bootstrap: hosts.join(","),
                ports: all.iter().map(|ports| ports.client).collect(),
                mtls_ports: all.iter().map(|ports| ports.mtls).collect(),
                pki,
                password,
            },
            nodes,
            home,
            logs: programs.logs.clone(),
            healthy: false,
        })
    }

    /// Starts the brokers and waits until each of them knows all others and lets the user in.
    pub fn start(system: System, brokers: usize, programs: &Programs) -> Result<Self> {
        let mut cluster = Self::prepare(system, brokers, programs)?;
        cluster.launch()?;
        cluster.make_user()?;
        for broker in 0..brokers {
            cluster.wait("the broker serves and knows all others", |cluster| {
                let found = cluster
                    .access
                    .connect(broker)?
                    .metadata(None)?
                    .brokers
                    .len();
                if found != brokers {
                    bail!("broker {broker} knows {found} of {brokers} brokers");
                }
                Ok(())
            })?;
        }
        cluster.healthy = true;
        Ok(cluster)
    }

    /// Starts the processes and waits for nothing.
    pub fn launch(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.process = Some(Background::start(
                &node.program,
                &node.arguments,
                &node.log,
            )?);
        }
        Ok(())
    }

    /// Palisade's users are made by whoever has the certificate of a super user; Kafka's came with the formatting of its directory.
    pub fn make_user(&mut self) -> Result<()> {
        if self.system == System::Palisade {
            self.wait("the user is made", |cluster| {
                let mut client = cluster.access.connect_mtls(0)?;
                client.make_user(&cluster.access.password)
            })?;
        }
        Ok(())
    }

    /// Time from the start of the processes until a record is acknowledged: to this topic, or to one that is made now.
    pub fn start_to_first_produce(&mut self, topic: &NewTopic, fresh: bool) -> Result<Duration> {
        let start = Instant::now();
        self.launch()?;
        if fresh {
            self.make_user()?;
            self.wait("a topic is made", |cluster| {
                cluster.access.connect(0)?.create_topic(topic)
            })?;
        }
        self.wait("the first record is acknowledged", |cluster| {
            let leader = {
                let metadata = cluster.access.connect(0)?.metadata(Some(&topic.name))?;
                let first = metadata.topics.first().context("no such topic")?;
                let partition = first
                    .partitions
                    .iter()
                    .find(|partition| partition.partition_index == 0)
                    .context("no such partition")?;
                let leader = metadata
                    .brokers
                    .iter()
                    .find(|broker| broker.node_id == partition.leader_id)
                    .context("the partition has no leader")?;
                u16::try_from(leader.port)?
            };
            let mut client = Client::connect(leader, cluster.access.pki.client(false)?)?;
            client.login(&cluster.access.password)?;
            client.produce(&topic.name, 0)
        })?;
        self.healthy = true;
        Ok(start.elapsed())
    }

    /// Makes a topic and waits until every broker sees it whole.
    pub fn create_topic(&self, name: &str, partitions: i32, limit: Duration) -> Result<NewTopic> {
        let topic = NewTopic {
            name: name.to_owned(),
            partitions,
            replication: if self.nodes.len() >= 3 { 3 } else { 1 },
        };
        self.access
            .connect(0)?
            .create_topic(&topic)
            .with_context(|| format!("{}: cannot make a topic", self.system))?;
        for broker in 0..self.nodes.len() {
            let mut client = self.access.connect(broker)?;
            wait_until("the topic is ready", limit, || client.is_ready(&topic))?;
        }
        Ok(topic)
    }

    pub fn delete_topic(&self, topic: &NewTopic) -> Result<()> {
        self.access.connect(0)?.delete_topic(&topic.name)
    }

    /// Process ids of the brokers.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes
            .iter()
            .filter_map(|node| node.process.as_ref().map(Background::id))
            .collect()
    }

    /// Resident memory of the broker that has most, in MB.
    pub fn resident_mb(&self) -> Result<f64> {
        let sizes: Vec<u64> = self
            .pids()
            .into_iter()
            .map(proc::resident)
            .collect::<Result<_>>()?;
        let largest = sizes.into_iter().max().context("no broker runs")?;
        Ok(largest as f64 / 1e6)
    }

    /// Ends all brokers as an operating system would, and waits.
    pub fn stop(&mut self) -> Result<()> {
        let running: Vec<Background> = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.process.take())
            .collect();
        // Together: in turn, the last one would wait for a controller that is gone.
        std::thread::scope(|scope| {
            let stopping: Vec<_> = running
                .into_iter()
                .map(|process| scope.spawn(move || process.terminate(STOP_LIMIT)))
                .collect();
            stopping.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("stopping a broker failed"))
            })
        })
    }

    /// Marks the brokers as failed: their logs are kept.
    pub fn keep_logs(&mut self) {
        self.healthy = false;
    }

    fn wait(&mut self, what: &str, mut look: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let system = self.system;
        let start = Instant::now();
        loop {
            match look(self) {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > START_LIMIT => {
                    return Err(
                        error.context(format!("{system}: {what}: not so after {START_LIMIT:?}"))
                    );
                }
                Err(error) => {
                    for node in &mut self.nodes {
                        let ended = node.process.as_mut().and_then(Background::ended);
                        if let Some(status) = ended {
                            node.process = None;
                            let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                            bail!(
                                "{system}: a broker ended with {status} before {what} ({error:#}); the end of its log:\n{}",
                                tail(&log, 8)
                            );
                        }
                    }
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.healthy || std::thread::panicking() {
            let _ = std::fs::create_dir_all(&self.logs);
            for node in &self.nodes {
                if let (Some(name), Some(home)) =
                    (node.log.file_name(), self.home.path().file_name())
                {
                    let kept = format!("{}-{}", home.to_string_lossy(), name.to_string_lossy());
                    let _ = std::fs::copy(&node.log, self.logs.join(kept));
                }
            }
        }
        self.nodes.clear();
    }
}

/// The last lines of a text.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all.get(from..).unwrap_or_default().join("\n")
}

/// Writes a file and says which one failed.
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_tail_of_a_short_log_is_all_of_it() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }

    #[test]
    fn without_a_password_there_is_tls_but_no_login() {
        let directory = tempfile::tempdir().unwrap();
        let mut access = Access {
            bootstrap: "localhost:1".to_owned(),
            ports: vec![1],
            mtls_ports: Vec::new(),
            pki: Pki::open(directory.path()),
            password: String::new(),
        };
        let protocol = |access: &Access| {
            let settings = access.settings();
            let found = settings.iter().find(|(key, _)| key == "security.protocol");
            found.unwrap().1.clone()
        };
        assert_eq!(protocol(&access), "ssl");
        access.password = "secret".to_owned();
        assert_eq!(protocol(&access), "sasl_ssl");
    }
}
