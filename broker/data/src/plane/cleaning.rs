//! The cleaner, run beside everything else: see [`crate::cleaner`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use palisade_log::TopicId;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::DataPlane;
use crate::{
    catalog::TopicView,
    cleaner::{
        CleanError, CleanerOptions, CleanerStats, Facts, KeyRotation, Work, dirtiness, next_step,
    },
    command::Key,
    shard_data::{ShardData, now_ms},
    slot::{Partition, Slot},
};

/// How long the cleaner rests at once when it has to slow down: a stop is noticed that late.
const REST: Duration = Duration::from_millis(50);

/// The cleaner's side of a data plane.
#[derive(Debug, Default)]
pub(super) struct Cleaning {
    stats: Mutex<CleanerStats>,
}

/// A partition that the cleaner looks at.
struct Candidate {
    data: Arc<ShardData>,
    slot: Arc<Slot>,
    partition: Arc<Partition>,
    view: Arc<TopicView>,
    urgency: f64,
}

/// Runs until the data plane is gone or stops.
pub(super) async fn run(
    plane: Weak<DataPlane>,
    mut stop: watch::Receiver<bool>,
    options: CleanerOptions,
) {
    // Not at once: a start has better things to do.
    let mut steps = interval_at(Instant::now() + options.interval, options.interval);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = steps.tick() => {}
        }
        let Some(plane) = plane.upgrade() else { return };
        if plane.is_stopping() {
            return;
        }
        let stop = stop.clone();
        let cleaned = plane
            .runtime
            .clone()
            .spawn_blocking(move || plane.clean(&options, now_ms(), &|| *stop.borrow()));
        // A panic in it was reported where it happened; the next step tries again.
        let _ = cleaned.await;
    }
}

impl DataPlane {
    /// What the cleaner has done since the start.
    #[must_use]
    pub fn cleaner_stats(&self) -> CleanerStats {
        *self.cleaning.stats.lock()
    }

    /// Topics of which something on this broker is still sealed under an older version of their key. A version may go once no broker reports an older one than
    /// the newest, when all of them know the newest.
    #[must_use]
    pub fn key_rotations(&self) -> Vec<KeyRotation> {
        let mut topics = BTreeMap::<TopicId, KeyRotation>::new();
        for data in self.cleaner_shards() {
            for slot in data.slots() {
                let Some(partition) = slot.partition() else {
                    continue;
                };
                let Ok(Some(view)) = self.catalog.topic(slot.key.0) else {
                    continue;
                };
                let (Some(newest), Some(oldest)) = (view.keys.latest(), partition.log.oldest_key())
                else {
                    continue;
                };
                if oldest >= newest {
                    continue;
                }
                let (segments, bytes) = partition.log.older_than(newest);
                let entry = topics.entry(slot.key.0).or_insert(KeyRotation {
                    topic: slot.key.0,
                    newest,
                    oldest,
                    segments_left: 0,
                    bytes_left: 0,
                });
                entry.oldest = entry.oldest.min(oldest);
                entry.segments_left = entry.segments_left.saturating_add(segments);
                entry.bytes_left = entry.bytes_left.saturating_add(bytes);
            }
        }
        topics.into_values().collect()
    }

    /// Cleans every partition that needs it, the one with most to gain first. Blocks.
    pub(crate) fn clean(&self, options: &CleanerOptions, now_ms: i64, stopped: &dyn Fn() -> bool) {
        let mut candidates = self.candidates(now_ms);
        candidates.sort_by(|one, other| other.urgency.total_cmp(&one.urgency));
        let pace = Pace::new(options.bytes_per_second);
        let mut failing = 0u64;
        for candidate in &candidates {
            if stopped() {
                return;
            }
            let mut stats = CleanerStats::default();
            let outcome = candidate.clean(options, now_ms, &mut stats, &|bytes| {
                pace.spend(bytes, stopped)
            });
            let (topic, index) = candidate.slot.key;
            match outcome {
                Ok(()) | Err(CleanError::Stopped) => {}
                Err(_) if candidate.partition.log.is_removed() => {}
                Err(error) => {
                    failing = failing.saturating_add(1);
                    tracing::warn!(%topic, partition = %index, %error, "cannot clean a partition; it stays as it is");
                }
            }
            if stats.segments > 0 {
                tracing::debug!(%topic, partition = %index, ?stats, "cleaned");
                // The old files stay until the next checkpoint, which there must be.
                candidate.data.applied_bytes(1);
            }
            let mut total = self.cleaning.stats.lock();
            total.bytes_read = total.bytes_read.saturating_add(stats.bytes_read);
            total.bytes_written = total.bytes_written.saturating_add(stats.bytes_written);
            total.segments = total.segments.saturating_add(stats.segments);
        }
        self.cleaning.stats.lock().failing = failing;
    }

    fn candidates(&self, now_ms: i64) -> Vec<Candidate> {
        let mut found = Vec::new();
        for data in self.cleaner_shards() {
            for slot in data.slots() {
                let Some(partition) = slot.partition() else {
                    continue;
                };
                // A key that cannot be unwrapped now may be the next time.
                let Ok(Some(view)) = self.catalog.topic(slot.key.0) else {
                    continue;
                };
                let oldest = partition.log.oldest_key();
                if view.settings.compaction.is_none()
                    && oldest.is_none_or(|oldest| Some(oldest) >= view.keys.latest())
                {
                    continue;
                }
                let (state, closed) = (partition.log.state(), partition.log.closed_segments());
                let facts = Facts {
                    state: &state,
                    closed: &closed,
                    compaction: view.settings.compaction,
                    rolling: data.rolling(&view.settings),
                    newest_key: view.keys.latest(),
                    now_ms,
                };
                if next_step(&facts).is_some() {
                    let urgency = dirtiness(&facts);
                    found.push(Candidate {
                        data: Arc::clone(&data),
                        slot: Arc::clone(&slot),
                        partition,
                        view,
                        urgency,
                    });
                }
            }
        }
        found
    }

    pub(super) fn cleaner_shards(&self) -> Vec<Arc<ShardData>> {
        self.handles()
            .values()
            .map(|handle| Arc::clone(&handle.data))
            .collect()
    }
}

impl Candidate {
    fn clean(
        &self,
        options: &CleanerOptions,
        now_ms: i64,
        stats: &mut CleanerStats,
        pace: &dyn Fn(u64) -> bool,
    ) -> Result<(), CleanError> {
        let key: Key = self.slot.key;
        let last_of_producers = {
            let replicated = self.partition.replicated.lock();
            replicated.producers.last_batches().collect()
        };
        let work = Work {
            key,
            log: &self.partition.log,
            keys: &self.view.keys,
            compaction: self.view.settings.compaction,
            last_of_producers,
            now_ms,
            key_map_bytes: options.key_map_bytes,
            pace,
        };
        work.run_all(self.data.rolling(&self.view.settings), stats)
    }
}

/// Slows the cleaner down to so many bytes a second.
struct Pace {
    bytes_per_second: Option<u64>,
    begun: Instant,
    spent: Mutex<u64>,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            begun: Instant::now(),
            spent: Mutex::new(0),
        }
    }

    /// False when it was stopped.
    fn spend(&self, bytes: u64, stopped: &dyn Fn() -> bool) -> bool {
        let spent = {
            let mut spent = self.spent.lock();
            *spent = spent.saturating_add(bytes);
            *spent
        };
        let Some(rate) = self.bytes_per_second else {
            return !stopped();
        };
        let due = Duration::from_millis(spent.saturating_mul(1000) / rate.max(1));
        while self.begun.elapsed() < due && !stopped() {
            std::thread::sleep(REST.min(due.saturating_sub(self.begun.elapsed())));
        }
        !stopped()
    }
}
