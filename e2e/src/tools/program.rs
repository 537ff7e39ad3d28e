//! The programs under test.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};

use super::run;

/// A cold build on a slow machine.
const LIMIT: Duration = Duration::from_secs(3600);

/// Where a binary of this workspace is: what the environment variable says, or built here with the profile of this program.
///
/// # Errors
/// When it does not build.
pub fn program(package: &'static str, binary: &'static str, variable: &str) -> Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(binary) {
        return Ok(path.clone());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", package, "--bin", binary]);
    build
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let outcome = run(&mut build, b"", LIMIT)?.success()?;
    let path = outcome
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("cargo built no {binary}"))?;
    built.insert(binary, path.clone());
    Ok(path)
}
