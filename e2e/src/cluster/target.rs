//! Which cluster the demo and the end-to-end tests run on: the built-in one, one that kind runs in a container
//! engine, or whatever the current kubeconfig names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use super::command::{installed, run};
use super::control_plane::kubectl;
use super::programs::{self, Program};
use super::{Cluster, ClusterError, client, directory};
use crate::progress::say;

/// The environment variable that selects the cluster.
pub const SELECTION_VARIABLE: &str = "CLUSTER";

/// A kind of cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Selection {
    /// The one that needs nothing but this machine.
    #[default]
    BuiltIn,
    /// A cluster of kind, made if it is not there; for machines with a container engine.
    Kind,
    /// The one that `KUBECONFIG`, or `~/.kube/config`, names. It is used, never made or removed.
    Current,
}

impl Selection {
    /// What the environment variable `CLUSTER` says: `builtin` (also when unset), `kind` or `current`.
    ///
    /// # Errors
    /// When it says something else.
    pub fn from_environment() -> Result<Self, ClusterError> {
        std::env::var(SELECTION_VARIABLE).map_or(Ok(Self::default()), |it| it.parse())
    }
}

impl FromStr for Selection {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "builtin" => Ok(Self::BuiltIn),
            "kind" => Ok(Self::Kind),
            "current" => Ok(Self::Current),
            other => Err(ClusterError::Invalid(format!(
                "{SELECTION_VARIABLE} is {other:?}, but must be builtin, kind or current"
            ))),
        }
    }
}

/// A cluster that is up, of whichever kind.
#[derive(Debug)]
pub struct Target {
    inner: Inner,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

#[derive(Debug)]
enum Inner {
    BuiltIn(Cluster),
    Kind { name: String },
    Current,
}

impl Target {
    /// Brings the selected cluster up, or finds it. The name and the number of nodes are those of a cluster that is
    /// made; a cluster of kind has one node, and its name begins with `palisade-`.
    ///
    /// # Errors
    /// When it does not come up or is not there.
    pub fn up(selection: Selection, name: &str, nodes: u8) -> Result<Self, ClusterError> {
        match selection {
            Selection::BuiltIn => {
                let cluster = Cluster::up(name, nodes)?;
                Ok(Self {
                    kubeconfig: cluster.kubeconfig(),
                    kubectl: cluster.kubectl().get_program().into(),
                    inner: Inner::BuiltIn(cluster),
                })
            }
            Selection::Kind => {
                let name = kind_name(name);
                let kubeconfig = kind_kubeconfig(&name)?;
                let clusters = run(Command::new("kind").args(["get", "clusters"]))?;
                if clusters.lines().any(|it| it == name) {
                    run(Command::new("kind")
                        .args(["export", "kubeconfig", "--name", &name, "--kubeconfig"])
                        .arg(&kubeconfig))?;
                } else {
                    say(format_args!("making the cluster {name} with kind"));
                    run(Command::new("kind")
                        .args([
                            "create",
                            "cluster",
                            "--name",
                            &name,
                            "--wait",
                            "180s",
                            "--kubeconfig",
                        ])
                        .arg(&kubeconfig))?;
                }
                Ok(Self {
                    inner: Inner::Kind { name },
                    kubeconfig,
                    kubectl: any_kubectl()?,
                })
            }
            Selection::Current => {
                let target = Self {
                    inner: Inner::Current,
                    kubeconfig: current_kubeconfig()?,
                    kubectl: any_kubectl()?,
                };
                run(target.kubectl().args(["get", "--raw", "/readyz"]))?;
                Ok(target)
            }
        }
    }

    /// Removes what [`Target::up`] made under that name; a cluster that was only used stays.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn remove(selection: Selection, name: &str) -> Result<(), ClusterError> {
        match selection {
            Selection::BuiltIn => Cluster::remove(name),
            Selection::Kind => {
                let name = kind_name(name);
                run(Command::new("kind").args(["delete", "cluster", "--name", &name]))?;
                let kubeconfig = kind_kubeconfig(&name)?;
                match fs::remove_file(&kubeconfig) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(ClusterError::io(kubeconfig)(error))
                    }
                    _ => Ok(()),
                }
            }
            Selection::Current => Ok(()),
        }
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A call of kubectl; add arguments and run it.
    pub fn kubectl(&self) -> Command {
        kubectl(&self.kubectl, &self.kubeconfig)
    }

    /// A client for the cluster.
    ///
    /// # Errors
    /// When the kubeconfig cannot be turned into a client.
    pub async fn client(&self) -> Result<kube::Client, ClusterError> {
        client(&self.kubeconfig).await
    }

    /// Makes an image known to every node. To a cluster that is only used nothing can be loaded: its nodes have to
    /// have the image already or be able to pull it, and this says so.
    ///
    /// # Errors
    /// When the image cannot be loaded.
    pub fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        match &self.inner {
            Inner::BuiltIn(cluster) => cluster.load_image(archive),
            Inner::Kind { name } => run(Command::new("kind")
                .args(["load", "image-archive", "--name", name])
                .arg(archive))
            .map(drop),
            Inner::Current => {
                say(format_args!(
                    "not loading {}: the nodes of the current cluster must have the image or be able to pull it",
                    archive.display()
                ));
                Ok(())
            }
        }
    }
}

fn kind_name(name: &str) -> String {
    if name.starts_with("palisade") {
        name.to_owned()
    } else {
        format!("palisade-{name}")
    }
}

fn kind_kubeconfig(name: &str) -> Result<PathBuf, ClusterError> {
    Ok(directory::state()?.join(format!("kind-{name}.kubeconfig")))
}

/// The first file of `KUBECONFIG`, or the default one.
fn current_kubeconfig() -> Result<PathBuf, ClusterError> {
    let named = std::env::var_os("KUBECONFIG")
        .and_then(|paths| std::env::split_paths(&paths).find(|it| !it.as_os_str().is_empty()));
    let default = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    named
        .or_else(default)
        .filter(|it| it.exists())
        .ok_or_else(|| {
            ClusterError::Invalid(
                "there is no current cluster: neither KUBECONFIG nor ~/.kube/config is a file"
                    .to_owned(),
            )
        })
}

/// This machine's kubectl, or else the built-in one.
fn any_kubectl() -> Result<PathBuf, ClusterError> {
    if installed("kubectl") {
        return Ok("kubectl".into());
    }
    let links = directory::state()?.join("bin");
    if !links.join("kubectl").exists() {
        // Left by an older build, the links would be in the way.
        let _ = fs::remove_dir_all(&links);
        programs::link_kubernetes(&links)?;
    }
    Ok(links.join("kubectl"))
}

/// This machine's Helm, or else the built-in one.
///
/// # Errors
/// When it cannot be built.
pub fn helm() -> Result<PathBuf, ClusterError> {
    if installed("helm") {
        return Ok("helm".into());
    }
    Program::Helm.build()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn the_built_in_cluster_is_the_default() {
        assert_eq!("".parse::<Selection>().unwrap(), Selection::BuiltIn);
        assert_eq!("kind".parse::<Selection>().unwrap(), Selection::Kind);
        assert_eq!("current".parse::<Selection>().unwrap(), Selection::Current);
    }

    #[test]
    fn another_word_is_refused_with_the_possible_ones() {
        let error = "minikube".parse::<Selection>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "CLUSTER is \"minikube\", but must be builtin, kind or current"
        );
    }

    #[test]
    fn a_cluster_of_kind_is_recognisable_as_ours() {
        assert_eq!(kind_name("demo"), "palisade-demo");
        assert_eq!(kind_name("palisade"), "palisade");
    }
}
