//! The table of refusals (`crds/tests/refusals.yaml`), shared by the tests that read it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

/// The whole table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// An accepted object of each kind.
    pub(crate) bases: BTreeMap<String, Value>,
    /// One object for each rule.
    pub(crate) refusals: Vec<Refusal>,
}

/// An object that one rule refuses.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refusal {
    /// Its kind.
    pub(crate) kind: String,
    /// Where the rule stands in the schema, such as `spec.listeners[].port`.
    pub(crate) at: String,
    /// Whether the rule is about a change: the object alone is accepted.
    #[serde(default)]
    change: bool,
    /// What to set in the base before, by JSON pointer.
    #[serde(default)]
    was: BTreeMap<String, Value>,
    /// What to set in it, by JSON pointer.
    set: BTreeMap<String, Value>,
    /// The rule's whole message.
    pub(crate) message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind, self.at, self.message)
    }
}

/// Where one rule stands: kind, place in the schema, message.
pub(crate) type Place = (String, String, String);

impl Table {
    /// Reads the table.
    pub(crate) fn load() -> Self {
        let path = repository().join("crds/tests/refusals.yaml");
        serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// The object that is refused.
    pub(crate) fn object(&self, refusal: &Refusal) -> Value {
        self.base_with(refusal, &refusal.set)
    }

    /// The object that it is a change of; `None` when it is refused by itself.
    pub(crate) fn former(&self, refusal: &Refusal) -> Option<Value> {
        refusal
            .change
            .then(|| self.base_with(refusal, &refusal.was))
    }

    /// The rules that have an entry.
    pub(crate) fn covered(&self) -> BTreeSet<Place> {
        self.refusals
            .iter()
            .map(|refusal| {
                (
                    refusal.kind.clone(),
                    refusal.at.clone(),
                    refusal.message.clone(),
                )
            })
            .collect()
    }

    fn base_with(&self, refusal: &Refusal, set: &BTreeMap<String, Value>) -> Value {
        let mut object = self.bases[&refusal.kind].clone();
        for (pointer, value) in set {
            *place(&mut object, pointer) = value.clone();
        }
        object
    }
}

/// The value at a JSON pointer, made when it is absent.
fn place<'a>(object: &'a mut Value, pointer: &str) -> &'a mut Value {
    pointer
        .split('/')
        .skip(1)
        .fold(object, |value, step| match value {
            Value::Array(items) => {
                let index: usize = step.parse().unwrap();
                assert!(index <= items.len(), "{pointer}: the list is too short");
                if index == items.len() {
                    items.push(Value::Null);
                }
                &mut items[index]
            }
            value => {
                if value.is_null() {
                    *value = Value::Object(serde_json::Map::new());
                }
                value
                    .as_object_mut()
                    .unwrap()
                    .entry(step)
                    .or_insert(Value::Null)
            }
        })
}

/// Every rule of a definition.
pub(crate) fn rules_of(definition: &Value) -> BTreeSet<Place> {
    let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
    let mut places = BTreeSet::new();
    visit(
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
        "",
        &mut |at, schema| {
            for rule in schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
            {
                places.insert((
                    kind.to_owned(),
                    at.to_owned(),
                    rule["message"]
                        .as_str()
                        .expect("every rule has a message")
                        .to_owned(),
                ));
            }
        },
    );
    places
}

/// Calls `see` with the place and the schema of every node.
pub(crate) fn visit(schema: &Value, at: &str, see: &mut impl FnMut(&str, &Value)) {
    see(at, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let at = if at.is_empty() {
            name.clone()
        } else {
            format!("{at}.{name}")
        };
        visit(property, &at, see);
    }
    for (inner, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[inner].is_object() {
            visit(&schema[inner], &format!("{at}{suffix}"), see);
        }
    }
}

/// The repository's directory.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Every document of every YAML file below a directory, kustomizations aside.
pub(crate) fn documents_below(directory: &Path) -> Vec<(PathBuf, Value)> {
    let mut documents = Vec::new();
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            documents.extend(documents_below(&path));
        } else if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            for document in serde_yaml::Deserializer::from_str(&fs::read_to_string(&path).unwrap())
            {
                let value = Value::deserialize(document)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                if value["kind"] != "Kustomization" {
                    documents.push((path.clone(), value));
                }
            }
        }
    }
    documents
}
