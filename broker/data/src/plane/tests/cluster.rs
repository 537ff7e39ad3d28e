//! Several data planes in one process, and a network between them that can be cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use palisade_log::{Offset, ShardId, TopicId, segment::FrameMeta};
use palisade_shard::{Formation, Message, NodeId, Transport, TransportError};
use parking_lot::Mutex;

use super::bench::{Bench, P0, TestCatalog, eventually};
use crate::{Catalog, DataOptions, DataPlane, ScrubOptions};

pub(super) const SHARD: ShardId = ShardId(1);

/// Who can be reached, and who is cut off.
#[derive(Default)]
pub(super) struct Net {
    planes: Mutex<BTreeMap<NodeId, Weak<DataPlane>>>,
    cut: Mutex<BTreeSet<NodeId>>,
}

struct Link {
    me: NodeId,
    net: Arc<Net>,
}

impl Net {
    fn reach(&self, from: NodeId, to: NodeId) -> Option<Arc<DataPlane>> {
        let cut = self.cut.lock();
        if cut.contains(&from) || cut.contains(&to) {
            return None;
        }
        self.planes.lock().get(&to)?.upgrade()
    }
}

impl Transport for Link {
    fn call(
        &self,
        to: NodeId,
        shard: ShardId,
        message: Message,
    ) -> Pin<Box<dyn Future<Output = Result<Message, TransportError>> + Send>> {
        let Some(plane) = self.net.reach(self.me, to) else {
            return Box::pin(async move {
                Err(TransportError::Unreachable(to, "a test says so".to_owned()))
            });
        };
        let answer = plane.handle(self.me, shard, message);
        let (net, me) = (Arc::clone(&self.net), self.me);
        Box::pin(async move {
            let answer = answer.ok_or(TransportError::NotHosted(to))?.await;
            match net.reach(to, me) {
                Some(_) => Ok(answer),
                None => Err(TransportError::Broken(to, "a test says so".to_owned())),
            }
        })
    }
}

/// One broker: its disk, and what runs on it.
pub(super) struct Broker {
    pub(super) id: NodeId,
    pub(super) bench: Bench,
    pub(super) plane: Option<Arc<DataPlane>>,
}

pub(super) struct Cluster {
    pub(super) net: Arc<Net>,
    pub(super) catalog: Arc<TestCatalog>,
    pub(super) brokers: Vec<Broker>,
    /// Small, so that whoever is behind is sent a snapshot.
    pub(super) tail_bytes: usize,
    pub(super) scrub: ScrubOptions,
}

impl Cluster {
    /// Brokers that have formed their shards.
    pub(super) async fn form(count: usize) -> Self {
        let mut cluster = Self {
            net: Arc::default(),
            catalog: Arc::default(),
            brokers: Vec::new(),
            tail_bytes: 32 << 10,
            scrub: ScrubOptions::default(),
        };
        for id in 0..count {
            cluster.add(NodeId::of(id as i32, 1));
        }
        let voters: BTreeSet<_> = cluster.brokers.iter().map(|broker| broker.id).collect();
        for at in 0..count {
            cluster.start(at).await;
            for shard in [1, 2] {
                let formation = Formation::Form(voters.clone());
                cluster
                    .plane(at)
                    .host(ShardId(shard), formation)
                    .await
                    .unwrap();
            }
        }
        for shard in [1, 2] {
            cluster.settled(ShardId(shard)).await;
        }
        cluster
    }

    pub(super) fn add(&mut self, id: NodeId) {
        let mut bench = Bench::new();
        bench.real_files = true;
        bench.catalog = Arc::clone(&self.catalog);
        self.brokers.push(Broker {
            id,
            bench,
            plane: None,
        });
    }

    pub(super) fn plane(&self, at: usize) -> Arc<DataPlane> {
        Arc::clone(self.brokers[at].plane.as_ref().unwrap())
    }

    /// Starts a broker on what its disk holds.
    pub(super) async fn start(&mut self, at: usize) {
        let broker = &self.brokers[at];
        let keys = broker.bench.keys();
        let (wal, recovered) = broker.bench.open_wal(&keys);
        let options = DataOptions {
            node: broker.id,
            checkpoint_wal_bytes: broker.bench.checkpoint_wal_bytes,
            housekeeping: Duration::from_millis(100),
            tail_bytes: self.tail_bytes,
            scrub: self.scrub,
            cleaner: broker.bench.cleaner,
            fs: broker.bench.fs(&broker.bench.data_fs),
            on_sync_failure: Arc::new(|_| {}),
            ..DataOptions::new(broker.bench.data_dir())
        };
        let catalog: Arc<dyn Catalog> = Arc::clone(&self.catalog) as _;
        let link = Arc::new(Link {
            me: broker.id,
            net: Arc::clone(&self.net),
        });
        let plane = DataPlane::open(options, wal, recovered, keys, catalog, link)
            .await
            .unwrap();
        let mut planes = self.net.planes.lock();
        planes.insert(broker.id, Arc::downgrade(&plane));
        drop(planes);
        self.brokers[at].plane = Some(plane);
    }

    /// Ends a broker as kill -9 does, and tells the others.
    pub(super) async fn kill(&mut self, at: usize) {
        let id = self.brokers[at].id;
        self.net.planes.lock().remove(&id);
        let plane = self.brokers[at].plane.take().unwrap();
        self.brokers[at].bench.kill(plane).await;
        for broker in &self.brokers {
            if let Some(plane) = &broker.plane {
                plane.peer_lost(id);
            }
        }
    }

    /// A broker that was killed comes back with an empty volume: as another node.
    pub(super) fn wipe(&mut self, at: usize) {
        let broker = &mut self.brokers[at];
        broker.id = NodeId(broker.id.0 + 1);
        let mut bench = Bench::new();
        bench.real_files = true;
        bench.catalog = Arc::clone(&self.catalog);
        broker.bench = bench;
    }

    pub(super) fn cut(&self, at: usize) {
        self.net.cut.lock().insert(self.brokers[at].id);
    }

    /// Lets one that was cut off reach those who are not.
    pub(super) fn let_in(&self, at: usize) {
        self.net.cut.lock().remove(&self.brokers[at].id);
    }

    pub(super) fn heal(&self) {
        self.net.cut.lock().clear();
    }

    /// Who leads a shard, as soon as somebody does.
    pub(super) async fn leader(&self, shard: ShardId) -> usize {
        let mut found = None;
        eventually("somebody leads", || {
            let cut = self.net.cut.lock();
            found = self.brokers.iter().position(|broker| {
                !cut.contains(&broker.id)
                    && broker
                        .plane
                        .as_ref()
                        .is_some_and(|plane| plane.leads(shard).is_some())
            });
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Waits until every broker that runs has applied what the leader has.
    pub(super) async fn settled(&self, shard: ShardId) {
        let leader = self.plane(self.leader(shard).await);
        eventually("everybody has applied everything", || {
            let wanted = leader.shard_status(shard).unwrap().last_index;
            self.brokers
                .iter()
                .filter_map(|broker| broker.plane.as_ref())
                .all(|plane| {
                    plane
                        .shard_status(shard)
                        .is_some_and(|status| status.applied == wanted)
                })
        })
        .await;
    }

    /// The batches of a topic's first partition as they lie on a broker's disk.
    pub(super) fn sealed(&self, at: usize, topic: TopicId) -> Vec<(FrameMeta, Bytes)> {
        let plane = self.plane(at);
        let located = plane.locate_replica(topic, P0).unwrap();
        let partition = located.partition().unwrap();
        let (mut from, end) = located.ends();
        let mut all = Vec::new();
        while from < end {
            let some = partition.log.read(from, 1 << 20).unwrap();
            from = Offset(some.last().expect("no gap").0.last_offset.0 + 1);
            all.extend(some);
        }
        all
    }

    pub(super) async fn shutdown(self) {
        for broker in self.brokers {
            if let Some(plane) = broker.plane {
                plane.shutdown().await;
            }
        }
    }
}
