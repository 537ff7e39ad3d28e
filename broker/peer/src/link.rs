//! The way to one broker: a connection that is made again whenever it breaks, and replaced when it gets old.

use std::{sync::Arc, time::Duration};

use palisade_shard::{Message, NodeId};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    api::{CallError, PeerEvent, PeerState},
    dial::{DialError, Dialled, dial},
    lane::{Answer, Lane, replaced},
    run::run,
    shared::Shared,
};

/// A connection that lived for so long is made again at once when it breaks.
const STEADY: Duration = Duration::from_secs(1);
/// Why a connection ends that would not come about any more.
pub(crate) const UNTRUSTED: &str = "its certificate is not trusted any more";
/// An old connection that cannot be replaced is tried again after this part of its greatest age.
const RETRIES_PER_AGE: u32 = 60;

pub(crate) struct Link {
    broker: i32,
    state: Mutex<State>,
    /// Ends a pause between attempts.
    nudge: Notify,
}

enum State {
    Connecting(Arc<Lane>),
    Up(Arc<Lane>, NodeId),
    Down(String),
}

impl Link {
    /// Starts to connect.
    pub(crate) fn start(shared: &Arc<Shared>, broker: i32) -> Arc<Self> {
        let lane = Arc::new(Lane::default());
        let link = Arc::new(Self {
            broker,
            state: Mutex::new(State::Connecting(Arc::clone(&lane))),
            nudge: Notify::new(),
        });
        shared.changed(broker, Some(PeerState::Connecting));
        let task = Arc::clone(&link).keep(Arc::clone(shared), lane);
        shared.tasks.spawn_on(task, &shared.runtime);
        link
    }

    /// The broker shows life: another attempt is worth its while.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_waiters();
    }

    /// Queues a call. Whoever calls twice has the calls sent in this order.
    pub(crate) fn call(
        &self,
        node: Option<NodeId>,
        channel: u32,
        message: Message,
        patience: Duration,
        limit: usize,
    ) -> Result<oneshot::Receiver<Answer>, CallError> {
        let state = self.state.lock();
        match &*state {
            State::Connecting(lane) => lane.request(node, channel, message, patience, limit),
            State::Up(lane, up) if node.is_none_or(|node| node == *up) => {
                lane.request(node, channel, message, patience, limit)
            }
            State::Up(_, up) => Err(replaced(*up)),
            State::Down(reason) => Err(CallError::Unreachable(reason.clone())),
        }
    }

    async fn keep(self: Arc<Self>, shared: Arc<Shared>, first: Arc<Lane>) {
        let mut first = Some(first);
        let mut lost = None;
        let mut backoff = Backoff::new(&shared);
        loop {
            match self.dial(&shared, false).await {
                Ok(dialled) => {
                    let began = Instant::now();
                    let node = dialled.node;
                    if let Some(before) = lost.take_if(|before| *before != node) {
                        shared.tell(PeerEvent::Gone(before));
                    }
                    let reason = self.connected(&shared, first.take(), dialled).await;
                    self.down(&shared, &reason);
                    if shared.stopping.is_cancelled() {
                        break;
                    }
                    shared.tell(PeerEvent::Lost(node));
                    lost = Some(node);
                    warn!(peer = %node, reason, "lost the connection to a broker");
                    if began.elapsed() >= STEADY {
                        backoff = Backoff::new(&shared);
                        continue;
                    }
                }
                Err(DialError::Stopping) => break,
                Err(error) => {
                    let reason = error.to_string();
                    if error.is_gone()
                        && let Some(node) = lost.take()
                    {
                        shared.tell(PeerEvent::Gone(node));
                    }
                    if self.down(&shared, &reason) {
                        info!(
                            broker = self.broker,
                            reason, "cannot connect to a broker, trying again"
                        );
                    } else {
                        debug!(broker = self.broker, reason, "cannot connect to a broker");
                    }
                    if let Some(lane) = first.take() {
                        lane.fail(&CallError::Unreachable(reason));
                    }
                    if self.leave(&shared) {
                        return;
                    }
                }
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = self.nudge.notified() => {}
                () = shared.stopping.cancelled() => break,
            }
        }
        let reason = "this broker stops".to_owned();
        if let Some(lane) = first {
            lane.fail(&CallError::Unreachable(reason.clone()));
        }
        self.down(&shared, &reason);
    }

    /// True when the broker is none of the cluster's: the next call begins anew.
    fn leave(&self, shared: &Shared) -> bool {
        let mut links = shared.links.lock();
        if shared.options.directory.is_member(self.broker) {
            return false;
        }
        links.remove(&self.broker);
        shared.changed(self.broker, None);
        true
    }

    async fn dial(&self, shared: &Shared, takes_over: bool) -> Result<Dialled, DialError> {
        let options = &shared.options;
        let address = options
            .directory
            .address(self.broker)
            .ok_or(DialError::NoAddress)?;
        let config = options.connector.config();
        let mine = shared.hello(takes_over);
        let frame_bytes = options.limits.frame_bytes;
        let dial = dial(address, config, &mine, self.broker, frame_bytes);
        tokio::select! {
            dialled = timeout(options.limits.connect, dial) => dialled.unwrap_or(Err(DialError::TimedOut)),
            () = shared.stopping.cancelled() => Err(DialError::Stopping),
        }
    }

    /// True when that is news.
    fn down(&self, shared: &Shared, reason: &str) -> bool {
        let before = {
            let mut state = self.state.lock();
            std::mem::replace(&mut *state, State::Down(reason.to_owned()))
        };
        shared.changed(self.broker, Some(PeerState::Down(reason.to_owned())));
        !matches!(before, State::Down(before) if before == reason)
    }

    fn up(&self, shared: &Shared, lane: &Arc<Lane>, node: NodeId) {
        {
            let mut state = self.state.lock();
            lane.connected(node);
            *state = State::Up(Arc::clone(lane), node);
        }
        shared.met(node);
        shared.changed(self.broker, Some(PeerState::Up(node)));
    }

    /// From one connection's beginning to the end of its last successor; says why it ended.
    async fn connected(
        &self,
        shared: &Arc<Shared>,
        first: Option<Arc<Lane>>,
        dialled: Dialled,
    ) -> String {
        let node = dialled.node;
        let limits = shared.options.limits;
        let mut trust = shared.trust();
        let mut chain = dialled.chain.clone();
        let mut lane = first.unwrap_or_default();
        self.up(shared, &lane, node);
        shared.tell(PeerEvent::Up(node));
        info!(peer = %node, "connected to a broker");
        let mut running = spawn(shared, &lane, dialled);
        let mut born = Instant::now();
        let mut renew = born + limits.max_age;
        loop {
            let next = tokio::select! {
                end = &mut running => return reason(end),
                () = trust.changed() => {
                    if !trust.holds(&chain) {
                        return self.give_up(&lane, UNTRUSTED);
                    }
                    // Before the other side trusts what this one has shown no more.
                    renew = Instant::now();
                    continue;
                }
                next = async {
                    sleep_until(renew).await;
                    self.dial(shared, true).await
                } => next,
            };
            match next {
                Ok(next) if next.node == node => {
                    chain.clone_from(&next.chain);
                    match self.hand_over(shared, &lane, next, &mut running).await {
                        Ok((new, run)) => {
                            (lane, running) = (new, run);
                            born = Instant::now();
                            renew = born + limits.max_age;
                        }
                        Err(reason) => return reason,
                    }
                }
                Ok(next) => return self.give_up(&lane, &replaced(next.node).to_string()),
                Err(DialError::Stopping) => return reason((&mut running).await),
                Err(error) if born.elapsed() >= limits.max_age * 2 => {
                    return self.give_up(
                        &lane,
                        &format!("the connection is too old and cannot be replaced: {error}"),
                    );
                }
                Err(error) => {
                    warn!(peer = %node, %error, "cannot replace an old connection, it stays for now");
                    renew = Instant::now() + limits.max_age / RETRIES_PER_AGE;
                }
            }
        }
    }

    /// New calls go to the next connection, once all of this one's are handed over there.
    async fn hand_over(
        &self,
        shared: &Arc<Shared>,
        lane: &Arc<Lane>,
        next: Dialled,
        running: &mut JoinHandle<String>,
    ) -> Result<(Arc<Lane>, JoinHandle<String>), String> {
        let new = Arc::new(Lane::default());
        let node = next.node;
        let passed = {
            let mut state = self.state.lock();
            *state = State::Up(Arc::clone(&new), node);
            lane.retire()
        };
        let failed = tokio::select! {
            passed = timeout(shared.options.limits.silence, passed) => match passed {
                Ok(Ok(())) => None,
                _ => Some("the connection could not be replaced in order".to_owned()),
            },
            end = running => Some(reason(end)),
        };
        match failed {
            None => {
                debug!(peer = %node, "replaced an old connection");
                let running = spawn(shared, &new, next);
                Ok((new, running))
            }
            Some(reason) => {
                self.give_up(&new, &reason);
                Err(self.give_up(lane, &reason))
            }
        }
    }

    fn give_up(&self, lane: &Lane, reason: &str) -> String {
        lane.fail(&CallError::Broken(reason.to_owned()));
        reason.to_owned()
    }
}

fn spawn(shared: &Arc<Shared>, lane: &Arc<Lane>, dialled: Dialled) -> JoinHandle<String> {
    let limits = shared.options.limits;
    let stopping = shared.stopping.clone();
    let run = run(Arc::clone(lane), dialled, limits, stopping);
    shared.tasks.spawn_on(run, &shared.runtime)
}

fn reason(end: Result<String, tokio::task::JoinError>) -> String {
    end.unwrap_or_else(|error| error.to_string())
}

/// Pauses between attempts.
struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    fn new(shared: &Shared) -> Self {
        let limits = &shared.options.limits;
        Self {
            next: limits.backoff_min,
            max: limits.backoff_max,
        }
    }

    fn next(&mut self) -> Duration {
        let now = self.next.min(self.max);
        self.next = now * 2;
        now
    }
}
