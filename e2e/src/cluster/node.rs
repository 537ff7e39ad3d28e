//! One node: containerd, kubelet, kube-proxy and the NetworkPolicy agent, in namespaces of their own.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cgroup::Hierarchies;
use super::command::{run, wait_until};
use super::network::{self, Network};
use super::pki::{Authority, Identity, write_private};
use super::process::{Process, Spawned, spawn};
use super::{ClusterError, Program};
use crate::image::PAUSE_IMAGE;

/// Directories that containerd, its plugins and the kubelet use whatever they are told. In a node's mount namespace
/// each is empty and its own, so nodes do not meet there, and nothing of it is left on the machine.
pub(crate) const PRIVATE_DIRECTORIES: [&str; 5] = [
    "/run/netns",
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
];

/// The longest path of a Unix socket, less what is appended to that of containerd.
const SOCKET_PATH_LIMIT: usize = 100;

/// A node that is to be or was started.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// Which node it is, counted from 1.
    pub(crate) index: u8,
    /// The cluster's directory.
    pub(crate) directory: PathBuf,
    /// The cluster's network.
    pub(crate) network: Network,
}

impl Node {
    /// Its name, in Kubernetes too.
    pub(crate) fn name(&self) -> String {
        format!("node-{}", self.index)
    }

    /// Its network namespace.
    pub(crate) fn namespace(&self) -> String {
        network::node_namespace(&self.cluster, &self.name())
    }

    /// Its address.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.network.node(self.index)
    }

    /// The control group of its daemons.
    fn daemon_group(&self) -> String {
        format!("palisade.{}/{}.daemons", self.cluster, self.name())
    }

    /// The control group of its pods.
    fn pod_group(&self) -> String {
        format!("palisade.{}/{}", self.cluster, self.name())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(self.name()).join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// Starts containerd and waits until it answers.
    pub(crate) fn start_runtime(&self, groups: &Hierarchies) -> Result<Spawned, ClusterError> {
        let socket = self.socket();
        if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(ClusterError::Invalid(format!(
                "{} is too long for a socket; set XDG_STATE_HOME to a shorter directory",
                socket.display()
            )));
        }
        for directory in ["cni", "logs", "pods", "plugins"] {
            let directory = self.path(directory);
            fs::create_dir_all(&directory).map_err(ClusterError::io(&directory))?;
        }
        groups.create(&self.daemon_group())?;
        groups.create(&self.pod_group())?;
        write_private(
            &self.path("cni/10-palisade.conflist"),
            self.cni_config().as_bytes(),
        )?;
        write_private(
            &self.path("containerd.toml"),
            self.containerd_config().as_bytes(),
        )?;

        // The mounts of a node, its pods' volumes among them, end with its processes.
        let mut script = "mount --make-rshared /".to_owned();
        for directory in PRIVATE_DIRECTORIES {
            script.push_str(" && mount -t tmpfs -o mode=755 tmpfs ");
            script.push_str(directory);
        }
        script.push_str(" && exec \"$@\"");
        let mut command = network::enter(&self.namespace());
        command.args([
            "unshare",
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            &script,
            "sh",
        ]);
        command
            .arg("containerd")
            .arg("--config")
            .arg(self.path("containerd.toml"));
        let spawned = self.spawn("containerd", command, groups)?;
        wait_until("containerd", Duration::from_secs(60), || {
            if !spawned.process.is_alive() {
                return Err(spawned.process.stopped());
            }
            Ok(UnixStream::connect(&socket)
                .err()
                .map(|error| error.to_string()))
        })?;
        Ok(spawned)
    }

    /// Starts the kubelet, kube-proxy and the NetworkPolicy agent.
    pub(crate) fn start_agents(
        &self,
        authority: &Authority,
        server: &str,
        runtime: &Process,
        groups: &Hierarchies,
    ) -> Result<Vec<Spawned>, ClusterError> {
        let name = self.name();
        let user = format!("system:node:{name}");
        let kubelet_config = self.path("kubelet.kubeconfig");
        authority.kubeconfig(
            &kubelet_config,
            server,
            Identity::member(&user, "system:nodes"),
        )?;
        authority.issue(
            &format!("{name}-kubelet"),
            Identity {
                user: &user,
                group: Some("system:nodes"),
                dns_names: &[&name],
                addresses: &[self.address().into()],
            },
        )?;
        let proxy_config = self.path("kube-proxy.kubeconfig");
        authority.kubeconfig(&proxy_config, server, Identity::user("system:kube-proxy"))?;
        let agent_config = self.path("netpol.kubeconfig");
        authority.kubeconfig(&agent_config, server, Identity::user("palisade:netpol"))?;
        write_private(
            &self.path("kubelet.yaml"),
            self.kubelet_config(authority).as_bytes(),
        )?;
        write_private(
            &self.path("kube-proxy.yaml"),
            self.proxy_config(&proxy_config).as_bytes(),
        )?;

        // The kubelet sees the mounts of containerd and makes those of volumes for it.
        let mut kubelet = Command::new("nsenter");
        kubelet.arg(format!("--net=/run/netns/{}", self.namespace()));
        kubelet
            .arg(format!("--mount=/proc/{}/ns/mnt", runtime.pid))
            .arg("--");
        kubelet.arg(self.program("kubelet"));
        kubelet.arg("--config").arg(self.path("kubelet.yaml"));
        kubelet.arg("--kubeconfig").arg(&kubelet_config);
        kubelet.arg("--root-dir").arg(self.path("kubelet"));
        kubelet.args([
            "--hostname-override",
            &name,
            "--node-ip",
            &self.address().to_string(),
        ]);

        let mut proxy = network::enter(&self.namespace());
        proxy
            .arg(self.program("kube-proxy"))
            .arg("--config")
            .arg(self.path("kube-proxy.yaml"));

        let mut agent = network::enter(&self.namespace());
        agent.arg(Program::NetworkPolicyAgent.build()?);
        agent.arg("--kubeconfig").arg(&agent_config);
        agent.args([
            "--node",
            &name,
            "--queue",
            &network::POLICY_QUEUE.to_string(),
        ]);

        Ok(vec![
            self.spawn("netpol", agent, groups)?,
            self.spawn("kube-proxy", proxy, groups)?,
            self.spawn("kubelet", kubelet, groups)?,
        ])
    }

    /// Whether the NetworkPolicy agent has taken up its queue.
    pub(crate) fn policies_are_enforced(&self) -> Result<bool, ClusterError> {
        let queues =
            run(network::enter(&self.namespace())
                .args(["cat", "/proc/net/netfilter/nfnetlink_queue"]))?;
        let queue = network::POLICY_QUEUE.to_string();
        Ok(queues
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&queue)))
    }

    /// Loads an image from an archive.
    pub(crate) fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket());
        command
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive);
        run(&mut command).map(drop)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    fn spawn(
        &self,
        name: &str,
        command: Command,
        groups: &Hierarchies,
    ) -> Result<Spawned, ClusterError> {
        let log = self.path("logs").join(format!("{name}.log"));
        let command = groups.join(&self.daemon_group(), &command);
        spawn(&format!("{}/{name}", self.name()), &log, command)
    }

    fn containerd_config(&self) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        // restrict_oom_score_adj: in a sandbox root may not lower the score, and then no pod would start.
        format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_bin}"
conf_dir = "{cni_conf}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
            root = path("containerd"),
            state = path("containerd-state"),
            socket = path("containerd.sock"),
            opt = path("opt"),
            cni_bin = CNI_DIRECTORY,
            cni_conf = path("cni"),
        )
    }

    fn cni_config(&self) -> String {
        let config = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "palisade",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.path("addresses"),
                        "ranges": [[{"subnet": self.network.node_pods(self.index)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        format!("{config:#}\n")
    }

    fn kubelet_config(&self, authority: &Authority) -> String {
        let name = self.name();
        let config = serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": authority.file("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": authority.file(&format!("{name}-kubelet.crt")),
            "tlsPrivateKeyFile": authority.file(&format!("{name}-kubelet.key")),
            "containerRuntimeEndpoint": format!("unix://{}", self.socket().display()),
            "clusterDNS": [self.network.dns_service()],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.pod_group()),
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "oomScoreAdj": 0,
            "podLogsDir": self.path("pods"),
            "volumePluginDir": self.path("plugins"),
            // Tests watch pods react: look at each of them often, and tell of the node's health often.
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "5s",
            // The machine's disk is not the cluster's to judge, and its images are not to be collected.
            "evictionHard": {"memory.available": "50Mi"},
            "imageGCHighThresholdPercent": 100,
        });
        format!("{config:#}\n")
    }

    fn proxy_config(&self, kubeconfig: &Path) -> String {
        let config = serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": kubeconfig},
            "hostnameOverride": self.name(),
            "clusterCIDR": self.network.pods(),
            // Zero leaves the machine's settings as they are.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        });
        format!("{config:#}\n")
    }
}

/// Where Debian's package puts the network plugins.
pub(crate) const CNI_DIRECTORY: &str = "/usr/lib/cni";
