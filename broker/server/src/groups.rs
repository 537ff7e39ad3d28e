//! Consumer groups at work: the coordinator's state machine with a clock, and the requests that wait in it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use palisade_coordinator::group::{
    Effect, GroupError, GroupSettings, Groups, JoinAnswer, JoinFailure, JoinRequest, SyncAnswer,
    SyncRequest, Ticket,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

/// Every group of this broker.
#[derive(Debug)]
pub(crate) struct GroupRuntime {
    groups: Mutex<Groups>,
    waiting: Mutex<HashMap<Ticket, Waiting>>,
    next: AtomicU64,
    /// Rung when the next deadline may have come closer.
    changed: Notify,
}

#[derive(Debug)]
enum Waiting {
    Join(oneshot::Sender<JoinAnswer>),
    Sync(oneshot::Sender<SyncAnswer>),
}

impl GroupRuntime {
    pub(crate) fn new(settings: GroupSettings) -> Self {
        Self {
            groups: Mutex::new(Groups::new(settings)),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    /// JoinGroup; waits for the rest of the group.
    pub(crate) async fn join(&self, request: JoinRequest) -> JoinAnswer {
        let member = request.member.clone();
        let (sender, answer) = oneshot::channel();
        let ticket = self.ticket(Waiting::Join(sender));
        let effects = self.groups.lock().join(Instant::now(), request, ticket);
        self.deliver(effects);
        self.changed.notify_one();
        answer.await.unwrap_or(Err(JoinFailure {
            error: GroupError::NotCoordinator,
            member,
        }))
    }

    /// SyncGroup; waits for the leader's assignment.
    pub(crate) async fn sync(&self, request: SyncRequest) -> SyncAnswer {
        let (sender, answer) = oneshot::channel();
        let ticket = self.ticket(Waiting::Sync(sender));
        let effects = self.groups.lock().sync(Instant::now(), request, ticket);
        self.deliver(effects);
        self.changed.notify_one();
        answer.await.unwrap_or(Err(GroupError::NotCoordinator))
    }

    /// Anything that is answered at once.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Groups, Instant) -> R) -> R {
        act(&mut self.groups.lock(), Instant::now())
    }

    /// As [`GroupRuntime::with`], for what may make answers of others due.
    pub(crate) fn with_effects<R>(
        &self,
        act: impl FnOnce(&mut Groups, Instant) -> (R, Vec<Effect>),
    ) -> R {
        let (result, effects) = act(&mut self.groups.lock(), Instant::now());
        self.deliver(effects);
        self.changed.notify_one();
        result
    }

    /// Does what time does, until the broker stops; then everything that waits is told to look for another coordinator.
    pub(crate) async fn run(self: Arc<Self>, stopping: CancellationToken) {
        loop {
            let next = self.groups.lock().next_deadline();
            let due = async {
                match next {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => break,
                () = self.changed.notified() => {}
                () = due => {
                    let effects = self.groups.lock().tick(Instant::now());
                    self.deliver(effects);
                }
            }
        }
        self.resign(|_| true);
    }

    /// Forgets the groups that have moved to another coordinator, and tells everyone who waits in them.
    pub(crate) fn resign(&self, moved: impl Fn(&str) -> bool) {
        let effects = self.groups.lock().resign(moved);
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
