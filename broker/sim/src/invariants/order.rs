//! Order per partition: the records of an idempotent producer stand in its order, and so does what a plain one sent one by one when its repetitions are left out.

use crate::oracle::{History, Replica};

/// Its name.
pub const NAME: &str = "order";

/// Compares each producer's records with its numbers.
///
/// # Errors
/// The first that stands before an earlier one.
pub fn check(history: &History, replicas: &[Replica]) -> Result<(), String> {
    for producer in &history.producers {
        if !producer.idempotent && producer.window > 1 {
            continue;
        }
        for replica in replicas {
            for (partition, records) in &replica.partitions {
                let mut next = 0;
                for record in records
                    .iter()
                    .filter(|record| record.producer == producer.id)
                {
                    if record.sequence > next || (producer.idempotent && record.sequence < next) {
                        return Err(format!(
                            "{} has record {} of producer {} in {}/{partition} where {next} is next",
                            replica.node, record.sequence, producer.id, replica.shard
                        ));
                    }
                    next = next.max(record.sequence.saturating_add(1));
                }
            }
        }
    }
    Ok(())
}
