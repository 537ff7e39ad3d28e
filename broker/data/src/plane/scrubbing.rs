//! Reads sealed segments slowly, again and again, so that silent damage is found before a client meets it, and while other replicas are whole.
//!
//! What the kernel holds in memory is read from there: damage below it shows once the page was dropped.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use palisade_log::segment::SegmentState;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::DataPlane;
use crate::slot::Partition;

/// Bytes checked at once.
const CHUNK: usize = 256 << 10;

/// How sealed segments are looked through for damage.
#[derive(Clone, Copy, Debug)]
pub struct ScrubOptions {
    /// Bytes read in a second.
    pub bytes_per_second: u64,
    /// The first pass begins this long after the start.
    pub first: Duration,
    /// From the beginning of one pass to that of the next, unless it takes longer.
    pub every: Duration,
}

impl Default for ScrubOptions {
    /// 4 MiB/s are about a hundredth of what a disk gives and half a percent of a core, and 240 GB a day and replica.
    fn default() -> Self {
        Self {
            bytes_per_second: 4 << 20,
            first: Duration::from_secs(10),
            every: Duration::from_secs(6 * 3600),
        }
    }
}

/// Runs until the data plane is gone or stops.
pub(super) async fn run(
    plane: Weak<DataPlane>,
    mut stop: watch::Receiver<bool>,
    options: ScrubOptions,
) {
    let mut next = Instant::now() + options.first;
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            () = tokio::time::sleep_until(next) => {}
        }
        next = Instant::now() + options.every;
        let Some(sealed) = plane.upgrade().map(|plane| plane.sealed_segments()) else {
            return;
        };
        for (partition, segment) in sealed {
            let Some(partition) = partition.upgrade() else {
                continue;
            };
            let mut position = Some(0);
            while let Some(at) = position {
                let Some(plane) = plane.upgrade().filter(|plane| !plane.is_stopping()) else {
                    return;
                };
                position = plane.scrub(&partition, &segment, at).await;
                drop(plane);
                let read = position.unwrap_or(segment.length).saturating_sub(at);
                let pause = read.saturating_mul(1_000_000) / options.bytes_per_second.max(1);
                tokio::select! {
                    _ = stop.changed() => return,
                    () = sleep(Duration::from_micros(pause)) => {}
                }
            }
        }
    }
}

impl DataPlane {
    /// All closed segments of this broker, as they are now.
    fn sealed_segments(&self) -> Vec<(Weak<Partition>, SegmentState)> {
        let mut sealed = Vec::new();
        for handle in self.handles().values() {
            for partition in handle
                .data
                .slots()
                .iter()
                .filter_map(|slot| slot.partition())
            {
                for segment in partition.log.closed_segments() {
                    sealed.push((Arc::downgrade(&partition), segment));
                }
            }
        }
        sealed
    }

    /// Checks some of a segment. Returns where to go on; `None` when it is done, or damaged.
    async fn scrub(
        &self,
        partition: &Arc<Partition>,
        segment: &SegmentState,
        at: u64,
    ) -> Option<u64> {
        let (partition, segment) = (Arc::clone(partition), segment.clone());
        let length = segment.length;
        let check = move || partition.log.scrub(&segment, at, CHUNK);
        // A panic in it was reported where it happened; the segment is left out then.
        let next = match self.runtime.spawn_blocking(check).await.ok()? {
            Ok(next) => next,
            // Damage was reported where it was found; the disk's own trouble is met by others.
            Err(error) => {
                tracing::debug!(%error, "a segment was not looked through to its end");
                None
            }
        };
        let read = next.unwrap_or(length).saturating_sub(at);
        let mut stats = self.repairing.stats.lock();
        stats.scrubbed = stats.scrubbed.saturating_add(read);
        next
    }
}
