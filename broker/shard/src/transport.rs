//! The way to the other replicas of a shard, as this crate sees it.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;
use palisade_log::ShardId;

use crate::NodeId;

/// A message between two replicas of a shard. What is in it is this crate's affair; carrying it is the transport's.
#[derive(Clone, Default)]
pub struct Message {
    /// What it is.
    pub kind: u8,
    /// Small and structured.
    pub head: Bytes,
    /// Bulk: ciphertext that is carried as it is. How it is cut may change on the way; only the bytes in their order count.
    pub payload: Vec<Bytes>,
}

impl Message {
    /// Bytes of all parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload
            .iter()
            .fold(self.head.len(), |sum, part| sum.saturating_add(part.len()))
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Sizes only: a message carries what no log may show.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("kind", &self.kind)
            .field("bytes", &self.len())
            .finish()
    }
}

/// Why a message was not answered. Whether it arrived is then unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// There is no connection to the peer, and none was tried for this message.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(NodeId, String),
    /// The connection broke before the answer came.
    #[error("the connection to {0} broke: {1}")]
    Broken(NodeId, String),
    /// The peer does not host the shard (not yet, or not any more).
    #[error("{0} does not host the shard")]
    NotHosted(NodeId),
    /// The peer took too long.
    #[error("{0} did not answer in time")]
    TimedOut(NodeId),
}

/// Carries messages to peers.
///
/// Messages to one peer about one shard are handed to that peer's [`crate::Shard::handle`] in the order of the calls, as long as the connection stands; when it
/// breaks, everything that was not answered fails. Never blocks: what cannot be sent at once waits, within bounds that the transport sets, or fails.
pub trait Transport: Send + Sync + 'static {
    /// Sends a message; the future has the answer. The message has its place in the order when this returns; dropping the future takes nothing back.
    fn call(
        &self,
        to: NodeId,
        shard: ShardId,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, TransportError>>;
}

/// The transport of a broker that has no peers: nobody can be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn call(
        &self,
        to: NodeId,
        _: ShardId,
        _: Message,
    ) -> BoxFuture<'static, Result<Message, TransportError>> {
        let reason = "this broker has no peers".to_owned();
        Box::pin(async move { Err(TransportError::Unreachable(to, reason)) })
    }
}
