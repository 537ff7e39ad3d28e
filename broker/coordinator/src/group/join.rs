//! JoinGroup.

use std::time::Instant;

use bytes::Bytes;

use super::{
    machine::{Group, Member, refuse, refused_join},
    types::{Effect, GroupError, GroupSettings, GroupState, JoinRequest, Ticket},
};

impl Group {
    /// A member, or someone who wants to become one, joins.
    pub(super) fn join(
        &mut self,
        now: Instant,
        request: JoinRequest,
        ticket: Ticket,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) {
        let id = request.member.clone();
        let outcome = if id.is_empty() {
            self.join_new(now, request, ticket, settings, effects)
        } else {
            self.join_known(now, request, ticket, settings, effects)
        };
        if let Err(error) = outcome {
            effects.push(refused_join(ticket, &id, error));
        }
    }

    fn join_new(
        &mut self,
        now: Instant,
        request: JoinRequest,
        ticket: Ticket,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) -> Result<(), GroupError> {
        if !self.supports(&request.protocol_type, &request.protocols) {
            return Err(GroupError::InconsistentGroupProtocol);
        }
        let prefix = request.instance.as_deref().unwrap_or(&request.client_id);
        let id = format!("{prefix}-{}", request.fresh_id);
        if let Some(instance) = &request.instance
            && let Some(previous) = self.instances.get(instance).cloned()
        {
            self.replace_static(now, &previous, id, request, ticket, settings, effects);
            return Ok(());
        }
        if self.members.len() + self.pending.len() >= settings.max_size {
            return Err(GroupError::GroupMaxSizeReached);
        }
        if request.instance.is_none() && request.require_known_member {
            self.pending
                .insert(id.clone(), now + request.session_timeout);
            effects.push(refused_join(ticket, &id, GroupError::MemberIdRequired));
            return Ok(());
        }
        self.add_and_rebalance(now, id, request, ticket, settings, effects);
        Ok(())
    }

    fn join_known(
        &mut self,
        now: Instant,
        request: JoinRequest,
        ticket: Ticket,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) -> Result<(), GroupError> {
        let id = request.member.clone();
        let pending = request.instance.is_none() && self.pending.contains_key(&id);
        if !pending {
            self.check_member(&id, request.instance.as_deref())?;
        }
        if !self.supports(&request.protocol_type, &request.protocols) {
            return Err(GroupError::InconsistentGroupProtocol);
        }
        if pending {
            self.pending.remove(&id);
            self.add_and_rebalance(now, id, request, ticket, settings, effects);
            return Ok(());
        }
        let is_leader = self.leader.as_deref() == Some(id.as_str());
        let unchanged = self
            .members
            .get(&id)
            .is_some_and(|member| member.protocols == request.protocols);
        let repeats_itself = match self.state {
            // The answer to its last join was lost on the way.
            GroupState::CompletingRebalance => unchanged,
            // The leader joins again to have everything assigned anew.
            GroupState::Stable => unchanged && !is_leader,
            _ => false,
        };
        if repeats_itself {
            let answer = self.joined(&id, false);
            effects.push(Effect::Join { ticket, answer });
            self.touch(now, &id);
            return Ok(());
        }
        self.update(&id, request, ticket, effects);
        self.rebalance(now, settings, effects);
        Ok(())
    }

    fn add_and_rebalance(
        &mut self,
        now: Instant,
        id: String,
        request: JoinRequest,
        ticket: Ticket,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) {
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type);
        }
        let member = Member {
            instance: request.instance,
            client_id: request.client_id,
            client_host: request.client_host,
            session_timeout: request.session_timeout,
            rebalance_timeout: request.rebalance_timeout,
            protocols: request.protocols,
            assignment: Bytes::new(),
            awaiting_join: None,
            awaiting_sync: None,
            session_ends: None,
        };
        self.add(now, id, member, ticket);
        self.rebalance(now, settings, effects);
    }

    /// Takes over what a member says of itself; its join waits with `ticket` from now on.
    fn update(
        &mut self,
        id: &str,
        request: JoinRequest,
        ticket: Ticket,
        effects: &mut Vec<Effect>,
    ) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        member.client_id = request.client_id;
        member.client_host = request.client_host;
        member.session_timeout = request.session_timeout;
        member.rebalance_timeout = request.rebalance_timeout;
        member.protocols = request.protocols;
        member.session_ends = None;
        // An earlier join of the same member, whose connection it has given up.
        if let Some(earlier) = member.awaiting_join.replace(ticket) {
            effects.push(refused_join(earlier, id, GroupError::RebalanceInProgress));
        }
    }

    /// A static member comes back without its id: it takes its own place under a new one, and whoever still uses the old
    /// one is fenced. If nothing changes for the others, there is no rebalance (KIP-345, KIP-814).
    #[allow(clippy::too_many_arguments)]
    fn replace_static(
        &mut self,
        now: Instant,
        previous: &str,
        id: String,
        request: JoinRequest,
        ticket: Ticket,
        settings: &GroupSettings,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut member) = self.members.remove(previous) else {
            return;
        };
        refuse(previous, &member, GroupError::FencedInstanceId, effects);
        member.awaiting_join = None;
        member.awaiting_sync = None;
        if let Some(instance) = &member.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        self.members.insert(id.clone(), member);
        if self.unsynced.remove(previous) {
            self.unsynced.insert(id.clone());
        }
        let led = self.leader.as_deref() == Some(previous);
        if led {
            self.leader = Some(id.clone());
        }
        let can_skip = request.can_skip_assignment;
        self.update(&id, request, ticket, effects);
        if self.state == GroupState::Stable && self.choose_protocol() == self.protocol {
            // A leader that cannot skip the assignment is told that someone else leads, so that it does not assign.
            let answer = self.joined(&id, led && can_skip).map(|mut joined| {
                if led && !can_skip {
                    joined.leader = previous.to_owned();
                    joined.members.clear();
                }
                joined
            });
            if let Some(member) = self.members.get_mut(&id) {
                member.awaiting_join = None;
            }
            self.changed = true;
            effects.push(Effect::Join { ticket, answer });
            self.touch(now, &id);
        } else {
            self.rebalance(now, settings, effects);
        }
    }
}
