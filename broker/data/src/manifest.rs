//! The manifest of a shard: what its checkpoint covers, sealed in one file that is replaced as a whole.
//!
//! ```text
//! manifest
//!   header     palisade-seal's file header, kind `PALIMAN1`, bound to the shard
//!   frame      palisade-log's frame, no payload; its meta is format u8, then postcard of the manifest
//! ```

use std::path::{Path, PathBuf};

use palisade_log::{
    LogError, ShardId,
    frame::{self, FrameError, FrameHead, FrameLimits, FrameWriter},
    fs::FileSystem,
    segment::PartitionState,
};
use palisade_seal::{FileKeys, FileKind, KekId};
use serde::{Deserialize, Serialize};

use crate::{command::Key, epochs::Epochs, producers::Producers};

const KIND: FileKind = FileKind(*b"PALIMAN1");
/// 2: partitions know when they were made, and have numbered directories.
const FORMAT: u8 = 2;
/// Far above what partitions, producers and offsets of one shard come to.
const LIMITS: FrameLimits = FrameLimits {
    meta: 1 << 30,
    payload: 0,
};
const NAME: &str = "manifest";
const NEW_NAME: &str = "manifest.new";

/// What a shard's checkpoint covers.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Term and index of the last command in it.
    pub(crate) applied: Option<(u64, u64)>,
    pub(crate) partitions: Vec<PartitionManifest>,
    /// Committed offsets, as the coordinator encodes them.
    pub(crate) offsets: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartitionManifest {
    pub(crate) key: Key,
    pub(crate) seen: u64,
    /// Index of the command that made it.
    pub(crate) created: u64,
    /// Number of its directory on this broker.
    pub(crate) dir: u64,
    pub(crate) log: PartitionState,
    pub(crate) producers: Producers,
    pub(crate) epochs: Epochs,
}

/// Replaces the manifest in `dir`; durable when this returns. Returns the KEK that it is under.
pub(crate) fn store(
    fs: &dyn FileSystem,
    keys: &FileKeys,
    dir: &Path,
    shard: ShardId,
    manifest: &Manifest,
) -> Result<KekId, LogError> {
    let (path, new) = (dir.join(NAME), dir.join(NEW_NAME));
    let (key, mut bytes) = keys
        .create(KIND, &shard.0.to_be_bytes())
        .map_err(LogError::header(&path))?;
    let kek = FileKeys::kek_of(KIND, &bytes).map_err(LogError::header(&path))?;
    let meta = postcard::to_extend(manifest, vec![FORMAT])
        .map_err(|error| LogError::Invalid(format!("cannot encode a manifest: {error}")))?;
    let position = bytes.len() as u64;
    FrameWriter::new(&key, LIMITS)
        .and_then(|mut writer| writer.append(&mut bytes, position, [], &meta))
        .map_err(LogError::header(&path))?;
    match fs.remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(LogError::io("remove", &new)(error));
        }
        _ => {}
    }
    let file = fs.create(&new).map_err(LogError::io("create", &new))?;
    file.write_all_at(&bytes, 0)
        .map_err(LogError::io("write", &new))?;
    file.sync_data().map_err(LogError::io("sync", &new))?;
    fs.rename(&new, &path)
        .map_err(LogError::io("rename", &new))?;
    fs.sync_dir(dir).map_err(LogError::io("sync", dir))?;
    Ok(kek)
}

/// Reads the manifest of `dir`, and the KEK that it is under; `None` when there is none.
pub(crate) fn load(
    fs: &dyn FileSystem,
    keys: &FileKeys,
    dir: &Path,
    shard: ShardId,
) -> Result<Option<(Manifest, KekId)>, LogError> {
    let path = dir.join(NAME);
    let file = match fs.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io("open", &path)(error)),
    };
    let length = file.len().map_err(LogError::io("measure", &path))?;
    let corrupt = |offset: u64, reason: String| LogError::Corrupt {
        file: path.clone(),
        offset,
        reason,
    };
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= LIMITS.meta as usize)
        .ok_or_else(|| corrupt(0, format!("a manifest of {length} bytes is none")))?;
    let mut bytes = vec![0; length];
    let read = file
        .read_full_at(&mut bytes, 0)
        .map_err(LogError::io("read", &path))?;
    bytes.truncate(read);
    let (key, at) = keys
        .open(KIND, &shard.0.to_be_bytes(), &bytes)
        .map_err(LogError::header(&path))?;
    let kek = FileKeys::kek_of(KIND, &bytes).map_err(LogError::header(&path))?;
    let frame_bytes = bytes.get(at..).unwrap_or_default();
    let meta = FrameHead::parse(&key, at as u64, frame_bytes, LIMITS)
        .and_then(|head| frame::open(&key, &head, frame_bytes))
        .map_err(|error: FrameError| corrupt(at as u64, error.to_string()))?;
    match meta.split_first() {
        Some((&FORMAT, body)) => postcard::from_bytes(body)
            .map(|manifest| Some((manifest, kek)))
            .map_err(|error| corrupt(at as u64, error.to_string())),
        Some((format, _)) => Err(corrupt(
            at as u64,
            format!("format {format} was written by another version of the broker"),
        )),
        None => Err(corrupt(at as u64, "it is empty".to_owned())),
    }
}

/// Whether a name in a shard's directory is one of the manifest's.
pub(crate) fn is_manifest(name: &str) -> bool {
    name == NAME || name == NEW_NAME
}

/// The manifest's path, for messages.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}
