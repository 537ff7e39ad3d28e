//! Several brokers in one process, on one thread, in simulated time, with everything decided by a seed.
//!
//! What is real: the replication of shards ([`palisade_shard`]) with its engine, and the write-ahead log ([`palisade_log`]) with its recovery. What is simulated:
//! the network between brokers ([`network`]), their disks ([`palisade_log::testing::MemoryFs`]), the processes ([`world`]), the clients ([`client`]) and a state
//! machine with logs, offsets and producers ([`machine`]).
//!
//! In half of the seeds brokers' clocks go at speeds of their own: whatever their shards wait for is shorter for one and longer for another. In a third of them the
//! power fails everywhere at once, and in a third brokers are taken for dead that are not.
//!
//! A run is chaos for some seconds, then healing, then quiet; an oracle sees everything that is applied and acknowledged, and [`invariants`] says what must hold.
//!
//! # Chance
//!
//! Each decision is a hash of the seed and of what is decided ([`chance`]), and each event has a millisecond of its own ([`schedule`]), so the order in which tasks
//! happen to run within one has nothing to decide. `--seed N --trace` replays a run.

use std::{
    cell::Cell,
    sync::{Arc, Once},
    time::Duration,
};

use palisade_seal::FileKeys;
use palisade_shard::Simulated;

pub mod chance;
mod client;
mod faults;
pub mod invariants;
mod keys;
mod leader;
mod machine;
mod network;
mod oracle;
mod plan;
mod schedule;
mod trace;
mod world;

pub use machine::Record;
pub use oracle::{Ack, History, ProducerInfo, Replica, Violation};

use chance::mix;
use plan::{BATCH, Plan};
use trace::Trace;
use world::World;

/// Something that is broken on purpose, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutation {
    /// A leader acknowledges what it has only proposed.
    AcknowledgeEarly,
    /// Disks say that they have synced, and have not.
    SkipSync,
    /// A broker that comes back does not know for whom it has voted.
    ForgetVote,
    /// A producer's batch that was sent twice is appended twice.
    ForgetProducers,
    /// A batch is appended wherever the end is, and acknowledged where the leader thought it would be.
    TrustOffsets,
    /// A broker whose disk was wiped comes back as the one it was.
    KeepIdentity,
    /// A checkpoint does not wait until the write-ahead log has what it reaches to.
    CheckpointOvertakes,
    /// A process whose shard has stopped, because its disk failed, goes on without it.
    StayWhenStopped,
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Keep the last events as text.
    pub trace: bool,
    /// What is broken on purpose.
    pub mutation: Option<Mutation>,
}

impl Options {
    /// A run without a text of its events.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            trace: false,
            mutation: None,
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The same for the same seed.
    pub hash: u64,
    /// How many events there were.
    pub events: u64,
    /// How many batches were acknowledged.
    pub acks: usize,
    /// How often a leader was seen to have trimmed its log.
    pub trims: u64,
    /// How many snapshots were installed.
    pub installs: u64,
    /// How many disks were wiped.
    pub wipes: usize,
    /// Simulated time.
    pub time: Duration,
    /// What did not hold.
    pub violation: Option<Violation>,
    /// The last events, if they were kept.
    pub lines: Vec<String>,
}

/// Runs a seed.
///
/// # Errors
/// When the simulation itself cannot be set up.
pub fn run(options: Options) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    let simulated = Simulated::begin(mix(&[options.seed, 2]));
    if options.mutation == Some(Mutation::CheckpointOvertakes) {
        simulated.let_checkpoints_overtake();
    }
    count_panics();
    let keys = keys::MemoryKeys::new().map_err(|error| error.to_string())?;
    let keys = Arc::new(FileKeys::new(Arc::new(keys)));
    let mut outcome = runtime.block_on(simulate(options, &simulated, keys));
    // Tasks that still run are dropped here, where blocking is still simulated.
    drop(runtime);
    let panics = PANICS.get();
    if panics > 0 {
        outcome.violation.get_or_insert(Violation {
            invariant: "panic",
            message: format!("{panics} tasks panicked, see what was printed"),
        });
    }
    Ok(outcome)
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Counts panics of this thread from now on: that of a task which nobody waits for would not be noticed.
fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get().saturating_add(1));
            before(panic);
        }));
    });
    PANICS.set(0);
}

async fn simulate(options: Options, simulated: &Simulated, keys: Arc<FileKeys>) -> Outcome {
    let Options {
        seed,
        trace,
        mutation,
    } = options;
    let trace = Arc::new(Trace::new(trace));
    let world = World::new(seed, mutation, Plan::of(seed), Arc::clone(&trace), keys);
    let begun = tokio::time::Instant::now();
    let mut events = 0_u64;
    let schedule = Arc::clone(&world.schedule);
    let oracle = Arc::clone(&world.oracle);
    let driven = schedule.run(|| {
        events = events.wrapping_add(1);
        simulated.reseed(mix(&[seed, 3, events]));
        oracle.violation().is_none()
    });
    tokio::select! {
        biased;
        () = driven => {}
        () = scenario(Arc::clone(&world)) => {}
    }
    let (hash, events) = trace.hash();
    let (acks, trims, installs, wipes) = world.oracle.read(|history| {
        (
            history.acks.len(),
            history.trims,
            history.installs,
            history.wiped.len(),
        )
    });
    Outcome {
        seed,
        hash,
        events,
        acks,
        trims,
        installs,
        wipes,
        time: begun.elapsed(),
        violation: world.oracle.violation(),
        lines: trace.lines(),
    }
}

/// Chaos, healing, quiet, and a look at what is there.
async fn scenario(world: Arc<World>) {
    for index in 0..world.plan.brokers {
        world.start(index);
    }
    for shard in world.shards() {
        tokio::spawn(faults::keep_members(Arc::clone(&world), shard));
    }
    tokio::spawn(faults::watch_processes(Arc::clone(&world)));
    let producers: Vec<_> = world
        .plan
        .producers
        .iter()
        .map(|producer| {
            world.oracle.change(|history| {
                history.producers.push(ProducerInfo {
                    id: producer.id,
                    idempotent: producer.idempotent,
                    window: producer.window,
                    records: producer.batches * BATCH,
                });
            });
            tokio::spawn(client::produce(Arc::clone(&world), *producer))
        })
        .collect();
    for (number, (at, fault)) in (100..).zip(world.plan.faults.clone()) {
        let this = Arc::clone(&world);
        world
            .schedule
            .at(at, number, move || faults::inject(&this, number, &fault));
    }
    let this = Arc::clone(&world);
    let heals_at = world.plan.heals_at;
    world.schedule.at(heals_at, 0, move || faults::heal(&this));
    tokio::time::sleep(Duration::from_micros(heals_at)).await;

    let deadline = tokio::time::Instant::now() + invariants::liveness::BOUND;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let unfinished = producers.iter().filter(|task| !task.is_finished()).count();
        let missing = match unfinished {
            0 => world.unhealed(),
            count => Some(format!("{count} producers have not finished")),
        };
        let Some(missing) = missing else { break };
        if tokio::time::Instant::now() > deadline {
            let missing = match world.unhealed() {
                Some(unhealed) if unhealed != missing => format!("{missing}; {unhealed}"),
                _ => missing,
            };
            world.oracle.broken(invariants::liveness::NAME, missing);
            return;
        }
    }
    let replicas = world.replicas();
    let violation = world
        .oracle
        .read(|history| invariants::check(history, &replicas));
    if let Some(Violation { invariant, message }) = violation {
        world.oracle.broken(invariant, message);
    }
}
