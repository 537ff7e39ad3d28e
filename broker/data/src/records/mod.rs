//! Kafka record batches, version 2 (magic 2): parsed, checked and stamped.
//!
//! ```text
//! base offset              i64     stamped by the leader
//! batch length             i32     bytes after this field
//! partition leader epoch   i32     stamped by the leader
//! magic                    i8      2
//! crc                      u32     CRC32C of everything after this field
//! attributes               i16     0-2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon
//! last offset delta        i32
//! base timestamp           i64     ms
//! max timestamp            i64     ms
//! producer id, epoch       i64 i16
//! base sequence            i32
//! record count             i32
//! records                  ...     compressed as one block when a codec is set
//! ```
//!
//! What a client sends is looked at down to every record, because one bad record inside a batch would stop each of its consumers for good. Records are
//! walked as a stream: a compressed batch is never held decompressed, and how far it may expand is limited.
//!
//! The base offset and the leader epoch lie before the checksummed part, so stamping them costs no second pass over the bytes.

mod codec;
mod encode;
mod error;
mod filter;
mod header;
mod scan;
mod validate;

#[cfg(test)]
pub(crate) mod builder;
#[cfg(test)]
mod tests;

pub use codec::Codec;
pub use error::RecordError;
pub(crate) use filter::{Filter, Filtered, KeptRecords, each_key};
pub use header::{Attributes, BatchHeader, HEADER_LEN, LOG_OVERHEAD, TimestampType, batches};
pub use scan::{RecordInfo, first_record_at_or_after, first_record_with_max_timestamp};
pub use validate::{Rules, ValidBatch, validate};
