//! The cleaner against a model: every record that was ever appended, and what compaction may and must take away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod crashes;
mod keys;
mod property;

use bench::{Bench, put, tombstone};
use palisade_log::Offset;

use crate::records::{Codec, builder::TestBatch};

#[test]
fn the_last_record_of_every_key_stays_where_it_was() {
    let mut bench = Bench::new();
    for n in 0..40i64 {
        bench.append(&TestBatch::new(vec![
            put(n, &format!("k{}", n % 5), n),
            put(n, &format!("once{n}"), n),
        ]));
    }
    let before = bench.log.size();
    bench.clean();
    bench.check();
    assert!(bench.log.size() < before);
    let left: Vec<_> = bench.records().into_keys().collect();
    let expected: Vec<_> = (0..80i64)
        .filter(|offset| offset % 2 == 1 || *offset >= 70)
        .collect();
    assert_eq!(left, expected);
    assert_eq!(bench.log.end_offset(), Offset(80));
    assert_eq!(bench.log.cleaned().until, Offset(80));
    let stats = bench.stats;
    bench.clean();
    assert_eq!(
        bench.stats.segments, stats.segments,
        "nothing is left to do"
    );
}

#[test]
fn tombstones_stay_for_their_time_and_then_go() {
    let mut bench = Bench::new();
    bench.append(&TestBatch::new(vec![put(1, "a", 1), put(1, "b", 1)]));
    bench.append(&TestBatch::new(vec![tombstone(2, "a")]));
    bench.append(&TestBatch::new(vec![put(3, "c", 1)]));
    bench.now = 1000;
    bench.clean();
    bench.check();
    assert_eq!(bench.offsets(), [1, 2, 3]);
    let header = bench.headers()[1];
    assert_eq!(
        header.delete_horizon(),
        Some(1000 + bench.compaction.delete_retention_ms)
    );
    assert_eq!(bench.records()[&2].timestamp, 2, "as it was");
    bench.now += bench.compaction.delete_retention_ms - 1;
    bench.clean();
    assert_eq!(bench.offsets(), [1, 2, 3]);
    bench.now += 1;
    bench.clean();
    bench.check();
    assert_eq!(bench.offsets(), [1, 3], "with nothing new to be compacted");
    assert_eq!(bench.log.cleaned().tombstones, Offset(3));
}

#[test]
fn a_tombstone_that_a_small_map_has_not_covered_gets_no_horizon_yet() {
    let mut bench = Bench::new();
    bench.key_map_bytes = 0; // the least there is: 12 keys in a pass
    for n in 0..60i64 {
        bench.append(&TestBatch::new(vec![put(n, &format!("k{n}"), n)]));
    }
    for n in 0..60i64 {
        bench.append(&TestBatch::new(vec![tombstone(n, &format!("k{n}"))]));
    }
    bench.append(&TestBatch::new(vec![put(1, "last", 1)]));
    bench.clean();
    bench.check();
    assert_eq!(bench.offsets().len(), 61, "many passes, in one call");
    bench.now += bench.compaction.delete_retention_ms;
    bench.clean();
    bench.check();
    assert_eq!(bench.offsets(), [120]);
}

#[test]
fn every_codec_is_filtered_and_stays_itself() {
    for codec in [
        Codec::None,
        Codec::Gzip,
        Codec::Snappy,
        Codec::Lz4,
        Codec::Zstd,
    ] {
        for xerial in [false, true] {
            let mut bench = Bench::new();
            for n in 0..4i64 {
                let mut batch = TestBatch::new(
                    (0..300)
                        .map(|k| put(1_000_000 + n * 50 - k, &format!("key {}", k + n * 100), k))
                        .collect(),
                )
                .codec(codec);
                batch.xerial = xerial;
                batch.records[7].headers = vec![("h".to_owned(), Some(b"v".to_vec()))];
                batch.records[299].value = None;
                bench.append(&batch);
            }
            bench.clean();
            bench.check();
            assert_eq!(bench.offsets().len(), 100 * 3 + 300);
            for header in bench.headers() {
                assert_eq!(header.attributes.codec().unwrap(), codec);
            }
        }
    }
}

#[test]
fn the_last_batch_of_a_producer_and_of_the_log_stay_empty() {
    let mut bench = Bench::new();
    bench.append(&TestBatch::new(vec![put(1, "a", 1)]).producer(7, 3, 11));
    bench.append(&TestBatch::new(vec![put(5, "a", 2), put(9, "a", 3)]).producer(8, 0, 0));
    bench.append(&TestBatch::new(vec![put(2, "b", 2)]));
    bench.append(&TestBatch::new(vec![tombstone(3, "b")]));
    bench.clean();
    bench.now += bench.compaction.delete_retention_ms;
    bench.clean();
    bench.check();
    assert_eq!(bench.offsets(), [2]);
    let headers = bench.headers();
    let shape: Vec<_> = headers
        .iter()
        .map(|header| {
            (
                header.base_offset,
                header.last_offset(),
                header.record_count,
            )
        })
        .collect();
    assert_eq!(shape, [(0, 0, 0), (1, 2, 1), (4, 4, 0)]);
    assert_eq!(
        (
            headers[0].producer_id,
            headers[0].producer_epoch,
            headers[0].base_sequence,
            headers[0].max_timestamp
        ),
        (7, 3, 11, 1)
    );
    assert_eq!(
        bench.log.max_timestamp(),
        Some(9),
        "an empty batch has no time"
    );
}

#[test]
fn records_without_a_key_go_when_a_topic_becomes_compacted() {
    let mut bench = Bench::new();
    let mut nameless = put(1, "x", 1);
    nameless.key = None;
    bench.append(&TestBatch::new(vec![nameless, put(1, "a", 1)]));
    bench.append(&TestBatch::new(vec![put(1, "b", 1)]));
    bench.clean();
    assert_eq!(bench.offsets(), [1, 2]);
}

#[test]
fn readers_of_an_old_segment_are_not_disturbed() {
    let mut bench = Bench::new();
    for n in 0..40i64 {
        bench.append(&TestBatch::new(vec![put(n, "same", n)]));
    }
    bench.save();
    let files = bench.files().len();
    bench.clean();
    assert!(
        bench.files().len() > files,
        "the old ones stay until a manifest is without them"
    );
    bench.save();
    bench.check();
    assert_eq!(bench.offsets(), [39]);
    assert!(bench.files().len() < files, "{:?}", bench.files());
}

#[test]
fn appends_go_on_in_a_new_segment_and_after_a_restart_in_a_cleaned_one() {
    let mut bench = Bench::new();
    bench.append(&TestBatch::new(vec![put(1, "a", 1)]));
    bench.append(&TestBatch::new(vec![put(1, "a", 2)]));
    bench.clean();
    bench.append(&TestBatch::new(vec![put(1, "a", 3)]));
    assert_eq!(bench.log.state().segments.len(), 2);
    bench.check();
    bench.clean();
    bench.save();
    bench.reopen();
    bench.append(&TestBatch::new(vec![put(1, "a", 4)]));
    bench.check();
    assert_eq!(bench.log.state().segments.len(), 1);
    bench.clean();
    bench.check();
    assert_eq!(bench.offsets(), [3]);
}

#[test]
fn retention_overtakes_a_rewriting() {
    let mut bench = Bench::new();
    for n in 0..40i64 {
        bench.append(&TestBatch::new(vec![put(n, "same", n)]));
    }
    let closed = bench.log.closed_segments();
    let mut rewrite = bench.log.rewrite(&closed[..2]).unwrap();
    let (meta, payload) = rewrite.next(1).unwrap().remove(0);
    rewrite.put(&meta, &payload, None).unwrap();
    bench.log.advance_start(closed[0].end);
    assert_eq!(
        rewrite
            .commit(palisade_log::segment::Cleaned::default())
            .unwrap(),
        palisade_log::segment::Rewritten::Overtaken
    );
    assert!(
        bench.files().iter().all(|name| !name.contains(".1.seg")),
        "{:?}",
        bench.files()
    );
    bench.start = closed[0].end.0;
    bench.check();
}
