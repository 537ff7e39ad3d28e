//! What differs between the limits of a spec and those of the brokers.

use std::fmt;

use palisade_crds::{Quota, QuotaLimits};

use crate::kafka::quotas::{EntityName, QuotaEntity, QuotaValues};

/// A change of an entity's limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Limits to set.
    pub set: QuotaValues,
    /// Keys to remove.
    pub removed: Vec<String>,
}

impl Change {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self
            .set
            .iter()
            .map(|(key, value)| format!("{key} to {value}"));
        let removed = self.removed.iter().map(|key| format!("{key} removed"));
        f.write_str(&set.chain(removed).collect::<Vec<_>>().join(", "))
    }
}

/// The limits under Kafka's names.
#[must_use]
pub fn values(limits: &QuotaLimits) -> QuotaValues {
    // Exact below 2^53 bytes a second.
    #[allow(clippy::cast_precision_loss)]
    let bytes = |size: Option<palisade_crds::Size>| size.map(|size| size.bytes() as f64);
    [
        ("producer_byte_rate", bytes(limits.producer_byte_rate)),
        ("consumer_byte_rate", bytes(limits.consumer_byte_rate)),
        (
            "request_percentage",
            limits.request_percentage.map(f64::from),
        ),
        (
            "controller_mutation_rate",
            limits.controller_mutation_rate.map(f64::from),
        ),
        (
            "connection_creation_rate",
            limits.connection_creation_rate.map(f64::from),
        ),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    .collect()
}

/// Whom a Quota limits; `user` is what its `userRef` resolves to. Nothing when it names nobody.
#[must_use]
pub fn entity(object: &Quota, user: Option<String>) -> Option<QuotaEntity> {
    let spec = &object.spec.entity;
    let name = |text: &String| {
        if text == "*" {
            EntityName::Default
        } else {
            EntityName::Named(text.clone())
        }
    };
    let user = match (&spec.user_ref, user) {
        (Some(_), Some(user)) => Some(EntityName::Named(user)),
        (Some(_), None) => return None,
        (None, _) if spec.default == Some(true) => Some(EntityName::Default),
        (None, _) => spec.user.as_ref().map(name),
    };
    let entity = QuotaEntity {
        user,
        client_id: spec.client_id.as_ref().map(name),
        ip: spec.ip.as_ref().map(name),
    };
    (entity != QuotaEntity::default()).then_some(entity)
}

/// What turns the limits held into the limits wanted. The entity is the resource's own, so limits it does not name are removed.
#[must_use]
pub fn plan(wanted: &QuotaValues, held: &QuotaValues) -> Change {
    Change {
        set: wanted
            .iter()
            .filter(|(key, value)| {
                held.get(*key)
                    .is_none_or(|held| (held - **value).abs() > f64::EPSILON)
            })
            .map(|(key, value)| (key.clone(), *value))
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
    use serde_json::{Value, json};

    use super::*;

    fn quota(entity: Value) -> Quota {
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "Quota", "metadata": { "name": "q", "namespace": "shop" },
            "spec": { "clusterRef": { "name": "events" }, "entity": entity, "limits": { "producerByteRate": "1Mi", "requestPercentage": 50 } }
        }))
        .unwrap()
    }

    #[test]
    fn limits_have_kafkas_names_and_units() {
        let values = values(&quota(json!({ "default": true })).spec.limits);
        assert_eq!(
            values,
            [
                ("producer_byte_rate".to_owned(), 1_048_576.0),
                ("request_percentage".to_owned(), 50.0)
            ]
            .into()
        );
    }

    #[test]
    fn entities_are_named_as_brokers_know_them() {
        for (spec, user, expected) in [
            (
                json!({ "userRef": "alice", "clientId": "client-1" }),
                Some("CN=alice"),
                Some("user \"CN=alice\", client-id \"client-1\""),
            ),
            (json!({ "userRef": "alice" }), None, None),
            (
                json!({ "user": "*", "clientId": "*" }),
                None,
                Some("any user, any client-id"),
            ),
            (json!({ "default": true }), None, Some("any user")),
            (json!({ "ip": "10.0.0.9" }), None, Some("ip \"10.0.0.9\"")),
            (json!({}), None, None),
        ] {
            let entity = entity(&quota(spec.clone()), user.map(ToOwned::to_owned))
                .map(|entity| entity.to_string());
            assert_eq!(entity.as_deref(), expected, "{spec}");
        }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let of = |pairs: &[(&str, f64)]| -> QuotaValues {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), *value))
                .collect()
        };
        let held = of(&[("producer_byte_rate", 1.0), ("consumer_byte_rate", 2.0)]);
        assert!(plan(&held, &held).is_empty());
        let change = plan(
            &of(&[("producer_byte_rate", 1.0), ("request_percentage", 5.0)]),
            &held,
        );
        assert_eq!(
            change.to_string(),
            "request_percentage to 5, consumer_byte_rate removed"
        );
    }
}
