//! Consumer groups of the classic protocol: JoinGroup, SyncGroup, Heartbeat and LeaveGroup with the meaning that Apache
//! Kafka's coordinator gives them (KIP-62, KIP-345 static membership, KIP-394 known member ids, KIP-800).
//!
//! ```text
//!            first join                all joined, or time is up          leader's sync
//!   Empty ───────────────► Preparing ─────────────────────────► Completing ─────────────► Stable
//!     ▲                     │    ▲ ▲                                │                       │
//!     └── everyone left ────┘    │ └── join with a change, leave ───┘                       │
//!                                └──── join, leave, lost session ───────────────────────────┘
//! ```
//!
//! A join waits until the others have joined, a sync until the leader has sent the assignment. Such requests carry a
//! [`Ticket`] that the caller chooses; their answers come out as [`Effect`]s, of the same call or of a later one, and every
//! ticket is answered exactly once. [`Groups::tick`] does what time does; [`Groups::next_deadline`] says when that is.
//!
//! The first rebalance of an empty group waits [`GroupSettings::initial_rebalance_delay`] for more members. Kafka's default
//! is 3 s, which is felt by everyone who starts a single consumer; here it is 200 ms.
//!
//! What can outlive this memory is the last stable generation of each group: [`Groups::take_changed`] says of which groups [`Groups::keep`] has something
//! new, and [`Groups::restore`] goes on from there. A rebalance that is under way is not kept: after a change of coordinator it begins anew.

mod admin;
mod groups;
mod join;
mod machine;
mod record;
mod subscription;
mod sync;
mod types;

pub use groups::Groups;
pub use record::Keep;
pub use types::{
    Effect, GroupDescription, GroupError, GroupListing, GroupSettings, GroupState, JoinAnswer,
    JoinFailure, JoinRequest, Joined, JoinedMember, LeavingMember, MemberDescription, Membership,
    SyncAnswer, SyncRequest, Synced, Ticket, TopicUse,
};

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
