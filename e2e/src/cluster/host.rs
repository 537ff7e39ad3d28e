//! What a cluster changes on the machine itself, remembered so that it can be undone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::ClusterError;
use super::command::run;
use super::node::PRIVATE_DIRECTORIES;

/// The settings of the kernel that a kubelet changes.
const KUBELET_SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Where `ip netns` keeps network namespaces. It mounts the directory over itself first, for ever.
const NAMESPACES: &str = "/run/netns";

/// How the machine was before.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Before {
    settings: BTreeMap<String, String>,
    directories: Vec<PathBuf>,
    namespaces_mounted: bool,
}

impl Before {
    /// Notes how the machine is.
    pub(crate) fn note() -> Self {
        let read = |name: &str| {
            let value = fs::read_to_string(setting(name)).ok()?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        let missing = |path: &Path| {
            let ancestors = path.ancestors().map(Path::to_owned).collect::<Vec<_>>();
            ancestors
                .into_iter()
                .take_while(|it| !it.exists())
                .collect::<Vec<_>>()
        };
        let mut directories: Vec<PathBuf> = PRIVATE_DIRECTORIES
            .iter()
            .flat_map(|it| missing(Path::new(it)))
            .collect();
        directories.sort();
        directories.dedup();
        Self {
            settings: KUBELET_SETTINGS.iter().filter_map(|it| read(it)).collect(),
            directories,
            namespaces_mounted: is_mount_point(NAMESPACES),
        }
    }

    /// Makes the directories over which nodes mount their own.
    pub(crate) fn make_directories() -> Result<(), ClusterError> {
        for directory in PRIVATE_DIRECTORIES {
            fs::create_dir_all(directory).map_err(ClusterError::io(directory))?;
        }
        Ok(())
    }

    /// Puts the machine back as it was.
    pub(crate) fn restore(&self) -> Result<(), ClusterError> {
        for (name, value) in &self.settings {
            let path = setting(name);
            if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
                fs::write(&path, value).map_err(ClusterError::io(&path))?;
            }
        }
        let namespaces_left = fs::read_dir(NAMESPACES).is_ok_and(|mut it| it.next().is_some());
        if !self.namespaces_mounted && !namespaces_left && is_mount_point(NAMESPACES) {
            run(Command::new("umount").arg(NAMESPACES))?;
        }
        // Inner ones first. One that something else has come to use is not empty and stays.
        for directory in self.directories.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn is_mount_point(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path))
}
