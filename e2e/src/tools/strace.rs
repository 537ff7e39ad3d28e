//! System calls that fail.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::Background;
use crate::cluster::{Inability, command::installed};

/// Has the next `fdatasync` of a running process fail with EIO, or says why this machine cannot. What was injected is in `log`.
///
/// # Errors
/// When strace cannot be started.
pub fn fail_next_sync(process: u32, log: &Path) -> Result<Result<Background, Inability>> {
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        return Ok(Err(Inability::NotRoot { uid: uid.as_raw() }));
    }
    if !installed("strace") {
        return Ok(Err(Inability::MissingPrograms {
            programs: vec!["strace".to_owned()],
        }));
    }
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-p", &process.to_string()])
        .args(["-e", "trace=fdatasync"])
        .args(["-e", "inject=fdatasync:error=EIO:when=1"]);
    Ok(Ok(Background::start(&mut strace, log)?))
}
