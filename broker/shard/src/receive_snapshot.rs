//! Receiving a snapshot: one at a time, kept aside until it is complete.
//!
//! A task takes the steps of transfers in the order in which they arrive, and does on other threads what may wait for a disk. A transfer is forgotten when
//! another begins, when its sender abandons it, when something is wrong with it, or when nothing comes for a while.
//!
//! A complete snapshot may have been overtaken: its sender has given it up and gone on with entries, or entries that were under way before it arrive first. The
//! engine must not install one that ends before the log does, so what the log holds already is not installed, and while that is decided and done no entries
//! are taken.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use openraft::{
    Raft,
    alias::SnapshotOf,
    async_runtime::watch::WatchReceiver,
    raft::{AppendEntriesRequest, StreamAppendError},
};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, mpsc, oneshot};

use crate::{
    CheckpointError, Incoming, Message, NodeId, StateMachine,
    engine::{Machine, Shared},
    log_store::LogStore,
    raft_types::{Place, Types, Vote},
    snapshot::SnapshotData,
    wire::{self, Begin, Part},
};

/// Steps that may wait; a sender has few under way.
const MOST_STEPS: usize = 16;
/// How long nothing may come before a transfer is forgotten.
const IDLE: Duration = Duration::from_secs(120);

type Asked = (NodeId, Step, oneshot::Sender<Message>);

/// The way to the task. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Receiver {
    steps: mpsc::Sender<Asked>,
    appends: Arc<RwLock<()>>,
}

/// An append that was handed to the engine and did not get its answer: no snapshot is installed meanwhile.
pub(crate) struct UnderWay {
    _guard: OwnedRwLockReadGuard<()>,
}

/// A step of a transfer.
pub(crate) enum Step {
    Begin(Box<Begin>),
    Part(Part),
    End(Part),
    Abandon(Part),
}

impl Receiver {
    /// A receiver and what its task has to do.
    pub(crate) fn new() -> (Self, Steps) {
        let (sender, steps) = mpsc::channel(MOST_STEPS);
        let appends = Arc::new(RwLock::new(()));
        let receiver = Self {
            steps: sender,
            appends: Arc::clone(&appends),
        };
        (receiver, Steps { steps, appends })
    }

    /// To be held until an append is answered; `None` while a snapshot is installed or about to be.
    pub(crate) fn append(&self) -> Option<UnderWay> {
        let guard = Arc::clone(&self.appends).try_read_owned().ok()?;
        Some(UnderWay { _guard: guard })
    }

    pub(crate) fn step(&self, from: NodeId, step: Step) -> BoxFuture<'static, Message> {
        let (answer, answered) = oneshot::channel();
        match self.steps.try_send((from, step, answer)) {
            Ok(()) => async move {
                let answer = answered.await;
                answer.unwrap_or_else(|_| wire::refused("the shard has stopped"))
            }
            .boxed(),
            Err(_) => {
                std::future::ready(wire::refused("too many parts of snapshots wait here")).boxed()
            }
        }
    }
}

pub(crate) struct Steps {
    steps: mpsc::Receiver<Asked>,
    appends: Arc<RwLock<()>>,
}

/// A transfer under way.
struct Transfer {
    from: NodeId,
    id: u64,
    vote: Vote,
    place: Place,
    next: u64,
    incoming: Box<dyn Incoming>,
}

/// Does what the steps say, until the shard stops.
pub(crate) async fn receive<S: StateMachine>(
    raft: Raft<Types<S::Response>, Machine<S>>,
    shared: Arc<Shared<S>>,
    mut steps: Steps,
) {
    let mut current = None;
    loop {
        let step = match current.is_some() {
            false => steps.steps.recv().await,
            true => match tokio::time::timeout(IDLE, steps.steps.recv()).await {
                Ok(step) => step,
                Err(_) => {
                    discard(current.take());
                    continue;
                }
            },
        };
        let Some((from, step, answer)) = step else {
            return;
        };
        let message = match step {
            Step::Begin(begin) => {
                discard(current.take());
                match start(&raft, &shared, from, *begin).await {
                    Ok((transfer, have)) => {
                        current = Some(transfer);
                        wire::have(have)
                    }
                    Err(message) => message,
                }
            }
            Step::Part(part) => match take(&mut current, from, &part) {
                Err(message) => message,
                Ok(transfer) => match keep(transfer, part.bytes).await {
                    Ok(transfer) => {
                        current = Some(transfer);
                        wire::plain(wire::TAKEN)
                    }
                    Err(error) => {
                        tracing::warn!(shard = %shared.shard, %from, %error, "a part of a snapshot was refused");
                        wire::refused(&error.to_string())
                    }
                },
            },
            Step::End(part) => match take(&mut current, from, &part) {
                Err(message) => message,
                Ok(transfer) => {
                    // Waits for the appends that the engine has; others are refused until this is over.
                    let _alone = steps.appends.write().await;
                    install(&raft, &shared.log, transfer).await
                }
            },
            Step::Abandon(part) => {
                if current
                    .as_ref()
                    .is_some_and(|current| (current.from, current.id) == (from, part.transfer))
                {
                    discard(current.take());
                }
                wire::plain(wire::TAKEN)
            }
        };
        // Nobody waits any more when the connection broke.
        let _ = answer.send(message);
    }
}

async fn start<S: StateMachine>(
    raft: &Raft<Types<S::Response>, Machine<S>>,
    shared: &Arc<Shared<S>>,
    from: NodeId,
    begin: Begin,
) -> Result<(Transfer, Bytes), Message> {
    let known = raft.server_metrics().borrow_watched().vote;
    if known > begin.vote {
        return Err(wire::with_vote(wire::OUTVOTED, &known));
    }
    let shared = Arc::clone(shared);
    let description = begin.description;
    let received = crate::blocking(move || {
        let state = shared.state.lock();
        match state.broken {
            true => Err(CheckpointError::Stopped),
            false => state.machine.receive(description),
        }
    });
    let (incoming, have) = match received.await {
        Ok(Ok(received)) => received,
        Ok(Err(error)) => return Err(wire::refused(&error.to_string())),
        Err(error) => return Err(wire::refused(&error.to_string())),
    };
    let transfer = Transfer {
        from,
        id: begin.transfer,
        vote: begin.vote,
        place: begin.place,
        next: 0,
        incoming,
    };
    Ok((transfer, have))
}

/// Takes the transfer out if this part is its next.
fn take(current: &mut Option<Transfer>, from: NodeId, part: &Part) -> Result<Transfer, Message> {
    let is_next = |transfer: &mut Transfer| {
        (transfer.from, transfer.id, transfer.next) == (from, part.transfer, part.sequence)
    };
    current
        .take_if(is_next)
        .ok_or_else(|| wire::refused("this snapshot is not being received, or a part is missing"))
}

async fn keep(mut transfer: Transfer, bytes: Bytes) -> Result<Transfer, CheckpointError> {
    let kept = crate::blocking(move || {
        transfer.incoming.chunk(bytes)?;
        transfer.next = transfer.next.saturating_add(1);
        Ok(transfer)
    });
    kept.await
        .map_err(|error| CheckpointError::Write(error.to_string()))?
}

/// Installs a complete snapshot, unless the log reaches its end already.
async fn install<S: StateMachine>(
    raft: &Raft<Types<S::Response>, Machine<S>>,
    log: &LogStore,
    transfer: Transfer,
) -> Message {
    let end = transfer.place.last_log_id;
    if end.is_some_and(|end| log.log_id_at(end.index) == Some(end)) {
        // Where two logs hold the same entry they are the same up to it. An append of nothing behind it has the engine look at the vote, and answers when what is
        // there is durable: the sender lets go of its own copy.
        let vote = transfer.vote;
        discard(Some(transfer));
        let nothing = AppendEntriesRequest {
            vote,
            prev_log_id: end,
            leader_commit: end,
            entries: Vec::new(),
        };
        let appended = raft.append_entries(nothing).await;
        return match appended.map(|answer| answer.into_stream_result(end, end)) {
            Ok(Ok(_)) => wire::with_vote(wire::INSTALLED, &vote),
            Ok(Err(StreamAppendError::HigherVote(vote))) => wire::with_vote(wire::INSTALLED, &vote),
            Ok(Err(StreamAppendError::Conflict(_))) => wire::refused("the log was cut meanwhile"),
            Err(_) => wire::refused("the shard has stopped"),
        };
    }
    let snapshot = SnapshotOf::<Types<S::Response>, SnapshotData> {
        meta: transfer.place,
        snapshot: SnapshotData::Received(transfer.incoming),
    };
    match raft.install_full_snapshot(transfer.vote, snapshot).await {
        Ok(response) => wire::with_vote(wire::INSTALLED, &response.vote),
        Err(_) => wire::refused("the shard has stopped"),
    }
}

/// Forgets a transfer. What it kept aside is removed where that may take its time.
fn discard(transfer: Option<Transfer>) {
    if let Some(transfer) = transfer {
        tokio::spawn(crate::blocking(move || drop(transfer)));
    }
}

#[cfg(test)]
#[path = "receive_snapshot_tests.rs"]
mod tests;
