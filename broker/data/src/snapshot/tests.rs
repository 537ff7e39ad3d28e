//! A state machine sends itself to another, which crashes on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod compacted;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use bytes::Bytes;
use palisade_coordinator::offsets::{CommittedOffset, OffsetCommand, TopicPartition};
use palisade_log::{
    LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, segment::FrameMeta, testing::FaultFs,
};
use palisade_seal::{DirectoryProvider, FileKeys, KeyProvider, PAYLOAD_OVERHEAD};
use palisade_shard::{Command, Incoming, LogPosition, Snapshot, StateMachine};
use proptest::{prelude::*, test_runner::TestRunner};

use super::wire;
use crate::{
    command::{Append, DataCommand, DataResponse, Key},
    machine::DataMachine,
    producers::ProducerBatch,
    shard_data::ShardSetup,
    slot::Replicated,
};

const TERM: u64 = 3;

/// A state machine on a disk of its own.
struct Replica {
    dir: tempfile::TempDir,
    fs: FaultFs,
    machine: Option<DataMachine>,
}

impl Replica {
    fn new() -> Self {
        let mut replica = Self {
            dir: tempfile::tempdir().unwrap(),
            fs: FaultFs::new(),
            machine: None,
        };
        replica.open();
        replica
    }

    fn shard_dir(&self) -> PathBuf {
        self.dir.path().join("shard-1")
    }

    /// As a start does, with what is on the disk.
    fn open(&mut self) {
        self.machine = None;
        let provider: Arc<dyn KeyProvider> =
            Arc::new(DirectoryProvider::create(self.dir.path().join("kek")).unwrap());
        let setup = ShardSetup {
            id: ShardId(1),
            dir: self.shard_dir(),
            fs: Arc::new(self.fs.clone()),
            keys: Arc::new(FileKeys::new(provider)),
            checkpoint_due: Arc::default(),
            checkpoint_bytes: u64::MAX,
            segment_bytes: 2000,
        };
        self.machine = Some(DataMachine::open(setup).unwrap().0);
    }

    fn machine(&self) -> &DataMachine {
        self.machine.as_ref().unwrap()
    }

    fn machine_mut(&mut self) -> &mut DataMachine {
        self.machine.as_mut().unwrap()
    }

    fn apply(&mut self, commands: &[(DataCommand, Bytes)]) {
        for (command, payload) in commands {
            let index = self.machine().applied().map_or(1, |at| at.index + 1);
            let command = Command::new(command.encode().unwrap(), payload.clone());
            let response = self.machine_mut().apply(at(index), command);
            assert!(
                !matches!(response, DataResponse::Refused(_)),
                "{response:?}"
            );
        }
    }

    /// Everything that replicas have alike.
    fn state(&self) -> State {
        let data = &self.machine().data;
        let mut partitions = BTreeMap::new();
        for slot in data.slots() {
            let Some(partition) = slot.partition() else {
                continue;
            };
            let (start, end) = (partition.log.start_offset(), partition.log.end_offset());
            let (mut from, mut batches) = (start, Vec::new());
            while from < end {
                let found = partition.log.read(from, 1 << 20).unwrap();
                from = Offset(found.last().expect("no gap").0.last_offset.0 + 1);
                batches.extend(found);
            }
            let replicated = partition.replicated.lock().clone();
            partitions.insert(
                slot.key,
                (
                    partition.created,
                    partition.seen,
                    start,
                    end,
                    batches,
                    replicated,
                ),
            );
        }
        let offsets = data.offsets.read().encode().unwrap();
        (self.machine().applied(), partitions, offsets)
    }

    /// Directories of partitions.
    fn dirs(&self) -> usize {
        std::fs::read_dir(self.shard_dir())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().is_dir())
            .count()
    }
}

type PartitionState = (
    u64,
    u64,
    Offset,
    Offset,
    Vec<(FrameMeta, Bytes)>,
    Replicated,
);
type State = (Option<LogPosition>, BTreeMap<Key, PartitionState>, Vec<u8>);

fn at(index: u64) -> LogPosition {
    LogPosition { term: TERM, index }
}

fn key(n: u128) -> Key {
    // The same each time, so that two pairs are alike.
    let bytes = [[16].as_slice(), &n.to_be_bytes()].concat();
    let topic: TopicId = postcard::from_bytes(&bytes).unwrap();
    (topic, PartitionIndex(0))
}

fn create(key: Key) -> (DataCommand, Bytes) {
    (DataCommand::CreatePartition { key, seen: 5 }, Bytes::new())
}

fn append(key: Key, base: i64, count: u32, size: usize) -> (DataCommand, Bytes) {
    let append = Append {
        key,
        base_offset: Offset(base),
        record_count: count,
        leader_epoch: LeaderEpoch(TERM as i32),
        max_timestamp: base,
        appended_at: base,
        producer: Some(ProducerBatch {
            producer_id: 9,
            epoch: 0,
            base_sequence: base as i32,
            record_count: count,
        }),
    };
    let payload: Vec<u8> = (0..size.max(PAYLOAD_OVERHEAD))
        .map(|n| (n as u8) ^ (base as u8))
        .collect();
    (DataCommand::Append(append), Bytes::from(payload))
}

fn many(key: Key, from: i64, batches: i64) -> Vec<(DataCommand, Bytes)> {
    (0..batches)
        .map(|n| append(key, from + n * 2, 2, 300))
        .collect()
}

fn advance(key: Key, offset: i64) -> (DataCommand, Bytes) {
    let offset = Offset(offset);
    (DataCommand::AdvanceStart { key, offset }, Bytes::new())
}

fn commit(offset: i64) -> (DataCommand, Bytes) {
    let committed = CommittedOffset {
        offset,
        leader_epoch: -1,
        metadata: String::new(),
        committed_at: 1,
        expires_at: None,
    };
    let partition = TopicPartition {
        topic: key(1).0.0,
        partition: 0,
    };
    let command = OffsetCommand::Commit {
        group: "group".to_owned(),
        offsets: vec![(partition, committed)],
    };
    (
        DataCommand::Offsets(command.encode().unwrap()),
        Bytes::new(),
    )
}

/// Sends chunks until there are no more, or `most` of them.
fn send(
    snapshot: &Arc<dyn Snapshot>,
    to: &DataMachine,
    most: usize,
) -> Result<Box<dyn Incoming>, String> {
    let (mut incoming, have) = to
        .receive(snapshot.description())
        .map_err(|error| error.to_string())?;
    let mut cursor = 0;
    for _ in 0..most {
        let Some((part, next)) = snapshot
            .chunk(&have, cursor)
            .map_err(|error| error.to_string())?
        else {
            break;
        };
        assert!(next > cursor);
        incoming.chunk(part).map_err(|error| error.to_string())?;
        cursor = next;
    }
    Ok(incoming)
}

fn install(from: &Replica, to: &mut Replica) {
    let snapshot = from.machine().snapshot().unwrap();
    let incoming = send(&snapshot, to.machine(), usize::MAX).unwrap();
    let place = from.machine().applied().unwrap();
    to.machine_mut().install(place, incoming).unwrap();
    assert_eq!(to.state(), from.state());
    to.fs.crash(|| false).unwrap();
    to.open();
    assert_eq!(to.state(), from.state(), "after a power failure");
    assert_eq!(to.dirs(), from.dirs());
}

/// Everything that can become of a partition while a replica is away: one goes on, one expires beyond what the replica has, one is dropped, one is dropped and
/// made again, one is made.
fn pair() -> (Replica, Replica) {
    let [goes_on, expires, dropped, again, new] = [1, 2, 3, 4, 5].map(key);
    let mut common = Vec::new();
    for key in [goes_on, expires, dropped, again] {
        common.push(create(key));
        common.extend(many(key, 0, 10));
    }
    common.push(commit(3));
    let (mut ahead, mut behind) = (Replica::new(), Replica::new());
    ahead.apply(&common);
    behind.apply(&common);
    let drop = |key: Key| (DataCommand::DropTopic { topic: key.0 }, Bytes::new());
    let mut later = many(goes_on, 20, 30);
    later.push(advance(goes_on, 7));
    later.extend(many(expires, 20, 30));
    later.push(advance(expires, 61));
    later.extend([drop(dropped), drop(again), create(again)]);
    later.extend(many(again, 0, 15));
    later.push(create(new));
    later.extend(many(new, 0, 5));
    later.push(commit(9));
    ahead.apply(&later);
    (ahead, behind)
}

#[test]
fn an_empty_replica_becomes_like_the_other() {
    let (ahead, _) = pair();
    let mut empty = Replica::new();
    install(&ahead, &mut empty);
}

#[test]
fn a_replica_that_is_behind_becomes_like_the_other() {
    for checkpoint in [false, true] {
        let (ahead, mut behind) = pair();
        if checkpoint {
            behind.machine_mut().checkpoint().unwrap();
        }
        install(&ahead, &mut behind);
        // And goes on like it.
        let (mut ahead, more) = (ahead, many(key(1), 80, 5));
        ahead.apply(&more);
        behind.apply(&more);
        assert_eq!(behind.state(), ahead.state());
    }
}

#[test]
fn only_what_is_lacking_is_sent() {
    let (ahead, behind) = pair();
    let snapshot = ahead.machine().snapshot().unwrap();
    let (_, have) = behind.machine().receive(snapshot.description()).unwrap();
    let (part, _) = snapshot.chunk(&have, 0).unwrap().unwrap();
    let (empty, _) = (Replica::new(), ());
    let (_, nothing) = empty.machine().receive(snapshot.description()).unwrap();
    let (all, _) = snapshot.chunk(&nothing, 0).unwrap().unwrap();
    assert!(part.len() < all.len(), "{} of {}", part.len(), all.len());
}

#[test]
fn a_damaged_partition_is_received_anew() {
    let (ahead, mut behind) = pair();
    let damaged = behind
        .machine()
        .data
        .slot(key(1))
        .unwrap()
        .partition()
        .unwrap();
    damaged.log.quarantine(Offset(5), "a test says so");
    drop(damaged);
    install(&ahead, &mut behind);
    assert!(behind.machine().data.slots().iter().all(|slot| {
        slot.partition()
            .is_none_or(|partition| partition.log.quarantined().is_empty())
    }));
}

#[test]
fn what_is_applied_while_a_snapshot_is_on_its_way_is_no_obstacle() {
    let (ahead, mut behind) = pair();
    let snapshot = ahead.machine().snapshot().unwrap();
    let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
    behind.apply(&many(key(1), 20, 7));
    let place = ahead.machine().applied().unwrap();
    behind.machine_mut().install(place, incoming).unwrap();
    assert_eq!(behind.state(), ahead.state());
    behind.open();
    assert_eq!(behind.state(), ahead.state());
}

#[test]
fn records_that_expire_while_they_are_sent_leave_a_gap_that_the_log_closes() {
    for behind_is_empty in [false, true] {
        let (mut ahead, behind) = pair();
        let mut behind = if behind_is_empty {
            Replica::new()
        } else {
            behind
        };
        let place = ahead.machine().applied().unwrap();
        let snapshot = ahead.machine().snapshot().unwrap();
        let later = [
            advance(key(1), 45),
            (DataCommand::DropTopic { topic: key(4).0 }, Bytes::new()),
            advance(key(2), 80),
        ];
        ahead.apply(&later);
        let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
        behind.machine_mut().install(place, incoming).unwrap();
        behind.open();
        assert_eq!(behind.machine().applied(), Some(place));
        behind.apply(&later);
        let more = many(key(1), 80, 3);
        ahead.apply(&more);
        behind.apply(&more);
        assert_eq!(behind.state(), ahead.state());
    }
}

#[test]
fn readers_of_a_partition_that_is_replaced_see_no_damage() {
    let (ahead, mut behind) = pair();
    let old: Vec<_> = [2, 3, 4]
        .map(|n| {
            behind
                .machine()
                .data
                .slot(key(n))
                .unwrap()
                .partition()
                .unwrap()
        })
        .into();
    let snapshot = ahead.machine().snapshot().unwrap();
    let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
    let place = ahead.machine().applied().unwrap();
    behind.machine_mut().install(place, incoming).unwrap();
    for partition in old {
        assert_eq!(partition.log.read(Offset(0), 1000).unwrap(), []);
        assert!(partition.log.quarantined().is_empty());
    }
    assert_eq!(behind.state(), ahead.state());
}

#[test]
fn a_transfer_that_is_given_up_leaves_nothing() {
    let (ahead, mut behind) = pair();
    behind.machine_mut().checkpoint().unwrap();
    let (state, dirs) = (behind.state(), behind.dirs());
    let snapshot = ahead.machine().snapshot().unwrap();
    let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
    assert!(behind.dirs() > dirs, "it is kept aside");
    drop(incoming);
    assert_eq!((behind.state(), behind.dirs()), (state.clone(), dirs));
    // A crash in the middle of it: nobody drops anything.
    std::mem::forget(send(&snapshot, behind.machine(), usize::MAX).unwrap());
    behind.fs.crash(|| false).unwrap();
    behind.open();
    assert_eq!((behind.state(), behind.dirs()), (state, dirs));
    install(&ahead, &mut behind);
}

#[test]
fn what_was_not_received_to_its_end_is_not_installed() {
    let (ahead, mut behind) = pair();
    behind.machine_mut().checkpoint().unwrap();
    let state = behind.state();
    let snapshot = ahead.machine().snapshot().unwrap();
    let incoming = send(&snapshot, behind.machine(), 0).unwrap();
    let place = ahead.machine().applied().unwrap();
    assert!(behind.machine_mut().install(place, incoming).is_err());
    assert!(
        behind.machine_mut().checkpoint().is_err(),
        "it may be half of both"
    );
    behind.open();
    assert_eq!(behind.state(), state);
    install(&ahead, &mut behind);
}

#[test]
fn an_older_snapshot_is_refused() {
    let (ahead, behind) = pair();
    let snapshot = behind.machine().snapshot().unwrap();
    assert!(ahead.machine().receive(snapshot.description()).is_err());
}

/// The disk is full after any number of bytes, or syncing fails: the old state is there after a crash, or the new one, never a mixture.
#[test]
fn an_install_that_ends_anywhere_leaves_the_old_state_or_the_new_one() {
    let (ahead, _) = pair();
    let (mut old, mut new) = (0, 0);
    for space in (0..40_000).step_by(700) {
        let (_, mut behind) = pair();
        // The other one's partitions are made by other commands of the same kind, so both pairs are alike.
        behind.machine_mut().checkpoint().unwrap();
        let before = behind.state();
        let snapshot = ahead.machine().snapshot().unwrap();
        let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
        // What was applied since the checkpoint is replayed afterwards.
        behind.apply(&many(key(1), 20, 3));
        behind.fs.set_space(Some(space));
        behind.fs.fail_syncs(space % 1400 == 700);
        let place = ahead.machine().applied().unwrap();
        let outcome = behind.machine_mut().install(place, incoming);
        behind.fs.set_space(None);
        behind.fs.fail_syncs(false);
        behind.fs.crash(|| space % 3 == 0).unwrap();
        behind.open();
        match outcome {
            Ok(()) => {
                new += 1;
                assert_eq!(behind.state(), ahead.state(), "{space} bytes");
            }
            Err(_) => {
                old += 1;
                assert_eq!(behind.state(), before, "{space} bytes");
                behind.apply(&many(key(1), 20, 3));
                install(&ahead, &mut behind);
            }
        }
    }
    assert!(old > 5 && new > 5, "{old} and {new}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = wire::Description::decode(&bytes);
        let _ = wire::decode_have(&bytes);
        let mut part = Bytes::from(bytes);
        while let Ok(Some(_)) = wire::next_entry(&mut part) {}
    }
}

/// A liar cannot make a replica stop, or keep what does not follow.
#[test]
fn a_chunk_that_was_changed_is_refused_or_complete() {
    let (ahead, behind) = pair();
    let snapshot = ahead.machine().snapshot().unwrap();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let changes = (any::<prop::sample::Index>(), 0u8..8);
    TestRunner::new(config)
        .run(&changes, |(at, bit)| {
            let (mut incoming, have) = behind.machine().receive(snapshot.description()).unwrap();
            let (part, _) = snapshot.chunk(&have, 0).unwrap().unwrap();
            let mut part = part.to_vec();
            let at = at.index(part.len());
            part[at] ^= 1 << bit;
            let _ = incoming.chunk(Bytes::from(part));
            Ok(())
        })
        .unwrap();
}
