//! How batches are bound to their place.

use palisade_log::{LeaderEpoch, Offset, PartitionIndex, TopicId};

const FORMAT: u8 = 1;
const DEK_CONTEXT: &[u8] = b"palisade topic dek v1";

/// The additional data of a sealed batch. The version of the data key is bound by the key itself.
pub(crate) fn batch_aad(
    topic: TopicId,
    partition: PartitionIndex,
    base_offset: Offset,
    epoch: LeaderEpoch,
) -> [u8; 33] {
    let mut aad = [0; 33];
    aad[0] = FORMAT;
    aad[1..17].copy_from_slice(topic.0.as_bytes());
    aad[17..21].copy_from_slice(&partition.0.to_be_bytes());
    aad[21..29].copy_from_slice(&base_offset.0.to_be_bytes());
    aad[29..33].copy_from_slice(&epoch.0.to_be_bytes());
    aad
}

/// The context under which a topic's data keys are wrapped.
#[must_use]
pub fn dek_context(topic: TopicId) -> Vec<u8> {
    [DEK_CONTEXT, topic.0.as_bytes()].concat()
}

/// The context under which the cluster's system keys are wrapped.
#[must_use]
pub const fn system_key_context() -> &'static [u8] {
    b"palisade system dek v1"
}
