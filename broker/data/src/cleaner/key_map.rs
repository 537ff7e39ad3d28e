//! The last offset of every key in a part of a log.

use palisade_log::Offset;
use palisade_seal::{Fingerprints, SealError};

/// Bytes of one slot.
const SLOT: usize = size_of::<[u64; 3]>();
/// How full it may become, in quarters: linear probing gets slow beyond.
const FULL_QUARTERS: usize = 3;
const MIN_SLOTS: usize = 16;
/// Marks a slot that is free: no record has this offset.
const FREE: u64 = u64::MAX;

/// Keys by their 128-bit fingerprints, in a table that does not grow.
#[derive(Debug)]
pub(super) struct KeyMap {
    fingerprints: Fingerprints,
    /// Fingerprint and offset.
    slots: Vec<[u64; 3]>,
    used: usize,
}

impl KeyMap {
    /// A map for at most `keys` keys in at most `budget` bytes.
    pub(super) fn new(budget: usize, keys: u64) -> Result<Self, SealError> {
        let wanted = usize::try_from(keys)
            .unwrap_or(usize::MAX)
            .saturating_mul(4)
            .div_ceil(FULL_QUARTERS)
            .saturating_add(1);
        let slots = (budget / SLOT).min(wanted).max(MIN_SLOTS);
        Ok(Self {
            fingerprints: Fingerprints::new()?,
            slots: vec![[0, 0, FREE]; slots],
            used: 0,
        })
    }

    /// Takes note of a record; offsets come in order. False when the key is new and there is no room.
    pub(super) fn insert(&mut self, key: &[u8], offset: i64) -> bool {
        let (high, low) = self.split(key);
        let full = self.used >= self.slots.len() / 4 * FULL_QUARTERS;
        let Some(slot) = self.find(high, low).and_then(|at| self.slots.get_mut(at)) else {
            return false;
        };
        if slot[2] == FREE {
            if full {
                return false;
            }
            self.used = self.used.saturating_add(1);
        }
        *slot = [high, low, u64::try_from(offset).unwrap_or(0)];
        true
    }

    /// Offset of the last record with this key.
    pub(super) fn last(&self, key: &[u8]) -> Option<Offset> {
        let (high, low) = self.split(key);
        let slot = self.slots.get(self.find(high, low)?)?;
        (slot[2] != FREE).then(|| Offset(i64::try_from(slot[2]).unwrap_or(i64::MAX)))
    }

    fn split(&self, key: &[u8]) -> (u64, u64) {
        let fingerprint = self.fingerprints.of(key);
        ((fingerprint >> 64) as u64, fingerprint as u64)
    }

    /// The slot of a fingerprint, or the free one where it belongs.
    fn find(&self, high: u64, low: u64) -> Option<usize> {
        let count = self.slots.len();
        let first = usize::try_from(low % count as u64).ok()?;
        (first..count).chain(0..first).find(|at| {
            self.slots
                .get(*at)
                .is_some_and(|slot| slot[2] == FREE || (slot[0] == high && slot[1] == low))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn knows_the_last_offset_of_every_key() {
        let mut map = KeyMap::new(1 << 20, 10_000).unwrap();
        let mut model = HashMap::new();
        for offset in 0..10_000i64 {
            let key = (offset * 7919 % 3001).to_string();
            assert!(map.insert(key.as_bytes(), offset));
            model.insert(key, offset);
        }
        for (key, offset) in &model {
            assert_eq!(map.last(key.as_bytes()), Some(Offset(*offset)));
        }
        assert_eq!(map.last(b"other"), None);
    }

    #[test]
    fn keeps_to_its_budget_and_still_updates_what_it_knows() {
        let mut map = KeyMap::new(SLOT * 100, 1_000_000).unwrap();
        assert_eq!(map.slots.len(), 100);
        let taken = (0..1000i64)
            .take_while(|n| map.insert(&n.to_be_bytes(), *n))
            .count();
        assert_eq!(taken, 75);
        assert!(map.insert(&3i64.to_be_bytes(), 5000));
        assert!(!map.insert(b"new", 5001));
        assert_eq!(map.last(&3i64.to_be_bytes()), Some(Offset(5000)));
    }

    #[test]
    fn is_not_larger_than_it_has_to_be() {
        assert!(KeyMap::new(1 << 30, 100).unwrap().slots.len() < 140);
        assert_eq!(KeyMap::new(0, 0).unwrap().slots.len(), MIN_SLOTS);
    }
}
