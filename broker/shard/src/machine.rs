use std::fmt;

use bytes::Bytes;

use crate::CheckpointError;

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
}
