//! Idempotence, exactly once: each record of an idempotent producer stands exactly once, however often it was sent.

use crate::oracle::{History, Replica};

/// Its name.
pub const NAME: &str = "idempotence";

/// Counts.
///
/// # Errors
/// The first producer of which a record stands more often than once, or not at all though it has finished.
pub fn check(history: &History, replicas: &[Replica]) -> Result<(), String> {
    for producer in history
        .producers
        .iter()
        .filter(|producer| producer.idempotent)
    {
        for replica in replicas {
            let records = replica.partitions.values().flatten();
            let mut found: Vec<_> = records
                .filter(|record| record.producer == producer.id)
                .map(|record| record.sequence)
                .collect();
            found.sort_unstable();
            if found.is_empty() {
                continue;
            }
            if !found.iter().copied().eq(0..producer.records) {
                return Err(format!(
                    "{} has {} records of producer {} in {}, who sent {}: {found:?}",
                    replica.node,
                    found.len(),
                    producer.id,
                    replica.shard,
                    producer.records
                ));
            }
        }
    }
    Ok(())
}
