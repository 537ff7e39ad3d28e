//! Replicas of the shards: who leads, who votes, and what they tell each other.

use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc};

use palisade_log::ShardId;
use palisade_shard::{Members, MembersError, Message, NodeId, ShardStatus};
use tokio::{sync::watch, task::JoinSet};

use super::{DataPlane, Leaders};
use crate::{repair, types::DataError};

impl DataPlane {
    /// Takes a message of another broker's replica of a shard. Must be called in the order in which a peer's messages arrive; the answer may be awaited anywhere.
    /// `None`: the shard is not hosted here, or is about to be given up.
    pub fn handle(
        &self,
        from: NodeId,
        shard: ShardId,
        message: Message,
    ) -> Option<Pin<Box<dyn Future<Output = Message> + Send>>> {
        let handle = self.handle_of(shard)?;
        if handle.is_deaf() {
            return None;
        }
        if repair::is_question(message.kind) {
            self.is_asked(shard, from);
            let turns = Arc::clone(&self.repairing.serving);
            let served = Self::serve_repair(handle, self.runtime.clone(), turns, message);
            return Some(Box::pin(served));
        }
        Some(handle.shard.handle(from, message))
    }

    /// A shard at this moment; `None` when it is not hosted here.
    #[must_use]
    pub fn shard_status(&self, shard: ShardId) -> Option<ShardStatus> {
        Some(self.handle_of(shard)?.shard.status())
    }

    /// Who leads the shards that are hosted here, and every change of it.
    #[must_use]
    pub fn leaders(&self) -> watch::Receiver<Leaders> {
        self.leaders.subscribe()
    }

    /// The term in which this broker leads a shard, and serves it; `None` when it does not.
    #[must_use]
    pub fn leads(&self, shard: ShardId) -> Option<u64> {
        self.handle_of(shard)?.term()
    }

    /// The process of a peer is gone: the shards that it led are led by others without waiting.
    pub fn peer_lost(&self, node: NodeId) {
        for handle in self.handles().values() {
            handle.shard.peer_lost(node);
        }
    }

    /// Makes exactly these the voters of a shard that this broker leads. See [`palisade_shard::Shard::set_members`].
    ///
    /// # Errors
    /// [`DataError::NotLeader`] when the shard is not hosted here, [`DataError::Members`].
    pub async fn set_members(
        &self,
        shard: ShardId,
        voters: BTreeSet<NodeId>,
    ) -> Result<(), DataError> {
        let handle = self.handle_of(shard).ok_or(DataError::NotLeader)?;
        Ok(handle.shard.set_members(voters).await?)
    }

    /// Who the replicas of a shard that this broker leads are, beyond doubt. See [`palisade_shard::Shard::confirmed_members`].
    ///
    /// # Errors
    /// As [`DataPlane::set_members`].
    pub async fn confirmed_members(&self, shard: ShardId) -> Result<Members, DataError> {
        let handle = self.handle_of(shard).ok_or(DataError::NotLeader)?;
        Ok(handle.shard.confirmed_members().await?)
    }

    /// Hands the leadership of a shard to another voter.
    ///
    /// # Errors
    /// As [`DataPlane::set_members`].
    pub async fn transfer(&self, shard: ShardId, to: NodeId) -> Result<(), DataError> {
        let handle = self.handle_of(shard).ok_or(DataError::NotLeader)?;
        Ok(handle.shard.transfer_leadership(to).await?)
    }

    /// Hands every shard that this broker leads to the node that `to` names for it, all at once: before a planned stop. Returns what went wrong.
    pub async fn transfer_all(
        &self,
        to: impl Fn(ShardId) -> Option<NodeId>,
    ) -> Vec<(ShardId, MembersError)> {
        let mut transfers = JoinSet::new();
        for (shard, handle) in self.handles().iter() {
            if let (Some(_), Some(node)) = (handle.term(), to(*shard)) {
                let (shard, handle) = (*shard, Arc::clone(handle));
                transfers.spawn_on(
                    async move {
                        let outcome = handle.shard.transfer_leadership(node).await;
                        outcome.err().map(|error| (shard, error))
                    },
                    &self.runtime,
                );
            }
        }
        let mut failed = Vec::new();
        while let Some(outcome) = transfers.join_next().await {
            failed.extend(outcome.ok().flatten());
        }
        failed
    }
}
