//! No acknowledged record is lost: it is found on every replica, at the offset that was acknowledged.

use crate::oracle::{History, Replica};

/// Its name.
pub const NAME: &str = "no_loss";

/// Looks up every acknowledged record on every replica.
///
/// # Errors
/// The first that is not there.
pub fn check(history: &History, replicas: &[Replica]) -> Result<(), String> {
    for ack in &history.acks {
        for replica in replicas.iter().filter(|replica| replica.shard == ack.shard) {
            let records = replica.partitions.get(&ack.partition);
            for number in 0..ack.count {
                let offset = ack.base.saturating_add(u64::from(number));
                let found = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| records?.get(offset));
                let expected = (ack.producer, ack.sequence.saturating_add(number));
                if found.map(|record| (record.producer, record.sequence)) != Some(expected) {
                    return Err(format!(
                        "{} acknowledged record {} of producer {} at offset {offset} of {}/{} in term {}; {} has {found:?} there",
                        ack.node,
                        expected.1,
                        ack.producer,
                        ack.shard,
                        ack.partition,
                        ack.term,
                        replica.node
                    ));
                }
            }
        }
    }
    Ok(())
}
