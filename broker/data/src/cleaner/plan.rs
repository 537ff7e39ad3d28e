//! What is to be done with a partition: pure decisions.

use palisade_log::{
    Offset,
    segment::{PartitionState, Rolling, SegmentState},
};
use palisade_seal::DekVersion;

use crate::catalog::Compaction;

/// What is decided from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) state: &'a PartitionState,
    /// The segments at its beginning that are not appended to any more.
    pub(crate) closed: &'a [SegmentState],
    pub(crate) compaction: Option<Compaction>,
    pub(crate) rolling: Rolling,
    /// Newest version of the topic's key.
    pub(crate) newest_key: Option<DekVersion>,
    pub(crate) now_ms: i64,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The last segment has to be left alone by appends first.
    CloseActive,
    /// Compact up to `until`; what lies before `from` was.
    Compact {
        from: Offset,
        until: Offset,
        groups: Vec<Vec<SegmentState>>,
    },
    /// Rewrite one segment by itself: its key is old, or the time of its tombstones is over.
    Rewrite(SegmentState),
}

/// What the partition needs next; `None` for nothing.
pub(crate) fn next_step(facts: &Facts<'_>) -> Option<Step> {
    // What a damaged segment holds is not known: a tombstone must stay as long as there may be a record that it deletes.
    if facts
        .state
        .segments
        .iter()
        .any(|segment| segment.damage.is_some())
    {
        return None;
    }
    if closing_is_due(facts) {
        return Some(Step::CloseActive);
    }
    if let Some(compaction) = &facts.compaction {
        let dirt = dirt(facts, compaction);
        if dirt.bytes > 0 && (dirt.overdue || dirt.ratio() > compaction.min_dirty_ratio) {
            return Some(Step::Compact {
                from: dirt.from,
                until: dirt.until,
                groups: grouped(facts.closed, dirt.until, facts.rolling.bytes),
            });
        }
    }
    let due = |segment: &&SegmentState| {
        let expired = facts.compaction.is_some()
            && segment
                .horizon
                .is_some_and(|horizon| horizon <= facts.now_ms);
        expired || has_old_key(segment, facts.newest_key)
    };
    facts.closed.iter().find(due).cloned().map(Step::Rewrite)
}

/// How urgent compaction is: the share that is dirty, more than 1 when it is overdue.
pub(crate) fn dirtiness(facts: &Facts<'_>) -> f64 {
    facts.compaction.as_ref().map_or(0.0, |compaction| {
        let dirt = dirt(facts, compaction);
        dirt.ratio() + f64::from(u8::from(dirt.overdue))
    })
}

fn closing_is_due(facts: &Facts<'_>) -> bool {
    let Some(active) = facts
        .state
        .segments
        .get(facts.closed.len())
        .filter(|active| active.end > active.base)
    else {
        return false;
    };
    let aged = facts.compaction.is_some()
        && facts.now_ms.saturating_sub(active.begun_at) >= facts.rolling.age_ms;
    aged || has_old_key(active, facts.newest_key)
}

fn has_old_key(segment: &SegmentState, newest: Option<DekVersion>) -> bool {
    segment
        .oldest_key
        .is_some_and(|oldest| Some(oldest) < newest)
}

/// The part of a log that was not compacted yet.
struct Dirt {
    from: Offset,
    until: Offset,
    bytes: u64,
    clean_bytes: u64,
    /// Something of it has waited for as long as it may.
    overdue: bool,
}

impl Dirt {
    fn ratio(&self) -> f64 {
        let total = self.bytes.saturating_add(self.clean_bytes);
        if total == 0 {
            return 0.0;
        }
        self.bytes as f64 / total as f64
    }
}

fn dirt(facts: &Facts<'_>, compaction: &Compaction) -> Dirt {
    let from = facts.state.cleaned.until.max(facts.state.start);
    let mut dirt = Dirt {
        from,
        until: from,
        bytes: 0,
        clean_bytes: 0,
        overdue: false,
    };
    for segment in facts.closed {
        if segment.end <= from {
            dirt.clean_bytes = dirt.clean_bytes.saturating_add(segment.length);
            continue;
        }
        let latest = if segment.max_timestamp < 0 {
            segment.appended_at
        } else {
            segment.max_timestamp
        };
        if compaction.min_lag_ms > 0 && latest > facts.now_ms.saturating_sub(compaction.min_lag_ms)
        {
            break;
        }
        dirt.bytes = dirt.bytes.saturating_add(segment.length);
        dirt.until = segment.end;
        dirt.overdue |= facts.now_ms.saturating_sub(segment.begun_at) >= compaction.max_lag_ms;
    }
    dirt
}

/// Side by side segments that together are not larger than one should be.
fn grouped(segments: &[SegmentState], until: Offset, limit: u64) -> Vec<Vec<SegmentState>> {
    let mut groups: Vec<Vec<SegmentState>> = Vec::new();
    let mut bytes = 0u64;
    for segment in segments.iter().filter(|segment| segment.base < until) {
        bytes = bytes.saturating_add(segment.length);
        match groups.last_mut().filter(|_| bytes <= limit) {
            Some(group) => group.push(segment.clone()),
            None => {
                bytes = segment.length;
                groups.push(vec![segment.clone()]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use palisade_log::segment::Cleaned;

    use super::*;

    const COMPACTION: Compaction = Compaction {
        delete_retention_ms: 100,
        min_dirty_ratio: 0.5,
        min_lag_ms: 0,
        max_lag_ms: i64::MAX,
    };

    fn segment(base: i64, length: u64) -> SegmentState {
        SegmentState {
            base: Offset(base),
            generation: 0,
            end: Offset(base + 10),
            length,
            max_timestamp: base * 100,
            begun_at: base * 100,
            appended_at: base * 100,
            oldest_key: Some(DekVersion(1)),
            horizon: None,
            damage: None,
        }
    }

    fn state(until: i64) -> PartitionState {
        PartitionState {
            start: Offset(0),
            end: Offset(40),
            segments: (0..4).map(|n| segment(n * 10, 100)).collect(),
            cleaned: Cleaned {
                until: Offset(until),
                tombstones: Offset(0),
            },
        }
    }

    fn step(state: &PartitionState, compaction: Option<Compaction>, now_ms: i64) -> Option<Step> {
        next_step(&Facts {
            state,
            closed: &state.segments[..3],
            compaction,
            rolling: Rolling {
                bytes: 250,
                age_ms: i64::MAX,
            },
            newest_key: Some(DekVersion(1)),
            now_ms,
        })
    }

    fn until(step: Option<Step>) -> Option<(i64, i64, Vec<usize>)> {
        match step {
            Some(Step::Compact {
                from,
                until,
                groups,
            }) => Some((from.0, until.0, groups.iter().map(Vec::len).collect())),
            _ => None,
        }
    }

    #[test]
    fn compacts_all_closed_segments_once_enough_is_dirty() {
        assert_eq!(step(&state(0), None, 0), None);
        assert_eq!(
            until(step(&state(0), Some(COMPACTION), 0)),
            Some((0, 30, vec![2, 1]))
        );
        assert_eq!(
            until(step(&state(10), Some(COMPACTION), 0)),
            Some((10, 30, vec![2, 1]))
        );
        assert_eq!(
            step(&state(20), Some(COMPACTION), 0),
            None,
            "a third is not more than half"
        );
        assert_eq!(step(&state(30), Some(COMPACTION), 0), None);
    }

    #[test]
    fn lags_hold_compaction_back_and_force_it() {
        let lag = |min_lag_ms, max_lag_ms| Compaction {
            min_lag_ms,
            max_lag_ms,
            ..COMPACTION
        };
        let at = |compaction, cleaned, now| until(step(&state(cleaned), Some(compaction), now));
        assert_eq!(
            at(lag(500, i64::MAX), 0, 1500),
            Some((0, 20, vec![2])),
            "the third is too young"
        );
        assert_eq!(at(lag(5000, i64::MAX), 0, 1500), None);
        assert_eq!(at(lag(0, 1000), 20, 2999), None);
        assert_eq!(at(lag(0, 1000), 20, 3000), Some((20, 30, vec![2, 1])));
    }

    #[test]
    fn old_keys_and_expired_tombstones_are_rewritten_by_segment() {
        let mut state = state(30);
        state.segments[1].horizon = Some(700);
        assert_eq!(step(&state, Some(COMPACTION), 699), None);
        assert_eq!(
            step(&state, Some(COMPACTION), 700),
            Some(Step::Rewrite(state.segments[1].clone()))
        );
        state.segments[2].oldest_key = Some(DekVersion(0));
        assert_eq!(
            step(&state, None, 0),
            Some(Step::Rewrite(state.segments[2].clone()))
        );
        state.segments[3].oldest_key = Some(DekVersion(0));
        assert_eq!(step(&state, None, 0), Some(Step::CloseActive));
    }

    #[test]
    fn nothing_is_done_while_something_is_damaged() {
        let mut state = state(0);
        state.segments[0].damage = Some(palisade_log::segment::Damage {
            position: 1,
            reason: "test".to_owned(),
        });
        assert_eq!(step(&state, Some(COMPACTION), 0), None);
    }
}
