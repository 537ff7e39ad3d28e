//! Who the replicas of a shard are, as it is seen from outside.

use std::collections::{BTreeMap, BTreeSet};

use palisade_log::ShardId;
use thiserror::Error;

use crate::NodeId;

/// How a shard of which nothing is found here comes into being. A replica that has a log knows its peers from there, and one that
/// follows a deleted one waits for them: both ignore this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formation {
    /// This broker is the only voter, and leads at once.
    Alone,
    /// These are the first voters. Each of them may say so: the first does at once, the others when nobody has come to them for a while.
    Form(BTreeSet<NodeId>),
    /// There are others already: wait for their leader to send the log.
    Join,
}

/// Who leads a shard as far as is known here. A leader that was cut off is known until this replica hears of another or gives up on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaderView {
    /// The newest term that was heard of.
    pub term: u64,
    /// Its leader; `None` during an election, or when this replica has not heard from it for longer than an election takes.
    pub leader: Option<NodeId>,
}

/// A shard at one moment, seen from this replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// The newest term that was heard of.
    pub term: u64,
    /// Who leads, see [`LeaderView`].
    pub leader: Option<NodeId>,
    /// Whose consent counts. During a change of members those of before and after.
    pub voters: BTreeSet<NodeId>,
    /// Who receives the log without a vote.
    pub learners: BTreeSet<NodeId>,
    /// A change of members is under way.
    pub changing: bool,
    /// Index of the newest entry of the log here; 0 when there is none.
    pub last_index: u64,
    /// Index up to which entries are known here to be committed; 0 when none is.
    pub committed: u64,
    /// Index of the newest entry that was applied here; 0 when none was.
    pub applied: u64,
    /// Leader only: up to which index each replica, this one included, is known to have the log durably. Those that were not heard from yet are not in it.
    pub matched: BTreeMap<NodeId, u64>,
    /// Index that the newest checkpoint here reaches to.
    pub checkpoint: Option<u64>,
    /// Index through which the log was purged here: replicas that lack anything up to it need a snapshot.
    pub purged: Option<u64>,
    /// The shard has stopped; the log says why.
    pub stopped: bool,
}

impl ShardStatus {
    /// How many voters are known to have the log up to `index`. Leader only.
    #[must_use]
    pub fn copies(&self, index: u64) -> usize {
        self.matched
            .iter()
            .filter(|(node, matched)| **matched >= index && self.voters.contains(node))
            .count()
    }
}

/// Who the replicas of a shard are, beyond doubt; see [`crate::Shard::confirmed_members`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Whose consent counts. During a change of members those of before and after.
    pub voters: BTreeSet<NodeId>,
    /// Who receives the log without a vote, or is about to.
    pub learners: BTreeSet<NodeId>,
}

/// Why the members of a shard, or its leader, were not changed. Trying again is always safe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MembersError {
    /// Only the leader can.
    #[error("this broker does not lead shard {shard}")]
    NotLeader {
        /// Which shard.
        shard: ShardId,
        /// Who does, when it is known.
        leader: Option<NodeId>,
    },
    /// Another change is under way.
    #[error("the members of shard {0} are being changed already")]
    Changing(ShardId),
    /// Such a set of members cannot be.
    #[error("shard {shard} cannot have these members: {reason}")]
    Invalid {
        /// Which shard.
        shard: ShardId,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A replica did not catch up in time. It goes on catching up as a learner.
    #[error("{node} has not caught up with shard {shard} in time")]
    Behind {
        /// Which shard.
        shard: ShardId,
        /// Who has not.
        node: NodeId,
    },
    /// It was begun, but its end was not seen in time.
    #[error("shard {0} did not agree on the change in time")]
    TimedOut(ShardId),
    /// This broker may have been replaced as the leader without knowing it.
    #[error("no majority confirms that this broker leads shard {0}")]
    Unconfirmed(ShardId),
    /// The shard was shut down, or failed.
    #[error("shard {0} has stopped")]
    Stopped(ShardId),
}
