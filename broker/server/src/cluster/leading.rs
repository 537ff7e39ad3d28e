//! What only the leader of a shard can say or do, wherever a client asks for it: who has how much of the metadata, and giving leadership back at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_shard::{NodeId, ShardStatus};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{
    Cluster,
    messages::{Answer, Question},
    replicas::{Step, draining, preferred, step},
};

/// How long another broker may take to answer. A hand-over waits for a follower that is a little behind.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a hand-over on another broker, this one has heard of it within this time.
const NEWS: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// The replicas of a shard, as its leader knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quorum {
    /// Who leads.
    pub(crate) leader: NodeId,
    /// Its term.
    pub(crate) term: u64,
    /// Index of its newest entry.
    pub(crate) last_index: u64,
    /// Index up to which entries are committed.
    pub(crate) committed: u64,
    /// Whose consent counts.
    pub(crate) voters: BTreeSet<NodeId>,
    /// Who receives the log without a vote.
    pub(crate) learners: BTreeSet<NodeId>,
    /// Index up to which each is known to have the log; those that were not heard from are not in it.
    pub(crate) matched: BTreeMap<NodeId, u64>,
}

impl Quorum {
    fn of(status: ShardStatus, me: NodeId) -> Option<Self> {
        (status.leader == Some(me)).then_some(Self {
            leader: me,
            term: status.term,
            last_index: status.last_index,
            committed: status.committed,
            voters: status.voters,
            learners: status.learners,
            matched: status.matched,
        })
    }
}

/// How giving leadership back to the preferred replica ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Election {
    /// The preferred replica leads now.
    Done,
    /// It led already.
    NotNeeded,
    /// It cannot lead now, and why.
    Unavailable(String),
}

impl Cluster {
    /// The replicas of the metadata, from their leader. `None`: nobody is known to lead, or the leader did not answer.
    pub(crate) async fn metadata_quorum(&self) -> Option<Quorum> {
        if let Some(quorum) = self.own_metadata_quorum() {
            return Some(quorum);
        }
        match self
            .ask_leader(self.controller()?, Question::Quorum)
            .await?
        {
            Answer::Quorum(quorum) => quorum,
            _ => None,
        }
    }

    /// The same, when this broker is the leader.
    pub(super) fn own_metadata_quorum(&self) -> Option<Quorum> {
        Quorum::of(self.metadata.status(), self.me)
    }

    /// Has the replica of a shard lead that its assignment prefers; whoever leads it does that. Returns when it is known here.
    pub(crate) async fn elect_preferred(&self, data: &DataPlane, shard: ShardId) -> Election {
        let image = self.image();
        let draining = draining(&image);
        let assigned = image.shards.get(&shard);
        let wanted = assigned.and_then(|shard| preferred(shard, &draining));
        let (Some(wanted), Some(leader)) = (wanted, self.leader(shard)) else {
            return Election::Unavailable("nobody leads it now".to_owned());
        };
        if leader.node == wanted {
            return Election::NotNeeded;
        }
        let election = if leader.node == self.me {
            self.give_back(data, shard).await
        } else {
            match self
                .ask_leader(leader.node.broker(), Question::GiveBack(shard))
                .await
            {
                Some(Answer::GaveBack(election)) => election,
                _ => Election::Unavailable("its leader did not answer".to_owned()),
            }
        };
        if election == Election::Done {
            let told = async {
                while self.leader(shard).is_none_or(|now| now.term <= leader.term) {
                    sleep(PAUSE).await;
                }
            };
            // Whoever asks for metadata before that is told a moment later.
            drop(timeout(NEWS, told).await);
        }
        election
    }

    /// As the leader of a shard: hands it to the preferred replica.
    pub(super) async fn give_back(&self, data: &DataPlane, shard: ShardId) -> Election {
        let image = self.image();
        let (Some(assigned), Some(status)) = (image.shards.get(&shard), data.shard_status(shard))
        else {
            return Election::Unavailable("its leader has no replica any more".to_owned());
        };
        if status.leader != Some(self.me) {
            return Election::Unavailable("its leader has just changed".to_owned());
        }
        let draining = draining(&image);
        let fit = self.fit(data, shard);
        match step(self.me, assigned, &status, &fit, &draining) {
            Step::Prefer(to) => match data.transfer(shard, to).await {
                Ok(()) => {
                    tracing::info!(%shard, %to, "leadership was given back because a client asked for it");
                    Election::Done
                }
                Err(error) => Election::Unavailable(error.to_string()),
            },
            Step::Relieve(_) => Election::Unavailable(
                "its leader hands it over because its disk is full".to_owned(),
            ),
            Step::Members(_) | Step::Leave(_) => {
                Election::Unavailable("its replicas are being moved".to_owned())
            }
            Step::None | Step::Settle(_) if preferred(assigned, &draining) == Some(self.me) => {
                Election::NotNeeded
            }
            Step::None | Step::Settle(_) => Election::Unavailable(
                "the preferred replica cannot be reached, or has not caught up".to_owned(),
            ),
        }
    }

    async fn ask_leader(&self, broker: i32, question: Question) -> Option<Answer> {
        let call = self.peers.as_ref()?.call_cluster(broker, question.encode());
        let message = timeout(PATIENCE, call).await.ok()?.ok()?;
        Answer::decode(&message).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leader_speaks_for_the_quorum() {
        let (me, other) = (NodeId::of(0, 1), NodeId::of(1, 1));
        let status = |leader| ShardStatus {
            leader,
            term: 3,
            voters: BTreeSet::from([me, other]),
            ..ShardStatus::default()
        };
        assert_eq!(Quorum::of(status(None), me), None);
        assert_eq!(Quorum::of(status(Some(other)), me), None);
        assert_eq!(
            Quorum::of(status(Some(me)), me).map(|quorum| quorum.term),
            Some(3)
        );
    }
}
