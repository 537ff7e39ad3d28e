use std::time::Duration;

use bytes::Bytes;
use palisade_log::{LeaderEpoch, Offset, PartitionIndex, TopicId};
use tokio::time::Instant;

use super::bench::{Bench, Opened, P0, batch, fetch, produce, read_values};
use crate::{
    Acks, DataError, Isolation, ListQuery,
    records::{
        BatchHeader, RecordError, TimestampType, batches,
        builder::{TestBatch, TestRecord},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_produced_is_fetched() {
    let bench = Bench::new();
    let topic = bench.catalog.create(2, |_| {});
    let plane = bench.start().await;
    let empty = fetch(&plane, topic, 0).unwrap();
    assert!(
        empty.records.is_empty() && empty.high_watermark == Offset(0),
        "a partition nobody wrote to is empty"
    );

    let first = produce(&plane, topic, &batch("a", 3)).await.unwrap();
    let second = produce(&plane, topic, &batch("b", 2)).await.unwrap();
    assert_eq!(
        (first.base_offset, second.base_offset),
        (Offset(0), Offset(3))
    );
    assert_eq!(
        (first.log_append_time, first.log_start_offset),
        (None, Offset(0))
    );
    let fetched = fetch(&plane, topic, 0).unwrap();
    assert_eq!(
        (
            fetched.high_watermark,
            fetched.last_stable_offset,
            fetched.log_start_offset
        ),
        (Offset(5), Offset(5), Offset(0))
    );
    let headers: Vec<_> = batches(&fetched.records)
        .map(|part| part.unwrap().0)
        .collect();
    let epoch = plane.leader_epoch(topic, P0).unwrap();
    assert_eq!(
        headers
            .iter()
            .map(|header| (header.base_offset, LeaderEpoch(header.leader_epoch)))
            .collect::<Vec<_>>(),
        [(0, epoch), (3, epoch)]
    );
    assert_eq!(
        read_values(&plane, topic),
        ["a-0", "a-1", "a-2", "b-0", "b-1"]
    );

    // The batch that holds the offset comes whole, and one comes whatever the limit.
    let inside = plane
        .fetch(topic, P0, Offset(4), 1, Isolation::ReadCommitted)
        .and_then(Opened::of)
        .unwrap();
    assert_eq!(BatchHeader::parse(&inside.records).unwrap().base_offset, 3);
    assert!(fetch(&plane, topic, 5).unwrap().records.is_empty());
    for offset in [-1, 6] {
        assert!(matches!(
            fetch(&plane, topic, offset),
            Err(DataError::OffsetOutOfRange { .. })
        ));
    }
    plane.shutdown().await;
    assert!(matches!(
        produce(&plane, topic, &batch("c", 1)).await,
        Err(DataError::Stopped)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_order_are_appended_in_order_without_waiting() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    let answers: Vec<_> = (0..200)
        .map(|n| {
            plane.produce(
                topic,
                P0,
                Bytes::from(batch(&n.to_string(), 1).build()),
                Acks::Leader,
            )
        })
        .collect();
    // In the other order, and some not at all.
    for (n, answer) in answers.into_iter().enumerate().rev() {
        if n % 3 == 0 {
            drop(answer);
        } else {
            assert_eq!(answer.await.unwrap().base_offset, Offset(n as i64));
        }
    }
    assert_eq!(
        read_values(&plane, topic),
        (0..200).map(|n| format!("{n}-0")).collect::<Vec<_>>()
    );
    assert_eq!(
        produce(&plane, topic, &batch("x", 1))
            .await
            .unwrap()
            .base_offset,
        Offset(200),
        "answers that nobody waits for count"
    );
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_fills_up_to_the_limit_across_segments() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    let size = batch("0123456789", 60).build().len();
    for _ in 0..40 {
        produce(&plane, topic, &batch("0123456789", 60))
            .await
            .unwrap();
    }
    let limit = size * 20;
    let fetched = plane
        .fetch(topic, P0, Offset(0), limit, Isolation::ReadUncommitted)
        .unwrap();
    assert!(
        fetched.records.len() <= limit && fetched.records.len() > limit * 3 / 4,
        "{} of {limit}",
        fetched.records.len()
    );
    assert_eq!(read_values(&plane, topic).len(), 2400);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why_and_leave_no_gap() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |settings| {
        settings.rules.keys_required = true;
        settings.min_insync_replicas = 2;
    });
    let plane = bench.start().await;
    let error = produce(&plane, topic, &batch("a", 1)).await.unwrap_err();
    assert!(
        matches!(error, DataError::NotEnoughReplicas { have: 1, need: 2 }),
        "{error}"
    );
    bench
        .catalog
        .change(topic, |settings| settings.min_insync_replicas = 1);
    let mut keyless = batch("a", 2);
    keyless.records[1].key = None;
    let error = produce(&plane, topic, &keyless).await.unwrap_err();
    assert!(
        matches!(
            error,
            DataError::Record(RecordError::MissingKey { index: 1 })
        ),
        "{error}"
    );
    let unknown = plane
        .produce(
            topic,
            PartitionIndex(1),
            Bytes::from(batch("a", 1).build()),
            Acks::All,
        )
        .await;
    assert!(matches!(unknown, Err(DataError::UnknownPartition { .. })));
    assert!(matches!(
        fetch(&plane, TopicId::random(), 0),
        Err(DataError::UnknownPartition { .. })
    ));
    assert_eq!(
        produce(&plane, topic, &batch("a", 1))
            .await
            .unwrap()
            .base_offset,
        Offset(0)
    );
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_append_time_is_the_brokers() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |settings| {
        settings.rules.timestamp_type = TimestampType::LogAppendTime
    });
    let plane = bench.start().await;
    let old = TestBatch::new(vec![TestRecord::new(1000, "k", "v")]);
    let time = produce(&plane, topic, &old)
        .await
        .unwrap()
        .log_append_time
        .unwrap();
    assert!(time > 1_600_000_000_000);
    let listed = plane
        .list_offset(topic, P0, ListQuery::At(2000))
        .unwrap()
        .unwrap();
    assert_eq!((listed.offset, listed.timestamp), (Offset(0), time));
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_listed_by_role_and_by_time() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    let at = |query| {
        plane
            .list_offset(topic, P0, query)
            .unwrap()
            .map(|listed| (listed.offset.0, listed.timestamp))
    };
    assert_eq!(at(ListQuery::Earliest), Some((0, -1)));
    assert_eq!(at(ListQuery::MaxTimestamp), None);
    for times in [[100, 300], [200, 250], [500, 400]] {
        let records = times.map(|time| TestRecord::new(time, "k", "v")).to_vec();
        produce(&plane, topic, &TestBatch::new(records))
            .await
            .unwrap();
    }
    assert_eq!(at(ListQuery::Earliest), Some((0, -1)));
    assert_eq!(at(ListQuery::Latest), Some((6, -1)));
    assert_eq!(at(ListQuery::MaxTimestamp), Some((4, 500)));
    assert_eq!(at(ListQuery::At(0)), Some((0, 100)));
    assert_eq!(at(ListQuery::At(101)), Some((1, 300)));
    assert_eq!(at(ListQuery::At(301)), Some((4, 500)));
    assert_eq!(at(ListQuery::At(501)), None);

    assert_eq!(
        plane
            .delete_records(topic, P0, Some(Offset(2)))
            .await
            .unwrap(),
        Offset(2)
    );
    assert_eq!(at(ListQuery::At(0)), Some((2, 200)));
    assert_eq!(at(ListQuery::Earliest), Some((2, -1)));
    assert_eq!(
        plane
            .delete_records(topic, P0, Some(Offset(1)))
            .await
            .unwrap(),
        Offset(2),
        "never back"
    );
    assert_eq!(
        plane
            .delete_records(topic, P0, Some(Offset(5)))
            .await
            .unwrap(),
        Offset(5)
    );
    assert_eq!(
        at(ListQuery::At(450)),
        None,
        "the record at 500 is gone although its batch is there"
    );
    assert!(matches!(
        fetch(&plane, topic, 4),
        Err(DataError::OffsetOutOfRange { .. })
    ));
    assert!(matches!(
        plane.delete_records(topic, P0, Some(Offset(7))).await,
        Err(DataError::OffsetOutOfRange { .. })
    ));
    assert_eq!(
        plane.delete_records(topic, P0, None).await.unwrap(),
        Offset(6)
    );
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_ends_with_data_or_in_time() {
    let bench = Bench::new();
    let topic = bench.catalog.create(2, |_| {});
    let plane = bench.start().await;
    let wanted = [
        (topic, P0, Offset(0)),
        (topic, PartitionIndex(1), Offset(0)),
    ];
    let started = Instant::now();
    plane
        .wait_for_data(&wanted, 1, started + Duration::from_millis(150))
        .await;
    assert!(
        started.elapsed() >= Duration::from_millis(150),
        "nothing came"
    );

    let later = Instant::now() + Duration::from_secs(60);
    let waits = {
        let plane = plane.clone();
        tokio::spawn(async move { plane.wait_for_data(&wanted, 1, later).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waits.is_finished());
    plane
        .produce(
            topic,
            PartitionIndex(1),
            Bytes::from(batch("a", 1).build()),
            Acks::All,
        )
        .await
        .unwrap();
    tokio::time::timeout(Duration::from_secs(30), waits)
        .await
        .expect("woken by the second partition")
        .unwrap();

    let started = Instant::now();
    plane
        .wait_for_data(&wanted, 1 << 20, started + Duration::from_millis(150))
        .await;
    assert!(
        started.elapsed() >= Duration::from_millis(150),
        "less than asked for is there"
    );
    // Counted to the byte: what is there and what comes.
    let size = fetch(&plane, topic, 0).unwrap().records.len();
    let there = plane.fetch(
        topic,
        PartitionIndex(1),
        Offset(0),
        1,
        Isolation::ReadUncommitted,
    );
    assert_eq!(
        (size, there.unwrap().records.len()),
        (0, batch("a", 1).build().len())
    );
    let one = batch("a", 1).build().len();
    for (bytes, enough) in [(2 * one, true), (2 * one + 1, false)] {
        let topic = bench.catalog.create(1, |_| {});
        produce(&plane, topic, &batch("a", 1)).await.unwrap();
        let waits = {
            let plane = plane.clone();
            tokio::spawn(async move {
                plane
                    .wait_for_data(&[(topic, P0, Offset(0))], bytes, later)
                    .await
            })
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waits.is_finished(), "half of it is there");
        produce(&plane, topic, &batch("a", 1)).await.unwrap();
        if enough {
            tokio::time::timeout(Duration::from_secs(30), waits)
                .await
                .expect("all of it is there")
                .unwrap();
        } else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!waits.is_finished(), "{bytes} bytes");
            waits.abort();
        }
    }
    plane
        .wait_for_data(&[(topic, P0, Offset(99))], 1, later)
        .await;
    plane
        .wait_for_data(&[(TopicId::random(), P0, Offset(0))], 1, later)
        .await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaders_epoch_grows_with_each_start_and_its_end_is_known() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let mut epochs = Vec::new();
    for n in 0..3 {
        let plane = bench.start().await;
        epochs.push(plane.leader_epoch(topic, P0).unwrap());
        produce(&plane, topic, &batch(&n.to_string(), 2))
            .await
            .unwrap();
        if n == 2 {
            let end_of = |epoch| plane.offset_for_leader_epoch(topic, P0, epoch).unwrap();
            assert_eq!(end_of(epochs[0]), Some((epochs[0], Offset(2))));
            assert_eq!(end_of(epochs[1]), Some((epochs[1], Offset(4))));
            assert_eq!(end_of(epochs[2]), Some((epochs[2], Offset(6))));
            assert_eq!(end_of(LeaderEpoch(epochs[2].0 + 1)), None);
        }
        plane.shutdown().await;
    }
    assert!(epochs[0] < epochs[1] && epochs[1] < epochs[2]);
}
