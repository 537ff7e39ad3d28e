//! Compaction and new keys, through the front door and beside everything else.

use std::time::Duration;

use bytes::Bytes;
use palisade_log::Offset;
use palisade_seal::{DekVersion, SecretKey};

use super::bench::{Bench, P0, eventually, fetch, produce};
use crate::{
    Acks, Catalog, CleanerOptions, Compaction, DataError, DataPlane, ListQuery, TopicSettings,
    records::{
        BatchHeader, RecordError, batches,
        builder::{TestBatch, TestRecord},
    },
    shard_data::now_ms,
};

const COMPACTION: Compaction = Compaction {
    delete_retention_ms: 86_400_000,
    min_dirty_ratio: 0.0,
    min_lag_ms: 0,
    max_lag_ms: i64::MAX,
};

fn compacted(settings: &mut TopicSettings) {
    settings.compaction = Some(COMPACTION);
    settings.rules.keys_required = true;
    settings.delete = false;
    settings.segment_bytes = Some(2048);
    // So that the last segment is closed as well.
    settings.segment_age_ms = 1;
}

fn record(key: usize, text: &str) -> TestRecord {
    TestRecord::new(now_ms(), &format!("k{key}"), text)
}

/// Headers of all batches, each found from every offset before it.
fn all(plane: &DataPlane, topic: palisade_log::TopicId) -> Vec<BatchHeader> {
    let (start, end) = plane.offsets_of(topic, P0).unwrap();
    let mut found = Vec::new();
    let mut next = start.0;
    while next < end.0 {
        let fetched = fetch(plane, topic, next).unwrap();
        for part in batches(&fetched.records) {
            let (header, bytes) = part.unwrap();
            assert_eq!(header.crc, crc_fast::crc32_iscsi(&bytes[21..]));
            assert!(header.last_offset() >= next);
            next = header.last_offset() + 1;
            found.push(header);
        }
    }
    found
}

fn count(plane: &DataPlane, topic: palisade_log::TopicId) -> i32 {
    all(plane, topic)
        .iter()
        .map(|header| header.record_count)
        .sum()
}

fn clean(plane: &DataPlane) {
    std::thread::sleep(Duration::from_millis(5));
    let options = CleanerOptions {
        bytes_per_second: None,
        ..CleanerOptions::default()
    };
    plane.clean(&options, now_ms(), &|| false);
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_go_on_across_compaction_and_restarts() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, compacted);
    let mut sequence = 0;
    for life in 0..3 {
        let plane = bench.start().await;
        let mut last = None;
        for n in 0..30 {
            let sent = TestBatch::new(vec![record(n % 4, "a"), record(n % 4, "b")])
                .producer(5, 0, sequence);
            let appended = produce(&plane, topic, &sent).await.unwrap();
            assert_eq!(appended.base_offset, Offset(i64::from(sequence)));
            sequence += 2;
            if n == 15 {
                clean(&plane);
            }
            last = Some((sent, appended));
        }
        clean(&plane);
        assert_eq!(count(&plane, topic), 4, "life {life}");
        let (sent, appended) = last.unwrap();
        assert_eq!(
            produce(&plane, topic, &sent).await.unwrap().base_offset,
            appended.base_offset,
            "sent again after it was compacted"
        );
        if life == 1 {
            plane.checkpoint().await.unwrap();
        }
        bench.kill(plane).await;
        let plane = bench.start().await;
        assert!(plane.quarantined().is_empty());
        clean(&plane);
        assert_eq!(count(&plane, topic), 4);
        let latest = plane
            .list_offset(topic, P0, ListQuery::MaxTimestamp)
            .unwrap();
        assert!(latest.is_some());
        plane.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_a_key_is_refused() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, compacted);
    let plane = bench.start().await;
    let mut nameless = record(1, "x");
    nameless.key = None;
    let sent = TestBatch::new(vec![record(0, "x"), nameless]);
    let error = produce(&plane, topic, &sent).await.unwrap_err();
    assert!(
        matches!(
            error,
            DataError::Record(RecordError::MissingKey { index: 1 })
        ),
        "{error}"
    );
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cleans_by_itself_while_records_come_and_are_read() {
    let mut bench = Bench::new();
    bench.cleaner.interval = Duration::from_millis(10);
    bench.cleaner.bytes_per_second = None;
    bench.checkpoint_wal_bytes = 5_000;
    let topic = bench.catalog.create(1, |settings| {
        compacted(settings);
        settings.segment_age_ms = 50;
    });
    let plane = bench.start().await;
    let mut answers = Vec::new();
    for n in 0..400usize {
        let sent = TestBatch::new(vec![record(n % 10, &"x".repeat(100))]);
        answers.push(plane.produce(topic, P0, Bytes::from(sent.build()), Acks::All));
        if n % 20 == 0 {
            for answer in answers.drain(..) {
                answer.await.unwrap();
            }
            all(&plane, topic);
        }
    }
    for answer in answers {
        answer.await.unwrap();
    }
    eventually("ten records are left", || count(&plane, topic) == 10).await;
    assert!(plane.cleaner_stats().segments > 0);
    assert_eq!(
        plane.offsets_of(topic, P0).unwrap(),
        (Offset(0), Offset(400))
    );
    plane.checkpoint().await.unwrap();
    bench.kill(plane).await;
    let plane = bench.start().await;
    // What was compacted after the last checkpoint is compacted again.
    eventually("ten records are left", || count(&plane, topic) == 10).await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_is_reported_until_nothing_needs_the_old_one() {
    let bench = Bench::new();
    let topic = bench
        .catalog
        .create(1, |settings| settings.segment_bytes = Some(2048));
    let plane = bench.start().await;
    for n in 0..30 {
        let sent = TestBatch::new(vec![record(n, &"x".repeat(200))]);
        produce(&plane, topic, &sent).await.unwrap();
    }
    assert!(plane.key_rotations().is_empty());
    let view = bench.catalog.topic(topic).unwrap().unwrap();
    view.keys
        .insert(DekVersion(2), SecretKey::generate().unwrap());
    let before = all(&plane, topic);
    let left = plane.key_rotations();
    assert_eq!((left.len(), left[0].topic), (1, topic));
    assert_eq!(
        (left[0].oldest, left[0].newest),
        (DekVersion(1), DekVersion(2))
    );
    assert!(
        left[0].segments_left >= 3 && left[0].bytes_left > 6000,
        "{left:?}"
    );
    clean(&plane);
    assert!(!plane.key_rotations().is_empty(), "old files are there yet");
    plane.checkpoint().await.unwrap();
    assert!(plane.key_rotations().is_empty());
    view.keys.remove(DekVersion(1));
    assert_eq!(all(&plane, topic), before);
    bench.kill(plane).await;
    let plane = bench.start().await;
    assert_eq!(all(&plane, topic), before);
    assert!(plane.key_rotations().is_empty());
    plane.shutdown().await;
}
