//! What differs between a topic's spec and the brokers.

use std::{collections::BTreeMap, fmt};

use palisade_crds::Topic;

use crate::kafka::topics::TopicState;

/// Whether a topic grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// It has the partitions it should.
    Enough,
    /// To this many.
    To(i32),
    /// Kafka cannot do what the spec asks.
    Impossible(String),
}

/// Compares partitions and replicas.
#[must_use]
pub(super) fn growth(object: &Topic, state: &TopicState) -> Growth {
    let (wanted, held) = (object.spec.partitions, state.partitions);
    if wanted < held {
        return Growth::Impossible(format!(
            "topic {} has {held} partitions and cannot shrink to {wanted}: write partitions: {held}, or move the data to another topic",
            object.topic_name()
        ));
    }
    if state.replication_factor != 0
        && i32::from(state.replication_factor) != object.spec.replication_factor
    {
        return Growth::Impossible(format!(
            "topic {} has {} replicas and this version cannot change that: write replicationFactor: {}",
            object.topic_name(),
            state.replication_factor,
            state.replication_factor
        ));
    }
    if wanted > held {
        Growth::To(wanted)
    } else {
        Growth::Enough
    }
}

/// A change of a topic's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ConfigChange {
    /// Keys to set.
    pub(super) set: BTreeMap<String, String>,
    /// Keys to return to their defaults.
    pub(super) removed: Vec<String>,
}

impl ConfigChange {
    /// Whether there is nothing to do.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

impl fmt::Display for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self
            .set
            .iter()
            .map(|(key, value)| format!("{key} set to {value}"));
        let removed = self.removed.iter().map(|key| format!("{key} reset"));
        f.write_str(&set.chain(removed).collect::<Vec<_>>().join(", "))
    }
}

/// Compares what is configured on the topic itself.
#[must_use]
pub(super) fn config_change(
    wanted: &BTreeMap<String, String>,
    held: &BTreeMap<String, String>,
) -> ConfigChange {
    ConfigChange {
        set: wanted
            .iter()
            .filter(|(key, value)| held.get(*key) != Some(*value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        removed: held
            .keys()
            .filter(|key| !wanted.contains_key(*key))
            .cloned()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn topic(partitions: i32) -> Topic {
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "Topic", "metadata": { "name": "orders", "namespace": "shop" },
            "spec": { "clusterRef": { "name": "events" }, "partitions": partitions }
        }))
        .unwrap()
    }

    fn state(partitions: i32, replication_factor: i16) -> TopicState {
        TopicState {
            id: Uuid::nil(),
            partitions,
            replication_factor,
            leaderless: 0,
        }
    }

    #[test]
    fn partitions_grow_and_never_shrink() {
        assert_eq!(growth(&topic(3), &state(3, 1)), Growth::Enough);
        assert_eq!(growth(&topic(6), &state(3, 1)), Growth::To(6));
        let Growth::Impossible(message) = growth(&topic(1), &state(3, 1)) else {
            unreachable!()
        };
        assert_eq!(
            message,
            "topic orders has 3 partitions and cannot shrink to 1: write partitions: 3, or move the data to another topic"
        );
        assert!(matches!(
            growth(&topic(3), &state(3, 3)),
            Growth::Impossible(_)
        ));
    }

    #[test]
    fn only_configuration_that_differs_is_changed() {
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let held = of(&[("retention.ms", "1"), ("cleanup.policy", "compact")]);
        assert!(config_change(&held, &held).is_empty());
        let change = config_change(
            &of(&[("retention.ms", "2"), ("cleanup.policy", "compact")]),
            &held,
        );
        assert_eq!(change.to_string(), "retention.ms set to 2");
        let change = config_change(&of(&[("retention.ms", "1")]), &held);
        assert_eq!(change.to_string(), "cleanup.policy reset");
    }
}
