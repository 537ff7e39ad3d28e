#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::{
    builder::{TestBatch, TestRecord, fix_checksum, varint},
    *,
};

const NOW: i64 = 1_700_000_000_000;
const CODECS: [Codec; 5] = [
    Codec::None,
    Codec::Gzip,
    Codec::Snappy,
    Codec::Lz4,
    Codec::Zstd,
];

fn rules() -> Rules {
    Rules {
        max_batch_bytes: 1 << 20,
        max_expanded_bytes: 64 << 20,
        timestamp_type: TimestampType::CreateTime,
        before_max_ms: i64::MAX,
        after_max_ms: 3_600_000,
        keys_required: false,
    }
}

fn two() -> TestBatch {
    TestBatch::new(vec![
        TestRecord::new(NOW, "a", "one"),
        TestRecord::new(NOW + 5, "b", "two"),
    ])
}

fn error_of(bytes: &[u8], rules: &Rules) -> RecordError {
    validate(bytes, rules, NOW).unwrap_err()
}

#[test]
fn a_batch_of_every_codec_is_accepted_and_stamped() {
    for xerial in [false, true] {
        for codec in CODECS {
            let mut batch = two().codec(codec);
            batch.xerial = xerial;
            let bytes = batch.build();
            let valid = validate(&bytes, &rules(), NOW).unwrap();
            assert_eq!(valid.header.record_count, 2, "{codec:?}");
            assert_eq!(valid.header.max_timestamp, NOW + 5);

            let mut stored = bytes.clone();
            stored[..HEADER_LEN].copy_from_slice(&valid.stamped(41, 7));
            let header = BatchHeader::parse(&stored).unwrap();
            assert_eq!(
                (
                    header.base_offset,
                    header.leader_epoch,
                    header.last_offset()
                ),
                (41, 7, 42)
            );
            assert_eq!(
                header.crc,
                crc_fast::crc32_iscsi(&stored[21..]),
                "the checksum holds after stamping"
            );
            assert_eq!(
                first_record_at_or_after(&stored, NOW + 1, 0).unwrap(),
                Some((42, NOW + 5))
            );
            assert_eq!(
                first_record_at_or_after(&stored, NOW, 42).unwrap(),
                Some((42, NOW + 5)),
                "not before the start"
            );
            assert_eq!(first_record_at_or_after(&stored, NOW + 6, 0).unwrap(), None);
            assert_eq!(
                first_record_with_max_timestamp(&stored).unwrap(),
                Some((42, NOW + 5))
            );
        }
    }
}

#[test]
fn log_append_time_replaces_the_timestamps_and_the_checksum() {
    let bytes = two().codec(Codec::Lz4).build();
    let rules = Rules {
        timestamp_type: TimestampType::LogAppendTime,
        after_max_ms: 0,
        ..rules()
    };
    let valid = validate(&bytes, &rules, NOW - 99).unwrap();
    let mut stored = bytes.clone();
    stored[..HEADER_LEN].copy_from_slice(&valid.stamped(0, 0));
    let header = BatchHeader::parse(&stored).unwrap();
    assert_eq!(
        header.attributes.timestamp_type(),
        TimestampType::LogAppendTime
    );
    assert_eq!(header.max_timestamp, NOW - 99);
    assert_eq!(header.crc, crc_fast::crc32_iscsi(&stored[21..]));
    assert_eq!(
        first_record_at_or_after(&stored, NOW - 99, 0).unwrap(),
        Some((0, NOW - 99))
    );
}

#[test]
fn a_wrong_max_timestamp_is_corrected() {
    let mut bytes = two().build();
    bytes[35..43].copy_from_slice(&(NOW + 1_000_000).to_be_bytes());
    fix_checksum(&mut bytes);
    let valid = validate(&bytes, &rules(), NOW).unwrap();
    bytes[..HEADER_LEN].copy_from_slice(&valid.stamped(0, 0));
    assert_eq!(BatchHeader::parse(&bytes).unwrap().max_timestamp, NOW + 5);
    assert!(
        validate(&bytes, &rules(), NOW).is_ok(),
        "the corrected batch is whole"
    );
}

/// Kafka's consumers would not get past such batches.
#[test]
fn records_in_anything_but_one_lz4_frame_are_refused() {
    let plain = two().build().split_off(HEADER_LEN);
    let lz4 = two().codec(Codec::Lz4);
    let whole = lz4.compress(&plain);
    let refusal = |block: &[u8]| {
        let bytes = lz4.raw(NOW, NOW + 5, 2, block);
        validate(&bytes, &rules(), NOW).unwrap_err().to_string()
    };
    for missing in 1..=4 {
        let reason = refusal(&whole[..whole.len() - missing]);
        assert!(reason.contains("its frame has no end"), "{reason}");
    }
    let reason = refusal(&[&whole[..], &whole[..]].concat());
    assert!(reason.contains("bytes follow its frame"), "{reason}");
    for (first, second) in (1..plain.len()).map(|at| plain.split_at(at)) {
        let block = [lz4.compress(first), lz4.compress(second)].concat();
        let bytes = lz4.raw(NOW, NOW + 5, 2, &block);
        assert!(
            validate(&bytes, &rules(), NOW).is_err(),
            "cut after {} bytes",
            first.len()
        );
    }
    let bytes = lz4.raw(NOW, NOW + 5, 2, &whole);
    assert!(validate(&bytes, &rules(), NOW).is_ok());
}

#[test]
fn header_errors_say_what_is_wrong() {
    let good = two().build();
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        fix_checksum(&mut bytes);
        bytes
    };
    assert_eq!(
        error_of(&with(16, &[0]), &rules()),
        RecordError::UnsupportedMagic(0)
    );
    assert_eq!(
        error_of(&with(16, &[1]), &rules()),
        RecordError::UnsupportedMagic(1)
    );
    assert_eq!(
        error_of(&with(16, &[3])[..20], &rules()),
        RecordError::UnsupportedMagic(3)
    );
    assert_eq!(
        error_of(&good[..40], &rules()),
        RecordError::Truncated { have: 40, need: 61 }
    );
    assert_eq!(
        error_of(&[], &rules()),
        RecordError::Truncated { have: 0, need: 61 }
    );
    let size = good.len();
    assert_eq!(
        error_of(&good[..size - 1], &rules()),
        RecordError::Truncated {
            have: size - 1,
            need: size
        }
    );
    assert_eq!(
        error_of(&with(8, &i32::MAX.to_be_bytes()), &rules()),
        RecordError::Truncated {
            have: size,
            need: i32::MAX as usize + 12
        }
    );
    assert!(matches!(
        error_of(&with(8, &(-1i32).to_be_bytes()), &rules()),
        RecordError::Malformed(_)
    ));
    assert_eq!(
        error_of(&[good.clone(), good.clone()].concat(), &rules()),
        RecordError::NotOneBatch { extra: size }
    );
    assert_eq!(
        error_of(
            &good,
            &Rules {
                max_batch_bytes: 61,
                ..rules()
            }
        ),
        RecordError::TooLarge { size, limit: 61 }
    );
    assert_eq!(
        error_of(&with(21, &7i16.to_be_bytes()), &rules()),
        RecordError::UnknownCodec(7)
    );
    assert_eq!(
        error_of(&with(21, &0x10i16.to_be_bytes()), &rules()),
        RecordError::Transactional
    );
    assert_eq!(
        error_of(&with(21, &0x30i16.to_be_bytes()), &rules()),
        RecordError::ControlFromClient
    );
    assert_eq!(
        error_of(&with(21, &0x08i16.to_be_bytes()), &rules()),
        RecordError::ClientSetAppendTime
    );
    assert!(matches!(
        error_of(&with(23, &5i32.to_be_bytes()), &rules()),
        RecordError::Malformed(_)
    ));
    assert!(matches!(
        error_of(&with(43, &5i64.to_be_bytes()), &rules()),
        RecordError::Malformed(_)
    ));
    let mut flipped = good.clone();
    flipped[size - 1] ^= 1;
    assert!(matches!(
        error_of(&flipped, &rules()),
        RecordError::Checksum { .. }
    ));
    let empty = TestBatch::new(Vec::new()).build();
    assert_eq!(
        error_of(&empty, &rules()),
        RecordError::Malformed("it holds no records")
    );
}

#[test]
fn record_errors_name_the_record() {
    let future = TestBatch::new(vec![
        TestRecord::new(NOW, "a", ""),
        TestRecord::new(NOW + 3_600_001, "b", ""),
    ])
    .build();
    assert!(matches!(
        error_of(&future, &rules()),
        RecordError::Timestamp { index: 1, .. }
    ));
    let past = Rules {
        before_max_ms: 10,
        ..rules()
    };
    assert!(matches!(
        error_of(
            &TestBatch::new(vec![TestRecord::new(NOW - 11, "a", "")]).build(),
            &past
        ),
        RecordError::Timestamp { index: 0, .. }
    ));

    let mut keyless = two();
    keyless.records[1].key = None;
    assert!(validate(&keyless.build(), &rules(), NOW).is_ok());
    assert_eq!(
        error_of(
            &keyless.build(),
            &Rules {
                keys_required: true,
                ..rules()
            }
        ),
        RecordError::MissingKey { index: 1 }
    );

    let raw = |block: &[u8], count| {
        error_of(
            &TestBatch::new(Vec::new()).raw(NOW, NOW, count, block),
            &rules(),
        )
    };
    let record = |fields: &[i64], tail: &[u8]| {
        let mut body = vec![0];
        fields.iter().for_each(|field| varint(&mut body, *field));
        body.extend_from_slice(tail);
        let mut out = Vec::new();
        varint(&mut out, body.len() as i64);
        out.extend(body);
        out
    };
    let bad = |index, reason| RecordError::BadRecord { index, reason };
    assert_eq!(
        raw(&record(&[0, 0, -1, -1, 0], &[]).repeat(2), 2),
        bad(1, "its offset does not follow the one before")
    );
    assert_eq!(
        raw(&record(&[0, 0, -1, -1, 0], &[0]), 1),
        bad(0, "bytes remain after its headers")
    );
    assert_eq!(
        raw(&record(&[0, 0, -2, -1, 0], &[]), 1),
        bad(0, "a length in it is negative")
    );
    assert_eq!(
        raw(&record(&[0, 0, i64::MAX, -1, 0], &[]), 1),
        bad(0, "a field in it is longer than the record")
    );
    assert_eq!(
        raw(&record(&[0, 0, -1, -1, i64::MAX], &[]), 1),
        bad(0, "its header count is out of bounds")
    );
    assert_eq!(
        raw(&record(&[0, 0, -1, -1, 1, -1], &[0]), 1),
        bad(0, "a header has no name")
    );
    assert_eq!(
        raw(&record(&[i64::MAX, 0, -1, -1, 0], &[]), 1),
        bad(0, "its timestamp overflows")
    );
    assert_eq!(
        raw(&record(&[0, i64::MAX, -1, -1, 0], &[]), 1),
        bad(0, "its offset delta overflows")
    );
    assert_eq!(
        raw(&[0xff; 12], 1),
        bad(0, "a number in it is longer than ten bytes")
    );
    assert_eq!(raw(&[1], 1), bad(0, "its length is negative"));
    assert_eq!(raw(&[20, 0], 1), bad(0, "the batch ends within it"));
    assert_eq!(
        raw(&record(&[0, 0, -1, -1, 0], &[]), i32::MAX),
        bad(1, "the batch ends within it")
    );
    assert_eq!(
        raw(&[record(&[0, 0, -1, -1, 0], &[]), vec![0]].concat(), 1),
        RecordError::Malformed("bytes remain after its last record")
    );
}

#[test]
fn a_bomb_of_any_codec_stops_at_the_limit() {
    let limit = 1 << 20;
    for codec in CODECS.into_iter().skip(1) {
        let value = "0".repeat(8 << 20);
        let bytes = TestBatch::new(vec![TestRecord::new(NOW, "a", &value)])
            .codec(codec)
            .build();
        let error = error_of(
            &bytes,
            &Rules {
                max_expanded_bytes: limit,
                ..rules()
            },
        );
        assert_eq!(error, RecordError::ExpandsTooFar { limit }, "{codec:?}");
        assert!(
            validate(&bytes, &rules(), NOW).is_ok(),
            "{codec:?} passes under a larger limit"
        );
    }
}

#[test]
fn damaged_compression_is_named_by_its_codec() {
    for codec in CODECS.into_iter().skip(1) {
        let batch = TestBatch::new(Vec::new()).codec(codec);
        match error_of(
            &batch.raw(NOW, NOW, 1, b"certainly not compressed bytes"),
            &rules(),
        ) {
            RecordError::Decompression { codec: name, .. } => assert_eq!(name, codec.name()),
            other => panic!("{codec:?}: {other}"),
        }
    }
    let lie = TestBatch::new(Vec::new()).codec(Codec::Snappy).raw(
        NOW,
        NOW,
        1,
        &[0xff, 0xff, 0xff, 0xff, 0x0f, 0],
    );
    assert!(
        error_of(&lie, &rules())
            .to_string()
            .contains("cannot expand to")
    );
}

#[test]
fn batches_splits_and_ends_at_an_error() {
    let one = two().build();
    let all = [one.clone(), one.clone(), one[..70].to_vec()].concat();
    let parts: Vec<_> = batches(&all).collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[1].as_ref().unwrap().1, &one[..]);
    assert!(parts[2].is_err());
}

fn any_record() -> impl Strategy<Value = TestRecord> {
    let bytes = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300));
    let headers = proptest::collection::vec(
        (
            "[a-z]{0,9}",
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
        ),
        0..4,
    );
    (0i64..1000, bytes.clone(), bytes, headers).prop_map(|(age, key, value, headers)| TestRecord {
        timestamp: NOW - age,
        key,
        value,
        headers,
    })
}

fn any_batch() -> impl Strategy<Value = TestBatch> {
    (
        0i16..5,
        any::<bool>(),
        proptest::collection::vec(any_record(), 1..60),
    )
        .prop_map(|(codec, xerial, records)| TestBatch {
            codec,
            xerial,
            ..TestBatch::new(records)
        })
}

proptest! {
    #[test]
    fn what_a_producer_builds_is_accepted(batch in any_batch()) {
        let bytes = batch.build();
        let valid = validate(&bytes, &rules(), NOW).unwrap();
        prop_assert_eq!(valid.header.record_count as usize, batch.records.len());
        prop_assert_eq!(valid.header.max_timestamp, batch.records.iter().map(|record| record.timestamp).max().unwrap());
        let probe = batch.records[batch.records.len() / 2].timestamp;
        let expected = batch.records.iter().position(|record| record.timestamp >= probe).unwrap();
        prop_assert_eq!(first_record_at_or_after(&bytes, probe, 0).unwrap().unwrap().0, expected as i64);
    }

    #[test]
    fn a_changed_byte_is_always_refused(batch in any_batch(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = batch.build();
        let at = at.index(bytes.len());
        // Base offset and leader epoch are the broker's to set: what a producer puts there does not matter.
        prop_assume!(!(0..8).contains(&at) && !(12..16).contains(&at));
        bytes[at] ^= flip;
        prop_assert!(validate(&bytes, &rules(), NOW).is_err());
    }

    #[test]
    fn damage_under_a_valid_checksum_never_panics(batch in any_batch(), hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let mut bytes = batch.build();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if bytes.len() > 70 {
            bytes.truncate(70 + cut.index(bytes.len() - 70));
            let length = (bytes.len() - LOG_OVERHEAD) as i32;
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
        }
        fix_checksum(&mut bytes);
        let _ = validate(&bytes, &rules(), NOW);
        let _ = first_record_at_or_after(&bytes, NOW, 0);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = validate(&bytes, &rules(), NOW);
        let _ = batches(&bytes).count();
    }
}
