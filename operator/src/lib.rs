//! The Palisade operator: keeps clusters, users, access rules, quotas, topics and rotations the way their resources say.
//!
//! One module for each kind. Every reconcile is the same five verbs: observe (all I/O that reads), validate (a typed value or a condition), plan (pure),
//! apply (only what differs), report (a status from what was observed). What is shared: [`kubernetes`] writes to the API server, [`kafka`] and [`access`]
//! speak to brokers, [`pki`] and [`authorities`] make certificates and replace authorities, [`members`] is what the kinds that belong to a cluster have in
//! common.

pub mod access;
pub mod acl;
pub mod authorities;
pub mod cert_rotation;
pub mod cluster;
mod context;
pub mod controllers;
mod error;
pub mod http;
pub mod kafka;
pub mod kubernetes;
pub mod members;
pub mod metrics;
pub mod pki;
pub mod quota;
pub mod topic;
pub mod user;

pub use context::{Context, Indexes, Settings};
pub use error::Error;
