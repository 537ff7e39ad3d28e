//! What a produced batch must satisfy before it is sealed.

use super::{
    BatchHeader, HEADER_LEN, RecordError, TimestampType,
    header::{ATTRIBUTES_AT, CRC_AT, MAX_TIMESTAMP_AT},
    scan::walk,
};

/// Records with this timestamp have none (Kafka's `RecordBatch.NO_TIMESTAMP`).
const NO_TIMESTAMP: i64 = -1;

/// The rules of a topic for what is appended to it.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `max.message.bytes`: size of a batch as it is sent.
    pub max_batch_bytes: usize,
    /// How many bytes the records may expand to.
    pub max_expanded_bytes: u64,
    /// `message.timestamp.type`.
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`: how far before the broker's clock a producer's timestamp may lie.
    pub before_max_ms: i64,
    /// `message.timestamp.after.max.ms`: how far after.
    pub after_max_ms: i64,
    /// The topic is compacted: every record needs a key.
    pub keys_required: bool,
}

/// A batch that may be appended, as soon as it gets its place in the log.
#[derive(Clone, Copy, Debug)]
pub struct ValidBatch {
    /// The header; its maximum timestamp and timestamp type are those the log will show.
    pub header: BatchHeader,
    head: [u8; HEADER_LEN],
}

impl ValidBatch {
    /// The header bytes to store, with the batch's place in the log. The records after them are the producer's own bytes.
    #[must_use]
    pub fn stamped(&self, base_offset: i64, leader_epoch: i32) -> [u8; HEADER_LEN] {
        let mut head = self.head;
        head[..8].copy_from_slice(&base_offset.to_be_bytes());
        head[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
        head
    }
}

/// Checks the one batch that a producer sent for a partition, down to its records, at `now_ms` on the broker's clock.
///
/// # Errors
/// The first [`RecordError`] found.
pub fn validate(bytes: &[u8], rules: &Rules, now_ms: i64) -> Result<ValidBatch, RecordError> {
    let header = BatchHeader::parse(bytes)?;
    let extra = bytes.len() - header.size;
    if extra > 0 {
        return Err(RecordError::NotOneBatch { extra });
    }
    if header.size > rules.max_batch_bytes {
        return Err(RecordError::TooLarge {
            size: header.size,
            limit: rules.max_batch_bytes,
        });
    }
    let computed = crc_fast::crc32_iscsi(bytes.get(ATTRIBUTES_AT..).unwrap_or_default());
    if computed != header.crc {
        return Err(RecordError::Checksum {
            stated: header.crc,
            computed,
        });
    }
    check_header(&header)?;
    let max_timestamp = check_records(&header, bytes, rules, now_ms)?;
    Ok(with_timestamps(
        header,
        bytes,
        rules.timestamp_type,
        max_timestamp,
        now_ms,
    ))
}

fn check_header(header: &BatchHeader) -> Result<(), RecordError> {
    if header.attributes.is_control() {
        return Err(RecordError::ControlFromClient);
    }
    if header.attributes.is_transactional() {
        return Err(RecordError::Transactional);
    }
    if header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        return Err(RecordError::ClientSetAppendTime);
    }
    header.attributes.codec()?;
    if header.record_count <= 0 {
        return Err(RecordError::Malformed("it holds no records"));
    }
    if header.last_offset_delta != header.record_count - 1 {
        return Err(RecordError::Malformed(
            "its last offset does not agree with its record count",
        ));
    }
    if header.producer_id >= 0 && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return Err(RecordError::Malformed(
            "it names a producer but no epoch or sequence",
        ));
    }
    Ok(())
}

/// Returns the latest timestamp among the records.
fn check_records(
    header: &BatchHeader,
    batch: &[u8],
    rules: &Rules,
    now_ms: i64,
) -> Result<i64, RecordError> {
    let earliest = now_ms.saturating_sub(rules.before_max_ms);
    let latest = now_ms.saturating_add(rules.after_max_ms);
    let check_time = rules.timestamp_type == TimestampType::CreateTime;
    let mut max_timestamp = NO_TIMESTAMP;
    let mut index = 0;
    walk(header, batch, rules.max_expanded_bytes, |record| {
        if record.offset_delta != index {
            return Err(RecordError::BadRecord {
                index,
                reason: "its offset does not follow the one before",
            });
        }
        if rules.keys_required && !record.has_key {
            return Err(RecordError::MissingKey { index });
        }
        let timestamp = record.timestamp;
        if check_time && timestamp != NO_TIMESTAMP && !(earliest..=latest).contains(&timestamp) {
            return Err(RecordError::Timestamp {
                index,
                timestamp,
                earliest,
                latest,
            });
        }
        max_timestamp = max_timestamp.max(timestamp);
        index += 1;
        Ok(())
    })?;
    Ok(max_timestamp)
}

/// Puts the timestamps the log will show into the header, and a new checksum when that changed it.
fn with_timestamps(
    mut header: BatchHeader,
    batch: &[u8],
    kind: TimestampType,
    max_timestamp: i64,
    now_ms: i64,
) -> ValidBatch {
    let mut head = [0; HEADER_LEN];
    let (start, body) = batch.split_at(HEADER_LEN);
    head.copy_from_slice(start);
    let stated = header.max_timestamp;
    header.attributes = header.attributes.with_timestamp_type(kind);
    header.max_timestamp = match kind {
        TimestampType::CreateTime => max_timestamp,
        TimestampType::LogAppendTime => now_ms,
    };
    if kind == TimestampType::LogAppendTime || header.max_timestamp != stated {
        head[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&header.attributes.0.to_be_bytes());
        head[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8]
            .copy_from_slice(&header.max_timestamp.to_be_bytes());
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&head[ATTRIBUTES_AT..]);
        digest.update(body);
        header.crc = digest.finalize() as u32;
        head[CRC_AT..CRC_AT + 4].copy_from_slice(&header.crc.to_be_bytes());
    }
    ValidBatch { header, head }
}
