//! What a broker does with a batch that a client sends: it gives it its offsets, has it replicated, and answers.

use std::sync::Arc;

use palisade_log::ShardId;
use palisade_shard::NodeId;

use crate::{
    Mutation,
    machine::{Append, Outcome},
    oracle::Ack,
    world::{Running, World},
};

/// Why a batch was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NotLeader(Option<NodeId>),
    Again,
    OutOfOrder,
}

impl Running {
    /// Takes a batch as a leader does: gives it its offsets, has it replicated, answers.
    pub(crate) async fn produce(
        self: Arc<Self>,
        world: Arc<World>,
        shard: ShardId,
        mut append: Append,
    ) -> Result<Ack, Refused> {
        let Some(hosted) = self.shards.get(&shard) else {
            return Err(Refused::NotLeader(None));
        };
        let leadership = *hosted.shard.leadership().borrow();
        let Some(leadership) = leadership else {
            return Err(Refused::NotLeader(hosted.shard.status().leader));
        };
        world.oracle.leads(self.node, shard, leadership.term);
        let ack = |base| Ack {
            shard,
            partition: append.partition,
            base,
            count: append.count,
            producer: append.producer,
            sequence: append.sequence,
            node: self.node,
            term: leadership.term,
        };
        let (end, known) = hosted.shard.read(|machine| {
            let partition = machine.partition(append.partition);
            let known = partition.and_then(|partition| partition.known(&append));
            (partition.map_or(0, |partition| partition.end()), known)
        });
        if let (true, Some(Outcome::At(base))) = (append.idempotent, known)
            && world.mutation != Some(Mutation::ForgetProducers)
        {
            return Ok(ack(base));
        }
        let proposal = {
            let mut next = hosted.next.lock();
            let place = next
                .entry(append.partition)
                .or_insert((leadership.term, end));
            if place.0 != leadership.term {
                *place = (leadership.term, end);
            }
            append.base = place.1;
            append.term = leadership.term;
            place.1 = place.1.saturating_add(u64::from(append.count));
            hosted.shard.propose(append.command())
        };
        if world.mutation == Some(Mutation::AcknowledgeEarly) {
            tokio::spawn(proposal);
            return Ok(ack(append.base));
        }
        match proposal.await {
            Ok(Outcome::At(base)) => {
                if base != append.base {
                    hosted.next.lock().remove(&append.partition);
                }
                Ok(ack(base))
            }
            Ok(outcome) => {
                hosted.next.lock().remove(&append.partition);
                match outcome {
                    Outcome::OutOfOrder => Err(Refused::OutOfOrder),
                    _ => Err(Refused::Again),
                }
            }
            Err(palisade_shard::ProposeError::NotLeader(_)) => {
                hosted.next.lock().remove(&append.partition);
                Err(Refused::NotLeader(hosted.shard.status().leader))
            }
            Err(_) => {
                hosted.next.lock().remove(&append.partition);
                Err(Refused::Again)
            }
        }
    }
}
