//! The types that `openraft` is parameterised with.

use std::{cmp::Ordering, fmt, marker::PhantomData};

use openraft::{
    EntryPayload, OptionalSend, RaftTypeConfig, impls, raft::responder::Responder,
    vote::RaftLeaderId,
};
use tokio::sync::oneshot;

use crate::{Command, simulated::Runtime};

/// Raft over [`Command`]s, answered with an `R`.
///
/// One leader a term (`leader_id_std`), because the term is Kafka's leader epoch.
pub(crate) struct Types<R>(PhantomData<fn() -> R>);

impl<R: Send + Sync + 'static> RaftTypeConfig for Types<R> {
    type D = Command;
    /// `None` for entries that are no command; the engine wants an answer to a change of members too.
    type R = Option<R>;
    type NodeId = u64;
    type Node = ();
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = Reply<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = impls::BoxedErrorSource;
}

pub(crate) type LeaderId = impls::leader_id_std::LeaderId<u64, u64>;
pub(crate) type Committed = <LeaderId as RaftLeaderId>::Committed;
pub(crate) type Vote = impls::Vote<LeaderId>;
pub(crate) type LogId = openraft::LogId<Committed>;
pub(crate) type Payload = EntryPayload<Command, u64, ()>;
pub(crate) type Entry = openraft::Entry<Committed, Payload>;
pub(crate) type Membership = openraft::Membership<u64, ()>;
pub(crate) type StoredMembership = openraft::StoredMembership<Committed, u64, ()>;

/// A snapshot's place in the log and the membership there.
pub(crate) type Place = openraft::SnapshotMeta<Committed, u64, ()>;

/// Where the engine sends the outcome of a proposal.
pub(crate) struct Reply<T>(pub(crate) oneshot::Sender<T>);

impl<C: RaftTypeConfig, T: Send + 'static> Responder<C, T> for Reply<T> {
    fn on_complete(self, result: T) {
        // Whoever proposed need not wait for the outcome.
        let _ = self.0.send(result);
    }
}

/// A log id from its parts.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(Committed::new(term), index)
}

// The engine asks these of its type parameter; deriving them would ask them of `R`.

impl<R> Clone for Types<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Types<R> {}

impl<R> Default for Types<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

impl<R> PartialEq for Types<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for Types<R> {}

impl<R> PartialOrd for Types<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for Types<R> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
