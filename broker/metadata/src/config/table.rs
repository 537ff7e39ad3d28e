//! The table of topic configs.

use super::definition::{Allowed, ConfigDefinition, ConfigKind};

const MAX_INT: i64 = i32::MAX as i64;
const MAX_LONG: i64 = i64::MAX;
const MAX_LONG_TEXT: &str = "9223372036854775807";

const NO_BROKER_COMPRESSION: &str =
    "batches are stored as the producer compressed them, since they are sealed whole";
const NO_TIERED_STORAGE: &str = "there is no tiered storage";
const NO_INDEX_FILES: &str = "segments are preallocated and indexed by the sealed log itself";
const NO_UNCLEAN_LEADERS: &str = "only a replica with every acknowledged record can lead";
const NO_THROTTLED_REPLICAS: &str =
    "partitions are not moved one by one, so there is nothing to throttle";

macro_rules! config {
    ($name:literal, $broker:expr, $kind:ident, $allowed:expr, $default:expr, $doc:literal) => {
        ConfigDefinition {
            name: $name,
            broker_name: $broker,
            kind: ConfigKind::$kind,
            allowed: $allowed,
            default: $default,
            doc: $doc,
        }
    };
}

/// Every topic config, by name. Kafka's that would have no effect here are present with their one value, so that tools
/// which copy or print all of them work, and so that a different value is refused and not silently ignored.
pub const TOPIC_CONFIGS: &[ConfigDefinition] = &[
    config!(
        "cleanup.policy",
        Some("log.cleanup.policy"),
        List,
        Allowed::SomeOf(&["delete", "compact"]),
        "delete",
        "What happens to old segments: `delete` by retention time and size, `compact` keeps the last record of each key."
    ),
    config!(
        "compression.gzip.level",
        None,
        Int,
        Allowed::Fixed(NO_BROKER_COMPRESSION),
        "-1",
        "Unused: the broker does not compress."
    ),
    config!(
        "compression.lz4.level",
        None,
        Int,
        Allowed::Fixed(NO_BROKER_COMPRESSION),
        "9",
        "Unused: the broker does not compress."
    ),
    config!(
        "compression.type",
        Some("compression.type"),
        String,
        Allowed::Fixed(NO_BROKER_COMPRESSION),
        "producer",
        "The compression of stored batches: the producer's."
    ),
    config!(
        "compression.zstd.level",
        None,
        Int,
        Allowed::Fixed(NO_BROKER_COMPRESSION),
        "3",
        "Unused: the broker does not compress."
    ),
    config!(
        "delete.retention.ms",
        Some("log.cleaner.delete.retention.ms"),
        Long,
        Allowed::Integer(0, MAX_LONG),
        "86400000",
        "How long tombstones of a compacted topic are kept, in milliseconds."
    ),
    config!(
        "file.delete.delay.ms",
        None,
        Long,
        Allowed::Integer(0, MAX_LONG),
        "60000",
        "How long a deleted segment's file may stay, in milliseconds; the broker removes it sooner."
    ),
    config!(
        "flush.messages",
        None,
        Long,
        Allowed::Integer(1, MAX_LONG),
        MAX_LONG_TEXT,
        "Met whatever it says: every batch is on disk (fdatasync) before it is acknowledged."
    ),
    config!(
        "flush.ms",
        None,
        Long,
        Allowed::Integer(0, MAX_LONG),
        MAX_LONG_TEXT,
        "Met whatever it says: every batch is on disk (fdatasync) before it is acknowledged."
    ),
    config!(
        "follower.replication.throttled.replicas",
        None,
        List,
        Allowed::Fixed(NO_THROTTLED_REPLICAS),
        "",
        "Unused."
    ),
    config!(
        "index.interval.bytes",
        None,
        Int,
        Allowed::Fixed(NO_INDEX_FILES),
        "4096",
        "Unused."
    ),
    config!(
        "leader.replication.throttled.replicas",
        None,
        List,
        Allowed::Fixed(NO_THROTTLED_REPLICAS),
        "",
        "Unused."
    ),
    config!(
        "local.retention.bytes",
        None,
        Long,
        Allowed::Fixed(NO_TIERED_STORAGE),
        "-2",
        "Unused."
    ),
    config!(
        "local.retention.ms",
        None,
        Long,
        Allowed::Fixed(NO_TIERED_STORAGE),
        "-2",
        "Unused."
    ),
    config!(
        "max.compaction.lag.ms",
        Some("log.cleaner.max.compaction.lag.ms"),
        Long,
        Allowed::Integer(1, MAX_LONG),
        MAX_LONG_TEXT,
        "Longest time that a record may stay uncompacted, in milliseconds."
    ),
    config!(
        "max.message.bytes",
        Some("message.max.bytes"),
        Int,
        Allowed::Integer(0, MAX_INT),
        "1048588",
        "Largest record batch that is accepted, in bytes."
    ),
    config!(
        "message.timestamp.after.max.ms",
        Some("log.message.timestamp.after.max.ms"),
        Long,
        Allowed::Integer(0, MAX_LONG),
        "3600000",
        "How far a record's timestamp may lie ahead of the broker's clock, in milliseconds."
    ),
    config!(
        "message.timestamp.before.max.ms",
        Some("log.message.timestamp.before.max.ms"),
        Long,
        Allowed::Integer(0, MAX_LONG),
        MAX_LONG_TEXT,
        "How far a record's timestamp may lie behind the broker's clock, in milliseconds."
    ),
    config!(
        "message.timestamp.type",
        Some("log.message.timestamp.type"),
        String,
        Allowed::OneOf(&["CreateTime", "LogAppendTime"]),
        "CreateTime",
        "Whether a record's timestamp is the producer's or the time of the append."
    ),
    config!(
        "min.cleanable.dirty.ratio",
        Some("log.cleaner.min.cleanable.ratio"),
        Double,
        Allowed::Ratio,
        "0.5",
        "Share of a compacted log that is not compacted yet from which compaction is worth while."
    ),
    config!(
        "min.compaction.lag.ms",
        Some("log.cleaner.min.compaction.lag.ms"),
        Long,
        Allowed::Integer(0, MAX_LONG),
        "0",
        "Shortest time that a record stays uncompacted, in milliseconds."
    ),
    config!(
        "min.insync.replicas",
        Some("min.insync.replicas"),
        Int,
        Allowed::Integer(1, MAX_INT),
        "1",
        "Replicas that have to hold a batch before `acks=all` is answered; a majority always has to."
    ),
    config!(
        "palisade.key.version",
        None,
        Int,
        Allowed::Integer(1, MAX_INT),
        "1",
        "Least version of the topic's data key. Raising it above the present version makes a new key: new batches are sealed under it, and what is stored is sealed anew by the cleaner."
    ),
    config!(
        "preallocate",
        None,
        Boolean,
        Allowed::Fixed(NO_INDEX_FILES),
        "false",
        "Unused."
    ),
    config!(
        "remote.copy.disable",
        None,
        Boolean,
        Allowed::Fixed(NO_TIERED_STORAGE),
        "false",
        "Unused."
    ),
    config!(
        "remote.log.delete.on.disable",
        None,
        Boolean,
        Allowed::Fixed(NO_TIERED_STORAGE),
        "false",
        "Unused."
    ),
    config!(
        "remote.storage.enable",
        None,
        Boolean,
        Allowed::Fixed(NO_TIERED_STORAGE),
        "false",
        "Unused."
    ),
    config!(
        "retention.bytes",
        Some("log.retention.bytes"),
        Long,
        Allowed::Integer(-1, MAX_LONG),
        "-1",
        "Size of a partition from which its oldest segments are deleted, in bytes; -1: no limit."
    ),
    config!(
        "retention.ms",
        Some("log.retention.ms"),
        Long,
        Allowed::Integer(-1, MAX_LONG),
        "604800000",
        "Age from which records are deleted, in milliseconds; -1: no limit."
    ),
    config!(
        "segment.bytes",
        Some("log.segment.bytes"),
        Int,
        Allowed::Integer(1024, MAX_INT),
        "268435456",
        "Size at which a new segment is begun, in bytes. Retention works in whole segments."
    ),
    config!(
        "segment.index.bytes",
        None,
        Int,
        Allowed::Fixed(NO_INDEX_FILES),
        "10485760",
        "Unused."
    ),
    config!(
        "segment.jitter.ms",
        None,
        Long,
        Allowed::Fixed(NO_INDEX_FILES),
        "0",
        "Unused."
    ),
    config!(
        "segment.ms",
        Some("log.roll.ms"),
        Long,
        Allowed::Integer(1, MAX_LONG),
        "604800000",
        "Age at which a new segment is begun, in milliseconds."
    ),
    config!(
        "unclean.leader.election.enable",
        None,
        Boolean,
        Allowed::Fixed(NO_UNCLEAN_LEADERS),
        "false",
        "Unused: no acknowledged record is ever given up."
    ),
];
