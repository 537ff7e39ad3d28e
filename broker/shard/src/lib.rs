//! Replication of one shard: a command goes in, is made durable and ordered by Raft, and comes out at the shard's state machine.
//!
//! The engine is `openraft`; nothing of it shows outside of this crate, which is one small interface:
//!
//! * [`Shard::propose`]: the order of the calls is the order of the log, and the answer is what [`StateMachine::apply`] returned;
//! * [`Shard::leadership`]: whether this broker leads, and in which term; [`Shard::leader`]: who does;
//! * [`Shard::checkpoint`]: what was applied is made durable by the state machine, after which the log before it is released;
//! * [`Shard::handle`] and [`Transport`]: what replicas tell each other, carried by somebody else;
//! * [`Shard::set_members`], [`Shard::transfer_leadership`], [`Shard::peer_lost`]: who the replicas are, and who leads.
//!
//! # What is stored
//!
//! Everything goes to the broker's one write-ahead log ([`palisade_log`]): entries under their index, cuts of the log in the order in which they were made,
//! and the small state of Raft (vote, where the log begins with the membership there, committed position) as sticky records, of which the newest is kept.
//! Nothing here touches a file.
//!
//! # Who is behind
//!
//! Entries that were applied stay in memory up to [`ShardConfig::tail_bytes`] for replicas that are a little behind. Who is further behind is sent a snapshot:
//! a description of the state as it is now, then only what is lacking there ([`Snapshot`]), and replaces its state when all of it has arrived. What the
//! write-ahead log still holds is another matter: that follows the checkpoints.
//!
//! # Who leads
//!
//! Each start is a new term. Leadership is announced when the first entry of the own term is applied, and withdrawn when it is lost, or when no majority
//! answers any more. Proposals that are pending then are answered if their outcome becomes known here within an election's time, and with
//! [`ProposeError::NotLeader`] otherwise. A replica that was cut off asks whether it would be elected before it makes others vote.
//!
//! # Full disk
//!
//! Raft cannot take back an entry it has appended, so an entry that meets a full disk keeps its place and waits for space ([`Wal::append_waiting`]). New proposals are
//! refused meanwhile with [`ProposeError::Full`].
//!
//! [`Wal::append_waiting`]: palisade_log::Wal::append_waiting

mod cache;
mod change;
mod codec;
mod config;
mod engine;
mod error;
mod leading;
mod log_store;
mod machine;
mod members;
mod network;
mod raft_types;
mod receive;
mod receive_snapshot;
mod send_snapshot;
mod shard;
mod simulated;
mod snapshot;
mod transport;
mod trim;
mod wire;

#[cfg(test)]
mod tests;

pub use config::{NodeId, ShardConfig, Timing};
pub use error::{CheckpointError, ProposeError, ShardError};
pub use log_store::{is_kept, kept};
pub use machine::{Command, LogPosition, StateMachine};
pub use members::{Formation, LeaderView, Members, MembersError, ShardStatus};
pub use shard::{Leadership, Shard};
pub use simulated::{Simulated, blocking};
pub use snapshot::{Incoming, Snapshot};
pub use transport::{Message, NoPeers, Transport, TransportError};
pub use wire::is_snapshot;
