//! How fast the write-ahead log is on this machine: `cargo run --release -p palisade-log --example wal_throughput -- DIR`.
//!
//! Several writers, each with a number of appends on the way, as shards have; prints records, megabytes and syncs a second and
//! the latency of an append.

use std::{
    error::Error,
    io::Write,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use palisade_log::{ShardId, Wal, WalOptions, WalRecord};
use palisade_seal::{DirectoryProvider, FileKeys};

const SECONDS: u64 = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(
        || std::env::temp_dir().join("wal-throughput"),
        PathBuf::from,
    );
    let keys = Arc::new(FileKeys::new(Arc::new(DirectoryProvider::create(
        dir.join("kek"),
    )?)));
    for (writers, on_the_way, payload) in [
        (1, 1, 1 << 10),
        (4, 1, 1 << 10),
        (4, 64, 1 << 10),
        (4, 16, 16 << 10),
        (4, 4, 256 << 10),
    ] {
        let wal_dir = dir.join("wal");
        let (wal, _) = Wal::open(WalOptions::new(&wal_dir), Arc::clone(&keys))?;
        let report = measure(&Arc::new(wal), writers, on_the_way, payload)?;
        writeln!(
            std::io::stdout(),
            "{writers} writers x {on_the_way} of {payload:>6} B: {report}"
        )?;
        std::fs::remove_dir_all(&wal_dir)?;
    }
    Ok(())
}

fn measure(
    wal: &Arc<Wal>,
    writers: u32,
    on_the_way: usize,
    payload: usize,
) -> Result<String, Box<dyn Error>> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|shard| {
            let wal = Arc::clone(wal);
            thread::spawn(move || write(&wal, ShardId(shard), on_the_way, payload))
        })
        .collect();
    let mut latencies = Vec::new();
    for thread in threads {
        latencies.extend(thread.join().map_err(|_| "a writer panicked")?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: usize| {
        let index = (latencies.len() * share / 1000).min(latencies.len().saturating_sub(1));
        latencies.get(index).copied().unwrap_or_default()
    };
    let stats = wal.stats();
    Ok(format!(
        "{:>7.0} records/s {:>6.1} MB/s {:>6.0} syncs/s (mean {:>6.0} us) latency p50 {:?} p99 {:?} p99.9 {:?}",
        latencies.len() as f64 / seconds,
        (latencies.len() * payload) as f64 / seconds / 1e6,
        stats.batches as f64 / seconds,
        stats.sync_nanos as f64 / stats.batches.max(1) as f64 / 1e3,
        at(500),
        at(990),
        at(999),
    ))
}

/// Keeps `on_the_way` appends waiting, releases now and then, and returns how long each took.
fn write(wal: &Wal, shard: ShardId, on_the_way: usize, payload: usize) -> Vec<Duration> {
    let payload = Bytes::from(vec![0xa5; payload]);
    let (sender, receiver) = mpsc::channel();
    let mut latencies = Vec::new();
    let end = Instant::now() + Duration::from_secs(SECONDS);
    for index in 0.. {
        let sender = sender.clone();
        let begun = Instant::now();
        let record = WalRecord {
            shard,
            kind: 1,
            index,
            meta: vec![0; 60],
            payload: payload.clone(),
        };
        wal.append(vec![record], move |result| {
            // The receiver is gone once time is up.
            let _ = sender.send(result.map(|()| begun.elapsed()));
        });
        if index >= on_the_way as u64 {
            match receiver.recv() {
                Ok(Ok(latency)) => latencies.push(latency),
                _ => break,
            }
        }
        if index % 1000 == 999 {
            wal.release(shard, index.saturating_sub(1000));
        }
        if Instant::now() > end {
            break;
        }
    }
    latencies
}
