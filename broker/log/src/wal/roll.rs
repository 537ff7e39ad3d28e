//! Beginning a file: header and first batch are durable before the file gets its name.

use std::{io, sync::Arc};

use palisade_seal::{FileKey, FileKeys, KekId, SealError};

use super::{
    BLOCK, KIND, WalError, WalOptions, WalRecord, batch, blocks, context,
    pool::{NoSpare, Spare},
};
use crate::{
    frame::FrameWriter,
    fs::{LogFile, is_full},
};

/// Why something was not written.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no space.
    Full,
    /// No key, or no file could be made; the log itself is intact.
    Refused(String),
    /// What is on the disk is unknown.
    Broken(io::Error),
    /// The log is being closed.
    Closed,
}

impl Trouble {
    pub(super) fn to_error(&self) -> WalError {
        match self {
            Self::Full => WalError::Full,
            Self::Refused(reason) => WalError::Failed(reason.clone()),
            Self::Broken(error) => WalError::Failed(error.to_string()),
            Self::Closed => WalError::Closed,
        }
    }
}

impl From<SealError> for Trouble {
    fn from(error: SealError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<NoSpare> for Trouble {
    fn from(reason: NoSpare) -> Self {
        match reason {
            NoSpare::Full => Self::Full,
            NoSpare::Failed(reason) => Self::Refused(reason),
            NoSpare::Closed => Self::Closed,
        }
    }
}

/// For everything but syncs: a write that found no space has written nothing that counts.
impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        if is_full(&error) {
            Self::Full
        } else {
            Self::Broken(error)
        }
    }
}

/// The file being written.
pub(super) struct Current {
    pub(super) number: u64,
    pub(super) file: Arc<dyn LogFile>,
    pub(super) length: u64,
    /// Where the next frame goes.
    pub(super) position: u64,
    /// A part of a frame may stand there, because there was no space for the rest.
    pub(super) is_soiled: bool,
    pub(super) frames: FrameWriter,
}

/// A file that was begun, and the KEK that its header is under.
pub(super) struct Begun {
    pub(super) current: Current,
    pub(super) kek: KekId,
}

impl Current {
    pub(super) fn new(
        options: &WalOptions,
        key: &FileKey,
        number: u64,
        file: Arc<dyn LogFile>,
        length: u64,
        position: u64,
    ) -> Result<Self, SealError> {
        Ok(Self {
            number,
            file,
            length,
            position,
            is_soiled: false,
            frames: FrameWriter::new(key, options.limits())?,
        })
    }
}

/// Makes `spare` the file with this `number`, whose first batch has this `sequence` and holds `state`.
pub(super) fn begin<'a>(
    options: &WalOptions,
    keys: &FileKeys,
    spare: &Spare,
    number: u64,
    sequence: u64,
    state: impl IntoIterator<Item = &'a WalRecord>,
) -> Result<Begun, Trouble> {
    let (key, mut bytes) = keys.create(KIND, &context(number))?;
    let kek = FileKeys::kek_of(KIND, &bytes)?;
    bytes.resize(BLOCK as usize, 0);
    let file = Arc::clone(&spare.file);
    let mut current = Current::new(options, &key, number, file, spare.length, BLOCK)?;

    let mut meta = Vec::new();
    batch::begin(&mut meta, sequence);
    let mut count = 0usize;
    for record in state {
        batch::push(&mut meta, record);
        count = count.saturating_add(1);
    }
    batch::finish(&mut meta, count);
    let frame = current.frames.append(&mut bytes, BLOCK, [], &meta)?;
    let end = BLOCK.saturating_add(blocks(frame as u64));
    if end > spare.length {
        return Err(Trouble::Refused(format!(
            "the state of all shards takes {} bytes, a file has {}",
            meta.len(),
            spare.length
        )));
    }
    bytes.resize(usize::try_from(end).unwrap_or(usize::MAX), 0);

    let path = options.path_of(number);
    spare.file.write_all_at(&bytes, 0)?;
    spare.file.sync_data().map_err(Trouble::Broken)?;
    options.fs.rename(&spare.path, &path)?;
    options.fs.sync_dir(&options.dir).map_err(Trouble::Broken)?;
    current.position = end;
    Ok(Begun { current, kek })
}
