//! A broker of our own: `palisade-broker dev` in a temporary directory, on free ports of loopback.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use palisade_config::{BrokerConfig, status::BrokerStatus};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::{
    Access, Background, Certificate, Java, Login, Mechanism, RawClient, free_port, program, tool,
    wait_until,
};

/// A start takes well under a second; the limit only ends a hang.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A broker and everything that its clients need.
#[derive(Debug)]
pub struct Broker {
    /// The process, while there is one. Declared first: it is gone before its directory is removed.
    process: Option<Background>,
    configuration: Option<PathBuf>,
    home: TempDir,
    data_dir: PathBuf,
    port: u16,
    admin_port: u16,
}

impl Broker {
    /// Starts a broker with an empty data directory and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start() -> Result<Self> {
        let home = scratch()?;
        let data_dir = home.path().join("data");
        Self::start_on(home, data_dir)
    }

    /// Starts a broker with its data in this directory, which stays, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_in(data_dir: PathBuf) -> Result<Self> {
        Self::start_on(scratch()?, data_dir)
    }

    fn start_on(home: TempDir, data_dir: PathBuf) -> Result<Self> {
        let mut broker = Self {
            process: None,
            configuration: None,
            data_dir,
            home,
            port: free_port()?,
            admin_port: free_port()?,
        };
        broker.launch()?;
        Ok(broker)
    }

    /// Starts the process again with the same data and ports, and waits until it serves. The time that took.
    ///
    /// # Errors
    /// When it does not serve, with its log.
    pub fn launch(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.spawn()?;
        let authority = self.authority();
        let port = self.port;
        let process = self
            .process
            .as_mut()
            .context("the broker was not started")?;
        wait_until("the broker serves", START_LIMIT, || {
            if let Some(status) = process.ended() {
                // Not worth waiting for any longer, but `wait_until` can only be told by success.
                return Ok(Err(anyhow!(
                    "the broker ended with status {status}:\n{}",
                    process.log()
                )));
            }
            // ApiVersions 0: the first thing every client asks.
            RawClient::connect(port, &authority)?
                .request(18, 0, &[])?
                .frame()
                .map(Ok)
        })
        .with_context(|| format!("log of the broker:\n{}", process.log()))??;
        Ok(start.elapsed())
    }

    /// Starts the process and waits for its end: for starts that must fail. Its exit status and log.
    ///
    /// # Errors
    /// When it goes on running.
    pub fn launch_refused(&mut self) -> Result<(i32, String)> {
        let before = self.log().len();
        self.spawn()?;
        let process = self
            .process
            .as_mut()
            .context("the broker was not started")?;
        let status = process.wait(START_LIMIT)?;
        let log = self.log();
        self.process = None;
        Ok((status, log.get(before..).unwrap_or_default().to_owned()))
    }

    /// Changes the configuration that the next [`Broker::launch`] runs with: the one that `dev` wrote, with this change alone.
    ///
    /// # Errors
    /// When `broker.toml` cannot be read or written.
    pub fn configure(&mut self, change: impl FnOnce(&mut BrokerConfig)) -> Result<()> {
        self.configuration = None;
        let mut config = self.config()?;
        change(&mut config);
        let path = self.home.path().join("broker.toml");
        let text = config.render().map_err(|message| anyhow!(message))?;
        fs::write(&path, text)?;
        self.configuration = Some(path);
        Ok(())
    }

    /// The configuration it runs with.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn config(&self) -> Result<BrokerConfig> {
        let path = self
            .configuration
            .clone()
            .unwrap_or_else(|| self.data_dir.join("broker.toml"));
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(BrokerConfig::parse(&text)?)
    }

    /// Ends the process as an operating system would: SIGTERM, and it must end by itself.
    ///
    /// # Errors
    /// When it does not, or not with status 0.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            let status = process.terminate(Duration::from_secs(20))?;
            if status != 0 {
                bail!(
                    "the broker ended with status {status} after SIGTERM:\n{}",
                    process.log()
                );
            }
        }
        Ok(())
    }

    /// Ends the process with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The directory given to `dev --data-dir`.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory of this test, removed with the broker and not part of its data.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.home.path()
    }

    /// `localhost:<port>` of the clients' listener.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The port of the clients' listener.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Background::id)
    }

    /// Everything that the broker has logged since the first start.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The authority that clients trust.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.data_dir.join("ca.crt")
    }

    /// The administrator's client, with the two files that `dev` wrote.
    #[must_use]
    pub fn admin(&self) -> Access {
        Access {
            bootstrap: self.bootstrap(),
            properties: self.data_dir.join("client.properties"),
            librdkafka: self.data_dir.join("librdkafka.conf"),
        }
    }

    /// A client that logs in in this way; `name` distinguishes its files.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn client(&self, name: &str, login: &Login) -> Result<Access> {
        let directory = self.home.path().join("clients");
        Access::write(
            &directory,
            name,
            &self.bootstrap(),
            &self.authority(),
            login,
        )
    }

    /// Makes a user with SCRAM-SHA-512 and a password, with Kafka's own tool; the user's client.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn user(&self, java: &mut Java, name: &str) -> Result<Access> {
        let password = format!("{name}-secret");
        let config = format!("SCRAM-SHA-512=[iterations=4096,password={password}]");
        let alter = [
            "--alter",
            "--entity-type",
            "users",
            "--entity-name",
            name,
            "--add-config",
            &config,
        ];
        java.tool(tool::CONFIGS, &self.admin(), &alter)?.success()?;
        self.client(
            name,
            &Login::password(Mechanism::ScramSha512, name, &password),
        )
    }

    /// A raw connection to the clients' listener.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn raw(&self) -> Result<RawClient> {
        RawClient::connect(self.port, &self.authority())
    }

    /// A raw connection, logged in as the administrator.
    ///
    /// # Errors
    /// When it cannot be made, or the login is refused.
    pub fn raw_admin(&self) -> Result<RawClient> {
        let text = fs::read_to_string(self.admin().librdkafka)?;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .with_context(|| format!("librdkafka.conf has no {key}"))
        };
        let mut client = self.raw()?;
        client.login(value("sasl.username")?, value("sasl.password")?)?;
        Ok(client)
    }

    /// Status and body of a GET on the admin port, without a client certificate.
    ///
    /// # Errors
    /// When the port does not answer.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        RawClient::connect(self.admin_port, &self.authority())?.get(path)
    }

    /// What it says of itself on `/status`, to a client with a certificate of its authority.
    ///
    /// # Errors
    /// When the admin port does not serve it.
    pub fn status(&self) -> Result<BrokerStatus> {
        let pair = self.certificate("e2e")?;
        let client = RawClient::connect_as(self.admin_port, &self.authority(), Some(&pair))?;
        let (code, text) = client.get("/status")?;
        if code != 200 {
            bail!("/status answered {code}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("/status is {text}"))
    }

    /// The sum of a metric over its labels.
    ///
    /// # Errors
    /// When the admin port does not serve it.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (status, text) = self.http("/metrics")?;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        if status != 200 || values.is_empty() {
            bail!("/metrics has no {name} (status {status}):\n{text}");
        }
        Ok(values.iter().sum())
    }

    /// A certificate from the authority that `dev` made, `CN=<name>`, for clients and for `localhost`.
    ///
    /// # Errors
    /// When the authority's key cannot be read.
    pub fn certificate(&self, name: &str) -> Result<Certificate> {
        let year = OffsetDateTime::now_utc().year();
        self.certificate_until(name, year + 10)
    }

    /// The same, valid until the first day of a year, and ten years long.
    ///
    /// # Errors
    /// When the authority's key cannot be read.
    pub fn certificate_until(&self, name: &str, year: i32) -> Result<Certificate> {
        let read = |file: &str| {
            let path = self.data_dir.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let issuer =
            Issuer::from_ca_cert_pem(&read("ca.crt")?, KeyPair::from_pem(&read("ca.key")?)?)?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.not_before = date_time_ymd(year - 10, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let pair = Certificate {
            certificate: self.home.path().join(format!("{name}.crt")),
            key: self.home.path().join(format!("{name}.key")),
        };
        fs::write(&pair.certificate, certificate.pem())?;
        fs::write(&pair.key, key.serialize_pem())?;
        Ok(pair)
    }

    fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new(program(
            "palisade-server",
            "palisade-broker",
            "PALISADE_BROKER_BIN",
        )?);
        match &self.configuration {
            Some(path) => command.arg("run").arg("--config").arg(path),
            None => command
                .arg("dev")
                .arg("--data-dir")
                .arg(&self.data_dir)
                .arg("--port")
                .arg(self.port.to_string())
                .arg("--admin-port")
                .arg(self.admin_port.to_string()),
        };
        self.process = Some(Background::start(&mut command, &self.log_path())?);
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("broker.log")
    }
}

/// A directory of this broker's own.
fn scratch() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("palisade-e2e-")
        .tempdir()
        .context("cannot make a temporary directory")
}
