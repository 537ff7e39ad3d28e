//! The admission rules as the operator runs them again: the same table that a real API server is asked in `e2e/tests/crds.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod refusals;

use palisade_crds::{
    Acl, CertRotation, Quota, SecureCluster, Topic, User,
    guard::{Violations, check, check_json},
    yaml::definitions,
};
use refusals::{Table, documents_below, repository, rules_of};
use serde_json::Value;

fn check_kind(kind: &str, object: &Value, former: Option<&Value>) -> Result<(), Violations> {
    match kind {
        "Acl" => check_json::<Acl>(object, former),
        "CertRotation" => check_json::<CertRotation>(object, former),
        "Quota" => check_json::<Quota>(object, former),
        "SecureCluster" => check_json::<SecureCluster>(object, former),
        "Topic" => check_json::<Topic>(object, former),
        "User" => check_json::<User>(object, former),
        other => panic!("{other} is not a kind of ours"),
    }
}

/// Reads an object into its Rust type and checks it as a reconciler does.
fn check_typed(kind: &str, object: &Value) -> Result<(), Violations> {
    macro_rules! typed {
        ($($name:ident)*) => {
            match kind {
                $(stringify!($name) => check(&serde_json::from_value::<$name>(object.clone()).unwrap_or_else(|error| panic!("{kind}: {error}"))),)*
                other => panic!("{other} is not a kind of ours"),
            }
        };
    }
    typed!(Acl CertRotation Quota SecureCluster Topic User)
}

#[test]
fn every_rule_has_an_object_that_it_refuses() {
    let rules = definitions().unwrap().iter().flat_map(rules_of).collect();
    let covered = Table::load().covered();
    let uncovered: Vec<_> = covered.symmetric_difference(&rules).collect();
    assert!(
        uncovered.is_empty(),
        "rules without an entry in crds/tests/refusals.yaml, or entries without a rule: {uncovered:#?}"
    );
}

#[test]
fn the_bases_are_accepted() {
    for (kind, base) in Table::load().bases {
        assert_eq!(check_typed(&kind, &base), Ok(()), "{kind}");
    }
}

#[test]
fn every_object_of_the_table_is_refused_with_its_message() {
    let table = Table::load();
    for refusal in &table.refusals {
        let object = table.object(refusal);
        let former = table.former(refusal);
        if former.is_some() {
            assert_eq!(
                check_kind(&refusal.kind, &object, None),
                Ok(()),
                "{refusal}: refused although nothing changed"
            );
        }
        let violations =
            check_kind(&refusal.kind, &object, former.as_ref()).expect_err(&refusal.to_string());
        assert!(
            violations
                .as_slice()
                .iter()
                .any(|violation| violation.ends_with(&refusal.message)),
            "{refusal}: refused for another reason: {violations}"
        );
    }
}

#[test]
fn the_examples_are_accepted() {
    let mut seen = 0;
    for (path, object) in documents_below(&repository().join("examples")) {
        if object["apiVersion"] == "palisade.dev/v1alpha1" {
            assert_eq!(
                check_typed(object["kind"].as_str().unwrap(), &object),
                Ok(()),
                "{}",
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen >= 6, "the examples hold {seen} objects of ours");
}

/// Finds where an element of a list leaves out what the schema has a default for.
fn left_out(schema: &Value, value: &Value, in_list: bool, at: &str, found: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        match value.get(name) {
            Some(value) => left_out(property, value, in_list, &at, found),
            None if in_list && !property["default"].is_null() => found.push(at),
            None => {}
        }
    }
    for element in value.as_array().into_iter().flatten() {
        left_out(&schema["items"], element, true, at, found);
    }
}

/// Tools that keep a cluster like its repository (Argo CD) compare lists as a whole: what the server fills into an element would be a difference for ever.
#[test]
fn the_examples_write_out_the_defaults_within_lists() {
    let definitions = definitions().unwrap();
    let mut found = Vec::new();
    for (_, object) in documents_below(&repository().join("examples")) {
        for definition in &definitions {
            if definition["spec"]["names"]["kind"] == object["kind"]
                && object["apiVersion"] == "palisade.dev/v1alpha1"
            {
                let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
                let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
                left_out(schema, &object, false, &name, &mut found);
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
