//! Requests, answers and errors of groups.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

/// A request that waits for its answer; the caller chooses the number and never uses it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Why a request of a group is refused; each has one Kafka error code, which the server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// No group id.
    #[error("the group id is empty")]
    InvalidGroupId,
    /// The session timeout is out of range.
    #[error("the session timeout is not within the broker's limits")]
    InvalidSessionTimeout,
    /// The member is not known, or not any more.
    #[error("the group does not know this member")]
    UnknownMemberId,
    /// The member must join again with the id that it is given.
    #[error("the member must join again with the id that it was given")]
    MemberIdRequired,
    /// Another member has taken this static member's place.
    #[error("another member has joined with the same group.instance.id")]
    FencedInstanceId,
    /// The generation is not the group's.
    #[error("the generation is not the group's current one")]
    IllegalGeneration,
    /// The member must join again.
    #[error("the group is rebalancing")]
    RebalanceInProgress,
    /// No protocol that all members know.
    #[error("the member's protocols do not fit the group's")]
    InconsistentGroupProtocol,
    /// The group is full.
    #[error("the group has as many members as it may")]
    GroupMaxSizeReached,
    /// Metadata or assignments that are too large.
    #[error("the member's metadata or assignment is larger than a group may store")]
    TooLarge,
    /// The broker coordinates as many groups as it may.
    #[error("the broker coordinates as many groups as it may")]
    TooManyGroups,
    /// The group has members.
    #[error("the group is not empty")]
    NonEmptyGroup,
    /// This broker does not coordinate the group any more.
    #[error("this broker does not coordinate the group any more")]
    NotCoordinator,
}

/// Limits and delays of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// Shortest session timeout (`group.min.session.timeout.ms`).
    pub min_session_timeout: Duration,
    /// Longest session timeout (`group.max.session.timeout.ms`).
    pub max_session_timeout: Duration,
    /// How long the first rebalance of an empty group waits for more members (`group.initial.rebalance.delay.ms`); the wait
    /// is prolonged while new ones keep coming. Kafka's default is 3 s.
    pub initial_rebalance_delay: Duration,
    /// Most members of a group (`group.max.size`).
    pub max_size: usize,
    /// Most groups on this broker.
    pub max_groups: usize,
    /// Most bytes that a member's protocols or its assignment may have.
    pub max_member_bytes: usize,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            min_session_timeout: Duration::from_secs(6),
            max_session_timeout: Duration::from_secs(30 * 60),
            initial_rebalance_delay: Duration::from_millis(200),
            max_size: 10_000,
            max_groups: 100_000,
            max_member_bytes: 1 << 20,
        }
    }
}

/// A JoinGroup request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// The group.
    pub group: String,
    /// The member's id; empty when it has none yet.
    pub member: String,
    /// `group.instance.id` of a static member.
    pub instance: Option<String>,
    /// The client's id, for descriptions and for the member id.
    pub client_id: String,
    /// The client's address, for descriptions.
    pub client_host: String,
    /// How long the member may be silent.
    pub session_timeout: Duration,
    /// How long the others wait for it to join again; the session timeout in version 0.
    pub rebalance_timeout: Duration,
    /// `consumer`, `connect`, ...
    pub protocol_type: String,
    /// Name and metadata of the protocols that the member knows, the preferred one first.
    pub protocols: Vec<(String, Bytes)>,
    /// A new dynamic member is given an id first and must join again with it (version 4 and later).
    pub require_known_member: bool,
    /// The leader can be told to skip the assignment (version 9 and later).
    pub can_skip_assignment: bool,
    /// A random id, used when the member needs one.
    pub fresh_id: Uuid,
}

/// A successful join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The generation that the member belongs to.
    pub generation: i32,
    /// The group's protocol type.
    pub protocol_type: String,
    /// The protocol that all members know.
    pub protocol: String,
    /// Id of the member that assigns.
    pub leader: String,
    /// The leader keeps the assignment as it is.
    pub skip_assignment: bool,
    /// The member's id.
    pub member: String,
    /// Everyone, for the leader; empty for the others.
    pub members: Vec<JoinedMember>,
}

/// A member as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub member: String,
    /// Its `group.instance.id`.
    pub instance: Option<String>,
    /// Its metadata for the chosen protocol.
    pub metadata: Bytes,
}

/// A refused join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinFailure {
    /// Why.
    pub error: GroupError,
    /// The id in the request, or the new one with [`GroupError::MemberIdRequired`].
    pub member: String,
}

/// The answer of a JoinGroup request.
pub type JoinAnswer = Result<Joined, JoinFailure>;

/// Who a request says it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: String,
    /// The member's id.
    pub member: String,
    /// `group.instance.id` of a static member.
    pub instance: Option<String>,
    /// The generation that the member believes in.
    pub generation: i32,
}

/// A SyncGroup request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncRequest {
    /// From whom.
    pub from: Membership,
    /// The protocol type that the member believes in (version 5 and later).
    pub protocol_type: Option<String>,
    /// The protocol that the member believes in (version 5 and later).
    pub protocol: Option<String>,
    /// Member and assignment, from the leader; empty from the others.
    pub assignments: Vec<(String, Bytes)>,
}

/// A successful sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The group's protocol type.
    pub protocol_type: String,
    /// The chosen protocol.
    pub protocol: String,
    /// What the leader assigned to the member.
    pub assignment: Bytes,
}

/// The answer of a SyncGroup request.
pub type SyncAnswer = Result<Synced, GroupError>;

/// An answer that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Of a JoinGroup request.
    Join {
        /// Which.
        ticket: Ticket,
        /// With what.
        answer: JoinAnswer,
    },
    /// Of a SyncGroup request.
    Sync {
        /// Which.
        ticket: Ticket,
        /// With what.
        answer: SyncAnswer,
    },
}

/// One member of a LeaveGroup request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeavingMember {
    /// Its id; may be empty when `instance` says who it is.
    pub member: String,
    /// Its `group.instance.id`.
    pub instance: Option<String>,
}

/// The state of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupState {
    /// No members.
    Empty,
    /// Waiting for members to join.
    PreparingRebalance,
    /// Waiting for the leader's assignment.
    CompletingRebalance,
    /// Everyone has an assignment, or can have it.
    Stable,
    /// Does not exist.
    Dead,
}

impl GroupState {
    /// Kafka's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
            Self::Dead => "Dead",
        }
    }
}

/// A group as DescribeGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its state.
    pub state: GroupState,
    /// Its protocol type; empty when it never had members.
    pub protocol_type: String,
    /// The chosen protocol; empty unless stable.
    pub protocol: String,
    /// Its members, by id.
    pub members: Vec<MemberDescription>,
}

/// A member as DescribeGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub member: String,
    /// Its `group.instance.id`.
    pub instance: Option<String>,
    /// Its client id.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// Its metadata for the chosen protocol; empty unless the group is stable.
    pub metadata: Bytes,
    /// Its assignment; empty unless the group is stable.
    pub assignment: Bytes,
}

/// A group as ListGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its id.
    pub group: String,
    /// Its state.
    pub state: GroupState,
    /// Its protocol type.
    pub protocol_type: String,
}

/// Which topics a group uses: what the expiry of its offsets depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicUse {
    /// Perhaps any: it has members whose subscription cannot be read, or it is rebalancing and may have some in a moment.
    Any,
    /// It is stable, and these are what its members subscribe to.
    Only(BTreeSet<String>),
    /// It has had no members for this long.
    EmptyFor(Duration),
    /// This coordinator has not heard of the group: it may have members that come in a moment, and it is not known since when it has none.
    Unknown,
}
