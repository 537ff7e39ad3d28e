use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::{
    KekId, SealError, SecretKey, WrappedKey, create_private, key::random, write_atomically,
};

/// Name of the file that names the key to wrap with.
const CURRENT: &str = "current";
/// A key file holds 44 characters; anything much longer is not one and is not read.
const KEY_FILE_LIMIT: u64 = 1024;

/// Holder of the key encryption keys: it wraps and unwraps, and keys never leave it.
///
/// Implementations may block; callers are expected to hold on to what they unwrapped.
pub trait KeyProvider: Send + Sync + fmt::Debug {
    /// The key that new data is wrapped with.
    fn current(&self) -> KekId;

    /// Wraps `key` under the current key. `context` says what the key is for.
    ///
    /// # Errors
    /// [`SealError::Provider`] when the provider cannot be reached.
    fn wrap(&self, key: &SecretKey, context: &[u8]) -> Result<WrappedKey, SealError>;

    /// Unwraps what was wrapped with the same `context`.
    ///
    /// # Errors
    /// [`SealError::UnknownKek`], [`SealError::WrongKek`], [`SealError::NotAuthentic`], or
    /// [`SealError::Provider`] when the provider cannot be reached.
    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<SecretKey, SealError>;
}

/// Keys in a directory, in the shape of a mounted Kubernetes Secret:
///
/// ```text
/// current      the id of the key that wraps new data, e.g. `2026-11`
/// 2026-11.key  that key: base64 of 32 bytes
/// 2026-05.key  an older one, kept for as long as anything is wrapped under it
/// ```
///
/// Files that are not `current` or `*.key` are ignored, so are hidden ones (a mounted Secret has `..data`).
pub struct DirectoryProvider {
    path: PathBuf,
    keys: RwLock<Arc<Keys>>,
}

struct Keys {
    current: KekId,
    by_id: BTreeMap<KekId, SecretKey>,
}

impl DirectoryProvider {
    /// Reads all keys of the directory `path`.
    ///
    /// # Errors
    /// [`SealError::Provider`] saying which file is missing or wrong and what it should hold.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, SealError> {
        let path = path.into();
        let keys = RwLock::new(Arc::new(read_keys(&path)?));
        Ok(Self { path, keys })
    }

    /// Makes the directory `path` with one new random key when it holds no `current`, then loads it. For a broker that
    /// runs alone: anywhere else the keys come from outside the machine.
    ///
    /// The directory is private (0700), the files are 0600 and synced before this returns.
    ///
    /// # Errors
    /// As [`DirectoryProvider::load`], or [`SealError::Io`] when nothing can be written there.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, SealError> {
        let path = path.into();
        let io_error = |action| {
            let path = path.clone();
            move |source| SealError::Io {
                action,
                path,
                source,
            }
        };
        create_private(&path).map_err(io_error("create the key directory"))?;
        if !path.join(CURRENT).exists() {
            let id = fresh_id()?;
            let key = SecretKey::generate()?;
            let text = Zeroizing::new(STANDARD.encode(key.as_bytes()));
            // The key first: `current` must never name a key that is not there.
            let file = path.join(format!("{id}.key"));
            write_atomically(&file, text.as_bytes(), 0o600).map_err(io_error("write a key to"))?;
            write_atomically(&path.join(CURRENT), format!("{id}\n").as_bytes(), 0o600)
                .map_err(io_error("write `current` to"))?;
        }
        Self::load(path)
    }

    /// Reads the directory again, after a key was added or another became current. On an error the keys that were
    /// loaded before stay in use.
    ///
    /// Returns whether anything changed.
    ///
    /// # Errors
    /// As [`DirectoryProvider::load`]. Also when a file holds another key than it did: what is sealed under the first one, which goes by its id, could not be opened
    /// after the next start. The key in memory stays in use then, and everything else is taken over.
    pub fn reload(&self) -> Result<bool, SealError> {
        let mut fresh = read_keys(&self.path)?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let mut replaced = None;
        for (id, key) in &keys.by_id {
            if let Some(other) = fresh.by_id.get_mut(id)
                && other.as_bytes() != key.as_bytes()
            {
                *other = key.clone();
                replaced = Some(id.clone());
            }
        }
        let same = keys.current == fresh.current
            && keys.by_id.len() == fresh.by_id.len()
            && keys
                .by_id
                .iter()
                .zip(&fresh.by_id)
                .all(|((id, key), (fresh_id, fresh_key))| {
                    id == fresh_id && key.as_bytes() == fresh_key.as_bytes()
                });
        *keys = Arc::new(fresh);
        match replaced {
            None => Ok(!same),
            Some(id) => Err(SealError::Provider {
                place: self.path.display().to_string(),
                reason: format!(
                    "`{id}.key` holds another key than before; the one in memory stays in use: restore it before this broker restarts, and give a new key a new name"
                ),
            }),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids of all keys that are loaded.
    #[must_use]
    pub fn ids(&self) -> Vec<KekId> {
        self.keys().by_id.keys().cloned().collect()
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn unknown(&self, kek: &KekId) -> SealError {
        SealError::UnknownKek {
            kek: kek.clone(),
            place: self.path.display().to_string(),
        }
    }
}

impl fmt::Debug for DirectoryProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryProvider")
            .field("path", &self.path)
            .field("current", &self.keys().current)
            .finish_non_exhaustive()
    }
}

impl KeyProvider for DirectoryProvider {
    fn current(&self) -> KekId {
        self.keys().current.clone()
    }

    fn wrap(&self, key: &SecretKey, context: &[u8]) -> Result<WrappedKey, SealError> {
        let keys = self.keys();
        let kek = keys
            .by_id
            .get(&keys.current)
            .ok_or_else(|| self.unknown(&keys.current))?;
        WrappedKey::wrap(keys.current.clone(), kek, key, context)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<SecretKey, SealError> {
        let mut keys = self.keys();
        if !keys.by_id.contains_key(&wrapped.kek) {
            // The key may have been added since; if the directory cannot be read now, the old answer stands. What is wrong is reported by whoever reads it regularly.
            drop(self.reload());
            keys = self.keys();
        }
        let kek = keys
            .by_id
            .get(&wrapped.kek)
            .ok_or_else(|| self.unknown(&wrapped.kek))?;
        wrapped.unwrap_with(kek, &self.path.display().to_string(), context)
    }
}

/// A name for a generated key that no other key has.
fn fresh_id() -> Result<KekId, SealError> {
    let suffix: [u8; 4] = random()?;
    KekId::new(format!("kek-{:08x}", u32::from_be_bytes(suffix)))
}

fn read_keys(path: &Path) -> Result<Keys, SealError> {
    let refuse = |reason: String| SealError::Provider {
        place: path.display().to_string(),
        reason,
    };
    let entries = fs::read_dir(path).map_err(|error| {
        refuse(format!(
            "cannot read the directory ({error}); it must hold `{CURRENT}` and `<id>.key` files"
        ))
    })?;
    let mut by_id = BTreeMap::new();
    for entry in entries {
        let entry =
            entry.map_err(|error| refuse(format!("cannot list the directory ({error})")))?;
        let name = entry.file_name();
        let Some(id) = name
            .to_str()
            .filter(|name| !name.starts_with('.'))
            .and_then(|name| name.strip_suffix(".key"))
        else {
            continue;
        };
        let id = KekId::new(id).map_err(|error| refuse(error.to_string()))?;
        let key =
            read_key(&entry.path()).map_err(|reason| refuse(format!("`{id}.key` {reason}")))?;
        by_id.insert(id, key);
    }
    let current = read_limited(&path.join(CURRENT)).map_err(|error| {
        refuse(format!(
            "cannot read `{CURRENT}` ({error}); it must hold the id of the key to use"
        ))
    })?;
    let current = KekId::new(String::from_utf8_lossy(&current).trim())
        .map_err(|error| refuse(format!("`{CURRENT}`: {error}")))?;
    if !by_id.contains_key(&current) {
        let known: Vec<_> = by_id.keys().map(KekId::as_str).collect();
        return Err(refuse(format!(
            "`{CURRENT}` names `{current}`, but there is no `{current}.key` (keys found: {}); add it or correct `{CURRENT}`",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        )));
    }
    Ok(Keys { current, by_id })
}

/// A key file's key, or what is wrong with it; never its content.
fn read_key(path: &Path) -> Result<SecretKey, String> {
    let text =
        Zeroizing::new(read_limited(path).map_err(|error| format!("cannot be read ({error})"))?);
    let bytes = Zeroizing::new(
        STANDARD
            .decode(text.trim_ascii())
            .map_err(|_| "is not base64; it must hold base64 of 32 random bytes".to_owned())?,
    );
    let bytes: &[u8; SecretKey::LEN] = bytes.as_slice().try_into().map_err(|_| {
        format!(
            "holds {} bytes after base64, it must hold exactly {}",
            bytes.len(),
            SecretKey::LEN
        )
    })?;
    if bytes.iter().all(|byte| byte == &bytes[0]) {
        return Err("holds one repeated byte, which is no random key; generate one with `openssl rand -base64 32`".to_owned());
    }
    Ok(SecretKey::from_bytes(*bytes))
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    if length > KEY_FILE_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{length} bytes, at most {KEY_FILE_LIMIT} are expected"),
        ));
    }
    fs::read(path)
}

#[cfg(test)]
#[path = "provider_tests.rs"]
mod tests;
