//! The engine's view of a state machine: entries come in, snapshots go out and come in.

use std::{
    io,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, RaftSnapshotBuilder,
    alias::SnapshotOf,
    storage::{EntryResponder, RaftStateMachine},
};
use palisade_log::ShardId;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    CheckpointError, Command, Incoming, LogPosition, StateMachine,
    log_store::LogStore,
    raft_types::{LogId, Place, StoredMembership, Types},
    snapshot::SnapshotData,
};

/// What the engine, checkpoints and readers share.
pub(crate) struct Shared<S> {
    pub(crate) shard: ShardId,
    pub(crate) state: Mutex<Applied<S>>,
    /// The newest durable checkpoint.
    pub(crate) checkpoint: Mutex<Option<LogId>>,
    /// Term of the last applied entry.
    pub(crate) term: watch::Sender<u64>,
    pub(crate) log: LogStore,
    /// Whose turn it is with the state machine, the engine's or a checkpoint's: waiting for a checkpoint's disk must not hold a thread of the runtime.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether the engine has started: before, it asks for snapshots only to see where they are.
    pub(crate) started: AtomicBool,
}

pub(crate) struct Applied<S> {
    /// Applying an entry or installing a snapshot failed: what is in memory may be half of a change, and must not become a checkpoint.
    pub(crate) broken: bool,
    pub(crate) machine: S,
    pub(crate) at: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl<S: StateMachine> Shared<S> {
    /// Has the state machine make durable what was applied; returns the place and the membership there.
    pub(crate) fn write_checkpoint(
        &self,
    ) -> Result<Option<(LogId, StoredMembership)>, CheckpointError> {
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
        *self.checkpoint.lock() = Some(at);
        Ok(Some((at, membership)))
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
        self.reached(&at);
        Ok(response)
    }

    /// Replaces the state machine's state by a snapshot.
    fn install(
        &self,
        at: LogId,
        membership: StoredMembership,
        incoming: Box<dyn Incoming>,
    ) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.broken {
            return Err(io::Error::other("the state machine is broken"));
        }
        let place = position(&at);
        let result = catch_unwind(AssertUnwindSafe(|| state.machine.install(place, incoming)));
        let result = result.unwrap_or_else(|_| {
            Err(CheckpointError::Write(
                "installing a snapshot panicked".to_owned(),
            ))
        });
        if let Err(error) = result {
            state.broken = true;
            tracing::error!(shard = %self.shard, index = place.index, %error, "a snapshot cannot be installed; the shard stops");
            return Err(io::Error::other(error));
        }
        state.at = Some(at);
        state.membership = membership;
        drop(state);
        *self.checkpoint.lock() = Some(at);
        self.reached(&place);
        Ok(())
    }

    fn reached(&self, at: &LogPosition) {
        self.term
            .send_if_modified(|term| std::mem::replace(term, at.term) != at.term);
    }

    /// The state as it is now, with its place.
    fn snapshot(&self) -> Option<SnapshotOf<Types<S::Response>, SnapshotData>> {
        let is_started = self.started.load(Ordering::Acquire);
        let state = self.state.lock();
        let snapshot = match is_started {
            false => SnapshotData::Place,
            true if state.broken => SnapshotData::Unavailable(CheckpointError::Stopped),
            true => match state.machine.snapshot() {
                Ok(snapshot) => SnapshotData::Outgoing(snapshot),
                Err(error) => SnapshotData::Unavailable(error),
            },
        };
        Some(SnapshotOf::<Types<S::Response>, SnapshotData> {
            meta: place(&state)?,
            snapshot,
        })
    }
}

fn place<S>(state: &Applied<S>) -> Option<Place> {
    Some(Place {
        last_log_id: Some(state.at?),
        last_membership: state.membership.clone(),
    })
}

/// The engine's view of the state machine.
pub(crate) struct Machine<S> {
    pub(crate) shared: Arc<Shared<S>>,
}

/// Where the state machine was when the engine asked for a snapshot in order to purge the log.
pub(crate) struct Here<R>(Option<Place>, PhantomData<fn() -> R>);

impl<R: Send + Sync + 'static> RaftSnapshotBuilder<Types<R>> for Here<R> {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types<R>, SnapshotData>> {
        let meta = self
            .0
            .take()
            .ok_or_else(|| io::Error::other("nothing was applied yet"))?;
        Ok(SnapshotOf::<Types<R>, SnapshotData> {
            meta,
            snapshot: SnapshotData::Place,
        })
    }
}

impl<S: StateMachine> RaftStateMachine<Types<S::Response>> for Machine<S> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Here<S::Response>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.shared.state.lock();
        Ok((state.at, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types<S::Response>>>> + Unpin + Send,
    {
        let _turn = self.shared.turn.lock().await;
        let mut last = None;
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let response = self.shared.apply(id, entry.payload)?;
            if let Some(responder) = responder {
                responder.send(response);
            }
            last = Some(id.index);
        }
        if let Some(last) = last {
            self.shared.log.applied(last);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Here<S::Response> {
        Here(place(&self.shared.state.lock()), PhantomData)
    }

    async fn install_snapshot(&mut self, meta: &Place, snapshot: SnapshotData) -> io::Result<()> {
        let (Some(at), SnapshotData::Received(incoming)) = (meta.last_log_id, snapshot) else {
            return Err(io::Error::other("this is no snapshot that was received"));
        };
        let membership = meta.last_membership.clone();
        // A crash from here on finds either the old state machine and its log, or the new one, of which this says that the log begins there.
        self.shared.log.installing(at, membership.clone()).await?;
        let shared = Arc::clone(&self.shared);
        let turn = Arc::clone(&shared.turn).lock_owned().await;
        let installed = membership.clone();
        crate::blocking(move || {
            let _turn = turn;
            shared.install(at, installed, incoming)
        })
        .await
        .map_err(io::Error::other)??;
        self.shared.log.release(at, membership).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<Types<S::Response>, SnapshotData>>> {
        Ok(self.shared.snapshot())
    }
}

/// A log id as the state machine knows it.
pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: id.leader_id.term,
        index: id.index,
    }
}
