//! The configs of a topic that the data plane acts on, as numbers and not as text.

use std::time::Duration;

use super::list_items;
use crate::image::{Image, Topic};

/// What happens to old segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    /// Retention by time and size applies.
    pub delete: bool,
    /// The last record of each key is kept.
    pub compact: bool,
}

/// Whose clock a record's timestamp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's.
    LogAppendTime,
}

/// The configs of a topic that count, after overrides and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// `cleanup.policy`.
    pub cleanup: CleanupPolicy,
    /// `retention.ms`; `None`: no limit.
    pub retention: Option<Duration>,
    /// `retention.bytes`; `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// `segment.bytes`.
    pub segment_bytes: u64,
    /// `segment.ms`.
    pub segment_age: Duration,
    /// `max.message.bytes`.
    pub max_message_bytes: usize,
    /// `message.timestamp.type`.
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`.
    pub timestamp_before_max: Duration,
    /// `message.timestamp.after.max.ms`.
    pub timestamp_after_max: Duration,
    /// `min.insync.replicas`.
    pub min_insync_replicas: u32,
}

impl Image {
    /// The settings of a topic that count now.
    #[must_use]
    pub fn topic_settings(&self, topic: &Topic) -> TopicSettings {
        let text = |name| {
            self.topic_config(topic, name)
                .map_or("", |found| found.value)
        };
        let number = |name| {
            self.topic_config(topic, name)
                .map_or(0, |found| found.as_i64())
        };
        let unsigned = |name| u64::try_from(number(name)).ok();
        let millis = |name| Duration::from_millis(unsigned(name).unwrap_or(0));
        let policies: Vec<&str> = list_items(text("cleanup.policy")).collect();
        TopicSettings {
            cleanup: CleanupPolicy {
                delete: policies.contains(&"delete"),
                compact: policies.contains(&"compact"),
            },
            retention: unsigned("retention.ms").map(Duration::from_millis),
            retention_bytes: unsigned("retention.bytes"),
            segment_bytes: unsigned("segment.bytes").unwrap_or(0),
            segment_age: millis("segment.ms"),
            max_message_bytes: usize::try_from(number("max.message.bytes")).unwrap_or(0),
            timestamp_type: if text("message.timestamp.type") == "LogAppendTime" {
                TimestampType::LogAppendTime
            } else {
                TimestampType::CreateTime
            },
            timestamp_before_max: millis("message.timestamp.before.max.ms"),
            timestamp_after_max: millis("message.timestamp.after.max.ms"),
            min_insync_replicas: u32::try_from(number("min.insync.replicas")).unwrap_or(1),
        }
    }
}
