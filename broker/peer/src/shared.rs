//! What all connections of a broker share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

use palisade_shard::NodeId;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{Handler, PeerEvent, PeerOptions, PeerState},
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
