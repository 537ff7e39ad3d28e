//! The programs of the built-in Kubernetes, built from source on first use.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ClusterError;

/// What the binary `k8s` is, depending on the name it is called by.
const KUBERNETES_PROGRAMS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

/// A Go module below `e2e/kube`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Program {
    /// etcd, the Kubernetes components and kubectl in one binary.
    Kubernetes,
    /// The cluster's DNS server.
    CoreDns,
    /// What enforces NetworkPolicies.
    NetworkPolicyAgent,
    /// What makes volumes.
    Provisioner,
    /// The package manager.
    Helm,
    /// The process that holds a pod's namespaces.
    Pause,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Pause,
        Self::Kubernetes,
        Self::Provisioner,
        Self::NetworkPolicyAgent,
        Self::CoreDns,
        Self::Helm,
    ];

    /// The folder of its module, which is also its name.
    fn module(self) -> &'static str {
        match self {
            Self::Kubernetes => "k8s",
            Self::CoreDns => "coredns",
            Self::NetworkPolicyAgent => "netpol",
            Self::Provisioner => "provisioner",
            Self::Helm => "helm",
            Self::Pause => "pause",
        }
    }

    /// Builds it unless that was done before, and returns the path of the binary. Progress goes to standard
    /// error; a cold build of [`Program::Kubernetes`] takes about 10 minutes on two cores.
    ///
    /// # Errors
    /// When Go is missing or the build fails.
    pub fn build(self) -> Result<PathBuf, ClusterError> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube/build.sh");
        let failed = |detail: String| ClusterError::Command {
            command: format!("{} {}", script.display(), self.module()),
            detail,
        };
        let output = Command::new(&script)
            .arg(self.module())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(format!("{}; see its output above", output.status)));
        }
        Ok(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ))
    }
}

/// Builds Kubernetes and links its programs by their names into a directory, which is made.
///
/// # Errors
/// When the build fails or the links cannot be made.
pub(crate) fn link_kubernetes(directory: &Path) -> Result<(), ClusterError> {
    let binary = Program::Kubernetes.build()?;
    fs::create_dir_all(directory).map_err(ClusterError::io(directory))?;
    for name in KUBERNETES_PROGRAMS {
        let link = directory.join(name);
        symlink(&binary, &link).map_err(ClusterError::io(&link))?;
    }
    Ok(())
}
