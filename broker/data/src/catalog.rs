//! What the data plane needs to know of topics, and how it is read from the cluster's metadata.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use palisade_log::{PartitionIndex, ShardId, TopicId};
use palisade_metadata::{
    Image, Topic,
    config::{self, Source},
};
use palisade_seal::{KeyProvider, KeyRing, SealError};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{
    records::{Rules, TimestampType},
    sealing::dek_context,
};

/// How far records of one batch may expand: a broker walks them as a stream, but a consumer holds them whole.
const MAX_EXPANDED_BYTES: u64 = 256 << 20;

/// Topics as the data plane sees them.
pub trait Catalog: Send + Sync + 'static {
    /// How new the answers are; grows with every change, the same on every broker.
    fn version(&self) -> u64;

    /// A topic, or `None` when there is none with this id.
    ///
    /// # Errors
    /// When a key of the topic cannot be unwrapped.
    fn topic(&self, id: TopicId) -> Result<Option<Arc<TopicView>>, SealError>;

    /// Whether there is such a topic, without touching its keys.
    fn contains(&self, id: TopicId) -> bool;

    /// Whether the answers are those of the cluster now, and not of a broker that has lost the others or has just come back: only then may what they do not know be
    /// removed.
    fn is_current(&self) -> bool;

    /// The data shard that keeps a group's committed offsets.
    fn shard_of_group(&self, group: &str) -> Option<ShardId>;
}

/// One topic at one version of the metadata.
#[derive(Debug)]
pub struct TopicView {
    /// The shard of each partition.
    pub partitions: Vec<ShardId>,
    /// Its configuration.
    pub settings: TopicSettings,
    /// Its data keys.
    pub keys: Arc<KeyRing>,
}

impl TopicView {
    /// The shard of a partition.
    #[must_use]
    pub fn shard(&self, partition: PartitionIndex) -> Option<ShardId> {
        self.partitions
            .get(usize::try_from(partition.0).ok()?)
            .copied()
    }
}

/// The configuration of a topic, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct TopicSettings {
    /// What may be appended.
    pub rules: Rules,
    /// `min.insync.replicas`.
    pub min_insync_replicas: u32,
    /// `segment.bytes`; `None`: the broker's own default.
    pub segment_bytes: Option<u64>,
    /// `segment.ms`, ms.
    pub segment_age_ms: i64,
    /// `retention.ms`; `None`: for ever.
    pub retention_ms: Option<i64>,
    /// `retention.bytes` of a partition; `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// `cleanup.policy` contains `delete`.
    pub delete: bool,
    /// `cleanup.policy` contains `compact`.
    pub compaction: Option<Compaction>,
}

/// How a topic is compacted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compaction {
    /// `delete.retention.ms`, ms.
    pub delete_retention_ms: i64,
    /// `min.cleanable.dirty.ratio`.
    pub min_dirty_ratio: f64,
    /// `min.compaction.lag.ms`, ms.
    pub min_lag_ms: i64,
    /// `max.compaction.lag.ms`, ms.
    pub max_lag_ms: i64,
}

/// Unwrapped keys and parsed settings of a topic are kept for as long as the metadata does not change them.
struct Cached {
    topic: Arc<Topic>,
    defaults: Arc<BTreeMap<String, String>>,
    view: Arc<TopicView>,
}

/// A [`Catalog`] over the metadata shard's image.
pub struct ImageCatalog {
    image: watch::Receiver<Arc<Image>>,
    provider: Arc<dyn KeyProvider>,
    /// See [`Catalog::is_current`].
    current: Box<dyn Fn() -> bool + Send + Sync>,
    cache: RwLock<HashMap<TopicId, Cached>>,
}

impl ImageCatalog {
    /// Follows `image`, of which `current` says whether it is the cluster's now.
    #[must_use]
    pub fn new(
        image: watch::Receiver<Arc<Image>>,
        provider: Arc<dyn KeyProvider>,
        current: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            image,
            current: Box::new(current),
            provider,
            cache: RwLock::default(),
        }
    }

    fn image(&self) -> Arc<Image> {
        Arc::clone(&self.image.borrow())
    }

    /// The topic as it is now. A version of a key never becomes another key: wrapped anew, it is still the one that is `known`, and a broker that does not have
    /// the new KEK yet goes on.
    fn view(
        &self,
        image: &Image,
        topic: &Topic,
        known: Option<&KeyRing>,
    ) -> Result<TopicView, SealError> {
        let keys = KeyRing::new();
        for (version, wrapped) in &topic.keys {
            if known.is_some_and(|known| keys.take_over(*version, known)) {
                continue;
            }
            keys.insert(
                *version,
                self.provider.unwrap(wrapped, &dek_context(topic.id))?,
            );
        }
        Ok(TopicView {
            partitions: topic.partitions.clone(),
            settings: settings(image, topic),
            keys: Arc::new(keys),
        })
    }
}

impl Catalog for ImageCatalog {
    fn version(&self) -> u64 {
        self.image.borrow().version
    }

    fn topic(&self, id: TopicId) -> Result<Option<Arc<TopicView>>, SealError> {
        let image = self.image();
        let Some(topic) = image.topics.get(id) else {
            self.cache.write().remove(&id);
            return Ok(None);
        };
        let mut known = None;
        if let Some(cached) = self.cache.read().get(&id) {
            if Arc::ptr_eq(&cached.topic, topic)
                && Arc::ptr_eq(&cached.defaults, &image.broker_configs)
            {
                return Ok(Some(Arc::clone(&cached.view)));
            }
            known = Some(Arc::clone(&cached.view.keys));
        }
        // Not under the lock: the key provider may take its time.
        let view = Arc::new(self.view(&image, topic, known.as_deref())?);
        let cached = Cached {
            topic: Arc::clone(topic),
            defaults: Arc::clone(&image.broker_configs),
            view: Arc::clone(&view),
        };
        self.cache.write().insert(id, cached);
        Ok(Some(view))
    }

    fn is_current(&self) -> bool {
        (self.current)()
    }

    fn contains(&self, id: TopicId) -> bool {
        let known = self.image.borrow().topics.get(id).is_some();
        if !known {
            // A deleted topic's keys must not outlive it in memory.
            self.cache.write().remove(&id);
        }
        known
    }

    fn shard_of_group(&self, group: &str) -> Option<ShardId> {
        self.image.borrow().shard_of_group(group)
    }
}

fn settings(image: &Image, topic: &Topic) -> TopicSettings {
    let found = image.topic_settings(topic);
    let configured = image
        .topic_config(topic, "segment.bytes")
        .is_some_and(|config| config.source != Source::Default);
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let compaction = found.cleanup.compact.then(|| compaction(image, topic));
    // A record that must be compacted by then must be in a closed segment by then.
    let longest = compaction.map_or(i64::MAX, |compaction| compaction.max_lag_ms);
    TopicSettings {
        rules: Rules {
            max_batch_bytes: found.max_message_bytes,
            max_expanded_bytes: MAX_EXPANDED_BYTES,
            timestamp_type: match found.timestamp_type {
                config::TimestampType::CreateTime => TimestampType::CreateTime,
                config::TimestampType::LogAppendTime => TimestampType::LogAppendTime,
            },
            before_max_ms: millis(found.timestamp_before_max),
            after_max_ms: millis(found.timestamp_after_max),
            keys_required: found.cleanup.compact,
        },
        min_insync_replicas: found.min_insync_replicas,
        segment_bytes: configured.then_some(found.segment_bytes),
        segment_age_ms: millis(found.segment_age).min(longest),
        retention_ms: found.retention.map(millis),
        retention_bytes: found.retention_bytes,
        delete: found.cleanup.delete,
        compaction,
    }
}

fn compaction(image: &Image, topic: &Topic) -> Compaction {
    let number = |name| {
        image
            .topic_config(topic, name)
            .map_or(0, |found| found.as_i64())
    };
    let ratio = image
        .topic_config(topic, "min.cleanable.dirty.ratio")
        .and_then(|found| found.value.trim().parse().ok());
    Compaction {
        delete_retention_ms: number("delete.retention.ms"),
        min_dirty_ratio: ratio.unwrap_or(0.5),
        min_lag_ms: number("min.compaction.lag.ms"),
        max_lag_ms: number("max.compaction.lag.ms"),
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
