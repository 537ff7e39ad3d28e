//! Messages of other replicas.
//!
//! Appends belong to the stream in which the leader sends them. The first one of a stream opens a session of the engine, and those that follow are fed to it
//! as they arrive, so that the engine writes while more is on its way. When a session has ended, which an append that does not fit does to it, what
//! still comes of its stream is refused; the leader begins another stream then. There is one session at a time, because there is one leader.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use openraft::{
    Raft,
    raft::{
        AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse,
    },
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::{
    Message, NodeId, StateMachine,
    engine::Machine,
    log_store::LogStore,
    raft_types::{LeaderId, Types, Vote},
    receive_snapshot::{Receiver, Step, UnderWay},
    wire::{self, Appended, Malformed},
};

/// Most bytes of appends that wait in a session. A leader keeps far below.
const MOST_BYTES: usize = 64 << 20;

type Engine<S> = Raft<Types<<S as StateMachine>::Response>, Machine<S>>;

/// The receiving side of a shard.
pub(crate) struct Inbox<S: StateMachine> {
    raft: Engine<S>,
    log: LogStore,
    session: Mutex<Option<Session<S::Response>>>,
    snapshots: Receiver,
    /// From whom an append or a part of a snapshot came last, and when.
    heard: Mutex<Option<(NodeId, Instant)>>,
}

struct Session<R: Send + Sync + 'static> {
    from: NodeId,
    id: u64,
    feed: mpsc::UnboundedSender<AppendEntriesRequest<Types<R>>>,
    answers: mpsc::UnboundedSender<Waiting>,
    has_ended: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
}

struct Waiting {
    answer: oneshot::Sender<Message>,
    bytes: usize,
    _under_way: UnderWay,
}

impl<S: StateMachine> Inbox<S> {
    pub(crate) fn new(raft: Engine<S>, log: LogStore, snapshots: Receiver) -> Self {
        Self {
            raft,
            log,
            session: Mutex::default(),
            snapshots,
            heard: Mutex::default(),
        }
    }

    /// From whom an append or a part of a snapshot came last, and when.
    pub(crate) fn heard(&self) -> Option<(NodeId, Instant)> {
        *self.heard.lock()
    }

    /// Forgets when `node` was heard of.
    pub(crate) fn forget(&self, node: NodeId) {
        let mut heard = self.heard.lock();
        *heard = heard.filter(|(from, _)| *from != node);
    }

    pub(crate) fn handle(&self, from: NodeId, message: Message) -> BoxFuture<'static, Message> {
        match self.dispatch(from, message) {
            Ok(answer) => answer,
            Err(malformed) => {
                tracing::warn!(%from, %malformed, "a message was refused");
                ready(wire::refused(&malformed.to_string()))
            }
        }
    }

    fn dispatch(
        &self,
        from: NodeId,
        message: Message,
    ) -> Result<BoxFuture<'static, Message>, Malformed> {
        let raft = self.raft.clone();
        let sent_by = |node: u64| match NodeId(node) == from {
            true => Ok(()),
            false => Err(Malformed("it speaks for another replica".to_owned())),
        };
        match message.kind {
            wire::APPEND => {
                let bytes = message.len();
                let (id, request) = wire::read_append(message)?;
                sent_by(request.vote.leader_id.voted_for)?;
                self.hear(from);
                Ok(self.append(from, id, request, bytes))
            }
            wire::HEARTBEAT => {
                let (_, request) = wire::read_append(message)?;
                sent_by(request.vote.leader_id.voted_for)?;
                // Entries come in a session, where they do not get between a snapshot and its installation.
                if !request.entries.is_empty() {
                    return Err(Malformed("a heartbeat with entries".to_owned()));
                }
                self.hear(from);
                Ok(single(raft, request).boxed())
            }
            wire::VOTE | wire::PRE_VOTE => {
                let is_real = message.kind == wire::VOTE;
                let request = wire::read_vote(&message)?;
                sent_by(request.vote.leader_id.voted_for)?;
                if let Some(refusal) = self.refusal(&request) {
                    return Ok(ready(refusal));
                }
                Ok(async move {
                    let voted = match is_real {
                        true => raft.vote(request).await,
                        false => raft.pre_vote(request).await,
                    };
                    voted.map_or_else(|_| stopped(), |voted| wire::voted(&voted))
                }
                .boxed())
            }
            wire::TRANSFER => {
                let request = wire::read_transfer(&message)?;
                sent_by(request.from_leader().leader_id.voted_for)?;
                if self.log.lacks().is_some() {
                    return Ok(ready(wire::refused("this replica has not caught up")));
                }
                Ok(async move {
                    match raft.handle_transfer_leader(request).await {
                        Ok(Ok(())) => wire::plain(wire::TRANSFERRED),
                        Ok(Err(error)) => wire::refused(&error.to_string()),
                        Err(_) => stopped(),
                    }
                }
                .boxed())
            }
            wire::SNAPSHOT_BEGIN => {
                let begin = wire::read_begin(message)?;
                sent_by(begin.vote.leader_id.voted_for)?;
                self.hear(from);
                Ok(self.snapshots.step(from, Step::Begin(Box::new(begin))))
            }
            wire::SNAPSHOT_PART => {
                self.hear(from);
                Ok(self
                    .snapshots
                    .step(from, Step::Part(wire::read_part(message)?)))
            }
            wire::SNAPSHOT_END => {
                self.hear(from);
                Ok(self
                    .snapshots
                    .step(from, Step::End(wire::read_part(message)?)))
            }
            wire::SNAPSHOT_ABANDON => Ok(self
                .snapshots
                .step(from, Step::Abandon(wire::read_part(message)?))),
            other => Err(Malformed(format!("its kind {other} is unknown"))),
        }
    }

    /// The answer to a candidate that has less than the replica that was here before; see [`LogStore::lacks`].
    fn refusal(&self, request: &VoteRequest<Types<S::Response>>) -> Option<Message> {
        let promised = self.log.lacks()?;
        if request.last_log_id >= Some(promised) {
            return None;
        }
        let nobody = Vote {
            leader_id: LeaderId {
                term: 0,
                voted_for: 0,
            },
            committed: false,
        };
        let vote = self.log.vote().unwrap_or(nobody);
        let refusal: VoteResponse<Types<S::Response>> =
            VoteResponse::new(vote, Some(promised), false);
        Some(wire::voted(&refusal))
    }

    fn hear(&self, from: NodeId) {
        *self.heard.lock() = Some((from, Instant::now()));
    }

    /// Feeds an append to its session.
    fn append(
        &self,
        from: NodeId,
        id: u64,
        request: AppendEntriesRequest<Types<S::Response>>,
        bytes: usize,
    ) -> BoxFuture<'static, Message> {
        let Some(under_way) = self.snapshots.append() else {
            return ready(wire::refused("a snapshot is being installed here"));
        };
        let mut slot = self.session.lock();
        if slot
            .as_ref()
            .is_none_or(|session| (session.from, session.id) != (from, id))
        {
            *slot = Some(self.open(from, id));
        }
        let Some(session) = slot.as_ref() else {
            return ready(stopped());
        };
        if session.has_ended.load(Ordering::Acquire) {
            return ready(wire::refused("this stream has ended"));
        }
        if session.bytes.fetch_add(bytes, Ordering::Relaxed) > MOST_BYTES {
            session.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return ready(wire::refused("too much waits to be written here"));
        }
        let (answer, answered) = oneshot::channel();
        // In this order: an answer is never there before somebody waits for it. When a receiver is gone, so is the session, and the answer is a refusal.
        let _ = session.answers.send(Waiting {
            answer,
            bytes,
            _under_way: under_way,
        });
        let _ = session.feed.send(request);
        async move { answered.await.unwrap_or_else(|_| stopped()) }.boxed()
    }

    fn open(&self, from: NodeId, id: u64) -> Session<S::Response> {
        let (feed, requests) = mpsc::unbounded_channel();
        let (answers, waiting) = mpsc::unbounded_channel();
        let input = futures::stream::unfold(requests, |mut requests| async move {
            let request = requests.recv().await?;
            Some((request, requests))
        });
        let output = self.raft.stream_append(input);
        let has_ended = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(AtomicUsize::new(0));
        tokio::spawn(answer_all(
            output.map(Result::ok),
            waiting,
            Arc::clone(&has_ended),
            Arc::clone(&bytes),
        ));
        Session {
            from,
            id,
            feed,
            answers,
            has_ended,
            bytes,
        }
    }
}

/// Gives each append of a session its answer. `None` of the engine says that it has stopped.
async fn answer_all<R: Send + Sync + 'static>(
    output: impl Stream<Item = Option<StreamAppendResult<Types<R>>>> + Send,
    mut waiting: mpsc::UnboundedReceiver<Waiting>,
    has_ended: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
) {
    let mut output = pin!(output);
    while let Some(next) = waiting.recv().await {
        let message = match has_ended.load(Ordering::Relaxed) {
            true => wire::refused("this stream has ended"),
            false => match output.next().await {
                Some(Some(result)) => {
                    // Before the leader hears of it and begins another stream.
                    has_ended.fetch_or(result.is_err(), Ordering::Release);
                    wire::appended(&into_answer(result))
                }
                Some(None) | None => {
                    has_ended.store(true, Ordering::Release);
                    stopped()
                }
            },
        };
        bytes.fetch_sub(next.bytes, Ordering::Relaxed);
        // Nobody waits any more when the connection broke.
        let _ = next.answer.send(message);
    }
}

/// An append that stands alone.
async fn single<S: StateMachine>(
    raft: Engine<S>,
    request: AppendEntriesRequest<Types<S::Response>>,
) -> Message {
    let prev = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.log_id).or(prev);
    match raft.append_entries(request).await {
        // Only an append with a previous entry can be in conflict with it.
        Ok(answer) if answer.is_conflict() && prev.is_none() => stopped(),
        Ok(answer) => wire::appended(&into_answer(answer.into_stream_result(prev, last))),
        Err(_) => stopped(),
    }
}

fn into_answer<R: Send + Sync + 'static>(result: StreamAppendResult<Types<R>>) -> Appended {
    match result {
        Ok(id) => Appended::Through(id),
        Err(StreamAppendError::Conflict(id)) => Appended::Conflict(id),
        Err(StreamAppendError::HigherVote(vote)) => Appended::HigherVote(vote),
    }
}

fn stopped() -> Message {
    wire::refused("the shard has stopped")
}

fn ready(message: Message) -> BoxFuture<'static, Message> {
    std::future::ready(message).boxed()
}
