//! Consumer groups of the classic protocol and their committed offsets, as state machines that do no I/O and look at no
//! clock: time is an argument, answers are values.
//!
//! * [`offsets`]: committed offsets, and a record of the members of each group, replicated in data shards: commands are applied in log order on every
//!   replica.
//! * [`group`]: who is a member of which group and of which generation, in the memory of the broker that coordinates the group. Each stable generation is
//!   recorded before its members are given their assignments, and whoever coordinates the group next goes on from there.

pub mod group;
pub mod offsets;
