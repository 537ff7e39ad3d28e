//! Kill -9 and power failure at random points: what was acknowledged is there afterwards, once and in order.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::bench::{Bench, batch, produce, read_values};
use crate::DataError;

/// A small generator, so that a failing run can be named by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_kills_at_random_points() {
    let fresh = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
        | 1;
    for seed in [1, 2, 3, fresh] {
        kills(seed, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_power_failures_at_random_points() {
    let fresh = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
        | 1;
    for seed in [4, 5, 6, fresh] {
        kills(seed, true).await;
    }
}

async fn kills(seed: u64, power: bool) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut bench = Bench::new();
    bench.wal_file_bytes = 256 << 10;
    let topic = bench.catalog.create(1, |_| {});
    let mut acknowledged = Vec::new();
    let mut sequence = 0;
    for life in 0..6 {
        bench.checkpoint_wal_bytes = if random.below(2) == 0 {
            20_000
        } else {
            u64::MAX
        };
        let plane = bench.start().await;
        let found = read_values(&plane, topic);
        assert_eq!(
            found.len(),
            acknowledged.len(),
            "seed {seed}, life {life}: as many as were acknowledged, or not refused"
        );
        assert_eq!(found, acknowledged, "seed {seed}, life {life}");
        for _ in 0..random.below(40) {
            match random.below(10) {
                0 => plane.checkpoint().await.unwrap(),
                _ => {
                    let count = 1 + random.below(30) as usize;
                    let text = format!(
                        "{life}-{sequence}-{}",
                        "x".repeat(random.below(200) as usize)
                    );
                    let sent = batch(&text, count).producer(7, 0, sequence);
                    produce(&plane, topic, &sent).await.unwrap();
                    sequence += count as i32;
                    acknowledged.extend((0..count).map(|n| format!("{text}-{n}")));
                }
            }
        }
        // The last one is in flight when it ends: there or not, but never in part.
        let last = batch("last", 3).producer(7, 0, sequence);
        let task = {
            let (plane, sent) = (Arc::clone(&plane), last.clone());
            tokio::spawn(async move { produce(&plane, topic, &sent).await })
        };
        if power {
            tokio::task::yield_now().await;
            bench.data_fs.crash(|| random.below(2) == 0).unwrap();
            bench.wal_fs.crash(|| random.below(2) == 0).unwrap();
        }
        bench.kill(plane).await;
        let outcome = task.await.unwrap();
        let plane = bench.start().await;
        let there = read_values(&plane, topic).len() - acknowledged.len();
        assert!(
            there == 3 || (there == 0 && outcome.is_err()),
            "seed {seed}: {there} of an unfinished batch, which was answered with {outcome:?}"
        );
        match produce(&plane, topic, &last).await {
            Ok(_) => {}
            Err(error @ DataError::OutOfTurn) => panic!("seed {seed}: {error}"),
            Err(error) => panic!("seed {seed}: sent again: {error}"),
        }
        sequence += 3;
        acknowledged.extend((0..3).map(|n| format!("last-{n}")));
        assert_eq!(
            read_values(&plane, topic),
            acknowledged,
            "seed {seed}, life {life}: sent again, there once"
        );
        bench.kill(plane).await;
    }
}
