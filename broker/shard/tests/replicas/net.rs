//! A network in memory: ordered per pair of replicas, with delays, losses (which break a connection, as TCP does) and partitions (in which messages vanish).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use palisade_log::ShardId;
use palisade_shard::{Message, NodeId, Transport, TransportError};
use tokio::sync::{mpsc, oneshot, watch};

type Handler = Arc<dyn Fn(NodeId, Message) -> BoxFuture<'static, Message> + Send + Sync>;

#[derive(Default)]
struct State {
    handlers: BTreeMap<NodeId, Handler>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Messages of this kind break their connection.
    poison: Option<u8>,
    /// Of 1000 messages, as many are lost.
    loss: u64,
    delay: Duration,
    random: u64,
    kinds: BTreeMap<u8, usize>,
}

#[derive(Clone)]
struct Link {
    epoch: watch::Sender<u64>,
    queue: mpsc::UnboundedSender<(u64, Message, oneshot::Sender<Message>)>,
}

#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<State>>);

impl Net {
    pub fn attach(&self, node: NodeId, handler: Handler) {
        self.0.lock().unwrap().handlers.insert(node, handler);
    }

    pub fn detach(&self, node: NodeId) {
        let mut state = self.0.lock().unwrap();
        state.handlers.remove(&node);
        for ((from, to), link) in &state.links {
            if *from == node || *to == node {
                link.epoch.send_modify(|epoch| *epoch += 1);
            }
        }
    }

    /// Cuts `node` off from all of `others`.
    pub fn isolate(&self, node: NodeId, others: impl IntoIterator<Item = NodeId>) {
        let mut state = self.0.lock().unwrap();
        for other in others.into_iter().filter(|other| *other != node) {
            state.cut.insert((node, other));
            state.cut.insert((other, node));
        }
    }

    pub fn heal(&self) {
        let mut state = self.0.lock().unwrap();
        state.cut.clear();
        state.poison = None;
    }

    pub fn poison(&self, kind: u8) {
        self.0.lock().unwrap().poison = Some(kind);
    }

    pub fn weather(&self, seed: u64, loss: u64, delay: Duration) {
        let mut state = self.0.lock().unwrap();
        (state.random, state.loss, state.delay) = (seed, loss, delay);
    }

    /// How many messages of a kind were delivered.
    pub fn delivered(&self, kind: u8) -> usize {
        let state = self.0.lock().unwrap();
        state.kinds.get(&kind).copied().unwrap_or(0)
    }

    pub fn transport(&self, me: NodeId) -> Arc<dyn Transport> {
        Arc::new(Wire {
            me,
            net: self.clone(),
        })
    }

    fn link(&self, from: NodeId, to: NodeId) -> Link {
        let mut state = self.0.lock().unwrap();
        let net = self.clone();
        state
            .links
            .entry((from, to))
            .or_insert_with(|| {
                let (queue, messages) = mpsc::unbounded_channel();
                let epoch = watch::channel(0).0;
                tokio::spawn(carry(net, from, to, epoch.clone(), messages));
                Link { epoch, queue }
            })
            .clone()
    }

    /// How long a message takes, and whether it is lost.
    fn fate(&self, kind: u8) -> (Duration, bool) {
        let mut state = self.0.lock().unwrap();
        let mut draw = |below: u64| {
            state.random = state
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state.random >> 33) % below.max(1)
        };
        let (wait, chance) = (draw(1000), draw(1000));
        let delay = state.delay * u32::try_from(wait).unwrap() / 1000;
        (delay, chance < state.loss || state.poison == Some(kind))
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.0.lock().unwrap().cut.contains(&(from, to))
    }

    fn handler(&self, to: NodeId, kind: u8) -> Option<Handler> {
        let mut state = self.0.lock().unwrap();
        let handler = state.handlers.get(&to).cloned()?;
        *state.kinds.entry(kind).or_default() += 1;
        Some(handler)
    }
}

async fn carry(
    net: Net,
    from: NodeId,
    to: NodeId,
    epoch: watch::Sender<u64>,
    mut messages: mpsc::UnboundedReceiver<(u64, Message, oneshot::Sender<Message>)>,
) {
    while let Some((sent_in, message, answer)) = messages.recv().await {
        let (delay, is_lost) = net.fate(message.kind);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if sent_in < *epoch.borrow() {
            continue;
        }
        if net.is_cut(from, to) {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                drop(answer);
            });
            continue;
        }
        let Some(handler) = net.handler(to, message.kind).filter(|_| !is_lost) else {
            epoch.send_modify(|epoch| *epoch += 1);
            continue;
        };
        let answered = handler(from, message);
        let net = net.clone();
        tokio::spawn(async move {
            let message = answered.await;
            if net.is_cut(to, from) {
                tokio::time::sleep(Duration::from_secs(2)).await;
                return;
            }
            let _ = answer.send(message);
        });
    }
}

struct Wire {
    me: NodeId,
    net: Net,
}

impl Transport for Wire {
    fn call(
        &self,
        to: NodeId,
        _: ShardId,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, TransportError>> {
        let link = self.net.link(self.me, to);
        let now = *link.epoch.borrow();
        let (answer, answered) = oneshot::channel();
        let _ = link.queue.send((now, message, answer));
        let mut broken = link.epoch.subscribe();
        Box::pin(async move {
            let lost = || TransportError::Broken(to, "lost".to_owned());
            tokio::select! {
                answer = answered => answer.map_err(|_| lost()),
                _ = broken.wait_for(|epoch| *epoch > now) => Err(lost()),
            }
        })
    }
}
