//! The wrapped keys of the metadata: which key-encryption key they are under, and which are due to be replaced.

use std::collections::BTreeMap;

use palisade_log::TopicId;
use palisade_seal::{DekVersion, KekId, WrappedKey};

use crate::{Image, MetadataCommand};

/// The topic config that says which version a topic's key has at least.
pub(crate) const VERSION_CONFIG: &str = "palisade.key.version";

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyOf {
    /// The cluster's own.
    System,
    /// A topic's.
    Topic(TopicId),
}

impl KeyOf {
    /// What puts `key` in the place of this version of the key: the same key, wrapped anew.
    #[must_use]
    pub fn rewrapped(self, version: DekVersion, key: WrappedKey) -> MetadataCommand {
        match self {
            Self::System => MetadataCommand::SetSystemKey { version, key },
            Self::Topic(id) => MetadataCommand::SetTopicKey { id, version, key },
        }
    }
}

impl Image {
    /// Every version of every key.
    pub fn keys(&self) -> impl Iterator<Item = (KeyOf, DekVersion, &WrappedKey)> {
        let system = self
            .system_keys
            .iter()
            .map(|(version, key)| (KeyOf::System, *version, key));
        let topics = self.topics.iter().flat_map(|topic| {
            let of = KeyOf::Topic(topic.id);
            topic
                .keys
                .iter()
                .map(move |(version, key)| (of, *version, key))
        });
        system.chain(topics)
    }

    /// How many versions of keys are under which KEK.
    #[must_use]
    pub fn count_keks(&self) -> BTreeMap<KekId, u64> {
        let mut count = BTreeMap::<KekId, u64>::new();
        for (_, _, key) in self.keys() {
            match count.get_mut(&key.kek) {
                Some(number) => *number = number.saturating_add(1),
                None => {
                    count.insert(key.kek.clone(), 1);
                }
            }
        }
        count
    }

    /// Topics whose key is older than their configuration wants it, with the version that is wanted.
    pub fn keys_due(&self) -> impl Iterator<Item = (TopicId, DekVersion)> {
        self.topics.iter().filter_map(|topic| {
            // Most topics have nothing configured: this must cost nothing.
            topic.config.get(VERSION_CONFIG)?;
            let wanted = self.topic_config(topic, VERSION_CONFIG)?.as_i64();
            let wanted = DekVersion(u32::try_from(wanted).ok()?);
            let (newest, _) = topic.current_key()?;
            (newest < wanted).then_some((topic.id, wanted))
        })
    }
}
