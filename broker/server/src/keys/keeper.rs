//! Follows the keys, and does what they ask for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use palisade_config::status::{KekNeeds, KeyEncryption, KeyRotation};
use palisade_data::{dek_context, system_key_context};
use palisade_log::Wal;
use palisade_metadata::{CheckpointReport, Image, KeyOf, MetadataCommand, MetadataError};
use palisade_seal::{DirectoryProvider, KekId, KeyProvider as _, SealError, SecretKey};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::assess::{Facts, Todo};
use crate::{broker::Broker, cluster::ChangeFailure};

/// How often it is looked whether something changed.
const STEP: Duration = Duration::from_secs(1);
/// As long as nothing does, everything is looked through this often only: it takes a little for each segment.
const IDLE: Duration = Duration::from_secs(10);
/// While topics move to a newer key, checkpoints are written this often: what was sealed anew replaces the old files with one.
const CHECKPOINTS: Duration = Duration::from_secs(10);
/// Keys that are wrapped before the first of them is proposed.
const AT_ONCE: usize = 1024;
/// With so many keys that cannot be wrapped the others will not be, either.
const ENOUGH_PROBLEMS: usize = 16;
/// Segments are wrapped for so long before it is reported how many are left.
const WRAPPING: Duration = Duration::from_secs(2);
/// And only looked at for so long in each step when none is known to need it, as after a start, which clients wait for.
const LOOKING: Duration = Duration::from_millis(100);

/// What was seen last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) keys: KeyEncryption,
    /// Since when every look found nothing under another key than the current one.
    clean_since: Option<Instant>,
    pub(crate) rotations: Vec<KeyRotation>,
    pub(crate) shredding: u64,
    pub(crate) shredded: u64,
    /// What stands in the way.
    pub(crate) problems: Vec<String>,
}

/// Keeps keys in order on one broker.
#[derive(Debug)]
pub(crate) struct Keeper {
    broker: Arc<Broker>,
    wal: Arc<Wal>,
    provider: Arc<DirectoryProvider>,
    seen: Mutex<Seen>,
}

/// One look at everything.
struct Look {
    facts: Facts,
    rotations: Vec<KeyRotation>,
    checkpoint: CheckpointReport,
}

impl Keeper {
    pub(crate) fn new(
        broker: Arc<Broker>,
        wal: Arc<Wal>,
        provider: Arc<DirectoryProvider>,
    ) -> Self {
        Self {
            broker,
            wal,
            provider,
            seen: Mutex::default(),
        }
    }

    /// What was seen last. It is never called settled under a key that was not current then.
    pub(crate) fn seen(&self) -> Seen {
        let mut seen = self.seen.lock().clone();
        let current = self.provider.current();
        if seen.keys.current != current.as_str() {
            seen.keys.current = current.into();
            seen.keys.settled = false;
        }
        // What is loaded is known without a look, and somebody may be waiting for it.
        seen.keys.loaded = self.provider.ids().into_iter().map(Into::into).collect();
        seen
    }

    /// Runs until the broker stops.
    pub(crate) async fn run(self: Arc<Self>, stopping: CancellationToken) {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked: Option<Instant> = None;
        let mut checkpointed = Instant::now();
        let mut before = None;
        let mut pause = STEP;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = (self.broker.image().version, self.provider.current());
            let changed = before.replace(now.clone()) != Some(now);
            let wait = if self.is_busy() { pause } else { IDLE };
            if !changed && looked.is_some_and(|at| at.elapsed() < wait) {
                continue;
            }
            let mut problems = self.lead().await;
            let Some(look) = self.look().await else {
                continue;
            };
            looked = Some(Instant::now());
            problems.extend(look.facts.missing());
            let moving = !look.rotations.is_empty() && checkpointed.elapsed() >= CHECKPOINTS;
            let mut todo = look.facts.todo();
            let budget = match look.facts.is_stale() {
                true => WRAPPING,
                false => LOOKING,
            };
            todo.checkpoint_data |= moving;
            todo.checkpoint_metadata |= look.checkpoint.shredding > 0;
            let needed = self.note(look, &problems);
            pause = STEP;
            if todo == Todo::default() || stopping.is_cancelled() {
                continue;
            }
            if todo.checkpoint_data {
                checkpointed = Instant::now();
            }
            problems.extend(self.act(todo, budget).await);
            if let Some(look) = self.look().await
                && self.note(look, &problems) == needed
                && !changed
            {
                // Something holds on to an old key, such as a shard without a leader: no need to hurry, and a checkpoint is not free.
                pause = IDLE;
            }
        }
    }

    /// Whether what was seen last calls for another look soon. With a problem it can wait: trying is not free.
    fn is_busy(&self) -> bool {
        let seen = self.seen.lock();
        let at_work = !seen.keys.settled || !seen.rotations.is_empty() || seen.shredding > 0;
        at_work && seen.problems.is_empty()
    }

    /// Takes note of a look; returns what each key is needed for.
    fn note(&self, look: Look, problems: &[String]) -> Vec<KekNeeds> {
        let mut keys = look.facts.report();
        let mut seen = self.seen.lock();
        // A file that was begun just before the key changed may have come after the first look.
        let clean_since = match seen.clean_since {
            Some(since) if keys.settled && seen.keys.current == keys.current => Some(since),
            _ => keys.settled.then(Instant::now),
        };
        keys.settled = clean_since.is_some_and(|since| since.elapsed() >= STEP / 2);
        if keys.settled && !seen.keys.settled {
            info!(current = %keys.current, "everything is wrapped under the current key");
        }
        for problem in problems.iter().filter(|new| !seen.problems.contains(new)) {
            warn!(problem, "keys are not in order");
        }
        let needed = keys.needed.clone();
        *seen = Seen {
            keys,
            clean_since,
            rotations: look.rotations,
            shredding: look.checkpoint.shredding,
            shredded: look.checkpoint.shredded,
            problems: problems.to_vec(),
        };
        needed
    }

    async fn look(self: &Arc<Self>) -> Option<Look> {
        let keeper = Arc::clone(self);
        // A panic in it was reported where it happened; the next step looks again.
        tokio::task::spawn_blocking(move || keeper.look_now())
            .await
            .ok()
    }

    fn look_now(&self) -> Look {
        let broker = &self.broker;
        // First of all: what changes under it afterwards is seen by the next look.
        let current = self.provider.current();
        let metadata = &broker.cluster.metadata;
        let checkpoint = metadata.read(|machine| machine.report().clone());
        let image = broker.image();
        let mut rotations: Vec<KeyRotation> = broker
            .data
            .key_rotations()
            .into_iter()
            .filter_map(|rotation| {
                Some(KeyRotation {
                    topic: image.topics.get(rotation.topic)?.name.clone(),
                    newest: rotation.newest.0,
                    oldest: rotation.oldest.0,
                    segments_left: rotation.segments_left as u64,
                    bytes_left: rotation.bytes_left,
                })
            })
            .collect();
        rotations.sort_by(|one, other| one.topic.cmp(&other.topic));
        let facts = Facts {
            current,
            loaded: self.provider.ids().into_iter().collect::<BTreeSet<KekId>>(),
            wal: self.wal.keks(),
            data: broker.data.count_keks(),
            checkpoint: checkpoint.keks.clone(),
            keys: image.count_keks(),
        };
        Look {
            facts,
            rotations,
            checkpoint,
        }
    }

    /// Moves what is on this broker's volume. Returns what went wrong; the next step tries again.
    async fn act(self: &Arc<Self>, todo: Todo, budget: Duration) -> Vec<String> {
        let mut problems = Vec::new();
        if todo.renew {
            // First: the checkpoints then release what lies before.
            self.wal.renew();
        }
        if todo.rewrap {
            let data = Arc::clone(&self.broker.data);
            match tokio::task::spawn_blocking(move || data.rewrap(budget)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    problems.push(format!("a segment cannot be wrapped anew: {error}"))
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        if todo.checkpoint_data
            && let Err(error) = self.broker.data.checkpoint().await
        {
            problems.push(format!("a data shard cannot be checkpointed: {error}"));
        }
        if todo.checkpoint_metadata
            && let Err(error) = self.broker.cluster.metadata.checkpoint().await
        {
            problems.push(format!("the metadata cannot be checkpointed: {error}"));
        }
        problems
    }

    /// What only the leader of the metadata does: it proposes keys that are wrapped anew, and new ones.
    async fn lead(self: &Arc<Self>) -> Vec<String> {
        if !self.broker.cluster.is_controller() {
            return Vec::new();
        }
        let image = self.broker.image();
        let current = self.provider.current();
        let has_work =
            image.keys().any(|(_, _, key)| key.kek != current) || image.keys_due().next().is_some();
        if !has_work {
            return Vec::new();
        }
        let keeper = Arc::clone(self);
        let prepared = tokio::task::spawn_blocking(move || {
            // The provider may take its time.
            keeper.prepare(&image, &current)
        });
        let Ok((commands, mut problems)) = prepared.await else {
            return Vec::new();
        };
        let mut done = 0u64;
        for command in commands {
            match self.broker.cluster.decide(&command).await {
                Ok(_) => done = done.saturating_add(1),
                // Its topic was deleted meanwhile.
                Err(ChangeFailure::Refused(MetadataError::UnknownTopic(_))) => {}
                // That concerns this key alone.
                Err(ChangeFailure::Refused(error)) => {
                    problems.push(format!("a topic's key cannot be changed: {error}"));
                }
                // The next leader does it.
                Err(ChangeFailure::NotController | ChangeFailure::Unanswered) => break,
                Err(error) => {
                    problems.push(format!("a topic's key cannot be changed: {error:?}"));
                    break;
                }
            }
        }
        if done > 0 {
            info!(keys = done, "changed wrapped keys in the metadata");
        }
        problems.dedup();
        problems
    }

    /// Some of the changes that the keys in `image` need.
    fn prepare(&self, image: &Image, current: &KekId) -> (Vec<MetadataCommand>, Vec<String>) {
        let (mut commands, mut problems) = (Vec::new(), Vec::new());
        let stale = image.keys().filter(|(_, _, key)| key.kek != *current);
        for (of, version, key) in stale {
            if commands.len() >= AT_ONCE || problems.len() >= ENOUGH_PROBLEMS {
                break;
            }
            let context = context_of(of);
            let wrapped = self
                .provider
                .unwrap(key, &context)
                .and_then(|key| self.provider.wrap(&key, &context));
            match wrapped {
                Ok(key) => commands.push(of.rewrapped(version, key)),
                Err(error) => {
                    problems.push(format!("a topic's key cannot be wrapped anew: {error}"))
                }
            }
        }
        for (id, version) in image.keys_due().take(AT_ONCE) {
            match self.new_key(KeyOf::Topic(id)) {
                Ok(key) => commands.push(MetadataCommand::AddTopicKey { id, version, key }),
                Err(error) => problems.push(format!("a topic's key cannot be made: {error}")),
            }
        }
        problems.dedup();
        (commands, problems)
    }

    fn new_key(&self, of: KeyOf) -> Result<palisade_seal::WrappedKey, SealError> {
        self.provider.wrap(&SecretKey::generate()?, &context_of(of))
    }
}

/// What a wrapped key is bound to.
fn context_of(of: KeyOf) -> Vec<u8> {
    match of {
        KeyOf::System => system_key_context().to_vec(),
        KeyOf::Topic(id) => dek_context(id),
    }
}
