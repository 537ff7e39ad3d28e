//! Pure builders, one file for each Kubernetes object of a cluster.

pub mod config_map;
pub mod disruption_budget;
pub mod key_secret;
pub mod network_policies;
pub mod secrets;
pub mod service_account;
pub mod services;
pub mod stateful_set;
