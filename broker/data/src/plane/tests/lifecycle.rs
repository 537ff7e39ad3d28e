//! Topics that come and go, records that expire, groups that commit.

use std::sync::atomic::Ordering;

use palisade_coordinator::offsets::{
    CommittedOffset, GroupRecord, MemberRecord, OffsetCommand, TopicPartition,
};
use palisade_log::{Offset, TopicId};

use super::bench::{Bench, P0, batch, eventually, fetch, produce, read_values};
use crate::{
    Catalog, DataError, DataPlane,
    records::builder::{TestBatch, TestRecord},
};

fn dirs(bench: &Bench) -> usize {
    ["shard-1", "shard-2"]
        .iter()
        .flat_map(|shard| std::fs::read_dir(bench.data_dir().join(shard)).unwrap())
        .filter(|entry| entry.as_ref().unwrap().path().is_dir())
        .count()
}

fn commit(topic: TopicId, offset: i64) -> OffsetCommand {
    commit_of("group", topic, offset)
}

fn commit_of(group: &str, topic: TopicId, offset: i64) -> OffsetCommand {
    let partition = TopicPartition {
        topic: topic.0,
        partition: 0,
    };
    let committed = CommittedOffset {
        offset,
        leader_epoch: -1,
        metadata: "m".to_owned(),
        committed_at: 1,
        expires_at: None,
    };
    OffsetCommand::Commit {
        group: group.to_owned(),
        offsets: vec![(partition, committed)],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_leaves_nothing_behind() {
    let bench = Bench::new();
    let (gone, stays) = (
        bench.catalog.create(1, |_| {}),
        bench.catalog.create(1, |_| {}),
    );
    let plane = bench.start().await;
    for topic in [gone, stays] {
        produce(&plane, topic, &batch("a", 5)).await.unwrap();
        plane
            .apply_offsets("group", commit(topic, 3))
            .await
            .unwrap();
    }
    assert_eq!(dirs(&bench), 2);
    bench.catalog.delete(gone);
    assert!(matches!(
        produce(&plane, gone, &batch("a", 1)).await,
        Err(DataError::UnknownPartition { .. })
    ));
    eventually("the directory is gone", || dirs(&bench) == 1).await;
    let left = |plane: &crate::DataPlane| {
        plane
            .read_offsets("group", |offsets| offsets.of_group("group").count())
            .unwrap()
    };
    eventually("its offsets are gone", || left(&plane) == 1).await;
    // Replayed on top of the checkpoint before, and again.
    bench.kill(plane).await;
    for _ in 0..2 {
        let plane = bench.start().await;
        assert_eq!((dirs(&bench), left(&plane)), (1, 1));
        assert!(plane.quarantined().is_empty());
        assert_eq!(read_values(&plane, stays).len(), 5);
        bench.kill(plane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_lags_behind_deletes_nothing() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let other = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    produce(&plane, topic, &batch("a", 5)).await.unwrap();
    // In the shard of the topic.
    plane
        .apply_offsets("grou", commit_of("grou", topic, 3))
        .await
        .unwrap();
    let version = bench.catalog.version();
    let view = bench.catalog.forget(topic, version - 1).unwrap();
    produce(&plane, other, &batch("a", 1)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    bench.catalog.remember(topic, view, version + 1);
    assert_eq!(read_values(&plane, topic).len(), 5);
    assert_eq!(committed(&plane, "grou", topic), Some(3));
    plane.shutdown().await;
}

/// A shard that holds nothing of a topic but offsets cannot tell by itself whether the metadata are too old to know it.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_has_lost_the_others_deletes_nothing() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |settings| {
        settings.retention_ms = Some(1);
    });
    let plane = bench.start().await;
    bench.catalog.lags.store(true, Ordering::SeqCst);
    plane
        .apply_offsets("group", commit(topic, 4))
        .await
        .unwrap();
    let version = bench.catalog.version();
    let view = bench.catalog.forget(topic, version + 1).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    assert_eq!(committed(&plane, "group", topic), Some(4));
    // With metadata that count, it is gone.
    bench.catalog.lags.store(false, Ordering::SeqCst);
    bench.catalog.remember(topic, view, version + 2);
    bench.catalog.delete(topic);
    eventually("the offsets are dropped", || {
        committed(&plane, "group", topic).is_none()
    })
    .await;
    plane.shutdown().await;
}

fn committed(plane: &DataPlane, group: &str, topic: TopicId) -> Option<i64> {
    let partition = TopicPartition {
        topic: topic.0,
        partition: 0,
    };
    plane
        .read_offsets(group, |offsets| {
            offsets.get(group, partition).map(|found| found.offset)
        })
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_offsets_survive_kills_and_checkpoints() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let partition = TopicPartition {
        topic: topic.0,
        partition: 0,
    };
    for (n, checkpoint) in [(1, false), (2, true), (3, false)] {
        let plane = bench.start().await;
        let read = || {
            plane
                .read_offsets("group", |offsets| {
                    offsets.get("group", partition).map(|found| found.offset)
                })
                .unwrap()
        };
        assert_eq!(read(), (n > 1).then_some(n - 1));
        assert_eq!(
            plane
                .apply_offsets("group", commit(topic, n))
                .await
                .unwrap(),
            1
        );
        assert_eq!(read(), Some(n));
        let mut groups = Vec::new();
        plane.each_offset_store(|_, offsets| groups.extend(offsets.groups().map(str::to_owned)));
        assert_eq!(groups, ["group"]);
        if checkpoint {
            plane.checkpoint().await.unwrap();
        }
        bench.kill(plane).await;
    }
}

fn membership(generation: i32) -> GroupRecord {
    GroupRecord {
        generation,
        protocol_type: "consumer".to_owned(),
        protocol: "range".to_owned(),
        leader: "m".to_owned(),
        members: vec![MemberRecord {
            member: "m".to_owned(),
            instance: None,
            client_id: "c".to_owned(),
            client_host: "/h".to_owned(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 10_000,
            protocols: vec![("range".to_owned(), bytes::Bytes::from_static(b"topics"))],
            assignment: bytes::Bytes::from_static(b"all"),
        }],
    }
}

async fn set_group(plane: &DataPlane, term: u64, generation: i32) -> usize {
    let record = Some(Box::new(membership(generation)));
    let command = OffsetCommand::set_group("group".to_owned(), term, record);
    plane.apply_offsets("group", command).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_groups_survive_with_and_without_a_checkpoint_and_belong_to_their_term() {
    let bench = Bench::new();
    let mut written = Vec::new();
    for (generation, checkpoint) in [(1, false), (2, true), (3, false)] {
        let plane = bench.start().await;
        let shard = bench.catalog.shard_of_group("group").unwrap();
        assert_eq!(plane.group_records(shard), written);
        let term = plane.leads(shard).unwrap();
        assert_eq!(set_group(&plane, term, generation).await, 1);
        assert_eq!(
            set_group(&plane, term - 1, 77).await,
            0,
            "of an earlier leader"
        );
        written = vec![("group".to_owned(), membership(generation))];
        assert_eq!(plane.group_records(shard), written);
        if checkpoint {
            plane.checkpoint().await.unwrap();
        }
        bench.kill(plane).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_expire_by_size_and_by_time() {
    let bench = Bench::new();
    let by_size = bench
        .catalog
        .create(1, |settings| settings.retention_bytes = Some(40 << 10));
    let by_time = bench
        .catalog
        .create(1, |settings| settings.retention_ms = Some(60_000));
    let compacted = bench.catalog.create(1, |settings| {
        settings.retention_ms = Some(1);
        settings.delete = false;
    });
    let plane = bench.start().await;
    for n in 0..100 {
        produce(&plane, by_size, &batch(&n.to_string(), 40))
            .await
            .unwrap();
    }
    for topic in [by_time, compacted] {
        let old = TestBatch::new(vec![TestRecord::new(1000, "k", "v"); 10]);
        produce(&plane, topic, &old).await.unwrap();
    }
    eventually("the old ones are gone", || {
        plane.log_start(by_time, P0).unwrap() == Offset(10)
    })
    .await;
    produce(&plane, by_time, &batch("young", 1)).await.unwrap();
    eventually("the first ones are gone", || {
        plane.log_start(by_size, P0).unwrap() > Offset(0)
    })
    .await;
    let size = || {
        let mut sizes = plane.log_sizes().into_iter();
        sizes.find(|size| size.topic == by_size).unwrap()
    };
    eventually("enough of them are gone", || {
        size().bytes < (40 << 10) + 2 * (20 << 10)
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    let size = size();
    assert!(
        size.bytes >= 40 << 10 && size.bytes < (40 << 10) + 2 * (20 << 10),
        "{size:?}"
    );
    assert_eq!(read_values(&plane, by_time), ["young-0"]);
    assert_eq!(read_values(&plane, compacted).len(), 10);
    let (start, end) = plane.offsets_of(by_size, P0).unwrap();
    bench.kill(plane).await;
    let plane = bench.start().await;
    assert_eq!(
        plane.offsets_of(by_size, P0).unwrap(),
        (start, end),
        "expiry is replicated like everything else"
    );
    assert!(matches!(
        fetch(&plane, by_size, 0),
        Err(DataError::OffsetOutOfRange { .. })
    ));
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_come_with_the_bytes_and_bound_the_replay() {
    let mut bench = Bench::new();
    bench.checkpoint_wal_bytes = 50_000;
    bench.wal_file_bytes = 64 << 10;
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    for n in 0..100 {
        produce(&plane, topic, &batch(&n.to_string(), 100))
            .await
            .unwrap();
    }
    eventually("a checkpoint was made", || plane.unsaved_bytes() < 50_000).await;
    // The other shard was never written to: it must not keep the log from being used again.
    plane.checkpoint().await.unwrap();
    let wal_files = || {
        std::fs::read_dir(bench.dir.path().join("wal"))
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("wal-")
            })
            .count()
    };
    eventually("the write-ahead log is released", || wal_files() <= 2).await;
    plane.shutdown().await;
    assert_eq!(
        plane.unsaved_bytes(),
        0,
        "nothing is left to replay after a shutdown"
    );
}
