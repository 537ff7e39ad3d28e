//! Whether this machine can run nodes.

use std::path::Path;
use std::process::Command;

use super::Inability;
use super::command::{installed, run};
use super::node::CNI_DIRECTORY;

/// What a node calls, besides what is built.
const PROGRAMS: [&str; 13] = [
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "ip",
    "iptables",
    "nft",
    "conntrack",
    "nsenter",
    "unshare",
    "mount",
    "sysctl",
    "go",
];

/// The network plugins that a node uses.
const CNI_PLUGINS: [&str; 3] = ["ptp", "host-local", "portmap"];

/// Says why nodes cannot run here, if they cannot.
pub(crate) fn check() -> Result<(), Inability> {
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        return Err(Inability::NotRoot { uid: uid.as_raw() });
    }
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|it| !installed(it))
        .map(|it| (*it).to_owned())
        .collect();
    missing.extend(
        CNI_PLUGINS
            .iter()
            .map(|it| format!("{CNI_DIRECTORY}/{it}"))
            .filter(|it| !Path::new(it).exists()),
    );
    if !missing.is_empty() {
        return Err(Inability::MissingPrograms { programs: missing });
    }
    // Root in a container may still be refused them.
    run(Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "slave"])
        .args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]))
    .map(drop)
    .map_err(|error| Inability::NoNamespaces {
        detail: error.to_string(),
    })
}
