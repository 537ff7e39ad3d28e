//! The state machine of a data shard: commands in, partitions, producers and offsets out.
//!
//! [`DataMachine::apply`] is deterministic: it looks at the command, its position and what was applied before, at no clock, no configuration and no disk. (How
//! a partition's log is cut into files is each broker's own affair.) A refusal is a result like any other, the same on every replica. What this replica alone
//! cannot do, such as reading a command that a newer version wrote, must not be answered with one: the shard then stops here.
//!
//! # Full disk
//!
//! A batch that is committed has to be applied. When its segment cannot be written it stays in memory, where it is read from; the shard is then marked as
//! backlogged: the data plane proposes no more appends until all of it is written, so what waits is bounded by what was in flight (after a restart on a full
//! disk: by the write-ahead log, which holds it in memory at that moment anyway). No checkpoint happens meanwhile, so the write-ahead log keeps everything.

use std::{
    collections::HashSet,
    panic::resume_unwind,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use palisade_coordinator::offsets::{OffsetCommand, OffsetStore};
use palisade_log::{
    LeaderEpoch, LogError, Offset, TopicId,
    segment::{FrameMeta, Stored},
};
use palisade_seal::PAYLOAD_OVERHEAD;
use palisade_shard::{CheckpointError, Command, Incoming, LogPosition, Snapshot, StateMachine};

use crate::{
    command::{Append, DataCommand, DataResponse, Key, Refusal},
    manifest::{self, Manifest, PartitionManifest},
    producers::Verdict,
    shard_data::{ShardData, ShardSetup, dir_name, now_ms},
    slot::{Partition, Replicated, Slot},
    snapshot::{self, DataIncoming},
    types::DataError,
};

/// How often a checkpoint closes the files that were not used since: opening one again costs more than keeping it for a while.
const IDLE: Duration = Duration::from_secs(60);

/// Applies the commands of one data shard.
#[derive(Debug)]
pub(crate) struct DataMachine {
    pub(crate) data: Arc<ShardData>,
    pub(crate) applied: Option<LogPosition>,
    /// A snapshot was not installed to its end: what is in memory may be half of both, and must not become a checkpoint.
    broken: bool,
    /// When files were closed last that were not in use.
    closed: Instant,
}

impl DataMachine {
    /// Takes a shard back to its last checkpoint; what came after it is replayed by the caller.
    ///
    /// # Errors
    /// When the manifest cannot be read, or is gone while partitions are there.
    pub(crate) fn open(setup: ShardSetup) -> Result<(Self, Arc<ShardData>), DataError> {
        let (fs, dir, id) = (Arc::clone(&setup.fs), setup.dir.clone(), setup.id);
        fs.create_dir_all(&dir)
            .map_err(LogError::io("create", &dir))
            .map_err(DataError::Log)?;
        let names = fs
            .list(&dir)
            .map_err(LogError::io("list", &dir))
            .map_err(DataError::Log)?;
        let (manifest, kek) = match manifest::load(fs.as_ref(), &setup.keys, &dir, id)
            .map_err(DataError::Log)?
        {
            Some(found) => found,
            None if names.iter().all(|name| manifest::is_manifest(name)) => {
                let empty = Manifest {
                    offsets: encode_offsets(&OffsetStore::new())?,
                    ..Manifest::default()
                };
                let kek = manifest::store(fs.as_ref(), &setup.keys, &dir, id, &empty)
                    .map_err(DataError::Log)?;
                (empty, kek)
            }
            // Without it nobody can say what of the segments is whole: starting would remove them all.
            None => {
                return Err(DataError::Corrupt(format!(
                    "{} is gone but partitions are there; restore it, or move the directory away to start without them",
                    manifest::path(&dir).display()
                )));
            }
        };
        let offsets = OffsetStore::decode(&manifest.offsets)
            .map_err(|error| DataError::Corrupt(error.to_string()))?;
        let data = Arc::new(ShardData::new(setup, offsets, kek));
        let mut known = HashSet::with_capacity(manifest.partitions.len());
        for partition in manifest.partitions {
            known.insert(dir_name(partition.key, partition.dir));
            data.reopen_partition(partition)?;
        }
        // Made after the checkpoint: the replay makes them again. Or received for a snapshot that was not installed.
        for name in names
            .iter()
            .filter(|name| !manifest::is_manifest(name) && !known.contains(*name))
        {
            let path = dir.join(name);
            fs.remove_dir_all(&path)
                .map_err(LogError::io("remove", &path))
                .map_err(DataError::Log)?;
        }
        let applied = manifest
            .applied
            .map(|(term, index)| LogPosition { term, index });
        Ok((
            Self {
                data: Arc::clone(&data),
                applied,
                broken: false,
                closed: Instant::now(),
            },
            data,
        ))
    }

    fn append(
        &self,
        at: LogPosition,
        append: &Append,
        payload: Bytes,
    ) -> Result<DataResponse, Refusal> {
        let slot = self
            .data
            .slot(append.key)
            .ok_or(Refusal::UnknownPartition(append.key))?;
        let partition = slot
            .partition()
            .ok_or(Refusal::UnknownPartition(append.key))?;
        let mut replicated = partition.replicated.lock();
        if let Some(batch) = &append.producer {
            let (producer_id, epoch, sequence) =
                (batch.producer_id, batch.epoch, batch.base_sequence);
            match replicated.producers.check(batch) {
                Verdict::Next => {}
                Verdict::Duplicate(base_offset) => {
                    return Ok(DataResponse::Appended {
                        base_offset,
                        log_start: partition.log.start_offset(),
                        duplicate: true,
                        index: at.index,
                    });
                }
                Verdict::OldDuplicate => {
                    return Err(Refusal::OldDuplicate {
                        producer_id,
                        sequence,
                    });
                }
                Verdict::Fenced { current } => {
                    return Err(Refusal::Fenced {
                        producer_id,
                        epoch,
                        current,
                    });
                }
                Verdict::OutOfOrder { expected } => {
                    return Err(Refusal::OutOfOrder {
                        producer_id,
                        sequence,
                        expected,
                    });
                }
            }
        }
        if append.leader_epoch != epoch_of(at.term)
            || append.base_offset != partition.log.end_offset()
        {
            return Err(Refusal::OutOfTurn);
        }
        let bytes = payload.len().saturating_sub(PAYLOAD_OVERHEAD);
        self.store(&slot, &partition, append, payload)?;
        slot.appended_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(batch) = &append.producer {
            replicated.producers.appended(
                batch,
                append.base_offset,
                append.max_timestamp,
                append.appended_at,
            );
        }
        replicated
            .epochs
            .appended(append.leader_epoch, append.base_offset);
        drop(replicated);
        slot.waiters.wake();
        Ok(DataResponse::Appended {
            base_offset: append.base_offset,
            log_start: partition.log.start_offset(),
            duplicate: false,
            index: at.index,
        })
    }

    fn store(
        &self,
        slot: &Slot,
        partition: &Partition,
        append: &Append,
        payload: Bytes,
    ) -> Result<(), Refusal> {
        let malformed = |reason: &str| Refusal::Malformed(reason.to_owned());
        // Checked here: what a segment refuses looks like trouble with the disk.
        if payload.len() < PAYLOAD_OVERHEAD {
            return Err(malformed("the payload is no sealed batch"));
        }
        let last = i64::from(append.record_count)
            .checked_sub(1)
            .filter(|last| *last >= 0);
        let last_offset = last
            .and_then(|last| append.base_offset.checked_add(last))
            .ok_or_else(|| malformed("the batch has no records"))?;
        let meta = FrameMeta {
            base_offset: append.base_offset,
            last_offset,
            leader_epoch: append.leader_epoch,
            max_timestamp: append.max_timestamp,
            record_count: append.record_count,
        };
        let stored = partition
            .log
            .append(meta, payload, slot.rolling(), now_ms());
        match stored.map_err(|error| malformed(&error.to_string()))? {
            Stored::OnDisk => {}
            Stored::InMemory(error) => {
                if !self.data.backlogged.swap(true, Ordering::AcqRel) {
                    tracing::error!(shard = %self.data.id, %error, "a committed batch cannot be written and stays in memory; no more are accepted until it can");
                }
            }
        }
        Ok(())
    }

    fn create_partition(&self, at: LogPosition, key: Key, seen: u64) -> DataResponse {
        let slot = self.data.slot_or_new(key);
        if let Some(existing) = slot.partition() {
            return DataResponse::Start(existing.log.start_offset());
        }
        let begin = (Offset::ZERO, Offset::ZERO);
        slot.set_partition(self.data.new_partition(
            key,
            seen,
            at.index,
            begin,
            Replicated::default(),
        ));
        DataResponse::Start(Offset::ZERO)
    }

    fn advance_start(&self, key: Key, offset: Offset) -> Result<DataResponse, Refusal> {
        let partition = self
            .data
            .slot(key)
            .and_then(|slot| slot.partition())
            .ok_or(Refusal::UnknownPartition(key))?;
        let start = partition.log.advance_start(offset);
        partition.replicated.lock().epochs.start_advanced(start);
        Ok(DataResponse::Start(start))
    }

    fn drop_topic(&self, topic: TopicId) -> DataResponse {
        let slots = self.data.remove_topic(topic);
        for slot in &slots {
            if let Some(partition) = slot.partition()
                && let Err(error) = partition.log.remove()
            {
                // The next start removes it: no manifest lists it any more.
                tracing::warn!(%error, "cannot remove the files of a deleted topic");
            }
            slot.waiters.wake();
        }
        let forgotten = self
            .data
            .offsets
            .write()
            .apply(OffsetCommand::DropTopic { topic: topic.0 });
        DataResponse::Count(slots.len() + forgotten)
    }

    fn expire_producers(&self, before: i64) -> DataResponse {
        for slot in self.data.slots() {
            if let Some(partition) = slot.partition() {
                partition.replicated.lock().producers.expire(before);
            }
        }
        DataResponse::Count(0)
    }

    fn apply_offsets(&self, at: LogPosition, bytes: &[u8]) -> DataResponse {
        match OffsetCommand::decode(bytes) {
            // Of a leader that was replaced before it had its place in the log.
            Ok(command) if command.term().is_some_and(|term| term != at.term) => {
                DataResponse::Count(0)
            }
            Ok(command) => DataResponse::Count(self.data.offsets.write().apply(command)),
            Err(error) => self.give_up(at, &error.to_string()),
        }
    }

    /// Ends the shard on this broker: going on would make its state another than the other replicas'. The shard hands on no result of an apply that unwinds.
    fn give_up(&self, at: LogPosition, reason: &str) -> ! {
        let reason = format!(
            "shard {}: entry {} cannot be read: {reason}; run a version of the broker that can",
            self.data.id, at.index
        );
        tracing::error!("{reason}");
        resume_unwind(Box::new(reason))
    }

    fn dispatch(
        &self,
        at: LogPosition,
        command: DataCommand,
        payload: Bytes,
    ) -> Result<DataResponse, Refusal> {
        match command {
            DataCommand::Append(append) => self.append(at, &append, payload),
            DataCommand::CreatePartition { key, seen } => Ok(self.create_partition(at, key, seen)),
            DataCommand::AdvanceStart { key, offset } => self.advance_start(key, offset),
            DataCommand::DropTopic { topic } => Ok(self.drop_topic(topic)),
            DataCommand::ExpireProducers { before } => Ok(self.expire_producers(before)),
            DataCommand::Offsets(bytes) => Ok(self.apply_offsets(at, &bytes)),
        }
    }

    /// Syncs every log and stores the manifest. Nothing is appended meanwhile: appends come through this machine.
    fn save(&mut self, at: LogPosition) -> Result<(), DataError> {
        // Not the whole volume: appends wait for this, and must not wait for what others have written.
        if let Err(error) = self.data.sync_files() {
            // It may be for want of file descriptors.
            self.close_idle();
            return Err(DataError::Log(error));
        }
        let mut partitions = Vec::new();
        for slot in self.data.slots() {
            let Some(partition) = slot.partition() else {
                continue;
            };
            let replicated = partition.replicated.lock();
            partitions.push(PartitionManifest {
                key: slot.key,
                seen: partition.seen,
                created: partition.created,
                dir: partition.dir,
                log: partition.log.state(),
                producers: replicated.producers.clone(),
                epochs: replicated.epochs.clone(),
            });
        }
        // New directories are entries of this one, which storing the manifest syncs.
        let manifest = Manifest {
            applied: Some((at.term, at.index)),
            partitions,
            offsets: encode_offsets(&self.data.offsets.read())?,
        };
        self.data.store(&manifest)?;
        self.data.saved(&manifest);
        if self.closed.elapsed() >= IDLE {
            self.closed = Instant::now();
            self.close_idle();
        }
        Ok(())
    }

    /// Closes files that were not used since the last time.
    fn close_idle(&self) {
        for slot in self.data.slots() {
            if let Some(partition) = slot.partition() {
                partition.log.close_idle();
            }
        }
    }
}

impl StateMachine for DataMachine {
    type Response = DataResponse;

    fn apply(&mut self, at: LogPosition, command: Command) -> DataResponse {
        self.applied = Some(at);
        self.data
            .applied_bytes((command.meta.len() + command.payload.len()) as u64);
        match DataCommand::decode(&command.meta) {
            Ok(decoded) => self
                .dispatch(at, decoded, command.payload)
                .unwrap_or_else(DataResponse::Refused),
            Err(reason) => self.give_up(at, &reason),
        }
    }

    fn blank(&mut self, at: LogPosition) {
        self.applied = Some(at);
        // A shard that nobody writes to must be checkpointed too, or it would hold on to the write-ahead log for ever.
        self.data.applied_bytes(1);
    }

    fn applied(&self) -> Option<LogPosition> {
        self.applied
    }

    fn checkpoint(&mut self) -> Result<LogPosition, CheckpointError> {
        if self.broken {
            return Err(CheckpointError::Stopped);
        }
        let at = self
            .applied
            .ok_or_else(|| CheckpointError::Write("nothing was applied yet".to_owned()))?;
        self.save(at).map_err(unwritten)?;
        self.data.unsaved.store(0, Ordering::Relaxed);
        Ok(at)
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, CheckpointError> {
        if self.broken {
            return Err(CheckpointError::Stopped);
        }
        snapshot::describe(&self.data, self.applied)
            .map(|snapshot| Arc::new(snapshot) as Arc<dyn Snapshot>)
            .map_err(unwritten)
    }

    fn receive(&self, description: Bytes) -> Result<(Box<dyn Incoming>, Bytes), CheckpointError> {
        let (incoming, have) =
            DataIncoming::begin(&self.data, self.applied, &description).map_err(unwritten)?;
        Ok((Box::new(incoming), have))
    }

    fn install(
        &mut self,
        at: LogPosition,
        incoming: Box<dyn Incoming>,
    ) -> Result<(), CheckpointError> {
        let incoming = incoming.into_any().downcast::<DataIncoming>();
        let incoming = incoming.map_err(|_| {
            CheckpointError::Write("a snapshot of something else was received".to_owned())
        })?;
        self.broken = true;
        snapshot::install(&self.data, at, *incoming).map_err(unwritten)?;
        self.broken = false;
        self.applied = Some(at);
        self.data.unsaved.store(0, Ordering::Relaxed);
        Ok(())
    }
}

fn unwritten(error: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Write(error.to_string())
}

/// The leader epoch that clients see for a term.
pub(crate) fn epoch_of(term: u64) -> LeaderEpoch {
    LeaderEpoch(i32::try_from(term).unwrap_or(i32::MAX))
}

pub(crate) fn encode_offsets(offsets: &OffsetStore) -> Result<Vec<u8>, DataError> {
    offsets
        .encode()
        .map_err(|error| DataError::Command(error.to_string()))
}
