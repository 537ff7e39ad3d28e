//! kubectl, with errors that carry what it said.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::tools::{Background, Outcome, run};

/// Longer than any `--timeout` that is given to kubectl here.
const LIMIT: Duration = Duration::from_secs(330);

/// kubectl for one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// kubectl by path and kubeconfig.
    #[must_use]
    pub fn new(binary: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { binary, kubeconfig }
    }

    /// The command line a person would type.
    #[must_use]
    pub fn shown(&self) -> String {
        format!(
            "{} --kubeconfig {}",
            self.binary.display(),
            self.kubeconfig.display()
        )
    }

    /// Runs it to its end, whatever its status.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<Outcome> {
        run(self.command().args(arguments), input.as_bytes(), LIMIT)
    }

    /// Runs it; what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.run(arguments, "")?.success()?.stdout)
    }

    /// Applies YAML on the server's side.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.run(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            yaml,
        )?
        .success()
        .map(drop)
    }

    /// An object, or a list of them, as JSON.
    ///
    /// # Errors
    /// When kubectl fails: for one when it does not exist.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ok(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// Waits for a condition, as `kubectl wait` understands it.
    ///
    /// # Errors
    /// When the time has passed.
    pub fn wait(
        &self,
        namespace: &str,
        condition: &str,
        objects: &[&str],
        seconds: u32,
    ) -> Result<()> {
        let (condition, timeout) = (
            format!("--for={condition}"),
            format!("--timeout={seconds}s"),
        );
        self.ok(&[&["-n", namespace, "wait", &condition, &timeout], objects].concat())
            .map(drop)
    }

    /// Starts it in the background, its output in a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn background(&self, arguments: &[&str], log: &Path) -> Result<Background> {
        Background::start(self.command().args(arguments), log)
    }

    /// The status of a condition of an object and its message; empty when it is not there.
    ///
    /// # Errors
    /// When the object cannot be read.
    pub fn condition(
        &self,
        namespace: &str,
        object: &str,
        condition: &str,
    ) -> Result<(String, String, String)> {
        let json = self.json(&["-n", namespace, object])?;
        let found = json["status"]["conditions"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["type"] == condition));
        let text = |field: &str| {
            found
                .and_then(|one| one[field].as_str())
                .unwrap_or_default()
                .to_owned()
        };
        Ok((text("status"), text("reason"), text("message")))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }
}
