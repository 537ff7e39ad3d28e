//! Topics and their partitions.

use std::{collections::BTreeMap, sync::Arc};

use palisade_log::TopicId;
use palisade_seal::{DekVersion, WrappedKey};

use super::{Outcome, limit};
use crate::{Image, MetadataError, MetadataResponse, Topic, topic_name::check_topic_name};

/// Partitions that one topic may have.
pub(crate) const MAX_TOPIC_PARTITIONS: u32 = 10_000;
/// Partitions that a cluster may have.
pub(crate) const MAX_PARTITIONS: usize = 200_000;

impl Image {
    pub(super) fn topic(&self, id: TopicId) -> Result<&Arc<Topic>, MetadataError> {
        self.topics.get(id).ok_or(MetadataError::UnknownTopic(id))
    }

    pub(super) fn create_topic(
        &mut self,
        name: String,
        id: TopicId,
        partitions: u32,
        replication_factor: u16,
        config: BTreeMap<String, String>,
        dek: WrappedKey,
    ) -> Outcome {
        check_topic_name(&name)?;
        if self.topics.by_name(&name).is_some() || self.topics.get(id).is_some() {
            return Err(MetadataError::TopicExists(name));
        }
        if let Some(existing) = self.topics.colliding(&name) {
            return Err(MetadataError::TopicCollision {
                existing: existing.to_owned(),
                name,
            });
        }
        if partitions == 0 {
            return Err(MetadataError::Partitions(
                "a topic has at least one partition".to_owned(),
            ));
        }
        self.room_for(0, partitions)?;
        self.check_replication_factor(replication_factor)?;
        let shards = self.next_shards(replication_factor, partitions)?;
        Arc::make_mut(&mut self.topics).insert(Arc::new(Topic {
            id,
            name,
            partitions: shards.clone(),
            replication_factor,
            config,
            keys: BTreeMap::from([(DekVersion(1), dek)]),
        }));
        Ok(MetadataResponse::Partitions { id, shards })
    }

    pub(super) fn delete_topic(&mut self, id: TopicId) -> Outcome {
        let name = self.topic(id)?.name.clone();
        Arc::make_mut(&mut self.topics).remove(id);
        Ok(MetadataResponse::TopicDeleted { name })
    }

    pub(super) fn create_partitions(&mut self, id: TopicId, total: u32) -> Outcome {
        let topic = self.topic(id)?;
        let current = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        if total <= current {
            // Kafka's words, which its tools' users know.
            let reason = if total == current {
                format!("topic already has {current} partition(s)")
            } else {
                format!(
                    "the topic {} currently has {current} partition(s); {total} would not be an increase",
                    topic.name
                )
            };
            return Err(MetadataError::Partitions(reason));
        }
        let added = total - current;
        self.room_for(current, added)?;
        let mut topic = (**self.topic(id)?).clone();
        topic
            .partitions
            .extend(self.next_shards(topic.replication_factor, added)?);
        let shards = topic.partitions.clone();
        Arc::make_mut(&mut self.topics).insert(Arc::new(topic));
        Ok(MetadataResponse::Partitions { id, shards })
    }

    /// Whether a topic of `current` partitions may have `added` more.
    fn room_for(&self, current: u32, added: u32) -> Result<(), MetadataError> {
        if current.saturating_add(added) > MAX_TOPIC_PARTITIONS {
            return Err(MetadataError::Partitions(format!(
                "a topic has at most {MAX_TOPIC_PARTITIONS} partitions"
            )));
        }
        let added = usize::try_from(added).unwrap_or(usize::MAX);
        if self.topics.partition_count().saturating_add(added) > MAX_PARTITIONS {
            return Err(limit("partitions", MAX_PARTITIONS));
        }
        Ok(())
    }
}
