//! A real API server without nodes: etcd and kube-apiserver on loopback, as an ordinary user, in seconds.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::control_plane::{ControlPlane, free_port};
use super::process::{Process, Spawned};
use super::{ClusterError, client, directory};

/// Waits for the end of its standard input, which only the process that started the API server can cause,
/// deliberately or by ending; then stops the processes whose pids follow the directory, and removes that.
const KEEPER: &str = r#"
read -r _
directory=$1
shift
kill "$@" 2>/dev/null
for _ in $(seq 100); do
    kill -0 "$@" 2>/dev/null || break
    sleep 0.1
done
kill -9 "$@" 2>/dev/null
rm -rf "$directory"
"#;

/// A running API server: it stores and validates everything as a cluster's does (schemas, CEL rules, admission
/// policies, RBAC), but nothing acts on what it stores: there are no controllers, so a Deployment stays without
/// pods and a deleted namespace stays `Terminating`.
///
/// It ends when it is dropped, and also when this process ends without dropping it, so it may be kept in a
/// `static` and shared by the tests of one binary.
#[derive(Debug)]
pub struct ApiServer {
    control_plane: ControlPlane,
    processes: Vec<Spawned>,
    keeper: Child,
}

impl ApiServer {
    /// Starts it and waits until it is ready: about 5 seconds, after a build from source the very first time.
    ///
    /// # Errors
    /// When the build fails or a program does not come up.
    pub fn start() -> Result<Self, ClusterError> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        sweep()?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let directory =
            directory::state()?.join(format!("apiserver-{}-{number}", std::process::id()));
        let control_plane = ControlPlane {
            directory: directory.clone(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: free_port()?,
            service_range: "10.0.0.0/24".to_owned(),
            service_address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            nodes: false,
        };
        let authority = control_plane.prepare()?;
        let processes = control_plane.start_api_server(&authority, &std::convert::identity)?;
        let keeper = start_keeper(&directory, &processes)?;
        let server = Self {
            control_plane,
            processes,
            keeper,
        };
        let known: Vec<Process> = server
            .processes
            .iter()
            .map(|it| it.process.clone())
            .collect();
        server.control_plane.wait_ready(&known)?;
        Ok(server)
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane.kubeconfig()
    }

    /// The URL that it serves at.
    pub fn url(&self) -> String {
        self.control_plane.url()
    }

    /// A call of kubectl as the administrator; add arguments and run it.
    pub fn kubectl(&self) -> Command {
        self.control_plane.kubectl()
    }

    /// A client that acts as the administrator.
    ///
    /// # Errors
    /// When the kubeconfig cannot be turned into a client.
    pub async fn client(&self) -> Result<kube::Client, ClusterError> {
        client(&self.kubeconfig()).await
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        for spawned in &mut self.processes {
            spawned.reap();
        }
        // Already waited for, or never started: either way it is gone.
        let _ = self.keeper.wait();
    }
}

fn start_keeper(directory: &Path, processes: &[Spawned]) -> Result<Child, ClusterError> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sh");
    command.args(["-c", KEEPER, "keeper"]).arg(directory);
    command.args(processes.iter().map(|it| it.process.pid.to_string()));
    command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| ClusterError::Command {
            command: "sh".to_owned(),
            detail: error.to_string(),
        })
}

/// Removes what is left of API servers whose owner, and keeper, were killed at the wrong moment.
fn sweep() -> Result<(), ClusterError> {
    let state = directory::state()?;
    let entries = fs::read_dir(&state).map_err(ClusterError::io(&state))?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|it| it.strip_prefix("apiserver-"))
            .and_then(|it| it.split('-').next())
            .and_then(|it| it.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another sweep, or the keeper itself, may be at it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
