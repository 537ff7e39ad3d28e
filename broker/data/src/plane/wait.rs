//! Long polls.

use std::sync::Arc;

use palisade_log::{Offset, PartitionIndex, TopicId};
use tokio::{sync::Notify, time::Instant};

use super::DataPlane;

impl DataPlane {
    /// Waits until about `min_bytes` of records lie at or after the offsets wanted, all partitions together, or until then. Ends at once when something is
    /// wrong with one of them: fetching says what.
    pub async fn wait_for_data(
        &self,
        wanted: &[(TopicId, PartitionIndex, Offset)],
        min_bytes: usize,
        until: Instant,
    ) {
        let waiter = Arc::new(Notify::new());
        for (topic, partition, _) in wanted {
            match self.locate(*topic, *partition) {
                Ok(located) => located.slot().waiters.add(&waiter),
                Err(_) => return,
            }
        }
        // Looked at after it is registered: nothing that comes in between is missed.
        while !self.has_data(wanted, min_bytes) {
            if tokio::time::timeout_at(until, waiter.notified())
                .await
                .is_err()
            {
                return;
            }
        }
    }

    fn has_data(&self, wanted: &[(TopicId, PartitionIndex, Offset)], min_bytes: usize) -> bool {
        let mut bytes = 0u64;
        for (topic, partition, offset) in wanted {
            let Ok(located) = self.locate(*topic, *partition) else {
                return true;
            };
            let Some(partition) = located.partition() else {
                if *offset != Offset::ZERO {
                    return true;
                }
                continue;
            };
            if *offset > partition.log.end_offset() || *offset < partition.log.start_offset() {
                return true;
            }
            bytes = bytes.saturating_add(partition.log.bytes_from(*offset));
        }
        bytes >= min_bytes.max(1) as u64
    }
}
