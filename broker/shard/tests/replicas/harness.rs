//! Replicas with their disks, and a state machine that keeps what it was told.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use palisade_log::{ShardId, Wal, WalOptions, WalRecord, testing::FaultFs};
use palisade_seal::{DirectoryProvider, FileKeys};
use palisade_shard::{
    CheckpointError, Command, Formation, Incoming, LogPosition, NodeId, Shard, ShardConfig,
    Snapshot, StateMachine, Timing,
};

use crate::net::Net;

pub const SHARD: ShardId = ShardId(3);
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Numbers in one part of a snapshot.
const PART: usize = 200;

type Numbers = Vec<u64>;
type Durable = Arc<Mutex<(Option<LogPosition>, Numbers)>>;

pub struct Machine {
    durable: Durable,
    at: Option<LogPosition>,
    pub numbers: Numbers,
    sent: Arc<AtomicUsize>,
}

impl StateMachine for Machine {
    type Response = (LogPosition, u64);

    fn apply(&mut self, at: LogPosition, command: Command) -> (LogPosition, u64) {
        self.blank(at);
        let number = u64::from_be_bytes(command.meta[..].try_into().unwrap());
        self.numbers.push(number);
        (at, number)
    }

    fn blank(&mut self, at: LogPosition) {
        let next = self.at.map_or(0, |at| at.index + 1);
        assert!(self.at < Some(at) && at.index == next, "in order, and once");
        self.at = Some(at);
    }

    fn applied(&self) -> Option<LogPosition> {
        self.at
    }

    fn checkpoint(&mut self) -> Result<LogPosition, CheckpointError> {
        *self.durable.lock().unwrap() = (self.at, self.numbers.clone());
        Ok(self.at.unwrap())
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, CheckpointError> {
        Ok(Arc::new(Picture {
            numbers: self.numbers.clone(),
            sent: Arc::clone(&self.sent),
        }))
    }

    fn receive(&self, description: Bytes) -> Result<(Box<dyn Incoming>, Bytes), CheckpointError> {
        let total = u64::from_be_bytes(description[..].try_into().unwrap());
        let have = self.numbers.len() as u64;
        let parts = Parts {
            have: have.min(total) as usize,
            total: total as usize,
            new: Vec::new(),
        };
        Ok((
            Box::new(parts),
            have.min(total).to_be_bytes().to_vec().into(),
        ))
    }

    fn install(
        &mut self,
        at: LogPosition,
        incoming: Box<dyn Incoming>,
    ) -> Result<(), CheckpointError> {
        let parts = incoming.into_any().downcast::<Parts>().unwrap();
        self.numbers.truncate(parts.have);
        self.numbers.extend(&parts.new);
        assert_eq!(self.numbers.len(), parts.total);
        self.at = Some(at);
        self.checkpoint().map(drop)
    }
}

struct Picture {
    numbers: Numbers,
    sent: Arc<AtomicUsize>,
}

impl Snapshot for Picture {
    fn description(&self) -> Bytes {
        (self.numbers.len() as u64).to_be_bytes().to_vec().into()
    }

    fn chunk(&self, have: &[u8], cursor: u64) -> Result<Option<(Bytes, u64)>, CheckpointError> {
        let have = u64::from_be_bytes(have.try_into().unwrap()) as usize;
        let rest = &self.numbers[have + cursor as usize..];
        let part = &rest[..rest.len().min(PART)];
        self.sent.fetch_add(part.len(), Ordering::Relaxed);
        let bytes: Vec<u8> = part
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect();
        Ok((!part.is_empty()).then(|| (bytes.into(), cursor + part.len() as u64)))
    }
}

struct Parts {
    have: usize,
    total: usize,
    new: Numbers,
}

impl Incoming for Parts {
    fn chunk(&mut self, part: Bytes) -> Result<(), CheckpointError> {
        let numbers = part
            .chunks(8)
            .map(|b| u64::from_be_bytes(b.try_into().unwrap()));
        self.new.extend(numbers);
        Ok(())
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

fn keys() -> Arc<FileKeys> {
    static KEYS: LazyLock<Arc<FileKeys>> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let provider = DirectoryProvider::create(dir.path()).unwrap();
        Arc::new(FileKeys::new(Arc::new(provider)))
    });
    Arc::clone(&KEYS)
}

/// A replica: its disk, and the process when it runs.
pub struct Replica {
    pub id: NodeId,
    dir: tempfile::TempDir,
    pub fs: FaultFs,
    durable: Durable,
    shard: Option<Arc<Shard<Machine>>>,
}

impl Replica {
    pub fn shard(&self) -> &Arc<Shard<Machine>> {
        self.shard.as_ref().expect("it runs")
    }

    pub fn runs(&self) -> bool {
        self.shard.is_some()
    }

    pub fn numbers(&self) -> Numbers {
        self.shard().read(|machine| machine.numbers.clone())
    }

    async fn wal(&self) -> (Arc<Wal>, Vec<WalRecord>) {
        let options = WalOptions {
            fs: Arc::new(self.fs.clone()),
            file_bytes: 4 << 20,
            on_failure: Arc::new(|_| {}),
            ..WalOptions::new(PathBuf::from(self.dir.path()))
        };
        // The engine's tasks end a moment after the shard is dropped, and hold the log until then.
        for _ in 0..1500 {
            match Wal::open(options.clone(), keys()) {
                Ok((wal, records)) => return (Arc::new(wal), records),
                Err(palisade_log::LogError::Io { action: "lock", .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the log stays locked");
    }
}

pub struct Cluster {
    pub net: Net,
    pub replicas: Vec<Replica>,
    pub tail: usize,
    /// Numbers that were sent in snapshots, by all replicas.
    pub sent: Arc<AtomicUsize>,
}

pub fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
        change: Duration::from_secs(30),
    }
}

pub fn command(number: u64, payload: usize) -> Command {
    Command::new(number.to_be_bytes().to_vec(), vec![0x5a; payload])
}

impl Cluster {
    /// Replicas with these disks; none runs.
    pub fn new(count: u64) -> Self {
        let replicas = (1..=count).map(Self::replica).collect();
        Self {
            net: Net::default(),
            replicas,
            tail: 8 << 20,
            sent: Arc::default(),
        }
    }

    fn replica(id: u64) -> Replica {
        Replica {
            id: NodeId(id),
            dir: tempfile::tempdir().unwrap(),
            fs: FaultFs::new(),
            durable: Durable::default(),
            shard: None,
        }
    }

    /// A shard of `count` voters that has a leader.
    pub async fn formed(count: u64) -> Self {
        let mut this = Self::new(count);
        let voters: BTreeSet<NodeId> = this.ids();
        for place in 0..this.replicas.len() {
            this.start(place, Formation::Form(voters.clone())).await;
        }
        this.leader().await;
        this
    }

    pub fn ids(&self) -> BTreeSet<NodeId> {
        self.replicas.iter().map(|replica| replica.id).collect()
    }

    pub async fn start(&mut self, place: usize, formation: Formation) {
        let (tail_bytes, sent) = (self.tail, Arc::clone(&self.sent));
        let replica = &mut self.replicas[place];
        let (wal, records) = replica.wal().await;
        let (at, numbers) = replica.durable.lock().unwrap().clone();
        let machine = Machine {
            durable: Arc::clone(&replica.durable),
            at,
            numbers,
            sent,
        };
        let config = ShardConfig {
            timing: timing(),
            tail_bytes,
            ..ShardConfig::new(SHARD, replica.id)
        };
        let transport = self.net.transport(replica.id);
        let shard = Shard::start(config, wal, records, machine, transport, formation).await;
        let shard = Arc::new(shard.unwrap());
        replica.shard = Some(Arc::clone(&shard));
        let weak = Arc::downgrade(&shard);
        self.net.attach(
            replica.id,
            Arc::new(move |from, message| match weak.upgrade() {
                Some(shard) => shard.handle(from, message),
                None => Box::pin(async { std::future::pending().await }),
            }),
        );
    }

    pub async fn restart(&mut self, place: usize) {
        self.start(place, Formation::Join).await;
    }

    /// Stops a replica without telling anybody.
    pub async fn stop(&mut self, place: usize) {
        let replica = &mut self.replicas[place];
        self.net.detach(replica.id);
        if let Some(shard) = replica.shard.take() {
            shard.shutdown().await;
        }
    }

    /// Has the power fail at a replica; `keep` says of each sector that was not synced whether it is there afterwards.
    pub async fn crash(&mut self, place: usize, keep: impl FnMut() -> bool) {
        self.net.detach(self.replicas[place].id);
        self.replicas[place].fs.crash(keep).unwrap();
        self.stop(place).await;
    }

    /// Adds a replica that waits for a leader.
    pub async fn join(&mut self, id: u64) -> usize {
        self.replicas.push(Self::replica(id));
        let place = self.replicas.len() - 1;
        self.start(place, Formation::Join).await;
        place
    }

    /// The place of a replica that leads.
    pub async fn leader(&self) -> usize {
        self.leader_among(|_| true).await
    }

    pub async fn leader_among(&self, among: impl Fn(usize) -> bool) -> usize {
        eventually("somebody leads", || {
            (0..self.replicas.len()).find(|place| {
                let replica = &self.replicas[*place];
                among(*place) && replica.runs() && replica.shard().leadership().borrow().is_some()
            })
        })
        .await
    }

    pub async fn propose(&self, place: usize, numbers: std::ops::Range<u64>, payload: usize) {
        let shard = self.replicas[place].shard();
        let answers: Vec<_> = numbers
            .map(|number| (number, shard.propose(command(number, payload))))
            .collect();
        for (number, answer) in answers {
            assert_eq!(answer.await.unwrap().1, number);
        }
    }

    /// Waits until all running replicas have applied the same; returns it.
    pub async fn agreed(&self) -> Numbers {
        eventually("all replicas agree", || {
            let running = || self.replicas.iter().filter(|replica| replica.runs());
            let all: Vec<_> = running()
                .map(|replica| {
                    let status = replica.shard().status();
                    (status.applied, status.last_index, replica.numbers())
                })
                .collect();
            let (applied, last_index, numbers) = all.first()?;
            let is_same = |other: &(u64, u64, Numbers)| other.0 == *applied && other.1 == *applied;
            (applied == last_index && all.iter().all(is_same)).then(|| {
                assert!(
                    all.iter().all(|other| other.2 == *numbers),
                    "the same in the same order"
                );
                numbers.clone()
            })
        })
        .await
    }
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
