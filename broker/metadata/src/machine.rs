//! The image as the state machine of shard 0: applied entries change it, readers follow it, a checkpoint makes it durable.
//!
//! The checkpoint is one sealed file, replaced whole:
//!
//! ```text
//! header      of FileKeys: magic `PALIMET1`, wrapped key, MAC
//! nonce   12
//! sealed      format u8 | term u64 | index u64 | image (Image::encode)      integers are big-endian
//! tag     16
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use palisade_seal::{
    FileKeys, FileKind, HEADER_LIMIT, KekId, NONCE_LEN, SealError, create_private, write_atomically,
};
use palisade_shard::{CheckpointError, Command, Incoming, LogPosition, Snapshot, StateMachine};
use tokio::sync::watch;

use crate::{Image, MetadataError, MetadataResponse};

const KIND: FileKind = FileKind(*b"PALIMET1");
const CONTEXT: &[u8] = b"metadata checkpoint v1";
const FORMAT: u8 = 1;
const FILE: &str = "checkpoint";
const MODE: u32 = 0o600;
/// Longest checkpoint that is written and read: what a cluster at all its limits needs, with room to spare.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// What a description begins with whose image comes in parts; its length, 8 bytes, follows. No image begins with it: a broker of the first version takes the
/// description for one, and refuses it.
const IN_PARTS: u8 = 128;
/// How much of an image is sent at once.
const PART: usize = 1 << 20;

/// Why the metadata cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory or file cannot be read.
    #[error("cannot read the metadata checkpoint `{}`: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The key is missing or wrong, or the file is damaged.
    #[error("cannot open the metadata checkpoint `{}`: {source}", file.display())]
    Seal {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: SealError,
    },
    /// What was sealed is no checkpoint.
    #[error("the metadata checkpoint `{}` is not usable: {reason}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What the checkpoint on disk needs, and what was destroyed in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Every KEK that is needed for the file or for a key in it.
    pub keks: BTreeSet<KekId>,
    /// Topics that were deleted, but whose keys the file still holds: the next checkpoint is without them.
    pub shredding: u64,
    /// Topics that were deleted since the start and whose keys no checkpoint here holds any more.
    pub shredded: u64,
}

/// The state machine of shard 0.
#[derive(Debug)]
pub struct MetadataMachine {
    image: Image,
    applied: Option<LogPosition>,
    /// What the file on disk covers.
    durable: Option<LogPosition>,
    /// The KEK that the file on disk is under.
    kek: Option<KekId>,
    report: CheckpointReport,
    file: PathBuf,
    keys: Arc<FileKeys>,
    published: watch::Sender<Arc<Image>>,
}

impl MetadataMachine {
    /// Opens the checkpoint in `directory` (made when absent), or begins empty; the receiver follows the image from then on.
    ///
    /// # Errors
    /// [`OpenError`] with the file and what is wrong with it. A damaged checkpoint is never taken for an empty cluster.
    pub fn open(
        directory: impl AsRef<Path>,
        keys: Arc<FileKeys>,
    ) -> Result<(Self, watch::Receiver<Arc<Image>>), OpenError> {
        let file = directory.as_ref().join(FILE);
        create_private(directory.as_ref()).map_err(|source| OpenError::Io {
            file: file.clone(),
            source,
        })?;
        let mut report = CheckpointReport::default();
        let (applied, image, kek) = match read(&file)? {
            Some(bytes) => {
                let (position, image, kek) = unseal(&file, &keys, &bytes)?;
                report.keks = needed(&image, &kek);
                (Some(position), image, Some(kek))
            }
            None => (None, Image::new(), None),
        };
        let (published, receiver) = watch::channel(Arc::new(image.clone()));
        let machine = Self {
            image,
            applied,
            durable: applied,
            kek,
            report,
            file,
            keys,
            published,
        };
        Ok((machine, receiver))
    }

    /// The image now.
    #[must_use]
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// What the checkpoint on disk needs, and what was destroyed in it.
    #[must_use]
    pub const fn report(&self) -> &CheckpointReport {
        &self.report
    }

    /// Makes `image` durable as the state at `at`. Returns the KEK that the file is under.
    fn write(&self, at: LogPosition, image: &Image) -> Result<KekId, CheckpointError> {
        let file = self.file.display();
        let (kek, bytes) = self
            .seal(at, image)
            .and_then(|(kek, bytes)| {
                // What is longer could not be opened again.
                check_length(bytes.len() as u64)?;
                Ok((kek, bytes))
            })
            .map_err(|reason| CheckpointError::Write(format!("`{file}`: {reason}")))?;
        write_atomically(&self.file, &bytes, MODE)
            .map_err(|error| CheckpointError::Write(format!("`{file}`: {error}")))?;
        Ok(kek)
    }

    /// Takes note that the state at `at`, without the keys of `deleted` topics, is on disk.
    fn written(&mut self, at: LogPosition, kek: KekId, deleted: u64) {
        self.durable = Some(at);
        self.report.keks = needed(&self.image, &kek);
        self.report.shredding = 0;
        self.report.shredded = self.report.shredded.saturating_add(deleted);
        self.kek = Some(kek);
    }

    fn seal(&self, at: LogPosition, image: &Image) -> Result<(KekId, Vec<u8>), String> {
        let mut body = vec![FORMAT];
        body.extend_from_slice(&at.term.to_be_bytes());
        body.extend_from_slice(&at.index.to_be_bytes());
        body.extend(image.encode().map_err(|error| error.to_string())?);
        let sealed = |error: SealError| error.to_string();
        let (key, mut bytes) = self.keys.create(KIND, CONTEXT).map_err(sealed)?;
        let kek = FileKeys::kek_of(KIND, &bytes).map_err(sealed)?;
        let (nonce, tag) = key
            .sealer()
            .and_then(|mut sealer| sealer.seal(CONTEXT, &mut body))
            .map_err(sealed)?;
        bytes.extend_from_slice(&nonce);
        bytes.append(&mut body);
        bytes.extend_from_slice(&tag);
        Ok((kek, bytes))
    }
}

impl StateMachine for MetadataMachine {
    type Response = Result<MetadataResponse, MetadataError>;

    fn apply(&mut self, at: LogPosition, command: Command) -> Self::Response {
        self.applied = Some(at);
        let outcome = if command.payload.is_empty() {
            self.image.apply_entry(&command.meta)
        } else {
            Err(MetadataError::Malformed(
                "a metadata command has no payload".to_owned(),
            ))
        };
        match &outcome {
            Ok(response) => {
                if matches!(response, MetadataResponse::TopicDeleted { .. }) {
                    self.report.shredding = self.report.shredding.saturating_add(1);
                }
                self.published.send_replace(Arc::new(self.image.clone()));
            }
            // A newer broker wrote it: who goes on without it has other metadata than the others from here on, and nobody would see it.
            Err(error @ MetadataError::Format(_)) => {
                let reason = format!(
                    "entry {} of the metadata cannot be read: {error}; run a version of the broker that can",
                    at.index
                );
                tracing::error!("{reason}");
                resume_unwind(Box::new(reason))
            }
            Err(error @ MetadataError::Malformed(_)) => {
                tracing::error!(index = at.index, %error, "skipped an entry of the metadata log");
            }
            Err(error) => tracing::debug!(index = at.index, %error, "refused a metadata command"),
        }
        outcome
    }

    fn blank(&mut self, at: LogPosition) {
        self.applied = Some(at);
    }

    fn applied(&self) -> Option<LogPosition> {
        self.applied
    }

    fn checkpoint(&mut self) -> Result<LogPosition, CheckpointError> {
        let at = self.applied.ok_or_else(|| {
            CheckpointError::Write("nothing has been applied to the metadata yet".to_owned())
        })?;
        if self.durable != Some(at) || self.kek.as_ref() != Some(&self.keys.current_kek()) {
            let kek = self.write(at, &self.image)?;
            self.written(at, kek, self.report.shredding);
        }
        Ok(at)
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, CheckpointError> {
        let bytes = self.image.encode().map_err(unusable)?;
        Ok(Arc::new(ImageSnapshot(bytes.into())))
    }

    fn receive(&self, description: Bytes) -> Result<(Box<dyn Incoming>, Bytes), CheckpointError> {
        let incoming = IncomingImage::begin(&description)?;
        Ok((Box::new(incoming), Bytes::new()))
    }

    fn install(
        &mut self,
        at: LogPosition,
        incoming: Box<dyn Incoming>,
    ) -> Result<(), CheckpointError> {
        let incoming: Box<IncomingImage> = incoming
            .into_any()
            .downcast()
            .map_err(|_| unusable("it is not one of the metadata"))?;
        let image = incoming
            .image
            .ok_or_else(|| unusable("it was not received to its end"))?;
        let kek = self.write(at, &image)?;
        let known = self.image.topics.iter();
        let gone = known.filter(|topic| image.topics.get(topic.id).is_none());
        let deleted = self.report.shredding.saturating_add(gone.count() as u64);
        self.published.send_replace(Arc::new(image.clone()));
        self.image = image;
        self.applied = Some(at);
        self.written(at, kek, deleted);
        Ok(())
    }
}

fn unusable(reason: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Write(format!("the metadata snapshot is not usable: {reason}"))
}

/// The encoded image.
struct ImageSnapshot(Bytes);

impl Snapshot for ImageSnapshot {
    fn description(&self) -> Bytes {
        let mut description = vec![IN_PARTS];
        description.extend_from_slice(&(self.0.len() as u64).to_be_bytes());
        description.into()
    }

    /// The cursor counts bytes.
    fn chunk(&self, _have: &[u8], cursor: u64) -> Result<Option<(Bytes, u64)>, CheckpointError> {
        let length = self.0.len();
        let begin = usize::try_from(cursor).ok().filter(|at| *at <= length);
        let begin = begin.ok_or_else(|| unusable("its cursor lies outside of it"))?;
        let end = begin.saturating_add(PART).min(length);
        let part = self.0.slice(begin..end);
        Ok((begin < end).then_some((part, end as u64)))
    }
}

/// An image that is being received.
struct IncomingImage {
    /// How long it is, as was announced.
    length: u64,
    /// What has come of it. Grows with what comes, not by what was announced.
    bytes: Vec<u8>,
    /// The image, when all has come: what is damaged is refused before anything is replaced.
    image: Option<Image>,
}

impl IncomingImage {
    fn begin(description: &[u8]) -> Result<Self, CheckpointError> {
        let (length, image) = match description.split_first() {
            Some((&IN_PARTS, length)) => {
                let Some((length, [])) = length.split_first_chunk::<8>() else {
                    return Err(unusable("its length is not 8 bytes"));
                };
                let length = u64::from_be_bytes(*length);
                check_length(length).map_err(unusable)?;
                (length, None)
            }
            // A broker of the first version sends the image itself.
            _ => (0, Some(Image::decode(description).map_err(unusable)?)),
        };
        Ok(Self {
            length,
            bytes: Vec::new(),
            image,
        })
    }
}

impl Incoming for IncomingImage {
    fn chunk(&mut self, part: Bytes) -> Result<(), CheckpointError> {
        let have = self.bytes.len().saturating_add(part.len()) as u64;
        if have > self.length {
            return Err(unusable("it is longer than was announced"));
        }
        self.bytes.extend_from_slice(&part);
        if have == self.length {
            let image = Image::decode(&self.bytes).map_err(unusable)?;
            self.bytes = Vec::new();
            self.length = 0;
            self.image = Some(image);
        }
        Ok(())
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

/// Whether so many bytes are not too many to be written, and read again.
fn check_length(bytes: u64) -> Result<(), String> {
    if bytes > MAX_FILE_BYTES {
        return Err(format!(
            "{bytes} bytes, at most {MAX_FILE_BYTES} are written"
        ));
    }
    Ok(())
}

fn read(file: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    let failed = |source| OpenError::Io {
        file: file.to_owned(),
        source,
    };
    match fs::metadata(file) {
        Ok(found) => {
            check_length(found.len()).map_err(|reason| OpenError::Content {
                file: file.to_owned(),
                reason,
            })?;
            fs::read(file).map(Some).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// The KEKs that are needed for a checkpoint of `image` under `kek`.
fn needed(image: &Image, kek: &KekId) -> BTreeSet<KekId> {
    let keys = image.count_keks().into_keys();
    keys.chain([kek.clone()]).collect()
}

fn unseal(
    file: &Path,
    keys: &FileKeys,
    bytes: &[u8],
) -> Result<(LogPosition, Image, KekId), OpenError> {
    let seal = |source| OpenError::Seal {
        file: file.to_owned(),
        source,
    };
    let content = |reason: &str| OpenError::Content {
        file: file.to_owned(),
        reason: reason.to_owned(),
    };
    let header = bytes.get(..HEADER_LIMIT).unwrap_or(bytes);
    let (key, header_len) = keys.open(KIND, CONTEXT, header).map_err(seal)?;
    let kek = FileKeys::kek_of(KIND, header).map_err(seal)?;
    let (nonce, sealed) = bytes
        .get(header_len..)
        .and_then(|rest| rest.split_first_chunk::<NONCE_LEN>())
        .ok_or_else(|| content("it ends within its header"))?;
    let body = key.open(*nonce, CONTEXT, sealed).map_err(seal)?;
    let short = || content("it is shorter than a position");
    let (format, rest) = body.split_first().ok_or_else(short)?;
    if *format != FORMAT {
        return Err(content("it was written by a newer version of the broker"));
    }
    let (term, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (index, image) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let position = LogPosition {
        term: u64::from_be_bytes(*term),
        index: u64::from_be_bytes(*index),
    };
    let image = Image::decode(image).map_err(|error| content(&error.to_string()))?;
    Ok((position, image, kek))
}

#[cfg(test)]
mod tests;
