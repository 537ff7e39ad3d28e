//! The broker: listeners, Kafka's APIs, the admin port, and the assembly of the lower crates into one process.
//!
//! ```text
//! tls, net, sasl   bytes of strangers → requests of principals
//! codec            requests and answers as bytes
//! api              one file per Kafka API: who may, what happens, which answer
//! broker, groups   what handlers act on
//! cluster          who leads what, where metadata changes go, which replicas are hosted
//! keys             key-encryption keys and topics' keys that are replaced
//! admin            health, metrics, status
//! assembly, dev    starting, following files, stopping
//! ```

mod admin;
mod api;
mod assembly;
mod broker;
mod cluster;
mod codec;
mod dev;
mod error;
mod groups;
mod kafka_error;
mod keys;
mod logging;
mod metrics;
mod net;
mod quotas;
mod sasl;
mod session;
mod tls;

#[cfg(test)]
mod tests;

pub use assembly::{BootstrapUser, check, run, run_dev};
pub use codec::{CodecError, Frame, Request, WalkError, decode_request};
pub use dev::{DevBroker, DevOptions, prepare};
pub use error::StartError;
pub use logging::start as start_logging;
#[doc(hidden)]
pub use net::cut_frames;
