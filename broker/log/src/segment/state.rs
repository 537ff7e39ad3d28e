use palisade_seal::DekVersion;
use serde::{Deserialize, Serialize};

use super::Cleaned;
use crate::Offset;

/// What a manifest remembers of a partition's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// First offset that exists.
    pub start: Offset,
    /// Offset that the next record gets.
    pub end: Offset,
    /// The segments, in the order of their offsets.
    pub segments: Vec<SegmentState>,
    /// What was compacted of it.
    pub cleaned: Cleaned,
}

impl PartitionState {
    /// The state after the first offset was raised to `start`, when it is higher: without the segments that lie before it.
    #[must_use]
    pub fn advanced_to(mut self, start: Offset) -> Self {
        self.start = self.start.max(start.min(self.end));
        let start = self.start;
        self.segments
            .retain(|segment| segment.end > start || segment.end == segment.base);
        self
    }
}

/// What a manifest remembers of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentState {
    /// Offset of its first record, and its file name.
    pub base: Offset,
    /// How often it was rewritten; part of its file name when it was.
    pub generation: u32,
    /// Offset after its last record.
    pub end: Offset,
    /// Bytes of the file that count; the rest is cut off.
    pub length: u64,
    /// Latest timestamp of a record, ms; -1 when there is none.
    pub max_timestamp: i64,
    /// When it was begun on this broker's clock, ms: a segment is rolled when it reaches an age.
    pub begun_at: i64,
    /// When it was last appended to on this broker's clock, ms: its age when no record has a timestamp.
    pub appended_at: i64,
    /// Oldest version of the topic's key that a batch of it is sealed under; `None` when it holds no sealed batch.
    pub oldest_key: Option<DekVersion>,
    /// When the first of its tombstones may be removed, ms; `None` when it has none that were compacted.
    pub horizon: Option<i64>,
    /// Set once damage was found in it.
    pub damage: Option<Damage>,
}

/// When a segment is full, so that the next batch begins a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rolling {
    /// Size of the file in bytes (`segment.bytes`).
    pub bytes: u64,
    /// Age in ms (`segment.ms`): without it, a partition that is rarely written to would keep its oldest records for ever.
    pub age_ms: i64,
}

impl Rolling {
    pub(super) fn is_full(&self, segment: &SegmentState, now_ms: i64) -> bool {
        segment.length >= self.bytes || now_ms.saturating_sub(segment.begun_at) >= self.age_ms
    }
}

/// Damage that was found in a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Position in the file, bytes.
    pub position: u64,
    /// What was wrong.
    pub reason: String,
}

/// A segment that is kept but not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedSegment {
    /// The file, under the name it has now.
    pub file: std::path::PathBuf,
    /// Position of the damage in the file, bytes.
    pub position: u64,
    /// What is wrong.
    pub reason: String,
    /// First offset that is not served.
    pub base: Offset,
    /// Offset after the last that is not served.
    pub end: Offset,
}

/// First offset that a partition should keep, given the age and size it may have; `None` when all of it may stay.
///
/// As in Kafka, whole segments go: by age when their latest record is older than `retention_ms`, by size as long as what remains is still
/// `retention_bytes` or more.
pub(super) fn retention_start(
    segments: &[SegmentState],
    now_ms: i64,
    retention_ms: Option<i64>,
    retention_bytes: Option<u64>,
) -> Option<Offset> {
    let mut size: u64 = segments.iter().map(|segment| segment.length).sum();
    let mut start = None;
    for segment in segments {
        let written = if segment.max_timestamp < 0 {
            segment.appended_at
        } else {
            segment.max_timestamp
        };
        let too_old = retention_ms.is_some_and(|limit| now_ms.saturating_sub(written) > limit);
        let too_much =
            retention_bytes.is_some_and(|limit| size.saturating_sub(segment.length) >= limit);
        if !too_old && !too_much {
            break;
        }
        size = size.saturating_sub(segment.length);
        start = Some(segment.end);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(base: i64, length: u64, max_timestamp: i64) -> SegmentState {
        SegmentState {
            base: Offset(base),
            generation: 0,
            end: Offset(base + 10),
            length,
            max_timestamp,
            begun_at: 0,
            appended_at: 500,
            oldest_key: None,
            horizon: None,
            damage: None,
        }
    }

    #[test]
    fn a_segment_is_full_by_size_or_by_age() {
        let rolling = Rolling {
            bytes: 100,
            age_ms: 1000,
        };
        assert!(!rolling.is_full(&segment(0, 99, 0), 999));
        assert!(rolling.is_full(&segment(0, 100, 0), 0));
        assert!(rolling.is_full(&segment(0, 1, 0), 1000));
    }

    #[test]
    fn nothing_goes_without_limits() {
        assert_eq!(
            retention_start(&[segment(0, 100, 0)], i64::MAX, None, None),
            None
        );
    }

    #[test]
    fn age_counts_from_the_latest_record_and_stops_at_the_first_young_segment() {
        let segments = [segment(0, 1, 100), segment(10, 1, 300), segment(20, 1, 100)];
        assert_eq!(
            retention_start(&segments, 250, Some(100), None),
            Some(Offset(10))
        );
        assert_eq!(retention_start(&segments, 200, Some(100), None), None);
        assert_eq!(
            retention_start(&segments, 900, Some(100), None),
            Some(Offset(30))
        );
    }

    #[test]
    fn age_without_timestamps_counts_from_the_last_append() {
        let segments = [segment(0, 1, -1)];
        assert_eq!(retention_start(&segments, 600, Some(100), None), None);
        assert_eq!(
            retention_start(&segments, 601, Some(100), None),
            Some(Offset(10))
        );
    }

    #[test]
    fn size_keeps_at_least_what_is_asked_for() {
        let segments = [segment(0, 40, 0), segment(10, 40, 0), segment(20, 40, 0)];
        assert_eq!(retention_start(&segments, 0, None, Some(81)), None);
        assert_eq!(
            retention_start(&segments, 0, None, Some(80)),
            Some(Offset(10))
        );
        assert_eq!(
            retention_start(&segments, 0, None, Some(40)),
            Some(Offset(20))
        );
        assert_eq!(
            retention_start(&segments, 0, None, Some(0)),
            Some(Offset(30))
        );
    }
}
