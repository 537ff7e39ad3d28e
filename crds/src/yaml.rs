//! The CustomResourceDefinitions as YAML, derived from the types.

use std::{fs, io, path::Path};

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::{Acl, CertRotation, Quota, SecureCluster, Topic, User};

/// YAML that could not be made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum YamlError {
    /// The derived definition is not JSON or YAML.
    #[error("could not serialise the definition of {kind}: {problem}")]
    Serialise {
        /// The kind.
        kind: String,
        /// What the serialiser said.
        problem: String,
    },
    /// A directory or file could not be written.
    #[error("could not write {path}: {source}")]
    Write {
        /// The directory or file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// One file of generated YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// File name, `<plural>.yaml`.
    pub name: String,
    /// The whole text.
    pub text: String,
}

const HEADER: &str = "# Generated from the types in crds/src by `make crds`. Do not edit.\n";

/// How a Kubernetes quantity is written; the API server checks no more of an int-or-string than a pattern says.
const QUANTITY_PATTERN: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// The definitions of all kinds, as JSON, in the order of their kinds.
///
/// # Errors
/// [`YamlError::Serialise`] when a derived definition is not JSON.
pub fn definitions() -> Result<Vec<Value>, YamlError> {
    [
        definition::<Acl>(),
        definition::<CertRotation>(),
        definition::<Quota>(),
        definition::<SecureCluster>(),
        definition::<Topic>(),
        definition::<User>(),
    ]
    .into_iter()
    .collect()
}

/// The definition of one kind, as it is installed.
pub(crate) fn definition<T: CustomResourceExt>() -> Result<Value, YamlError> {
    let crd = T::crd();
    let kind = crd.spec.names.kind.clone();
    let mut value = serde_json::to_value(crd).map_err(|problem| YamlError::Serialise {
        kind,
        problem: problem.to_string(),
    })?;
    tidy(&mut value);
    Ok(sorted(value))
}

/// The openAPI schema within a definition.
pub(crate) fn schema_of(definition: &Value) -> Option<&Value> {
    definition.pointer("/spec/versions/0/schema/openAPIV3Schema")
}

/// The definitions as files for `kubectl apply`.
///
/// # Errors
/// [`YamlError::Serialise`] when a definition cannot be serialised.
pub fn manifests() -> Result<Vec<GeneratedFile>, YamlError> {
    render(|yaml| format!("{HEADER}{yaml}"))
}

/// The definitions as templates of the Helm chart: installed and upgraded with the release unless `crds.install` is false, and
/// kept, with every object of theirs, when the release is uninstalled.
///
/// # Errors
/// [`YamlError::Serialise`] when a definition cannot be serialised.
pub fn chart_templates() -> Result<Vec<GeneratedFile>, YamlError> {
    render(|yaml| {
        let kept = yaml.replacen(
            "metadata:\n",
            "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n",
            1,
        );
        format!("{HEADER}{{{{- if .Values.crds.install }}}}\n{kept}{{{{- end }}}}\n")
    })
}

fn render(wrap: impl Fn(&str) -> String) -> Result<Vec<GeneratedFile>, YamlError> {
    definitions()?
        .iter()
        .map(|definition| {
            let plural = definition
                .pointer("/spec/names/plural")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let yaml =
                serde_yaml::to_string(definition).map_err(|problem| YamlError::Serialise {
                    kind: plural.to_owned(),
                    problem: problem.to_string(),
                })?;
            Ok(GeneratedFile {
                name: format!("{plural}.yaml"),
                text: wrap(&yaml),
            })
        })
        .collect()
}

/// Writes files into a directory, which is made when absent.
///
/// # Errors
/// [`YamlError::Write`] naming the directory or file.
pub fn write(directory: &Path, files: &[GeneratedFile]) -> Result<(), YamlError> {
    let fail = |path: &Path, source| YamlError::Write {
        path: path.display().to_string(),
        source,
    };
    fs::create_dir_all(directory).map_err(|source| fail(directory, source))?;
    for file in files {
        let path = directory.join(&file.name);
        fs::write(&path, &file.text).map_err(|source| fail(&path, source))?;
    }
    Ok(())
}

/// Takes out what the derive leaves behind and Kubernetes has no use for.
///
/// - `nullable`: an absent field is left out, never `null`; without it a `null` takes the default or is dropped.
/// - quantities: any string would pass as an int-or-string.
/// - `status` of the definition itself, which the API server owns.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("nullable") == Some(&Value::Bool(true)) {
                object.remove("nullable");
            }
            if object.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
                object.remove("type");
                object.insert(
                    "anyOf".to_owned(),
                    json!([{"type": "integer"}, {"type": "string"}]),
                );
                object.insert("pattern".to_owned(), QUANTITY_PATTERN.into());
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The same value with the keys of every object in order, whichever features of the JSON library a build has.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<(String, Value)> = object
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(Map::from_iter(entries))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
