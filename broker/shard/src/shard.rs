//! One shard: the engine, its log and its state machine put together.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use openraft::{
    Config, Raft, ServerState, SnapshotPolicy, async_runtime::watch::WatchReceiver,
    error::ClientWriteError, raft::ClientWriteResult,
};
use palisade_log::{ShardId, Wal, WalRecord};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    CheckpointError, Command, Formation, LeaderView, LogPosition, MembersError, Message,
    ProposeError, ShardError, ShardStatus, StateMachine, Transport,
    engine::{Applied, Machine, Shared, position},
    log_store::LogStore,
    network::NoPeers,
    raft_types::{LogId, Reply, Types, log_id},
};

/// How often a proposal that waits looks whether the disk is full.
const FULL_CHECK: Duration = Duration::from_secs(1);

/// What a record of the write-ahead log takes beyond its command, at most.
const RECORD_OVERHEAD: usize = 64;

/// Identity of a broker in Raft: its Kafka id and the incarnation of its data directory. A broker that comes back with an empty volume is another node, for it
/// has forgotten what it voted for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The node of a broker (its id is not negative) whose data directory has this incarnation.
    #[must_use]
    pub const fn of(broker: i32, incarnation: u32) -> Self {
        Self(((broker as u32 as u64) << 32) | incarnation as u64)
    }

    /// The Kafka id of the broker.
    #[must_use]
    pub const fn broker(self) -> i32 {
        (self.0 >> 32) as u32 as i32
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "broker {} ({:08x})", self.broker(), self.0 & 0xffff_ffff)
    }
}

/// How a shard is run.
#[derive(Clone, Copy, Debug)]
pub struct ShardConfig {
    /// Which shard.
    pub id: ShardId,
    /// This broker.
    pub node: NodeId,
    /// Most bytes of proposals that wait to be applied; more are refused with [`ProposeError::Busy`].
    pub pending_bytes: usize,
    /// Bytes of applied entries that stay in memory for replicas that are a little behind. Those further behind are sent a snapshot.
    pub tail_bytes: usize,
    /// When a leader is given up and replaced.
    pub timing: Timing,
}

/// What a shard waits for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader shows that it is there.
    pub heartbeat: Duration,
    /// A replica that has not heard of the leader for a time between this and `election_max` campaigns.
    pub election_min: Duration,
    /// See `election_min`.
    pub election_max: Duration,
    /// How long a replica that is to become a voter may take to catch up, and a change of members or of the leader to be agreed on.
    pub change: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Timing {
    /// A heartbeat every 100 ms, an election after 500 to 1000 ms without one, two minutes for a change of members.
    pub const DEFAULT: Self = Self {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        change: Duration::from_secs(120),
    };
}

impl ShardConfig {
    /// A shard with the default limits: 64 MiB of waiting proposals, a tail of 8 MiB.
    #[must_use]
    pub const fn new(id: ShardId, node: NodeId) -> Self {
        Self {
            id,
            node,
            pending_bytes: 64 << 20,
            tail_bytes: 8 << 20,
            timing: Timing::DEFAULT,
        }
    }
}

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
    config: ShardConfig,
    wal: Arc<Wal>,
    raft: Raft<Types<S::Response>, Machine<S>>,
    shared: Arc<Shared<S>>,
    proposals: mpsc::UnboundedSender<Proposal<S::Response>>,
    pending: Arc<AtomicUsize>,
    leadership: watch::Receiver<Option<Leadership>>,
    leader: watch::Receiver<LeaderView>,
    checkpointing: tokio::sync::Mutex<()>,
    tasks: [JoinHandle<()>; 2],
}

impl<S: StateMachine> Shard<S> {
    /// Starts a shard with what the write-ahead log holds of it (`recovered`, in its order) and the state machine as found on disk. A shard of which nothing is
    /// found is formed with this broker as its only voter.
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
        drop((transport, formation));
        let shard = config.id;
        let log = LogStore::recover(shard, Arc::clone(&wal), recovered)?;
        let applied = applied_position(shard, &log, machine.applied())?;
        let membership = log
            .membership_at(applied.map_or(0, |at| at.index))
            .map_err(|index| ShardError::Raft {
                shard,
                reason: format!("entry {index} is missing from its log"),
            })?;
        log.set_checkpoint_membership(membership.clone());
        let shared = Arc::new(Shared {
            shard,
            state: Mutex::new(Applied {
                broken: false,
                machine,
                at: applied,
                membership: membership.clone(),
            }),
            checkpoint: Mutex::new(applied.map(|at| (at, membership))),
            term: watch::channel(0).0,
            log: log.clone(),
            turn: Arc::default(),
        });
        let stopped = |reason: String| ShardError::Raft { shard, reason };
        let raft = Raft::new(
            config.node.0,
            Arc::new(engine_config(shard).map_err(stopped)?),
            NoPeers::default(),
            log,
            Machine {
                shared: Arc::clone(&shared),
            },
        )
        .await
        .map_err(|error| stopped(error.to_string()))?;
        shared.log.started();
        if raft
            .is_initialized()
            .await
            .map_err(|error| stopped(error.to_string()))?
        {
            // The only voter need not wait for an election timeout.
            raft.trigger()
                .elect(false)
                .await
                .map_err(|error| stopped(error.to_string()))?;
        } else {
            raft.initialize(BTreeSet::from([config.node.0]))
                .await
                .map_err(|error| stopped(error.to_string()))?;
        }
        let (proposals, queue) = mpsc::unbounded_channel();
        let (announce, leadership) = watch::channel(None);
        let tasks = [
            tokio::spawn(submit(raft.clone(), queue)),
            tokio::spawn(follow_leadership(
                raft.clone(),
                shared.term.subscribe(),
                announce,
            )),
        ];
        let leader = watch::channel(LeaderView::default()).1;
        Ok(Self {
            config,
            wal,
            raft,
            shared,
            proposals,
            pending: Arc::default(),
            leadership,
            leader,
            checkpointing: tokio::sync::Mutex::default(),
            tasks,
        })
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
        let shard = self.config.id;
        async move {
            let (mut answer, _claim) = submitted?;
            loop {
                match tokio::time::timeout(FULL_CHECK, &mut answer).await {
                    Ok(Ok(Ok(written))) => return Ok(written.data),
                    Ok(Ok(Err(refused))) => return Err(not_leader(shard, &refused)),
                    Ok(Err(_)) => return Err(ProposeError::Stopped(shard)),
                    Err(_) if wal.is_full() => return Err(ProposeError::Full),
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
        self.leadership.clone()
    }

    /// Who leads, as far as is known here; also on followers.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<LeaderView> {
        self.leader.clone()
    }

    /// The shard as it is now, seen from here. Cheap.
    #[must_use]
    pub fn status(&self) -> ShardStatus {
        ShardStatus::default()
    }

    /// Takes a message of another replica. Must be called in the order in which a peer's messages arrive; what is returned is its answer and may be awaited
    /// anywhere, several at a time. A peer of another shard or a liar gets an answer that says so; it never stops this replica.
    pub fn handle(&self, from: NodeId, message: Message) -> BoxFuture<'static, Message> {
        drop((from, message));
        Box::pin(async { Message::default() })
    }

    /// Makes exactly these the voters. Those that are not replicas yet become learners first and are waited for until they have caught up; those that are not
    /// among them any more are removed. Doing it again, also after an error, goes on where it was left.
    ///
    /// # Errors
    /// [`MembersError`]; the members are then still such that the shard can go on.
    pub async fn set_members(&self, voters: BTreeSet<NodeId>) -> Result<(), MembersError> {
        self.set_members_with_learners(voters, BTreeSet::new())
            .await
    }

    /// As [`Shard::set_members`], with replicas that receive the log without a vote.
    ///
    /// # Errors
    /// [`MembersError`]; the members are then still such that the shard can go on.
    pub async fn set_members_with_learners(
        &self,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
    ) -> Result<(), MembersError> {
        drop((voters, learners));
        Err(MembersError::Stopped(self.config.id))
    }

    /// Has `to`, one of the other voters, lead from now on; returns when it is known here to do so. Proposals that are in the log keep their place and are
    /// answered if this replica learns their outcome before it has to give them up; new ones are refused.
    ///
    /// # Errors
    /// [`MembersError`]; this replica then still leads, or another was elected meanwhile.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), MembersError> {
        let _ = to;
        Err(MembersError::Stopped(self.config.id))
    }

    /// The process of `node` is gone, which is known from its connection: if it led, replace it without waiting for the election timeout.
    pub fn peer_lost(&self, node: NodeId) {
        let _ = node;
    }

    /// Waits until `copies` voters have the log up to `index` durably. For those who want more than the majority that every answer of [`Shard::propose`] means;
    /// bound it by a timeout.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when leadership is lost before.
    pub fn replicated(
        &self,
        index: u64,
        copies: usize,
    ) -> impl Future<Output = Result<(), ProposeError>> + Send + 'static + use<S> {
        let _ = (index, copies);
        let shard = self.config.id;
        async move { Err(ProposeError::Stopped(shard)) }
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
        let mut leadership = self.leadership.clone();
        let found = *leadership
            .wait_for(Option::is_some)
            .await
            .map_err(|_| stopped())?;
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
        let turn = Arc::clone(&shared.turn).lock_owned().await;
        let at = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            shared.write_checkpoint()
        })
        .await
        .map_err(|error| CheckpointError::Write(error.to_string()))??;
        let Some(at) = at else {
            return Ok(LogPosition { term: 0, index: 0 });
        };
        let stopped = |_| CheckpointError::Stopped;
        self.raft.trigger().snapshot().await.map_err(stopped)?;
        self.raft
            .wait(None)
            .metrics(
                |metrics| metrics.snapshot >= Some(at) || metrics.running_state.is_err(),
                "checkpoint is known",
            )
            .await
            .map_err(|_| CheckpointError::Stopped)?;
        self.raft
            .trigger()
            .purge_log(at.index)
            .await
            .map_err(stopped)?;
        Ok(position(&at))
    }

    /// Stops the shard. What was acknowledged is durable; call [`Shard::checkpoint`] before for a quicker start.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(shard = %self.config.id, %error, "the shard did not stop cleanly");
        }
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl<S: StateMachine> Drop for Shard<S> {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
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

fn engine_config(shard: ShardId) -> Result<Config, String> {
    Config {
        cluster_name: format!("shard-{shard}"),
        heartbeat_interval: 250,
        election_timeout_min: 1000,
        election_timeout_max: 2000,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        // A start is a new term: the term is the leader epoch under which offsets are given out and batches are sealed.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
    .validate()
    .map_err(|error| error.to_string())
}

/// The log id that the state machine's checkpoint reaches to, checked against the log.
fn applied_position(
    shard: ShardId,
    log: &LogStore,
    applied: Option<LogPosition>,
) -> Result<Option<LogId>, ShardError> {
    let released = log.purged_through();
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

/// Announces leadership once the first entry of the own term is applied, and withdraws it as soon as it is lost.
async fn follow_leadership<S: StateMachine>(
    raft: Raft<Types<S::Response>, Machine<S>>,
    mut applied_term: watch::Receiver<u64>,
    announce: watch::Sender<Option<Leadership>>,
) {
    let mut server = raft.server_metrics();
    loop {
        let (leads, term) = {
            let metrics = server.borrow_and_update();
            (
                metrics.state == ServerState::Leader,
                metrics.vote.leader_id.term,
            )
        };
        let leadership =
            (leads && *applied_term.borrow_and_update() == term).then_some(Leadership { term });
        announce.send_if_modified(|current| std::mem::replace(current, leadership) != leadership);
        let gone = tokio::select! {
            changed = server.changed() => changed.is_err(),
            changed = applied_term.changed() => changed.is_err(),
        };
        if gone {
            let _ = announce.send(None);
            return;
        }
    }
}
