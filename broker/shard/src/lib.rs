//! Replication of one shard: a command goes in, is made durable and ordered by Raft, and comes out at the shard's state machine.
//!
//! The engine is `openraft`; nothing of it shows outside of this crate, which is one small interface:
//!
//! * [`Shard::propose`]: the order of the calls is the order of the log, and the answer is what [`StateMachine::apply`] returned;
//! * [`Shard::leadership`]: whether this broker leads, and in which term;
//! * [`Shard::checkpoint`]: what was applied is made durable by the state machine, after which the log before it is released.
//!
//! # What is stored
//!
//! Everything goes to the broker's one write-ahead log ([`palisade_log`]): entries under their index, and the small state of Raft (vote, last purged
//! position with the membership, committed position) as sticky records, of which the newest is kept. Nothing here touches a file.
//!
//! # Snapshots
//!
//! A checkpoint is the snapshot: the state machine's own files, durable, up to a position. Raft is told of the position so that it can purge; no bytes are copied.
//! Sending one to a peer comes with replication, and until then the network of a shard ([`network`]) has no peers.
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
mod snapshot;
mod transport;
mod trim;
mod wire;

#[cfg(test)]
mod tests;

pub use config::{NodeId, ShardConfig, Timing};
pub use error::{CheckpointError, ProposeError, ShardError};
pub use machine::{Command, LogPosition, StateMachine};
pub use members::{Formation, LeaderView, MembersError, ShardStatus};
pub use shard::{Leadership, Shard};
pub use snapshot::{Incoming, Snapshot};
pub use transport::{Message, NoPeers, Transport, TransportError};
