//! What a shard needs of a state machine.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{
    CheckpointError,
    snapshot::{Incoming, Snapshot},
};

/// What is replicated. Opaque here.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// Small: encrypted in the write-ahead log.
    pub meta: Bytes,
    /// Bulk: must be ciphertext already. Authenticated in the write-ahead log and stored as it is.
    pub payload: Bytes,
}

impl Command {
    /// A command.
    #[must_use]
    pub fn new(meta: impl Into<Bytes>, payload: impl Into<Bytes>) -> Self {
        Self {
            meta: meta.into(),
            payload: payload.into(),
        }
    }

    /// Bytes of both parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.meta.len().saturating_add(self.payload.len())
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sizes only: a command may carry what no log may show.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Command({} + {} bytes)",
            self.meta.len(),
            self.payload.len()
        )
    }
}

/// A place in a shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Raft term.
    pub term: u64,
    /// Raft index.
    pub index: u64,
}

/// What a shard's commands act on.
///
/// Called by one thread at a time and never concurrently with a checkpoint.
pub trait StateMachine: Send + 'static {
    /// What a proposal is answered with.
    type Response: Send + Sync + 'static;

    /// Applies a committed command. Must depend on nothing but the state and the command: every replica does it.
    fn apply(&mut self, at: LogPosition, command: Command) -> Self::Response;

    /// An entry without a command was committed: the first of a new term, or a change of membership.
    fn blank(&mut self, at: LogPosition);

    /// The place up to which the state found on disk reaches; `None`: it is empty. Asked once, before anything is applied.
    fn applied(&self) -> Option<LogPosition>;

    /// Makes everything that was applied durable. The log up to the place returned is released afterwards.
    ///
    /// # Errors
    /// When it cannot be written; the state in memory stays valid and the log is kept.
    fn checkpoint(&mut self) -> Result<LogPosition, CheckpointError>;

    /// The state as it is now, to be sent to a replica that has fallen behind. Cheap: the bulk is read when it is asked for.
    ///
    /// # Errors
    /// When it cannot be described.
    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, CheckpointError> {
        Err(CheckpointError::Write(
            "this state machine has no snapshots".to_owned(),
        ))
    }

    /// Begins to receive a snapshot; also returns what is here already, as [`Snapshot::chunk`] of the sender reads it.
    ///
    /// # Errors
    /// When the description makes no sense or nothing can be kept aside.
    fn receive(&self, description: Bytes) -> Result<(Box<dyn Incoming>, Bytes), CheckpointError> {
        drop(description);
        Err(CheckpointError::Write(
            "this state machine has no snapshots".to_owned(),
        ))
    }

    /// Replaces the whole state by the snapshot that was received; durable when this returns, so that [`StateMachine::applied`] of a restart is `at`.
    ///
    /// # Errors
    /// When it cannot be written. The shard then stops: what is in memory may be half of both.
    fn install(
        &mut self,
        at: LogPosition,
        incoming: Box<dyn Incoming>,
    ) -> Result<(), CheckpointError> {
        drop((at, incoming));
        Err(CheckpointError::Write(
            "this state machine has no snapshots".to_owned(),
        ))
    }
}
