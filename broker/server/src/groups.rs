//! Consumer groups at work: the coordinator's state machine with a clock, and the requests that wait in it.
//!
//! Every stable generation is recorded in the shard that keeps the group's offsets before its members are given their assignments (`keeper`), and is read from
//! there when this broker becomes the leader of the shard ([`GroupRuntime::load`]): before any request of one of its groups is served.

mod keeper;
mod unsaved;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use palisade_coordinator::{
    group::{
        Effect, GroupError, GroupSettings, Groups, JoinAnswer, JoinFailure, JoinRequest,
        SyncAnswer, SyncRequest, Ticket,
    },
    offsets::GroupRecord,
};
use palisade_log::ShardId;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use unsaved::Unsaved;

/// Every group of this broker.
#[derive(Debug)]
pub(crate) struct GroupRuntime {
    state: Mutex<Coordinated>,
    /// In which term of its leader here the groups of a shard were loaded. Changed with `state` locked; whoever holds this waits for nothing else.
    loaded: RwLock<BTreeMap<ShardId, u64>>,
    /// Held while a shard is loaded, so that it is read once.
    loading: Mutex<()>,
    /// The broker stops.
    closed: AtomicBool,
    waiting: Mutex<HashMap<Ticket, Waiting>>,
    next: AtomicU64,
    /// Rung when the next deadline may have come closer.
    changed: Notify,
    /// Rung when there is something to write.
    unsaved: Notify,
}

/// That this broker coordinates the groups of a shard: it led the shard in this term when it was asked, and they were loaded. They may be given up at any
/// moment, so whoever acts on a group by it has it looked at again while they are locked. Otherwise a member would be told that it is none, and not to look for
/// its coordinator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) shard: ShardId,
    pub(crate) term: u64,
}

#[derive(Debug)]
struct Coordinated {
    groups: Groups,
    unsaved: Unsaved,
}

impl Coordinated {
    /// Keeps the answers that must wait until what they tell is durable: assignments, and the joins of static members that have another id now, of the group
    /// `of` whose request it was; nothing else lets such answers out. Returns the others, and whether there is something to write.
    fn settle(&mut self, of: Option<&str>, effects: Vec<Effect>) -> (Vec<Effect>, bool) {
        let changed = self.groups.take_changed();
        for group in &changed {
            self.unsaved.note(group);
        }
        let Some(group) = of.filter(|group| self.unsaved.contains(group)) else {
            return (effects, !changed.is_empty());
        };
        let (held, due): (Vec<_>, Vec<_>) = effects.into_iter().partition(|effect| match effect {
            Effect::Sync { answer, .. } => answer.is_ok(),
            Effect::Join { answer, .. } => answer.is_ok() && changed.contains(group),
        });
        let ring = !changed.is_empty() || !held.is_empty();
        for effect in held {
            self.unsaved.hold(group, effect);
        }
        (due, ring)
    }

    fn resign(&mut self, moved: impl Fn(&str) -> bool) -> Vec<Effect> {
        let mut effects = self.groups.resign(&moved);
        effects.extend(self.unsaved.give_up(&moved));
        effects
    }
}

#[derive(Debug)]
enum Waiting {
    Join(oneshot::Sender<JoinAnswer>),
    Sync(oneshot::Sender<SyncAnswer>),
}

impl GroupRuntime {
    pub(crate) fn new(settings: GroupSettings) -> Self {
        Self {
            state: Mutex::new(Coordinated {
                groups: Groups::new(settings),
                unsaved: Unsaved::default(),
            }),
            loaded: RwLock::default(),
            loading: Mutex::default(),
            closed: AtomicBool::new(false),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            changed: Notify::new(),
            unsaved: Notify::new(),
        }
    }

    /// JoinGroup; waits for the rest of the group.
    pub(crate) async fn join(&self, seat: Seat, request: JoinRequest) -> JoinAnswer {
        let (group, member) = (request.group.clone(), request.member.clone());
        let (sender, answer) = oneshot::channel();
        let ticket = self.ticket(Waiting::Join(sender));
        let taken = self.act(Some(seat), Some(&group), |groups, now| {
            ((), groups.join(now, request, ticket))
        });
        if taken.is_none() {
            self.waiting.lock().remove(&ticket);
        }
        answer.await.unwrap_or(Err(JoinFailure {
            error: GroupError::NotCoordinator,
            member,
        }))
    }

    /// SyncGroup; waits for the leader's assignment, and until that is durable.
    pub(crate) async fn sync(&self, seat: Seat, request: SyncRequest) -> SyncAnswer {
        let group = request.from.group.clone();
        let (sender, answer) = oneshot::channel();
        let ticket = self.ticket(Waiting::Sync(sender));
        let taken = self.act(Some(seat), Some(&group), |groups, now| {
            ((), groups.sync(now, request, ticket))
        });
        if taken.is_none() {
            self.waiting.lock().remove(&ticket);
        }
        answer.await.unwrap_or(Err(GroupError::NotCoordinator))
    }

    /// Asks a group something that is answered at once.
    ///
    /// # Errors
    /// What `ask` says, or [`GroupError::NotCoordinator`].
    pub(crate) fn ask<R>(
        &self,
        seat: Seat,
        ask: impl FnOnce(&mut Groups, Instant) -> Result<R, GroupError>,
    ) -> Result<R, GroupError> {
        let mut state = self.state.lock();
        if !self.holds(seat) {
            return Err(GroupError::NotCoordinator);
        }
        ask(&mut state.groups, Instant::now())
    }

    /// As [`GroupRuntime::ask`], for what may make answers of others due.
    pub(crate) fn ask_with_effects<R>(
        &self,
        seat: Seat,
        ask: impl FnOnce(&mut Groups, Instant) -> (R, Vec<Effect>),
    ) -> Result<R, GroupError> {
        self.act(Some(seat), None, ask)
            .ok_or(GroupError::NotCoordinator)
    }

    /// Looks at all groups that are known here.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Groups, Instant) -> R) -> R {
        act(&mut self.state.lock().groups, Instant::now())
    }

    /// Does something that belongs to the group `of`, or to any; nothing when the seat is not held any more.
    fn act<R>(
        &self,
        seat: Option<Seat>,
        of: Option<&str>,
        act: impl FnOnce(&mut Groups, Instant) -> (R, Vec<Effect>),
    ) -> Option<R> {
        let (result, due, ring) = {
            let mut state = self.state.lock();
            if seat.is_some_and(|seat| !self.holds(seat)) {
                return None;
            }
            let (result, effects) = act(&mut state.groups, Instant::now());
            let (due, ring) = state.settle(of, effects);
            (result, due, ring)
        };
        self.deliver(due);
        self.changed.notify_one();
        if ring {
            self.unsaved.notify_one();
        }
        Some(result)
    }

    /// Whether a seat is still held. With `state` locked it stays so.
    fn holds(&self, seat: Seat) -> bool {
        !self.is_closed() && self.is_loaded(seat)
    }

    /// Does what time does, until the broker stops; then everything that waits is told to look for another coordinator.
    pub(crate) async fn run(self: Arc<Self>, stopping: CancellationToken) {
        loop {
            let next = self.state.lock().groups.next_deadline();
            let due = async {
                match next {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => break,
                () = self.changed.notified() => {}
                () = due => drop(self.act(None, None, |groups, now| ((), groups.tick(now)))),
            }
        }
        self.closed.store(true, Ordering::Release);
        let effects = self.state.lock().resign(|_| true);
        self.deliver(effects);
    }

    /// Whether the broker stops: it coordinates nothing any more, and its members go on at another, or here when it is back.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether the groups of a shard that this broker leads in a term are here. Somebody may have seen a later term already.
    pub(crate) fn is_loaded(&self, seat: Seat) -> bool {
        let loaded = self.loaded.read();
        loaded
            .get(&seat.shard)
            .is_some_and(|loaded| *loaded >= seat.term)
    }

    /// Takes up the groups of a shard that this broker leads in a term, unless that is done: those that are known from an earlier term are given up, since
    /// another broker may have coordinated them meanwhile, and what `read` gives was kept of them.
    pub(crate) fn load(
        &self,
        seat: Seat,
        shard_of: impl Fn(&str) -> Option<ShardId>,
        read: impl FnOnce() -> Vec<(String, GroupRecord)>,
    ) {
        let _one = self.loading.lock();
        if self.is_loaded(seat) {
            return;
        }
        // Before the groups are locked: housekeeping asks for groups while it reads offsets.
        let records = read();
        let effects = {
            let mut state = self.state.lock();
            let effects = state.resign(|group| shard_of(group) == Some(seat.shard));
            let now = Instant::now();
            for (group, record) in &records {
                if !state.groups.restore(now, group, record) {
                    warn!(
                        group,
                        "what is kept of the group's members contradicts itself; they have to join again"
                    );
                }
            }
            self.loaded.write().insert(seat.shard, seat.term);
            effects
        };
        self.deliver(effects);
        self.changed.notify_one();
    }

    /// Gives up the groups of the shards that this broker does not lead any more in the term in which they were loaded: their members find the new coordinator.
    pub(crate) fn unload(
        &self,
        leads: impl Fn(ShardId) -> Option<u64>,
        shard_of: impl Fn(&str) -> Option<ShardId>,
    ) {
        let effects = {
            let mut state = self.state.lock();
            let mut loaded = self.loaded.write();
            let before = loaded.len();
            loaded.retain(|shard, term| leads(*shard) == Some(*term));
            if loaded.len() == before {
                return;
            }
            state.resign(|group| shard_of(group).is_none_or(|shard| !loaded.contains_key(&shard)))
        };
        self.deliver(effects);
        self.changed.notify_one();
    }

    fn ticket(&self, waiting: Waiting) -> Ticket {
        let ticket = Ticket(self.next.fetch_add(1, Ordering::Relaxed));
        self.waiting.lock().insert(ticket, waiting);
        ticket
    }

    fn deliver(&self, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        for effect in effects {
            // Nobody listens any more when the connection has gone; the member's session ends by itself.
            match effect {
                Effect::Join { ticket, answer } => {
                    if let Some(Waiting::Join(sender)) = waiting.remove(&ticket) {
                        drop(sender.send(answer));
                    }
                }
                Effect::Sync { ticket, answer } => {
                    if let Some(Waiting::Sync(sender)) = waiting.remove(&ticket) {
                        drop(sender.send(answer));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
