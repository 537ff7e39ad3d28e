//! The front of the crate.

use std::{
    collections::BTreeMap,
    fmt,
    future::{Future, ready},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use palisade_log::ShardId;
use palisade_shard::{Message, NodeId, Transport, TransportError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{broadcast, oneshot, watch},
    time::timeout,
};

use crate::{
    api::{
        CLUSTER_CHANNEL, CallError, Handler, PeerCertificate, PeerEvent, PeerOptions, PeerState,
    },
    lane::Answer,
    link::Link,
    serve::serve,
    shared::Shared,
};

/// The other brokers, as one broker sees them. Dropping it ends all connections; see [`Peers::shutdown`].
pub struct Peers {
    shared: Arc<Shared>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// Connects to nobody yet. Must be called in a tokio runtime, which is where connections live.
    #[must_use]
    pub fn new(options: PeerOptions) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared::new(options)),
        })
    }

    /// Sets what answers; until then the hellos of peers are refused. Only the first one counts, false for any other.
    pub fn set_handler(&self, handler: Arc<dyn Handler>) -> bool {
        self.shared.handler.set(handler).is_ok()
    }

    /// Connects to a broker and stays connected, without a call. It ends when the [`crate::Directory`] does not know the broker (any more).
    pub fn connect(&self, broker: i32) {
        drop(self.link(broker));
    }

    /// Serves an accepted connection, until it ends, on which [`crate::ALPN`] was agreed and whose client has proved to own `certificate`.
    pub fn serve<S>(
        self: &Arc<Self>,
        stream: S,
        certificate: PeerCertificate,
    ) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let token = shared.tasks.token();
        async move {
            serve(shared, stream, certificate).await;
            drop(token);
        }
    }

    /// Sends a message to a broker, whichever its incarnation is. It has its place in the order when this returns.
    pub fn call_cluster(
        &self,
        to: i32,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, CallError>> {
        self.send(to, None, CLUSTER_CHANNEL, message, None)
    }

    /// As [`Transport::call`], on any channel and with a time of its own for the answer.
    pub fn call_within(
        &self,
        to: NodeId,
        channel: u32,
        message: Message,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Message, CallError>> {
        self.send(to.broker(), Some(to), channel, message, Some(patience))
    }

    /// The incarnation of a broker, from its last hello, whether or not it can be reached now.
    #[must_use]
    pub fn node_of(&self, broker: i32) -> Option<NodeId> {
        self.shared.node_of(broker)
    }

    /// Whether a broker can be called: it is connected, or it has connected to this one, which did not call it yet.
    #[must_use]
    pub fn is_up(&self, broker: i32) -> bool {
        self.shared.is_up(broker)
    }

    /// How the connections to all brokers are that were called or connected to.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<BTreeMap<i32, PeerState>> {
        self.shared.states()
    }

    /// What happens from now on. Who is more than 1,024 events behind is told so, and can look at [`Peers::connected`].
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.shared.events()
    }

    /// Writes what is queued, answers what is being handled, each within [`crate::Limits::stop`], and ends all connections.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        shared.stopping.cancel();
        shared.tasks.close();
        // Handlers that are still busy are not waited for.
        drop(timeout(shared.options.limits.stop * 3, shared.tasks.wait()).await);
    }

    fn link(&self, broker: i32) -> Result<Arc<Link>, CallError> {
        let shared = &self.shared;
        let unreachable = |reason: &str| Err(CallError::Unreachable(reason.to_owned()));
        if shared.stopping.is_cancelled() {
            return unreachable("this broker stops");
        }
        if broker == shared.options.me.broker() {
            return unreachable("it is this broker itself");
        }
        let mut links = shared.links.lock();
        if let Some(link) = links.get(&broker) {
            return Ok(Arc::clone(link));
        }
        if shared.options.directory.address(broker).is_none() {
            return unreachable("no address of it is known");
        }
        let link = Link::start(shared, broker);
        links.insert(broker, Arc::clone(&link));
        Ok(link)
    }

    fn begin(
        &self,
        broker: i32,
        node: Option<NodeId>,
        channel: u32,
        message: Message,
        patience: Option<Duration>,
    ) -> Result<oneshot::Receiver<Answer>, CallError> {
        let limits = &self.shared.options.limits;
        let frame = message.len().saturating_add(crate::frame::HEADER);
        if frame > limits.frame_bytes {
            return Err(CallError::Unreachable(format!(
                "a frame of {frame} bytes is over the limit of {}",
                limits.frame_bytes
            )));
        }
        let patience = patience.unwrap_or_else(|| (limits.patience)(channel, message.kind));
        let link = self.link(broker)?;
        link.call(node, channel, message, patience, limits.queue_bytes)
    }

    fn send(
        &self,
        broker: i32,
        node: Option<NodeId>,
        channel: u32,
        message: Message,
        patience: Option<Duration>,
    ) -> BoxFuture<'static, Answer> {
        match self.begin(broker, node, channel, message, patience) {
            Ok(answer) => Box::pin(wait(answer)),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}

async fn wait(answer: oneshot::Receiver<Answer>) -> Answer {
    answer.await.unwrap_or_else(|_| {
        Err(CallError::Broken(
            "its connection is not served any more".to_owned(),
        ))
    })
}

impl Transport for Peers {
    fn call(
        &self,
        to: NodeId,
        shard: ShardId,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, TransportError>> {
        match self.begin(to.broker(), Some(to), shard.0, message, None) {
            Ok(answer) => Box::pin(async move { wait(answer).await.map_err(|error| error.of(to)) }),
            Err(error) => Box::pin(ready(Err(error.of(to)))),
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
    }
}
