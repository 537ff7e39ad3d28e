use super::{Codec, RecordError};

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = 61;
/// Bytes before the part that the batch length counts: base offset and batch length.
pub const LOG_OVERHEAD: usize = 12;

pub(super) const CRC_AT: usize = 17;
pub(super) const ATTRIBUTES_AT: usize = 21;
pub(super) const BATCH_LENGTH_AT: usize = 8;
pub(super) const BASE_TIMESTAMP_AT: usize = 27;
pub(super) const RECORD_COUNT_AT: usize = 57;
pub(super) const MAX_TIMESTAMP_AT: usize = 35;
const MAGIC_AT: usize = 16;
const MAGIC: i8 = 2;

/// Where a batch's timestamps come from (`message.timestamp.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Each record keeps the time its producer gave it.
    CreateTime,
    /// All records of the batch carry the time at which the leader appended it.
    LogAppendTime,
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(pub i16);

impl Attributes {
    const CODEC: i16 = 0b111;
    const LOG_APPEND_TIME: i16 = 1 << 3;
    const TRANSACTIONAL: i16 = 1 << 4;
    const CONTROL: i16 = 1 << 5;
    const DELETE_HORIZON: i16 = 1 << 6;

    /// The codec of the records.
    ///
    /// # Errors
    /// [`RecordError::UnknownCodec`].
    pub fn codec(self) -> Result<Codec, RecordError> {
        Codec::from_id(self.0 & Self::CODEC)
    }

    /// Where the timestamps come from.
    #[must_use]
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// The same attributes with another timestamp type.
    #[must_use]
    pub fn with_timestamp_type(self, kind: TimestampType) -> Self {
        match kind {
            TimestampType::CreateTime => Self(self.0 & !Self::LOG_APPEND_TIME),
            TimestampType::LogAppendTime => Self(self.0 | Self::LOG_APPEND_TIME),
        }
    }

    /// Part of a transaction.
    #[must_use]
    pub fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// The base timestamp is the time from which tombstones of the batch may be removed (KIP-534).
    #[must_use]
    pub fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }

    /// The same attributes, with a delete horizon.
    pub(super) fn with_delete_horizon(self) -> Self {
        Self(self.0 | Self::DELETE_HORIZON)
    }

    /// The same attributes for a batch that holds no records: no codec, no delete horizon.
    pub(super) fn of_empty_batch(self) -> Self {
        Self(self.0 & !(Self::CODEC | Self::DELETE_HORIZON))
    }

    /// Written by a broker for itself and its clients (transaction markers).
    #[must_use]
    pub fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }
}

/// The fixed part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Bytes of the whole batch, header included.
    pub size: usize,
    /// Epoch of the leader that appended it.
    pub leader_epoch: i32,
    /// CRC32C as stated.
    pub crc: u32,
    /// Attribute bits.
    pub attributes: Attributes,
    /// Offset of the last record, from the base offset.
    pub last_offset_delta: i32,
    /// Time that record deltas count from, ms.
    pub base_timestamp: i64,
    /// Latest time of a record, or the append time, ms.
    pub max_timestamp: i64,
    /// Idempotent producer, or -1.
    pub producer_id: i64,
    /// Epoch of the producer, or -1.
    pub producer_epoch: i16,
    /// Sequence number of the first record, or -1.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header of the batch at the start of `bytes`, which must hold that batch whole. The checksum is not looked at.
    ///
    /// # Errors
    /// [`RecordError::Truncated`], [`RecordError::UnsupportedMagic`], or [`RecordError::Malformed`] for an impossible length.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        // The magic byte lies at the same place in every format, so older ones get their own answer even when they are shorter than this header.
        match bytes.get(MAGIC_AT) {
            None => {
                return Err(RecordError::Truncated {
                    have: bytes.len(),
                    need: HEADER_LEN,
                });
            }
            Some(&magic) if magic as i8 != MAGIC => {
                return Err(RecordError::UnsupportedMagic(magic as i8));
            }
            Some(_) => {}
        }
        let Some(head) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(RecordError::Truncated {
                have: bytes.len(),
                need: HEADER_LEN,
            });
        };
        let mut fields = Fields { head, at: 0 };
        let base_offset = i64::from_be_bytes(fields.take());
        let length = i32::from_be_bytes(fields.take());
        let size = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(LOG_OVERHEAD));
        let size = size
            .filter(|size| *size >= HEADER_LEN)
            .ok_or(RecordError::Malformed(
                "its length is shorter than a batch header",
            ))?;
        if size > bytes.len() {
            return Err(RecordError::Truncated {
                have: bytes.len(),
                need: size,
            });
        }
        let leader_epoch = i32::from_be_bytes(fields.take());
        let _magic: [u8; 1] = fields.take();
        Ok(Self {
            base_offset,
            size,
            leader_epoch,
            crc: u32::from_be_bytes(fields.take()),
            attributes: Attributes(i16::from_be_bytes(fields.take())),
            last_offset_delta: i32::from_be_bytes(fields.take()),
            base_timestamp: i64::from_be_bytes(fields.take()),
            max_timestamp: i64::from_be_bytes(fields.take()),
            producer_id: i64::from_be_bytes(fields.take()),
            producer_epoch: i16::from_be_bytes(fields.take()),
            base_sequence: i32::from_be_bytes(fields.take()),
            record_count: i32::from_be_bytes(fields.take()),
        })
    }

    /// When tombstones of the batch may be removed, ms.
    #[must_use]
    pub fn delete_horizon(&self) -> Option<i64> {
        self.attributes
            .has_delete_horizon()
            .then_some(self.base_timestamp)
    }

    /// Offset of the last record.
    #[must_use]
    pub fn last_offset(&self) -> i64 {
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
    }
}

/// Splits back-to-back batches. The iterator ends after the first error.
pub fn batches(
    mut bytes: &[u8],
) -> impl Iterator<Item = Result<(BatchHeader, &[u8]), RecordError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let header = match BatchHeader::parse(bytes) {
            Ok(header) => header,
            Err(error) => {
                bytes = &[];
                return Some(Err(error));
            }
        };
        let (batch, rest) = bytes.split_at_checked(header.size)?;
        bytes = rest;
        Some(Ok((header, batch)))
    })
}

/// Fields in their order out of a header that is known to be whole.
struct Fields<'a> {
    head: &'a [u8; HEADER_LEN],
    at: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.head[self.at..self.at + N]);
        self.at += N;
        out
    }
}
