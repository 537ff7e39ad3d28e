//! Kafka's APIs, one file each.

pub(crate) mod api_versions;
