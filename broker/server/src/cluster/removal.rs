//! Forgetting a broker for good (Kafka's UnregisterBroker, KIP-631): only when no shard counts on it any more.
//!
//! The metadata say where replicas are to be; whether a shard has really let go of one is known to the shard's leader alone. So every broker that can be reached is
//! asked which shards it leads and which of those have the leaving one among their members, and the leaving one, if it answers, what it still hosts. Only when the
//! answers cover all shards is the change made. A broker that is gone for good can be forgotten in the same way, after it was drained.

use std::{collections::BTreeSet, time::Duration};

use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_metadata::{Image, MetadataCommand};
use palisade_shard::ShardStatus;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    ChangeError, Cluster,
    messages::{Answer, Question},
};

/// A broker that takes longer than this to answer has not answered.
const ANSWER: Duration = Duration::from_secs(3);

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
    #[error("the leader of shard {0} did not answer, or changes its members now; retry")]
    Unsettled(ShardId),
    /// The metadata do not allow it, or cannot be changed now.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// What a broker knows of another's memberships.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holdings {
    /// Shards that the answering broker leads and whose members are settled.
    pub(super) led: BTreeSet<ShardId>,
    /// Shards that count on the broker in question, as far as the answering one knows.
    pub(super) held: BTreeSet<ShardId>,
}

impl Holdings {
    /// Takes note of a shard that is led here.
    fn note(&mut self, shard: ShardId, status: &ShardStatus, is_member: bool) {
        if !status.changing {
            self.led.insert(shard);
        }
        if is_member {
            self.held.insert(shard);
        }
    }

    fn add(&mut self, other: Self) {
        self.led.extend(other.led);
        self.held.extend(other.held);
    }
}

/// Whether a broker can be forgotten, after what all have answered.
fn verdict(broker: i32, image: &Image, known: &Holdings) -> Result<(), RemovalError> {
    if let Some(first) = known.held.first() {
        return Err(RemovalError::StillNeeded {
            broker,
            count: known.held.len(),
            first: *first,
        });
    }
    let mut shards = std::iter::once(&ShardId::METADATA).chain(image.shards.keys());
    match shards.find(|shard| !known.led.contains(*shard)) {
        Some(shard) => Err(RemovalError::Unsettled(*shard)),
        None => Ok(()),
    }
}

impl Cluster {
    /// What this broker knows of a broker's memberships. That it follows the metadata without a vote is none: every registered broker does.
    pub(super) fn holdings(&self, data: &DataPlane, broker: i32) -> Holdings {
        let mut holdings = Holdings::default();
        if self.is_controller() {
            let status = self.metadata.status();
            let votes = status.voters.iter().any(|node| node.broker() == broker);
            holdings.note(ShardId::METADATA, &status, votes);
        }
        for shard in data.hosted() {
            if self.me.broker() == broker {
                holdings.held.insert(shard);
            }
            let Some(status) = data.shard_status(shard) else {
                continue;
            };
            if data.leads(shard).is_some() {
                let mut members = status.voters.iter().chain(&status.learners);
                let is_member = members.any(|node| node.broker() == broker);
                holdings.note(shard, &status, is_member);
            }
        }
        holdings
    }

    /// Forgets a drained broker. A process that starts under its id later registers anew and is given replicas again.
    pub(crate) async fn unregister(
        &self,
        data: &DataPlane,
        broker: i32,
    ) -> Result<(), RemovalError> {
        let image = self.image();
        let command = MetadataCommand::UnregisterBroker { id: broker };
        // What the metadata refuse in any case is refused in their words.
        image.dry_run(&command).map_err(ChangeError::Refused)?;
        let mut known = self.holdings(data, broker);
        known.add(self.ask(broker).await);
        verdict(broker, &image, &known)?;
        self.change(&command).await?;
        Ok(())
    }

    /// Shards whose leaders, other brokers all, say that this one is no member of them any more.
    pub(super) async fn let_go_of(&self, broker: i32) -> BTreeSet<ShardId> {
        let known = self.ask(broker).await;
        known.led.difference(&known.held).copied().collect()
    }

    /// What the other brokers that can be reached know of a broker's memberships.
    async fn ask(&self, broker: i32) -> Holdings {
        let mut known = Holdings::default();
        let Some(peers) = &self.peers else {
            return known;
        };
        let others = self.alive().into_iter();
        let others = others.filter(|other| *other != self.me.broker());
        let asked = others.map(|other| {
            let question = Question::Holdings(broker).encode();
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
    use palisade_shard::NodeId;

    use super::*;

    /// A cluster of brokers 0 to 2 and two shards, 1 and 2, on all of them.
    fn image() -> Image {
        let mut image = Image::new();
        let nodes: Vec<NodeId> = (0..3).map(|id| NodeId::of(id, 7)).collect();
        let commands = [MetadataCommand::Bootstrap {
            cluster_id: "c".to_owned(),
            data_shards: 1,
        }]
        .into_iter()
        .chain((0..3).map(|id| MetadataCommand::RegisterBroker {
            id,
            incarnation: uuid::Uuid::from_u128(7 << 96),
            rack: None,
            endpoints: Vec::new(),
        }))
        .chain([MetadataCommand::CreatePool {
            replication_factor: 3,
            replicas: vec![nodes.clone(), nodes],
            for_groups: true,
        }]);
        for command in commands {
            image.apply(command).unwrap();
        }
        image
    }

    fn known(led: &[u32], held: &[u32]) -> Holdings {
        let set = |ids: &[u32]| ids.iter().copied().map(ShardId).collect();
        Holdings {
            led: set(led),
            held: set(held),
        }
    }

    #[test]
    fn a_broker_goes_when_the_leader_of_every_shard_has_let_go_of_it() {
        let image = image();
        assert!(verdict(3, &image, &known(&[0, 1, 2], &[])).is_ok());
        let message = |known| verdict(3, &image, &known).unwrap_err().to_string();
        assert_eq!(
            message(known(&[0, 1, 2], &[2])),
            "broker 3 is still a member of 1 shard(s), shard 2 among them: wait until it is drained"
        );
        assert_eq!(
            message(known(&[0, 1], &[])),
            "the leader of shard 2 did not answer, or changes its members now; retry"
        );
        assert_eq!(
            message(known(&[1, 2], &[])),
            "the leader of shard 0 did not answer, or changes its members now; retry"
        );
    }

    #[test]
    fn what_changes_now_is_not_settled() {
        let mut holdings = Holdings::default();
        let changing = ShardStatus {
            changing: true,
            ..ShardStatus::default()
        };
        holdings.note(ShardId(1), &changing, false);
        holdings.note(ShardId(2), &ShardStatus::default(), true);
        assert_eq!(holdings, known(&[2], &[2]));
    }
}
