//! Programs that run beside the generator, and what must be gone when it ends, however it ends.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(5);

/// What a signal must clean up: processes by id, directories by path.
static LEFT: Mutex<(BTreeSet<u32>, BTreeSet<PathBuf>)> =
    Mutex::new((BTreeSet::new(), BTreeSet::new()));

fn left<T>(change: impl FnOnce(&mut BTreeSet<u32>, &mut BTreeSet<PathBuf>) -> T) -> T {
    let mut left = LEFT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (pids, directories) = &mut *left;
    change(pids, directories)
}

/// On SIGINT and SIGTERM: ends the processes by id, removes the directories and ends with status 130.
pub fn clean_up_on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let (Ok(mut interrupt), Ok(mut terminate)) = (
                    signal(SignalKind::interrupt()),
                    signal(SignalKind::terminate()),
                ) else {
                    return;
                };
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                left(|pids, directories| {
                    for pid in pids.iter() {
                        send(*pid, Signal::KILL);
                    }
                    thread::sleep(Duration::from_millis(200));
                    for directory in directories.iter() {
                        let _ = std::fs::remove_dir_all(directory);
                    }
                });
                std::process::exit(130);
            });
        })?;
    Ok(())
}

/// A directory that is removed with this value, or by a signal.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one under this directory, which should be on the disk that is to be measured.
    pub fn new(under: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(under)
            .with_context(|| format!("cannot make {}", under.display()))?;
        let path = tempfile::Builder::new()
            .prefix(&format!("palisade-bench-{name}-"))
            .tempdir_in(under)
            .context("cannot make a directory")?
            .keep();
        left(|_, directories| directories.insert(path.clone()));
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        left(|_, directories| directories.remove(&self.0));
    }
}

/// A program that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    what: String,
}

impl Background {
    /// Starts a program; both its outputs are appended to `log`. It ends with this process, even when that is killed.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let what = program.display().to_string();
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        left(|pids, _| pids.insert(child.id()));
        Ok(Self { child, what })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        left(|pids, _| pids.remove(&self.child.id()));
        Some(status.to_string())
    }

    /// Sends SIGTERM, waits, and kills it when `limit` has passed.
    pub fn terminate(mut self, limit: Duration) -> Result<()> {
        send(self.child.id(), Signal::TERM);
        let start = Instant::now();
        while self.ended().is_none() {
            if start.elapsed() > limit {
                bail!(
                    "{} had to be killed: it did not end in {limit:?}",
                    self.what
                );
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            left(|pids, _| pids.remove(&self.child.id()));
        }
    }
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Runs a program to its end; its output is in the error when it fails.
pub fn run(program: &str, arguments: &[String]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{program} ended with {}:\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}

/// Ports of loopback that nothing listens on, all different.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    // All are held until all are known.
    let mut held = Vec::with_capacity(N);
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind a port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Looks at something until it is there; the last error is kept.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("{what}: not so after {limit:?}")));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sleeper(directory: &Path) -> Background {
        Background::start(
            Path::new("sleep"),
            &["60".to_owned()],
            &directory.join("log"),
        )
        .unwrap()
    }

    #[test]
    fn a_dropped_program_and_its_directory_are_gone() {
        let scratch = Scratch::new(&std::env::temp_dir(), "test").unwrap();
        let path = scratch.path().to_owned();
        let process = sleeper(&path);
        let pid = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(pid.exists());
        drop(process);
        assert!(!pid.exists());
        drop(scratch);
        assert!(!path.exists());
        assert!(left(|_, directories| !directories.contains(&path)));
    }

    #[test]
    fn a_terminated_program_ends_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        sleeper(directory.path())
            .terminate(Duration::from_secs(5))
            .unwrap();
    }

    #[test]
    fn ports_differ() {
        let ports: BTreeSet<u16> = free_ports::<8>().unwrap().into_iter().collect();
        assert_eq!(ports.len(), 8);
    }

    #[test]
    fn waiting_ends_with_the_last_error() {
        let error = wait_until("the moon", Duration::from_millis(20), || {
            Err::<(), _>(anyhow::anyhow!("is not here"))
        })
        .unwrap_err();
        assert!(
            format!("{error:#}").contains("the moon")
                && format!("{error:#}").contains("is not here")
        );
    }
}
