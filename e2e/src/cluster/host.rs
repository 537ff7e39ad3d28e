//! What a cluster changes on the machine itself, remembered so that it can be undone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ClusterError;
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

/// How the machine was before.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Before {
    settings: BTreeMap<String, String>,
    directories: Vec<PathBuf>,
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
