//! No offset is used twice or skipped: what was acknowledged for two batches does not overlap, nothing lies beyond the end, and leader epochs do not go back.

use std::collections::BTreeMap;

use crate::oracle::{History, Replica};

/// Its name.
pub const NAME: &str = "offsets";

/// Compares the acknowledged ranges with each other and with what is there.
///
/// # Errors
/// The first two that overlap, the first that lies beyond the end, or the first epoch that goes back.
pub fn check(history: &History, replicas: &[Replica]) -> Result<(), String> {
    let mut taken = BTreeMap::new();
    for ack in &history.acks {
        for number in 0..ack.count {
            let place = (
                ack.shard,
                ack.partition,
                ack.base.saturating_add(u64::from(number)),
            );
            let record = (ack.producer, ack.sequence.saturating_add(number));
            let before = *taken.entry(place).or_insert(record);
            if before != record {
                return Err(format!(
                    "offset {} of {}/{} was acknowledged to producer {} for its record {} and to producer {} for its record {}",
                    place.2, place.0, place.1, before.0, before.1, record.0, record.1
                ));
            }
        }
    }
    for replica in replicas {
        for (partition, records) in &replica.partitions {
            let beyond = taken.range(
                (replica.shard, *partition, records.len() as u64)
                    ..=(replica.shard, *partition, u64::MAX),
            );
            if let Some((place, _)) = beyond.into_iter().next() {
                return Err(format!(
                    "offset {} of {}/{partition} was acknowledged, {} ends at {}",
                    place.2,
                    place.0,
                    replica.node,
                    records.len()
                ));
            }
            if let Some(at) = records
                .windows(2)
                .position(|pair| matches!(pair, [one, two] if one.term > two.term))
            {
                return Err(format!(
                    "the leader epoch goes back after offset {at} of {}/{partition} on {}",
                    replica.shard, replica.node
                ));
            }
        }
    }
    Ok(())
}
