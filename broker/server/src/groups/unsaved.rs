//! Which groups' records are not known to be durable, and the answers that wait until they are. Decisions only: `keeper` does the writing.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use palisade_coordinator::group::{Effect, GroupError, JoinFailure};

/// After a write that failed, the next one of the same group waits so long, unless the group changes before or another answer waits for it.
const PAUSE: Duration = Duration::from_secs(1);

/// What came of writing the record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is durable.
    Kept,
    /// It may not be written yet, and nobody waits for it.
    Postponed,
    /// It is not known to be durable.
    Failed,
    /// There is nothing to write any more: the group is rebalancing.
    Rebalancing,
    /// This broker does not coordinate the group.
    Moved,
}

impl Outcome {
    /// What an answer becomes that has waited for it.
    fn answer(self, effect: Effect) -> Effect {
        match self {
            Self::Kept | Self::Postponed => effect,
            Self::Rebalancing => refused(effect, GroupError::RebalanceInProgress),
            Self::Failed | Self::Moved => refused(effect, GroupError::NotCoordinator),
        }
    }

    /// Whether it is to be written again although nothing has changed.
    const fn again(self) -> bool {
        matches!(self, Self::Failed | Self::Postponed)
    }
}

/// The same answer as a refusal.
fn refused(effect: Effect, error: GroupError) -> Effect {
    match effect {
        Effect::Sync { ticket, .. } => Effect::Sync {
            ticket,
            answer: Err(error),
        },
        // Only the joins of static members that come back without their id wait here.
        Effect::Join { ticket, .. } => Effect::Join {
            ticket,
            answer: Err(JoinFailure {
                error,
                member: String::new(),
            }),
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Queued,
    Writing,
    Paused,
}

/// A group whose record is not known to be durable.
#[derive(Debug)]
struct Change {
    /// Of its last change.
    number: u64,
    phase: Phase,
    /// Answers, each with the number of the change that has to be durable before.
    held: Vec<(u64, Effect)>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Unsaved {
    groups: BTreeMap<String, Change>,
    /// Groups to write, among them some that are not [`Phase::Queued`] any more.
    due: VecDeque<String>,
    /// Groups to write again, and when; those of them that are still [`Phase::Paused`].
    later: VecDeque<(Instant, String)>,
    /// Number of the last change of any group.
    last: u64,
}

impl Unsaved {
    /// Something else should be kept of a group than before.
    pub(super) fn note(&mut self, group: &str) {
        self.last += 1;
        let number = self.last;
        match self.groups.get_mut(group) {
            Some(change) => change.number = number,
            None => {
                let change = Change {
                    number,
                    phase: Phase::Paused,
                    held: Vec::new(),
                };
                self.groups.insert(group.to_owned(), change);
            }
        }
        self.queue(group);
    }

    /// Whether the record of a group is not known to be durable.
    pub(super) fn contains(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// Keeps an answer until the record of its group, as it is now, is durable.
    pub(super) fn hold(&mut self, group: &str, effect: Effect) {
        if let Some(change) = self.groups.get_mut(group) {
            change.held.push((change.number, effect));
            self.queue(group);
        }
    }

    fn queue(&mut self, group: &str) {
        if let Some(change) = self.groups.get_mut(group)
            && change.phase == Phase::Paused
        {
            change.phase = Phase::Queued;
            self.due.push_back(group.to_owned());
        }
    }

    /// The next group to write, and the number of its change, which is given back with the outcome.
    pub(super) fn next(&mut self, now: Instant) -> Option<(String, u64)> {
        while self.later.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, group)) = self.later.pop_front() {
                self.queue(&group);
            }
        }
        while let Some(group) = self.due.pop_front() {
            if let Some(change) = self.groups.get_mut(&group)
                && change.phase == Phase::Queued
            {
                change.phase = Phase::Writing;
                return Some((group, change.number));
            }
        }
        None
    }

    /// When there is something to write again, if nothing happens before.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.later.front().map(|(at, _)| *at)
    }

    /// Takes note of what came of a write; returns the answers that are due by it.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        group: &str,
        number: u64,
        outcome: Outcome,
    ) -> Vec<Effect> {
        let Some(change) = self.groups.get_mut(group) else {
            return Vec::new();
        };
        let is_current = change.number == number;
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut change.held)
            .into_iter()
            .partition(|(at, _)| *at <= number);
        change.held = later;
        if !is_current {
            change.phase = Phase::Paused;
            self.queue(group);
        } else if outcome.again() {
            change.phase = Phase::Paused;
            self.later.push_back((now + PAUSE, group.to_owned()));
        } else {
            self.groups.remove(group);
        }
        due.into_iter()
            .map(|(_, effect)| outcome.answer(effect))
            .collect()
    }

    /// Forgets the groups for which `moved` says so; returns the answers that waited, as refusals.
    pub(super) fn give_up(&mut self, moved: impl Fn(&str) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.groups.retain(|group, change| {
            let is_moved = moved(group);
            if is_moved {
                let held = std::mem::take(&mut change.held);
                effects.extend(
                    held.into_iter()
                        .map(|(_, effect)| Outcome::Moved.answer(effect)),
                );
            }
            !is_moved
        });
        effects
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use palisade_coordinator::group::{Synced, Ticket};

    use super::*;

    fn answer(ticket: u64) -> Effect {
        Effect::Sync {
            ticket: Ticket(ticket),
            answer: Ok(Synced {
                protocol_type: "consumer".to_owned(),
                protocol: "range".to_owned(),
                assignment: Bytes::from_static(b"all"),
            }),
        }
    }

    fn refusal(ticket: u64, error: GroupError) -> Effect {
        refused(answer(ticket), error)
    }

    /// Groups a and b have changed, and an answer of each waits.
    fn two() -> (Unsaved, Instant) {
        let mut unsaved = Unsaved::default();
        for (ticket, group) in [(1, "a"), (2, "b")] {
            unsaved.note(group);
            unsaved.hold(group, answer(ticket));
        }
        (unsaved, Instant::now())
    }

    #[test]
    fn an_answer_waits_for_the_record_of_its_group() {
        let (mut unsaved, now) = two();
        assert_eq!(unsaved.next(now), Some(("a".to_owned(), 1)));
        assert_eq!(unsaved.next(now), Some(("b".to_owned(), 2)));
        assert_eq!(unsaved.next(now), None);
        // One that comes while it is written waits for the same.
        unsaved.hold("b", answer(3));
        assert_eq!(unsaved.next(now), None);
        let due = unsaved.settle(now, "b", 2, Outcome::Kept);
        assert_eq!(due, [answer(2), answer(3)]);
        assert!(unsaved.contains("a") && !unsaved.contains("b"));
        assert_eq!(unsaved.settle(now, "a", 1, Outcome::Kept), [answer(1)]);
        assert!(!unsaved.contains("a"));
        assert_eq!(unsaved.next_retry(), None);
    }

    #[test]
    fn what_changes_while_it_is_written_is_written_again() {
        let (mut unsaved, now) = two();
        let (group, first) = unsaved.next(now).unwrap_or_default();
        unsaved.note(&group);
        unsaved.hold(&group, answer(3));
        unsaved.next(now);
        assert_eq!(unsaved.next(now), None, "one write of a group at a time");
        assert_eq!(
            unsaved.settle(now, &group, first, Outcome::Kept),
            [answer(1)]
        );
        assert!(unsaved.contains(&group));
        let (again, second) = unsaved.next(now).unwrap_or_default();
        assert_eq!(again, group);
        assert!(second > first);
        assert_eq!(
            unsaved.settle(now, &group, second, Outcome::Kept),
            [answer(3)]
        );
        assert!(!unsaved.contains(&group));
    }

    #[test]
    fn what_failed_is_refused_and_tried_again_after_a_pause() {
        let (mut unsaved, now) = two();
        unsaved.next(now);
        assert_eq!(
            unsaved.settle(now, "a", 1, Outcome::Failed),
            [refusal(1, GroupError::NotCoordinator)]
        );
        unsaved.next(now);
        unsaved.settle(now, "b", 2, Outcome::Kept);
        assert!(unsaved.contains("a"));
        assert_eq!(unsaved.next(now), None);
        assert_eq!(unsaved.next_retry(), Some(now + PAUSE));
        let later = now + PAUSE;
        assert_eq!(unsaved.next(later), Some(("a".to_owned(), 1)));
        unsaved.settle(later, "a", 1, Outcome::Failed);
        // Somebody waits for it: no pause.
        unsaved.hold("a", answer(3));
        assert_eq!(unsaved.next(later), Some(("a".to_owned(), 1)));
        assert_eq!(unsaved.settle(later, "a", 1, Outcome::Kept), [answer(3)]);
        assert_eq!(unsaved.next(later + PAUSE), None);
    }

    #[test]
    fn what_may_not_be_written_yet_holds_nobody_up() {
        let (mut unsaved, now) = two();
        unsaved.next(now);
        assert_eq!(unsaved.settle(now, "a", 1, Outcome::Postponed), [answer(1)]);
        assert!(unsaved.contains("a"));
    }

    #[test]
    fn a_rebalance_that_begins_before_it_is_written_is_told() {
        let (mut unsaved, now) = two();
        unsaved.next(now);
        assert_eq!(
            unsaved.settle(now, "a", 1, Outcome::Rebalancing),
            [refusal(1, GroupError::RebalanceInProgress)]
        );
        assert!(!unsaved.contains("a"));
    }

    #[test]
    fn groups_that_have_moved_are_refused_and_their_writes_mean_nothing() {
        let (mut unsaved, now) = two();
        unsaved.next(now);
        assert_eq!(
            unsaved.give_up(|group| group == "a"),
            [refusal(1, GroupError::NotCoordinator)]
        );
        assert!(unsaved.settle(now, "a", 1, Outcome::Kept).is_empty());
        // It comes back before the old write has ended, which says nothing of the new one.
        unsaved.note("a");
        unsaved.hold("a", answer(3));
        assert!(unsaved.settle(now, "a", 1, Outcome::Kept).is_empty());
        let mut next = || unsaved.next(now).map(|(group, _)| group);
        assert_eq!(next().as_deref(), Some("b"));
        assert_eq!(next().as_deref(), Some("a"));
        assert_eq!(next(), None);
    }
}
