//! What is damaged here is repaired from other replicas, and damage that nobody has met is looked for: see [`crate::repair`].
//!
//! A shard that this broker leads is handed to a replica that has the damaged range, so that clients are served from a good copy at once; the repair follows. A
//! shard without other voters stays as it is: quarantined and reported.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use palisade_log::{
    ShardId,
    segment::{QuarantinedSegment, Rolling},
};
use palisade_shard::{Message, NodeId, ShardStatus};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{DataPlane, handle::ShardHandle};
use crate::{
    catalog::TopicView,
    repair::{self, Answer, Mend, MendError, Mended, Question},
    shard_data::ShardData,
    slot::{Partition, Slot},
    types::DataError,
};

/// How often it is looked for damage that was found; at once when a client has met it.
const STEP: Duration = Duration::from_secs(2);
/// But not more often than this.
const PAUSE: Duration = Duration::from_millis(200);
/// After a repair that failed, the next one of the shard is not tried earlier.
const RETRY: Duration = Duration::from_secs(5);
/// Questions of others that are answered at a time.
const SERVED: usize = 8;
/// Who asked for a repair within this time has damage, and should not lead. Longer than [`RETRY`].
const ASKED: Duration = Duration::from_secs(8);

/// What was repaired since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairStats {
    /// Damaged segments that were found, at the start or since.
    pub found: u64,
    /// Damaged segments that were replaced by what another replica has.
    pub repaired: u64,
    /// Bytes of the files that were replaced.
    pub bytes: u64,
    /// Leaderships that were given up because of damage.
    pub handed_over: u64,
    /// Bytes of sealed segments that were looked through for damage.
    pub scrubbed: u64,
}

/// The repairer's side of a data plane.
#[derive(Debug)]
pub(super) struct Repairing {
    pub(super) stats: Mutex<RepairStats>,
    /// Rung when a client has met damage.
    pub(super) met: Arc<Notify>,
    /// Who answers questions of others takes a turn: an answer is much larger than its question.
    pub(super) serving: Arc<Semaphore>,
    /// Who has asked for a repair of which shard, and when last.
    asked: Mutex<BTreeMap<(ShardId, NodeId), Instant>>,
}

impl Default for Repairing {
    fn default() -> Self {
        Self {
            stats: Mutex::default(),
            met: Arc::default(),
            serving: Arc::new(Semaphore::new(SERVED)),
            asked: Mutex::default(),
        }
    }
}

/// A partition with damage.
struct Damaged {
    slot: Arc<Slot>,
    partition: Arc<Partition>,
    segments: Vec<QuarantinedSegment>,
}

/// Runs until the data plane is gone or stops.
pub(super) async fn run(plane: Weak<DataPlane>, mut stop: watch::Receiver<bool>, met: Arc<Notify>) {
    let mut steps = interval(STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut repairer = Repairer::default();
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = steps.tick() => {}
            () = met.notified() => {}
        }
        // Again at once as long as something comes of it.
        loop {
            let Some(plane) = plane.upgrade() else { return };
            if plane.is_stopping() {
                return;
            }
            let goes_on = tokio::select! {
                _ = stop.changed() => return,
                goes_on = repairer.step(&plane) => goes_on,
            };
            if !goes_on {
                break;
            }
        }
        tokio::select! {
            _ = stop.changed() => return,
            () = sleep(PAUSE) => {}
        }
    }
}

#[derive(Default)]
struct Repairer {
    /// Files that were counted as found.
    known: HashSet<PathBuf>,
    /// When shards are tried again that could not be repaired.
    wait: BTreeMap<ShardId, Instant>,
}

impl Repairer {
    /// Hands over what is led and damaged, then repairs one place of each shard. True when something was repaired.
    async fn step(&mut self, plane: &Arc<DataPlane>) -> bool {
        let mut files = HashSet::new();
        let mut todo = Vec::new();
        for (shard, handle) in plane.handles().iter() {
            // Not before it has caught up: what is replayed may remove what looks damaged.
            if !handle.is_current(plane.options.node) {
                continue;
            }
            let damaged = damaged_of(&handle.data);
            if damaged.is_empty() {
                self.wait.remove(shard);
                continue;
            }
            let segments = damaged.iter().flat_map(|one| &one.segments);
            files.extend(segments.map(|segment| segment.file.clone()));
            if self.wait.get(shard).is_none_or(|at| *at <= Instant::now()) {
                todo.push((Arc::clone(handle), damaged));
            }
        }
        let fresh = files.difference(&self.known).count() as u64;
        plane.repairing.stats.lock().found += fresh;
        self.known = files;
        for (handle, damaged) in &todo {
            if handle.term().is_some() {
                plane.give_up_leadership(handle, damaged).await;
            }
        }
        let mut repaired = false;
        for (handle, damaged) in todo {
            match plane.repair_some(&handle, damaged).await {
                Some(true) => repaired = true,
                Some(false) => {
                    self.wait.insert(handle.data.id, Instant::now() + RETRY);
                }
                None => {}
            }
        }
        repaired
    }
}

impl DataPlane {
    /// What was repaired since the start.
    #[must_use]
    pub fn repair_stats(&self) -> RepairStats {
        *self.repairing.stats.lock()
    }

    /// Replicas of a shard that have damage, as far as they have asked this broker for what they lack: whoever prefers one of them as leader should wait.
    #[must_use]
    pub fn under_repair(&self, shard: ShardId) -> BTreeSet<NodeId> {
        let asked = self.repairing.asked.lock();
        let recent = asked
            .iter()
            .filter(|((of, _), at)| *of == shard && at.elapsed() < ASKED);
        recent.map(|((_, node), _)| *node).collect()
    }

    /// Has damage looked after that a client has met.
    pub(super) fn met(&self, error: &DataError) {
        if matches!(error, DataError::Corrupt(_)) {
            self.repairing.met.notify_one();
        }
    }

    /// Answers another replica that repairs.
    pub(super) async fn serve_repair(
        handle: Arc<ShardHandle>,
        runtime: tokio::runtime::Handle,
        turns: Arc<Semaphore>,
        message: Message,
    ) -> Message {
        // It is never closed.
        let _turn = turns.acquire().await;
        let question = match Question::decode(&message) {
            Ok(question) => question,
            Err(reason) => return Answer::encode(Err(reason)),
        };
        let data = Arc::clone(&handle.data);
        let served = runtime.spawn_blocking(move || repair::serve(&data, &question));
        let served = served.await.unwrap_or_else(|error| Err(error.to_string()));
        Answer::encode(served)
    }

    /// Takes note of who repairs.
    pub(super) fn is_asked(&self, shard: ShardId, from: NodeId) {
        let mut asked = self.repairing.asked.lock();
        asked.retain(|_, at| at.elapsed() < ASKED);
        asked.insert((shard, from), Instant::now());
    }

    async fn ask(
        &self,
        node: NodeId,
        shard: ShardId,
        question: Question,
    ) -> Result<Answer, String> {
        let mut stop = self.stop.subscribe();
        let call = self.transport.call(node, shard, question.encode());
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => Err("the broker is shutting down".to_owned()),
            answer = call => match answer {
                Ok(message) => Answer::decode(message),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    /// Hands a shard that this broker leads to a replica that has what is damaged here. When nobody can take it, it is repaired all the same.
    async fn give_up_leadership(&self, handle: &ShardHandle, damaged: &[Damaged]) {
        let shard = handle.data.id;
        for node in sources(self.options.node, &handle.shard.status()) {
            if !self.is_whole(node, shard, damaged).await {
                continue;
            }
            match handle.shard.transfer_leadership(node).await {
                Ok(()) => {
                    self.repairing.stats.lock().handed_over += 1;
                    tracing::warn!(%shard, to = %node, "leadership was handed over, because a segment here is damaged");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%shard, to = %node, %error, "leadership was not handed over")
                }
            }
        }
    }

    /// Whether a replica has the beginning of every range that is damaged here.
    async fn is_whole(&self, node: NodeId, shard: ShardId, damaged: &[Damaged]) -> bool {
        for one in damaged {
            let start = one.partition.log.start_offset();
            for segment in &one.segments {
                let question = Question {
                    key: one.slot.key,
                    created: one.partition.created,
                    from: segment.base.max(start),
                    to: segment.end,
                };
                if question.from < question.to
                    && let Err(reason) = self.ask(node, shard, question).await
                {
                    tracing::debug!(%shard, %node, reason, "a replica cannot take over from a damaged one");
                    return false;
                }
            }
        }
        true
    }

    /// Repairs the first place that can be repaired. `None`: there is nobody to repair it from, `Some(false)`: nobody could.
    async fn repair_some(
        self: &Arc<Self>,
        handle: &Arc<ShardHandle>,
        damaged: Vec<Damaged>,
    ) -> Option<bool> {
        let sources = sources(self.options.node, &handle.shard.status());
        if sources.is_empty() {
            return None;
        }
        let (plane, data) = (Arc::clone(self), Arc::clone(&handle.data));
        let work = move || {
            damaged
                .iter()
                .any(|one| plane.mend(&data, one, &sources).is_some())
        };
        // A panic in it was reported where it happened.
        let done = self.runtime.spawn_blocking(work).await;
        Some(done.unwrap_or(false))
    }

    /// Repairs a partition from the first of `sources` that has what is lacking. Blocks.
    fn mend(&self, data: &ShardData, damaged: &Damaged, sources: &[NodeId]) -> Option<Mended> {
        let (topic, index) = damaged.slot.key;
        let log = &damaged.partition.log;
        let view = match self.catalog.topic(topic) {
            Ok(Some(view)) => view,
            // It is being deleted, or the key cannot be unwrapped now.
            Ok(None) | Err(_) => return None,
        };
        for source in sources {
            match self.mend_from(data, damaged, &view, *source) {
                Ok(Some(mended)) => {
                    for segment in &damaged.segments {
                        if segment.base < mended.to && segment.end > mended.from {
                            tracing::info!(
                                shard = %data.id, %topic, partition = %index, file = %segment.file.display(), position = segment.position, from = %source,
                                "a damaged segment was repaired: offsets {} to {} came from another replica and are served again", mended.from, mended.to
                            );
                        }
                    }
                    // The damaged files stay until the next checkpoint, which there must be.
                    data.applied_bytes(1);
                    let mut stats = self.repairing.stats.lock();
                    stats.repaired = stats.repaired.saturating_add(mended.segments);
                    stats.bytes = stats.bytes.saturating_add(mended.bytes);
                    return Some(mended);
                }
                Ok(None) => return None,
                Err(_) if log.is_removed() || self.is_stopping() => return None,
                Err(error) => {
                    tracing::warn!(shard = %data.id, %topic, partition = %index, from = %source, %error, "a damaged segment cannot be repaired from there");
                }
            }
        }
        None
    }

    fn mend_from(
        &self,
        data: &ShardData,
        damaged: &Damaged,
        view: &TopicView,
        source: NodeId,
    ) -> Result<Option<Mended>, MendError> {
        let Rolling { bytes, .. } = data.rolling(&view.settings);
        let ask = |question| self.runtime.block_on(self.ask(source, data.id, question));
        let mend = Mend {
            key: damaged.slot.key,
            created: damaged.partition.created,
            log: &damaged.partition.log,
            keys: &view.keys,
            segment_bytes: bytes,
            ask: &ask,
        };
        mend.run()
    }
}

fn damaged_of(data: &ShardData) -> Vec<Damaged> {
    let slots = data.slots().into_iter();
    let damaged = slots.filter_map(|slot| {
        let partition = slot.partition()?;
        let segments = partition.log.quarantined();
        (!segments.is_empty()).then_some(Damaged {
            slot,
            partition,
            segments,
        })
    });
    damaged.collect()
}

/// The other voters of a shard: the leader first, then those that lack the least, as far as that is known here.
fn sources(me: NodeId, status: &ShardStatus) -> Vec<NodeId> {
    let others = status.voters.iter().copied().filter(|node| *node != me);
    let mut others: Vec<NodeId> = others.collect();
    others.sort_by_key(|node| {
        let matched = status.matched.get(node).copied().unwrap_or(0);
        (status.leader != Some(*node), std::cmp::Reverse(matched))
    });
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_asked_first_then_who_lacks_the_least() {
        let [a, b, c, d] = [0, 1, 2, 3].map(|broker| NodeId::of(broker, 1));
        let status = |leader| ShardStatus {
            leader,
            voters: BTreeSet::from([a, b, c, d]),
            matched: BTreeMap::from([(b, 5), (c, 9)]),
            ..ShardStatus::default()
        };
        assert_eq!(sources(a, &status(Some(a))), [c, b, d]);
        assert_eq!(sources(a, &status(Some(d))), [d, c, b]);
        let alone = ShardStatus {
            voters: BTreeSet::from([a]),
            ..ShardStatus::default()
        };
        assert_eq!(sources(a, &alone), []);
    }
}
