//! What makes brokers a cluster: who is there, who leads what, and where a change of the metadata has to go.
//!
//! ```text
//! formation   the first start: one shard 0, formed once
//! gossip      who leads which shard; spread tells it to everyone
//! changes     metadata changes, wherever they are asked for, go to the leader of shard 0
//! isolation   serves no client without the others
//! leading     what only a shard's leader can say or do, for clients that ask any broker
//! replicas    hosts what the metadata assigns to this broker; leaders bring their shard's members in line
//! removal     lets go of replicas that have moved, and of a broker for good, once no shard counts on them any more
//! currency    whether the metadata are those of the cluster now
//! controller  what only the leader of shard 0 does: registrations' consequences, pools, balance
//! ```
//!
//! A broker that is configured without seeds is a cluster of one: the same code, without peers.

mod changes;
mod controller;
mod currency;
mod formation;
mod gossip;
mod handler;
mod isolation;
mod leading;
mod messages;
mod removal;
mod replicas;
mod spread;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use palisade_config::{Seed, status::PeerReport};
use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_metadata::{Image, MetadataMachine, ShardInfo};
use palisade_peer::Peers;
use palisade_shard::{LeaderView, NodeId, Shard};
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::tls::Leaf;

pub(crate) use changes::ChangeError;
pub(crate) use controller::{Founding, run as control};
pub(crate) use currency::Currency;
pub(crate) use formation::find_out;
pub(crate) use gossip::LeaderTable;
pub(crate) use handler::Desk;
pub(crate) use isolation::run as watch_isolation;
pub(crate) use leading::{Election, Quorum};
pub(crate) use messages::ChangeFailure;
pub(crate) use removal::RemovalError;
pub(crate) use replicas::run as replicas;
pub(crate) use spread::run as spread;

/// A planned stop waits for so long until others lead.
const HAND_OVER: Duration = Duration::from_secs(3);

/// This broker's view of its cluster.
pub(crate) struct Cluster {
    pub(crate) me: NodeId,
    /// Brokers that form the cluster, this one among them or not; empty: it is alone.
    pub(crate) seeds: Vec<Seed>,
    peers: Option<Arc<Peers>>,
    pub(crate) metadata: Arc<Shard<MetadataMachine>>,
    pub(crate) images: watch::Receiver<Arc<Image>>,
    leaders: Mutex<LeaderTable>,
    /// What this broker leads now: a leader that nobody hears any more stays the newest that the table knows until there is another.
    led: Mutex<BTreeSet<ShardId>>,
    /// The others are heard.
    in_touch: watch::Sender<bool>,
    /// Clients are not served, since the others cannot be reached.
    isolated: watch::Sender<bool>,
    leaders_changed: watch::Sender<u64>,
    /// Brokers that can write nothing now, or stop, as they say.
    full: watch::Sender<BTreeSet<i32>>,
    /// This broker stops: the others must not give leadership back to it.
    leaving: AtomicBool,
    /// Held while a change of configs is decided and logged here.
    deciding: tokio::sync::Mutex<()>,
    /// Whether a peer is connected, and since when.
    seen: Mutex<BTreeMap<i32, (bool, OffsetDateTime)>>,
    began: OffsetDateTime,
}

/// Who leads a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardLeader {
    pub(crate) node: NodeId,
    pub(crate) term: u64,
}

impl Cluster {
    pub(crate) fn new(
        me: NodeId,
        seeds: Vec<Seed>,
        peers: Option<Arc<Peers>>,
        metadata: Arc<Shard<MetadataMachine>>,
        images: watch::Receiver<Arc<Image>>,
    ) -> Self {
        Self {
            me,
            seeds,
            peers,
            metadata,
            images,
            leaders: Mutex::new(LeaderTable::default()),
            led: Mutex::default(),
            in_touch: watch::Sender::new(true),
            isolated: watch::Sender::new(false),
            leaders_changed: watch::Sender::new(0),
            full: watch::Sender::default(),
            leaving: AtomicBool::new(false),
            deciding: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            began: OffsetDateTime::now_utc(),
        }
    }

    pub(crate) fn image(&self) -> Arc<Image> {
        Arc::clone(&self.images.borrow())
    }

    /// Who leads a shard, as far as it is known here.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<ShardLeader> {
        let (node, term) = self.leaders.lock().leader(shard)?;
        // What that broker was before it lost its volume leads nothing.
        if self.image().node_of(node.broker())? != node {
            return None;
        }
        let leads = if node == self.me {
            self.led.lock().contains(&shard)
        } else {
            self.is_alive(node.broker())
        };
        leads.then_some(ShardLeader { node, term })
    }

    /// The broker that leads the metadata.
    pub(crate) fn controller(&self) -> Option<i32> {
        let view = *self.metadata.leader().borrow();
        view.leader
            .map(NodeId::broker)
            .or_else(|| Some(self.leader(ShardId::METADATA)?.node.broker()))
    }

    /// Whether a broker can be reached from here now; this one always.
    pub(crate) fn is_alive(&self, broker: i32) -> bool {
        broker == self.me.broker() || self.peers.as_ref().is_some_and(|peers| peers.is_up(broker))
    }

    /// Whether the others are heard now.
    pub(crate) fn is_in_touch(&self) -> bool {
        *self.in_touch.borrow()
    }

    /// Whether clients are kept out, since the others cannot be reached.
    pub(crate) fn isolated(&self) -> watch::Receiver<bool> {
        self.isolated.subscribe()
    }

    /// Brokers of a shard: all, and those of them that can be reached.
    pub(crate) fn replicas(&self, shard: &ShardInfo) -> (Vec<i32>, Vec<i32>) {
        let all: Vec<i32> = shard.replicas.iter().map(|node| node.broker()).collect();
        let alive = all
            .iter()
            .copied()
            .filter(|broker| self.is_alive(*broker))
            .collect();
        (all, alive)
    }

    /// Rung when a leader changes.
    pub(crate) fn leaders_changed(&self) -> watch::Receiver<u64> {
        self.leaders_changed.subscribe()
    }

    /// Takes note of who leads what; true when that is news.
    pub(crate) fn learn(&self, update: &LeaderTable) -> bool {
        let image = self.image();
        let is_gone = |node: NodeId| {
            let now = image.node_of(node.broker());
            now.is_some_and(|now| now != node)
        };
        let news = self.leaders.lock().merge(update, is_gone);
        if news {
            self.leaders_changed.send_modify(|count| *count += 1);
        }
        news
    }

    /// What this broker knows of leaders.
    pub(crate) fn known_leaders(&self) -> LeaderTable {
        self.leaders.lock().clone()
    }

    /// Takes note of the leaders of the shards that are hosted here.
    pub(crate) fn learn_own(&self, data: &DataPlane) -> bool {
        let mut own = LeaderTable::default();
        let mut led = BTreeSet::new();
        let mut note = |shard, view: LeaderView| {
            own.note(shard, view.term, view.leader);
            if view.leader == Some(self.me) {
                led.insert(shard);
            }
        };
        let metadata = *self.metadata.leader().borrow();
        let image = self.image();
        let mut heard = Vec::new();
        for (shard, view) in data.leaders().borrow().iter() {
            note(*shard, *view);
            let replicas = image.shards.get(shard).map(|shard| shard.replicas.len());
            heard.push((view.leader, replicas.unwrap_or(0)));
        }
        note(ShardId::METADATA, metadata);
        self.in_touch
            .send_replace(isolation::is_in_touch(self.me, metadata.leader, heard));
        let was_led = std::mem::replace(&mut *self.led.lock(), led.clone());
        let news = self.learn(&own);
        if !news && was_led != led {
            self.leaders_changed.send_modify(|count| *count += 1);
        }
        news
    }

    /// Takes note of a connection that is there now, or not any more.
    fn saw(&self, node: NodeId, connected: bool) {
        let now = OffsetDateTime::now_utc();
        let mut seen = self.seen.lock();
        let entry = seen.entry(node.broker()).or_insert((!connected, now));
        if entry.0 != connected {
            *entry = (connected, now);
        }
    }

    /// The other registered brokers.
    pub(crate) fn peers(&self) -> Vec<PeerReport> {
        let image = self.image();
        let seen = self.seen.lock();
        let others = image.brokers.keys().filter(|id| **id != self.me.broker());
        others
            .map(|id| {
                let (connected, since) = seen.get(id).copied().unwrap_or((false, self.began));
                PeerReport {
                    id: *id,
                    connected,
                    since: Leaf::rfc3339(since),
                    draining: image.brokers.get(id).is_some_and(|broker| broker.draining),
                }
            })
            .collect()
    }

    /// Partitions led here of which a replica cannot be reached or lacks what is committed.
    pub(crate) fn under_replicated(&self, data: &DataPlane) -> u64 {
        let image = self.image();
        let behind: BTreeSet<ShardId> = image
            .shards
            .iter()
            .filter(|(id, shard)| {
                data.leads(**id).is_some()
                    && data.shard_status(**id).is_some_and(|status| {
                        shard.replicas.iter().any(|node| {
                            !self.is_alive(node.broker())
                                || status.matched.get(node).copied().unwrap_or(0) < status.committed
                        })
                    })
            })
            .map(|(id, _)| *id)
            .collect();
        if behind.is_empty() {
            return 0;
        }
        let partitions = image.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.filter(|shard| behind.contains(shard)).count() as u64
    }

    /// Whether this broker was told to give everything away, and has: its data, and its vote on the metadata.
    pub(crate) fn is_drained(&self, data: &DataPlane) -> bool {
        let image = self.image();
        let registered = image.brokers.get(&self.me.broker());
        let metadata = self.metadata.status();
        registered.is_some_and(|broker| broker.draining)
            && image.shards_on(self.me.broker()).next().is_none()
            && data.hosted().is_empty()
            && !metadata.changing
            && !metadata.voters.contains(&self.me)
    }

    /// Whether everything that is assigned to this broker is hosted here, has a leader, and counts this replica among its voters: until then the loss of
    /// another broker could cost a majority, so an upgrade has to wait.
    pub(crate) fn is_served(&self, data: &DataPlane) -> bool {
        let image = self.image();
        let assigned = replicas::assigned(self.me, &image);
        let serves = |shard: &ShardId| {
            data.shard_status(*shard)
                .is_some_and(|status| status.leader.is_some() && status.voters.contains(&self.me))
        };
        !image.pools.is_empty() && assigned.keys().all(serves)
    }

    /// Takes note of whether a broker can write nothing now.
    fn note_full(&self, broker: i32, is_full: bool) {
        self.full.send_if_modified(|full| match is_full {
            true => full.insert(broker),
            false => full.remove(&broker),
        });
    }

    /// Whether this broker can write nothing, or could not just now.
    pub(super) fn is_full(&self) -> bool {
        self.full.borrow().contains(&self.me.broker())
    }

    /// Brokers that could lead something, as far as they can be reached and have space.
    pub(crate) fn able(&self) -> BTreeSet<i32> {
        let mut able = self.alive();
        for full in self.full.borrow().iter() {
            able.remove(full);
        }
        able
    }

    /// Gives leadership of every shard to a replica that can take it at once, and waits a little until they have.
    pub(crate) async fn hand_over(&self, data: &DataPlane) {
        if self.peers.is_none() {
            return;
        }
        self.leaving.store(true, Ordering::Relaxed);
        spread::tell(self);
        let image = self.image();
        let able = self.able();
        let metadata = self.metadata.status();
        let mut moves = Vec::new();
        for (shard, info) in image.shards.iter() {
            if let Some(status) = data.shard_status(*shard)
                && status.leader == Some(self.me)
                && let Some(heir) = replicas::heir(self.me, &info.replicas, &status, &able)
            {
                moves.push((*shard, heir));
            }
        }
        let all = async {
            let voters: Vec<NodeId> = metadata.voters.iter().copied().collect();
            if metadata.leader == Some(self.me)
                && let Some(heir) = replicas::heir(self.me, &voters, &metadata, &able)
            {
                // Whoever is next does it without being asked, if this does not work.
                drop(self.metadata.transfer_leadership(heir).await);
            }
            let transfers = moves
                .into_iter()
                .map(|(shard, heir)| data.transfer(shard, heir));
            futures::future::join_all(transfers).await;
        };
        if tokio::time::timeout(HAND_OVER, all).await.is_err() {
            tracing::warn!(
                "not every shard was taken over before the stop; the others elect a leader"
            );
        }
    }

    /// Brokers that could lead a shard, as far as they can be reached, have space and no damage: who has some gives leadership away again until it is repaired.
    fn fit(&self, data: &DataPlane, shard: ShardId) -> BTreeSet<i32> {
        let mut fit = self.able();
        for damaged in data.under_repair(shard) {
            fit.remove(&damaged.broker());
        }
        fit
    }

    /// Brokers that can be reached, this one among them.
    pub(crate) fn alive(&self) -> BTreeSet<i32> {
        let image = self.image();
        image
            .brokers
            .keys()
            .copied()
            .filter(|broker| self.is_alive(*broker))
            .collect()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}
