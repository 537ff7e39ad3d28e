//! Which leader appended where (KIP-101).

use palisade_log::{LeaderEpoch, Offset};
use serde::{Deserialize, Serialize};

/// The epochs of a partition and the offset each began at, both growing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epochs(Vec<(LeaderEpoch, Offset)>);

impl Epochs {
    /// Takes note of a batch.
    pub(crate) fn appended(&mut self, epoch: LeaderEpoch, base_offset: Offset) {
        if self.latest().is_none_or(|latest| latest < epoch) {
            self.0.push((epoch, base_offset));
        }
    }

    /// Forgets epochs of which no record is left; the one that holds `start` stays.
    pub(crate) fn start_advanced(&mut self, start: Offset) {
        let later = self.0.partition_point(|(_, begin)| *begin <= start);
        self.0.drain(..later.saturating_sub(1));
    }

    pub(crate) fn latest(&self) -> Option<LeaderEpoch> {
        self.0.last().map(|(epoch, _)| *epoch)
    }

    /// The epoch in which `offset` was appended.
    pub(crate) fn of(&self, offset: Offset) -> Option<LeaderEpoch> {
        let later = self.0.partition_point(|(_, begin)| *begin <= offset);
        self.0.get(later.checked_sub(1)?).map(|(epoch, _)| *epoch)
    }

    /// Where the log of a leader of `wanted` ended: the largest epoch that is not later, and the offset after its last record. `current` is the epoch of the
    /// leader now, `end` the end of the log. `None` for an epoch that is still to come.
    pub(crate) fn end_of(
        &self,
        wanted: LeaderEpoch,
        current: LeaderEpoch,
        end: Offset,
    ) -> Option<(LeaderEpoch, Offset)> {
        if wanted > current {
            return None;
        }
        if wanted == current {
            return Some((wanted, end));
        }
        let later = self.0.partition_point(|(epoch, _)| *epoch <= wanted);
        let found = later
            .checked_sub(1)
            .and_then(|at| self.0.get(at))
            .map_or(wanted, |(epoch, _)| *epoch);
        Some((found, self.0.get(later).map_or(end, |(_, begin)| *begin)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs() -> Epochs {
        let mut epochs = Epochs::default();
        for (epoch, base) in [(2, 0), (2, 5), (4, 10), (7, 20), (7, 25)] {
            epochs.appended(LeaderEpoch(epoch), Offset(base));
        }
        epochs
    }

    #[test]
    fn the_end_of_an_epoch_is_the_start_of_the_next_that_appended() {
        let end_of = |wanted| {
            epochs()
                .end_of(LeaderEpoch(wanted), LeaderEpoch(9), Offset(30))
                .map(|(epoch, end)| (epoch.0, end.0))
        };
        assert_eq!(end_of(1), Some((1, 0)));
        assert_eq!(end_of(2), Some((2, 10)));
        assert_eq!(end_of(3), Some((2, 10)));
        assert_eq!(end_of(4), Some((4, 20)));
        assert_eq!(end_of(7), Some((7, 30)));
        assert_eq!(end_of(9), Some((9, 30)));
        assert_eq!(end_of(10), None);
        assert_eq!(
            Epochs::default().end_of(LeaderEpoch(1), LeaderEpoch(1), Offset(0)),
            Some((LeaderEpoch(1), Offset(0)))
        );
    }

    #[test]
    fn the_epoch_of_an_offset_survives_what_lies_before_it() {
        let mut epochs = epochs();
        assert_eq!(epochs.of(Offset(9)), Some(LeaderEpoch(2)));
        assert_eq!(epochs.of(Offset(10)), Some(LeaderEpoch(4)));
        epochs.start_advanced(Offset(12));
        assert_eq!(epochs.of(Offset(12)), Some(LeaderEpoch(4)));
        assert_eq!(epochs.0.len(), 2);
        epochs.start_advanced(Offset(30));
        assert_eq!(epochs.latest(), Some(LeaderEpoch(7)));
    }
}
