use std::time::Duration;

use bytes::Bytes;
use palisade_log::Offset;

use super::bench::{Bench, P0, batch, produce, read_values};
use crate::{Acks, DataError};

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_sent_again_keeps_its_offset_across_restarts() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    let one = batch("one", 2).producer(7, 0, 0);
    let two = batch("two", 2).producer(7, 0, 2);
    assert_eq!(
        produce(&plane, topic, &one).await.unwrap().base_offset,
        Offset(0)
    );
    plane.checkpoint().await.unwrap();
    assert_eq!(
        produce(&plane, topic, &two).await.unwrap().base_offset,
        Offset(2)
    );
    for (batch, offset) in [(&one, 0), (&two, 2)] {
        assert_eq!(
            produce(&plane, topic, batch).await.unwrap().base_offset,
            Offset(offset)
        );
    }
    bench.kill(plane).await;
    let plane = bench.start().await;
    for (batch, offset) in [(&one, 0), (&two, 2)] {
        assert_eq!(
            produce(&plane, topic, batch).await.unwrap().base_offset,
            Offset(offset)
        );
    }
    assert_eq!(plane.producers(topic, P0).unwrap()[0].last_sequence, 3);
    assert_eq!(read_values(&plane, topic).len(), 4);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_sent_twice_while_in_flight_is_appended_once() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    let send = |batch: &crate::records::builder::TestBatch| {
        plane.produce(topic, P0, Bytes::from(batch.build()), Acks::All)
    };
    let batches: Vec<_> = (0..4)
        .map(|n| batch(&n.to_string(), 1).producer(7, 0, n))
        .collect();
    let answers = [
        send(&batches[0]),
        send(&batches[1]),
        send(&batches[1]),
        send(&batches[2]),
    ];
    let mut results = Vec::new();
    for answer in answers {
        results.push(answer.await.map(|appended| appended.base_offset.0));
    }
    assert_eq!(
        results[..3]
            .iter()
            .map(|result| *result.as_ref().unwrap())
            .collect::<Vec<_>>(),
        [0, 1, 1]
    );
    // The place promised to the third was behind the one that the second copy left empty.
    if let Err(error) = &results[3] {
        assert!(matches!(error, DataError::OutOfTurn), "{error}");
        // Until every answer is in, also the one that nobody waited for: the partition's creation.
        let again = loop {
            match send(&batches[2]).await {
                Err(DataError::OutOfTurn) => tokio::task::yield_now().await,
                other => break other.unwrap(),
            }
        };
        assert_eq!(again.base_offset, Offset(2));
    }
    assert_eq!(send(&batches[3]).await.unwrap().base_offset, Offset(3));
    assert_eq!(read_values(&plane, topic), ["0-0", "1-0", "2-0", "3-0"]);
    plane.shutdown().await;
}

/// Of batches that a client sends at once, the first may meet a broker that does not lead yet, and a later one the same broker when it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_overtakes_the_first_of_its_producer_is_refused_until_that_is_there() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    let (first, later) = (
        batch("first", 2).producer(7, 0, 0),
        batch("later", 1).producer(7, 0, 2),
    );
    let early = produce(&plane, topic, &later).await.unwrap_err();
    assert!(
        matches!(
            early,
            DataError::OutOfOrderSequence {
                sequence: 2,
                expected: 0,
                ..
            }
        ),
        "{early}"
    );
    for (sent, offset) in [(&first, 0), (&later, 2)] {
        // Until every answer is in, also the one that nobody waited for: the partition's creation.
        let appended = loop {
            match produce(&plane, topic, sent).await {
                Err(DataError::OutOfTurn) => tokio::task::yield_now().await,
                other => break other.unwrap(),
            }
        };
        assert_eq!(appended.base_offset, Offset(offset));
    }
    assert_eq!(
        read_values(&plane, topic),
        ["first-0", "first-1", "later-0"]
    );
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_and_old_epochs_are_refused_and_appending_goes_on() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    produce(&plane, topic, &batch("a", 2).producer(7, 1, 0))
        .await
        .unwrap();
    let gap = produce(&plane, topic, &batch("b", 1).producer(7, 1, 5))
        .await
        .unwrap_err();
    assert!(
        matches!(
            gap,
            DataError::OutOfOrderSequence {
                sequence: 5,
                expected: 2,
                ..
            }
        ),
        "{gap}"
    );
    // Until every answer is in, that of making the partition included, appends are told to come again.
    let fenced = loop {
        match produce(&plane, topic, &batch("b", 1).producer(7, 0, 0))
            .await
            .unwrap_err()
        {
            DataError::OutOfTurn => tokio::time::sleep(Duration::from_millis(5)).await,
            error => break error,
        }
    };
    assert!(
        matches!(
            fenced,
            DataError::ProducerFenced {
                epoch: 0,
                current: 1,
                ..
            }
        ),
        "{fenced}"
    );
    let next = produce(&plane, topic, &batch("b", 1).producer(7, 1, 2))
        .await
        .unwrap();
    assert_eq!(
        next.base_offset,
        Offset(2),
        "what was refused took no offset"
    );
    assert_eq!(
        produce(&plane, topic, &batch("c", 1))
            .await
            .unwrap()
            .base_offset,
        Offset(3),
        "nor without a producer id"
    );
    plane.shutdown().await;
}
