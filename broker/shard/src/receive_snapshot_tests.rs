//! A replica between the entries and the snapshots of its leader.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    any::Any,
    collections::BTreeSet,
    sync::mpsc::{Receiver as Gate, Sender as Opener, channel},
};

use openraft::{EntryPayload, raft::AppendEntriesRequest};

use super::*;
use crate::{
    Command, Formation, LogPosition, NoPeers, Shard, ShardConfig, StateMachine,
    raft_types::{Entry, LeaderId, LogId, Membership, StoredMembership, log_id},
    tests::{Home, SHARD},
    wire::Appended,
};

const TERM: u64 = 5;
const LEADER: NodeId = NodeId(2);

fn vote() -> Vote {
    Vote {
        leader_id: LeaderId {
            term: TERM,
            voted_for: LEADER.0,
        },
        committed: true,
    }
}

fn at(index: u64) -> LogId {
    log_id(TERM, index)
}

fn members() -> Membership {
    Membership::new(vec![BTreeSet::from([1, 2, 3])], BTreeSet::from([1, 2, 3])).unwrap()
}

/// Counts what is applied and installed. An installation says that it has begun, and waits until it may go on.
struct Counter {
    at: Option<LogPosition>,
    applied: usize,
    installed: usize,
    installing: Opener<()>,
    go_on: Gate<()>,
}

struct Nothing;

impl Incoming for Nothing {
    fn chunk(&mut self, _: Bytes) -> Result<(), CheckpointError> {
        Ok(())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

impl StateMachine for Counter {
    type Response = usize;

    fn apply(&mut self, at: LogPosition, _: Command) -> usize {
        self.at = Some(at);
        self.applied += 1;
        self.applied
    }

    fn blank(&mut self, at: LogPosition) {
        self.at = Some(at);
    }

    fn applied(&self) -> Option<LogPosition> {
        self.at
    }

    fn checkpoint(&mut self) -> Result<LogPosition, CheckpointError> {
        Err(CheckpointError::Write("not here".to_owned()))
    }

    fn receive(&self, _: Bytes) -> Result<(Box<dyn Incoming>, Bytes), CheckpointError> {
        Ok((Box::new(Nothing), Bytes::new()))
    }

    fn install(&mut self, at: LogPosition, _: Box<dyn Incoming>) -> Result<(), CheckpointError> {
        self.installing.send(()).unwrap();
        self.go_on.recv().unwrap();
        self.at = Some(at);
        self.installed += 1;
        Ok(())
    }
}

/// A replica that waits for its leader, and what its leader says.
struct Replica {
    shard: Shard<Counter>,
    go_on: Opener<()>,
    _home: Home,
}

impl Replica {
    /// And what says that an installation has begun.
    async fn start() -> (Self, Gate<()>) {
        let home = Home::new();
        let (wal, records) = home.wal();
        let (said, installing) = channel();
        let (go_on, waited) = channel();
        let machine = Counter {
            at: None,
            applied: 0,
            installed: 0,
            installing: said,
            go_on: waited,
        };
        let config = ShardConfig::new(SHARD, NodeId(1));
        let peers = Arc::new(NoPeers);
        let shard = Shard::start(config, wal, records, machine, peers, Formation::Join)
            .await
            .unwrap();
        let replica = Self {
            shard,
            go_on,
            _home: home,
        };
        (replica, installing)
    }

    /// An answer comes within ten seconds.
    async fn ask(&self, message: Message) -> Message {
        let answer = self.shard.handle(LEADER, message);
        tokio::time::timeout(Duration::from_secs(10), answer)
            .await
            .unwrap()
    }

    /// Appends entries of these indexes; the first of a log says who its members are.
    async fn append(&self, stream: u64, indexes: std::ops::Range<u64>, commit: u64) -> Message {
        let prev_log_id = indexes.start.checked_sub(1).map(at);
        let entries = indexes.map(|index| Entry {
            log_id: at(index),
            payload: match index {
                0 => EntryPayload::Membership(members()),
                _ => EntryPayload::Normal(Command::new(vec![1], vec![2])),
            },
        });
        let request = AppendEntriesRequest::<Types<usize>> {
            vote: vote(),
            prev_log_id,
            leader_commit: Some(at(commit)),
            entries: entries.collect(),
        };
        self.ask(wire::append(wire::APPEND, stream, &request)).await
    }

    async fn begin(&self, transfer: u64, end: u64) {
        let place = Place {
            last_log_id: Some(at(end)),
            last_membership: StoredMembership::new(Some(at(0)), members()),
        };
        let begin = wire::begin(transfer, &vote(), &place, Bytes::new());
        assert_eq!(self.ask(begin).await.kind, wire::HAVE);
    }

    async fn end(&self, transfer: u64) -> Message {
        let end = Part {
            transfer,
            sequence: 0,
            bytes: Bytes::new(),
        };
        self.ask(wire::part(wire::SNAPSHOT_END, end)).await
    }

    async fn applies(&self, count: usize) {
        for _ in 0..1000 {
            if self.shard.read(|machine| machine.applied) == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{} entries were applied where {count} are due",
            self.shard.read(|machine| machine.applied)
        );
    }
}

fn through(message: &Message) -> Option<u64> {
    match wire::read_appended(message) {
        Ok(Appended::Through(Some(id))) => Some(id.index),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_the_log_has_overtaken_is_not_installed() {
    let (replica, _installing) = Replica::start().await;
    replica.begin(2, 45).await;
    // All of them, but committed is as good as nothing: the engine alone would install what ends at 45.
    assert_eq!(through(&replica.append(1, 0..47, 3).await), Some(46));
    let answer = replica.end(2).await;
    assert_eq!(answer.kind, wire::INSTALLED);
    assert_eq!(wire::read_with_vote(&answer).unwrap(), vote());
    assert_eq!(through(&replica.append(3, 47..48, 47).await), Some(47));
    replica.applies(47).await;
    assert_eq!(replica.shard.read(|machine| machine.installed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_lies_ahead_is_installed_and_entries_wait_for_it() {
    let (replica, installing) = Replica::start().await;
    let replica = Arc::new(replica);
    assert_eq!(through(&replica.append(1, 0..10, 3).await), Some(9));
    replica.begin(2, 45).await;
    let end = {
        let replica = Arc::clone(&replica);
        tokio::spawn(async move { replica.end(2).await })
    };
    tokio::task::spawn_blocking(move || installing.recv_timeout(Duration::from_secs(10)))
        .await
        .unwrap()
        .unwrap();
    let meanwhile = replica.append(3, 10..11, 3).await;
    assert_eq!(meanwhile.kind, wire::REFUSED);
    assert_eq!(
        wire::read_refused(&meanwhile),
        "a snapshot is being installed here"
    );
    replica.go_on.send(()).unwrap();
    assert_eq!(end.await.unwrap().kind, wire::INSTALLED);
    assert_eq!(replica.shard.read(|machine| machine.installed), 1);
    assert_eq!(through(&replica.append(4, 46..48, 47).await), Some(47));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_carries_no_entries() {
    let (replica, _installing) = Replica::start().await;
    let request = AppendEntriesRequest::<Types<usize>> {
        vote: vote(),
        prev_log_id: None,
        leader_commit: None,
        entries: vec![Entry {
            log_id: at(0),
            payload: EntryPayload::Membership(members()),
        }],
    };
    let answer = replica
        .ask(wire::append(wire::HEARTBEAT, 0, &request))
        .await;
    assert_eq!(answer.kind, wire::REFUSED);
    assert!(
        wire::read_refused(&answer).contains("a heartbeat with entries"),
        "{}",
        wire::read_refused(&answer)
    );
}
