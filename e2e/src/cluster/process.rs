//! The long-running programs of a cluster: started in the background, known by pid and start time, so that a
//! later run can stop exactly them and never a stranger that was given the same pid.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::ClusterError;

/// A program that was started, as it is remembered on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// What it is, as `node-1/kubelet`.
    pub(crate) name: String,
    /// Its process id.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot: tells it from a later process with the same pid.
    pub(crate) start_time: u64,
    /// Where its output goes.
    pub(crate) log: PathBuf,
}

impl Process {
    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|it| it.start_time == self.start_time && !it.ended)
    }

    /// Sends it a signal, if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            // It may end between the check and the call: then there is nothing left to signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// An error that quotes the end of its log, for when it should run and does not.
    pub(crate) fn stopped(&self) -> ClusterError {
        ClusterError::Stopped {
            program: self.name.clone(),
            tail: tail(&self.log),
            log: self.log.clone(),
        }
    }
}

/// A program that this process started and has to wait for, lest it stays as a zombie.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// How to know it.
    pub(crate) process: Process,
    child: Child,
}

impl Spawned {
    /// Waits for its end.
    pub(crate) fn reap(&mut self) {
        // The only failure is that it was waited for already.
        let _ = self.child.wait();
    }
}

/// Starts a program in the background, in its own process group (so that an interrupt from the terminal does
/// not reach it), with its output in `log`.
///
/// # Errors
/// When the log cannot be made or the program not be started.
pub(crate) fn spawn(name: &str, log: &Path, mut command: Command) -> Result<Spawned, ClusterError> {
    let output = File::create(log).map_err(ClusterError::io(log))?;
    let errors = output.try_clone().map_err(ClusterError::io(log))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|error| ClusterError::Command {
            command: command.get_program().to_string_lossy().into_owned(),
            detail: error.to_string(),
        })?;
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    Ok(Spawned {
        process: Process {
            name: name.to_owned(),
            pid,
            // Zero never matches: a program that ended before it could be looked at counts as ended.
            start_time: stat(pid).map_or(0, |it| it.start_time),
            log: log.to_owned(),
        },
        child,
    })
}

/// The last lines of a log file.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(15)..)
        .unwrap_or_default()
        .join("\n")
}

struct Stat {
    start_time: u64,
    ended: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 (state) and 22 (start time) of `/proc/PID/stat`; see proc(5). The second field, the name, may
/// hold spaces and parentheses, so counting starts behind the last parenthesis.
fn parse_stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    Some(Stat {
        start_time: fields.nth(18)?.parse().ok()?,
        ended: matches!(state, "Z" | "X"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_an_awkward_name() {
        let line = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 5 6";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat.start_time, 4242);
        assert!(!stat.ended);
    }

    #[test]
    fn a_process_lives_until_it_is_killed_and_a_reused_pid_is_not_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut spawned = spawn("sleep", &directory.path().join("log"), command).unwrap();
        assert!(spawned.process.is_alive());
        let stranger = Process {
            start_time: spawned.process.start_time + 1,
            ..spawned.process.clone()
        };
        stranger.signal(Signal::KILL);
        assert!(
            spawned.process.is_alive(),
            "a stranger's start time must protect the pid"
        );
        spawned.process.signal(Signal::KILL);
        spawned.reap();
        assert!(!spawned.process.is_alive());
    }
}
