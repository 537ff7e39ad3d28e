//! What a replica that has fallen too far behind is sent instead of log entries.
//!
//! A snapshot is a description of the state at one position and, as bulk, only what the receiver lacks: the receiver reads the description and says what it
//! has ([`crate::StateMachine::receive`]), the sender answers with chunks ([`Snapshot::chunk`]) until there are no more, and the receiver then replaces its state
//! as a whole ([`crate::StateMachine::install`]). Until that moment the receiver's own state is not touched, so a transfer can be abandoned at any point.

use std::sync::Arc;

use bytes::Bytes;

use crate::CheckpointError;

/// A state machine's state at one position, to be sent. Holds nothing that would stop the state machine from going on.
pub trait Snapshot: Send + Sync + 'static {
    /// Describes the state: everything but the bulk.
    fn description(&self) -> Bytes;

    /// The next part of what a receiver that has `have` lacks, about 1 MiB of it. `cursor` is 0 at first, then what the last call returned. `None`: that was all.
    /// May block on a disk.
    ///
    /// # Errors
    /// When it cannot be read, or is not there any more (retention has removed it meanwhile): the transfer is then given up and begun anew.
    fn chunk(&self, have: &[u8], cursor: u64) -> Result<Option<(Bytes, u64)>, CheckpointError>;
}

/// Takes the parts of a snapshot and keeps them aside.
pub trait Incoming: Send + 'static {
    /// Takes the next part, in the order of [`Snapshot::chunk`]. May block on a disk.
    ///
    /// # Errors
    /// When it cannot be kept or makes no sense; the transfer is given up.
    fn chunk(&mut self, part: Bytes) -> Result<(), CheckpointError>;

    /// As [`std::any::Any`], so that the state machine that made it finds its own type again.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send>;
}

/// A snapshot as the engine passes it on.
pub(crate) enum SnapshotData {
    /// Only its place counts: the engine wants to purge the log up to there.
    Place,
    /// To be sent.
    Outgoing(Arc<dyn Snapshot>),
    /// It should be sent, but the state machine cannot describe itself.
    Unavailable(CheckpointError),
    /// Received, to be installed.
    Received(Box<dyn Incoming>),
}
