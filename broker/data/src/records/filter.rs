//! Takes records out of a stored batch, as compaction does.
//!
//! The batch keeps its offsets, its leader epoch and its producer's id and sequence; only the record count, and with it length and checksum, tell that records
//! are gone. The first time that a batch with tombstones is compacted it is given a delete horizon: the time from which they may be removed, which takes the
//! place of the base timestamp (KIP-534).

use std::io::{BufRead, Read, Write};

use super::{
    BatchHeader, HEADER_LEN, RecordError, TimestampType,
    codec::StreamError,
    encode::Encoder,
    header::{
        ATTRIBUTES_AT, BASE_TIMESTAMP_AT, BATCH_LENGTH_AT, CRC_AT, LOG_OVERHEAD, MAX_TIMESTAMP_AT,
        RECORD_COUNT_AT,
    },
};

/// What was accepted under any limit must stay readable.
const STORED_LIMIT: u64 = u64::MAX;

/// A record, as far as compaction looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyedRecord<'a> {
    pub(crate) offset: i64,
    pub(crate) key: Option<&'a [u8]>,
    /// Without a value it is a tombstone.
    pub(crate) has_value: bool,
}

/// How a batch is filtered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter {
    /// The broker's clock, ms.
    pub(crate) now_ms: i64,
    /// `delete.retention.ms`, for a batch whose records were all looked at: `None` gives no delete horizon.
    pub(crate) delete_retention_ms: Option<i64>,
    /// Whether the batch stays, empty, when none of its records does.
    pub(crate) keep_empty: bool,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filtered {
    /// All of it stays as it is.
    Same(KeptRecords),
    /// The new batch.
    Changed(Vec<u8>, KeptRecords),
    /// Nothing stays.
    Gone,
}

/// What is left of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeptRecords {
    pub(crate) count: u32,
    /// Latest timestamp of a record, ms; -1 when there is none.
    pub(crate) max_timestamp: i64,
    /// When the tombstones among them may be removed, ms; `None` without tombstones, or when they were given no time yet.
    pub(crate) horizon: Option<i64>,
}

/// Calls `visit` with offset and key of every record that has a key, until it returns false.
pub(crate) fn each_key(
    batch: &[u8],
    mut visit: impl FnMut(i64, &[u8]) -> bool,
) -> Result<bool, RecordError> {
    let header = BatchHeader::parse(batch)?;
    let mut go_on = true;
    each(&header, batch, |record, _| {
        if go_on && let Some(key) = record.seen.key {
            go_on = visit(record.seen.offset, key);
        }
        Ok(())
    })?;
    Ok(go_on)
}

impl Filter {
    /// Takes out the records that `keeps` refuses. It is asked once for each, in order.
    ///
    /// # Errors
    /// Any [`RecordError`] when the batch is damaged.
    pub(crate) fn apply(
        &self,
        batch: &[u8],
        mut keeps: impl FnMut(KeyedRecord<'_>) -> bool,
    ) -> Result<Filtered, RecordError> {
        let header = BatchHeader::parse(batch)?;
        let mut first = Survey::default();
        each(&header, batch, |record, _| {
            let kept = keeps(record.seen);
            first.take_note(kept, &record);
            Ok(())
        })?;
        let Survey {
            kept,
            count,
            tombstones,
            latest,
            earliest,
        } = first;
        if count == 0 {
            return Ok(self.empty(&header, batch));
        }
        let fresh = self
            .delete_retention_ms
            .filter(|_| tombstones && header.delete_horizon().is_none())
            .map(|retention| self.now_ms.saturating_add(retention))
            // A delta that does not fit: such a batch keeps its tombstones for ever.
            .filter(|horizon| {
                earliest.checked_sub(*horizon).is_some() && latest.checked_sub(*horizon).is_some()
            });
        let append_time = header.attributes.timestamp_type() == TimestampType::LogAppendTime;
        let horizon = header
            .delete_horizon()
            .or(fresh)
            .filter(|_| tombstones && self.delete_retention_ms.is_some());
        let left = KeptRecords {
            count,
            max_timestamp: if append_time {
                header.max_timestamp
            } else {
                latest
            },
            horizon,
        };
        if fresh.is_none() && kept.iter().all(|kept| *kept) {
            return Ok(Filtered::Same(left));
        }
        rebuild(&header, batch, &kept, &left, fresh).map(|batch| Filtered::Changed(batch, left))
    }

    fn empty(&self, header: &BatchHeader, batch: &[u8]) -> Filtered {
        let left = KeptRecords {
            count: 0,
            max_timestamp: -1,
            horizon: None,
        };
        if !self.keep_empty {
            return Filtered::Gone;
        }
        if header.record_count == 0 {
            return Filtered::Same(left);
        }
        let mut head = batch.get(..HEADER_LEN).unwrap_or_default().to_vec();
        put(
            &mut head,
            ATTRIBUTES_AT,
            &header.attributes.of_empty_batch().0.to_be_bytes(),
        );
        // As Kafka: both timestamps say when the last record of it was.
        put(
            &mut head,
            BASE_TIMESTAMP_AT,
            &header.max_timestamp.to_be_bytes(),
        );
        put(&mut head, RECORD_COUNT_AT, &0i32.to_be_bytes());
        finish(&mut head);
        Filtered::Changed(head, left)
    }
}

/// What was learnt of the records by walking them once.
struct Survey {
    kept: Vec<bool>,
    count: u32,
    tombstones: bool,
    /// Timestamps of those that stay.
    latest: i64,
    earliest: i64,
}

impl Default for Survey {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            count: 0,
            tombstones: false,
            latest: i64::MIN,
            earliest: i64::MAX,
        }
    }
}

impl Survey {
    fn take_note(&mut self, kept: bool, record: &Parsed<'_>) {
        self.kept.push(kept);
        if kept {
            self.count = self.count.saturating_add(1);
            self.tombstones |= !record.seen.has_value;
            self.latest = self.latest.max(record.timestamp);
            self.earliest = self.earliest.min(record.timestamp);
        }
    }
}

fn rebuild(
    header: &BatchHeader,
    batch: &[u8],
    kept: &[bool],
    left: &KeptRecords,
    horizon: Option<i64>,
) -> Result<Vec<u8>, RecordError> {
    let codec = header.attributes.codec()?;
    let failed = |error: std::io::Error| RecordError::Decompression {
        codec: codec.name(),
        reason: format!("it cannot be compressed again: {error}"),
    };
    let block = batch.get(HEADER_LEN..header.size).unwrap_or_default();
    let mut encoder = Encoder::like(codec, block).map_err(failed)?;
    let base = horizon.unwrap_or(header.base_timestamp);
    let mut scratch = Vec::new();
    each(header, batch, |record, index| {
        if kept.get(index) == Some(&true) {
            scratch.clear();
            scratch.push(record.attributes);
            put_varint(&mut scratch, record.timestamp.wrapping_sub(base));
            let mut length = Vec::with_capacity(10);
            let total = scratch.len() as u64 + record.rest.len() as u64;
            put_varint(&mut length, i64::try_from(total).unwrap_or(i64::MAX));
            encoder.write_all(&length)?;
            encoder.write_all(&scratch)?;
            encoder.write_all(record.rest)?;
        }
        Ok(())
    })?;
    let mut out = batch.get(..HEADER_LEN).unwrap_or_default().to_vec();
    out.extend_from_slice(&encoder.finish().map_err(failed)?);
    let attributes = match horizon {
        Some(_) => header.attributes.with_delete_horizon(),
        None => header.attributes,
    };
    put(&mut out, ATTRIBUTES_AT, &attributes.0.to_be_bytes());
    put(&mut out, BASE_TIMESTAMP_AT, &base.to_be_bytes());
    put(
        &mut out,
        MAX_TIMESTAMP_AT,
        &left.max_timestamp.to_be_bytes(),
    );
    put(
        &mut out,
        RECORD_COUNT_AT,
        &i32::try_from(left.count).unwrap_or(i32::MAX).to_be_bytes(),
    );
    finish(&mut out);
    Ok(out)
}

/// Sets length and checksum.
fn finish(batch: &mut [u8]) {
    let length = i32::try_from(batch.len().saturating_sub(LOG_OVERHEAD)).unwrap_or(i32::MAX);
    put(batch, BATCH_LENGTH_AT, &length.to_be_bytes());
    let crc = crc_fast::crc32_iscsi(batch.get(ATTRIBUTES_AT..).unwrap_or_default());
    put(batch, CRC_AT, &crc.to_be_bytes());
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(field.len())) {
        place.copy_from_slice(field);
    }
}

/// One record, taken apart.
struct Parsed<'a> {
    seen: KeyedRecord<'a>,
    attributes: u8,
    timestamp: i64,
    /// Everything after the timestamp.
    rest: &'a [u8],
}

/// Calls `visit` for every record with its index; one at a time is in memory.
fn each(
    header: &BatchHeader,
    batch: &[u8],
    mut visit: impl FnMut(Parsed<'_>, usize) -> Result<(), StreamError>,
) -> Result<(), RecordError> {
    let block = batch.get(HEADER_LEN..header.size).unwrap_or_default();
    header
        .attributes
        .codec()?
        .decompressed(block, STORED_LIMIT, |stream| {
            let mut body = Vec::new();
            for index in 0..header.record_count {
                read_body(stream, index, &mut body)?;
                let record = parse(header, &body)
                    .map_err(|reason| RecordError::BadRecord { index, reason })?;
                visit(record, usize::try_from(index).unwrap_or(0))?;
            }
            if !stream.fill_buf()?.is_empty() {
                return Err(RecordError::Malformed("bytes remain after its last record").into());
            }
            Ok(())
        })
}

fn read_body(stream: &mut dyn BufRead, index: i32, body: &mut Vec<u8>) -> Result<(), StreamError> {
    let bad = |reason| StreamError::Record(RecordError::BadRecord { index, reason });
    let mut prefix = Vec::with_capacity(10);
    let length = loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        prefix.extend_from_slice(&byte);
        if byte[0] & 0x80 == 0 || prefix.len() == 10 {
            let mut rest = prefix.as_slice();
            break take_varint(&mut rest).map_err(bad)?;
        }
    };
    let length = u64::try_from(length).map_err(|_| bad("its length is negative"))?;
    body.clear();
    // Grows with what is there, not with what is claimed.
    let read = stream.take(length).read_to_end(body)?;
    if (read as u64) < length {
        return Err(bad("the batch ends within it"));
    }
    Ok(())
}

fn parse<'a>(header: &BatchHeader, body: &'a [u8]) -> Result<Parsed<'a>, &'static str> {
    const SHORT: &str = "a field in it is longer than the record";
    let (&attributes, mut rest) = body.split_first().ok_or(SHORT)?;
    let timestamp = header
        .base_timestamp
        .checked_add(take_varint(&mut rest)?)
        .ok_or("its timestamp overflows")?;
    let after_timestamp = rest;
    let offset = header
        .base_offset
        .checked_add(take_varint(&mut rest)?)
        .ok_or("its offset overflows")?;
    let mut field = || -> Result<Option<&'a [u8]>, &'static str> {
        let length = take_varint(&mut rest)?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| "a length in it is negative")?;
        let (bytes, after) = rest.split_at_checked(length).ok_or(SHORT)?;
        rest = after;
        Ok(Some(bytes))
    };
    let key = field()?;
    let has_value = field()?.is_some();
    Ok(Parsed {
        seen: KeyedRecord {
            offset,
            key,
            has_value,
        },
        attributes,
        timestamp,
        rest: after_timestamp,
    })
}

fn take_varint(rest: &mut &[u8]) -> Result<i64, &'static str> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or("the batch ends within it")?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err("a number in it is longer than ten bytes")
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}
