//! Brokers as a cluster: what they tell each other besides the shards' own messages.

pub(crate) mod gossip;
pub(crate) mod messages;
