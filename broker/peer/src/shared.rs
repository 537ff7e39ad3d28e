//! What all connections of a broker share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

use palisade_shard::NodeId;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{Connector, Handler, PeerEvent, PeerOptions, PeerState},
    gate::Gates,
    hello::{Hello, VERSION},
    link::Link,
};

/// Events that a slow reader may be behind.
const EVENTS: usize = 1024;

pub(crate) struct Shared {
    pub(crate) options: PeerOptions,
    pub(crate) handler: OnceLock<Arc<dyn Handler>>,
    pub(crate) runtime: Handle,
    pub(crate) links: Mutex<HashMap<i32, Arc<Link>>>,
    pub(crate) gates: Gates,
    nodes: Mutex<HashMap<i32, NodeId>>,
    states: watch::Sender<BTreeMap<i32, PeerState>>,
    events: broadcast::Sender<PeerEvent>,
    pub(crate) stopping: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// Whether the certificates of a connection are still believed.
pub(crate) struct Trust {
    connector: Arc<dyn Connector>,
    changes: Option<watch::Receiver<()>>,
}

impl Trust {
    /// Waits until something was replaced; for ever when nothing is. Cancelling it loses nothing.
    pub(crate) async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes
            && changes.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    pub(crate) fn holds(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.connector.trusts(chain)
    }
}

impl Shared {
    pub(crate) fn new(options: PeerOptions) -> Self {
        Self {
            options,
            handler: OnceLock::new(),
            runtime: Handle::current(),
            links: Mutex::default(),
            gates: Gates::default(),
            nodes: Mutex::default(),
            states: watch::Sender::default(),
            events: broadcast::Sender::new(EVENTS),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// The own hello.
    pub(crate) fn hello(&self, takes_over: bool) -> Hello {
        Hello {
            version: VERSION,
            cluster_id: self.options.cluster_id.clone(),
            node: self.options.me,
            broker: self.options.me.broker(),
            takes_over,
        }
    }

    /// Watches the certificates of a connection.
    pub(crate) fn trust(&self) -> Trust {
        let connector = Arc::clone(&self.options.connector);
        let changes = connector.changes();
        Trust { connector, changes }
    }

    /// Who said hello last.
    pub(crate) fn node_of(&self, broker: i32) -> Option<NodeId> {
        self.nodes.lock().get(&broker).copied()
    }

    pub(crate) fn is_up(&self, broker: i32) -> bool {
        match self.states.borrow().get(&broker) {
            Some(PeerState::Up(_)) => true,
            Some(PeerState::Down(_)) => false,
            Some(PeerState::Connecting) | None => self.node_of(broker).is_some(),
        }
    }

    pub(crate) fn met(&self, node: NodeId) {
        self.nodes.lock().insert(node.broker(), node);
    }

    /// The connection to a broker changed; `None` when there is none to speak of any more.
    pub(crate) fn changed(&self, broker: i32, state: Option<PeerState>) {
        self.states.send_if_modified(|states| {
            if states.get(&broker) == state.as_ref() {
                return false;
            }
            match state {
                Some(state) => states.insert(broker, state),
                None => states.remove(&broker),
            };
            true
        });
    }

    pub(crate) fn states(&self) -> watch::Receiver<BTreeMap<i32, PeerState>> {
        self.states.subscribe()
    }

    pub(crate) fn tell(&self, event: PeerEvent) {
        // Nobody may listen.
        drop(self.events.send(event));
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }
}
