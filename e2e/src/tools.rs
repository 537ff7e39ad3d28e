//! Real clients and tools, and the broker they are pointed at.
//!
//! - [`Broker`]: `palisade-broker dev` in a directory of its own, on free ports.
//! - [`Cluster`]: several brokers that replicate to each other, a process each.
//! - [`Java`]: the tools of Apache Kafka, many calls in one JVM.
//! - [`Kcat`]: librdkafka's command-line client.
//! - [`JavaProducer`], [`RdkafkaProducer`]: idempotent producers that run while something happens, and are held to every acknowledgement.
//! - [`Lan`], [`Tmpfs`]: a network that can be cut, a disk that can be filled.
//! - [`RawClient`]: bytes over TLS, for what no well-behaved client sends.
//! - [`Tally`]: counts lines of a log that grows.
//!
//! Every child process is killed by its own id when the value that owns it is dropped, also when a test panics.

mod access;
mod authority;
mod broker;
mod disk;
mod java;
mod kcat;
mod lan;
mod load;
mod process;
mod program;
mod scan;
mod site;
mod strace;
mod tally;
mod trio;
mod wire;

pub use crate::ports::free_port;
pub use access::{Access, Certificate, Login, Mechanism};
pub use broker::Broker;
pub use disk::Tmpfs;
pub use java::{Java, Lease, cache, tool};
pub use kcat::{Kcat, kcat};
pub use lan::Lan;
pub use load::{JavaProducer, RdkafkaProducer, Stored};
pub use process::{Background, Outcome, run, wait_until};
pub use program::program;
pub use scan::files_containing;
pub use site::Site;
pub use strace::fail_next_sync;
pub use tally::Tally;
pub use trio::Cluster;
pub use wire::{Answer, RawClient};
