//! Sees everything that brokers apply and acknowledge, and knows what must hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use palisade_log::ShardId;
use palisade_shard::{LogPosition, NodeId};
use parking_lot::Mutex;

use crate::{
    invariants::{one_leader, replicas},
    machine::Record,
    schedule::Schedule,
    trace::Trace,
};

/// A batch that a broker has acknowledged, whether or not the client learnt of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Of which shard.
    pub shard: ShardId,
    /// Of which partition of it.
    pub partition: u32,
    /// Offset of its first record.
    pub base: u64,
    /// How many records.
    pub count: u32,
    /// Whose batch.
    pub producer: u32,
    /// Number of its first record among the producer's.
    pub sequence: u32,
    /// Who said so.
    pub node: NodeId,
    /// As the leader of this term.
    pub term: u64,
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name, that of the file in `invariants`.
    pub invariant: &'static str,
    /// What was seen.
    pub message: String,
}

/// One replica of one shard at the end.
#[derive(Debug)]
pub struct Replica {
    /// Whose.
    pub node: NodeId,
    /// Of which shard.
    pub shard: ShardId,
    /// What a consumer reads there.
    pub partitions: BTreeMap<u32, Vec<Record>>,
}

/// A producer as the invariants know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerInfo {
    /// Its number.
    pub id: u32,
    /// Whether it has the brokers remove what it sends twice.
    pub idempotent: bool,
    /// Batches that it sends without waiting for an answer.
    pub window: usize,
    /// Records that it sends in all.
    pub records: u32,
}

/// What was seen in a run.
#[derive(Debug, Default)]
pub struct History {
    /// What stands at an index of a shard's log: term, hash, and who applied it first.
    pub applied: BTreeMap<(ShardId, u64), (u64, u64, NodeId)>,
    /// Who led in a term.
    pub leaders: BTreeMap<(ShardId, u64), NodeId>,
    /// Who acknowledged an offset: producer, number, broker.
    pub acknowledged: BTreeMap<(ShardId, u32, u64), (u32, u32, NodeId)>,
    /// All acknowledgements.
    pub acks: Vec<Ack>,
    /// All producers.
    pub producers: Vec<ProducerInfo>,
    /// Nodes whose disk was wiped.
    pub wiped: BTreeSet<NodeId>,
    /// How often a leader was seen to have trimmed its log.
    pub trims: u64,
    /// How many snapshots were installed.
    pub installs: u64,
}

/// The one who knows.
pub(crate) struct Oracle {
    schedule: Arc<Schedule>,
    trace: Arc<Trace>,
    state: Mutex<(History, Option<Violation>)>,
}

impl Oracle {
    pub(crate) fn new(schedule: Arc<Schedule>, trace: Arc<Trace>) -> Self {
        Self {
            schedule,
            trace,
            state: Mutex::default(),
        }
    }

    /// Reports what does not hold; the first counts.
    pub(crate) fn broken(&self, invariant: &'static str, message: String) {
        self.state
            .lock()
            .1
            .get_or_insert(Violation { invariant, message });
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        self.state.lock().1.clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut History)) {
        change(&mut self.state.lock().0);
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&History) -> T) -> T {
        read(&self.state.lock().0)
    }

    fn check(
        &self,
        invariant: &'static str,
        check: impl FnOnce(&mut History) -> Result<(), String>,
    ) {
        let checked = check(&mut self.state.lock().0);
        if let Err(message) = checked {
            self.broken(invariant, message);
        }
    }

    /// A node has applied an entry.
    pub(crate) fn applied(&self, node: NodeId, shard: ShardId, at: LogPosition, content: u64) {
        self.trace.note(
            self.schedule.now(),
            &[3, node.0, u64::from(shard.0), at.index, at.term, content],
            || format!("{node} applies {} of term {} in {shard}", at.index, at.term),
        );
        self.check(replicas::NAME, |history| {
            replicas::on_applied(history, node, shard, at, content)
        });
    }

    /// A node says that it leads.
    pub(crate) fn leads(&self, node: NodeId, shard: ShardId, term: u64) {
        self.check(one_leader::NAME, |history| {
            one_leader::on_leader(history, node, shard, term)
        });
    }

    /// A node acknowledges a batch.
    pub(crate) fn acknowledged(&self, ack: Ack) {
        self.trace.note(
            self.schedule.now(),
            &[
                4,
                ack.node.0,
                u64::from(ack.shard.0),
                u64::from(ack.partition),
                ack.base,
                u64::from(ack.producer),
                u64::from(ack.sequence),
            ],
            || {
                format!(
                    "{} acknowledges {}+{} of producer {} at offset {} of {}/{} in term {}",
                    ack.node,
                    ack.sequence,
                    ack.count,
                    ack.producer,
                    ack.base,
                    ack.shard,
                    ack.partition,
                    ack.term
                )
            },
        );
        self.check(one_leader::NAME, |history| {
            history.acks.push(ack);
            one_leader::on_leader(history, ack.node, ack.shard, ack.term)?;
            one_leader::on_ack(history, &ack)
        });
    }
}
