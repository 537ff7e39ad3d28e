//! SyncGroup, Heartbeat, LeaveGroup and what commits need.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;

use super::{
    machine::{Group, sync_effect},
    types::{
        Effect, GroupError, GroupSettings, GroupState, LeavingMember, Membership, SyncRequest,
        Synced, Ticket,
    },
};

impl Group {
    fn check(&self, from: &Membership) -> Result<(), GroupError> {
        self.check_member(&from.member, from.instance.as_deref())?;
        if from.generation == self.generation {
            Ok(())
        } else {
            Err(GroupError::IllegalGeneration)
        }
    }

    /// A member asks for its assignment; the leader brings everyone's.
    pub(super) fn sync(
        &mut self,
        now: Instant,
        request: SyncRequest,
        ticket: Ticket,
        effects: &mut Vec<Effect>,
    ) {
        let refused = |error| sync_effect(ticket, Err(error));
        if let Err(error) = self.check_sync(&request) {
            effects.push(refused(error));
            return;
        }
        let id = request.from.member;
        match self.state {
            GroupState::Stable => {
                self.unsynced.remove(&id);
                self.settle_sync_deadline();
                effects.push(sync_effect(ticket, Ok(self.synced(&id))));
                self.touch(now, &id);
            }
            GroupState::CompletingRebalance => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.session_ends = None;
                    if let Some(earlier) = member.awaiting_sync.replace(ticket) {
                        effects.push(sync_effect(earlier, Err(GroupError::RebalanceInProgress)));
                    }
                }
                self.unsynced.remove(&id);
                if self.leader.as_deref() == Some(id.as_str()) {
                    self.assign(now, request.assignments, effects);
                }
            }
            GroupState::PreparingRebalance => {
                effects.push(refused(GroupError::RebalanceInProgress));
            }
            GroupState::Empty | GroupState::Dead => {
                effects.push(refused(GroupError::UnknownMemberId));
            }
        }
    }

    fn check_sync(&self, request: &SyncRequest) -> Result<(), GroupError> {
        self.check(&request.from)?;
        let differs = |said: &Option<String>, own: &Option<String>| {
            said.is_some() && own.is_some() && said != own
        };
        if differs(&request.protocol_type, &self.protocol_type)
            || differs(&request.protocol, &self.protocol)
        {
            return Err(GroupError::InconsistentGroupProtocol);
        }
        Ok(())
    }

    /// The leader has assigned: everyone who waits gets its part, and so does everyone who asks later.
    fn assign(
        &mut self,
        now: Instant,
        assignments: Vec<(String, Bytes)>,
        effects: &mut Vec<Effect>,
    ) {
        let mut assignments: BTreeMap<String, Bytes> = assignments.into_iter().collect();
        for (id, member) in &mut self.members {
            member.assignment = assignments.remove(id).unwrap_or_default();
        }
        self.state = GroupState::Stable;
        self.changed = true;
        self.settle_sync_deadline();
        let waiting: Vec<(String, Ticket)> = self
            .members
            .iter_mut()
            .filter_map(|(id, member)| Some((id.clone(), member.awaiting_sync.take()?)))
            .collect();
        for (id, ticket) in waiting {
            effects.push(sync_effect(ticket, Ok(self.synced(&id))));
            self.touch(now, &id);
        }
    }

    fn synced(&self, id: &str) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: self
                .members
                .get(id)
                .map(|member| member.assignment.clone())
                .unwrap_or_default(),
        }
    }

    /// A sign of life; the answer also tells the member when it must join again.
    pub(super) fn heartbeat(&mut self, now: Instant, from: &Membership) -> Result<(), GroupError> {
        self.check(from)?;
        self.touch(now, &from.member);
        match self.state {
            GroupState::PreparingRebalance => Err(GroupError::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
            GroupState::Empty | GroupState::Dead => Err(GroupError::UnknownMemberId),
        }
    }

    /// Members leave of their own will, or are made to by an administrator.
    pub(super) fn leave(
        &mut self,
        now: Instant,
        leaving: &[LeavingMember],
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) -> Vec<Result<(), GroupError>> {
        let before = self.members.len();
        let outcomes = leaving
            .iter()
            .map(|member| self.leave_one(member, effects))
            .collect();
        if self.members.len() < before {
            self.rebalance(now, settings, effects);
        } else {
            // An id that was given out and will not be used may be what the others wait for.
            self.complete_join_if_all_are_here(now, effects);
        }
        outcomes
    }

    fn leave_one(
        &mut self,
        leaving: &LeavingMember,
        effects: &mut Vec<Effect>,
    ) -> Result<(), GroupError> {
        let id = match &leaving.instance {
            None if self.pending.remove(&leaving.member).is_some() => return Ok(()),
            None => leaving.member.clone(),
            Some(instance) => {
                let current = self
                    .instances
                    .get(instance)
                    .ok_or(GroupError::UnknownMemberId)?;
                if !leaving.member.is_empty() && leaving.member != *current {
                    return Err(GroupError::FencedInstanceId);
                }
                current.clone()
            }
        };
        if !self.members.contains_key(&id) {
            return Err(GroupError::UnknownMemberId);
        }
        self.remove(&id, GroupError::UnknownMemberId, effects);
        Ok(())
    }

    /// Whether a commit may be stored: it must come from a member of this generation, or, while the group has no members,
    /// from someone who does not take part in it. Counts as a sign of life.
    pub(super) fn check_commit(
        &mut self,
        now: Instant,
        from: &Membership,
    ) -> Result<(), GroupError> {
        if from.generation < 0 && self.state == GroupState::Empty {
            return Ok(());
        }
        if from.generation < 0 && from.member.is_empty() && from.instance.is_none() {
            return Err(GroupError::UnknownMemberId);
        }
        self.check(from)?;
        if self.state == GroupState::CompletingRebalance {
            return Err(GroupError::RebalanceInProgress);
        }
        self.touch(now, &from.member);
        Ok(())
    }
}
