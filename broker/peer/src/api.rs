//! What the crate asks of the broker around it, and what it tells it.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use palisade_shard::{Message, NodeId, TransportError};
use rustls::{ClientConfig, client::verify_server_name, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::sync::watch;

/// ALPN of the protocol: tells its connections from those of Kafka clients on the same port.
pub const ALPN: &[u8] = b"palisade-peer/1";

/// Channel of messages between the brokers as such; all other channels are shards.
pub const CLUSTER_CHANNEL: u32 = u32::MAX;

/// Where a broker listens for its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Name (or address) that is resolved, and that the broker's certificate must be valid for.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Knows where the brokers are. Asked for every attempt to connect and for every connection that is accepted; must not block.
pub trait Directory: Send + Sync + 'static {
    /// Where this broker is, if it is known.
    fn address(&self, broker: i32) -> Option<PeerAddress>;

    /// Whether this broker belongs to the cluster: one that does not is not called again after an attempt that failed, unless somebody asks for it. An address may be
    /// known, or guessed, of a broker that does not belong to it yet, or any more.
    fn is_member(&self, broker: i32) -> bool {
        self.address(broker).is_some()
    }
}

/// Has the TLS configuration of connections to peers.
pub trait Connector: Send + Sync + 'static {
    /// Asked for every new connection, so that certificates can be replaced. Must offer [`ALPN`] and should not resume sessions: a resumed one is not verified again.
    fn config(&self) -> Arc<ClientConfig>;

    /// Tells of every replacement of the certificates, or of what is trusted, from now on; `None` when nothing is ever replaced.
    fn changes(&self) -> Option<watch::Receiver<()>> {
        None
    }

    /// Whether a peer with these certificates would be believed now: the leaf first, then those up to its authority. Asked after each change, for both sides of
    /// connections that stand.
    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let _ = chain;
        true
    }
}

/// Answers the messages of peers.
pub trait Handler: Send + Sync + 'static {
    /// Called in the order of arrival for each (peer, channel), and must return soon: all channels of a connection wait meanwhile. The future is polled for the first time
    /// in the same order, and from then on side by side with others; it is always driven to its end, also when the connection ends first.
    fn handle(
        &self,
        from: NodeId,
        channel: u32,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, Refused>>;
}

/// Why a message is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nothing here is behind the channel.
    #[error("the channel is not hosted here")]
    NotHosted,
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// Why a call has no answer. Unless it is [`CallError::Unreachable`], [`CallError::NotHosted`] or [`CallError::Failed`], the message may have been handled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The message was not sent.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    /// The connection broke before the answer came.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Nothing there is behind the channel.
    #[error("it does not host the channel")]
    NotHosted,
    /// The peer's handler says why.
    #[error("it refuses: {0}")]
    Failed(String),
    /// The peer took too long.
    #[error("it did not answer in time")]
    TimedOut,
}

impl CallError {
    /// The same, of a node.
    #[must_use]
    pub fn of(self, node: NodeId) -> TransportError {
        match self {
            Self::Unreachable(reason) => TransportError::Unreachable(node, reason),
            Self::Broken(reason) | Self::Failed(reason) => TransportError::Broken(node, reason),
            Self::NotHosted => TransportError::NotHosted(node),
            Self::TimedOut => TransportError::TimedOut(node),
        }
    }
}

/// The certificate that a client has proved to own, with those up to its authority.
#[derive(Clone)]
pub struct PeerCertificate(Vec<CertificateDer<'static>>);

impl PeerCertificate {
    /// Of certificates that TLS has verified, the leaf first.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self(chain)
    }

    /// Whether the certificate is valid for the host, by the rules for servers.
    #[must_use]
    pub fn is_for(&self, host: &str) -> bool {
        let leaf = self.0.first().map(ParsedCertificate::try_from);
        match (ServerName::try_from(host), leaf) {
            (Ok(name), Some(Ok(leaf))) => verify_server_name(&leaf, &name).is_ok(),
            _ => false,
        }
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerCertificate")
    }
}

/// A change of a connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Connected.
    Up(NodeId),
    /// The connection broke, at once when it is reset or closed. Follows an `Up` of the same node.
    Lost(NodeId),
    /// After `Lost`, at most once: the process is gone, as its host refuses the connection or another incarnation answers.
    Gone(NodeId),
}

/// How the connection to a broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// The first attempt is on its way; calls wait for it.
    Connecting,
    /// Connected.
    Up(NodeId),
    /// Not connected, and why; attempts go on.
    Down(String),
}

/// Bounds and times. The defaults are meant for production, tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes that wait to be written to one peer; calls beyond are [`CallError::Unreachable`].
    pub queue_bytes: usize,
    /// Most bytes of one connection's messages that are being handled; nothing is read beyond.
    pub handling_bytes: usize,
    /// Most messages of one connection that are being handled: an answer may be large where the question is small.
    pub handling: usize,
    /// Largest frame.
    pub frame_bytes: usize,
    /// An idle side shows life this often.
    pub keep_alive: Duration,
    /// A connection without a byte for so long is broken.
    pub silence: Duration,
    /// For an attempt to connect, with the handshakes.
    pub connect: Duration,
    /// Pause before the second attempt to connect; doubles with every further one.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// A connection is replaced by a new one at this age, and closed at twice of it if that does not work.
    pub max_age: Duration,
    /// How long a replaced connection waits for its last answers.
    pub retire: Duration,
    /// How long what has begun may take when the broker stops.
    pub stop: Duration,
    /// How long an answer may take, by channel and kind of message.
    pub patience: fn(channel: u32, kind: u8) -> Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_bytes: 64 << 20,
            handling_bytes: 256 << 20,
            // More than the appends to all the shards that an honest peer has on their way at a time.
            handling: 4096,
            frame_bytes: 64 << 20,
            keep_alive: Duration::from_millis(500),
            silence: Duration::from_secs(3),
            connect: Duration::from_secs(3),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            max_age: Duration::from_secs(3600),
            retire: Duration::from_secs(60),
            stop: Duration::from_secs(1),
            patience: |_, _| Duration::from_secs(10),
        }
    }
}

/// What [`crate::Peers`] needs to know.
#[derive(Clone)]
pub struct PeerOptions {
    /// This broker.
    pub me: NodeId,
    /// Brokers of other clusters are refused.
    pub cluster_id: String,
    /// Where the others are.
    pub directory: Arc<dyn Directory>,
    /// TLS of connections to them.
    pub connector: Arc<dyn Connector>,
    /// Bounds and times.
    pub limits: Limits,
}

impl fmt::Debug for PeerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerOptions")
            .field("me", &self.me)
            .field("cluster_id", &self.cluster_id)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
