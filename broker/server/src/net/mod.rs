//! Listeners and connections: everything between a socket and a decoded request of an authenticated client.
//!
//! What the requests mean is not known here; an [`Application`] answers them.

mod connection;
mod frames;
mod limits;
mod listener;
mod sasl_phase;

use std::{future::Future, net::IpAddr, sync::Arc, time::Duration};

use palisade_peer::Peers;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    codec::{Body, Request},
    metrics::Metrics,
    sasl::{Authenticator, Credentials},
    session::{Session, Sessions},
};

pub(crate) use frames::Budget;
#[doc(hidden)]
pub use frames::cut_frames;
pub(crate) use limits::Limiter;
pub(crate) use listener::{Kind, Listener, accept, accept_peers, bind};

/// What answers requests.
pub(crate) trait Application: Credentials + Send + Sync + 'static {
    /// Answers one request. Requests of one connection are polled for the first time in their order.
    fn handle(
        self: Arc<Self>,
        session: Arc<Session>,
        request: Request,
    ) -> impl Future<Output = Reply> + Send;

    /// How long a new connection from this address has to wait before it is turned away; zero admits it.
    fn connection_wait(&self, host: IpAddr) -> Duration;
}

/// What goes back for one request.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// The encoded answer; `None` for a produce with acks=0.
    pub(crate) body: Option<Body>,
    /// Read nothing from the connection for so long (KIP-219).
    pub(crate) mute: Duration,
    /// Close the connection after the answer, and why.
    pub(crate) close: Option<String>,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared<A> {
    pub(crate) application: Arc<A>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) authenticator: Authenticator,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) budget: Budget,
    /// Cancelled when the broker stops: connections finish what they have begun and close.
    pub(crate) stopping: CancellationToken,
    /// Clients are kept out: this broker has lost the others.
    pub(crate) isolated: watch::Receiver<bool>,
    pub(crate) tasks: TaskTracker,
    /// The other brokers, whose connections come in by the control port; none for a broker that is alone.
    pub(crate) peers: Option<Arc<Peers>>,
}
