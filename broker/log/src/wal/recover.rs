//! Reading the files back. What is a torn tail and what is corruption is decided here, as [`super`] explains.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use palisade_seal::{FileKey, FileKeys, HEADER_LIMIT, KekId};

use super::{BLOCK, KIND, WalOptions, WalRecord, batch, blocks, context};
use crate::{
    LogError, ShardId,
    frame::{self, FrameError, FrameHead, FrameLimits, HEAD_LEN},
    fs::{LogFile, numbered},
};

/// A file of the log and what is needed in it.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn LogFile>,
    /// The KEK that its header is under.
    pub(super) kek: KekId,
    /// For each shard the highest index of a record in the file.
    pub(super) highest: BTreeMap<ShardId, u64>,
}

impl Span {
    pub(super) fn new(path: PathBuf, file: Arc<dyn LogFile>, kek: KekId) -> Self {
        Self {
            path,
            file,
            kek,
            highest: BTreeMap::new(),
        }
    }

    /// Nothing of the shard in it is needed any more.
    pub(super) fn forget(&mut self, shard: ShardId) {
        self.highest.remove(&shard);
    }

    pub(super) fn note(&mut self, record: &WalRecord) {
        if !record.is_sticky() {
            let highest = self.highest.entry(record.shard).or_default();
            *highest = record.index.max(*highest);
        }
    }
}

/// The end of the last file, where writing goes on.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) number: u64,
    pub(super) key: FileKey,
    pub(super) position: u64,
    pub(super) length: u64,
}

/// All that is in the files.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) spans: Vec<Span>,
    /// Not sticky ones, in order, released or not.
    pub(super) records: Vec<WalRecord>,
    pub(super) sticky: BTreeMap<(ShardId, u8), WalRecord>,
    pub(super) next_sequence: u64,
    /// `None` when there are no files.
    pub(super) tail: Option<Tail>,
}

impl Recovered {
    fn take(&mut self, span: &mut Span, records: Vec<WalRecord>) {
        for record in records {
            if record.kind == WalRecord::FORGOTTEN {
                let shard = record.shard;
                span.forget(shard);
                self.spans.iter_mut().for_each(|span| span.forget(shard));
                self.sticky.retain(|(other, _), _| *other != shard);
                self.records.retain(|other| other.shard != shard);
                continue;
            }
            span.note(&record);
            if record.is_sticky() {
                self.sticky.insert((record.shard, record.kind), record);
            } else {
                self.records.push(record);
            }
        }
    }
}

/// Reads the files among `names`.
pub(super) fn recover(
    options: &WalOptions,
    keys: &FileKeys,
    names: &[String],
) -> Result<Recovered, LogError> {
    let mut recovered = Recovered::default();
    let files = numbered(names, "wal-", ".log");
    let Some((last, _)) = files.last() else {
        return Ok(recovered);
    };
    let last = *last;
    let mut previous: Option<(u64, PathBuf, u64)> = None;
    for (number, name) in &files {
        let number = *number;
        let path = options.dir.join(name);
        if let Some((before, _, _)) = &previous
            && before.checked_add(1) != Some(number)
        {
            return Err(corrupt(
                &options.path_of(before.saturating_add(1)),
                0,
                "the file is missing, though older and newer ones are there",
            ));
        }
        let reader = Reader::open(options, keys, number, path)?;
        let end = reader.read(number == last, previous.as_ref(), &mut recovered)?;
        previous = Some((number, options.dir.join(name), end));
    }
    Ok(recovered)
}

struct Reader {
    number: u64,
    path: PathBuf,
    file: Arc<dyn LogFile>,
    length: u64,
    key: FileKey,
    kek: KekId,
    limits: FrameLimits,
}

impl Reader {
    fn open(
        options: &WalOptions,
        keys: &FileKeys,
        number: u64,
        path: PathBuf,
    ) -> Result<Self, LogError> {
        let file = options
            .fs
            .open(&path)
            .map_err(LogError::io("open", &path))?;
        let length = file
            .len()
            .map_err(LogError::io("read the length of", &path))?;
        let mut header = [0u8; HEADER_LIMIT];
        let read = file
            .read_full_at(&mut header, 0)
            .map_err(LogError::io("read", &path))?;
        let header = header.get(..read).unwrap_or_default();
        let (key, _) = keys
            .open(KIND, &context(number), header)
            .map_err(LogError::header(&path))?;
        let kek = FileKeys::kek_of(KIND, header).map_err(LogError::header(&path))?;
        Ok(Self {
            number,
            path,
            file,
            length,
            key,
            kek,
            // Files that were made with a larger size hold larger batches.
            limits: options.limits_of(length),
        })
    }

    /// Reads all batches into `recovered`; returns where they end.
    fn read(
        self,
        is_last: bool,
        previous: Option<&(u64, PathBuf, u64)>,
        recovered: &mut Recovered,
    ) -> Result<u64, LogError> {
        let mut span = Span::new(self.path.clone(), Arc::clone(&self.file), self.kek.clone());
        let mut position = BLOCK;
        let problem = loop {
            let frame = match self.frame(position)? {
                Ok(frame) => frame,
                Err(problem) => {
                    self.check_end(position, is_last, &problem)?;
                    break problem;
                }
            };
            let (sequence, records) = batch::decode(&frame.meta, frame.payload)
                .map_err(|reason| corrupt(&self.path, position, reason))?;
            match previous {
                // The oldest file begins wherever the ones before it were released.
                None if position == BLOCK => recovered.next_sequence = sequence,
                Some((_, path, end))
                    if position == BLOCK && sequence != recovered.next_sequence =>
                {
                    return Err(corrupt(
                        path,
                        *end,
                        format!(
                            "batches {} to {} are missing",
                            recovered.next_sequence,
                            sequence.saturating_sub(1)
                        ),
                    ));
                }
                _ if sequence != recovered.next_sequence => {
                    return Err(corrupt(
                        &self.path,
                        position,
                        format!(
                            "batch {sequence} is where batch {} belongs",
                            recovered.next_sequence
                        ),
                    ));
                }
                _ => {}
            }
            recovered.next_sequence = sequence.saturating_add(1);
            recovered.take(&mut span, records);
            position = position.saturating_add(blocks(frame.length));
        };
        recovered.spans.push(span);
        if is_last {
            // What was read may have been in the page cache only, when the process ended and the machine did not.
            let fits = position.saturating_add(BLOCK) <= self.length;
            if fits && !matches!(problem, FrameError::None) {
                // Nothing may ever be written over what was cut off, and then it would stand at the end of a file that is not the last.
                self.file
                    .write_all_at(&[0; BLOCK as usize], position)
                    .map_err(LogError::io("write", &self.path))?;
            }
            self.file
                .sync_data()
                .map_err(LogError::io("sync", &self.path))?;
            recovered.tail = Some(Tail {
                number: self.number,
                key: self.key,
                position,
                length: self.length,
            });
        }
        Ok(position)
    }

    /// Decides what it means that no batch can be read at `position`.
    fn check_end(
        &self,
        position: u64,
        is_last: bool,
        problem: &FrameError,
    ) -> Result<(), LogError> {
        if position == BLOCK {
            // The first batch was durable before the file got its name.
            return Err(corrupt(
                &self.path,
                position,
                format!("its first batch: {problem}"),
            ));
        }
        if !is_last {
            // Whether batches are missing shows in the number of the next file's first one.
            return match problem {
                FrameError::None => Ok(()),
                _ => Err(corrupt(&self.path, position, problem.to_string())),
            };
        }
        if let Some(later) = self.find_frame(position.saturating_add(BLOCK))? {
            return Err(corrupt(
                &self.path,
                position,
                format!("{problem}, but a later batch is readable at byte {later}"),
            ));
        }
        if !matches!(problem, FrameError::None) {
            tracing::warn!(
                file = %self.path.display(),
                offset = position,
                "cut off a batch that a crash left unfinished; it was never acknowledged"
            );
        }
        Ok(())
    }

    /// The first place from `position` on where a frame of this file is readable.
    fn find_frame(&self, position: u64) -> Result<Option<u64>, LogError> {
        const CHUNK: usize = 256 * BLOCK as usize;
        let mut chunk = vec![0u8; CHUNK];
        let mut start = position;
        while start < self.length {
            let read = self
                .file
                .read_full_at(&mut chunk, start)
                .map_err(LogError::io("read", &self.path))?;
            let blocks = chunk.get(..read).unwrap_or_default().chunks(BLOCK as usize);
            for (at, block) in (start..).step_by(BLOCK as usize).zip(blocks) {
                if block.starts_with(&self.key.marker()) && self.frame(at)?.is_ok() {
                    return Ok(Some(at));
                }
            }
            start = start.saturating_add(CHUNK as u64);
        }
        Ok(None)
    }

    /// The frame at `position`, or why there is none.
    fn frame(&self, position: u64) -> Result<Result<Frame, FrameError>, LogError> {
        let mut head = [0u8; HEAD_LEN];
        let read = self
            .file
            .read_full_at(&mut head, position)
            .map_err(LogError::io("read", &self.path))?;
        let head = match FrameHead::parse(
            &self.key,
            position,
            head.get(..read).unwrap_or_default(),
            self.limits,
        ) {
            Ok(head) => head,
            Err(problem) => return Ok(Err(problem)),
        };
        let want = head.total_len();
        let have = usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX);
        if want > have {
            return Ok(Err(FrameError::Cut { have, want }));
        }
        let mut bytes = vec![0u8; want];
        let read = self
            .file
            .read_full_at(&mut bytes, position)
            .map_err(LogError::io("read", &self.path))?;
        bytes.truncate(read);
        Ok(frame::open(&self.key, &head, &bytes).map(|meta| Frame {
            meta,
            length: want as u64,
            payload: Bytes::from(bytes).slice(head.payload_range()),
        }))
    }
}

struct Frame {
    meta: Vec<u8>,
    payload: Bytes,
    length: u64,
}

fn corrupt(file: &Path, offset: u64, reason: impl Into<String>) -> LogError {
    LogError::Corrupt {
        file: file.to_path_buf(),
        offset,
        reason: reason.into(),
    }
}
