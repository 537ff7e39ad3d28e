//! The brokers: processes that start, stop and die, each with its disk.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use palisade_log::{ShardId, Wal, WalOptions, WalRecord, testing::MemoryFs};
use palisade_seal::FileKeys;
use palisade_shard::{Formation, NodeId, Shard, ShardConfig, ShardStatus, Timing};
use parking_lot::Mutex;

use crate::{
    Mutation,
    chance::{Chance, mix},
    invariants::liveness,
    machine::LogMachine,
    network::{Network, Wire},
    oracle::{Oracle, Replica},
    plan::Plan,
    schedule::Schedule,
    trace::Trace,
};

/// Everything there is.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) plan: Plan,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) trace: Arc<Trace>,
    pub(crate) network: Arc<Network>,
    pub(crate) oracle: Arc<Oracle>,
    keys: Arc<FileKeys>,
    brokers: Vec<Mutex<Broker>>,
}

/// One broker, with or without a process.
struct Broker {
    index: usize,
    incarnation: u32,
    /// Counts processes: what belongs to an earlier one does nothing any more.
    life: u64,
    disk: MemoryFs,
    joins: bool,
    wal: Option<Arc<Wal>>,
    running: Option<Arc<Running>>,
    /// Microseconds that each write takes beyond the usual, and the number of the fault by which it does.
    slow: (u64, u64),
    writes: u64,
    is_writing: bool,
}

impl Broker {
    fn node(&self) -> NodeId {
        NodeId::of(i32::try_from(self.index).unwrap_or(0), self.incarnation)
    }
}

/// A broker's process.
pub(crate) struct Running {
    pub(crate) node: NodeId,
    pub(crate) life: u64,
    pub(crate) shards: BTreeMap<ShardId, Hosted>,
}

/// A shard in it.
pub(crate) struct Hosted {
    pub(crate) shard: Arc<Shard<LogMachine>>,
    /// The next offset of each partition as the leader of a term gives it out.
    pub(crate) next: Mutex<BTreeMap<u32, (u64, u64)>>,
}

impl World {
    pub(crate) fn new(
        seed: u64,
        mutation: Option<Mutation>,
        plan: Plan,
        trace: Arc<Trace>,
        keys: Arc<FileKeys>,
    ) -> Arc<Self> {
        let schedule = Arc::new(Schedule::new());
        let network = Network::new(
            seed,
            plan.network_delay,
            Arc::clone(&schedule),
            Arc::clone(&trace),
        );
        let oracle = Arc::new(Oracle::new(Arc::clone(&schedule), Arc::clone(&trace)));
        let brokers = (0..plan.brokers)
            .map(|index| {
                Mutex::new(Broker {
                    index,
                    incarnation: 1,
                    life: 1,
                    disk: disk(mutation),
                    joins: false,
                    wal: None,
                    running: None,
                    slow: (0, 0),
                    writes: 0,
                    is_writing: false,
                })
            })
            .collect();
        Arc::new(Self {
            seed,
            mutation,
            plan,
            schedule,
            trace,
            network,
            oracle,
            keys,
            brokers,
        })
    }

    pub(crate) fn say(&self, parts: &[u64], line: impl FnOnce() -> String) {
        self.trace.note(self.schedule.now(), parts, line);
    }

    fn broker(&self, index: usize) -> Option<parking_lot::MutexGuard<'_, Broker>> {
        self.brokers.get(index).map(Mutex::lock)
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (1..=self.plan.shards).map(ShardId)
    }

    /// Who the brokers are now, in order.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.brokers
            .iter()
            .map(|broker| broker.lock().node())
            .collect()
    }

    pub(crate) fn running(&self) -> Vec<Arc<Running>> {
        let running = |broker: &Mutex<Broker>| broker.lock().running.clone();
        self.brokers.iter().filter_map(running).collect()
    }

    pub(crate) fn process(&self, index: usize) -> Option<Arc<Running>> {
        self.broker(index)?.running.clone()
    }

    pub(crate) fn has_process(&self, index: usize) -> bool {
        self.broker(index)
            .is_some_and(|broker| broker.wal.is_some())
    }

    pub(crate) fn is_alive(&self, node: NodeId, life: u64) -> bool {
        let index = usize::try_from(node.broker()).unwrap_or(usize::MAX);
        self.broker(index)
            .is_some_and(|broker| broker.life == life && broker.node() == node)
    }

    pub(crate) fn slow_down(&self, index: usize, by: u64, fault: u64) {
        if let Some(mut broker) = self.broker(index) {
            broker.slow = (by, fault);
        }
    }

    /// A fault ends; another that came meanwhile goes on.
    pub(crate) fn speed_up(&self, index: usize, fault: u64) {
        if let Some(mut broker) = self.broker(index)
            && broker.slow.1 == fault
        {
            broker.slow = (0, 0);
        }
    }

    pub(crate) fn with_disk(&self, index: usize, change: impl FnOnce(&MemoryFs)) {
        if let Some(broker) = self.broker(index) {
            change(&broker.disk);
        }
    }

    /// Starts a broker's process.
    pub(crate) fn start(self: &Arc<Self>, index: usize) {
        let Some((node, life, disk, joins)) = self.broker(index).and_then(|broker| {
            let may = broker.wal.is_none();
            may.then(|| {
                (
                    broker.node(),
                    broker.life,
                    broker.disk.session(),
                    broker.joins,
                )
            })
        }) else {
            return;
        };
        self.say(&[5, node.0, life], || format!("{node} starts"));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let started = this.try_start(index, node, life, disk, joins).await;
            if !this.is_alive(node, life) {
                return;
            }
            match started {
                Ok(running) => {
                    this.say(&[6, node.0, life], || format!("{node} runs"));
                    if let Some(mut broker) = this.broker(index) {
                        broker.running = Some(running);
                    }
                }
                Err(error) => {
                    let failed = this
                        .broker(index)
                        .is_none_or(|broker| broker.disk.has_failed());
                    if failed {
                        this.crash(index, "its disk failed while it started");
                        this.start_after(index, 200_000);
                    } else {
                        this.oracle
                            .broken("restart", format!("{node} cannot start: {error}"));
                    }
                }
            }
        });
    }

    pub(crate) fn start_after(self: &Arc<Self>, index: usize, delay: u64) {
        let this = Arc::clone(self);
        let at = self.schedule.now().saturating_add(delay);
        self.schedule
            .at(at, mix(&[index as u64, 5]), move || this.start(index));
    }

    async fn try_start(
        self: &Arc<Self>,
        index: usize,
        node: NodeId,
        life: u64,
        disk: MemoryFs,
        joins: bool,
    ) -> Result<Arc<Running>, String> {
        let (wake, failed) = (Arc::downgrade(self), Arc::downgrade(self));
        let options = WalOptions {
            fs: Arc::new(disk.clone()),
            file_bytes: 64 << 10,
            queue_bytes: usize::MAX,
            on_failure: Arc::new(move |_| {
                if let Some(world) = failed.upgrade() {
                    world.abort(index, life);
                }
            }),
            pumped: Some(Arc::new(move || {
                if let Some(world) = wake.upgrade() {
                    world.write_soon(index, life);
                }
            })),
            ..WalOptions::new("/data/wal")
        };
        let (wal, recovered) =
            Wal::open(options, Arc::clone(&self.keys)).map_err(|error| error.to_string())?;
        let wal = Arc::new(wal);
        if let Some(mut broker) = self.broker(index) {
            broker.wal = Some(Arc::clone(&wal));
            broker.is_writing = false;
        }
        let voters = self.nodes();
        let mut shards = BTreeMap::new();
        for id in self.shards() {
            let machine = LogMachine::open(
                node,
                id,
                disk.clone(),
                Arc::clone(&self.oracle),
                self.mutation,
            )?;
            let mine = |record: &&WalRecord| record.shard == id && !self.is_forgotten(record);
            let records = recovered.iter().filter(mine).cloned().collect();
            let alive = Arc::downgrade(self);
            let wire = Wire {
                me: node,
                network: Arc::clone(&self.network),
                alive: Arc::new(move || {
                    alive
                        .upgrade()
                        .is_some_and(|world| world.is_alive(node, life))
                }),
            };
            let config = ShardConfig {
                tail_bytes: self.plan.tail_bytes,
                timing: self.timing(index),
                ..ShardConfig::new(id, node)
            };
            let formation = match joins {
                true => Formation::Join,
                false => Formation::Form(voters.iter().copied().collect()),
            };
            let shard = Shard::start(
                config,
                Arc::clone(&wal),
                records,
                machine,
                Arc::new(wire),
                formation,
            )
            .await
            .map_err(|error| error.to_string())?;
            let next = Mutex::default();
            let shard = Arc::new(shard);
            shards.insert(id, Hosted { shard, next });
            if !self.is_alive(node, life) {
                break;
            }
        }
        let running = Arc::new(Running { node, life, shards });
        let process = Arc::clone(&running);
        if self.is_alive(node, life) {
            self.network.attach(
                node,
                Arc::new(move |from, shard, message| {
                    Some(process.shards.get(&shard)?.shard.handle(from, message))
                }),
            );
        } else {
            bury(&running);
        }
        Ok(running)
    }

    /// What a broker's shards wait for, by its own clock.
    fn timing(&self, index: usize) -> Timing {
        let Timing {
            heartbeat,
            election_min,
            election_max,
            ..
        } = Timing::DEFAULT;
        let measured = |time| self.plan.measured(index, time);
        Timing {
            heartbeat: measured(heartbeat),
            election_min: measured(election_min),
            election_max: measured(election_max),
            change: measured(Duration::from_secs(20)),
        }
    }

    /// What a mutation has a broker forget.
    fn is_forgotten(&self, record: &WalRecord) -> bool {
        self.mutation == Some(Mutation::ForgetVote) && record.kind == WalRecord::STICKY
    }

    /// A write-ahead log has something to write: its disk will have done so a little later.
    fn write_soon(self: &Arc<Self>, index: usize, life: u64) {
        let Some(mut broker) = self.broker(index) else {
            return;
        };
        if broker.life != life || broker.is_writing {
            return;
        }
        broker.is_writing = true;
        broker.writes = broker.writes.saturating_add(1);
        let writes = broker.writes;
        let mut chance = Chance::of(&[self.seed, 20, index as u64, writes]);
        let delay = chance
            .delay(self.plan.disk_delay)
            .saturating_add(broker.slow.0);
        drop(broker);
        let this = Arc::clone(self);
        let at = self.schedule.now().saturating_add(delay);
        self.schedule
            .at(at, mix(&[index as u64, writes, 6]), move || {
                this.write_now(index, life);
            });
    }

    fn write_now(self: &Arc<Self>, index: usize, life: u64) {
        let Some(wal) = self.broker(index).and_then(|mut broker| {
            broker.is_writing &= broker.life != life;
            broker.wal.clone().filter(|_| broker.life == life)
        }) else {
            return;
        };
        wal.pump();
        let (syncs, is_off) = self.broker(index).map_or((0, false), |broker| {
            (broker.disk.syncs(), broker.disk.is_off())
        });
        self.say(&[7, index as u64, life, syncs], || {
            format!("the disk of broker {index} has written, {syncs} syncs in all")
        });
        if is_off {
            self.abort(index, life);
        }
    }

    /// The process ends itself, or its power failed; it comes back.
    fn abort(self: &Arc<Self>, index: usize, life: u64) {
        let is_alive = self.broker(index).is_some_and(|broker| broker.life == life);
        if is_alive {
            let down = Chance::of(&[self.seed, 21, index as u64, life]).between(50_000, 2_000_000);
            self.crash(index, "its disk failed");
            self.start_after(index, down);
        }
    }

    /// As [`World::abort`], for a process of which a shard has stopped: which it may only do when there was something wrong with the disk.
    pub(crate) fn end_if_failed(self: &Arc<Self>, node: NodeId, life: u64) {
        let index = usize::try_from(node.broker()).unwrap_or(usize::MAX);
        if self.is_alive(node, life) {
            self.check_stopped(index);
            self.abort(index, life);
        }
    }

    /// No shard stops as long as its disk is well.
    fn check_stopped(&self, index: usize) {
        let Some((node, Some(running), false)) = self.broker(index).map(|broker| {
            let has_failed = broker.disk.has_failed();
            (broker.node(), broker.running.clone(), has_failed)
        }) else {
            return;
        };
        for (shard, hosted) in &running.shards {
            if hosted.shard.status().stopped {
                let what = format!("shard {shard} has stopped on {node}, whose disk is well");
                self.oracle.broken("stopped", what);
            }
        }
    }

    /// The process is gone, and with it what was not synced.
    pub(crate) fn crash(self: &Arc<Self>, index: usize, why: &str) -> bool {
        self.check_stopped(index);
        let Some((node, life, running, wal)) = self.broker(index).map(|mut broker| {
            let life = broker.life;
            broker.life = life.saturating_add(1);
            let mut chance = Chance::of(&[self.seed, 22, index as u64, life]);
            // A disk that had time to write loses little.
            let keeps_all = chance.permille(200);
            broker.disk.crash(move |most| match keeps_all {
                true => most,
                false => chance.between(0, most),
            });
            (
                broker.node(),
                life,
                broker.running.take(),
                broker.wal.take(),
            )
        }) else {
            return false;
        };
        if wal.is_none() {
            return false;
        }
        self.say(&[8, node.0, life], || format!("{node} is gone: {why}"));
        let others = self.network.detach(node);
        // What waits for the log learns that there is none any more.
        let (this, dead) = (Arc::clone(self), running);
        let now = self.schedule.now();
        self.schedule.at(now, mix(&[node.0, life, 7]), move || {
            if let Some(wal) = wal {
                wal.pump();
            }
            if let Some(running) = dead {
                bury(&running);
            }
            drop(this);
        });
        for other in others {
            let mut chance = Chance::of(&[self.seed, 23, node.0, life, other.0]);
            if chance.permille(800) {
                let this = Arc::clone(self);
                let at = now.saturating_add(chance.between(500, 40_000));
                self.schedule.at(at, mix(&[node.0, other.0, 8]), move || {
                    let index = usize::try_from(other.broker()).unwrap_or(usize::MAX);
                    // One that comes back with an empty disk has another name.
                    let dead = usize::try_from(node.broker()).unwrap_or(usize::MAX);
                    let lives = this.broker(dead).map(|broker| broker.life);
                    if lives != Some(life.saturating_add(1)) {
                        return;
                    }
                    for hosted in this.process(index).iter().flat_map(|it| it.shards.values()) {
                        hosted.shard.peer_lost(node);
                    }
                });
            }
        }
        true
    }

    /// Whether every replica has everything: then one of them can be done without.
    pub(crate) fn is_whole(&self) -> bool {
        self.unhealed().is_none()
    }

    /// What is missing until all is as it should be.
    pub(crate) fn unhealed(&self) -> Option<String> {
        let nodes = self.nodes();
        let running = self.running();
        self.shards().find_map(|id| {
            let replicas: Vec<(NodeId, ShardStatus)> = running
                .iter()
                .filter_map(|process| Some((process.node, process.shards.get(&id)?.shard.status())))
                .collect();
            let healed = liveness::healed(&nodes, &replicas);
            healed.err().map(|what| format!("{id}: {what}"))
        })
    }

    /// The disk is lost; the broker comes back as somebody else.
    pub(crate) fn wipe(self: &Arc<Self>, index: usize) {
        self.crash(index, "its disk is wiped");
        if let Some(mut broker) = self.broker(index) {
            let node = broker.node();
            self.oracle.change(|history| {
                history.wiped.insert(node);
            });
            broker.disk = disk(self.mutation);
            if self.mutation != Some(Mutation::KeepIdentity) {
                broker.incarnation = broker.incarnation.saturating_add(1);
                broker.joins = true;
            }
        }
    }

    /// What a consumer finds on every replica.
    pub(crate) fn replicas(&self) -> Vec<Replica> {
        let running = self.running();
        running
            .iter()
            .flat_map(|process| {
                process.shards.iter().map(|(shard, hosted)| Replica {
                    node: process.node,
                    shard: *shard,
                    partitions: hosted.shard.read(LogMachine::records),
                })
            })
            .collect()
    }
}

fn disk(mutation: Option<Mutation>) -> MemoryFs {
    let disk = MemoryFs::new();
    disk.lie_about_syncs(mutation == Some(Mutation::SkipSync));
    disk
}

/// Ends the tasks of a process that is gone.
fn bury(running: &Arc<Running>) {
    for hosted in running.shards.values() {
        let shard = Arc::clone(&hosted.shard);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(Duration::from_secs(5), shard.shutdown()).await;
        });
    }
}
