//! Long polls.

use std::sync::{Arc, atomic::Ordering};

use palisade_log::{Offset, PartitionIndex, TopicId};
use palisade_seal::PAYLOAD_OVERHEAD;
use tokio::{sync::Notify, time::Instant};

use super::{DataPlane, Located};
use crate::{
    slot::Slot,
    types::{Access, DataError},
};

/// A partition that is waited for.
struct Watched {
    slot: Arc<Slot>,
    topic: TopicId,
    partition: PartitionIndex,
    offset: Offset,
    /// What the slot had counted when the wait began.
    counted: u64,
}

impl DataPlane {
    /// Waits until `min_bytes` of records lie at or after the offsets wanted, all partitions together, or until then. Ends at once when something is wrong
    /// with one of them: fetching says what.
    ///
    /// Fetch and answer when this ends, whatever is there by then: limits of the request may keep it below `min_bytes`.
    /// Wakes early when this broker ceases to lead one of the partitions.
    pub async fn wait_for_data(
        &self,
        wanted: &[(TopicId, PartitionIndex, Offset)],
        min_bytes: usize,
        until: Instant,
    ) {
        self.wait_for_data_by(Access::Leader, wanted, min_bytes, until)
            .await;
    }

    /// As [`DataPlane::wait_for_data`], for what is read by [`DataPlane::fetch`] or by [`DataPlane::fetch_replica`].
    pub async fn wait_for_data_by(
        &self,
        access: Access,
        wanted: &[(TopicId, PartitionIndex, Offset)],
        min_bytes: usize,
        until: Instant,
    ) {
        let waiter = Arc::new(Notify::new());
        let mut watched = Vec::with_capacity(wanted.len());
        for &(topic, partition, offset) in wanted {
            let Ok(located) = self.located_by(access, topic, partition) else {
                return;
            };
            let slot = located.slot();
            // Looked at after it is registered: nothing that comes in between is missed.
            slot.waiters.add(&waiter);
            let counted = slot.appended_bytes.load(Ordering::Relaxed);
            watched.push(Watched {
                slot,
                topic,
                partition,
                offset,
                counted,
            });
        }
        let min_bytes = min_bytes.max(1);
        let Some(there) = self.bytes_there(access, &watched, min_bytes) else {
            return;
        };
        while self
            .bytes_since(access, &watched)
            .is_some_and(|since| there.saturating_add(since) < min_bytes as u64)
        {
            if tokio::time::timeout_at(until, waiter.notified())
                .await
                .is_err()
            {
                return;
            }
        }
    }

    pub(super) fn located_by(
        &self,
        access: Access,
        topic: TopicId,
        partition: PartitionIndex,
    ) -> Result<Located, DataError> {
        if self.is_stopping() {
            return Err(DataError::Stopped);
        }
        match access {
            Access::Leader => self.locate(topic, partition).map(|led| led.at),
            Access::Replica => self.locate_replica(topic, partition),
        }
    }

    /// Bytes that can be read, counted up to `enough`. `None`: a fetch would fail.
    fn bytes_there(&self, access: Access, watched: &[Watched], enough: usize) -> Option<u64> {
        let mut bytes = 0usize;
        for Watched {
            topic,
            partition,
            offset,
            ..
        } in watched
        {
            let located = self.located_by(access, *topic, *partition).ok()?;
            let (start, end) = located.ends();
            if *offset < start || *offset > end {
                return None;
            }
            if *offset == end || bytes >= enough {
                continue;
            }
            let entries = located
                .partition()?
                .log
                .read(*offset, enough - bytes)
                .ok()?;
            bytes = entries.iter().fold(bytes, |sum, (_, payload)| {
                sum.saturating_add(payload.len().saturating_sub(PAYLOAD_OVERHEAD))
            });
        }
        Some(bytes as u64)
    }

    /// Bytes that came since the wait began. `None`: a partition cannot be read any more.
    fn bytes_since(&self, access: Access, watched: &[Watched]) -> Option<u64> {
        watched.iter().try_fold(
            0u64,
            |sum,
             Watched {
                 slot,
                 topic,
                 partition,
                 counted,
                 ..
             }| {
                self.located_by(access, *topic, *partition).ok()?;
                let since = slot
                    .appended_bytes
                    .load(Ordering::Relaxed)
                    .saturating_sub(*counted);
                Some(sum.saturating_add(since))
            },
        )
    }
}
