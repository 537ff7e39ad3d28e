//! Real clients and tools, and the broker they are pointed at.
//!
//! - [`Broker`]: `palisade-broker dev` in a directory of its own, on free ports.
//! - [`Cluster`]: several brokers that replicate to each other, a process each.
//! - [`Java`]: the tools of Apache Kafka, many calls in one JVM.
//! - [`Kcat`]: librdkafka's command-line client.
//! - [`RawClient`]: bytes over TLS, for what no well-behaved client sends.
//!
//! Every child process is killed by its own id when the value that owns it is dropped, also when a test panics.

mod access;
mod broker;
mod disk;
mod java;
mod kcat;
mod process;
mod program;
mod scan;
mod trio;
mod wire;

pub use access::{Access, Certificate, Login, Mechanism};
pub use broker::Broker;
pub use disk::Tmpfs;
pub use java::{Java, Lease, cache, tool};
pub use kcat::{Kcat, kcat};
pub use process::{Background, Outcome, free_port, run, wait_until};
pub use program::program;
pub use scan::files_containing;
pub use trio::Cluster;
pub use wire::{Answer, RawClient};
