//! Damaged segments, in a cluster: repaired from another replica, while clients are served.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use palisade_log::{Offset, TopicId};
use palisade_seal::{DekVersion, SecretKey};

use super::{
    bench::{Bench, Opened, P0, batch, eventually, fetch, produce},
    cluster::{Cluster, SHARD},
    replicas::{produce_somewhere, same_everywhere},
};
use crate::{
    Catalog, CleanerOptions, Compaction, DataError, DataPlane, Isolation, ScrubOptions,
    records::{
        batches,
        builder::{TestBatch, TestRecord},
    },
    shard_data::now_ms,
};

/// The segments of a topic's first partition, oldest first, without what is quarantined.
fn segments(bench: &Bench, topic: TopicId) -> Vec<PathBuf> {
    let shard = bench.data_dir().join(format!("shard-{SHARD}"));
    let dirs = fs::read_dir(shard).unwrap().map(|dir| dir.unwrap().path());
    let of_topic = |dir: &PathBuf| {
        let name = dir.file_name().unwrap().to_str().unwrap();
        name.starts_with(&topic.to_string())
    };
    let mut files: Vec<_> = dirs
        .filter(of_topic)
        .flat_map(|dir| fs::read_dir(dir).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    files.sort();
    files
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn base_of(path: &Path) -> i64 {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.split('.').next().unwrap().parse().unwrap()
}

async fn filled(cluster: &Cluster, topic: TopicId) {
    produce_somewhere(cluster, topic, &batch("0", 40)).await;
    cluster.settled(SHARD).await;
    // Who follows cuts segments as the topic says from its next housekeeping on, which may come too late for these few records.
    for at in 0..3 {
        cluster.plane(at).follow_settings(|_| true);
    }
    for n in 1..60 {
        produce_somewhere(cluster, topic, &batch(&n.to_string(), 40)).await;
    }
    cluster.settled(SHARD).await;
}

/// Reads everything that a broker serves, whoever leads.
fn read_here(plane: &DataPlane, topic: TopicId) -> Result<i64, DataError> {
    let (start, end) = plane.offsets_here(topic, P0)?;
    let mut next = start;
    while next < end {
        let isolation = Isolation::ReadUncommitted;
        let fetched = plane.fetch_replica(topic, P0, next, 1 << 20, isolation)?;
        for part in batches(&Opened::of(fetched)?.records) {
            next = Offset(part.unwrap().0.last_offset() + 1);
        }
    }
    Ok(next.0)
}

async fn repaired(plane: &DataPlane, count: u64) {
    eventually("the damage is repaired", || {
        plane.repair_stats().repaired == count && plane.quarantined().is_empty()
    })
    .await;
    assert_eq!(plane.repair_stats().found, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_repaired_from_its_leader() {
    let mut cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    filled(&cluster, topic).await;
    let at = (cluster.leader(SHARD).await + 1) % 3;
    let files = segments(&cluster.brokers[at].bench, topic);
    assert!(files.len() >= 3, "{files:?}");
    for file in &files[..2] {
        flip(file);
    }
    let plane = cluster.plane(at);
    for file in &files[..2] {
        let isolation = Isolation::ReadUncommitted;
        let mut from = Offset(base_of(file));
        let error = loop {
            match plane.fetch_replica(topic, P0, from, 1, isolation) {
                Ok(fetched) => {
                    let opened = Opened::of(fetched).unwrap();
                    let (header, _) = batches(&opened.records).next().unwrap().unwrap();
                    from = Offset(header.last_offset() + 1);
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, DataError::Corrupt(_)), "{error}");
    }
    repaired(&plane, 2).await;
    assert_eq!(same_everywhere(&cluster, topic), 60);
    assert_eq!(read_here(&plane, topic).unwrap(), 2400);
    assert_eq!(plane.repair_stats().handed_over, 0);
    // The damaged files go with the next checkpoint, and what came in their place survives a crash after it.
    plane.checkpoint().await.unwrap();
    let dir = files[0].parent().unwrap();
    let left = fs::read_dir(dir).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().ends_with("quarantined")
    });
    assert_eq!(left.count(), 0);
    drop(plane);
    cluster.kill(at).await;
    cluster.start(at).await;
    cluster.settled(SHARD).await;
    assert!(cluster.plane(at).quarantined().is_empty());
    assert_eq!(same_everywhere(&cluster, topic), 60);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_and_is_repaired() {
    let cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    filled(&cluster, topic).await;
    let old = cluster.leader(SHARD).await;
    let plane = cluster.plane(old);
    let files = segments(&cluster.brokers[old].bench, topic);
    flip(&files[1]);
    assert!(matches!(
        read_here(&plane, topic),
        Err(DataError::Corrupt(_))
    ));
    eventually("somebody else leads", || {
        plane.leads(SHARD).is_none()
            && plane.shard_status(SHARD).unwrap().leader != Some(cluster.brokers[old].id)
    })
    .await;
    let new = cluster.leader(SHARD).await;
    assert_ne!(new, old);
    let marked = cluster.plane(new).under_repair(SHARD);
    assert!(marked.contains(&cluster.brokers[old].id), "{marked:?}");
    repaired(&plane, 1).await;
    assert_eq!(plane.repair_stats().handed_over, 1);
    produce_somewhere(&cluster, topic, &batch("on", 1)).await;
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 61);
    // It leads again with what it was given.
    let to = cluster.brokers[old].id;
    cluster.plane(new).transfer(SHARD, to).await.unwrap();
    eventually("it leads again", || plane.leads(SHARD).is_some()).await;
    assert_eq!(
        fetch(&plane, topic, base_of(&files[1]))
            .unwrap()
            .high_watermark,
        Offset(2401)
    );
    assert_eq!(read_here(&plane, topic).unwrap(), 2401);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_different_places_is_repaired_everywhere_and_of_the_same_place_nowhere() {
    let cluster = Cluster::form(3).await;
    let topic = cluster
        .catalog
        .create(1, |settings| settings.segment_bytes = Some(8 << 10));
    filled(&cluster, topic).await;
    for at in 0..3 {
        let files = segments(&cluster.brokers[at].bench, topic);
        assert!(files.len() >= 4, "{files:?}");
        flip(&files[0]);
        flip(&files[1 + at % 3]);
    }
    for at in 0..3 {
        let plane = cluster.plane(at);
        // All of it is met.
        let (_, end) = plane.offsets_here(topic, P0).unwrap();
        for offset in (0..end.0).step_by(40) {
            let isolation = Isolation::ReadUncommitted;
            drop(plane.fetch_replica(topic, P0, Offset(offset), 1, isolation));
        }
    }
    for at in 0..3 {
        let plane = cluster.plane(at);
        eventually("what others have is repaired", || {
            let left = plane.quarantined();
            left.len() == 1 && left[0].base == Offset(0)
        })
        .await;
        let isolation = Isolation::ReadUncommitted;
        let from = plane.quarantined()[0].end;
        assert!(plane.fetch_replica(topic, P0, from, 1, isolation).is_ok());
        let refused = plane.fetch_replica(topic, P0, Offset(0), 1, isolation);
        assert!(
            matches!(refused, Err(DataError::Corrupt(_))),
            "never served"
        );
    }
    // Producers go on.
    produce_somewhere(&cluster, topic, &batch("on", 1)).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_lost_or_cut_while_the_broker_was_down_is_repaired() {
    let mut cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    filled(&cluster, topic).await;
    let at = (cluster.leader(SHARD).await + 1) % 3;
    cluster.plane(at).checkpoint().await.unwrap();
    let files = segments(&cluster.brokers[at].bench, topic);
    cluster.kill(at).await;
    fs::remove_file(&files[0]).unwrap();
    let file = fs::File::options().write(true).open(&files[1]).unwrap();
    file.set_len(700).unwrap();
    cluster.start(at).await;
    cluster.settled(SHARD).await;
    repaired(&cluster.plane(at), 2).await;
    assert_eq!(same_everywhere(&cluster, topic), 60);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_others_keeps_its_damage_quarantined() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    for n in 0..60 {
        let sent = batch(&n.to_string(), 40);
        produce(&plane, topic, &sent).await.unwrap();
    }
    flip(&segments(&bench, topic)[1]);
    assert!(read_here(&plane, topic).is_err());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let stats = plane.repair_stats();
    assert_eq!((stats.found, stats.repaired, stats.handed_over), (1, 0, 0));
    assert_eq!(plane.quarantined().len(), 1);
    assert!(plane.leads(SHARD).is_some());
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_nobody_has_met_is_found() {
    let mut cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    filled(&cluster, topic).await;
    let at = (cluster.leader(SHARD).await + 1) % 3;
    cluster.plane(at).checkpoint().await.unwrap();
    let files = segments(&cluster.brokers[at].bench, topic);
    cluster.kill(at).await;
    flip(&files[1]);
    cluster.scrub = ScrubOptions {
        bytes_per_second: 10 << 20,
        first: Duration::from_millis(200),
        every: Duration::from_millis(200),
    };
    cluster.start(at).await;
    let plane = cluster.plane(at);
    repaired(&plane, 1).await;
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 60);
    let scrubbed = plane.repair_stats().scrubbed;
    eventually("it goes on", || {
        plane.repair_stats().scrubbed > scrubbed + 100_000
    })
    .await;
    assert!(plane.quarantined().is_empty(), "and finds nothing more");
    cluster.shutdown().await;
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
async fn what_was_sealed_anew_elsewhere_has_the_same_records() {
    let cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    filled(&cluster, topic).await;
    let leader = cluster.leader(SHARD).await;
    let at = (leader + 1) % 3;
    let view = cluster.catalog.topic(topic).unwrap().unwrap();
    view.keys
        .insert(DekVersion(2), SecretKey::generate().unwrap());
    for other in [leader, (leader + 2) % 3] {
        clean(&cluster.plane(other));
    }
    let plane = cluster.plane(at);
    flip(&segments(&cluster.brokers[at].bench, topic)[1]);
    assert!(read_here(&plane, topic).is_err());
    repaired(&plane, 1).await;
    assert_eq!(read_here(&plane, topic).unwrap(), 2400);
    let read = |at: usize, offset| {
        let isolation = Isolation::ReadUncommitted;
        let plane = cluster.plane(at);
        let fetched = plane.fetch_replica(topic, P0, Offset(offset), 1, isolation);
        fetched.and_then(Opened::of).unwrap().records
    };
    for offset in (0..2400).step_by(40) {
        assert_eq!(read(at, offset), read(leader, offset), "offset {offset}");
    }
    cluster.shutdown().await;
}

/// Last value of each key, as a consumer that reads from the start sees it; `None`: deleted.
fn latest(plane: &DataPlane, topic: TopicId) -> Vec<(i64, i32)> {
    let (start, end) = plane.offsets_here(topic, P0).unwrap();
    let (mut next, mut found) = (start, Vec::new());
    while next < end {
        let isolation = Isolation::ReadUncommitted;
        let fetched = plane.fetch_replica(topic, P0, next, 1 << 20, isolation);
        for part in batches(&fetched.and_then(Opened::of).unwrap().records) {
            let header = part.unwrap().0;
            found.push((header.base_offset, header.record_count));
            next = Offset(header.last_offset() + 1);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_partition_is_repaired_from_one_that_was_compacted_otherwise() {
    for damaged_is_compacted in [false, true] {
        let cluster = Cluster::form(3).await;
        let topic = cluster.catalog.create(1, |settings| {
            settings.compaction = Some(Compaction {
                // Tombstones go with the pass after the one that found them.
                delete_retention_ms: 0,
                min_dirty_ratio: 0.0,
                min_lag_ms: 0,
                max_lag_ms: i64::MAX,
            });
            settings.delete = false;
            settings.segment_bytes = Some(2048);
            settings.segment_age_ms = 1;
        });
        for n in 0..40 {
            let mut record = TestRecord::new(now_ms(), &format!("k{}", n % 7), &"x".repeat(100));
            if n % 7 == 3 && n > 30 {
                record.value = None;
            }
            produce_somewhere(&cluster, topic, &TestBatch::new(vec![record])).await;
        }
        cluster.settled(SHARD).await;
        let leader = cluster.leader(SHARD).await;
        let at = (leader + 1) % 3;
        let others = [leader, (leader + 2) % 3];
        let plane = cluster.plane(at);
        // The one that is damaged lags behind, or is ahead.
        let compacted: &[usize] = if damaged_is_compacted { &[at] } else { &others };
        for at in compacted {
            for _ in 0..3 {
                clean(&cluster.plane(*at));
            }
        }
        // Files that were rewritten go with it.
        plane.checkpoint().await.unwrap();
        let file = segments(&cluster.brokers[at].bench, topic)[0].clone();
        flip(&file);
        eventually("it is met", || {
            drop(read_here(&plane, topic));
            plane.repair_stats().found == 1
        })
        .await;
        eventually("the damage is repaired", || plane.quarantined().is_empty()).await;
        if damaged_is_compacted {
            // It takes what was not compacted there, and compacts it again.
            let log = |at: usize| {
                let located = cluster.plane(at).locate_replica(topic, P0).unwrap();
                located.partition().unwrap()
            };
            let records = latest(&plane, topic).len();
            // Its own cleaner may have been there already.
            let cleaned = log(at).log.cleaned();
            assert!(
                records > 7 || cleaned.until > Offset(0),
                "{records} batches, {cleaned:?}"
            );
        }
        for at in 0..3 {
            for _ in 0..3 {
                clean(&cluster.plane(at));
            }
        }
        let wanted = latest(&cluster.plane(leader), topic);
        assert!(wanted.len() <= 8, "{wanted:?}");
        for at in 0..3 {
            assert_eq!(latest(&cluster.plane(at), topic), wanted, "broker {at}");
        }
        cluster.shutdown().await;
    }
}
