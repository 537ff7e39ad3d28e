//! The cluster's metadata, the state machine of shard 0: topics, ACLs, SCRAM credentials, quotas, configurations, broker
//! registrations, the placement of shards and wrapped keys.
//!
//! A change is a [`MetadataCommand`]. [`Image::admit`] checks one against the current state and encodes it as a log entry;
//! [`Image::apply`] is what every broker does with the entries, in log order, and so must be the same function of the same
//! input on all of them: whatever may differ between versions (which configs exist, what a value may be) is checked by
//! `admit`, on the leader, once. Brokers say when they register which commands they read, and `admit` refuses what one of them does not.
//!
//! An [`Image`] is a value: cloning it is cheap, and requests are answered from the one that was current when they came.

mod apply;
mod cluster;
mod command;
pub mod config;
mod error;
mod image;
mod keys;
mod machine;
pub mod placement;
pub mod topic_name;

pub use cluster::{BrokerRegistration, Cluster, ShardInfo, node_of};
pub use command::{
    BrokerEndpoint, ConfigOp, ConfigResource, MAX_COMMAND_BYTES, MetadataCommand, MetadataResponse,
};
pub use config::{CleanupPolicy, TimestampType, TopicSettings};
pub use error::MetadataError;
pub use image::{Image, ScramUsers, Topic, Topics};
pub use keys::KeyOf;
pub use machine::{CheckpointReport, MetadataMachine, OpenError};
