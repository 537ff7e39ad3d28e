//! A record batch from the fuzzer, as a producer would send it: checking it never panics and takes no memory that its size does not justify; a batch that
//! is accepted expands no further than it may, and what is stored of it can be read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_data::records::{
    BatchHeader, Codec, HEADER_LEN, LOG_OVERHEAD, RecordError, Rules, TimestampType, batches,
    first_record_with_max_timestamp, validate,
};

#[path = "../../../peer/fuzz/alloc.rs"]
mod alloc;

const NOW: i64 = 1_700_000_000_000;
/// How far a batch may expand.
const EXPANDED: u64 = 1 << 20;
/// Bytes of a record that has neither key, value nor headers.
const SMALLEST: u64 = 7;

const RULES: Rules = Rules {
    max_batch_bytes: 1 << 20,
    max_expanded_bytes: EXPANDED,
    timestamp_type: TimestampType::CreateTime,
    before_max_ms: i64::MAX,
    after_max_ms: 3_600_000,
    keys_required: false,
};

fuzz_target!(|data: &[u8]| {
    // As they come.
    check(data);
    // And behind a header that is right as far as one part of it depends on another, so that the records are reached.
    if data.len() >= HEADER_LEN {
        let mut batch = data.to_vec();
        let length = (batch.len() - LOG_OVERHEAD) as u32;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        batch[16] = 2;
        let count = u32::from_be_bytes([batch[57], batch[58], batch[59], batch[60]]);
        batch[23..27].copy_from_slice(&count.wrapping_sub(1).to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        check(&batch);
    }
});

fn check(bytes: &[u8]) {
    let _ = batches(bytes).count();
    let (outcome, largest) = alloc::largest_of(|| validate(bytes, &RULES, NOW));
    // A snappy block is made at once, and is at most 22 times its bytes; an LZ4 frame may have blocks of 4 MiB, and has room for two of them and the 64 KiB
    // before them. zstd allocates in C, which is not seen here.
    assert!(
        largest <= 22 * bytes.len() + (9 << 20),
        "{largest} bytes at once for {}",
        bytes.len()
    );
    let Ok(valid) = outcome else {
        return;
    };
    let count = u64::try_from(valid.header.record_count).expect("it holds records");
    if valid.header.attributes.codec() != Ok(Codec::None) {
        let least = count * SMALLEST;
        assert!(least <= EXPANDED, "{count} records got through");
        let rules = Rules {
            max_expanded_bytes: least - 1,
            ..RULES
        };
        let outcome = validate(bytes, &rules, NOW);
        assert!(
            matches!(outcome, Err(RecordError::ExpandsTooFar { .. })),
            "{count} records under a limit of {} bytes: {outcome:?}",
            least - 1
        );
    }
    for timestamp_type in [TimestampType::CreateTime, TimestampType::LogAppendTime] {
        let rules = Rules {
            timestamp_type,
            ..RULES
        };
        let valid = validate(bytes, &rules, NOW).expect("it is as good by the broker's time");
        let mut stored = bytes.to_vec();
        stored[..HEADER_LEN].copy_from_slice(&valid.stamped(41, 7));
        let header = BatchHeader::parse(&stored).expect("the header was good before");
        assert_eq!(header.crc, crc_fast::crc32_iscsi(&stored[21..]));
        assert_eq!((header.base_offset, header.leader_epoch), (41, 7));
        assert_eq!(header.max_timestamp, valid.header.max_timestamp);
        assert!(matches!(
            first_record_with_max_timestamp(&stored),
            Ok(Some(_))
        ));
        if timestamp_type == TimestampType::CreateTime {
            assert!(validate(&stored, &RULES, NOW).is_ok());
        }
    }
}
