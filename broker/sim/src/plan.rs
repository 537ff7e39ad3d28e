//! What a seed stands for: how many brokers, who produces, and which faults come when.

use std::time::Duration;

use crate::chance::Chance;

/// One fault, or something that people do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power fails now, or within the operations of the disk that follow.
    Crash {
        broker: usize,
        operations: Option<u64>,
        down: u64,
    },
    /// A sync fails, after so many that succeed: the process ends itself.
    SyncFails {
        broker: usize,
        after: u64,
        down: u64,
    },
    /// The disk is empty when the broker comes back.
    Wipe { broker: usize, down: u64 },
    /// Nothing arrives from one to the other.
    OneWay { from: usize, to: usize, time: u64 },
    /// Those in the set and those outside do not reach each other.
    Split { set: u64, time: u64 },
    /// Messages are lost.
    Lossy { permille: u64, time: u64 },
    /// Each write to the disk takes so long.
    Slow { broker: usize, each: u64, time: u64 },
    /// A connection breaks.
    Break { from: usize, to: usize },
    /// Somebody wants another leader.
    Transfer { to: usize },
    /// A broker writes its checkpoints.
    Checkpoint { broker: usize },
    /// The power fails everywhere.
    Blackout { down: u64 },
    /// The others take a broker's process for gone, which it is not.
    Rumour { broker: usize },
}

/// A producer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Producer {
    pub(crate) id: u32,
    pub(crate) shard: u32,
    pub(crate) partition: u32,
    pub(crate) idempotent: bool,
    pub(crate) window: usize,
    pub(crate) batches: u32,
    /// Microseconds between two batches.
    pub(crate) every: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) brokers: usize,
    pub(crate) shards: u32,
    pub(crate) producers: Vec<Producer>,
    /// When, in microseconds, and what.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// When faults end.
    pub(crate) heals_at: u64,
    pub(crate) network_delay: u64,
    pub(crate) disk_delay: u64,
    pub(crate) tail_bytes: usize,
    /// How fast each broker's clock goes, in thousandths of the true speed.
    clocks: Vec<u32>,
}

/// Records in each batch.
pub(crate) const BATCH: u32 = 2;

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut chance = Chance::of(&[seed, 1]);
        let brokers = if chance.permille(700) { 3 } else { 5 };
        let chaos = chance.between(6_000_000, 14_000_000);
        let shards = 2;
        let producers = (0..4)
            .map(|id| {
                let idempotent = id != 3;
                Producer {
                    id,
                    shard: 1 + id % shards,
                    partition: id / shards,
                    idempotent,
                    window: if idempotent {
                        1 + chance.below(5) as usize
                    } else {
                        1
                    },
                    batches: chance.between(20, 60) as u32,
                    every: chance.between(50_000, 300_000),
                }
            })
            .collect();
        let mut faults: Vec<_> = (0..chance.between(4, 22))
            .map(|_| {
                let at = chance.between(500_000, chaos);
                (at, Fault::draw(&mut chance, brokers))
            })
            .collect();
        // Drawn apart, so that the others are what they were before there were such.
        let mut apart = Chance::of(&[seed, 4]);
        if apart.permille(333) {
            let at = apart.between(1_000_000, chaos);
            let down = apart.between(100_000, 1_500_000);
            faults.push((at, Fault::Blackout { down }));
        }
        if apart.permille(333) {
            let at = apart.between(1_000_000, chaos);
            let broker = apart.below(brokers as u64) as usize;
            faults.push((at, Fault::Rumour { broker }));
        }
        faults.sort_by_key(|(at, _)| *at);
        Self {
            brokers,
            shards,
            producers,
            faults,
            heals_at: chaos.saturating_add(500_000),
            network_delay: chance.between(300, 4_000),
            disk_delay: chance.between(300, 4_000),
            tail_bytes: [512, 4_096, 65_536][chance.below(3) as usize],
            clocks: clocks(seed, brokers),
        }
    }

    /// A time that a broker measures: with a fast clock it is over sooner.
    pub(crate) fn measured(&self, broker: usize, time: Duration) -> Duration {
        let speed = self.clocks.get(broker).copied().unwrap_or(1000);
        time * 1000 / speed.max(1)
    }
}

/// In half of the seeds clocks differ by up to a half: far more than real ones, so that what counts on them would show. Drawn apart, so that seeds are what they were
/// before there were such clocks.
fn clocks(seed: u64, brokers: usize) -> Vec<u32> {
    let mut chance = Chance::of(&[seed, 2]);
    let differ = chance.permille(500);
    let speed = |_| match differ {
        true => 750 + chance.below(500) as u32,
        false => 1000,
    };
    (0..brokers).map(speed).collect()
}

impl Fault {
    fn draw(chance: &mut Chance, brokers: usize) -> Self {
        let broker = chance.below(brokers as u64) as usize;
        let other = (broker + 1 + chance.below(brokers as u64 - 1) as usize) % brokers;
        let time = chance.between(100_000, 4_000_000);
        let down = chance.between(100_000, 3_000_000);
        match chance.below(100) {
            0..12 => Self::Crash {
                broker,
                operations: None,
                down,
            },
            12..30 => Self::Crash {
                broker,
                operations: Some(chance.below(24)),
                down,
            },
            30..38 => Self::SyncFails {
                broker,
                after: chance.below(6),
                down,
            },
            38..44 => Self::Wipe { broker, down },
            44..54 => Self::OneWay {
                from: broker,
                to: other,
                time,
            },
            54..66 => Self::Split {
                set: chance.number(),
                time,
            },
            66..72 => Self::Lossy {
                permille: chance.between(5, 150),
                time,
            },
            72..78 => Self::Slow {
                broker,
                each: chance.between(20_000, 700_000),
                time,
            },
            78..84 => Self::Break {
                from: broker,
                to: other,
            },
            84..90 => Self::Transfer { to: broker },
            _ => Self::Checkpoint { broker },
        }
    }
}
