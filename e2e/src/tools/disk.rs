//! A small disk of our own, to be filled.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::run;
use crate::cluster::Inability;

const LIMIT: Duration = Duration::from_secs(20);
const CHUNK: usize = 1 << 16;

/// A tmpfs, unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs {
    directory: TempDir,
}

impl Tmpfs {
    /// Mounts a tmpfs of so many bytes, or says why this machine cannot.
    ///
    /// # Errors
    /// When mounting fails although we are root.
    pub fn mount(bytes: u64) -> Result<Result<Self, Inability>> {
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            return Ok(Err(Inability::NotRoot { uid: uid.as_raw() }));
        }
        let directory = tempfile::Builder::new()
            .prefix("palisade-disk-")
            .tempdir()?;
        let mut mount = Command::new("mount");
        mount
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={bytes},mode=0700"),
                "palisade-e2e",
            ])
            .arg(directory.path());
        run(&mut mount, b"", LIMIT)?.success()?;
        Ok(Ok(Self { directory }))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes zeros into `file` until only about `free` bytes are free.
    ///
    /// # Errors
    /// When less is free already, or the file cannot be written.
    pub fn fill(&self, file: &PathBuf, free: u64) -> Result<()> {
        let now = rustix::fs::statvfs(self.path()).context("cannot ask for the free space")?;
        let mut missing = (now.f_bavail * now.f_frsize)
            .checked_sub(free)
            .context("less is free already")?;
        let mut output = File::create(file)?;
        while missing > 0 {
            let length = missing.min(CHUNK as u64);
            match output.write_all(&[0; CHUNK][..usize::try_from(length)?]) {
                // Somebody else has written meanwhile.
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                written => written?,
            }
            missing -= length;
        }
        Ok(())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that still has a file open there must not leave the mount behind.
        let unmounted = run(
            Command::new("umount").arg("--lazy").arg(self.path()),
            b"",
            LIMIT,
        )
        .and_then(|outcome| {
            if outcome.status == 0 {
                Ok(())
            } else {
                bail!(outcome.text())
            }
        });
        if let Err(error) = unmounted {
            crate::progress::say(format_args!(
                "cannot unmount {}: {error:#}",
                self.path().display()
            ));
        }
    }
}
