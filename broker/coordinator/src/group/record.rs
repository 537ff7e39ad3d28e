//! What is kept of a group so that another coordinator can go on with it.

use std::time::{Duration, Instant};

use super::{
    machine::{Group, Member},
    types::GroupState,
};
use crate::offsets::{GroupRecord, MemberRecord};

/// Longest timeout of a member, ms: what a request can ask for.
const LONGEST: u64 = (1 << 31) - 1;

/// What should be kept of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// This generation.
    Generation(Box<GroupRecord>),
    /// That it has no members.
    Nothing,
    /// What was kept last: it is between two generations, or is not known here. Who goes on from an earlier generation has the members join again by their ids.
    AsItIs,
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(LONGEST)
}

fn millis(value: u64) -> Duration {
    Duration::from_millis(value.min(LONGEST))
}

impl Group {
    pub(super) fn keep(&self) -> Keep {
        match self.state {
            GroupState::Stable => Keep::Generation(Box::new(self.record())),
            GroupState::Empty | GroupState::Dead => Keep::Nothing,
            GroupState::PreparingRebalance | GroupState::CompletingRebalance => Keep::AsItIs,
        }
    }

    fn record(&self) -> GroupRecord {
        GroupRecord {
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            leader: self.leader.clone().unwrap_or_default(),
            members: self
                .members
                .iter()
                .map(|(id, member)| MemberRecord {
                    member: id.clone(),
                    instance: member.instance.clone(),
                    client_id: member.client_id.clone(),
                    client_host: member.client_host.clone(),
                    session_timeout_ms: as_millis(member.session_timeout),
                    rebalance_timeout_ms: as_millis(member.rebalance_timeout),
                    protocols: member.protocols.clone(),
                    assignment: member.assignment.clone(),
                })
                .collect(),
        }
    }

    /// The stable group of a record; every member has its whole session to be heard of. `None` when the record contradicts itself.
    pub(super) fn restored(now: Instant, record: &GroupRecord) -> Option<Self> {
        let mut group = Self {
            state: GroupState::Stable,
            protocol_type: Some(record.protocol_type.clone()),
            protocol: Some(record.protocol.clone()),
            generation: record.generation,
            leader: Some(record.leader.clone()),
            ..Self::new(now)
        };
        for kept in &record.members {
            let session_timeout = millis(kept.session_timeout_ms);
            let member = Member {
                instance: kept.instance.clone(),
                client_id: kept.client_id.clone(),
                client_host: kept.client_host.clone(),
                session_timeout,
                rebalance_timeout: millis(kept.rebalance_timeout_ms),
                protocols: kept.protocols.clone(),
                assignment: kept.assignment.clone(),
                awaiting_join: None,
                awaiting_sync: None,
                session_ends: Some(now + session_timeout),
            };
            let id = kept.member.clone();
            let twice = member.instance.as_ref().is_some_and(|instance| {
                let instances = &mut group.instances;
                instances.insert(instance.clone(), id.clone()).is_some()
            });
            if twice || !member.knows(&record.protocol) || id.is_empty() {
                return None;
            }
            if group.members.insert(id, member).is_some() {
                return None;
            }
        }
        let is_whole = record.generation > 0
            && !record.protocol_type.is_empty()
            && group.members.contains_key(&record.leader);
        is_whole.then_some(group)
    }
}
