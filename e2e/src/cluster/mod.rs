//! A real Kubernetes on this machine, without a container engine.

mod addons;
mod api_server;
mod built_in;
mod cgroup;
pub mod command;
mod control_plane;
mod directory;
mod error;
mod host;
pub(crate) mod network;
mod node;
mod pki;
mod preflight;
mod process;
mod programs;
mod target;

use std::path::Path;

pub use api_server::ApiServer;
pub use built_in::Cluster;
pub use error::{ClusterError, Inability};
pub use programs::Program;
pub use target::{SELECTION_VARIABLE, Selection, Target, helm};

/// A client from a kubeconfig file.
///
/// # Errors
/// When the file cannot be read or does not describe a cluster.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client, ClusterError> {
    let failed = |detail: String| ClusterError::Client {
        kubeconfig: kubeconfig.to_owned(),
        detail,
    };
    let read = kube::config::Kubeconfig::read_from(kubeconfig)
        .map_err(|error| failed(error.to_string()))?;
    let config =
        kube::Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default())
            .await
            .map_err(|error| failed(error.to_string()))?;
    kube::Client::try_from(config).map_err(|error| failed(error.to_string()))
}
