//! The one thread that writes: seals batches, writes them, makes them durable, and calls back.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use palisade_seal::FileKeys;

use super::{
    BLOCK, WalError, WalOptions, WalRecord, batch, blocks,
    pool::{self, Pool},
    queue::{Group, Queue, Work},
    recover::{Recovered, Span},
    roll::{self, Begun, Current, Trouble},
};
use crate::{LogError, ShardId, frame::FRAME_OVERHEAD};

/// The first file of a new log is small, so that a new broker serves at once; it is not used again.
const FIRST_FILE_BYTES: u64 = 4 << 20;
/// Buffers that a large batch has grown beyond this are given back.
const BUFFER_KEPT: usize = 8 << 20;
/// How often a pumped log tries again, at once, where others wait.
const PUMPED_TRIES: u32 = 3;

pub(super) struct Writer {
    options: WalOptions,
    keys: Arc<FileKeys>,
    queue: Arc<Queue>,
    pool: Arc<Pool>,
    current: Current,
    /// All files that are needed, the oldest first; the last one is being written.
    spans: VecDeque<Span>,
    /// The newest of each sticky kind, with how far each shard is released.
    sticky: BTreeMap<(ShardId, u8), WalRecord>,
    next_sequence: u64,
    /// Reused from batch to batch: the meta of a batch, and the whole frame.
    meta: Vec<u8>,
    buffer: Vec<u8>,
}

impl Writer {
    /// Continues what was recovered, or begins the first file; also returns the records that are not released.
    pub(super) fn start(
        options: WalOptions,
        keys: Arc<FileKeys>,
        recovered: Recovered,
        queue: Arc<Queue>,
        pool: Arc<Pool>,
    ) -> Result<(Self, Vec<WalRecord>), LogError> {
        let Recovered {
            spans,
            mut records,
            sticky,
            mut next_sequence,
            tail,
        } = recovered;
        records.retain(|record| !is_released(&sticky, record.shard, record.index));
        let state: Vec<_> = sticky
            .values()
            .filter(|record| record.kind != WalRecord::RELEASED)
            .cloned()
            .collect();
        records.splice(..0, state);

        let mut spans = VecDeque::from(spans);
        let current = match (tail, spans.back()) {
            (Some(tail), Some(span)) => Current::new(
                &options,
                &tail.key,
                tail.number,
                Arc::clone(&span.file),
                tail.length,
                tail.position,
            )
            .map_err(LogError::header(&span.path))?,
            _ => {
                let begun = first_file(&options, &keys, next_sequence)?;
                next_sequence = next_sequence.saturating_add(1);
                spans.push_back(Span::new(
                    options.path_of(begun.current.number),
                    Arc::clone(&begun.current.file),
                    begun.kek,
                ));
                begun.current
            }
        };
        let writer = Self {
            options,
            keys,
            queue,
            pool,
            current,
            spans,
            sticky,
            next_sequence,
            meta: Vec::new(),
            buffer: Vec::new(),
        };
        writer.count_files();
        Ok((writer, records))
    }

    /// Writes until the log is closed or broken.
    pub(super) fn run(mut self) {
        let queue = Arc::clone(&self.queue);
        while self.step(queue.take()) {}
    }

    /// Writes what is given; `false` when that was the last, or nothing can be written any more.
    pub(super) fn step(&mut self, work: Work) -> bool {
        let closed = work.closed;
        let end = catch_unwind(AssertUnwindSafe(|| {
            self.commit(work.groups)?;
            self.release(work.releases)?;
            if work.renew { self.renew() } else { Ok(()) }
        }))
        .unwrap_or_else(|_| {
            // Nobody would ever be called back again, so it must not pass in silence.
            let error = std::io::Error::other("a callback of the write-ahead log panicked");
            (self.options.on_failure)(&error);
            Err(error)
        });
        let error = match end {
            Ok(()) if !closed => return true,
            Ok(()) => WalError::Closed,
            Err(error) => WalError::Failed(error.to_string()),
        };
        self.pool.close();
        self.queue.fail(&error);
        false
    }

    /// Writes groups in as few batches as fit.
    fn commit(&mut self, groups: Vec<Group>) -> std::io::Result<()> {
        let most = self.options.batch_bytes.min(self.options.group_limit());
        let mut groups = groups.into_iter().peekable();
        while let Some(first) = groups.next() {
            let mut cost = first.cost();
            let mut batch = vec![first];
            while let Some(group) =
                groups.next_if(|group| cost.saturating_add(group.cost()) <= most)
            {
                cost = cost.saturating_add(group.cost());
                batch.push(group);
            }
            if let Err(error) = self.write_or_wait(batch) {
                for group in groups {
                    (group.done)(Err(WalError::Failed(error.to_string())));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes one batch and calls back, waiting for space with those who want that.
    fn write_or_wait(&mut self, mut batch: Vec<Group>) -> std::io::Result<()> {
        let mut tries = PUMPED_TRIES;
        loop {
            let trouble = match self.write(&batch) {
                Ok(()) => {
                    for group in batch {
                        (group.done)(Ok(()));
                    }
                    return Ok(());
                }
                Err(Trouble::Broken(error)) => {
                    // By default the process ends here, before anybody is told anything.
                    self.broken(&error);
                    for group in batch {
                        (group.done)(Err(WalError::Failed(error.to_string())));
                    }
                    return Err(error);
                }
                Err(trouble) => trouble,
            };
            let meanwhile = self.queue.take_unwilling();
            let give_up = meanwhile.closed || matches!(trouble, Trouble::Closed) || tries == 0;
            if self.options.pumped.is_some() {
                tries = tries.saturating_sub(1);
            }
            let (waiting, unwilling): (Vec<_>, Vec<_>) =
                batch.into_iter().partition(|group| group.waits && !give_up);
            for group in unwilling.into_iter().chain(meanwhile.groups) {
                (group.done)(Err(trouble.to_error()));
            }
            self.release(meanwhile.releases)?;
            if waiting.is_empty() {
                return Ok(());
            }
            batch = waiting;
            if self.options.pumped.is_none() {
                self.pool.wait();
            }
        }
    }

    /// Writes the records of `groups` as one batch and makes it durable.
    fn write(&mut self, groups: &[Group]) -> Result<(), Trouble> {
        let cost: usize = groups.iter().map(Group::cost).sum();
        let length = blocks((FRAME_OVERHEAD + batch::BATCH_OVERHEAD + cost) as u64);
        if self.current.position.saturating_add(length) > self.current.length {
            self.roll()?;
            if self.current.position.saturating_add(length) > self.current.length {
                return Err(Trouble::Refused(format!(
                    "{cost} bytes do not fit into a file beside the state of all shards"
                )));
            }
        }
        let records = || groups.iter().flat_map(|group| &group.records);
        batch::begin(&mut self.meta, self.next_sequence);
        let mut count = 0usize;
        for record in records() {
            batch::push(&mut self.meta, record);
            count = count.saturating_add(1);
        }
        batch::finish(&mut self.meta, count);
        self.buffer.clear();
        self.current.frames.append(
            &mut self.buffer,
            self.current.position,
            records().map(|record| &*record.payload),
            &self.meta,
        )?;
        self.buffer
            .resize(usize::try_from(length).unwrap_or(usize::MAX), 0);

        let file = &self.current.file;
        self.current.is_soiled = true;
        file.write_all_at(&self.buffer, self.current.position)?;
        self.current.is_soiled = false;
        let begun = Instant::now();
        file.sync_data().map_err(Trouble::Broken)?;
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);

        self.current.position = self.current.position.saturating_add(length);
        self.next_sequence = self.next_sequence.saturating_add(1);
        for record in groups.iter().flat_map(|group| &group.records) {
            if record.kind == WalRecord::FORGOTTEN {
                let shard = record.shard;
                self.spans.iter_mut().for_each(|span| span.forget(shard));
                self.sticky.retain(|(other, _), _| *other != shard);
            } else if record.is_sticky() {
                self.sticky
                    .insert((record.shard, record.kind), record.clone());
            } else if let Some(span) = self.spans.back_mut() {
                span.note(record);
            }
        }
        self.buffer.shrink_to(BUFFER_KEPT);
        self.meta.shrink_to(BUFFER_KEPT);
        self.queue.update_stats(|stats| {
            stats.batches = stats.batches.saturating_add(1);
            stats.records = stats.records.saturating_add(count as u64);
            stats.bytes = stats.bytes.saturating_add(length);
            stats.sync_nanos = stats.sync_nanos.saturating_add(nanos);
        });
        Ok(())
    }

    /// Takes away what is left of a frame that found no space: in a file that is not the last any more it would be damage.
    fn clean_up(&mut self) -> Result<(), Trouble> {
        let Current {
            file,
            position,
            length,
            is_soiled,
            ..
        } = &mut self.current;
        if *is_soiled && position.saturating_add(BLOCK) <= *length {
            file.write_all_at(&[0; BLOCK as usize], *position)?;
            file.sync_data().map_err(Trouble::Broken)?;
        }
        *is_soiled = false;
        Ok(())
    }

    /// Goes on in a new file.
    fn roll(&mut self) -> Result<(), Trouble> {
        self.clean_up()?;
        let spare = self.pool.take()?;
        let number = self.current.number.saturating_add(1);
        let begun = roll::begin(
            &self.options,
            &self.keys,
            &spare,
            number,
            self.next_sequence,
            self.sticky.values(),
        );
        match begun {
            Ok(begun) => {
                self.next_sequence = self.next_sequence.saturating_add(1);
                self.spans.push_back(Span::new(
                    self.options.path_of(number),
                    spare.file,
                    begun.kek,
                ));
                self.current = begun.current;
                self.count_files();
                Ok(())
            }
            Err(trouble) => {
                self.pool.put_back(spare);
                Err(trouble)
            }
        }
    }

    /// Goes on in a new file when the present one is under another KEK than the current one.
    fn renew(&mut self) -> std::io::Result<()> {
        let current = self.keys.current_kek();
        if self.spans.back().is_none_or(|span| span.kek == current) {
            return Ok(());
        }
        match self.roll() {
            Ok(()) => self.recycle(),
            Err(Trouble::Broken(error)) => {
                self.broken(&error);
                Err(error)
            }
            // The present file serves until this is asked for again.
            Err(trouble) => {
                tracing::warn!(error = %trouble.to_error(), "the write-ahead log cannot begin a file under the current key yet");
                Ok(())
            }
        }
    }

    /// Takes note of what is not needed any more, and hands over the files in which nothing else is.
    fn release(&mut self, releases: BTreeMap<ShardId, u64>) -> std::io::Result<()> {
        let mut marks = Vec::new();
        for (shard, through) in releases {
            if is_released(&self.sticky, shard, through) {
                continue;
            }
            let mark = WalRecord {
                shard,
                kind: WalRecord::RELEASED,
                index: through,
                meta: Vec::new(),
                payload: bytes::Bytes::new(),
            };
            // Counts at once, and goes into the next file in any case: a full disk must not keep files from being freed.
            self.sticky
                .insert((shard, WalRecord::RELEASED), mark.clone());
            marks.push(mark);
        }
        self.recycle()?;
        if marks.is_empty() {
            return Ok(());
        }
        let group = Group {
            records: marks,
            done: Box::new(|_| {}),
            waits: false,
        };
        match self.write(std::slice::from_ref(&group)) {
            Err(Trouble::Broken(error)) => {
                self.broken(&error);
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Files leave in their order only, so that their numbers stay without gaps.
    fn recycle(&mut self) -> std::io::Result<()> {
        while self.spans.len() > 1 {
            let Some(span) = self.spans.front() else {
                break;
            };
            let is_free = span
                .highest
                .iter()
                .all(|(shard, highest)| is_released(&self.sticky, *shard, *highest));
            if !is_free {
                break;
            }
            self.pool
                .recycle(&span.path, Arc::clone(&span.file))
                .inspect_err(|error| self.broken(error))?;
            self.spans.pop_front();
        }
        self.count_files();
        Ok(())
    }

    fn broken(&self, error: &std::io::Error) {
        tracing::error!(%error, "the write-ahead log cannot continue: what is on the disk is unknown");
        (self.options.on_failure)(error);
    }

    fn count_files(&self) {
        let files = self.spans.len() as u64;
        self.queue.update_stats(|stats| stats.files = files);
        let mut keks = BTreeMap::new();
        for span in &self.spans {
            *keks.entry(span.kek.clone()).or_insert(0u64) += 1;
        }
        self.queue.set_keks(keks);
    }
}

fn is_released(sticky: &BTreeMap<(ShardId, u8), WalRecord>, shard: ShardId, index: u64) -> bool {
    sticky
        .get(&(shard, WalRecord::RELEASED))
        .is_some_and(|mark| index <= mark.index)
}

fn first_file(options: &WalOptions, keys: &FileKeys, sequence: u64) -> Result<Begun, LogError> {
    let path = options.dir.join("first.tmp");
    // Left by a start that did not get far.
    match options.fs.remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(LogError::io("remove", &path)(error));
        }
        _ => {}
    }
    let spare = pool::make(
        &*options.fs,
        &path,
        FIRST_FILE_BYTES.min(options.file_bytes),
    )
    .map_err(LogError::io("write", &path))?;
    roll::begin(options, keys, &spare, 1, sequence, []).map_err(|trouble| match trouble {
        Trouble::Broken(source) => LogError::io("write", &path)(source),
        other => LogError::Invalid(format!(
            "cannot begin {}: {}",
            options.path_of(1).display(),
            other.to_error()
        )),
    })
}
