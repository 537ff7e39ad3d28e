//! One shard: the engine, its log and its state machine put together.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::BoxFuture;
use openraft::{
    Raft, async_runtime::watch::WatchReceiver, error::ClientWriteError, raft::ClientWriteResult,
};
use palisade_log::{ShardId, Wal, WalRecord};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    CheckpointError, Command, Formation, LeaderView, LogPosition, Message, NodeId, ProposeError,
    ShardConfig, ShardError, ShardStatus, StateMachine, Transport,
    config::engine_config,
    engine::{Applied, Machine, Shared, position},
    leading::{self, Standing},
    log_store::LogStore,
    network::{Link, Peers},
    raft_types::{LogId, Reply, Types, log_id},
    receive::Inbox,
    receive_snapshot::{Receiver, receive},
    simulated,
    trim::trim,
};

/// How often a proposal that waits looks whether the disk is full or leadership is lost.
const CHECK: Duration = Duration::from_millis(100);

/// How long a checkpoint waits for the write-ahead log. Nothing is applied meanwhile.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// What a record of the write-ahead log takes beyond its command, at most.
const RECORD_OVERHEAD: usize = 64;

/// This broker leads, and has applied everything that earlier leaders committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// In this term.
    pub term: u64,
}

type Answer<R> = ClientWriteResult<Types<R>>;
type Submitted<R> = Result<(oneshot::Receiver<Answer<R>>, Claim), ProposeError>;
type Proposal<R> = (Command, oneshot::Sender<Answer<R>>);

/// A running shard. Dropping it stops it without a checkpoint; see [`Shard::shutdown`].
pub struct Shard<S: StateMachine> {
    pub(crate) config: ShardConfig,
    wal: Arc<Wal>,
    pub(crate) raft: Raft<Types<S::Response>, Machine<S>>,
    pub(crate) shared: Arc<Shared<S>>,
    inbox: Arc<Inbox<S>>,
    pub(crate) standing: Arc<Standing>,
    proposals: mpsc::UnboundedSender<Proposal<S::Response>>,
    pending: Arc<AtomicUsize>,
    checkpointing: tokio::sync::Mutex<()>,
    /// Held while the members or the leader are being changed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    runtime: Handle,
    /// Ended when the shard is dropped.
    background: Mutex<JoinSet<()>>,
}

impl<S: StateMachine> Shard<S> {
    /// Starts a shard with what the write-ahead log holds of it (`recovered`, in its order) and the state machine as found on disk. A shard of which nothing is
    /// found, not even what a deleted replica promised, comes into being as `formation` says.
    ///
    /// # Errors
    /// [`ShardError`] when the log cannot be read or does not fit the state machine's checkpoint.
    pub async fn start(
        config: ShardConfig,
        wal: Arc<Wal>,
        recovered: Vec<WalRecord>,
        machine: S,
        transport: Arc<dyn Transport>,
        formation: Formation,
    ) -> Result<Self, ShardError> {
        let shard = config.id;
        let stopped = |reason: String| ShardError::Raft { shard, reason };
        let reached = machine.applied();
        let log = LogStore::recover(shard, Arc::clone(&wal), recovered, reached)?;
        let applied = applied_position(shard, &log, reached)?;
        log.settle()
            .await
            .map_err(|error| stopped(error.to_string()))?;
        let membership = log.membership_at(applied.map_or(0, |at| at.index));
        let shared = Arc::new(Shared {
            shard,
            state: Mutex::new(Applied {
                broken: false,
                machine,
                at: applied,
                membership,
            }),
            checkpoint: Mutex::new(applied),
            term: watch::channel(0).0,
            log: log.clone(),
            turn: Arc::default(),
            started: AtomicBool::new(false),
        });
        let patience = config.timing.election_max * 8;
        let link = Link::new(shard, transport, log.clone(), patience, first_number());
        let peers = Peers::new(link);
        let mut engine = engine_config(&config).map_err(stopped)?;
        engine.enable_elect = log.lacks().is_none();
        let raft = Raft::new(
            config.node.0,
            Arc::new(engine),
            peers,
            log.clone(),
            Machine {
                shared: Arc::clone(&shared),
            },
        )
        .await
        .map_err(|error| stopped(error.to_string()))?;
        shared.started.store(true, Ordering::Release);
        let (proposals, queue) = mpsc::unbounded_channel();
        let (receiver, steps) = Receiver::new();
        let inbox = Arc::new(Inbox::new(raft.clone(), log, receiver));
        let standing = Arc::new(Standing::new());
        let mut background = JoinSet::new();
        background.spawn(submit(raft.clone(), queue));
        background.spawn(receive(raft.clone(), Arc::clone(&shared), steps));
        background.spawn(trim(raft.clone(), Arc::clone(&shared)));
        background.spawn(leading::follow(
            config,
            raft.clone(),
            Arc::clone(&shared),
            Arc::clone(&inbox),
            Arc::clone(&standing),
        ));
        let this = Self {
            config,
            wal,
            raft,
            shared,
            inbox,
            standing,
            proposals,
            pending: Arc::default(),
            checkpointing: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            runtime: Handle::current(),
            background: Mutex::new(background),
        };
        this.form(formation).await?;
        Ok(this)
    }

    /// Does what the first replicas of a shard have to do, and has a single voter campaign without waiting for an election timeout.
    async fn form(&self, formation: Formation) -> Result<(), ShardError> {
        let stopped = |reason: String| ShardError::Raft {
            shard: self.config.id,
            reason,
        };
        let raft = &self.raft;
        let me = self.config.node;
        let initialized = raft.is_initialized().await;
        if initialized.map_err(|error| stopped(error.to_string()))? {
            let log = &self.shared.log;
            if log.has_single_voter(me.0) && log.lacks().is_none() {
                let elect = raft.trigger().elect(false).await;
                elect.map_err(|error| stopped(error.to_string()))?;
            }
            return Ok(());
        }
        match formation {
            Formation::Alone => raft
                .initialize(BTreeSet::from([me.0]))
                .await
                .map_err(|error| stopped(error.to_string())),
            Formation::Form(voters) if voters.contains(&me) => {
                let is_first = voters.first() == Some(&me);
                let delay = match is_first {
                    true => Duration::ZERO,
                    false => self.config.timing.election_max * 3,
                };
                let begin = begin(raft.clone(), voters, delay);
                if is_first {
                    begin.await;
                } else {
                    self.background.lock().spawn(begin);
                }
                Ok(())
            }
            Formation::Form(_) | Formation::Join => Ok(()),
        }
    }

    /// Proposes a command. It has its place in the order when this returns; the future has the state machine's answer once the command is durable and applied.
    /// Dropping the future takes nothing back.
    ///
    /// # Errors
    /// [`ProposeError`]; see there which leave it open whether the command will be applied.
    pub fn propose(
        &self,
        command: Command,
    ) -> impl Future<Output = Result<S::Response, ProposeError>> + Send + 'static + use<S> {
        let submitted = self.submit(command);
        let wal = Arc::clone(&self.wal);
        let standing = Arc::clone(&self.standing);
        let shard = self.config.id;
        async move {
            let (mut answer, _claim) = submitted?;
            loop {
                match tokio::time::timeout(CHECK, &mut answer).await {
                    Ok(Ok(Ok(written))) => {
                        return written.data.ok_or(ProposeError::Stopped(shard));
                    }
                    Ok(Ok(Err(refused))) => return Err(not_leader(shard, &refused)),
                    Ok(Err(_)) => return Err(ProposeError::Stopped(shard)),
                    Err(_) if wal.is_full() => return Err(ProposeError::Full),
                    Err(_) if standing.is_hopeless() => return Err(ProposeError::NotLeader(shard)),
                    Err(_) => {}
                }
            }
        }
    }

    fn submit(&self, command: Command) -> Submitted<S::Response> {
        let shard = self.config.id;
        let bytes = command.len();
        let limit = self.wal.append_limit().saturating_sub(RECORD_OVERHEAD);
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        if self.wal.is_full() {
            return Err(ProposeError::Full);
        }
        if self.standing.is_hopeless() {
            return Err(ProposeError::NotLeader(shard));
        }
        let claim = Claim::take(&self.pending, bytes, self.config.pending_bytes)
            .ok_or(ProposeError::Busy(shard))?;
        let (sender, answer) = oneshot::channel();
        self.proposals
            .send((command, sender))
            .map_err(|_| ProposeError::Stopped(shard))?;
        Ok((answer, claim))
    }

    /// Which shard this is.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.config.id
    }

    /// Whether this broker leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.standing.leadership.subscribe()
    }

    /// Who leads, as far as is known here; also on followers.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<LeaderView> {
        self.standing.leader.subscribe()
    }

    /// The shard as it is now, seen from here. Cheap.
    #[must_use]
    pub fn status(&self) -> ShardStatus {
        let view = *self.standing.leader.borrow();
        let checkpoint = self.shared.checkpoint.lock().map(|at| at.index);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let matched = metrics.replication.iter().flatten();
        ShardStatus {
            term: view.term,
            leader: view.leader,
            voters: members.voter_ids().map(NodeId).collect(),
            learners: members.learner_ids().map(NodeId).collect(),
            changing: metrics.membership_config != metrics.committed_membership_config
                || members.get_joint_config().len() > 1,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed: index(&metrics.local_committed),
            applied: index(&metrics.last_applied),
            matched: matched
                .filter_map(|(node, id)| Some((NodeId(*node), id.as_ref()?.index)))
                .collect(),
            checkpoint,
            purged: metrics.purged.map(|id| id.index),
            // A panic of the engine leaves no word in its metrics; they end with it.
            stopped: metrics.running_state.is_err() || *self.standing.over.borrow(),
        }
    }

    /// Takes a message of another replica. Must be called in the order in which a peer's messages arrive; what is returned is its answer and may be awaited
    /// anywhere, several at a time. A peer of another shard or a liar gets an answer that says so; it never stops this replica.
    pub fn handle(&self, from: NodeId, message: Message) -> BoxFuture<'static, Message> {
        self.inbox.handle(from, message)
    }

    /// The process of `node` is gone, which is known from its connection: if it led, replace it without waiting for the election timeout.
    pub fn peer_lost(&self, node: NodeId) {
        self.inbox.forget(node);
        let now = tokio::time::Instant::now();
        self.standing.lost.send_replace(Some((node, now)));
        let replace = leading::replace(
            self.raft.clone(),
            Arc::clone(&self.inbox),
            self.shared.log.clone(),
            self.config.node,
            node,
            self.config.timing,
        );
        let mut background = self.background.lock();
        while background.try_join_next().is_some() {}
        background.spawn_on(replace, &self.runtime);
    }

    /// Waits until this broker leads.
    ///
    /// # Errors
    /// [`ShardError::Raft`] when the shard stops before.
    pub async fn wait_for_leadership(&self) -> Result<Leadership, ShardError> {
        let stopped = || ShardError::Raft {
            shard: self.config.id,
            reason: "it stopped before it had a leader".to_owned(),
        };
        let mut leadership = self.leadership();
        let mut over = self.standing.over.subscribe();
        let found = tokio::select! {
            found = leadership.wait_for(Option::is_some) => found.ok().and_then(|found| *found),
            _ = over.wait_for(|over| *over) => None,
        };
        found.ok_or_else(stopped)
    }

    /// Reads the state machine. Blocks while something is applied: keep it short.
    pub fn read<T>(&self, read: impl FnOnce(&S) -> T) -> T {
        read(&self.shared.state.lock().machine)
    }

    /// Has the state machine write a checkpoint, and releases the log before it. Proposals are answered again when the writing is done.
    ///
    /// # Errors
    /// [`CheckpointError`]; the shard goes on with its log.
    pub async fn checkpoint(&self) -> Result<LogPosition, CheckpointError> {
        let _one = self.checkpointing.lock().await;
        let shared = Arc::clone(&self.shared);
        let caught_up = || async {
            if crate::simulated::checkpoints_overtake() {
                return true;
            }
            let durable = tokio::time::timeout(CHECKPOINT_PATIENCE, self.shared.log.durable());
            durable.await.is_ok()
        };
        // As long as nothing waits for this; what comes meanwhile is waited for again.
        caught_up().await;
        let turn = Arc::clone(&shared.turn).lock_owned().await;
        if !caught_up().await {
            return Err(CheckpointError::Write(
                "the write-ahead log has not caught up".to_owned(),
            ));
        }
        let at = crate::blocking(move || {
            let _turn = turn;
            shared.write_checkpoint()
        })
        .await
        .map_err(|error| CheckpointError::Write(error.to_string()))??;
        let Some((at, membership)) = at else {
            return Ok(LogPosition { term: 0, index: 0 });
        };
        let released = self.shared.log.release(at, membership).await;
        released.map_err(|error| CheckpointError::Write(error.to_string()))?;
        Ok(position(&at))
    }

    /// What [`Wal::forget`] has to keep of this replica when it is deleted, and a later one has to be started with. To be asked when the replica has stopped; nothing of
    /// it is written any more.
    #[must_use]
    pub fn promise(&self) -> Vec<WalRecord> {
        self.shared.log.promise()
    }

    /// Stops the shard. What was acknowledged is durable; call [`Shard::checkpoint`] before for a quicker start.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(shard = %self.config.id, %error, "the shard did not stop cleanly");
        }
        self.background.lock().abort_all();
        self.standing.end();
    }
}

/// Bytes of a proposal that waits, given back when it does not any more.
struct Claim {
    pending: Arc<AtomicUsize>,
    bytes: usize,
}

impl Claim {
    fn take(pending: &Arc<AtomicUsize>, bytes: usize, limit: usize) -> Option<Self> {
        let before = pending.fetch_add(bytes, Ordering::Relaxed);
        let claim = Self {
            pending: Arc::clone(pending),
            bytes,
        };
        // One that is larger than the limit goes through alone.
        (before == 0 || before.saturating_add(bytes) <= limit).then_some(claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.pending.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The log id that the state machine's checkpoint reaches to, checked against the log.
fn applied_position(
    shard: ShardId,
    log: &LogStore,
    applied: Option<LogPosition>,
) -> Result<Option<LogId>, ShardError> {
    let released = log.released_through();
    match (applied, released) {
        (Some(at), Some(released)) if at.index < released => Err(ShardError::Gap {
            shard,
            checkpoint: at.index,
            released,
        }),
        (None, Some(released)) => Err(ShardError::Gap {
            shard,
            checkpoint: 0,
            released,
        }),
        (Some(at), _) => match log.log_id_at(at.index) {
            Some(known) if known == log_id(at.term, at.index) => Ok(Some(known)),
            _ => Err(ShardError::Raft {
                shard,
                reason: format!(
                    "its checkpoint is at entry {} of term {}, which the write-ahead log does not have: part of the data directory is missing or from elsewhere; restore it whole",
                    at.index, at.term
                ),
            }),
        },
        (None, None) => Ok(None),
    }
}

fn not_leader<R: Send + Sync + 'static>(
    shard: ShardId,
    error: &ClientWriteError<Types<R>>,
) -> ProposeError {
    tracing::debug!(%shard, %error, "a proposal was refused");
    ProposeError::NotLeader(shard)
}

/// Hands proposals to the engine in the order in which they were made.
async fn submit<S: StateMachine>(
    raft: Raft<Types<S::Response>, Machine<S>>,
    mut queue: mpsc::UnboundedReceiver<Proposal<S::Response>>,
) {
    while let Some((command, sender)) = queue.recv().await {
        let responder = Reply(sender);
        if raft
            .client_write_ff(command, Some(responder))
            .await
            .is_err()
        {
            // The engine is gone; those who wait learn it when their sender is dropped.
            return;
        }
    }
}

/// Writes the first entry of a shard's log, which says who the voters are, unless somebody has been faster.
async fn begin<S: StateMachine>(
    raft: Raft<Types<S::Response>, Machine<S>>,
    voters: BTreeSet<NodeId>,
    delay: Duration,
) {
    tokio::time::sleep(delay).await;
    let voters: BTreeSet<u64> = voters.into_iter().map(|node| node.0).collect();
    match raft.initialize(voters).await {
        Ok(()) => {
            if let Err(error) = raft.trigger().elect(false).await {
                tracing::debug!(%error, "the shard has stopped");
            }
        }
        // Another replica has been here, or this one has voted for it.
        Err(error) => tracing::debug!(%error, "the shard is being formed by another replica"),
    }
}

/// Where the numbers of streams and transfers begin, so that a process does not repeat those of its predecessor.
fn first_number() -> u64 {
    if let Some(number) = simulated::next_number() {
        return number >> 1;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0))
}
