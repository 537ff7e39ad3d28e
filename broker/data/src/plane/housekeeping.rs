//! What happens without being asked for: checkpoints, retention, and following the deletion of topics.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use palisade_log::TopicId;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{DataPlane, handle::ShardHandle};
use crate::{
    command::{DataCommand, Key},
    shard_data::{ShardData, now_ms},
};

/// How often it is looked whether something is to be done.
const STEP: Duration = Duration::from_millis(500);
/// A shard with few changes is checkpointed this often all the same, so that it does not hold on to the write-ahead log.
const CHECKPOINT_AGE: Duration = Duration::from_secs(60);
/// After a checkpoint that failed, the next one is not tried earlier.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(5);
/// Idempotent producers that were silent for this long are forgotten. Kafka's `producer.id.expiration.ms` is a day; there an unknown producer may go on with any
/// sequence. Here it has to begin anew, since a batch that was overtaken by a change of the leader could count twice otherwise, and librdkafka gives up for good
/// then: so nightly and weekly jobs must not be forgotten.
const PRODUCER_EXPIRY_MS: i64 = 14 * 24 * 60 * 60 * 1000;

/// Runs until the data plane is gone or stops.
pub(super) async fn run(
    plane: Weak<DataPlane>,
    mut stop: watch::Receiver<bool>,
    checkpoint_due: Arc<Notify>,
) {
    let mut steps = interval(STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = Housekeeper::default();
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            () = checkpoint_due.notified() => {}
            _ = steps.tick() => {}
        }
        let Some(plane) = plane.upgrade() else { return };
        if plane.is_stopping() {
            return;
        }
        state.step(&plane).await;
    }
}

#[derive(Default)]
struct Housekeeper {
    seen_version: Option<u64>,
    last_retention: Option<Instant>,
    last_checkpoint: Option<Instant>,
    last_failure: Option<Instant>,
}

impl Housekeeper {
    async fn step(&mut self, plane: &DataPlane) {
        plane.flush_backlogs().await;
        plane.report_quarantined();
        let now = Instant::now();
        let passed = |since: Option<Instant>, time| {
            since.is_none_or(|since| now.duration_since(since) >= time)
        };
        let regular = passed(self.last_retention, plane.options.housekeeping);
        let version = plane.catalog.version();
        // Regularly too: an append that raced with the deletion may have made a partition again.
        if regular || self.seen_version != Some(version) {
            plane.follow_settings(|_| true);
            if plane.catalog.is_current() {
                plane.drop_deleted_topics(version).await;
            }
            self.seen_version = Some(version);
        } else {
            plane.follow_settings(ShardData::take_unsettled);
        }
        if regular {
            // By settings that may have been others for long, nothing is removed.
            if plane.catalog.is_current() {
                plane.enforce_retention().await;
            }
            plane.expire_producers().await;
            self.last_retention = Some(now);
        }
        let last_checkpoint = *self.last_checkpoint.get_or_insert(now);
        let due = plane.checkpoint_needed() || passed(Some(last_checkpoint), CHECKPOINT_AGE);
        if due && passed(self.last_failure, CHECKPOINT_RETRY) {
            // Logged where it fails.
            self.last_failure = plane.checkpoint().await.is_err().then_some(now);
            self.last_checkpoint = Some(now);
        }
    }
}

impl DataPlane {
    fn checkpoint_needed(&self) -> bool {
        let unsaved = |handle: &ShardHandle| handle.data.unsaved.load(Ordering::Relaxed);
        self.handles()
            .values()
            .any(|handle| unsaved(handle) >= self.options.checkpoint_wal_bytes)
    }

    /// The shards that this broker leads: only there it proposes anything.
    fn led(&self) -> Vec<Arc<ShardHandle>> {
        self.handles()
            .values()
            .filter(|handle| handle.term().is_some())
            .cloned()
            .collect()
    }

    async fn flush_backlogs(&self) {
        for handle in self.handles().values() {
            if handle.data.backlogged.load(Ordering::Acquire) {
                let data = Arc::clone(&handle.data);
                // A panic in it was reported; the next step tries again.
                let _ = self
                    .runtime
                    .spawn_blocking(move || data.flush_backlog())
                    .await;
            }
        }
    }

    /// Once for each shard, and not before it has caught up: what is replayed may remove what looked damaged.
    fn report_quarantined(&self) {
        let handles = self.handles();
        let mut fresh = BTreeSet::new();
        for (shard, handle) in handles.iter() {
            if handle.is_current(self.options.node) {
                handle.report_once(|| {
                    fresh.insert(*shard);
                });
            }
        }
        if fresh.is_empty() {
            return;
        }
        for (shard, damaged) in self.quarantined_by_shard() {
            if fresh.contains(&shard) {
                tracing::error!(
                    %shard,
                    file = %damaged.file.display(),
                    position = damaged.position,
                    reason = %damaged.reason,
                    "a segment is damaged; offsets {} to {} of its partition are not served",
                    damaged.base,
                    damaged.end
                );
            }
        }
    }

    /// Segments are rolled as each topic says, also by those who follow.
    pub(super) fn follow_settings(&self, of: impl Fn(&ShardData) -> bool) {
        let handles = self.handles();
        for handle in handles.values().filter(|handle| of(&handle.data)) {
            for slot in handle.data.slots() {
                if let Ok(Some(view)) = self.catalog.topic(slot.key.0) {
                    slot.set_rolling(handle.data.rolling(&view.settings));
                }
            }
        }
    }

    /// Removes what belongs to topics that the metadata does not have any more. A partition that was made under newer metadata than ours stays: then it is the
    /// metadata that lags behind.
    async fn drop_deleted_topics(&self, version: u64) {
        for handle in self.handles().values() {
            if handle.term().is_some() {
                self.drop_deleted_of(handle, version).await;
            }
            handle
                .data
                .remove_empty(|topic| self.catalog.contains(topic));
        }
    }

    async fn drop_deleted_of(&self, handle: &ShardHandle, version: u64) {
        for topic in self.deleted_topics(handle, version) {
            tracing::info!(%topic, shard = %handle.data.id, "removing a deleted topic");
            if let Err(error) = self
                .command(handle, &DataCommand::DropTopic { topic })
                .await
            {
                tracing::warn!(%topic, %error, "cannot remove a deleted topic yet");
            }
        }
    }

    fn deleted_topics(&self, handle: &ShardHandle, version: u64) -> BTreeSet<TopicId> {
        let slots = handle.data.slots();
        let seen = slots
            .iter()
            .filter_map(|slot| Some((slot.key.0, slot.partition()?.seen)));
        let (mut topics, mut newer) = (BTreeSet::new(), BTreeSet::new());
        for (topic, seen) in seen {
            topics.insert(topic);
            if seen > version {
                newer.insert(topic);
            }
        }
        let offsets = handle.data.offsets.read();
        topics.extend(
            offsets
                .groups()
                .flat_map(|group| offsets.of_group(group))
                .map(|(partition, _)| TopicId(partition.topic)),
        );
        // What was made under newer metadata than these is not for them to judge, nor are the offsets that belong to it.
        topics.retain(|topic| !newer.contains(topic) && !self.catalog.contains(*topic));
        topics
    }

    async fn enforce_retention(&self) {
        for handle in self.led() {
            for slot in handle.data.slots() {
                let Some(command) = self.expired(&handle, slot.key) else {
                    continue;
                };
                if let Err(error) = self.command(&handle, &command).await {
                    tracing::warn!(topic = %slot.key.0, partition = %slot.key.1, %error, "cannot remove records that have expired");
                }
            }
        }
    }

    /// What removes the records of a partition that need not be kept any more.
    fn expired(&self, handle: &ShardHandle, key: Key) -> Option<DataCommand> {
        let slot = handle.data.slot(key)?;
        let partition = slot.partition()?;
        let settings = self.catalog.topic(key.0).ok()??.settings;
        if !settings.delete {
            return None;
        }
        let offset = partition.log.retention_start(
            now_ms(),
            settings.retention_ms,
            settings.retention_bytes,
        )?;
        Some(DataCommand::AdvanceStart { key, offset })
    }

    async fn expire_producers(&self) {
        let before = now_ms().saturating_sub(PRODUCER_EXPIRY_MS);
        for handle in self.led() {
            let expired = |slot: &Arc<crate::slot::Slot>| {
                slot.partition().is_some_and(|partition| {
                    partition.replicated.lock().producers.has_older_than(before)
                })
            };
            if handle.data.slots().iter().any(expired)
                && let Err(error) = self
                    .command(&handle, &DataCommand::ExpireProducers { before })
                    .await
            {
                tracing::warn!(%error, "cannot forget producers that have expired");
            }
        }
    }
}
