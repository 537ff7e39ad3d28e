//! One group: its members and the steps between its states.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    subscription,
    types::{
        Effect, GroupError, GroupSettings, GroupState, JoinAnswer, JoinFailure, Joined,
        JoinedMember, SyncAnswer, Ticket,
    },
};

/// How long a new member may wait for its first rebalance before it is taken to be gone.
const NEW_MEMBER_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Shortest wait before a rebalance that nobody has joined is looked at again.
const SHORTEST_REBALANCE: Duration = Duration::from_millis(100);

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) assignment: Bytes,
    /// Its join waits for the others.
    pub(super) awaiting_join: Option<Ticket>,
    /// Its sync waits for the leader.
    pub(super) awaiting_sync: Option<Ticket>,
    /// When it is taken to be gone; `None` while one of its requests waits here, since it cannot send heartbeats then.
    pub(super) session_ends: Option<Instant>,
}

impl Member {
    pub(super) fn knows(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    pub(super) fn metadata(&self, protocol: Option<&str>) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| Some(name.as_str()) == protocol)
            .map_or_else(Bytes::new, |(_, metadata)| metadata.clone())
    }
}

/// Waiting for members to join.
#[derive(Debug)]
pub(super) struct Rebalance {
    pub(super) ends: Instant,
    /// The first rebalance of an empty group: it ends by time alone, later when members keep coming.
    pub(super) initial: Option<Initial>,
}

#[derive(Debug)]
pub(super) struct Initial {
    /// How much longer the wait may become.
    pub(super) remaining: Duration,
    /// A member has joined since the wait was last prolonged.
    pub(super) joined: bool,
}

/// A group. Every method leaves it in one of its states, with all answers that are due in `effects`.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) state: GroupState,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) generation: i32,
    pub(super) leader: Option<String>,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) instances: BTreeMap<String, String>,
    /// Ids that have been given out and not been used yet, with the time when they lapse.
    pub(super) pending: BTreeMap<String, Instant>,
    pub(super) rebalance: Option<Rebalance>,
    /// Members of this generation that have not asked for their assignment yet.
    pub(super) unsynced: BTreeSet<String>,
    pub(super) sync_ends: Option<Instant>,
    pub(super) empty_since: Instant,
    /// What should be kept of it is not what it was any more.
    pub(super) changed: bool,
}

impl Group {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            state: GroupState::Empty,
            protocol_type: None,
            protocol: None,
            generation: 0,
            leader: None,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            pending: BTreeMap::new(),
            rebalance: None,
            unsynced: BTreeSet::new(),
            sync_ends: None,
            empty_since: now,
            changed: false,
        }
    }

    /// Whether there is nobody whom the group would have to remember.
    pub(super) fn is_idle(&self) -> bool {
        self.state == GroupState::Empty && self.pending.is_empty()
    }

    /// The earliest moment at which time changes something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let sessions = self
            .members
            .values()
            .filter_map(|member| member.session_ends);
        sessions
            .chain(self.pending.values().copied())
            .chain(self.rebalance.as_ref().map(|rebalance| rebalance.ends))
            .chain(self.sync_ends)
            .min()
    }

    /// Checks that a request comes from a member.
    pub(super) fn check_member(
        &self,
        member: &str,
        instance: Option<&str>,
    ) -> Result<(), GroupError> {
        if let Some(instance) = instance {
            match self.instances.get(instance) {
                None => return Err(GroupError::UnknownMemberId),
                Some(current) if current != member => return Err(GroupError::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member) {
            Ok(())
        } else {
            Err(GroupError::UnknownMemberId)
        }
    }

    /// A sign of life.
    pub(super) fn touch(&mut self, now: Instant, member: &str) {
        if let Some(member) = self.members.get_mut(member)
            && member.awaiting_join.is_none()
            && member.awaiting_sync.is_none()
        {
            member.session_ends = Some(now + member.session_timeout);
        }
    }

    /// Adds a member whose join waits with `ticket`.
    pub(super) fn add(&mut self, now: Instant, id: String, mut member: Member, ticket: Ticket) {
        member.awaiting_join = Some(ticket);
        member.session_ends = Some(now + NEW_MEMBER_TIMEOUT);
        if let Some(instance) = &member.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        self.leader.get_or_insert_with(|| id.clone());
        if let Some(initial) = self
            .rebalance
            .as_mut()
            .and_then(|rebalance| rebalance.initial.as_mut())
        {
            initial.joined = true;
        }
        self.members.insert(id, member);
    }

    /// Removes a member; its waiting requests are answered with `error`.
    pub(super) fn remove(&mut self, id: &str, error: GroupError, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.remove(id) else {
            return;
        };
        if let Some(instance) = &member.instance
            && self.instances.get(instance).is_some_and(|own| own == id)
        {
            self.instances.remove(instance);
        }
        refuse(id, &member, error, effects);
        self.unsynced.remove(id);
        self.settle_sync_deadline();
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// Begins a rebalance, or lets the one that is under way see whether it can end.
    pub(super) fn rebalance(
        &mut self,
        now: Instant,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) {
        if self.state == GroupState::CompletingRebalance {
            for member in self.members.values_mut() {
                member.assignment = Bytes::new();
                if let Some(ticket) = member.awaiting_sync.take() {
                    // Who has joined again meanwhile waits for the others, and cannot show that it is there.
                    if member.awaiting_join.is_none() {
                        member.session_ends = Some(now + member.session_timeout);
                    }
                    effects.push(Effect::Sync {
                        ticket,
                        answer: Err(GroupError::RebalanceInProgress),
                    });
                }
            }
        }
        if self.state != GroupState::PreparingRebalance {
            let timeout = self.rebalance_timeout();
            let delay = settings.initial_rebalance_delay.min(timeout);
            let initial = self.state == GroupState::Empty && !delay.is_zero();
            self.rebalance = Some(Rebalance {
                ends: now + if initial { delay } else { timeout },
                initial: initial.then(|| Initial {
                    remaining: timeout.saturating_sub(delay),
                    joined: false,
                }),
            });
            self.state = GroupState::PreparingRebalance;
            self.unsynced.clear();
            self.sync_ends = None;
        }
        self.complete_join_if_all_are_here(now, effects);
    }

    /// The longest time that a member may take to join again.
    fn rebalance_timeout(&self) -> Duration {
        self.members
            .values()
            .map(|member| member.rebalance_timeout)
            .max()
            .unwrap_or_default()
            .max(SHORTEST_REBALANCE)
    }

    pub(super) fn complete_join_if_all_are_here(
        &mut self,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let waiting_by_time = self
            .rebalance
            .as_ref()
            .is_none_or(|rebalance| rebalance.initial.is_some());
        let all_here = self.pending.is_empty()
            && self
                .members
                .values()
                .all(|member| member.awaiting_join.is_some());
        if self.state == GroupState::PreparingRebalance && !waiting_by_time && all_here {
            self.complete_join(now, effects);
        }
    }

    /// Ends the join phase: who has not joined is out (static members keep their place until their session ends), and a
    /// new generation begins.
    fn complete_join(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let absent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.awaiting_join.is_none() && member.instance.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in absent {
            self.remove(&id, GroupError::UnknownMemberId, effects);
        }
        if self.members.is_empty() {
            self.become_empty(now);
            return;
        }
        if !self.elect_leader() {
            // Only silent static members are left: wait for them, or for the end of their sessions.
            self.rebalance = Some(Rebalance {
                ends: now + self.rebalance_timeout(),
                initial: None,
            });
            return;
        }
        self.rebalance = None;
        self.generation = self.generation.wrapping_add(1).max(1);
        self.protocol = self.choose_protocol();
        self.state = GroupState::CompletingRebalance;
        self.sync_ends = Some(now + self.rebalance_timeout());
        self.unsynced = self.members.keys().cloned().collect();
        for id in self.members.keys().cloned().collect::<Vec<_>>() {
            let answer = self.joined(&id, false);
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            member.assignment = Bytes::new();
            if let Some(ticket) = member.awaiting_join.take() {
                member.session_ends = Some(now + member.session_timeout);
                effects.push(Effect::Join { ticket, answer });
            }
        }
    }

    fn become_empty(&mut self, now: Instant) {
        self.state = GroupState::Empty;
        self.rebalance = None;
        self.generation = self.generation.wrapping_add(1).max(1);
        self.protocol = None;
        self.leader = None;
        self.unsynced.clear();
        self.sync_ends = None;
        self.empty_since = now;
        self.changed = true;
    }

    /// Makes sure that the leader is a member that has joined.
    fn elect_leader(&mut self) -> bool {
        let joined = |member: &Member| member.awaiting_join.is_some();
        let current = self.leader.as_ref().and_then(|id| self.members.get(id));
        if current.is_some_and(joined) {
            return true;
        }
        let next = self
            .members
            .iter()
            .find(|(_, member)| joined(member))
            .map(|(id, _)| id.clone());
        match next {
            Some(id) => {
                self.leader = Some(id);
                true
            }
            None => false,
        }
    }

    /// Whether a member with these protocols fits the group.
    pub(super) fn supports(&self, protocol_type: &str, protocols: &[(String, Bytes)]) -> bool {
        if protocol_type.is_empty() || protocols.is_empty() {
            return false;
        }
        if self.members.is_empty() {
            return true;
        }
        self.protocol_type.as_deref() == Some(protocol_type)
            && protocols
                .iter()
                .any(|(name, _)| self.members.values().all(|member| member.knows(name)))
    }

    /// The protocol that all members know and most of them prefer; of equals the first by name, so that it does not depend
    /// on chance.
    pub(super) fn choose_protocol(&self) -> Option<String> {
        let known_to_all = |name: &str| self.members.values().all(|member| member.knows(name));
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let preferred = member
                .protocols
                .iter()
                .map(|(name, _)| name.as_str())
                .find(|name| known_to_all(name));
            if let Some(name) = preferred {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max()?;
        votes
            .into_iter()
            .find(|(_, count)| *count == most)
            .map(|(name, _)| name.to_owned())
    }

    /// The answer of a join with the current generation.
    pub(super) fn joined(&self, id: &str, skip_assignment: bool) -> JoinAnswer {
        let leader = self.leader.clone().unwrap_or_default();
        let protocol = self.protocol.clone().unwrap_or_default();
        let members = if leader == id {
            self.members
                .iter()
                .map(|(id, member)| JoinedMember {
                    member: id.clone(),
                    instance: member.instance.clone(),
                    metadata: member.metadata(Some(&protocol)),
                })
                .collect()
        } else {
            Vec::new()
        };
        Ok(Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol,
            leader,
            skip_assignment,
            member: id.to_owned(),
            members,
        })
    }

    /// What time has done until `now`.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.pending.len();
        self.pending.retain(|_, lapses| *lapses > now);
        let lost: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.session_ends.is_some_and(|ends| ends <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &lost {
            self.remove(id, GroupError::UnknownMemberId, effects);
        }
        if !lost.is_empty() {
            self.rebalance(now, settings, effects);
        } else if self.pending.len() != before {
            self.complete_join_if_all_are_here(now, effects);
        }
        if self.sync_ends.is_some_and(|ends| ends <= now) {
            self.sync_ends = None;
            for id in std::mem::take(&mut self.unsynced) {
                self.remove(&id, GroupError::UnknownMemberId, effects);
            }
            self.rebalance(now, settings, effects);
        }
        self.expire_rebalance(now, settings, effects);
    }

    fn expire_rebalance(
        &mut self,
        now: Instant,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) {
        let Some(rebalance) = self.rebalance.as_mut().filter(|it| it.ends <= now) else {
            return;
        };
        if let Some(initial) = rebalance.initial.as_mut()
            && initial.joined
            && !initial.remaining.is_zero()
        {
            let delay = settings.initial_rebalance_delay.min(initial.remaining);
            initial.remaining = initial.remaining.saturating_sub(delay);
            initial.joined = false;
            rebalance.ends = now + delay;
            return;
        }
        self.complete_join(now, effects);
    }

    /// A member of this generation has its assignment, or is gone.
    pub(super) fn settle_sync_deadline(&mut self) {
        if self.unsynced.is_empty() {
            self.sync_ends = None;
        }
    }

    /// Answers everything that waits, because the group goes away from here.
    pub(super) fn refuse_all(&self, error: GroupError, effects: &mut Vec<Effect>) {
        for (id, member) in &self.members {
            refuse(id, member, error, effects);
        }
    }

    /// The topics that members subscribe to; `None` when it is not a group of consumers, or one's metadata cannot be read.
    pub(super) fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        if self.protocol_type.as_deref() != Some(subscription::CONSUMER) {
            return None;
        }
        // Before a protocol is chosen, any that a member sends carries the same subscription.
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            let (_, metadata) = member
                .protocols
                .iter()
                .find(|(name, _)| Some(name) == self.protocol.as_ref())
                .or_else(|| member.protocols.first())?;
            topics.extend(subscription::topics(metadata)?);
        }
        Some(topics)
    }
}

/// Answers the waiting requests of a member that goes.
pub(super) fn refuse(id: &str, member: &Member, error: GroupError, effects: &mut Vec<Effect>) {
    if let Some(ticket) = member.awaiting_join {
        effects.push(refused_join(ticket, id, error));
    }
    if let Some(ticket) = member.awaiting_sync {
        effects.push(Effect::Sync {
            ticket,
            answer: Err(error),
        });
    }
}

pub(super) fn refused_join(ticket: Ticket, member: &str, error: GroupError) -> Effect {
    Effect::Join {
        ticket,
        answer: Err(JoinFailure {
            error,
            member: member.to_owned(),
        }),
    }
}

pub(super) const fn sync_effect(ticket: Ticket, answer: SyncAnswer) -> Effect {
    Effect::Sync { ticket, answer }
}
