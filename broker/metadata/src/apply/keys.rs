//! Versions of wrapped keys.

use std::{collections::BTreeMap, sync::Arc};

use palisade_log::TopicId;
use palisade_seal::{DekVersion, WrappedKey};

use super::Outcome;
use crate::{Image, MetadataError, MetadataResponse};

/// Versions of one key that may be alive at once: rotation waits for the rewrite of old data.
pub(super) const MAX_VERSIONS: usize = 100;

impl Image {
    pub(super) fn set_system_key(&mut self, version: DekVersion, key: WrappedKey) -> Outcome {
        let mut keys = (*self.system_keys).clone();
        set(&mut keys, version, key)?;
        self.system_keys = Arc::new(keys);
        Ok(MetadataResponse::Done)
    }

    pub(super) fn set_topic_key(
        &mut self,
        id: TopicId,
        version: DekVersion,
        key: WrappedKey,
    ) -> Outcome {
        let mut topic = (**self.topic(id)?).clone();
        set(&mut topic.keys, version, key)?;
        Arc::make_mut(&mut self.topics).insert(Arc::new(topic));
        Ok(MetadataResponse::Done)
    }

    pub(super) fn add_topic_key(
        &mut self,
        id: TopicId,
        version: DekVersion,
        key: WrappedKey,
    ) -> Outcome {
        let mut topic = (**self.topic(id)?).clone();
        let refused = |reason: &'static str| MetadataError::KeyVersion {
            found: version.0,
            reason: reason.into(),
        };
        let newest = topic.keys.last_key_value().map(|(newest, _)| *newest);
        if newest >= Some(version) {
            return Err(refused("a new version is higher than all others"));
        }
        if topic.keys.len() >= MAX_VERSIONS {
            return Err(refused("too many versions are still in use"));
        }
        topic.keys.insert(version, key);
        Arc::make_mut(&mut self.topics).insert(Arc::new(topic));
        Ok(MetadataResponse::Done)
    }

    pub(super) fn drop_topic_key(&mut self, id: TopicId, version: DekVersion) -> Outcome {
        let mut topic = (**self.topic(id)?).clone();
        let newest = topic.keys.last_key_value().map(|(newest, _)| *newest);
        let refused = |reason: &'static str| MetadataError::KeyVersion {
            found: version.0,
            reason: reason.into(),
        };
        if newest == Some(version) {
            return Err(refused("the newest version of a key cannot be dropped"));
        }
        if topic.keys.remove(&version).is_none() {
            return Err(refused("there is no such version"));
        }
        Arc::make_mut(&mut self.topics).insert(Arc::new(topic));
        Ok(MetadataResponse::Done)
    }
}

/// Replaces a version (wrapped anew under another KEK) or adds the next one.
fn set(
    keys: &mut BTreeMap<DekVersion, WrappedKey>,
    version: DekVersion,
    key: WrappedKey,
) -> Result<(), MetadataError> {
    let refused = |reason: &'static str| MetadataError::KeyVersion {
        found: version.0,
        reason: reason.into(),
    };
    let next = keys
        .last_key_value()
        .map_or(Some(1), |(newest, _)| newest.0.checked_add(1));
    if !keys.contains_key(&version) {
        if next != Some(version.0) {
            return Err(refused("a new version follows the newest one"));
        }
        if keys.len() >= MAX_VERSIONS {
            return Err(refused("too many versions are still in use"));
        }
    }
    keys.insert(version, key);
    Ok(())
}
