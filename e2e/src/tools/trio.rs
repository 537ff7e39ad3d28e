//! A cluster of brokers on loopback: `palisade-broker run`, one process each, with certificates, keys and configurations made here.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use palisade_config::{
    AdminConfig, BrokerConfig, ByteSize, ClientAuth, ClusterConfig, ConnectionLimits,
    ControlConfig, KeyProviderConfig, ListenerConfig, Mechanism, NodeConfig, Seed, StorageConfig,
    TlsConfig, status::BrokerStatus,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{
    Access, Background, Certificate, Login, RawClient, Site, authority, free_port, program,
    wait_until,
};

/// Forming and electing takes a second or two; the limit only ends a hang.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Common name of the operator, whom brokers admit to their control ports.
const OPERATOR: &str = "palisade-operator";

/// One broker of a [`Cluster`].
#[derive(Debug)]
struct Member {
    process: Option<Background>,
    port: u16,
    admin_port: u16,
}

/// Brokers that replicate to each other. The administrator is `User:CN=admin`, by certificate.
#[derive(Debug)]
pub struct Cluster {
    /// Declared first: the processes are gone before their directory is removed.
    members: Vec<Member>,
    /// Ids and control ports of the brokers that formed it.
    seeds: Vec<(i32, u16)>,
    site: Site,
    home: TempDir,
}

impl Cluster {
    /// Starts brokers 0 to `count` - 1 with empty volumes and waits until all of them serve.
    ///
    /// # Errors
    /// When they do not.
    pub fn start(count: u16) -> Result<Self> {
        Self::start_at(count, &Site::default())
    }

    /// As [`Cluster::start`], elsewhere.
    ///
    /// # Errors
    /// When they do not serve.
    pub fn start_at(count: u16, site: &Site) -> Result<Self> {
        let mut attempts = 3;
        loop {
            attempts -= 1;
            match Self::try_start(count, site.clone()) {
                // A port that was free a moment ago is somebody's by now: other tests look for ports at the same time.
                Err(error) if attempts > 0 && format!("{error:#}").contains("cannot listen") => {}
                outcome => return outcome,
            }
        }
    }

    fn try_start(count: u16, site: Site) -> Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("palisade-e2e-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let issuer = authority::Authority::make(home.path())?;
        let addresses: Vec<IpAddr> = (0..usize::from(count)).map(|id| site.address(id)).collect();
        issuer.issue(home.path(), "server", &addresses)?;
        issuer.issue(home.path(), "admin", &[])?;
        issuer.issue(home.path(), OPERATOR, &[])?;
        authority::key(&home.path().join("kek"))?;
        let mut members = Vec::new();
        let mut seeds = Vec::new();
        for id in 0..count {
            members.push(Member {
                process: None,
                port: free_port()?,
                admin_port: free_port()?,
            });
            seeds.push((i32::from(id), free_port()?));
        }
        let mut cluster = Self {
            members,
            seeds,
            site,
            home,
        };
        for (id, control) in cluster.seeds.clone() {
            cluster.configure(id, control)?;
        }
        for id in 0..cluster.members.len() {
            cluster.spawn(id)?;
        }
        cluster.wait_until_all_run()?;
        for id in 0..cluster.members.len() {
            cluster.wait_until_serving(id)?;
        }
        Ok(cluster)
    }

    /// Adds a broker with an empty volume, which the others were not told of, and waits until it serves. Its number.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn add(&mut self) -> Result<usize> {
        let id = self.members.len();
        self.members.push(Member {
            process: None,
            port: free_port()?,
            admin_port: free_port()?,
        });
        self.configure(i32::try_from(id)?, free_port()?)?;
        self.launch(id)?;
        Ok(id)
    }

    /// Starts a broker that was stopped or killed and waits until it serves. The time that took.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn launch(&mut self, id: usize) -> Result<Duration> {
        let start = Instant::now();
        self.spawn(id)?;
        self.wait_until_serving(id)?;
        Ok(start.elapsed())
    }

    /// Ends a broker with SIGKILL.
    pub fn kill(&mut self, id: usize) {
        self.members[id].process = None;
    }

    /// Ends a broker with SIGTERM; it must end by itself, with status 0.
    ///
    /// # Errors
    /// When it does not.
    pub fn stop(&mut self, id: usize) -> Result<()> {
        if let Some(mut process) = self.members[id].process.take() {
            let status = process.terminate(STOP_LIMIT)?;
            if status != 0 {
                bail!(
                    "broker {id} ended with status {status} after SIGTERM:\n{}",
                    process.log()
                );
            }
        }
        Ok(())
    }

    /// Waits until a broker ends by itself. Its exit status.
    ///
    /// # Errors
    /// When it goes on running.
    pub fn wait(&mut self, id: usize) -> Result<i32> {
        let mut process = self.members[id].process.take().context("not running")?;
        process.wait(STOP_LIMIT)
    }

    /// Stops a broker's process where it stands (SIGSTOP), or lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self, id: usize, frozen: bool) -> Result<()> {
        let process = self.members[id].process.as_ref().context("not running")?;
        let pid = i32::try_from(process.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process id")?;
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        Ok(kill_process(pid, signal)?)
    }

    /// Removes the volume of a broker that is not running.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn wipe(&mut self, id: usize) -> Result<()> {
        if self.members[id].process.is_some() {
            bail!("broker {id} is running");
        }
        Ok(fs::remove_dir_all(self.volume(id))?)
    }

    /// The administrator's client, which knows all brokers.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn admin(&self) -> Result<Access> {
        let bootstrap: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(id, member)| format!("{}:{}", self.site.host(id), member.port))
            .collect();
        self.administrator("admin", &bootstrap.join(","))
    }

    /// The administrator's client, which is told of one broker only.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn admin_of(&self, id: usize) -> Result<Access> {
        let bootstrap = format!("{}:{}", self.site.host(id), self.members[id].port);
        self.administrator(&format!("admin-{id}"), &bootstrap)
    }

    fn administrator(&self, name: &str, bootstrap: &str) -> Result<Access> {
        Access::write(
            &self.home.path().join("clients"),
            name,
            bootstrap,
            &self.authority(),
            &Login::Certificate(self.admin_certificate()),
        )
    }

    /// A directory of this test, removed with the cluster.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.home.path()
    }

    /// What a broker says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self, id: usize) -> Result<BrokerStatus> {
        let address = self.admin_address(id);
        let pair = self.admin_certificate();
        let client = RawClient::connect_to(address, &self.authority(), Some(&pair))?;
        let (code, text) = client.get("/status")?;
        if code != 200 {
            bail!("/status answered {code}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("/status is {text}"))
    }

    /// A sample of `/metrics` of a broker, by its full name.
    ///
    /// # Errors
    /// When the broker does not answer, or has no such metric.
    pub fn metric(&self, id: usize, name: &str) -> Result<f64> {
        let port = self.members[id].admin_port;
        let (code, text) = RawClient::connect(port, &self.authority())?.get("/metrics")?;
        if code != 200 {
            bail!("/metrics answered {code}: {text}");
        }
        let sample = text.lines().find_map(|line| line.strip_prefix(name));
        sample
            .and_then(|value| value.trim().parse().ok())
            .with_context(|| format!("no {name} in {text}"))
    }

    /// Everything that a broker has logged.
    #[must_use]
    pub fn log(&self, id: usize) -> String {
        fs::read(self.log_path(id))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Process id of a broker, while it runs.
    #[must_use]
    pub fn id(&self, id: usize) -> Option<u32> {
        self.members[id].process.as_ref().map(Background::id)
    }

    /// A broker's volume.
    #[must_use]
    pub fn volume(&self, id: usize) -> PathBuf {
        self.site.volume(self.home.path(), id)
    }

    fn admin_address(&self, id: usize) -> SocketAddr {
        (self.site.address(id), self.members[id].admin_port).into()
    }

    /// The control ports of the brokers that formed the cluster.
    #[must_use]
    pub fn control_ports(&self) -> Vec<u16> {
        self.seeds.iter().map(|(_, port)| *port).collect()
    }

    /// The operator's certificate and key, which the control ports admit.
    #[must_use]
    pub fn operator_certificate(&self) -> Certificate {
        Certificate {
            certificate: self.home.path().join(format!("{OPERATOR}.crt")),
            key: self.home.path().join(format!("{OPERATOR}.key")),
        }
    }

    fn admin_certificate(&self) -> Certificate {
        Certificate {
            certificate: self.home.path().join("admin.crt"),
            key: self.home.path().join("admin.key"),
        }
    }

    /// The certificate of the authority that issued everything here.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.home.path().join("ca.crt")
    }

    fn log_path(&self, id: usize) -> PathBuf {
        self.home.path().join(format!("broker-{id}.log"))
    }

    fn configure(&self, id: i32, control: u16) -> Result<()> {
        let config = self.configuration(usize::try_from(id)?, control)?;
        let text = config.render().map_err(|message| anyhow!(message))?;
        Ok(fs::write(
            self.home.path().join(format!("broker-{id}.toml")),
            text,
        )?)
    }

    fn spawn(&mut self, id: usize) -> Result<()> {
        let binary = program("palisade-server", "palisade-broker", "PALISADE_BROKER_BIN")?;
        let mut command = match &self.site.lan {
            Some(lan) => lan.command(id, &binary),
            None => Command::new(binary),
        };
        command
            .arg("run")
            .arg("--config")
            .arg(self.home.path().join(format!("broker-{id}.toml")));
        let log = self.log_path(id);
        self.members[id].process = Some(Background::start(&mut command, &log)?);
        Ok(())
    }

    /// Waits until every broker has its ports. None of them serves before all are there.
    fn wait_until_all_run(&mut self) -> Result<()> {
        wait_until("the brokers listen", START_LIMIT, || {
            for member in &mut self.members {
                let process = member.process.as_mut().context("not started")?;
                if let Some(status) = process.ended() {
                    let log = process.log();
                    return Ok(Err(anyhow!("a broker ended with status {status}:\n{log}")));
                }
            }
            for id in 0..self.members.len() {
                std::net::TcpStream::connect(self.admin_address(id))?;
            }
            Ok(Ok(()))
        })?
    }

    fn wait_until_serving(&mut self, id: usize) -> Result<()> {
        let authority = self.authority();
        let address = self.admin_address(id);
        let process = self.members[id].process.as_mut().context("not started")?;
        wait_until("the broker serves", START_LIMIT, || {
            if let Some(status) = process.ended() {
                return Ok(Err(anyhow!(
                    "broker {id} ended with status {status}:\n{}",
                    process.log()
                )));
            }
            let (code, text) = RawClient::connect_to(address, &authority, None)?.get("/readyz")?;
            anyhow::ensure!(code == 200, "/readyz answered {code}: {text}");
            Ok(Ok(()))
        })
        .with_context(|| format!("log of broker {id}:\n{}", process.log()))?
    }

    fn configuration(&self, id: usize, control: u16) -> Result<BrokerConfig> {
        let home = self.home.path();
        let member = self.members.get(id).context("no such broker")?;
        let (bind, host) = (self.site.address(id), self.site.host(id));
        let seeds = self.seeds.iter().map(|(id, port)| {
            let host = self.site.host(usize::try_from(*id)?);
            Ok(Seed {
                id: *id,
                address: format!("{host}:{port}"),
            })
        });
        let tls = TlsConfig {
            certificate: home.join("server.crt"),
            key: home.join("server.key"),
            client_ca: Some(home.join("ca.crt")),
        };
        Ok(BrokerConfig {
            version: "e2e".to_owned(),
            node: NodeConfig {
                id: Some(i32::try_from(id)?),
                cluster_id: "e2e-cluster".to_owned(),
                rack: Some(format!("rack-{id}")),
            },
            cluster: ClusterConfig {
                seeds: seeds.collect::<Result<_>>()?,
            },
            storage: StorageConfig {
                data_dir: self.volume(id),
                key_provider: KeyProviderConfig::Directory {
                    path: home.join("kek"),
                },
                wal_file_size: ByteSize(16 << 20),
                segment_size: ByteSize(16 << 20),
                data_shards: 2,
            },
            control: ControlConfig {
                bind,
                port: control,
                advertised_host: host.clone(),
                tls: tls.clone(),
            },
            admin: AdminConfig {
                bind,
                port: member.admin_port,
                tls: tls.clone(),
                anonymous_metrics: true,
            },
            listeners: vec![ListenerConfig {
                name: "clients".to_owned(),
                bind,
                port: member.port,
                advertised_host: host,
                advertised_port: None,
                tls: Some(tls),
                client_auth: ClientAuth::Requested,
                sasl_mechanisms: vec![Mechanism::ScramSha512],
                principal_mapping_rules: Vec::new(),
                limits: ConnectionLimits::default(),
            }],
            super_users: vec!["User:CN=admin".to_owned()],
        })
    }
}
