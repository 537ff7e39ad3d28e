//! What administrators ask of a group.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{
    machine::Group,
    types::{GroupDescription, GroupError, GroupListing, GroupState, MemberDescription},
};

impl Group {
    pub(super) fn describe(&self) -> GroupDescription {
        let stable = self.state == GroupState::Stable;
        let when_stable = |bytes: Bytes| if stable { bytes } else { Bytes::new() };
        GroupDescription {
            state: self.state,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().filter(|_| stable).unwrap_or_default(),
            members: self
                .members
                .iter()
                .map(|(id, member)| MemberDescription {
                    member: id.clone(),
                    instance: member.instance.clone(),
                    client_id: member.client_id.clone(),
                    client_host: member.client_host.clone(),
                    metadata: when_stable(member.metadata(self.protocol.as_deref())),
                    assignment: when_stable(member.assignment.clone()),
                })
                .collect(),
        }
    }

    pub(super) fn listing(&self, group: &str) -> GroupListing {
        GroupListing {
            group: group.to_owned(),
            state: self.state,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
        }
    }

    /// The topics whose offsets may not be deleted now.
    pub(super) fn undeletable_topics(&self) -> Result<BTreeSet<String>, GroupError> {
        if self.state == GroupState::Empty {
            return Ok(BTreeSet::new());
        }
        self.subscribed_topics().ok_or(GroupError::NonEmptyGroup)
    }
}
