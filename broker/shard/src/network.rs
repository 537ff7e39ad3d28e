//! The engine's way to the other replicas.
//!
//! Entries go to a replica in one stream: each request is handed to the transport at once, as long as what is unanswered is within bounds, and the answers are
//! taken in the order of the requests. A replica that lacks what is about to be purged from memory is cut off its stream, upon which the engine lets go of
//! those entries and sends a snapshot.

use std::{
    collections::{BTreeMap, VecDeque},
    marker::PhantomData,
    sync::Arc,
    time::Duration,
};

use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FuturesOrdered},
};
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    alias::SnapshotOf,
    error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
        StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
};
use palisade_log::ShardId;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    Message, NodeId, Transport, TransportError,
    log_store::{Lag, LogStore},
    raft_types::{LogId, Types, Vote},
    snapshot::SnapshotData,
    wire::{self, Appended, Malformed},
};

/// Most requests to a replica that wait for an answer.
const MOST_REQUESTS: usize = 64;
/// Most bytes of such requests; one request more may be under way.
const MOST_BYTES: usize = 4 << 20;
/// Delays between attempts to reach a replica, the last one again and again.
const RETRIES: [u64; 4] = [20, 50, 100, 200];

type Error<R> = RPCError<Types<R>>;
type StreamItem<R> = Result<StreamAppendResult<Types<R>>, Error<R>>;

/// What all ways of a shard share.
pub(crate) struct Link {
    pub(crate) shard: ShardId,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) log: LogStore,
    /// How long the oldest request of a stream may be unanswered.
    pub(crate) patience: Duration,
    numbers: Numbers,
}

impl Link {
    pub(crate) fn new(
        shard: ShardId,
        transport: Arc<dyn Transport>,
        log: LogStore,
        patience: Duration,
        first: u64,
    ) -> Self {
        Self {
            shard,
            transport,
            log,
            patience,
            numbers: Numbers {
                first,
                given: Mutex::default(),
            },
        }
    }

    /// A number for a stream or a transfer to this peer.
    pub(crate) fn number(&self, to: NodeId) -> u64 {
        let mut given = self.numbers.given.lock();
        let count = given.entry(to).or_insert(0u64);
        let number = self.numbers.first.wrapping_add(*count);
        *count = count.saturating_add(1);
        number
    }
}

/// What streams and transfers are numbered with: for each peer by itself, so that no number depends on who else is served at that moment.
struct Numbers {
    first: u64,
    given: Mutex<BTreeMap<NodeId, u64>>,
}

/// The replicas of a shard.
pub(crate) struct Peers<R> {
    link: Arc<Link>,
    marker: PhantomData<fn() -> R>,
}

impl<R> Peers<R> {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link: Arc::new(link),
            marker: PhantomData,
        }
    }

    fn peer(&self, to: u64, append: u8) -> Peer<R> {
        Peer {
            link: Arc::clone(&self.link),
            to: NodeId(to),
            append,
            marker: PhantomData,
        }
    }
}

impl<R: Send + Sync + 'static> RaftNetworkFactory<Types<R>> for Peers<R> {
    type Network = Peer<R>;

    async fn new_client(&mut self, to: u64, (): &()) -> Peer<R> {
        self.peer(to, wire::APPEND)
    }

    async fn new_heartbeat_client(&mut self, to: u64, (): &()) -> Peer<R> {
        self.peer(to, wire::HEARTBEAT)
    }
}

/// One other replica.
pub(crate) struct Peer<R> {
    pub(crate) link: Arc<Link>,
    pub(crate) to: NodeId,
    /// As what appends are sent: a heartbeat stands alone, everything else belongs to a stream.
    append: u8,
    marker: PhantomData<fn() -> R>,
}

impl<R: Send + Sync + 'static> Peer<R> {
    /// Sends a message and expects an answer of this kind.
    pub(crate) async fn ask(&self, message: Message, kind: u8) -> Result<Message, Failure> {
        let call = self.link.transport.call(self.to, self.link.shard, message);
        expect(call.await, kind)
    }
}

/// Why there is no proper answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the replica refused: {0}")]
    Refused(String),
    #[error("{0}")]
    Given(&'static str),
}

impl Failure {
    /// Whether it may help to try again at once.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Transport(TransportError::Broken(..) | TransportError::TimedOut(_))
            | Self::Given(_) => true,
            Self::Transport(_) | Self::Malformed(_) | Self::Refused(_) => false,
        }
    }

    fn into_rpc<R: Send + Sync + 'static>(self) -> Error<R> {
        match self.is_passing() {
            true => RPCError::Network(NetworkError::new(&self)),
            false => RPCError::Unreachable(Unreachable::new(&self)),
        }
    }
}

/// An answer of the expected kind.
pub(crate) fn expect(
    answer: Result<Message, TransportError>,
    kind: u8,
) -> Result<Message, Failure> {
    let message = answer?;
    match message.kind {
        found if found == kind => Ok(message),
        wire::REFUSED => Err(Failure::Refused(wire::read_refused(&message))),
        other => Err(Malformed(format!("an answer of kind {other} where {kind} was due")).into()),
    }
}

impl<R: Send + Sync + 'static> RaftNetworkV2<Types<R>> for Peer<R> {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<R>>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<R>>, Error<R>> {
        let message = wire::append(wire::HEARTBEAT, 0, &request);
        let sent = Sent::new(&request, message.len());
        let answer = self.ask(message, wire::APPENDED).await;
        let result = sent.judge(answer).map_err(Failure::into_rpc)?;
        Ok(result.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, StreamItem<R>>, Error<R>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types<R>>> + Send + Unpin + 'static,
    {
        let window = Window::<R, S>::new(self, input);
        let answers = futures::stream::unfold(window, |mut window| async move {
            let item = window.next().await?;
            Some((item, window))
        });
        async move { Ok(answers.boxed()) }.boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, Error<R>> {
        self.ask_vote(wire::VOTE, &request).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, Error<R>> {
        self.ask_vote(wire::PRE_VOTE, &request).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types<R>, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types<R>>, StreamingError<Types<R>>> {
        match self.send_snapshot(vote, snapshot, cancel).await {
            Ok(Ok(vote)) => Ok(SnapshotResponse::new(vote)),
            Ok(Err(closed)) => Err(StreamingError::Closed(closed)),
            Err(failure) => {
                tracing::warn!(shard = %self.link.shard, to = %self.to, %failure, "a snapshot was not sent");
                Err(match failure.is_passing() {
                    true => StreamingError::Network(NetworkError::new(&failure)),
                    false => StreamingError::Unreachable(Unreachable::new(&failure)),
                })
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<R>>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<R>>, Error<R>> {
        // Whether it was heeded shows in who leads then.
        match self.ask(wire::transfer(&request), wire::TRANSFERRED).await {
            Ok(_) => Ok(Ok(())),
            Err(failure) => Err(failure.into_rpc()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = RETRIES.last().copied().unwrap_or_default();
        let delays = RETRIES.into_iter().chain(std::iter::repeat(last));
        Some(Backoff::new(delays.map(Duration::from_millis)))
    }
}

impl<R: Send + Sync + 'static> Peer<R> {
    async fn ask_vote(
        &self,
        kind: u8,
        request: &VoteRequest<Types<R>>,
    ) -> Result<VoteResponse<Types<R>>, Error<R>> {
        if self.link.log.lacks().is_some() {
            return Err(Failure::Given("this replica has not caught up").into_rpc());
        }
        let answer = self.ask(wire::vote(kind, request), wire::VOTED).await;
        let voted = answer.and_then(|message| Ok(wire::read_voted(&message)?));
        voted.map_err(Failure::into_rpc)
    }
}

/// A request that is not answered.
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    at: Instant,
}

impl Sent {
    fn new<R: Send + Sync + 'static>(
        request: &AppendEntriesRequest<Types<R>>,
        bytes: usize,
    ) -> Self {
        let last = request.entries.last().map(|entry| entry.log_id);
        Self {
            prev: request.prev_log_id,
            last: last.or(request.prev_log_id),
            bytes,
            at: Instant::now(),
        }
    }

    /// What the engine is to make of the answer. One that answers something else is none: the engine trusts what it is told.
    fn judge<R: Send + Sync + 'static>(
        &self,
        answer: Result<Message, Failure>,
    ) -> Result<StreamAppendResult<Types<R>>, Failure> {
        match wire::read_appended(&answer?)? {
            Appended::Through(id) if id == self.last => Ok(Ok(id)),
            Appended::Conflict(id) if Some(id) == self.prev => {
                Ok(Err(StreamAppendError::Conflict(id)))
            }
            Appended::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
            Appended::Through(_) | Appended::Conflict(_) => {
                Err(Malformed("an answer to another append".to_owned()).into())
            }
        }
    }
}

/// A stream of appends and what of it is unanswered.
struct Window<R, S> {
    link: Arc<Link>,
    to: NodeId,
    kind: u8,
    session: u64,
    input: Option<S>,
    calls: FuturesOrdered<BoxFuture<'static, Result<Message, TransportError>>>,
    sent: VecDeque<Sent>,
    bytes: usize,
    check: Interval,
    over: bool,
    marker: PhantomData<fn() -> R>,
}

enum Event<R: Send + Sync + 'static> {
    Answer(Result<Message, TransportError>),
    Request(Option<AppendEntriesRequest<Types<R>>>),
    Check,
}

impl<R, S> Window<R, S>
where
    R: Send + Sync + 'static,
    S: Stream<Item = AppendEntriesRequest<Types<R>>> + Send + Unpin + 'static,
{
    fn new(peer: &Peer<R>, input: S) -> Self {
        let mut check = interval((peer.link.patience / 8).max(Duration::from_millis(10)));
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            session: peer.link.number(peer.to),
            link: Arc::clone(&peer.link),
            to: peer.to,
            kind: peer.append,
            input: Some(input),
            calls: FuturesOrdered::new(),
            sent: VecDeque::new(),
            bytes: 0,
            check,
            over: false,
            marker: PhantomData,
        }
    }

    /// The next answer; `None` when all requests are answered and there are no more, or the stream has failed.
    async fn next(&mut self) -> Option<StreamItem<R>> {
        while !self.over {
            let item = match self.event().await? {
                Event::Answer(answer) => self.take(answer),
                Event::Request(None) => {
                    self.input = None;
                    continue;
                }
                Event::Request(Some(request)) => match self.send(&request) {
                    Ok(()) => continue,
                    Err(failure) => Err(failure),
                },
                Event::Check => match self.overdue() {
                    None => continue,
                    Some(failure) => Err(failure),
                },
            };
            self.over = !matches!(item, Ok(Ok(_)));
            return Some(item.map_err(Failure::into_rpc));
        }
        None
    }

    async fn event(&mut self) -> Option<Event<R>> {
        let has_room = self.sent.len() < MOST_REQUESTS && self.bytes < MOST_BYTES;
        let is_waiting = !self.calls.is_empty();
        let mut input = self.input.as_mut().filter(|_| has_room);
        if input.is_none() && !is_waiting {
            return None;
        }
        let takes = input.is_some();
        let request = async {
            match &mut input {
                Some(input) => input.next().await,
                None => None,
            }
        };
        Some(tokio::select! {
            biased;
            Some(answer) = self.calls.next(), if is_waiting => Event::Answer(answer),
            request = request, if takes => Event::Request(request),
            _ = self.check.tick(), if is_waiting => Event::Check,
        })
    }

    fn send(&mut self, request: &AppendEntriesRequest<Types<R>>) -> Result<(), Failure> {
        if self.kind == wire::APPEND && self.link.log.lag(request.prev_log_id) != Lag::Small {
            return Err(Failure::Given("it is too far behind for the log"));
        }
        let message = wire::append(self.kind, self.session, request);
        let sent = Sent::new(request, message.len());
        self.bytes = self.bytes.saturating_add(sent.bytes);
        self.sent.push_back(sent);
        let call = self.link.transport.call(self.to, self.link.shard, message);
        self.calls.push_back(call);
        Ok(())
    }

    fn take(
        &mut self,
        answer: Result<Message, TransportError>,
    ) -> Result<StreamAppendResult<Types<R>>, Failure> {
        let sent = self
            .sent
            .pop_front()
            .ok_or(Failure::Given("an answer without a request"))?;
        self.bytes = self.bytes.saturating_sub(sent.bytes);
        sent.judge(expect(answer, wire::APPENDED))
    }

    /// Why the stream should not be waited for any longer.
    fn overdue(&self) -> Option<Failure> {
        let oldest = self.sent.front()?;
        if oldest.at.elapsed() > self.link.patience {
            return Some(TransportError::TimedOut(self.to).into());
        }
        (self.kind == wire::APPEND && self.link.log.lag(oldest.prev) == Lag::TooLarge)
            .then_some(Failure::Given("it is too slow for the log"))
    }
}
