//! The generated YAML: as it is on disk, and as a person who reads it with `kubectl explain` needs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod refusals;

use std::{collections::BTreeSet, fs, path::Path};

use palisade_crds::yaml::{GeneratedFile, chart_templates, definitions, manifests};
use refusals::{repository, visit};

fn assert_current(directory: &Path, generated: &[GeneratedFile]) {
    let expected: BTreeSet<String> = generated.iter().map(|file| file.name.clone()).collect();
    let found: BTreeSet<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        found,
        expected,
        "{} holds other files than the kinds: run `make crds`",
        directory.display()
    );
    for file in generated {
        let path = directory.join(&file.name);
        assert!(
            fs::read_to_string(&path).unwrap() == file.text,
            "{} is stale: run `make crds`",
            path.display()
        );
    }
}

#[test]
fn the_yaml_on_disk_is_what_the_types_say() {
    assert_current(&repository().join("crds/yaml"), &manifests().unwrap());
    assert_current(
        &repository().join("charts/palisade/templates/crds"),
        &chart_templates().unwrap(),
    );
}

#[test]
fn every_field_is_described() {
    for definition in definitions().unwrap() {
        visit(
            &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
            "",
            &mut |at, schema| {
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    assert!(
                        property["description"].is_string(),
                        "{} {at}.{name} has no description",
                        definition["spec"]["names"]["kind"]
                    );
                }
            },
        );
    }
}

#[test]
fn every_list_says_how_it_is_merged() {
    for definition in definitions().unwrap() {
        visit(
            &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
            "",
            &mut |at, schema| {
                // Types of Kubernetes itself keep what Kubernetes says of them.
                let ours = !at.contains("template.spec") && !at.contains("allowFrom[]");
                if ours && schema["type"] == "array" {
                    assert!(
                        schema["x-kubernetes-list-type"].is_string(),
                        "{} {at} has no list type",
                        definition["spec"]["names"]["kind"]
                    );
                }
            },
        );
    }
}

#[test]
fn every_kind_is_found_by_its_category_and_shows_whether_it_is_ready() {
    let mut short_names = BTreeSet::new();
    for definition in definitions().unwrap() {
        let names = &definition["spec"]["names"];
        assert_eq!(
            names["categories"],
            serde_json::json!(["palisade"]),
            "{}",
            names["kind"]
        );
        assert!(
            short_names.insert(names["shortNames"][0].as_str().unwrap().to_owned()),
            "{} shares its short name",
            names["kind"]
        );
        let version = &definition["spec"]["versions"][0];
        assert!(
            version["subresources"]["status"].is_object(),
            "{}",
            names["kind"]
        );
        let columns: Vec<&str> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|column| column["name"].as_str())
            .collect();
        assert!(
            columns.contains(&"Ready") && columns.contains(&"Age"),
            "{}: {columns:?}",
            names["kind"]
        );
    }
}
