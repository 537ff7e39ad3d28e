//! Idempotent producers of a partition (KIP-98): what each sent last, so that nothing is appended twice or out of order.
//!
//! Part of the replicated state: no clock is read here, times come with the commands.

use std::collections::{BTreeMap, VecDeque};

use palisade_log::Offset;
use serde::{Deserialize, Serialize};

use crate::types::ProducerInfo;

/// Batches remembered of each producer; clients keep at most as many in flight.
const REMEMBERED: usize = 5;
/// Producers remembered of each partition; the one that was silent for the longest is forgotten first.
const MAX_PRODUCERS: usize = 20_000;

/// What a batch says of its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProducerBatch {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) record_count: u32,
}

impl ProducerBatch {
    fn last_sequence(&self) -> i32 {
        advance(self.base_sequence, self.record_count.saturating_sub(1))
    }
}

/// What is to be done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Append it.
    Next,
    /// It was appended at this offset before.
    Duplicate(Offset),
    /// It was appended before, too long ago to say where.
    OldDuplicate,
    /// Its producer was replaced by a later one.
    Fenced {
        /// The epoch that is valid.
        current: i16,
    },
    /// Something is missing before it.
    OutOfOrder {
        /// The sequence number that is next.
        expected: i32,
    },
}

/// The producers of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Producers(BTreeMap<i64, Producer>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    epoch: i16,
    /// Leader's clock at its last append, ms.
    appended_at: i64,
    last_timestamp: i64,
    /// First and last sequence number and base offset, oldest first.
    batches: VecDeque<(i32, i32, Offset)>,
}

impl Producers {
    /// Decides on a batch.
    ///
    /// A producer that is not known begins with sequence 0. Kafka lets it begin anywhere, as its state may have expired; but a client sends several batches at
    /// once, and when leadership changes in between, the first may be refused and a later one arrive where it can be appended. It must wait for those before it:
    /// they would be taken for duplicates when they are sent again, that is, acknowledged and lost. Whose state has expired starts a new epoch.
    pub(crate) fn check(&self, batch: &ProducerBatch) -> Verdict {
        let Some(producer) = self.0.get(&batch.producer_id) else {
            return match batch.base_sequence {
                0 => Verdict::Next,
                _ => Verdict::OutOfOrder { expected: 0 },
            };
        };
        if batch.epoch < producer.epoch {
            return Verdict::Fenced {
                current: producer.epoch,
            };
        }
        if batch.epoch > producer.epoch {
            return if batch.base_sequence == 0 {
                Verdict::Next
            } else {
                Verdict::OutOfOrder { expected: 0 }
            };
        }
        let Some((_, last, _)) = producer.batches.back() else {
            return Verdict::Next;
        };
        let range = (batch.base_sequence, batch.last_sequence());
        if let Some((_, _, offset)) = producer
            .batches
            .iter()
            .find(|(first, last, _)| (*first, *last) == range)
        {
            return Verdict::Duplicate(*offset);
        }
        let expected = advance(*last, 1);
        if batch.base_sequence == expected {
            return Verdict::Next;
        }
        // Everything from the oldest batch remembered back to sequence 0 was appended.
        match producer.batches.front() {
            Some((oldest, ..)) if range.0 <= range.1 && range.1 < *oldest => Verdict::OldDuplicate,
            _ => Verdict::OutOfOrder { expected },
        }
    }

    /// Takes note of a batch that was appended.
    pub(crate) fn appended(
        &mut self,
        batch: &ProducerBatch,
        base_offset: Offset,
        max_timestamp: i64,
        appended_at: i64,
    ) {
        if self.0.len() >= MAX_PRODUCERS && !self.0.contains_key(&batch.producer_id) {
            let silent = self
                .0
                .iter()
                .min_by_key(|(id, producer)| (producer.appended_at, **id))
                .map(|(id, _)| *id);
            silent.and_then(|id| self.0.remove(&id));
        }
        let producer = self.0.entry(batch.producer_id).or_insert_with(|| Producer {
            epoch: batch.epoch,
            appended_at,
            last_timestamp: max_timestamp,
            batches: VecDeque::with_capacity(REMEMBERED),
        });
        if producer.epoch != batch.epoch {
            producer.epoch = batch.epoch;
            producer.batches.clear();
        }
        if producer.batches.len() >= REMEMBERED {
            producer.batches.pop_front();
        }
        producer.appended_at = appended_at;
        producer.last_timestamp = max_timestamp;
        producer
            .batches
            .push_back((batch.base_sequence, batch.last_sequence(), base_offset));
    }

    /// Forgets producers that appended nothing since `before`, ms.
    pub(crate) fn expire(&mut self, before: i64) {
        self.0.retain(|_, producer| producer.appended_at >= before);
    }

    /// Whether [`Producers::expire`] would forget something.
    pub(crate) fn has_older_than(&self, before: i64) -> bool {
        self.0
            .values()
            .any(|producer| producer.appended_at < before)
    }

    /// Base offsets of the last batch of each: compaction leaves these batches, empty if need be.
    pub(crate) fn last_batches(&self) -> impl Iterator<Item = Offset> {
        self.0
            .values()
            .filter_map(|producer| producer.batches.back().map(|(_, _, offset)| *offset))
    }

    pub(crate) fn list(&self) -> Vec<ProducerInfo> {
        let info = |(id, producer): (&i64, &Producer)| ProducerInfo {
            producer_id: *id,
            epoch: producer.epoch,
            last_sequence: producer.batches.back().map_or(-1, |(_, last, _)| *last),
            last_timestamp: producer.last_timestamp,
        };
        self.0.iter().map(info).collect()
    }
}

/// Sequence numbers wrap from `i32::MAX` to 0.
fn advance(sequence: i32, by: u32) -> i32 {
    let wrapped = (i64::from(sequence) + i64::from(by)) % (i64::from(i32::MAX) + 1);
    i32::try_from(wrapped).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i16, base_sequence: i32, record_count: u32) -> ProducerBatch {
        ProducerBatch {
            producer_id: 9,
            epoch,
            base_sequence,
            record_count,
        }
    }

    fn after(batches: &[(i16, i32, u32)]) -> Producers {
        let mut producers = Producers::default();
        let mut offset = 100;
        for &(epoch, sequence, count) in batches {
            let batch = batch(epoch, sequence, count);
            assert_eq!(producers.check(&batch), Verdict::Next, "{batch:?}");
            producers.appended(&batch, Offset(offset), 0, offset);
            offset += i64::from(count);
        }
        producers
    }

    #[test]
    fn batches_in_order_are_appended_and_gaps_refused() {
        let producers = after(&[(0, 0, 3), (0, 3, 1)]);
        assert_eq!(producers.check(&batch(0, 4, 1)), Verdict::Next);
        assert_eq!(
            producers.check(&batch(0, 5, 1)),
            Verdict::OutOfOrder { expected: 4 }
        );
        assert_eq!(
            producers.check(&batch(0, 3, 2)),
            Verdict::OutOfOrder { expected: 4 },
            "another batch at a known place"
        );
    }

    #[test]
    fn the_last_five_batches_are_recognised_with_their_offset() {
        let sent: Vec<_> = (0..7).map(|n| (0, n * 2, 2)).collect();
        let producers = after(&sent);
        for n in 2..7 {
            assert_eq!(
                producers.check(&batch(0, n * 2, 2)),
                Verdict::Duplicate(Offset(100 + i64::from(n) * 2))
            );
        }
        assert_eq!(producers.check(&batch(0, 2, 2)), Verdict::OldDuplicate);
        assert_eq!(
            producers.check(&batch(0, 3, 2)),
            Verdict::OutOfOrder { expected: 14 }
        );
    }

    #[test]
    fn a_new_epoch_begins_at_zero_and_fences_the_old_one() {
        let mut producers = after(&[(1, 0, 3)]);
        assert_eq!(
            producers.check(&batch(2, 3, 1)),
            Verdict::OutOfOrder { expected: 0 }
        );
        assert_eq!(producers.check(&batch(2, 0, 1)), Verdict::Next);
        producers.appended(&batch(2, 0, 1), Offset(103), 0, 0);
        assert_eq!(
            producers.check(&batch(1, 3, 1)),
            Verdict::Fenced { current: 2 }
        );
        assert_eq!(
            producers.check(&batch(2, 0, 1)),
            Verdict::Duplicate(Offset(103))
        );
    }

    #[test]
    fn sequences_wrap() {
        let begun = (0, 0, i32::MAX as u32 - 1);
        let producers = after(&[begun, (0, i32::MAX - 1, 2), (0, 0, 1)]);
        assert_eq!(producers.check(&batch(0, 1, 1)), Verdict::Next);
        let mut producers = Producers::default();
        producers.appended(&batch(0, i32::MAX, 3), Offset(100), 0, 100);
        assert_eq!(producers.check(&batch(0, 2, 1)), Verdict::Next);
        assert_eq!(
            producers.check(&batch(0, i32::MAX, 3)),
            Verdict::Duplicate(Offset(100))
        );
    }

    #[test]
    fn a_batch_that_overtakes_the_first_one_waits_for_it() {
        let overtaking = batch(0, 5, 2);
        let mut producers = after(&[]);
        assert_eq!(
            producers.check(&overtaking),
            Verdict::OutOfOrder { expected: 0 }
        );
        let first = batch(0, 0, 5);
        assert_eq!(producers.check(&first), Verdict::Next);
        producers.appended(&first, Offset(0), 0, 0);
        assert_eq!(producers.check(&overtaking), Verdict::Next);
    }

    #[test]
    fn silent_producers_expire() {
        let mut producers = after(&[(0, 0, 1)]);
        assert!(!producers.has_older_than(100));
        producers.expire(100);
        assert_eq!(producers.list().len(), 1);
        assert!(producers.has_older_than(101));
        producers.expire(101);
        assert!(producers.list().is_empty());
    }

    #[test]
    fn the_number_of_producers_is_bounded() {
        let mut producers = Producers::default();
        for id in 0..MAX_PRODUCERS as i64 + 10 {
            producers.appended(
                &ProducerBatch {
                    producer_id: id,
                    ..batch(0, 0, 1)
                },
                Offset(id),
                0,
                id,
            );
        }
        assert_eq!(producers.0.len(), MAX_PRODUCERS);
        assert!(
            !producers.0.contains_key(&9) && producers.0.contains_key(&10),
            "the silent ones went"
        );
    }
}
