//! Who is a member of a group, as it is kept so that another coordinator can go on with it (Kafka's `GroupMetadataValue`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Largest record of a group. Nothing is kept of a group that takes more, and its members have to join again after a change of coordinator: what a few large
/// groups say of themselves must not fill the log that everything else is in.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// What a member takes in a record beyond its texts and bytes, at most.
const MEMBER_OVERHEAD: usize = 64;
/// What a protocol takes beyond its name and metadata, at most.
const PROTOCOL_OVERHEAD: usize = 8;

/// A generation of a group and its members, each with its assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// The generation.
    pub generation: i32,
    /// `consumer`, `connect`, ...
    pub protocol_type: String,
    /// The chosen protocol.
    pub protocol: String,
    /// Id of the member that assigns.
    pub leader: String,
    /// Its members, by id.
    pub members: Vec<MemberRecord>,
}

/// A member of a [`GroupRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Its id.
    pub member: String,
    /// Its `group.instance.id`.
    pub instance: Option<String>,
    /// Its client id.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// How long it may be silent.
    pub session_timeout_ms: u64,
    /// How long the others wait for it to join again.
    pub rebalance_timeout_ms: u64,
    /// Name and metadata of the protocols that it knows, the preferred one first.
    pub protocols: Vec<(String, Bytes)>,
    /// What it was assigned.
    pub assignment: Bytes,
}

impl GroupRecord {
    /// Whether it is small enough to be kept. Reckoned without encoding it: it may be very much larger.
    #[must_use]
    pub fn fits(&self) -> bool {
        let texts = self.protocol_type.len() + self.protocol.len() + self.leader.len();
        let members: usize = self.members.iter().map(MemberRecord::bytes).sum();
        MEMBER_OVERHEAD + texts + members <= MAX_RECORD_BYTES
    }
}

impl MemberRecord {
    fn bytes(&self) -> usize {
        let protocols: usize = self
            .protocols
            .iter()
            .map(|(name, metadata)| PROTOCOL_OVERHEAD + name.len() + metadata.len())
            .sum();
        MEMBER_OVERHEAD
            + self.member.len()
            + self.instance.as_ref().map_or(0, String::len)
            + self.client_id.len()
            + self.client_host.len()
            + protocols
            + self.assignment.len()
    }
}
