//! A shadow model beside the real log: whatever is appended, released and lost by crashes, recovery returns what was
//! acknowledged, in order, and nothing that was not appended.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::{collections::BTreeMap, sync::mpsc, time::Duration};

use proptest::prelude::*;

use super::{
    tests::{Bench, record},
    *,
};

#[derive(Clone, Debug)]
enum Step {
    /// Records of this many bytes for a shard, in one append; whether to wait for them.
    Append {
        shard: u32,
        sizes: Vec<usize>,
        wait: bool,
    },
    Vote {
        shard: u32,
    },
    /// Release this share of what the shard has acknowledged.
    Release {
        shard: u32,
        percent: u64,
    },
    /// Give the shard up and begin it anew.
    Forget {
        shard: u32,
    },
    /// Close in order and open again.
    Restart,
    /// Lose power: each sector that was not synced is kept with this chance.
    Crash {
        keep_percent: u32,
        seed: u64,
    },
    /// Fill the disk, or free it.
    Space(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u32..3, proptest::collection::vec(0usize..9000, 1..4), any::<bool>())
            .prop_map(|(shard, sizes, wait)| Step::Append { shard, sizes, wait }),
        1 => (0u32..3).prop_map(|shard| Step::Vote { shard }),
        2 => (0u32..3, 0u64..=100).prop_map(|(shard, percent)| Step::Release { shard, percent }),
        1 => (0u32..3).prop_map(|shard| Step::Forget { shard }),
        1 => Just(Step::Restart),
        2 => (0u32..=100, any::<u64>()).prop_map(|(keep_percent, seed)| Step::Crash { keep_percent, seed }),
        1 => any::<bool>().prop_map(Step::Space),
    ]
}

#[derive(Default)]
struct Shard {
    next: u64,
    released: u64,
    /// Appended and neither released nor refused, with whether it was acknowledged.
    records: Vec<(WalRecord, bool)>,
    vote: Option<WalRecord>,
}

/// The shard, the indexes and the callback of an append.
type Pending = (u32, Vec<u64>, mpsc::Receiver<Result<(), WalError>>);

struct Model {
    bench: Bench,
    wal: Option<Wal>,
    shards: BTreeMap<u32, Shard>,
    pending: Vec<Pending>,
}

impl Model {
    fn new() -> Self {
        let bench = Bench::new();
        let (wal, records) = bench.open();
        assert!(records.is_empty());
        Self {
            bench,
            wal: Some(wal),
            shards: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    fn wal(&self) -> &Wal {
        self.wal.as_ref().unwrap()
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Append { shard, sizes, wait } => self.append(*shard, sizes, *wait),
            Step::Vote { shard } => {
                let state = self.shards.entry(*shard).or_default();
                let vote = WalRecord {
                    kind: WalRecord::STICKY,
                    payload: Bytes::new(),
                    ..record(*shard, state.next, "vote")
                };
                let (sender, receiver) = mpsc::channel();
                self.wal().append(vec![vote.clone()], move |result| {
                    sender.send(result).unwrap()
                });
                if receiver
                    .recv_timeout(Duration::from_secs(20))
                    .unwrap()
                    .is_ok()
                {
                    self.shards.entry(*shard).or_default().vote = Some(vote);
                }
            }
            Step::Release { shard, percent } => {
                self.settle();
                let state = self.shards.entry(*shard).or_default();
                let through = state.next * percent / 100;
                state.released = through.max(state.released);
                state.records.retain(|(record, _)| record.index > through);
                self.wal().release(ShardId(*shard), through);
            }
            Step::Forget { shard } => {
                // It waits for space.
                self.bench.fs.set_space(None);
                self.settle();
                let (sender, receiver) = mpsc::channel();
                self.wal()
                    .forget(ShardId(*shard), Vec::new(), move |result| {
                        sender.send(result).unwrap()
                    });
                let outcome = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
                assert_eq!(outcome, Ok(()));
                self.shards.insert(*shard, Shard::default());
            }
            Step::Restart => {
                self.wal = None;
                self.settle();
                self.reopen();
            }
            Step::Crash { keep_percent, seed } => {
                let mut random = *seed;
                self.bench
                    .fs
                    .crash(|| {
                        // A linear congruential generator is random enough to scatter sectors.
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        (random >> 33) % 100 < u64::from(*keep_percent)
                    })
                    .unwrap();
                self.wal = None;
                self.settle();
                self.reopen();
            }
            Step::Space(free) => self.bench.fs.set_space((!free).then_some(0)),
        }
    }

    fn append(&mut self, shard: u32, sizes: &[usize], wait: bool) {
        let state = self.shards.entry(shard).or_default();
        let records: Vec<_> = sizes
            .iter()
            .map(|size| {
                state.next += 1;
                record(
                    shard,
                    state.next,
                    &format!("{}:{}", state.next, "x".repeat(*size)),
                )
            })
            .collect();
        state
            .records
            .extend(records.iter().cloned().map(|record| (record, false)));
        let indexes = records.iter().map(|record| record.index).collect();
        let (sender, receiver) = mpsc::channel();
        self.wal()
            .append(records, move |result| sender.send(result).unwrap());
        self.pending.push((shard, indexes, receiver));
        if wait {
            self.settle();
        }
    }

    /// Waits for all callbacks and notes what they said.
    fn settle(&mut self) {
        for (shard, indexes, receiver) in self.pending.drain(..) {
            let result = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
            let records = &mut self.shards.get_mut(&shard).unwrap().records;
            match result {
                Ok(()) => records
                    .iter_mut()
                    .filter(|(record, _)| indexes.contains(&record.index))
                    .for_each(|(_, acknowledged)| *acknowledged = true),
                // Promised not to be there.
                Err(WalError::Full) => {
                    records.retain(|(record, _)| !indexes.contains(&record.index))
                }
                Err(_) => {}
            }
        }
    }

    /// Opens and compares with the model, which then takes over what was found of the unacknowledged.
    fn reopen(&mut self) {
        // A full disk must not keep a log from being opened.
        let (wal, found) = self.bench.open();
        self.wal = Some(wal);
        for (number, shard) in &mut self.shards {
            let mine = |record: &&WalRecord| record.shard == ShardId(*number);
            let (sticky, history): (Vec<_>, Vec<_>) = found
                .iter()
                .filter(mine)
                .cloned()
                .partition(WalRecord::is_sticky);
            // Every vote was waited for: there is none that the model does not know of.
            assert_eq!(sticky.last(), shard.vote.as_ref(), "shard {number}");
            // A release is written when there is time for it, so a crash may bring back released records.
            let found: Vec<_> = history
                .into_iter()
                .filter(|record| record.index > shard.released)
                .collect();
            let mut expected = shard.records.iter();
            for record in &found {
                loop {
                    let (appended, acknowledged) = expected
                        .next()
                        .unwrap_or_else(|| panic!("never appended: {record:?}"));
                    if appended == record {
                        break;
                    }
                    assert!(
                        !acknowledged,
                        "lost {} before {}",
                        appended.index, record.index
                    );
                }
            }
            for (rest, acknowledged) in expected {
                assert!(!acknowledged, "lost {}", rest.index);
            }
            shard.records = found.into_iter().map(|record| (record, true)).collect();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn recovery_returns_what_was_acknowledged(steps in proptest::collection::vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in &steps {
            model.run(step);
        }
        model.run(&Step::Restart);
    }

    #[test]
    fn one_flipped_bit_is_cut_or_reported_and_never_served(
        sizes in proptest::collection::vec(0usize..3000, 2..12),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let bench = Bench::new();
        let (wal, _) = bench.open();
        let written: Vec<_> = (1u64..)
            .zip(&sizes)
            .map(|(index, size)| record(1, index, &"x".repeat(*size)))
            .collect();
        for record in &written {
            let (sender, receiver) = mpsc::channel();
            wal.append(vec![record.clone()], move |result| sender.send(result).unwrap());
            receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        }
        let used = (BLOCK + 2 * BLOCK * (sizes.len() as u64 + 1)).min(64 << 10);
        drop(wal);
        let path = bench.dir.path().join("wal-0000000000000001.log");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(usize::try_from(used).unwrap());
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).unwrap();
        match Wal::open(WalOptions { fs: Arc::new(bench.fs.clone()), file_bytes: 64 << 10, ..WalOptions::new(bench.dir.path()) }, super::tests::keys()) {
            // Unused bytes were hit, or the last batch, which then looks torn.
            Ok((_wal, found)) => prop_assert!(
                found == written || found == written[..written.len() - 1],
                "{} of {} records", found.len(), written.len()
            ),
            Err(LogError::Corrupt { file, offset, .. }) => {
                prop_assert_eq!(file, path);
                prop_assert!(offset <= at as u64);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
