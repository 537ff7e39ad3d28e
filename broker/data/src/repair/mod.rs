//! Repairing what is damaged on this broker from another replica of the shard.
//!
//! ```text
//! wire    one question and its answer, on the shard's channel between brokers
//! source  answers it, from segments that are whole
//! mend    asks, checks every batch under the topic's key, and puts new segments in the place of damaged ones
//! ```
//!
//! What was applied of a partition is the same on every replica, so any of them is a source of any range that it has applied; it need not lead. The sealed batches
//! are the same bytes, unless one of them was compacted or sealed anew here or there, which every replica does by itself:
//!
//! - sealed anew: the same records under another version of the topic's key, which is opened like any other;
//! - compacted, here or there: everything from the start of the log is taken from there, together with how far it was compacted
//!   ([`RepairScope::FromStart`](palisade_log::segment::RepairScope::FromStart) says why).
//!
//! A source that meets damage of its own refuses, and begins to repair itself. One that compacts away a tombstone while it is asked is asked again from the start.

mod mend;
mod source;
mod wire;

pub(crate) use mend::{Mend, MendError, Mended};
pub(crate) use source::serve;
pub(crate) use wire::{Answer, Question, is_question};

#[cfg(test)]
mod tests;
