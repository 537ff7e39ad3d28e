//! Server-side apply that writes nothing when nothing differs.

use std::fmt::Debug;

use aws_lc_rs::digest as sha;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::api::resource::Quantity};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{FIELD_MANAGER, names};
use crate::{Error, metrics::Metrics};

/// Annotation with the digest of what was applied last. It tells a field that was withdrawn from one that another manager added.
const APPLIED: &str = "palisade.dev/applied";

/// What became of an apply.
#[derive(Debug)]
pub enum Applied<K> {
    /// The API server had it already.
    Unchanged(K),
    /// It was written.
    Written(K),
}

impl<K> Applied<K> {
    /// The object as the API server has it now.
    pub fn into_inner(self) -> K {
        match self {
            Self::Unchanged(object) | Self::Written(object) => object,
        }
    }

    /// Whether something was written.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        matches!(self, Self::Written(_))
    }
}

/// Brings the object to the API server unless it holds it already: the digest of the last apply is the same, and every field applied has its value.
///
/// # Errors
/// What the API server answers, and [`Error::NotOurs`] when an object of that name belongs to something else.
pub async fn apply<K>(api: &Api<K>, desired: &K, metrics: &Metrics) -> Result<Applied<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let name = desired.name_any();
    let mut wanted = to_value(desired)?;
    let digest = digest(&wanted);
    if let Some(live) = api.get_opt(&name).await? {
        if !is_ours(&live, desired) {
            return Err(Error::NotOurs {
                kind: K::kind(&()).into_owned(),
                name,
            });
        }
        let held = live
            .annotations()
            .get(APPLIED)
            .is_some_and(|held| *held == digest);
        let difference = difference(&to_value(&live)?, &wanted);
        if held && difference.is_none() {
            return Ok(Applied::Unchanged(live));
        }
        let what = difference.unwrap_or_else(|| "what was applied last".to_owned());
        tracing::info!(kind = %K::kind(&()), namespace = live.namespace(), name, differs = what, "applying");
    }
    if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata
            .entry("annotations")
            .or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(APPLIED.to_owned(), Value::String(digest));
        }
    }
    metrics.api_write(&K::kind(&()));
    let written = api
        .patch(
            &name,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(&wanted),
        )
        .await?;
    Ok(Applied::Written(written))
}

/// Whether an object that stands may be made into the one desired: they have an owner in common, or it has no controller and carries the labels that the operator
/// gives to what it makes (restored from a backup, say). Anything else would be overwritten, and die with the owner.
#[must_use]
pub fn is_ours(live: &impl ResourceExt, desired: &impl ResourceExt) -> bool {
    let owners = live.owner_references();
    let common = desired
        .owner_references()
        .iter()
        .any(|owner| owners.iter().any(|held| held.uid == owner.uid));
    let labelled = [names::MANAGED_BY_LABEL, names::CLUSTER_LABEL]
        .iter()
        .all(|label| {
            let held = live.labels().get(*label);
            held.is_some() && held == desired.labels().get(*label)
        });
    common || labelled && !owners.iter().any(|owner| owner.controller == Some(true))
}

fn to_value(object: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(object).map_err(Error::Encode)
}

/// SHA-256 of a value, 16 hexadecimal characters of it; object keys are sorted, so it does not depend on their order.
#[must_use]
pub fn digest(value: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let hash = sha::digest(&sha::SHA256, &bytes);
    hash.as_ref()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Whether `live` holds every field of `wanted` with its value. Empty values in `wanted` ask for nothing; elements of lists that
/// have names are matched by them, because others may add elements of their own; quantities are compared by value (`1` is `1000m`).
#[must_use]
pub fn covers(live: &Value, wanted: &Value) -> bool {
    difference(live, wanted).is_none()
}

/// The path of the first field in which `live` does not hold what `wanted` asks for; never its value, which may be a secret.
fn difference(live: &Value, wanted: &Value) -> Option<String> {
    let below = |step: &str, path: String| {
        if path.is_empty() {
            step.to_owned()
        } else {
            format!("{step}.{path}")
        }
    };
    match (live, wanted) {
        (_, Value::Null) => None,
        (live, Value::Object(wanted)) => wanted.iter().find_map(|(key, value)| {
            let path = match live.get(key) {
                Some(live) => difference(live, value)?,
                None if is_empty(value) => return None,
                None => String::new(),
            };
            Some(below(key, path))
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            let named = |element: &Value| element.get("name").cloned();
            if !wanted.is_empty() && wanted.iter().all(|element| named(element).is_some()) {
                return wanted.iter().find_map(|element| {
                    let step = named(element)?.as_str().unwrap_or_default().to_owned();
                    match live
                        .iter()
                        .find(|candidate| named(candidate) == named(element))
                    {
                        Some(candidate) => Some(below(&step, difference(candidate, element)?)),
                        None => Some(step),
                    }
                });
            }
            if live.len() != wanted.len() {
                return Some("length".to_owned());
            }
            live.iter()
                .zip(wanted)
                .enumerate()
                .find_map(|(index, (live, wanted))| {
                    Some(below(&index.to_string(), difference(live, wanted)?))
                })
        }
        (Value::String(live), Value::String(wanted)) => {
            (live != wanted && !same_quantity(live, wanted)).then(String::new)
        }
        (live, wanted) => (live != wanted).then(String::new),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(elements) => elements.is_empty(),
        _ => false,
    }
}

fn same_quantity(one: &str, other: &str) -> bool {
    match (quantity(one), quantity(other)) {
        (Some(one), Some(other)) => (one - other).abs() < f64::EPSILON * one.abs(),
        _ => false,
    }
}

/// The value of a quantity, good for telling two of them apart; nothing when the text is none.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|digits| (digits, *factor)))
        .unwrap_or((text, 1.0));
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
        && digits.starts_with(|c: char| c.is_ascii_digit());
    plain
        .then(|| digits.parse::<f64>().ok().map(|number| number * factor))
        .flatten()
}

/// Whether a quantity that the API server holds is less than a number of bytes.
pub(crate) fn is_less_than(held: &Quantity, bytes: u64) -> bool {
    // Exact for every size a volume can have.
    #[allow(clippy::cast_precision_loss)]
    let wanted = bytes as f64;
    quantity(&held.0).is_some_and(|held| held < wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_adds_is_no_difference_and_what_it_changed_is() {
        let wanted = json!({"metadata": {"name": "a", "labels": {}}, "spec": {"replicas": 1, "ports": [{"name": "x", "port": 1}], "cpu": "1"}});
        for (live, expected) in [
            (
                json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"replicas": 1, "ports": [{"name": "x", "port": 1, "protocol": "TCP"}], "cpu": "1000m"}}),
                true,
            ),
            (
                json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "ports": [{"name": "y", "port": 2}, {"name": "x", "port": 1}], "cpu": "1"}}),
                true,
            ),
            (
                json!({"metadata": {"name": "a"}, "spec": {"replicas": 2, "ports": [{"name": "x", "port": 1}], "cpu": "1"}}),
                false,
            ),
            (
                json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "ports": [{"name": "x", "port": 3}], "cpu": "1"}}),
                false,
            ),
            (
                json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "cpu": "1"}}),
                false,
            ),
            (
                json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "ports": [{"name": "x", "port": 1}], "cpu": "2"}}),
                false,
            ),
        ] {
            assert_eq!(covers(&live, &wanted), expected, "{live}");
        }
    }

    #[test]
    fn what_belongs_to_something_else_is_told_from_what_the_operator_made() {
        let map = |owner: Option<&str>, cluster: Option<&str>| -> ConfigMap {
            let owners: Vec<Value> = owner
                .map(|uid| json!({ "apiVersion": "v1", "kind": "K", "name": "n", "uid": uid, "controller": true }))
                .into_iter()
                .collect();
            let labels = cluster.map(|name| {
                json!({ names::MANAGED_BY_LABEL: FIELD_MANAGER, names::CLUSTER_LABEL: name })
            });
            serde_json::from_value(
                json!({ "metadata": { "name": "m", "ownerReferences": owners, "labels": labels } }),
            )
            .unwrap()
        };
        let desired = map(Some("ours"), Some("events"));
        for (owner, cluster, expected) in [
            (Some("ours"), Some("events"), true),
            (Some("ours"), None, true),
            (None, Some("events"), true),
            (None, Some("other"), false),
            (None, None, false),
            (Some("theirs"), Some("events"), false),
        ] {
            let live = map(owner, cluster);
            assert_eq!(is_ours(&live, &desired), expected, "{owner:?} {cluster:?}");
        }
    }

    #[test]
    fn a_difference_is_named_by_its_path_and_not_by_its_value() {
        let live = json!({"data": {"password": "old"}, "ports": [{"name": "x", "port": 1}], "plain": [1, 2]});
        for (wanted, path) in [
            (json!({"data": {"password": "new"}}), Some("data.password")),
            (
                json!({"ports": [{"name": "x", "port": 2}]}),
                Some("ports.x.port"),
            ),
            (
                json!({"ports": [{"name": "y", "port": 2}]}),
                Some("ports.y"),
            ),
            (json!({"plain": [1, 3]}), Some("plain.1")),
            (json!({"plain": [1]}), Some("plain.length")),
            (json!({"automount": false}), Some("automount")),
            (json!({"plain": [1, 2], "labels": {}}), None),
        ] {
            assert_eq!(difference(&live, &wanted).as_deref(), path, "{wanted}");
        }
    }

    #[test]
    fn lists_without_names_must_be_equal_in_length_and_order() {
        assert!(covers(&json!(["a", "b"]), &json!(["a", "b"])));
        assert!(!covers(&json!(["b", "a"]), &json!(["a", "b"])));
        assert!(!covers(&json!(["a", "b"]), &json!(["a"])));
    }

    #[test]
    fn quantities_are_equal_by_value_and_words_are_no_quantities() {
        for (one, other, expected) in [
            ("1Gi", "1024Mi", true),
            ("1", "1000m", true),
            ("1Gi", "1G", false),
            ("m", "m", false),
            ("events", "events2", false),
        ] {
            assert_eq!(same_quantity(one, other), expected, "{one} {other}");
        }
        assert!(is_less_than(&Quantity("1Gi".to_owned()), 2 << 30));
        assert!(!is_less_than(&Quantity("2Gi".to_owned()), 2 << 30));
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_of_keys() {
        assert_eq!(
            digest(&json!({"a": 1, "b": 2})),
            digest(&json!({"b": 2, "a": 1}))
        );
        assert_ne!(digest(&json!({"a": 1})), digest(&json!({"a": 2})));
    }
}
