//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler: their command lines, and when they are up.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::command::{run, run_with_input, wait_until};
use super::pki::{Authority, Identity};
use super::process::{Process, Spawned, spawn};
use super::{ClusterError, programs};
use crate::ports;

/// How long a control plane may take to answer, on a machine that is busy with other things.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Puts a command where it is to run, as into a control group.
pub(crate) type Place<'a> = &'a dyn Fn(Command) -> Command;

/// Where a control plane lives and serves.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlane {
    /// Its directory; it holds `bin`, `pki`, `etcd`, `logs` and the kubeconfigs.
    pub(crate) directory: PathBuf,
    /// The address that the API server serves at.
    pub(crate) address: IpAddr,
    /// The API server's port.
    pub(crate) port: u16,
    /// The range of the addresses of Services.
    pub(crate) service_range: String,
    /// The first address of that range: the API server's own Service.
    pub(crate) service_address: IpAddr,
    /// Whether there will be nodes, and so a controller manager and pods.
    pub(crate) nodes: bool,
}

impl ControlPlane {
    /// The kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The URL of the API server.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    /// The path of one of the programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{name}.log"))
    }

    /// A call of kubectl as the administrator.
    pub(crate) fn kubectl(&self) -> Command {
        kubectl(&self.program("kubectl"), &self.kubeconfig())
    }

    /// Makes the directories, the links to the programs, the certificates and the kubeconfigs.
    pub(crate) fn prepare(&self) -> Result<Authority, ClusterError> {
        programs::link_kubernetes(&self.directory.join("bin"))?;
        let logs = self.directory.join("logs");
        std::fs::create_dir_all(&logs).map_err(ClusterError::io(&logs))?;
        let authority = Authority::create(&self.directory.join("pki"))?;
        authority.issue(
            "apiserver",
            Identity {
                user: "kube-apiserver",
                group: None,
                dns_names: &[
                    "localhost",
                    "kubernetes",
                    "kubernetes.default",
                    "kubernetes.default.svc",
                    "kubernetes.default.svc.cluster.local",
                ],
                addresses: &[
                    Ipv4Addr::LOCALHOST.into(),
                    self.address,
                    self.service_address,
                ],
            },
        )?;
        authority.issue(
            "apiserver-to-kubelet",
            Identity::member("kube-apiserver", "system:masters"),
        )?;
        let admin = Identity::member("palisade-e2e", "system:masters");
        authority.kubeconfig(&self.kubeconfig(), &self.url(), admin)?;
        if self.nodes {
            for name in ["kube-controller-manager", "kube-scheduler"] {
                let user = format!("system:{name}");
                let path = self.directory.join(format!("{name}.kubeconfig"));
                authority.kubeconfig(&path, &self.url(), Identity::user(&user))?;
            }
        }
        Ok(authority)
    }

    /// Starts etcd and the API server.
    pub(crate) fn start_api_server(
        &self,
        authority: &Authority,
        place: Place<'_>,
    ) -> Result<Vec<Spawned>, ClusterError> {
        let client_port = free_port()?;
        let peer_port = free_port()?;
        let client_url = format!("http://127.0.0.1:{client_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let mut etcd = Command::new(self.program("etcd"));
        etcd.arg("--data-dir").arg(self.directory.join("etcd"));
        etcd.args(["--name", "etcd", "--log-level", "warn"]);
        etcd.args([
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
        ]);
        etcd.args([
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
        ]);
        etcd.args(["--initial-cluster", &format!("etcd={peer_url}")]);
        // The cluster does not outlive its machine, so neither need its data.
        etcd.arg("--unsafe-no-fsync");

        let mut api = Command::new(self.program("kube-apiserver"));
        let mut file = |flag: &str, name: &str| {
            api.arg(flag).arg(authority.file(name));
        };
        file("--client-ca-file", "ca.crt");
        file("--tls-cert-file", "apiserver.crt");
        file("--tls-private-key-file", "apiserver.key");
        file("--kubelet-client-certificate", "apiserver-to-kubelet.crt");
        file("--kubelet-client-key", "apiserver-to-kubelet.key");
        file("--kubelet-certificate-authority", "ca.crt");
        file("--service-account-signing-key-file", "service-account.key");
        file("--service-account-key-file", "service-account.pub");
        api.args(["--etcd-servers", &client_url]);
        api.args(["--bind-address", &self.address.to_string()]);
        api.args(["--secure-port", &self.port.to_string()]);
        api.args([
            "--service-account-issuer",
            "https://kubernetes.default.svc.cluster.local",
        ]);
        api.args(["--service-cluster-ip-range", &self.service_range]);
        api.args(["--authorization-mode", "Node,RBAC"]);
        // As everywhere: what a pod may ask for is for Pod Security to say, a namespace at a time.
        api.arg("--allow-privileged");
        api.args(["--enable-admission-plugins", "NodeRestriction"]);
        api.args(["--kubelet-preferred-address-types", "InternalIP"]);
        if self.nodes {
            api.args(["--advertise-address", &self.address.to_string()]);
        } else {
            // No controller makes the default ServiceAccount, and loopback cannot be an endpoint.
            api.args(["--disable-admission-plugins", "ServiceAccount"]);
            api.args(["--endpoint-reconciler-type", "none"]);
        }
        Ok(vec![
            spawn("etcd", &self.log("etcd"), place(etcd))?,
            spawn("kube-apiserver", &self.log("kube-apiserver"), place(api))?,
        ])
    }

    /// Starts the controller manager and the scheduler.
    pub(crate) fn start_controllers(
        &self,
        authority: &Authority,
        place: Place<'_>,
    ) -> Result<Vec<Spawned>, ClusterError> {
        let start = |name: &str, configure: &dyn Fn(&mut Command)| {
            let kubeconfig = self.directory.join(format!("{name}.kubeconfig"));
            let mut command = Command::new(self.program(name));
            command.arg("--kubeconfig").arg(&kubeconfig);
            command.arg("--authentication-kubeconfig").arg(&kubeconfig);
            command.arg("--authorization-kubeconfig").arg(&kubeconfig);
            command.args([
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &free_port()?.to_string(),
            ]);
            command.args(["--leader-elect=false"]);
            configure(&mut command);
            spawn(name, &self.log(name), place(command))
        };
        let manager = start("kube-controller-manager", &|command| {
            command.arg("--root-ca-file").arg(authority.file("ca.crt"));
            command
                .arg("--service-account-private-key-file")
                .arg(authority.file("service-account.key"));
            command
                .arg("--cluster-signing-cert-file")
                .arg(authority.file("ca.crt"));
            command
                .arg("--cluster-signing-key-file")
                .arg(authority.file("ca.key"));
            command.args([
                "--use-service-account-credentials",
                "--allocate-node-cidrs=false",
            ]);
            // A new node is taken into use, and a lost one out of it, only at the next look at all of them; a
            // test that takes a node away also waits for the grace period.
            command.args([
                "--node-monitor-period=1s",
                "--node-monitor-grace-period=20s",
            ]);
        })?;
        let scheduler = start("kube-scheduler", &|_| {})?;
        Ok(vec![manager, scheduler])
    }

    /// Waits until the API server says that it is ready.
    pub(crate) fn wait_ready(&self, processes: &[Process]) -> Result<(), ClusterError> {
        wait_until("the API server", START_LIMIT, || {
            if let Some(stopped) = processes.iter().find(|it| !it.is_alive()) {
                return Err(stopped.stopped());
            }
            // Cheaper than a call of kubectl, which takes a while just to load.
            if let Err(error) = std::net::TcpStream::connect((self.address, self.port)) {
                return Ok(Some(error.to_string()));
            }
            Ok(run(self.kubectl().args(["get", "--raw", "/readyz"]))
                .err()
                .map(|it| it.to_string()))
        })
    }

    /// Applies a manifest as the administrator.
    pub(crate) fn apply(&self, manifest: &str) -> Result<(), ClusterError> {
        run_with_input(
            self.kubectl().args(["apply", "--server-side", "-f", "-"]),
            manifest,
        )
        .map(drop)
    }
}

/// A call of kubectl that sees only the given kubeconfig.
pub(crate) fn kubectl(program: &Path, kubeconfig: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--kubeconfig").arg(kubeconfig);
    // Someone's personal defaults must not change what a test does.
    command
        .env("KUBECTL_KUBERC", "false")
        .env_remove("KUBECONFIG");
    command
}

/// A port of loopback that nothing listens at now.
pub(crate) fn free_port() -> Result<u16, ClusterError> {
    ports::free_port().map_err(ClusterError::io("127.0.0.1"))
}
