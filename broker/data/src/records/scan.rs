//! Walks the records inside a batch.

use std::io::BufRead;

use super::{BatchHeader, HEADER_LEN, RecordError, TimestampType, codec::StreamError};

/// How far a stored batch may expand when it is looked into again: what was accepted under any limit must stay readable.
const STORED_LIMIT: u64 = u64::MAX;

/// What the broker looks at in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// Offset, from the batch's base offset.
    pub offset_delta: i32,
    /// Time in ms since 1970, the batch's for log append time.
    pub timestamp: i64,
    /// Whether there is a key (an empty one is a key).
    pub has_key: bool,
}

/// The first record of a stored batch that does not lie before offset `from` and whose timestamp is at or after `timestamp`, as (offset, timestamp).
///
/// # Errors
/// Any [`RecordError`] when the batch is damaged.
pub fn first_record_at_or_after(
    batch: &[u8],
    timestamp: i64,
    from: i64,
) -> Result<Option<(i64, i64)>, RecordError> {
    let mut found = None;
    each_record(batch, |offset, record| {
        if found.is_none() && offset >= from && record.timestamp >= timestamp {
            found = Some((offset, record.timestamp));
        }
    })?;
    Ok(found)
}

/// The first record of a stored batch that carries its largest timestamp, as (offset, timestamp).
///
/// # Errors
/// Any [`RecordError`] when the batch is damaged.
pub fn first_record_with_max_timestamp(batch: &[u8]) -> Result<Option<(i64, i64)>, RecordError> {
    let mut found: Option<(i64, i64)> = None;
    each_record(batch, |offset, record| {
        if found.is_none_or(|(_, timestamp)| record.timestamp > timestamp) {
            found = Some((offset, record.timestamp));
        }
    })?;
    Ok(found)
}

fn each_record(batch: &[u8], mut visit: impl FnMut(i64, RecordInfo)) -> Result<(), RecordError> {
    let header = BatchHeader::parse(batch)?;
    walk(&header, batch, STORED_LIMIT, |record| {
        visit(
            header
                .base_offset
                .saturating_add(i64::from(record.offset_delta)),
            record,
        );
        Ok(())
    })
}

/// Calls `visit` for every record in order; the records must be as many as the header says and fill the batch exactly.
pub(super) fn walk(
    header: &BatchHeader,
    batch: &[u8],
    limit: u64,
    visit: impl FnMut(RecordInfo) -> Result<(), RecordError>,
) -> Result<(), RecordError> {
    let block = batch.get(HEADER_LEN..header.size).unwrap_or_default();
    let append_time = (header.attributes.timestamp_type() == TimestampType::LogAppendTime)
        .then_some(header.max_timestamp);
    header
        .attributes
        .codec()?
        .decompressed(block, limit, |stream| {
            walk_stream(header, stream, append_time, visit)
        })
}

fn walk_stream(
    header: &BatchHeader,
    stream: &mut dyn BufRead,
    append_time: Option<i64>,
    mut visit: impl FnMut(RecordInfo) -> Result<(), RecordError>,
) -> Result<(), StreamError> {
    for index in 0..header.record_count {
        let record = read_record(stream, index, header.base_timestamp)?;
        visit(RecordInfo {
            timestamp: append_time.unwrap_or(record.timestamp),
            ..record
        })?;
    }
    if !stream.fill_buf()?.is_empty() {
        return Err(RecordError::Malformed("bytes remain after its last record").into());
    }
    Ok(())
}

fn read_record(
    stream: &mut dyn BufRead,
    index: i32,
    base_timestamp: i64,
) -> Result<RecordInfo, StreamError> {
    let bad = |reason| RecordError::BadRecord { index, reason };
    let length = read_varint(stream, u64::MAX)?.0.map_err(bad)?;
    let length = u64::try_from(length).map_err(|_| bad("its length is negative"))?;

    // Most records lie whole in the buffer: those are parsed in place. The others (large, or across a buffer's edge) are parsed as a stream.
    let ready = stream.fill_buf()?;
    if ready.is_empty() {
        // Once only: asked again, a decompressor may go on with another stream behind the end of this one, where clients stop.
        return Err(bad("the batch ends within it").into());
    }
    if let Some(body) = usize::try_from(length)
        .ok()
        .and_then(|length| ready.get(..length))
    {
        let mut body = body;
        let info = read_body(&mut body, length, base_timestamp, bad)?;
        stream.consume(length as usize);
        return Ok(info);
    }
    read_body(stream, length, base_timestamp, bad)
}

fn read_body<R: BufRead + ?Sized>(
    stream: &mut R,
    length: u64,
    base_timestamp: i64,
    bad: impl Fn(&'static str) -> RecordError + Copy,
) -> Result<RecordInfo, StreamError> {
    let mut body = Body {
        stream,
        left: length,
    };
    body.skip(1, bad)?; // attributes: no bit has a meaning yet
    let timestamp_delta = body.varint(bad)?;
    let timestamp = base_timestamp
        .checked_add(timestamp_delta)
        .ok_or_else(|| bad("its timestamp overflows"))?;
    let offset_delta =
        i32::try_from(body.varint(bad)?).map_err(|_| bad("its offset delta overflows"))?;
    let has_key = body.skip_field(bad)?;
    body.skip_field(bad)?;
    let headers = body.varint(bad)?;
    // Each header takes two bytes at least: a larger count cannot be met and is not looped over.
    if headers < 0 || headers as u64 > body.left / 2 {
        return Err(bad("its header count is out of bounds").into());
    }
    for _ in 0..headers {
        if !body.skip_field(bad)? {
            return Err(bad("a header has no name").into());
        }
        body.skip_field(bad)?;
    }
    if body.left != 0 {
        return Err(bad("bytes remain after its headers").into());
    }
    Ok(RecordInfo {
        offset_delta,
        timestamp,
        has_key,
    })
}

/// The bytes of one record.
struct Body<'a, R: ?Sized> {
    stream: &'a mut R,
    left: u64,
}

impl<R: BufRead + ?Sized> Body<'_, R> {
    fn varint(&mut self, bad: impl Fn(&'static str) -> RecordError) -> Result<i64, StreamError> {
        let (value, used) = read_varint(self.stream, self.left)?;
        self.left = self.left.saturating_sub(used);
        value.map_err(|reason| bad(reason).into())
    }

    /// Passes over `length, bytes`; false when the length is -1 (null).
    fn skip_field(
        &mut self,
        bad: impl Fn(&'static str) -> RecordError,
    ) -> Result<bool, StreamError> {
        match self.varint(&bad)? {
            -1 => Ok(false),
            length => {
                let length =
                    u64::try_from(length).map_err(|_| bad("a length in it is negative"))?;
                self.skip(length, bad)?;
                Ok(true)
            }
        }
    }

    fn skip(
        &mut self,
        count: u64,
        bad: impl Fn(&'static str) -> RecordError,
    ) -> Result<(), StreamError> {
        self.left = self
            .left
            .checked_sub(count)
            .ok_or_else(|| bad("a field in it is longer than the record"))?;
        let mut count = count;
        while count > 0 {
            let ready = self.stream.fill_buf()?.len() as u64;
            if ready == 0 {
                return Err(bad("the batch ends within it").into());
            }
            let step = ready.min(count);
            self.stream.consume(step as usize);
            count -= step;
        }
        Ok(())
    }
}

/// Reads a zigzag varint of at most ten bytes and at most `left`; also says how many bytes it took.
#[allow(clippy::type_complexity)]
fn read_varint<R: BufRead + ?Sized>(
    stream: &mut R,
    left: u64,
) -> Result<(Result<i64, &'static str>, u64), StreamError> {
    let mut value: u64 = 0;
    let mut used = 0;
    for shift in (0..70).step_by(7) {
        if used == left {
            return Ok((Err("a field in it is longer than the record"), used));
        }
        let Some(&byte) = stream.fill_buf()?.first() else {
            return Ok((Err("the batch ends within it"), used));
        };
        stream.consume(1);
        used += 1;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok((Ok((value >> 1) as i64 ^ -((value & 1) as i64)), used));
        }
    }
    Ok((Err("a number in it is longer than ten bytes"), used))
}
