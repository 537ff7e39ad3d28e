//! Where the state of clusters is kept.

use std::fs;
use std::path::PathBuf;

use super::ClusterError;

/// `${XDG_STATE_HOME:-~/.local/state}/palisade`, which is made.
pub(crate) fn state() -> Result<PathBuf, ClusterError> {
    let base = match std::env::var_os("XDG_STATE_HOME").filter(|it| !it.is_empty()) {
        Some(directory) => PathBuf::from(directory),
        None => std::env::var_os("HOME")
            .map(|home| PathBuf::from(home).join(".local/state"))
            .ok_or_else(|| {
                ClusterError::Invalid("neither XDG_STATE_HOME nor HOME is set".to_owned())
            })?,
    };
    let directory = base.join("palisade");
    fs::create_dir_all(&directory).map_err(ClusterError::io(&directory))?;
    Ok(directory)
}
