//! A state machine that is just enough of a broker: per partition a log of records with offsets, and what each producer has written last.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use palisade_log::{ShardId, fs::FileSystem, testing::MemoryFs};
use palisade_shard::{
    CheckpointError, Command, Incoming, LogPosition, NodeId, Snapshot, StateMachine,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Mutation,
    chance::{hash, mix},
    oracle::Oracle,
};

/// Batches of a producer that are remembered, as in Kafka.
const REMEMBERED: usize = 5;
/// Records in a part of a snapshot.
const PART: usize = 8;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    /// Who produced it.
    pub producer: u32,
    /// Its number among those of the producer.
    pub sequence: u32,
    /// Term in which it was proposed.
    pub term: u64,
}

/// A batch that is proposed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Append {
    pub(crate) partition: u32,
    /// Offset that the leader has given it.
    pub(crate) base: u64,
    pub(crate) term: u64,
    pub(crate) producer: u32,
    pub(crate) idempotent: bool,
    pub(crate) sequence: u32,
    pub(crate) count: u32,
}

impl Append {
    pub(crate) fn command(&self) -> Command {
        let payload = vec![self.sequence as u8; 20 * self.count as usize];
        Command::new(encode(self), payload)
    }

    pub(crate) fn key(&self) -> u64 {
        hash(&encode(self))
    }

    fn end(&self) -> u32 {
        self.sequence.saturating_add(self.count)
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It stands at this offset, now or since it was sent before.
    At(u64),
    /// The producer's numbers have a gap.
    OutOfOrder,
    /// The next offset is another than the leader has given it.
    Misplaced,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Partition {
    pub(crate) records: Vec<Record>,
    producers: BTreeMap<u32, VecDeque<Batch>>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Batch {
    sequence: u32,
    count: u32,
    base: u64,
}

impl Partition {
    pub(crate) fn end(&self) -> u64 {
        self.records.len() as u64
    }

    /// What is known of a batch of an idempotent producer before it is appended; `None`: it is the next.
    pub(crate) fn known(&self, append: &Append) -> Option<Outcome> {
        let batches = self.producers.get(&append.producer);
        let same =
            |batch: &&Batch| (batch.sequence, batch.count) == (append.sequence, append.count);
        if let Some(batch) = batches.and_then(|batches| batches.iter().find(same)) {
            return Some(Outcome::At(batch.base));
        }
        let next = batches
            .and_then(VecDeque::back)
            .map_or(0, |last| last.sequence.saturating_add(last.count));
        (next != append.sequence).then_some(Outcome::OutOfOrder)
    }

    fn append(&mut self, append: &Append, mutation: Option<Mutation>) -> Outcome {
        let deduplicates = append.idempotent && mutation != Some(Mutation::ForgetProducers);
        if deduplicates && let Some(outcome) = self.known(append) {
            return outcome;
        }
        if append.base != self.end() && mutation != Some(Mutation::TrustOffsets) {
            return Outcome::Misplaced;
        }
        self.records
            .extend((append.sequence..append.end()).map(|sequence| Record {
                producer: append.producer,
                sequence,
                term: append.term,
            }));
        if append.idempotent {
            let batches = self.producers.entry(append.producer).or_default();
            if batches.len() == REMEMBERED {
                batches.pop_front();
            }
            batches.push_back(Batch {
                sequence: append.sequence,
                count: append.count,
                base: append.base,
            });
        }
        Outcome::At(append.base)
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    at: Option<(u64, u64)>,
    partitions: BTreeMap<u32, Partition>,
}

/// The state machine of one shard on one node.
pub(crate) struct LogMachine {
    pub(crate) node: NodeId,
    pub(crate) shard: ShardId,
    fs: MemoryFs,
    oracle: Arc<Oracle>,
    mutation: Option<Mutation>,
    state: State,
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CheckpointError> {
    postcard::from_bytes(bytes).map_err(failed)
}

fn failed(error: impl ToString) -> CheckpointError {
    CheckpointError::Write(error.to_string())
}

fn dir(shard: ShardId) -> PathBuf {
    PathBuf::from(format!("/data/shard-{}", shard.0))
}

impl LogMachine {
    /// The state found on the disk.
    pub(crate) fn open(
        node: NodeId,
        shard: ShardId,
        fs: MemoryFs,
        oracle: Arc<Oracle>,
        mutation: Option<Mutation>,
    ) -> Result<Self, String> {
        let dir = dir(shard);
        fs.create_dir_all(&dir).map_err(|error| error.to_string())?;
        let state = match fs.open(&dir.join("state")) {
            Ok(file) => {
                let length = file.len().map_err(|error| error.to_string())?;
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                file.read_full_at(&mut bytes, 0)
                    .map_err(|error| error.to_string())?;
                decode(&bytes).map_err(|error| format!("the state of {shard}: {error}"))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error.to_string()),
        };
        Ok(Self {
            node,
            shard,
            fs,
            oracle,
            mutation,
            state,
        })
    }

    pub(crate) fn partition(&self, partition: u32) -> Option<&Partition> {
        self.state.partitions.get(&partition)
    }

    pub(crate) fn records(&self) -> BTreeMap<u32, Vec<Record>> {
        let partitions = self.state.partitions.iter();
        partitions
            .map(|(number, partition)| (*number, partition.records.clone()))
            .collect()
    }

    fn save(&self) -> std::io::Result<()> {
        let dir = dir(self.shard);
        let (new, old) = (dir.join("new"), dir.join("state"));
        let _ = self.fs.remove_file(&new);
        let file = self.fs.create(&new)?;
        file.write_all_at(&encode(&self.state), 0)?;
        file.sync_data()?;
        self.fs.rename(&new, Path::new(&old))?;
        self.fs.sync_dir(&dir)
    }

    fn moved(&mut self, at: LogPosition) {
        self.state.at = Some((at.term, at.index));
    }
}

impl StateMachine for LogMachine {
    type Response = Outcome;

    fn apply(&mut self, at: LogPosition, command: Command) -> Outcome {
        self.moved(at);
        let Ok(append) = decode::<Append>(&command.meta) else {
            self.oracle.broken(
                "replicas",
                format!("{} cannot read entry {}", self.node, at.index),
            );
            return Outcome::Misplaced;
        };
        let partition = self.state.partitions.entry(append.partition).or_default();
        let outcome = partition.append(&append, self.mutation);
        let is_at = match outcome {
            Outcome::At(base) => base,
            Outcome::OutOfOrder => u64::MAX,
            Outcome::Misplaced => u64::MAX - 1,
        };
        let content = mix(&[hash(&command.meta), hash(&command.payload), is_at]);
        self.oracle.applied(self.node, self.shard, at, content);
        outcome
    }

    fn blank(&mut self, at: LogPosition) {
        self.moved(at);
        self.oracle.applied(self.node, self.shard, at, 0);
    }

    fn applied(&self) -> Option<LogPosition> {
        self.state
            .at
            .map(|(term, index)| LogPosition { term, index })
    }

    fn checkpoint(&mut self) -> Result<LogPosition, CheckpointError> {
        self.save().map_err(failed)?;
        self.applied().ok_or_else(|| failed("nothing was applied"))
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, CheckpointError> {
        Ok(Arc::new(Image(self.state.clone())))
    }

    fn receive(&self, description: Bytes) -> Result<(Box<dyn Incoming>, Bytes), CheckpointError> {
        let state: State = decode(&description)?;
        let have: BTreeMap<u32, u64> = self
            .state
            .partitions
            .iter()
            .map(|(number, partition)| (*number, partition.end()))
            .collect();
        let encoded = encode(&have);
        let parts = Parts {
            state,
            have,
            parts: Vec::new(),
        };
        Ok((Box::new(parts), encoded.into()))
    }

    fn install(
        &mut self,
        at: LogPosition,
        incoming: Box<dyn Incoming>,
    ) -> Result<(), CheckpointError> {
        let parts = incoming.into_any().downcast::<Parts>();
        let mut parts = parts.map_err(|_| failed("not a snapshot of this machine"))?;
        for (number, partition) in &mut parts.state.partitions {
            if let Some(here) = self.state.partitions.get(number) {
                // What was applied since it began to be received is in it as well.
                let have = parts.have.get(number).copied().unwrap_or(0);
                let have = usize::try_from(have).unwrap_or(usize::MAX);
                partition.records = here.records.iter().take(have).copied().collect();
            }
        }
        for (number, records) in parts.parts {
            if let Some(partition) = parts.state.partitions.get_mut(&number) {
                partition.records.extend(records);
            }
        }
        self.state = parts.state;
        self.moved(at);
        self.oracle
            .change(|history| history.installs = history.installs.saturating_add(1));
        self.save().map_err(failed)
    }
}

struct Image(State);

impl Snapshot for Image {
    fn description(&self) -> Bytes {
        let mut state = self.0.clone();
        for partition in state.partitions.values_mut() {
            partition.records.clear();
        }
        encode(&state).into()
    }

    fn chunk(&self, have: &[u8], cursor: u64) -> Result<Option<(Bytes, u64)>, CheckpointError> {
        let have: BTreeMap<u32, u64> = decode(have)?;
        let mut skip = usize::try_from(cursor).unwrap_or(usize::MAX);
        for (number, partition) in &self.0.partitions {
            let from = have.get(number).copied().unwrap_or(0);
            let lacking = partition
                .records
                .get(usize::try_from(from).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
            let parts = lacking.chunks(PART);
            if let Some(part) = parts.clone().nth(skip) {
                return Ok(Some((
                    encode(&(number, part)).into(),
                    cursor.saturating_add(1),
                )));
            }
            skip = skip.saturating_sub(parts.len());
        }
        Ok(None)
    }
}

struct Parts {
    state: State,
    /// How many records of each partition were here when it began.
    have: BTreeMap<u32, u64>,
    parts: Vec<(u32, Vec<Record>)>,
}

impl Incoming for Parts {
    fn chunk(&mut self, part: Bytes) -> Result<(), CheckpointError> {
        self.parts.push(decode(&part)?);
        Ok(())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}
