//! Looking for plaintext on a disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The regular files below `directory` that contain one of the `markers` as bytes.
///
/// # Errors
/// When something below `directory` cannot be read: what was not looked at is not clean.
pub fn files_containing(directory: &Path, markers: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let kind = fs::symlink_metadata(&path)
            .with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.is_dir() {
            for entry in
                fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?
            {
                pending.push(entry?.path());
            }
        } else if kind.is_file() {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if markers
                .iter()
                .any(|marker| contains(&bytes, marker.as_bytes()))
            {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_marker_is_found_wherever_it_lies() {
        let directory = tempfile::tempdir().unwrap();
        let nested = directory.path().join("a/b");
        fs::create_dir_all(&nested).unwrap();
        fs::write(nested.join("clean"), b"nothing here").unwrap();
        fs::write(
            nested.join("leak"),
            [&[0, 255, 7][..], b"marker", &[9]].concat(),
        )
        .unwrap();
        assert_eq!(
            files_containing(directory.path(), &["marker"]).unwrap(),
            [nested.join("leak")]
        );
    }
}
