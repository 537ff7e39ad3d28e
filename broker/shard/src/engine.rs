//! The engine's view of a state machine: entries come in, a checkpoint is the snapshot.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, RaftSnapshotBuilder, SnapshotMeta,
    alias::{SnapshotMetaOf, SnapshotOf},
    storage::{EntryResponder, RaftStateMachine},
};
use palisade_log::ShardId;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    CheckpointError, Command, LogPosition, StateMachine,
    log_store::LogStore,
    raft_types::{LogId, StoredMembership, Types},
};

/// What the engine, checkpoints and readers share.
pub(crate) struct Shared<S> {
    pub(crate) shard: ShardId,
    pub(crate) state: Mutex<Applied<S>>,
    /// The newest durable checkpoint and the membership at it.
    pub(crate) checkpoint: Mutex<Option<(LogId, StoredMembership)>>,
    /// Term of the last applied entry.
    pub(crate) term: watch::Sender<u64>,
    pub(crate) log: LogStore,
    /// Whose turn it is with the state machine, the engine's or a checkpoint's: waiting for a checkpoint's disk must not hold a thread of the runtime.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
}

pub(crate) struct Applied<S> {
    /// Applying an entry panicked: what is in memory may be half of a change, and must not become a checkpoint.
    pub(crate) broken: bool,
    pub(crate) machine: S,
    pub(crate) at: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl<S: StateMachine> Shared<S> {
    pub(crate) fn write_checkpoint(&self) -> Result<Option<LogId>, CheckpointError> {
        let mut state = self.state.lock();
        if state.broken {
            return Err(CheckpointError::Stopped);
        }
        let Some(at) = state.at else {
            return Ok(None);
        };
        let reached = state.machine.checkpoint()?;
        if reached != position(&at) {
            return Err(CheckpointError::Write(format!(
                "it reaches to entry {} where {} was applied",
                reached.index, at.index
            )));
        }
        let membership = state.membership.clone();
        drop(state);
        self.log.set_checkpoint_membership(membership.clone());
        *self.checkpoint.lock() = Some((at, membership));
        Ok(Some(at))
    }

    /// Applies one entry. A panic of the state machine stops the shard, with the entry named, before anybody is told of a result.
    fn apply(
        &self,
        id: LogId,
        payload: EntryPayload<Command, u64, ()>,
    ) -> io::Result<Option<S::Response>> {
        let mut state = self.state.lock();
        let at = position(&id);
        let result = catch_unwind(AssertUnwindSafe(|| match payload {
            EntryPayload::Normal(command) => Some(state.machine.apply(at, command)),
            EntryPayload::Blank => {
                state.machine.blank(at);
                None
            }
            EntryPayload::Membership(membership) => {
                state.machine.blank(at);
                state.membership = StoredMembership::new(Some(id), membership);
                None
            }
        }));
        state.broken |= result.is_err();
        let response = result.map_err(|_| {
            tracing::error!(shard = %self.shard, index = at.index, term = at.term, "applying an entry panicked; the shard stops");
            io::Error::other(format!("applying entry {} panicked", at.index))
        })?;
        state.at = Some(id);
        drop(state);
        self.term
            .send_if_modified(|term| std::mem::replace(term, at.term) != at.term);
        Ok(response)
    }
}

/// The engine's view of the state machine.
pub(crate) struct Machine<S> {
    pub(crate) shared: Arc<Shared<S>>,
}

impl<S: StateMachine> Machine<S> {
    fn snapshot(&self) -> Option<SnapshotOf<Types<S::Response>, ()>> {
        let (last, membership) = self.shared.checkpoint.lock().clone()?;
        Some(SnapshotOf::<Types<S::Response>, ()> {
            meta: SnapshotMeta {
                last_log_id: Some(last),
                last_membership: membership,
            },
            snapshot: (),
        })
    }
}

impl<S: StateMachine> RaftSnapshotBuilder<Types<S::Response>> for Machine<S> {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types<S::Response>, ()>> {
        self.snapshot()
            .ok_or_else(|| io::Error::other("there is no checkpoint yet"))
    }
}

impl<S: StateMachine> RaftStateMachine<Types<S::Response>> for Machine<S> {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.shared.state.lock();
        Ok((state.at, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types<S::Response>>>> + Unpin + Send,
    {
        let _turn = self.shared.turn.lock().await;
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let response = self.shared.apply(id, entry.payload)?;
            if let (Some(responder), Some(response)) = (responder, response) {
                responder.send(response);
            }
            self.shared.log.applied(id.index);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types<S::Response>>,
        (): (),
    ) -> io::Result<()> {
        Err(io::Error::other(format!(
            "a snapshot at {:?} was sent to a shard that has no peers",
            meta.last_log_id
        )))
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<Types<S::Response>, ()>>> {
        Ok(self.snapshot())
    }
}

/// A log id as the state machine knows it.
pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: id.leader_id.term,
        index: id.index,
    }
}
