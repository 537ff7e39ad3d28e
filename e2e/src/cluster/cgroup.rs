//! The control groups of a cluster, in version 1 (a tree for each controller) and version 2 (one tree).
//!
//! Everything that a node runs, its daemons as well as its pods, is below the cluster's group. That is how all
//! of it is found again, even what was started by a daemon that is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::command::wait_until;
use super::{ClusterError, Inability};

/// The controllers without which a kubelet does not start.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];

/// The trees of control groups of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchies {
    /// Their mount points; with version 2 exactly one.
    roots: Vec<PathBuf>,
    /// Which of them daemons are put into.
    daemons: PathBuf,
    /// A tree of version 2 beside those of version 1, in which runc makes groups too.
    hybrid: Option<PathBuf>,
    version_2: bool,
}

impl Hierarchies {
    /// Finds the trees that are mounted.
    pub(crate) fn discover() -> Result<Self, ClusterError> {
        let path = "/proc/self/mountinfo";
        let mounts = fs::read_to_string(path).map_err(ClusterError::io(path))?;
        Ok(parse(&mounts)?)
    }

    /// Makes a group, named by a path, in every tree.
    pub(crate) fn create(&self, group: &str) -> Result<(), ClusterError> {
        for root in &self.roots {
            let mut directory = root.clone();
            for part in group.split('/') {
                let parent = directory.clone();
                directory.push(part);
                if self.version_2 {
                    delegate(&parent);
                }
                fs::create_dir_all(&directory).map_err(ClusterError::io(&directory))?;
                inherit_cpuset(&parent, &directory)?;
            }
        }
        Ok(())
    }

    /// A command that is in a group before it is what it is, so that there is no moment at which it would not be
    /// found there.
    pub(crate) fn join(&self, group: &str, command: &Command) -> Command {
        let mut joined = Command::new("sh");
        joined.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]);
        joined.arg(self.daemons.join(group).join("cgroup.procs"));
        joined.arg(command.get_program()).args(command.get_args());
        joined
    }

    /// Kills everything in a group and below it, until nothing is left.
    pub(crate) fn kill(&self, group: &str) -> Result<(), ClusterError> {
        wait_until(
            "the processes of the cluster to end",
            Duration::from_secs(30),
            || {
                let pids = self.processes(group);
                for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                    // One that has just ended needs no killing.
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
                Ok((!pids.is_empty()).then(|| format!("still running: {pids:?}")))
            },
        )
    }

    /// Removes a group and those below it from every tree.
    pub(crate) fn remove(&self, group: &str) -> Result<(), ClusterError> {
        for root in self.roots.iter().chain(&self.hybrid) {
            let directory = root.join(group);
            // The kernel lets go of a group only a moment after its last process has ended.
            wait_until(
                &format!("removing {}", directory.display()),
                Duration::from_secs(10),
                || match remove_tree(&directory) {
                    Ok(()) => Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Ok(Some(error.to_string())),
                },
            )?;
        }
        Ok(())
    }

    fn processes(&self, group: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for root in self.roots.iter().chain(&self.hybrid) {
            collect_processes(&root.join(group), &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// Finds the trees in the text of `/proc/self/mountinfo`; its format is in proc(5).
fn parse(mounts: &str) -> Result<Hierarchies, Inability> {
    let mut version_1: Vec<(PathBuf, &str)> = Vec::new();
    let mut version_2 = None;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount_point) = before.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        let mut after = after.split(' ');
        match after.next() {
            Some("cgroup2") => version_2 = Some(mount_point),
            Some("cgroup") => {
                let options = after.nth(1).unwrap_or_default();
                // All of them: a kubelet wants its group in every tree, even in one without a controller.
                version_1.push((mount_point, options));
            }
            _ => {}
        }
    }
    if let Some(root) = version_2.clone().filter(|_| version_1.is_empty()) {
        return Ok(Hierarchies {
            roots: vec![root.clone()],
            daemons: root,
            hybrid: None,
            version_2: true,
        });
    }
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|wanted| {
            !version_1
                .iter()
                .any(|(_, options)| options.split(',').any(|it| it == *wanted))
        })
        .collect();
    let daemons = version_1
        .iter()
        .find(|(_, options)| options.split(',').any(|it| it == "pids"))
        .map(|(root, _)| root.clone());
    match daemons {
        Some(daemons) if missing.is_empty() => Ok(Hierarchies {
            roots: version_1.into_iter().map(|(root, _)| root).collect(),
            daemons,
            hybrid: version_2,
            version_2: false,
        }),
        _ => Err(Inability::NoControlGroups {
            detail: format!("the controllers {} are not mounted", missing.join(", ")),
        }),
    }
}

/// Version 2: lets the groups below use the controllers of this one.
fn delegate(directory: &Path) {
    let file = directory.join("cgroup.subtree_control");
    for controller in ["cpu", "cpuset", "memory", "pids", "io"] {
        // A machine may lack one; the kubelet says so if it needs it.
        let _ = fs::write(&file, format!("+{controller}"));
    }
}

/// Version 1: a new group of this controller has no processor and no memory until it is told which.
fn inherit_cpuset(parent: &Path, directory: &Path) -> Result<(), ClusterError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), directory.join(name));
        let unset = fs::read_to_string(&to).is_ok_and(|it| it.trim().is_empty());
        // In version 2 an unset value means that of the parent, whose file the root lacks.
        let inherited = fs::read_to_string(&from).unwrap_or_default();
        if unset && !inherited.trim().is_empty() {
            fs::write(&to, inherited.trim()).map_err(ClusterError::io(&to))?;
        }
    }
    Ok(())
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(directory) {
        collect_processes(&child, pids);
    }
}

/// Groups are removed from below; their files are not files that could be.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    fs::remove_dir(directory)
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn version_1_has_a_root_for_each_tree() {
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            39 31 0:36 / /sys/fs/cgroup/pids rw shared:7 - cgroup cgroup rw,pids\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = parse(mounts).unwrap();
        assert!(!found.version_2);
        assert_eq!(found.daemons, Path::new("/sys/fs/cgroup/pids"));
        assert_eq!(found.hybrid.unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(found.roots.len(), 5);
    }

    #[test]
    fn version_2_has_one_root() {
        let found =
            parse("31 23 0:28 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")
                .unwrap();
        assert!(found.version_2);
        assert_eq!(found.roots, [PathBuf::from("/sys/fs/cgroup")]);
    }

    #[test]
    fn a_missing_controller_is_named() {
        let error =
            parse("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "it needs control groups: the controllers cpu, pids, cpuset are not mounted"
        );
    }
}
