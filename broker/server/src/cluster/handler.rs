//! The desk where messages of other brokers arrive.

use std::sync::{Arc, OnceLock};

use futures::{FutureExt, future::BoxFuture};
use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_metadata::MetadataCommand;
use palisade_peer::{CLUSTER_CHANNEL, Handler, Refused};
use palisade_shard::{Message, NodeId};

use super::{
    Cluster, Election,
    messages::{Answer, ChangeFailure, Question},
    removal::Holdings,
};

/// Takes messages from the moment the control port is open; what is not there yet is refused, and asked for again.
///
/// It is made when it is known whether the volume holds a shard 0: a broker that is still reading its volume must not be taken for a new one.
pub(crate) struct Desk {
    me: NodeId,
    /// The volume held something of shard 0 at the start.
    old: bool,
    /// Set when this broker has, or has found out how to get, a place in shard 0.
    cluster: OnceLock<Arc<Cluster>>,
    data: OnceLock<Arc<DataPlane>>,
}

impl Desk {
    /// The desk of this broker, whose volume is `old` or held nothing of shard 0.
    pub(crate) fn new(me: NodeId, old: bool) -> Self {
        Self {
            me,
            old,
            cluster: OnceLock::new(),
            data: OnceLock::new(),
        }
    }

    /// Opens shard 0.
    pub(crate) fn open_cluster(&self, cluster: Arc<Cluster>) {
        drop(self.cluster.set(cluster));
    }

    /// Opens the data shards.
    pub(crate) fn open_data(&self, data: Arc<DataPlane>) {
        drop(self.data.set(data));
    }

    fn answer(&self, from: NodeId, question: Question) -> BoxFuture<'static, Answer> {
        let cluster = self.cluster.get().cloned();
        match (question, cluster) {
            (Question::WhoAreYou, cluster) => {
                let answer = Answer::IAm {
                    node: self.me,
                    formed: self.old || cluster.as_ref().is_some_and(|cluster| cluster.is_formed()),
                    controller: cluster.and_then(|cluster| cluster.controller()),
                };
                async move { answer }.boxed()
            }
            (Question::Leaders(update, is_full), Some(cluster)) => {
                cluster.note_full(from.broker(), is_full);
                cluster.learn(&update);
                async { Answer::Noted }.boxed()
            }
            (Question::Leaders(..), None) => async { Answer::Noted }.boxed(),
            (Question::Change(command), Some(cluster)) => async move {
                Answer::Changed(match MetadataCommand::decode(&command) {
                    Ok(command) => cluster.decide(&command).await,
                    Err(error) => Err(ChangeFailure::Refused(error)),
                })
            }
            .boxed(),
            (Question::Quorum, cluster) => {
                let quorum = cluster.and_then(|cluster| cluster.own_metadata_quorum());
                async move { Answer::Quorum(quorum) }.boxed()
            }
            (Question::GiveBack(shard), cluster) => {
                let known = cluster.zip(self.data.get().cloned());
                async move {
                    Answer::GaveBack(match known {
                        Some((cluster, data)) => cluster.give_back(&data, shard).await,
                        None => Election::Unavailable("its leader is starting".to_owned()),
                    })
                }
                .boxed()
            }
            (Question::Holdings(broker, shards), cluster) => {
                let known = cluster.zip(self.data.get().cloned());
                async move {
                    Answer::Holds(match known {
                        Some((cluster, data)) => cluster.holdings(&data, broker, &shards).await,
                        None => Holdings::default(),
                    })
                }
                .boxed()
            }
            (Question::Change(_), None) => {
                async { Answer::Changed(Err(ChangeFailure::NotController)) }.boxed()
            }
        }
    }
}

impl Handler for Desk {
    fn handle(
        &self,
        from: NodeId,
        channel: u32,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, Refused>> {
        if channel == CLUSTER_CHANNEL {
            return match Question::decode(&message) {
                Ok(question) => {
                    let answer = self.answer(from, question);
                    async move { Ok(answer.await.encode()) }.boxed()
                }
                Err(reason) => {
                    tracing::warn!(peer = %from, reason, "a message of a peer makes no sense");
                    async { Err(Refused::Failed(reason)) }.boxed()
                }
            };
        }
        let shard = ShardId(channel);
        if shard == ShardId::METADATA {
            return match self.cluster.get() {
                Some(cluster) => {
                    let answer = cluster.metadata.handle(from, message);
                    async move { Ok(answer.await) }.boxed()
                }
                None => async { Err(Refused::NotHosted) }.boxed(),
            };
        }
        match self
            .data
            .get()
            .and_then(|data| data.handle(from, shard, message))
        {
            Some(answer) => async move { Ok(answer.await) }.boxed(),
            None => async { Err(Refused::NotHosted) }.boxed(),
        }
    }
}

impl Cluster {
    /// Whether shard 0 has members, as far as it is known here.
    pub(crate) fn is_formed(&self) -> bool {
        !self.metadata.status().voters.is_empty()
    }
}
