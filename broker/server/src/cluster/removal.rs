//! Letting go of brokers: of replicas that have moved to others, and of a broker for good (Kafka's UnregisterBroker, KIP-631).
//!
//! The metadata say where replicas are to be; whether a shard has really let go of one is known to the shard alone. A leader may have been replaced without knowing
//! it, so its word counts only when a majority of the shard confirms, after the question, that it leads still ([`palisade_shard::Shard::confirmed_members`]).
//! A replica is deleted, and a broker forgotten, only after such an answer for every shard in question. To forget a broker, every broker that can be reached
//! is asked, and the leaving one, if it answers, what it still hosts. A broker that is gone for good can be forgotten in the same way, after it was drained.

use std::{collections::BTreeSet, time::Duration};

use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_metadata::{Image, MetadataCommand};
use palisade_shard::{Members, NodeId};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ChangeError, Cluster,
    messages::{Answer, Question},
};

/// A broker that takes longer than this to answer has not answered.
const ANSWER: Duration = Duration::from_secs(3);
/// Whether a broker can be forgotten is asked again for so long while a shard has no leader that says it.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);

/// Why a broker was not forgotten.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemovalError {
    /// It has replicas, or a vote on the metadata.
    #[error(
        "broker {broker} is still a member of {count} shard(s), shard {first} among them: wait until it is drained"
    )]
    StillNeeded {
        broker: i32,
        count: usize,
        first: ShardId,
    },
    /// Nobody says who the members of a shard are.
    #[error("no leader of shard {0}, confirmed by a majority, says who its members are; retry")]
    Unsettled(ShardId),
    /// The metadata do not allow it, or cannot be changed now.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// What a broker knows of another's memberships in the shards that it was asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holdings {
    /// Shards that have let go of the broker in question, beyond doubt.
    pub(super) released: BTreeSet<ShardId>,
    /// Shards that count on it, as far as the answering one knows.
    pub(super) held: BTreeSet<ShardId>,
}

impl Holdings {
    /// Takes note of the members that a shard which is led here has, beyond doubt.
    fn note(&mut self, shard: ShardId, broker: i32, members: &Members) {
        let is_it = |node: &NodeId| node.broker() == broker;
        // That it follows the metadata without a vote means nothing: every registered broker does.
        let listens = shard != ShardId::METADATA && members.learners.iter().any(is_it);
        if listens || members.voters.iter().any(is_it) {
            self.held.insert(shard);
        } else {
            self.released.insert(shard);
        }
    }

    fn add(&mut self, other: Self) {
        self.released.extend(other.released);
        self.held.extend(other.held);
    }

    /// Shards that have let go, and of which nobody says otherwise.
    fn free(&self) -> BTreeSet<ShardId> {
        self.released.difference(&self.held).copied().collect()
    }
}

/// All shards there are, that of the metadata among them.
fn all(image: &Image) -> BTreeSet<ShardId> {
    let data = image.shards.keys().copied();
    data.chain([ShardId::METADATA]).collect()
}

/// Whether a broker can be forgotten, after what all have answered.
fn verdict(broker: i32, shards: &BTreeSet<ShardId>, known: &Holdings) -> Result<(), RemovalError> {
    if let Some(first) = known.held.first() {
        return Err(RemovalError::StillNeeded {
            broker,
            count: known.held.len(),
            first: *first,
        });
    }
    match shards.difference(&known.released).next() {
        Some(shard) => Err(RemovalError::Unsettled(*shard)),
        None => Ok(()),
    }
}

impl Cluster {
    /// What this broker knows of a broker's memberships in `shards`.
    pub(super) async fn holdings(
        &self,
        data: &DataPlane,
        broker: i32,
        shards: &BTreeSet<ShardId>,
    ) -> Holdings {
        let hosted = data.hosted().into_iter();
        let hosted: BTreeSet<ShardId> = hosted.filter(|shard| shards.contains(shard)).collect();
        let asked = hosted.iter().map(|shard| async move {
            data.leads(*shard)?;
            Some((*shard, data.confirmed_members(*shard).await.ok()?))
        });
        let metadata = async {
            let is_asked = shards.contains(&ShardId::METADATA) && self.is_controller();
            let members = match is_asked {
                true => self.metadata.confirmed_members().await.ok(),
                false => None,
            };
            Some((ShardId::METADATA, members?))
        };
        let (data_members, metadata) = tokio::join!(futures::future::join_all(asked), metadata);
        let mut holdings = Holdings::default();
        for (shard, members) in data_members.into_iter().chain([metadata]).flatten() {
            holdings.note(shard, broker, &members);
        }
        if self.me.broker() == broker {
            holdings.held.extend(hosted);
        }
        holdings
    }

    /// Forgets a drained broker. A process that starts under its id later registers anew and is given replicas again.
    pub(crate) async fn unregister(
        &self,
        data: &DataPlane,
        broker: i32,
    ) -> Result<(), RemovalError> {
        let command = MetadataCommand::UnregisterBroker { id: broker };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let image = self.image();
            // What the metadata refuse in any case is refused in their words.
            image.dry_run(&command).map_err(ChangeError::Refused)?;
            let shards = all(&image);
            let (mut known, others) = tokio::join!(
                self.holdings(data, broker, &shards),
                self.ask(broker, &shards)
            );
            known.add(others);
            match verdict(broker, &shards, &known) {
                Ok(()) => break,
                // Leadership moves: somebody will say it in a moment.
                Err(RemovalError::Unsettled(_)) if Instant::now() < deadline => sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
        self.change(&command).await?;
        Ok(())
    }

    /// Those of `shards` that have let go of this broker, as their leaders, other brokers all, say beyond doubt.
    pub(super) async fn let_go_of_me(&self, shards: &BTreeSet<ShardId>) -> BTreeSet<ShardId> {
        self.ask(self.me.broker(), shards).await.free()
    }

    /// What the other brokers know, as far as they can be reached, of a broker's memberships in `shards`.
    async fn ask(&self, broker: i32, shards: &BTreeSet<ShardId>) -> Holdings {
        let mut known = Holdings::default();
        let Some(peers) = &self.peers else {
            return known;
        };
        let image = self.image();
        let others = image.brokers.keys().copied();
        let others = others.filter(|other| *other != self.me.broker());
        let question = Question::Holdings(broker, shards.clone()).encode();
        let asked = others.map(|other| {
            let question = question.clone();
            timeout(ANSWER, peers.call_cluster(other, question))
        });
        for answer in futures::future::join_all(asked).await {
            if let Ok(Ok(message)) = answer
                && let Ok(Answer::Holds(holdings)) = Answer::decode(&message)
            {
                known.add(holdings);
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(ids: &[u32]) -> BTreeSet<ShardId> {
        ids.iter().copied().map(ShardId).collect()
    }

    fn known(released: &[u32], held: &[u32]) -> Holdings {
        Holdings {
            released: set(released),
            held: set(held),
        }
    }

    fn members(voters: &[i32], learners: &[i32]) -> Members {
        let nodes = |ids: &[i32]| ids.iter().map(|id| NodeId::of(*id, 7)).collect();
        Members {
            voters: nodes(voters),
            learners: nodes(learners),
        }
    }

    #[test]
    fn a_broker_goes_when_the_leader_of_every_shard_has_let_go_of_it() {
        let shards = set(&[0, 1, 2]);
        assert!(verdict(3, &shards, &known(&[0, 1, 2], &[])).is_ok());
        let message = |known| verdict(3, &shards, &known).unwrap_err().to_string();
        assert_eq!(
            message(known(&[0, 1, 2], &[2])),
            "broker 3 is still a member of 1 shard(s), shard 2 among them: wait until it is drained"
        );
        assert_eq!(
            message(known(&[0, 1], &[])),
            "no leader of shard 2, confirmed by a majority, says who its members are; retry"
        );
        assert_eq!(
            message(known(&[1, 2], &[])),
            "no leader of shard 0, confirmed by a majority, says who its members are; retry"
        );
    }

    #[test]
    fn a_member_of_any_kind_is_held_but_whoever_only_follows_the_metadata() {
        let mut holdings = Holdings::default();
        holdings.note(ShardId(1), 3, &members(&[0, 1, 3], &[]));
        holdings.note(ShardId(2), 3, &members(&[0, 1, 2], &[3]));
        holdings.note(ShardId(3), 3, &members(&[0, 1, 2], &[4]));
        holdings.note(ShardId::METADATA, 3, &members(&[0, 1, 2], &[3]));
        assert_eq!(holdings, known(&[0, 3], &[1, 2]));
        holdings.note(ShardId::METADATA, 3, &members(&[1, 2, 3], &[]));
        assert_eq!(holdings.free(), set(&[3]), "one says otherwise");
    }
}
