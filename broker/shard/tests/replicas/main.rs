//! Several replicas of a shard over a network in memory and write-ahead logs on disks that can lose power.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stderr
)]
// A test's crate has no users.
#![allow(missing_docs, unreachable_pub)]

mod failover;
mod harness;
mod lag;
mod members;
mod net;
mod random;
