#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod cluster;
mod compaction;
mod crashes;
mod disk;
mod idempotence;
mod lifecycle;
mod produce_fetch;
mod recovery_time;
mod repair;
mod replicas;
