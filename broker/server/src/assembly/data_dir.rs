//! The data directory: one process at a time, one broker for ever.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use palisade_security::Decoy;
use palisade_shard::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::error::StartError;

/// Whose data a directory holds, in `identity.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) cluster_id: String,
    pub(super) node_id: i32,
    /// Made with the directory: a broker that comes back with an empty volume is another one.
    pub(super) incarnation: Uuid,
}

/// A data directory in use; the lock goes with it.
#[derive(Debug)]
pub(super) struct DataDir {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    _lock: File,
}

impl DataDir {
    /// Makes or opens the directory and checks that it is ours.
    pub(super) fn open(path: &Path, cluster_id: &str, node_id: i32) -> Result<Self, StartError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error| StartError::Io {
                action,
                path,
                error,
            }
        };
        palisade_seal::create_private(path).map_err(failed("make", path))?;
        let lock_file = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_file)
            .map_err(failed("open", &lock_file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => {
                return Err(failed("lock", &lock_file)(error));
            }
        }
        let file = path.join("identity.toml");
        let identity = match fs::read_to_string(&file) {
            Ok(text) => toml::from_str::<Identity>(&text).map_err(|error| StartError::Config {
                path: file.clone(),
                reason: format!("not an identity: {error}; restore the directory whole"),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let identity = Identity {
                    cluster_id: cluster_id.to_owned(),
                    node_id,
                    incarnation: Uuid::new_v4(),
                };
                let text = toml::to_string(&identity).map_err(|error| StartError::Config {
                    path: file.clone(),
                    reason: error.to_string(),
                })?;
                palisade_seal::write_atomically(&file, text.as_bytes(), 0o600)
                    .map_err(failed("write", &file))?;
                identity
            }
            Err(error) => return Err(failed("read", &file)(error)),
        };
        if identity.cluster_id != cluster_id || identity.node_id != node_id {
            return Err(StartError::Identity {
                path: path.to_owned(),
                found: format!(
                    "broker {} of cluster {}",
                    identity.node_id, identity.cluster_id
                ),
                wanted: format!("broker {node_id} of cluster {cluster_id}"),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            identity,
            _lock: lock,
        })
    }

    /// This broker as a member of shards.
    pub(super) fn node(&self) -> NodeId {
        let [a, b, c, d, ..] = *self.identity.incarnation.as_bytes();
        NodeId::of(self.identity.node_id, u32::from_be_bytes([a, b, c, d]))
    }

    /// The secret behind the salts that users who do not exist seem to have. It must outlive restarts, for a salt that changes
    /// would tell that there is no such user.
    pub(super) fn decoy(&self) -> Result<Decoy, StartError> {
        let path = self.path.join("decoy.key");
        let mut key = Zeroizing::new([0; 32]);
        match fs::read(&path) {
            Ok(bytes) if bytes.len() == key.len() => key.copy_from_slice(&bytes),
            Ok(_) => {
                return Err(StartError::Config {
                    path,
                    reason: "not a key of 32 bytes: remove it to have a new one made".to_owned(),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                aws_lc_rs::rand::fill(key.as_mut()).map_err(|_| StartError::Random)?;
                palisade_seal::write_atomically(&path, key.as_ref(), 0o600).map_err(|error| {
                    StartError::Io {
                        action: "write",
                        path,
                        error,
                    }
                })?;
            }
            Err(error) => {
                return Err(StartError::Io {
                    action: "read",
                    path,
                    error,
                });
            }
        }
        Ok(Decoy::from_bytes(*key))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_directory_belongs_to_one_broker_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path, "events", 0).unwrap();
        let message = DataDir::open(&path, "events", 0).unwrap_err().to_string();
        assert!(
            message.contains("is in use by another process"),
            "{message}"
        );
        let incarnation = first.identity.incarnation;
        drop(first);
        assert_eq!(
            DataDir::open(&path, "events", 0)
                .unwrap()
                .identity
                .incarnation,
            incarnation
        );
        for (cluster, node) in [("other", 0), ("events", 1)] {
            let message = DataDir::open(&path, cluster, node).unwrap_err().to_string();
            assert!(
                message.contains("was written by broker 0 of cluster events"),
                "{message}"
            );
        }
    }
}
