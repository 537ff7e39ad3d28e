//! The shard's log in memory: entries that are not applied yet, and the few log ids that Raft asks for.

use std::collections::VecDeque;

use crate::raft_types::{Entry, LogId};

/// Entries from `first` on, without gaps.
///
/// Entries are dropped once applied: with one voter nobody reads them again. The write-ahead log has them until they are released.
#[derive(Debug, Default)]
pub(crate) struct EntryCache {
    entries: VecDeque<Entry>,
    last: Option<LogId>,
}

impl EntryCache {
    /// The log id of the last entry ever appended, or where the log was purged.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.last
    }

    /// Sets where an empty log ends.
    pub(crate) fn begin_after(&mut self, purged: LogId) {
        self.entries.clear();
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

    /// Drops entries up to `index`, which are applied or purged.
    pub(crate) fn drop_through(&mut self, index: u64) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.log_id.index <= index)
        {
            self.entries.pop_front();
        }
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
            .iter()
            .skip(skip)
            .take(count)
            .enumerate()
            .take_while(|(position, entry)| {
                bytes = bytes.saturating_add(size(entry));
                *position == 0 || bytes <= max_bytes
            })
            .map(|(_, entry)| entry.clone())
            .collect())
    }
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(command) => command.len(),
        _ => 0,
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
        assert_eq!(indexes(&cache, 5, 10, 25), [5, 6]);
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
}
