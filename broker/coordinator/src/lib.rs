//! Consumer groups of the classic protocol and their committed offsets, as state machines that do no I/O and look at no
//! clock: time is an argument, answers are values.
//!
//! * [`offsets`]: committed offsets, replicated in data shards: commands are applied in log order on every replica.
//! * [`group`]: who is a member of which group and of which generation: kept in memory by the broker that coordinates the group, and
//!   built again by the members themselves when another broker takes over or this one restarts.

pub mod group;
pub mod offsets;
