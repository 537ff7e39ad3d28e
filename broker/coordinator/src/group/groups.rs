//! All groups that a broker coordinates.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    machine::{Group, refused_join, sync_effect},
    record::Keep,
    types::{
        Effect, GroupDescription, GroupError, GroupListing, GroupSettings, GroupState, JoinRequest,
        LeavingMember, Membership, SyncRequest, Ticket, TopicUse,
    },
};
use crate::offsets::GroupRecord;

/// Most protocols a member may offer; clients offer one to three. What all members have in common is looked for by comparing them.
const MAX_PROTOCOLS: usize = 64;

/// All groups that a broker coordinates, and when time next changes one of them.
#[derive(Debug)]
pub struct Groups {
    settings: GroupSettings,
    groups: BTreeMap<String, Group>,
    /// When to look at which group. Heartbeats only move deadlines away, so an entry may be early, never late.
    agenda: BTreeSet<(Instant, String)>,
    planned: BTreeMap<String, Instant>,
    /// Groups of which something else should be kept than when this was last taken.
    changed: BTreeSet<String>,
}

impl Groups {
    /// No groups.
    #[must_use]
    pub const fn new(settings: GroupSettings) -> Self {
        Self {
            settings,
            groups: BTreeMap::new(),
            agenda: BTreeSet::new(),
            planned: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// JoinGroup. The answer is an [`Effect::Join`] with this ticket, of this call or a later one.
    pub fn join(&mut self, now: Instant, request: JoinRequest, ticket: Ticket) -> Vec<Effect> {
        if let Err(error) = self.check_join(&request) {
            return vec![refused_join(ticket, &request.member, error)];
        }
        let id = request.group.clone();
        let mut effects = Vec::new();
        let group = self
            .groups
            .entry(id.clone())
            .or_insert_with(|| Group::new(now));
        group.join(now, request, ticket, &self.settings, &mut effects);
        self.plan(&id);
        effects
    }

    fn check_join(&mut self, request: &JoinRequest) -> Result<(), GroupError> {
        if request.group.is_empty() {
            return Err(GroupError::InvalidGroupId);
        }
        let limits = self.settings.min_session_timeout..=self.settings.max_session_timeout;
        if !limits.contains(&request.session_timeout) {
            return Err(GroupError::InvalidSessionTimeout);
        }
        let bytes: usize = request
            .protocols
            .iter()
            .map(|(name, metadata)| name.len() + metadata.len())
            .sum();
        if bytes > self.settings.max_member_bytes || request.protocols.len() > MAX_PROTOCOLS {
            return Err(GroupError::TooLarge);
        }
        if self.groups.contains_key(&request.group) {
            return Ok(());
        }
        if !request.member.is_empty() {
            return Err(GroupError::UnknownMemberId);
        }
        if self.groups.len() >= self.settings.max_groups {
            // Idle groups are remembered for descriptions only.
            self.forget_idle(|_| true);
        }
        if self.groups.len() >= self.settings.max_groups {
            return Err(GroupError::TooManyGroups);
        }
        Ok(())
    }

    /// SyncGroup. The answer is an [`Effect::Sync`] with this ticket, of this call or a later one.
    pub fn sync(&mut self, now: Instant, request: SyncRequest, ticket: Ticket) -> Vec<Effect> {
        let largest = request
            .assignments
            .iter()
            .map(|(_, bytes)| bytes.len())
            .max();
        if largest.is_some_and(|bytes| bytes > self.settings.max_member_bytes) {
            return vec![sync_effect(ticket, Err(GroupError::TooLarge))];
        }
        let id = request.from.group.clone();
        let mut effects = Vec::new();
        match self.groups.get_mut(&id) {
            Some(group) => group.sync(now, request, ticket, &mut effects),
            None => effects.push(sync_effect(ticket, Err(GroupError::UnknownMemberId))),
        }
        self.plan(&id);
        effects
    }

    /// Heartbeat.
    ///
    /// # Errors
    /// [`GroupError::RebalanceInProgress`] tells a member to join again, the others that it is none any more.
    pub fn heartbeat(&mut self, now: Instant, from: &Membership) -> Result<(), GroupError> {
        self.groups
            .get_mut(&from.group)
            .ok_or(GroupError::UnknownMemberId)?
            .heartbeat(now, from)
    }

    /// LeaveGroup: the outcome for each member, and the answers that became due.
    pub fn leave(
        &mut self,
        now: Instant,
        group: &str,
        leaving: &[LeavingMember],
    ) -> (Vec<Result<(), GroupError>>, Vec<Effect>) {
        let mut effects = Vec::new();
        let outcomes = match self.groups.get_mut(group) {
            Some(found) => found.leave(now, leaving, &self.settings, &mut effects),
            None => vec![Err(GroupError::UnknownMemberId); leaving.len()],
        };
        self.plan(group);
        (outcomes, effects)
    }

    /// Whether a commit may be stored; counts as a sign of life of the member.
    ///
    /// # Errors
    /// [`GroupError`] when it comes from no member of the current generation.
    pub fn check_commit(&mut self, now: Instant, from: &Membership) -> Result<(), GroupError> {
        match self.groups.get_mut(&from.group) {
            Some(group) => group.check_commit(now, from),
            None if from.group.is_empty() => Err(GroupError::InvalidGroupId),
            // Someone who commits without being a member of anything: the tools, or a consumer that assigns itself.
            None if from.generation < 0 => Ok(()),
            None => Err(GroupError::IllegalGeneration),
        }
    }

    /// Does what time has done until `now`: the answers that became due by it.
    pub fn tick(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut due = Vec::new();
        while self.agenda.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, id)) = self.agenda.pop_first() else {
                break;
            };
            self.planned.remove(&id);
            due.push(id);
        }
        for id in due {
            if let Some(group) = self.groups.get_mut(&id) {
                group.expire(now, &self.settings, &mut effects);
            }
            self.plan(&id);
        }
        effects
    }

    /// When [`Groups::tick`] has something to do next; it may turn out to be nothing yet.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// A group; `None` when this broker knows nothing of it (which says nothing about its committed offsets).
    #[must_use]
    pub fn describe(&self, group: &str) -> Option<GroupDescription> {
        self.groups.get(group).map(Group::describe)
    }

    /// Every group that this broker knows of, by id.
    pub fn list(&self) -> impl Iterator<Item = GroupListing> {
        self.groups.iter().map(|(id, group)| group.listing(id))
    }

    /// Forgets a group that has no members.
    ///
    /// # Errors
    /// [`GroupError::NonEmptyGroup`].
    pub fn delete(&mut self, group: &str) -> Result<(), GroupError> {
        match self.groups.get(group) {
            Some(found) if found.state != GroupState::Empty => Err(GroupError::NonEmptyGroup),
            Some(_) => {
                self.groups.remove(group);
                self.changed.remove(group);
                self.plan(group);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The topics whose offsets may not be deleted because members subscribe to them.
    ///
    /// # Errors
    /// [`GroupError::NonEmptyGroup`] when the group has members whose subscriptions are not known.
    pub fn undeletable_topics(&self, group: &str) -> Result<BTreeSet<String>, GroupError> {
        self.groups
            .get(group)
            .map_or_else(|| Ok(BTreeSet::new()), Group::undeletable_topics)
    }

    /// Which topics a group uses now. Reads what every member subscribes to: to be asked once for all topics.
    #[must_use]
    pub fn topic_use(&self, now: Instant, group: &str) -> TopicUse {
        let Some(found) = self.groups.get(group) else {
            return TopicUse::Unknown;
        };
        match found.state {
            GroupState::Empty => {
                TopicUse::EmptyFor(now.saturating_duration_since(found.empty_since))
            }
            GroupState::Stable => found
                .subscribed_topics()
                .map_or(TopicUse::Any, TopicUse::Only),
            // During a rebalance one that has not joined again yet may subscribe to any.
            _ => TopicUse::Any,
        }
    }

    /// Groups that have had nobody to remember for at least `age`.
    #[must_use]
    pub fn idle_for(&self, now: Instant, age: Duration) -> BTreeSet<String> {
        let is_old = |since: Instant| now.saturating_duration_since(since) >= age;
        self.groups
            .iter()
            .filter(|(_, group)| group.is_idle() && is_old(group.empty_since))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Forgets groups without members for which `forget` says so, e.g. because they have no committed offsets.
    pub fn forget_idle(&mut self, forget: impl Fn(&str) -> bool) {
        self.groups
            .retain(|id, group| !(group.is_idle() && forget(id)));
        self.planned.retain(|id, at| {
            let keep = self.groups.contains_key(id);
            if !keep {
                self.agenda.remove(&(*at, id.clone()));
            }
            keep
        });
    }

    /// Gives up the groups for which `moved` says so: everything that waits is answered, and they are forgotten. Members
    /// find the new coordinator and join there.
    pub fn resign(&mut self, moved: impl Fn(&str) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        let ids: Vec<String> = self.groups.keys().filter(|id| moved(id)).cloned().collect();
        for id in ids {
            if let Some(group) = self.groups.remove(&id) {
                group.refuse_all(GroupError::NotCoordinator, &mut effects);
            }
            self.changed.remove(&id);
            self.plan(&id);
        }
        effects
    }

    /// The groups of which something else should be kept than when this was last asked: they have become stable or empty, or a static member has another id.
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// What should be kept of a group, as it is now.
    #[must_use]
    pub fn keep(&self, group: &str) -> Keep {
        self.groups.get(group).map_or(Keep::AsItIs, Group::keep)
    }

    /// Goes on with a group of which this was kept last, unless it is known already: its members go on in their generation, without a rebalance. Whether the
    /// group is known now; it is not when the record contradicts itself.
    pub fn restore(&mut self, now: Instant, group: &str, record: &GroupRecord) -> bool {
        if self.groups.contains_key(group) {
            return true;
        }
        let Some(restored) = Group::restored(now, record) else {
            return false;
        };
        self.groups.insert(group.to_owned(), restored);
        self.plan(group);
        true
    }

    /// Takes note of a change of what should be kept of a group, and puts its next deadline on the agenda.
    fn plan(&mut self, id: &str) {
        if let Some(group) = self.groups.get_mut(id)
            && std::mem::take(&mut group.changed)
        {
            self.changed.insert(id.to_owned());
        }
        let next = self.groups.get(id).and_then(Group::next_deadline);
        let planned = self.planned.get(id).copied();
        if next == planned {
            return;
        }
        if let Some(at) = planned {
            self.agenda.remove(&(at, id.to_owned()));
            self.planned.remove(id);
        }
        if let Some(at) = next {
            self.agenda.insert((at, id.to_owned()));
            self.planned.insert(id.to_owned(), at);
        }
    }
}
