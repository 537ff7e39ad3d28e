use thiserror::Error;

/// Why a batch is refused. The first group is damage, the second what a client did wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Shorter than its header, or than the length its header gives.
    #[error("record batch is truncated: {have} bytes of {need}")]
    Truncated {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The checksum does not match the bytes.
    #[error("record batch has checksum {computed:#010x} where its header says {stated:#010x}")]
    Checksum {
        /// CRC32C in the header.
        stated: u32,
        /// CRC32C of the bytes.
        computed: u32,
    },

    /// Message formats 0 and 1 (before Kafka 0.11), or something unknown.
    #[error("record batch has message format {0}; only format 2 is accepted")]
    UnsupportedMagic(i8),
    /// The codec bits hold no codec.
    #[error("record batch names compression codec {0}, which does not exist")]
    UnknownCodec(i16),
    /// Something between or after the batches of one partition: a producer sends exactly one.
    #[error(
        "{extra} bytes follow the record batch; a produce request holds exactly one batch a partition"
    )]
    NotOneBatch {
        /// Bytes after the first batch.
        extra: usize,
    },
    /// Larger than the topic's `max.message.bytes`.
    #[error("record batch of {size} bytes is larger than max.message.bytes, {limit}")]
    TooLarge {
        /// Size of the batch.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Decompressing went past the limit.
    #[error("record batch expands to more than {limit} bytes")]
    ExpandsTooFar {
        /// The limit in bytes.
        limit: u64,
    },
    /// The compressed block is damaged.
    #[error("record batch does not decompress as {codec}: {reason}")]
    Decompression {
        /// Name of the codec.
        codec: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A header field contradicts another.
    #[error("record batch is malformed: {0}")]
    Malformed(&'static str),
    /// A record inside the batch is malformed.
    #[error("record {index} of the batch is malformed: {reason}")]
    BadRecord {
        /// Position within the batch, from 0.
        index: i32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record has no key on a compacted topic.
    #[error("record {index} of the batch has no key, which a compacted topic needs")]
    MissingKey {
        /// Position within the batch, from 0.
        index: i32,
    },
    /// A timestamp is further from the broker's clock than the topic allows.
    #[error(
        "record {index} of the batch has timestamp {timestamp}, outside of {earliest}..={latest} that the topic allows now"
    )]
    Timestamp {
        /// Position within the batch, from 0.
        index: i32,
        /// The record's timestamp, ms.
        timestamp: i64,
        /// Earliest accepted, ms.
        earliest: i64,
        /// Latest accepted, ms.
        latest: i64,
    },
    /// The producer marked the batch as stamped by the broker.
    #[error("record batch claims log append time, which only a broker may set")]
    ClientSetAppendTime,
    /// Control batches are written by brokers only.
    #[error("record batch is a control batch, which a client may not send")]
    ControlFromClient,
    /// Transactions are not served by this version.
    #[error("record batch belongs to a transaction; transactions are not supported yet")]
    Transactional,
}
