//! The way to a shard's peers. There are none yet: a shard has one voter, and whoever is asked to reach another says so.

use std::{future::Future, io, marker::PhantomData};

use openraft::{
    RaftNetworkFactory, RaftNetworkV2, RaftTypeConfig,
    alias::{SnapshotOf, VoteOf},
    error::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};

/// A network without peers.
pub(crate) struct NoPeers<R>(PhantomData<fn() -> R>);

impl<R> Default for NoPeers<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

fn unreachable<C: RaftTypeConfig>() -> Unreachable<C> {
    Unreachable::new(&io::Error::new(
        io::ErrorKind::NotConnected,
        "this shard has no peers",
    ))
}

impl<C: RaftTypeConfig<Node = ()>> RaftNetworkFactory<C> for NoPeers<C> {
    type Network = Self;

    async fn new_client(&mut self, _: C::NodeId, (): &()) -> Self {
        Self::default()
    }
}

impl<C: RaftTypeConfig> RaftNetworkV2<C> for NoPeers<C> {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<C>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        Err(RPCError::Unreachable(unreachable()))
    }

    async fn vote(
        &mut self,
        _: VoteRequest<C>,
        _: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        Err(RPCError::Unreachable(unreachable()))
    }

    async fn full_snapshot(
        &mut self,
        _: VoteOf<C>,
        _: SnapshotOf<C, ()>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        Err(StreamingError::Unreachable(unreachable()))
    }
}
