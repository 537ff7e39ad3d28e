//! The built-in cluster: a control plane on this machine and nodes in namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::cgroup::Hierarchies;
use super::command::{run, wait_until};
use super::control_plane::{ControlPlane, Place};
use super::host::Before;
use super::network::{self, Network};
use super::node::Node;
use super::pki::{Authority, Identity, write_private};
use super::process::{Process, Spawned, spawn};
use super::{ClusterError, Inability, Program, addons, client, directory, preflight};
use crate::image::Image;
use crate::progress::say;

/// The most nodes of one cluster: a byte of their addresses counts them.
const MOST_NODES: u8 = 100;

/// The port of the API server; its address is the cluster's own.
const API_PORT: u16 = 6443;

/// A cluster that runs on this machine. It goes on when this value is dropped and when the process ends: it ends by
/// [`Cluster::down`].
#[derive(Debug)]
pub struct Cluster {
    state: State,
    directory: PathBuf,
    /// The programs that this process started itself, and so has to wait for.
    children: Vec<Spawned>,
}

/// What is remembered of a cluster, from before anything of it is started.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    name: String,
    nodes: u8,
    network: Network,
    /// Tells whether the pids are those of before a restart of the machine.
    boot: String,
    before: Before,
    processes: Vec<Process>,
    /// Whether it came up whole.
    complete: bool,
}

impl Cluster {
    /// Starts a cluster of `nodes` nodes and waits until pods run, names resolve and policies are enforced. One of
    /// that name and size that runs already is taken as it is; what is left of one that does not is removed first.
    ///
    /// # Errors
    /// [`ClusterError::Unable`] where no cluster can run; others when it does not come up, and then nothing of it
    /// is left but the logs' last lines in the error.
    pub fn up(name: &str, nodes: u8) -> Result<Self, ClusterError> {
        check_request(name, nodes)?;
        preflight::check()?;
        let groups = Hierarchies::discover()?;
        let _lock = lock()?;
        let fits = |found: &Self| found.is_whole() && found.state.nodes == nodes;
        if let Some(running) = Self::find(name)?.filter(fits) {
            say(format_args!("cluster {name} is running already"));
            return Ok(running);
        }
        remove(name)?;
        for program in [
            Program::Pause,
            Program::Kubernetes,
            Program::Provisioner,
            Program::NetworkPolicyAgent,
            Program::CoreDns,
        ] {
            program.build()?;
        }
        let mut cluster = Self {
            state: State {
                name: name.to_owned(),
                nodes,
                network: Network::choose()?,
                boot: boot()?,
                before: others(name)?
                    .into_iter()
                    .next()
                    .unwrap_or_else(Before::note),
                processes: Vec::new(),
                complete: false,
            },
            directory: run_directory(name)?,
            children: Vec::new(),
        };
        if let Err(error) = cluster.start(&groups) {
            cluster.tear_down()?;
            return Err(error);
        }
        Ok(cluster)
    }

    /// Why this machine cannot run a cluster, if it cannot.
    pub fn inability() -> Option<Inability> {
        preflight::check().err()
    }

    /// The cluster of that name that was started before, by whichever process.
    ///
    /// # Errors
    /// When there is none, or not all of it runs.
    pub fn attach(name: &str) -> Result<Self, ClusterError> {
        let cluster = Self::load(name)?;
        if cluster.is_whole() {
            return Ok(cluster);
        }
        Err(ClusterError::NotRunning {
            name: name.to_owned(),
        })
    }

    /// Stops a cluster and removes everything of it: processes, namespaces, mounts, control groups and files. Also
    /// what is left of one that broke; nothing is left to do where there is none.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn remove(name: &str) -> Result<(), ClusterError> {
        check_request(name, 1)?;
        let _lock = lock()?;
        remove(name)
    }

    /// Stops this cluster and removes everything of it.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn down(mut self) -> Result<(), ClusterError> {
        let _lock = lock()?;
        self.tear_down()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The names of its nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.all_nodes().map(|it| it.name()).collect()
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane().kubeconfig()
    }

    /// A call of kubectl as the administrator; add arguments and run it.
    pub fn kubectl(&self) -> Command {
        self.control_plane().kubectl()
    }

    /// A client that acts as the administrator.
    ///
    /// # Errors
    /// When the kubeconfig cannot be turned into a client.
    pub async fn client(&self) -> Result<kube::Client, ClusterError> {
        client(&self.kubeconfig()).await
    }

    /// Loads an image into every node.
    ///
    /// # Errors
    /// When the archive cannot be read as an image.
    pub fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        each(self.all_nodes(), |node| node.load_image(archive)).map(drop)
    }

    /// The programs of the cluster and whether each still runs.
    pub fn programs(&self) -> Vec<(String, bool)> {
        self.state
            .processes
            .iter()
            .map(|it| (it.name.clone(), it.is_alive()))
            .collect()
    }

    /// The cluster of that name that was started before, be it whole or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(name: &str) -> Result<Self, ClusterError> {
        check_request(name, 1)?;
        Self::find(name)?.ok_or_else(|| ClusterError::NotRunning {
            name: name.to_owned(),
        })
    }

    fn find(name: &str) -> Result<Option<Self>, ClusterError> {
        let directory = run_directory(name)?;
        let path = directory.join("state.json");
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(None);
        };
        let read: Result<State, _> = serde_json::from_str(&text);
        let Ok(state) = read.map_err(|error| say(format_args!("{}: {error}", path.display())))
        else {
            return Ok(None);
        };
        Ok(Some(Self {
            state,
            directory,
            children: Vec::new(),
        }))
    }

    /// Whether it came up and all of its programs still run.
    pub fn is_whole(&self) -> bool {
        self.state.complete
            && boot().is_ok_and(|now| now == self.state.boot)
            && self.state.processes.iter().all(Process::is_alive)
    }

    fn control_plane(&self) -> ControlPlane {
        let network = self.state.network;
        ControlPlane {
            directory: self.directory.clone(),
            address: network.host().into(),
            port: API_PORT,
            service_range: network.services(),
            service_address: network.api_service().into(),
            nodes: true,
        }
    }

    fn all_nodes(&self) -> impl Iterator<Item = Node> + '_ {
        (1..=self.state.nodes).map(|index| Node {
            cluster: self.state.name.clone(),
            index,
            directory: self.directory.clone(),
            network: self.state.network,
        })
    }

    fn start(&mut self, groups: &Hierarchies) -> Result<(), ClusterError> {
        fs::create_dir_all(&self.directory).map_err(ClusterError::io(&self.directory))?;
        self.save()?;
        Before::make_directories()?;
        let name = self.state.name.clone();
        let network = self.state.network;
        let nodes: Vec<Node> = self.all_nodes().collect();
        say(format_args!(
            "starting cluster {name} ({} nodes)",
            nodes.len()
        ));
        let bridge = network::bridge_namespace(&name);
        network.create(&bridge)?;
        for node in &nodes {
            network.add_node(&bridge, &node.namespace(), node.index, self.state.nodes)?;
        }

        let control_plane = self.control_plane();
        let authority = control_plane.prepare()?;
        let group = control_plane_group(&name);
        groups.create(&group)?;
        let place = |command: Command| groups.join(&group, &command);
        let api = control_plane.start_api_server(&authority, &place)?;
        self.keep(api)?;
        // While the API server comes up, the nodes' runtimes do too.
        let images = self.write_images()?;
        let runtimes = each(nodes.iter(), |node| {
            let runtime = node.start_runtime(groups)?;
            for image in &images {
                node.load_image(image)?;
            }
            Ok(runtime)
        })?;
        let known: Vec<Process> = runtimes.iter().map(|it| it.process.clone()).collect();
        self.keep(runtimes)?;
        control_plane.wait_ready(&self.state.processes)?;
        say("the API server is ready");
        control_plane.apply(&addons::manifest(network))?;
        let controllers = control_plane.start_controllers(&authority, &place)?;
        self.keep(controllers)?;
        for (node, runtime) in nodes.iter().zip(&known) {
            let agents = node.start_agents(&authority, &control_plane.url(), runtime, groups)?;
            self.keep(agents)?;
        }
        let provisioner = self.start_provisioner(&authority, &control_plane, &place)?;
        self.keep(vec![provisioner])?;
        self.wait_whole(&control_plane, &nodes)?;
        self.state.complete = true;
        self.save()?;
        say(format_args!(
            "cluster {name} is up: export KUBECONFIG={}",
            self.kubeconfig().display()
        ));
        Ok(())
    }

    fn write_images(&self) -> Result<Vec<PathBuf>, ClusterError> {
        let directory = self.directory.join("images");
        fs::create_dir_all(&directory).map_err(ClusterError::io(&directory))?;
        let archives = vec![directory.join("pause.tar"), directory.join("coredns.tar")];
        for (archive, image) in archives.iter().zip([Image::pause()?, Image::coredns()?]) {
            image.write(archive)?;
        }
        Ok(archives)
    }

    fn start_provisioner(
        &self,
        authority: &Authority,
        control_plane: &ControlPlane,
        place: Place<'_>,
    ) -> Result<Spawned, ClusterError> {
        let kubeconfig = self.directory.join("provisioner.kubeconfig");
        authority.kubeconfig(
            &kubeconfig,
            &control_plane.url(),
            Identity::user("palisade:provisioner"),
        )?;
        let mut command = Command::new(Program::Provisioner.build()?);
        command.arg("--kubeconfig").arg(kubeconfig);
        command.arg("--base").arg(self.directory.join("volumes"));
        spawn(
            "provisioner",
            &self.directory.join("logs/provisioner.log"),
            place(command),
        )
    }

    /// Waits for what a first pod needs.
    fn wait_whole(&self, control_plane: &ControlPlane, nodes: &[Node]) -> Result<(), ClusterError> {
        let wait = |what: &str, arguments: &[&str]| {
            wait_until(what, Duration::from_secs(180), || {
                if let Some(stopped) = self.state.processes.iter().find(|it| !it.is_alive()) {
                    return Err(stopped.stopped());
                }
                Ok(run(control_plane.kubectl().args(arguments))
                    .err()
                    .map(|it| it.to_string()))
            })
        };
        for node in nodes {
            let resource = format!("node/{}", node.name());
            wait(
                &resource,
                &["wait", "--for=condition=Ready", "--timeout=5s", &resource],
            )?;
            wait_until("the NetworkPolicy agent", Duration::from_secs(60), || {
                Ok((!node.policies_are_enforced()?).then(|| "it does not listen yet".to_owned()))
            })?;
        }
        say("the nodes are ready");
        wait(
            "the default ServiceAccount",
            &["get", "serviceaccount", "default"],
        )?;
        let dns = [
            "-n",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=5s",
        ];
        wait("DNS", &dns)
    }

    /// Remembers started programs.
    fn keep(&mut self, started: Vec<Spawned>) -> Result<(), ClusterError> {
        self.state
            .processes
            .extend(started.iter().map(|it| it.process.clone()));
        self.children.extend(started);
        self.save()
    }

    fn save(&self) -> Result<(), ClusterError> {
        let path = self.directory.join("state.json");
        let text = serde_json::to_string_pretty(&self.state)
            .map_err(|error| ClusterError::Invalid(format!("{}: {error}", path.display())))?;
        write_private(&path, text.as_bytes())
    }

    fn tear_down(&mut self) -> Result<(), ClusterError> {
        for process in &self.state.processes {
            process.signal(Signal::KILL);
        }
        for child in &mut self.children {
            child.process.signal(Signal::KILL);
            child.reap();
        }
        remove(&self.state.name)
    }
}

/// Removes everything that bears the cluster's name, whether or not its state is still readable.
fn remove(name: &str) -> Result<(), ClusterError> {
    let state = Cluster::find(name)?.map(|it| it.state);
    let boot = boot()?;
    for process in state
        .iter()
        .filter(|it| it.boot == boot)
        .flat_map(|it| &it.processes)
    {
        process.signal(Signal::KILL);
    }
    let directory = run_directory(name)?;
    if state.is_none() && !directory.exists() && preflight::check().is_err() {
        // There cannot be one either.
        return Ok(());
    }
    if let Ok(groups) = Hierarchies::discover() {
        let group = cluster_group(name);
        groups.kill(&group)?;
        groups.remove(&group)?;
    }
    for namespace in network::namespaces(name)? {
        network::delete(&namespace)?;
    }
    // The last one to go leaves the machine as the first one found it.
    if let Some(state) = state.filter(|_| others(name).is_ok_and(|it| it.is_empty())) {
        state.before.restore()?;
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ClusterError::io(directory)(error))
        }
        _ => Ok(()),
    }
}

/// How the machine was before each of the other clusters that are on it now.
fn others(name: &str) -> Result<Vec<Before>, ClusterError> {
    let states = directory::state()?;
    let own = run_directory(name)?;
    let boot = boot()?;
    let entries = fs::read_dir(&states).map_err(ClusterError::io(&states))?;
    Ok(entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| *path != own)
        .filter_map(|path| fs::read_to_string(path.join("state.json")).ok())
        .filter_map(|text| serde_json::from_str::<State>(&text).ok())
        .filter(|state| state.boot == boot)
        .map(|state| state.before)
        .collect())
}

fn check_request(name: &str, nodes: u8) -> Result<(), ClusterError> {
    let plain = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
        return Err(ClusterError::Invalid(format!(
            "a cluster's name has 1 to 40 small letters, digits and dashes, which {name:?} has not"
        )));
    }
    if nodes == 0 || nodes > MOST_NODES {
        return Err(ClusterError::Invalid(format!(
            "a cluster has 1 to {MOST_NODES} nodes, not {nodes}"
        )));
    }
    Ok(())
}

/// The control group that everything of a cluster is below.
fn cluster_group(name: &str) -> String {
    format!("palisade.{name}")
}

fn control_plane_group(name: &str) -> String {
    format!("{}/control-plane", cluster_group(name))
}

fn run_directory(name: &str) -> Result<PathBuf, ClusterError> {
    Ok(directory::state()?.join(format!("cluster-{name}")))
}

/// Held while a cluster is started or stopped, so that two callers do not meet in between. It is the directory of
/// all clusters that is locked: no file is left of it.
fn lock() -> Result<File, ClusterError> {
    let path = directory::state()?;
    let file = File::open(&path).map_err(ClusterError::io(&path))?;
    file.lock().map_err(ClusterError::io(&path))?;
    Ok(file)
}

fn boot() -> Result<String, ClusterError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(path).map_err(ClusterError::io(path))?;
    Ok(id.trim().to_owned())
}

/// Does the same for several things at once, and reports the first failure.
fn each<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> Result<R, ClusterError> + Sync,
) -> Result<Vec<R>, ClusterError> {
    std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = items.map(|item| scope.spawn(move || work(item))).collect();
        running
            .into_iter()
            .map(|it| {
                it.join().unwrap_or_else(|_| {
                    Err(ClusterError::Invalid(
                        "a thread of the cluster driver failed".to_owned(),
                    ))
                })
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_name_that_could_be_a_path_is_refused() {
        for name in ["", "../x", "a.b", "A", "a b", &"x".repeat(41)] {
            let error = check_request(name, 1).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("a cluster's name has 1 to 40"),
                "{error}"
            );
        }
        check_request("demo-2", 3).unwrap();
    }

    #[test]
    fn the_number_of_nodes_has_bounds() {
        assert!(check_request("demo", 0).is_err());
        assert!(check_request("demo", 101).is_err());
    }
}
