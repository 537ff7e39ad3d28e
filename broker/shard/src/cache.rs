//! The shard's log in memory: entries that are not applied yet, a tail of those that are, and the few log ids that Raft asks for.

use std::collections::VecDeque;

use crate::raft_types::{Entry, LogId};

/// What an entry takes in memory beyond its command, about.
const ENTRY_BYTES: usize = 128;

/// Entries from `first` on, without gaps.
///
/// Applied entries stay until they are dropped, because replicas that are behind need them. The write-ahead log has them until they are released.
#[derive(Debug, Default)]
pub(crate) struct EntryCache {
    entries: VecDeque<Entry>,
    last: Option<LogId>,
    /// Index of the first entry that is not applied.
    next_to_apply: u64,
    /// Size of the applied entries that are here.
    applied_bytes: usize,
}

impl EntryCache {
    /// The log id of the last entry ever appended, or where the log was purged.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.last
    }

    /// Size of the applied entries that are here.
    pub(crate) fn applied_bytes(&self) -> usize {
        self.applied_bytes
    }

    /// Sets where an empty log ends.
    pub(crate) fn begin_after(&mut self, purged: LogId) {
        self.entries.clear();
        self.applied_bytes = 0;
        self.next_to_apply = self.next_to_apply.max(purged.index.saturating_add(1));
        self.last = Some(purged);
    }

    /// Appends an entry; one at an index that is there already replaces it and all that follow.
    pub(crate) fn append(&mut self, entry: Entry) {
        if let Some(front) = self.entries.front() {
            let keep = entry.log_id.index.saturating_sub(front.log_id.index);
            self.entries
                .truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        }
        self.last = Some(entry.log_id);
        self.entries.push_back(entry);
    }

    /// Drops all entries after `keep`.
    pub(crate) fn truncate_after(&mut self, keep: Option<LogId>) {
        let end = keep.map_or(0, |id| id.index.saturating_add(1));
        while self
            .entries
            .back()
            .is_some_and(|entry| entry.log_id.index >= end)
        {
            self.entries.pop_back();
        }
        self.last = keep;
    }

    /// Drops entries up to `index`, which are applied or covered by a snapshot.
    pub(crate) fn drop_through(&mut self, index: u64) {
        while let Some(entry) = self
            .entries
            .pop_front_if(|entry| entry.log_id.index <= index)
        {
            if entry.log_id.index < self.next_to_apply {
                self.applied_bytes = self.applied_bytes.saturating_sub(size(&entry));
            }
        }
        self.next_to_apply = self.next_to_apply.max(index.saturating_add(1));
    }

    /// Notes that the entries up to `index` were applied.
    pub(crate) fn applied(&mut self, index: u64) {
        let end = index.saturating_add(1);
        if end <= self.next_to_apply {
            return;
        }
        let first = self.entries.front().map_or(0, |entry| entry.log_id.index);
        let skip = self.next_to_apply.saturating_sub(first);
        let added = self
            .entries
            .iter()
            .skip(usize::try_from(skip).unwrap_or(usize::MAX))
            .take_while(|entry| entry.log_id.index < end)
            .fold(0_usize, |sum, entry| sum.saturating_add(size(entry)));
        self.applied_bytes = self.applied_bytes.saturating_add(added);
        self.next_to_apply = end;
    }

    /// The index through which applied entries are to be dropped so that at most `keep_bytes` of them stay; `None`: there is nothing to drop.
    pub(crate) fn surplus(&self, keep_bytes: usize) -> Option<u64> {
        let mut left = self.applied_bytes;
        let mut through = None;
        for entry in &self.entries {
            if left <= keep_bytes || entry.log_id.index >= self.next_to_apply {
                break;
            }
            left = left.saturating_sub(size(entry));
            through = Some(entry.log_id.index);
        }
        through
    }

    /// Entries from `start` up to but not including `end`, of at most `max_bytes` (but at least one). `Err` with the index that is not in memory any more.
    pub(crate) fn range(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<Entry>, u64> {
        let end = end.min(self.last.map_or(0, |last| last.index.saturating_add(1)));
        if start >= end {
            return Ok(Vec::new());
        }
        let first = self.entries.front().ok_or(start)?.log_id.index;
        let skip = start
            .checked_sub(first)
            .and_then(|skip| usize::try_from(skip).ok())
            .ok_or(start)?;
        let count = usize::try_from(end - start).unwrap_or(usize::MAX);
        let mut bytes = 0_usize;
        Ok(self
            .entries
            .range(skip.min(self.entries.len())..)
            .take(count)
            .enumerate()
            .take_while(|(position, entry)| {
                bytes = bytes.saturating_add(size(entry));
                *position == 0 || bytes <= max_bytes
            })
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    /// The log id at `index`.
    pub(crate) fn log_id(&self, index: u64) -> Option<LogId> {
        let first = self.entries.front()?.log_id.index;
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        self.entries.get(place).map(|entry| entry.log_id)
    }

    /// Entries from the newest to the oldest.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(command) => command.len().saturating_add(ENTRY_BYTES),
        _ => ENTRY_BYTES,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::EntryPayload;

    use super::*;
    use crate::{Command, raft_types::log_id};

    fn filled(range: std::ops::Range<u64>) -> EntryCache {
        let mut cache = EntryCache::default();
        for index in range {
            cache.append(Entry {
                log_id: log_id(1, index),
                payload: EntryPayload::Normal(Command::new(vec![0; 10], vec![])),
            });
        }
        cache
    }

    fn indexes(cache: &EntryCache, start: u64, end: u64, bytes: usize) -> Vec<u64> {
        cache
            .range(start, end, bytes)
            .unwrap()
            .iter()
            .map(|entry| entry.log_id.index)
            .collect()
    }

    #[test]
    fn ranges_are_cut_by_what_is_there_and_by_bytes() {
        let cache = filled(5..10);
        assert_eq!(indexes(&cache, 6, 8, 1000), [6, 7]);
        assert_eq!(indexes(&cache, 8, 100, 1000), [8, 9]);
        assert_eq!(indexes(&cache, 10, 100, 1000), [0; 0]);
        assert_eq!(indexes(&cache, 5, 10, 2 * (10 + ENTRY_BYTES) + 5), [5, 6]);
        assert_eq!(
            indexes(&cache, 5, 10, 1),
            [5],
            "at least one, or nobody gets on"
        );
    }

    #[test]
    fn what_was_dropped_is_an_error_and_not_a_hole() {
        let mut cache = filled(5..10);
        cache.drop_through(7);
        assert_eq!(cache.range(6, 9, 1000).unwrap_err(), 6);
        assert_eq!(indexes(&cache, 8, 10, 1000), [8, 9]);
        cache.drop_through(9);
        assert_eq!(cache.range(9, 10, 1000).unwrap_err(), 9);
        assert_eq!(cache.last(), Some(log_id(1, 9)));
    }

    #[test]
    fn a_conflicting_entry_replaces_what_follows() {
        let mut cache = filled(5..10);
        cache.append(Entry {
            log_id: log_id(2, 7),
            payload: EntryPayload::Blank,
        });
        assert_eq!(indexes(&cache, 5, 100, 1000), [5, 6, 7]);
        assert_eq!(cache.last(), Some(log_id(2, 7)));
        cache.truncate_after(Some(log_id(1, 5)));
        assert_eq!(indexes(&cache, 5, 100, 1000), [5]);
    }

    #[test]
    fn the_tail_of_applied_entries_is_measured_and_trimmed() {
        let each = 10 + ENTRY_BYTES;
        let mut cache = filled(5..15);
        assert_eq!(cache.surplus(0), None, "nothing is applied");
        cache.applied(9);
        assert_eq!(cache.applied_bytes(), 5 * each);
        assert_eq!(cache.surplus(5 * each), None);
        assert_eq!(cache.surplus(2 * each), Some(7));
        assert_eq!(
            cache.surplus(2 * each + 1),
            Some(7),
            "at most that much stays"
        );
        assert_eq!(cache.surplus(0), Some(9), "what is not applied stays");
        cache.drop_through(7);
        assert_eq!(cache.applied_bytes(), 2 * each);
        cache.applied(12);
        cache.applied(11);
        assert_eq!(cache.applied_bytes(), 5 * each);
        cache.begin_after(log_id(2, 40));
        assert_eq!((cache.applied_bytes(), cache.surplus(0)), (0, None));
        cache.append(Entry {
            log_id: log_id(2, 41),
            payload: EntryPayload::Blank,
        });
        cache.applied(41);
        assert_eq!(cache.applied_bytes(), ENTRY_BYTES);
    }
}
