//! Random crashes, partitions, losses and delays, with clients that go on proposing.
//!
//! A failing seed is printed; `PALISADE_SEED` runs one alone, `PALISADE_SEEDS` that many.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use palisade_shard::{LogPosition, Shard};

use crate::harness::{Cluster, Machine, command};

/// How many tests there are, a seed for each unless others are asked for.
const TESTS: u64 = 4;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

type Answered = Arc<Mutex<BTreeMap<u64, LogPosition>>>;
type Running = Arc<Mutex<Vec<Arc<Shard<Machine>>>>>;

/// Proposes to whoever leads, without ever repeating a number.
async fn client(running: Running, answered: Answered, first: u64, step: u64) {
    let mut number = first;
    loop {
        let shards: Vec<_> = running.lock().unwrap().clone();
        let mut answers = Vec::new();
        for shard in shards {
            if shard.leadership().borrow().is_some() {
                for _ in 0..8 {
                    answers.push((number, shard.propose(command(number, 4000))));
                    number += step;
                }
            }
        }
        for (number, answer) in answers {
            if let Ok(Ok((at, same))) = tokio::time::timeout(Duration::from_secs(5), answer).await {
                assert_eq!(same, number, "an answer to another proposal");
                let mut answered = answered.lock().unwrap();
                assert!(answered.insert(number, at).is_none(), "answered twice");
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn run(seed: u64) {
    let mut random = Random(seed);
    let count = 3 + 2 * random.below(2);
    let mut cluster = Cluster::new(count);
    // So short that snapshots are needed now and then.
    cluster.tail = 0;
    let voters = cluster.ids();
    for place in 0..cluster.replicas.len() {
        let formation = palisade_shard::Formation::Form(voters.clone());
        cluster.start(place, formation).await;
    }
    let running = Running::default();
    let answered = Answered::default();
    let clients: Vec<_> = (0..2)
        .map(|first| tokio::spawn(client(running.clone(), answered.clone(), first, 2)))
        .collect();
    for _ in 0..25 {
        let place = random.below(count) as usize;
        let down = cluster.replicas.iter().filter(|r| !r.runs()).count() as u64;
        match random.below(9) {
            0 => cluster
                .net
                .isolate(cluster.replicas[place].id, cluster.ids()),
            1 | 2 => cluster.net.heal(),
            3 | 4 if cluster.replicas[place].runs() && (down + 1) * 2 < count + 1 => {
                running.lock().unwrap().clear();
                let keep = random.below(101);
                let mut sectors = Random(random.below(1 << 30));
                cluster
                    .crash(place, move || sectors.below(100) < keep)
                    .await;
            }
            5 | 6 => {
                if let Some(place) = cluster.replicas.iter().position(|r| !r.runs()) {
                    cluster.restart(place).await;
                }
            }
            7 if cluster.replicas[place].runs() => {
                let shard = Arc::clone(cluster.replicas[place].shard());
                let _ = shard.checkpoint().await;
            }
            _ => {
                let (loss, delay) = (random.below(30), random.below(15));
                let seed = random.below(1 << 30);
                cluster
                    .net
                    .weather(seed, loss, Duration::from_millis(delay));
            }
        }
        *running.lock().unwrap() = cluster
            .replicas
            .iter()
            .filter(|replica| replica.runs())
            .map(|replica| Arc::clone(replica.shard()))
            .collect();
        tokio::time::sleep(Duration::from_millis(50 + random.below(400))).await;
        prefixes_agree(&cluster);
    }
    for client in clients {
        client.abort();
        if let Err(error) = client.await {
            assert!(!error.is_panic(), "a client failed: {error}");
        }
    }
    running.lock().unwrap().clear();
    cluster.net.weather(1, 0, Duration::ZERO);
    cluster.net.heal();
    for place in 0..cluster.replicas.len() {
        if !cluster.replicas[place].runs() {
            cluster.restart(place).await;
        }
    }
    let leader = cluster.leader().await;
    let _ = cluster.replicas[leader]
        .shard()
        .propose(command(u64::MAX, 1))
        .await;
    let agreed = cluster.agreed().await;
    let unique: BTreeSet<u64> = agreed.iter().copied().collect();
    assert_eq!(unique.len(), agreed.len(), "nothing twice");
    let answered = answered.lock().unwrap();
    let places: BTreeSet<u64> = answered.values().map(|at| at.index).collect();
    assert_eq!(places.len(), answered.len(), "two answers for one place");
    let mut in_order: Vec<_> = answered
        .iter()
        .map(|(number, at)| (at.index, *number))
        .collect();
    in_order.sort_unstable();
    let mut rest = agreed.iter();
    for (index, number) in in_order {
        assert!(
            rest.any(|found| *found == number),
            "{number}, answered at {index}, is lost or out of order"
        );
    }
    eprintln!(
        "seed {seed}: {} answered of {} applied, {} snapshots begun, {} ended",
        answered.len(),
        agreed.len(),
        cluster.net.delivered(6),
        cluster.net.delivered(8)
    );
}

/// What has been applied anywhere is a prefix of what has been applied elsewhere.
fn prefixes_agree(cluster: &Cluster) {
    let all: Vec<_> = cluster
        .replicas
        .iter()
        .filter(|replica| replica.runs())
        .map(|replica| replica.numbers())
        .collect();
    for (one, other) in all.iter().zip(all.iter().skip(1)) {
        let common = one.len().min(other.len());
        assert_eq!(one[..common], other[..common], "the same in the same order");
    }
}

/// Runs one test's share of the seeds: the tests take turns at them, and run side by side.
fn nothing_acknowledged_is_lost(turn: u64) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seeds = match number("PALISADE_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("PALISADE_SEEDS").unwrap_or(TESTS),
    };
    for seed in seeds.filter(|seed| seed % TESTS == turn % TESTS) {
        eprintln!("PALISADE_SEED={seed}");
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(run(seed));
    }
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_with_seed_1() {
    nothing_acknowledged_is_lost(1);
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_with_seed_2() {
    nothing_acknowledged_is_lost(2);
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_with_seed_3() {
    nothing_acknowledged_is_lost(3);
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_with_seed_4() {
    nothing_acknowledged_is_lost(4);
}
