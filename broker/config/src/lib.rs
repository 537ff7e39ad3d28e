//! The two documents that the broker and whoever runs it agree on: the configuration file a broker reads
//! ([`BrokerConfig`], `broker.toml`) and the state it reports on its admin port ([`status::BrokerStatus`]).
//!
//! The operator renders the first and reads the second, so both are typed here once. Nothing in this crate does I/O.

mod bytes;
mod config;
pub mod status;
mod validate;

pub use bytes::ByteSize;
pub use config::{
    AdminConfig, BrokerConfig, ClientAuth, ClusterConfig, ConnectionLimits, ControlConfig,
    KeyProviderConfig, ListenerConfig, Mechanism, NodeConfig, Seed, StorageConfig, TlsConfig,
};
pub use validate::ConfigError;

/// Name of the listener that only brokers and the operator may use; no client listener may take it.
pub const CONTROL_LISTENER: &str = "CONTROL";
