use std::time::{Duration, Instant};

use bytes::Bytes;
use palisade_log::{Offset, PartitionIndex};

use super::bench::{Bench, batch};
use crate::Acks;

/// A kill with much in the write-ahead log that no checkpoint covers. Run by `cargo test -p palisade-data -- --ignored --nocapture`, on real files.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes 200 MB and measures; its figure depends on the machine"]
async fn a_restart_with_200_mb_to_replay() {
    let mut bench = Bench::new();
    bench.wal_file_bytes = 64 << 20;
    bench.real_files = true;
    let topic = bench
        .catalog
        .create(12, |settings| settings.segment_bytes = None);
    let plane = bench.start().await;
    let sent = Bytes::from(batch(&"x".repeat(1000), 16).build());
    let each = 200_000_000 / sent.len() / 12;
    let started = Instant::now();
    for _ in 0..each {
        let answers: Vec<_> = (0..12)
            .map(|n| plane.produce(topic, PartitionIndex(n), sent.clone(), Acks::All))
            .collect();
        for answer in answers {
            answer.await.unwrap();
        }
    }
    let written = started.elapsed();
    bench.kill(plane).await;
    let started = Instant::now();
    let plane = bench.start().await;
    let took = started.elapsed();
    let (_, end) = plane.offsets_of(topic, PartitionIndex(0)).unwrap();
    assert_eq!(end, Offset(each as i64 * 16));
    eprint_figures(written, took);
    plane.shutdown().await;
    // A second is the aim on a machine that does nothing else; this one may be building meanwhile.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[allow(clippy::print_stderr)]
fn eprint_figures(written: Duration, took: Duration) {
    eprintln!("200 MB written in {written:?}; ready again after {took:?}");
}
