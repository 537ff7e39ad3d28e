//! The network between the brokers: ordered per connection and shard, slow, lossy, and cut at times.
//!
//! A message that is lost takes its connection with it, as with TCP: everything on it that has no answer fails, and what had been sent may still arrive, even after
//! messages of the connection that follows. That is all the duplication and reordering that the transport's contract allows, besides that between shards.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use palisade_log::ShardId;
use palisade_shard::{Message, NodeId, Transport, TransportError};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    chance::{Chance, hash, mix},
    schedule::Schedule,
    trace::Trace,
};

/// Takes a message; `None`: the shard is not hosted.
pub(crate) type Handler =
    Arc<dyn Fn(NodeId, ShardId, Message) -> Option<BoxFuture<'static, Message>> + Send + Sync>;

type Answer = oneshot::Sender<Result<Message, TransportError>>;

#[derive(Default)]
struct State {
    handlers: BTreeMap<NodeId, Handler>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    /// From which broker to which nothing arrives, and by how many faults.
    cut: BTreeMap<(i32, i32), u32>,
    loss_permille: u64,
    /// Number of the fault by which they are lost.
    loss_of: u64,
    usual_delay: u64,
}

#[derive(Default)]
struct Link {
    connection: u64,
    /// Something was lost: nothing arrives any more until it is given up.
    doomed: bool,
    sent: u64,
    /// When the last message about a shard arrives.
    last: BTreeMap<u32, u64>,
    waiting: BTreeMap<u64, Answer>,
}

/// The network.
pub(crate) struct Network {
    seed: u64,
    pub(crate) schedule: Arc<Schedule>,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

impl Network {
    pub(crate) fn new(
        seed: u64,
        usual_delay: u64,
        schedule: Arc<Schedule>,
        trace: Arc<Trace>,
    ) -> Arc<Self> {
        Arc::new(Self {
            seed,
            schedule,
            trace,
            state: Mutex::new(State {
                usual_delay,
                ..State::default()
            }),
        })
    }

    pub(crate) fn attach(&self, node: NodeId, handler: Handler) {
        self.state.lock().handlers.insert(node, handler);
    }

    /// The process of `node` is gone; returns who had a connection with it.
    pub(crate) fn detach(self: &Arc<Self>, node: NodeId) -> Vec<NodeId> {
        let others: Vec<_> = {
            let mut state = self.state.lock();
            state.handlers.remove(&node);
            state.handlers.keys().copied().collect()
        };
        for other in &others {
            // What it had sent may still be read.
            self.give_up(node, *other, true);
            self.give_up(*other, node, false);
        }
        others
    }

    pub(crate) fn cut(&self, from: i32, to: i32) {
        let mut state = self.state.lock();
        let faults = state.cut.entry((from, to)).or_default();
        *faults = faults.saturating_add(1);
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.loss_permille = 0;
    }

    pub(crate) fn join(&self, from: i32, to: i32) {
        let mut state = self.state.lock();
        if let Some(faults) = state.cut.get_mut(&(from, to)) {
            *faults = faults.saturating_sub(1);
            if *faults == 0 {
                state.cut.remove(&(from, to));
            }
        }
    }

    pub(crate) fn is_cut(&self, from: i32, to: i32) -> bool {
        self.state.lock().cut.contains_key(&(from, to))
    }

    pub(crate) fn lose(&self, permille: u64, fault: u64) {
        let mut state = self.state.lock();
        (state.loss_permille, state.loss_of) = (permille, fault);
    }

    /// A fault ends; another that came meanwhile goes on.
    pub(crate) fn lose_no_more(&self, fault: u64) {
        let mut state = self.state.lock();
        if state.loss_of == fault {
            state.loss_permille = 0;
        }
    }

    /// The connection is given up: what has no answer fails. Of what had been sent some may still arrive.
    pub(crate) fn give_up(self: &Arc<Self>, from: NodeId, to: NodeId, arrives: bool) {
        let waiting = {
            let mut state = self.state.lock();
            let link = state.links.entry((from, to)).or_default();
            if !arrives {
                link.connection = link.connection.saturating_add(1);
            }
            link.connection = link.connection.saturating_add(1);
            link.doomed = false;
            link.last.clear();
            std::mem::take(&mut link.waiting)
        };
        for answer in waiting.into_values() {
            let _ = answer.send(Err(TransportError::Broken(to, "it was lost".to_owned())));
        }
    }

    fn doom(self: &Arc<Self>, from: NodeId, to: NodeId, number: u64) {
        let connection = {
            let mut state = self.state.lock();
            let link = state.links.entry((from, to)).or_default();
            if link.doomed {
                return;
            }
            link.doomed = true;
            link.connection
        };
        let mut chance = Chance::of(&[self.seed, 11, from.0, to.0, number]);
        let at = self
            .schedule
            .now()
            .saturating_add(chance.between(1_000, 3_000_000));
        let this = Arc::clone(self);
        self.schedule.at(at, mix(&[from.0, to.0, 3]), move || {
            let is_same = {
                let state = this.state.lock();
                let link = state.links.get(&(from, to));
                link.is_some_and(|link| link.connection == connection)
            };
            if is_same {
                this.give_up(from, to, false);
            }
        });
    }

    fn call(
        self: &Arc<Self>,
        from: NodeId,
        to: NodeId,
        shard: ShardId,
        message: Message,
    ) -> oneshot::Receiver<Result<Message, TransportError>> {
        let (answer, answered) = oneshot::channel();
        let now = self.schedule.now();
        let mut state = self.state.lock();
        let (loss, usual) = (state.loss_permille, state.usual_delay);
        let link = state.links.entry((from, to)).or_default();
        let number = link.sent;
        link.sent = number.saturating_add(1);
        link.waiting.insert(number, answer);
        let connection = link.connection;
        let mut chance = Chance::of(&[self.seed, 10, from.0, to.0, u64::from(shard.0), number]);
        let last = link.last.entry(shard.0).or_default();
        let at = now
            .saturating_add(chance.delay(usual))
            .max(last.saturating_add(1));
        *last = at;
        let is_lost = chance.permille(loss);
        let late = chance.permille(300);
        let is_known = chance.permille(500);
        if is_known && !state.handlers.contains_key(&to) {
            // That nobody is there may be known before anything is sent.
            let link = state.links.get_mut(&(from, to));
            let answer = link.and_then(|link| link.waiting.remove(&number));
            drop(state);
            if let Some(answer) = answer {
                let why = "its process is not there".to_owned();
                let _ = answer.send(Err(TransportError::Unreachable(to, why)));
            }
            return answered;
        }
        drop(state);
        let this = Arc::clone(self);
        let key = mix(&[from.0, to.0, u64::from(shard.0), number]);
        self.schedule.at(at, key, move || {
            this.arrive(Sent {
                from,
                to,
                shard,
                number,
                connection,
                is_lost,
                late,
                message,
            });
        });
        answered
    }

    fn arrive(self: &Arc<Self>, sent: Sent) {
        let Sent {
            from,
            to,
            shard,
            number,
            ..
        } = sent;
        let handler = {
            let mut state = self.state.lock();
            let is_cut = state.cut.contains_key(&(from.broker(), to.broker()));
            let handler = state.handlers.get(&to).cloned();
            let link = state.links.entry((from, to)).or_default();
            let is_old = link.connection != sent.connection;
            // One that was given up on the sender's side alone may still be read by the receiver.
            let ghost = sent.late && link.connection == sent.connection.saturating_add(1);
            if is_old && !ghost {
                return;
            }
            if !is_old && (link.doomed || is_cut || sent.is_lost) {
                drop(state);
                self.doom(from, to, number);
                return;
            }
            handler
        };
        let length = sent.message.head.len() as u64;
        let content = hash(&sent.message.head);
        let kind = u64::from(sent.message.kind);
        self.trace.note(
            self.schedule.now(),
            &[1, from.0, to.0, u64::from(shard.0), kind, length, content],
            || format!("{from} -> {to} {shard}: kind {kind}, {length} bytes"),
        );
        let Some(handler) = handler else {
            self.give_up(from, to, false);
            return;
        };
        let Some(answer) = handler(from, shard, sent.message) else {
            self.answer(from, to, number, Err(TransportError::NotHosted(to)));
            return;
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let answer = answer.await;
            let mut chance = Chance::of(&[this.seed, 12, from.0, to.0, number]);
            let usual = this.state.lock().usual_delay;
            let at = this.schedule.now().saturating_add(chance.delay(usual));
            let key = mix(&[from.0, to.0, number, 4]);
            let net = Arc::clone(&this);
            this.schedule.at(at, key, move || {
                if net.is_cut(to.broker(), from.broker()) {
                    net.doom(from, to, number);
                } else {
                    net.answer(from, to, number, Ok(answer));
                }
            });
        });
    }

    fn answer(
        &self,
        from: NodeId,
        to: NodeId,
        number: u64,
        result: Result<Message, TransportError>,
    ) {
        let answer = {
            let mut state = self.state.lock();
            let link = state.links.entry((from, to)).or_default();
            if link.doomed {
                return;
            }
            link.waiting.remove(&number)
        };
        if let Some(answer) = answer {
            self.trace.note(
                self.schedule.now(),
                &[2, from.0, to.0, number, u64::from(result.is_ok())],
                || match &result {
                    Ok(message) => format!("{to} answers {from}: kind {}", message.kind),
                    Err(error) => format!("{to} answers {from}: {error}"),
                },
            );
            let _ = answer.send(result);
        }
    }
}

struct Sent {
    from: NodeId,
    to: NodeId,
    shard: ShardId,
    number: u64,
    connection: u64,
    is_lost: bool,
    late: bool,
    message: Message,
}

/// One node's end of the network.
pub(crate) struct Wire {
    pub(crate) me: NodeId,
    pub(crate) network: Arc<Network>,
    /// Whether the process that has this end still lives.
    pub(crate) alive: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Transport for Wire {
    fn call(
        &self,
        to: NodeId,
        shard: ShardId,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, TransportError>> {
        let broken = move |why: &str| TransportError::Broken(to, why.to_owned());
        if !(self.alive)() {
            return Box::pin(async move { Err(broken("this process is gone")) });
        }
        let answered = self.network.call(self.me, to, shard, message);
        Box::pin(async move {
            answered
                .await
                .unwrap_or_else(|_| Err(broken("it was closed")))
        })
    }
}
