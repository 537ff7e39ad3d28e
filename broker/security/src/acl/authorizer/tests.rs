#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::acl::{AclBinding, AclFilter, PatternType, Permission, WILDCARD};

const HOST: &str = "10.0.0.1";

fn host() -> IpAddr {
    HOST.parse().unwrap()
}

fn binding(
    principal: &str,
    permission: Permission,
    operation: Operation,
    pattern: PatternType,
    name: &str,
) -> AclBinding {
    AclBinding {
        resource_type: ResourceType::Topic,
        resource_name: name.to_owned(),
        pattern,
        principal: principal.to_owned(),
        host: WILDCARD.to_owned(),
        operation,
        permission,
    }
}

fn allow(principal: &str, operation: Operation, name: &str) -> AclBinding {
    binding(
        principal,
        Permission::Allow,
        operation,
        PatternType::Literal,
        name,
    )
}

fn deny(principal: &str, operation: Operation, name: &str) -> AclBinding {
    binding(
        principal,
        Permission::Deny,
        operation,
        PatternType::Literal,
        name,
    )
}

fn prefixed(mut binding: AclBinding) -> AclBinding {
    binding.pattern = PatternType::Prefixed;
    binding
}

fn set(bindings: impl IntoIterator<Item = AclBinding>) -> AclSet {
    bindings.into_iter().collect()
}

fn decide(acls: &AclSet, user: &str, operation: Operation, topic: &str) -> Decision {
    acls.authorize(user, host(), operation, ResourceType::Topic, topic)
}

#[test]
fn nothing_is_allowed_that_no_binding_allows() {
    let acls = set([allow("User:alice", Operation::Write, "orders")]);
    assert_eq!(
        decide(&acls, "User:alice", Operation::Write, "orders"),
        Decision::AllowedByAcl
    );
    assert_eq!(
        decide(&acls, "User:alice", Operation::Read, "orders"),
        Decision::NoMatch
    );
    assert_eq!(
        decide(&acls, "User:alice", Operation::Write, "orders2"),
        Decision::NoMatch
    );
    assert_eq!(
        decide(&acls, "User:bob", Operation::Write, "orders"),
        Decision::NoMatch
    );
    let group = acls.authorize(
        "User:alice",
        host(),
        Operation::Write,
        ResourceType::Group,
        "orders",
    );
    assert_eq!(group, Decision::NoMatch);
}

#[test]
fn a_denial_wins_over_every_permission_wherever_it_stands() {
    let wide = set([
        allow("User:*", Operation::All, "*"),
        prefixed(deny("User:alice", Operation::Write, "ord")),
    ]);
    assert_eq!(
        decide(&wide, "User:alice", Operation::Write, "orders"),
        Decision::DeniedByAcl
    );
    assert_eq!(
        decide(&wide, "User:alice", Operation::Read, "orders"),
        Decision::AllowedByAcl
    );
    assert_eq!(
        decide(&wide, "User:bob", Operation::Write, "orders"),
        Decision::AllowedByAcl
    );
    let everyone = set([
        allow("User:alice", Operation::Write, "orders"),
        deny("User:*", Operation::All, "*"),
    ]);
    assert_eq!(
        decide(&everyone, "User:alice", Operation::Write, "orders"),
        Decision::DeniedByAcl
    );
}

#[test]
fn permissions_imply_describing_and_denials_do_not() {
    let acls = set([allow("User:alice", Operation::Read, "t")]);
    assert_eq!(
        decide(&acls, "User:alice", Operation::Describe, "t"),
        Decision::AllowedByAcl
    );
    let acls = set([
        allow("User:alice", Operation::Describe, "t"),
        deny("User:alice", Operation::Read, "t"),
    ]);
    assert_eq!(
        decide(&acls, "User:alice", Operation::Describe, "t"),
        Decision::AllowedByAcl
    );
    let acls = set([allow("User:alice", Operation::AlterConfigs, "t")]);
    assert_eq!(
        decide(&acls, "User:alice", Operation::DescribeConfigs, "t"),
        Decision::AllowedByAcl
    );
    assert_eq!(
        decide(&acls, "User:alice", Operation::Describe, "t"),
        Decision::NoMatch
    );
}

#[test]
fn hosts_are_compared_as_addresses() {
    let mut from_host = allow("User:alice", Operation::Read, "t");
    from_host.host = HOST.to_owned();
    let acls = set([from_host]);
    let from = |address: &str| {
        acls.authorize(
            "User:alice",
            address.parse().unwrap(),
            Operation::Read,
            ResourceType::Topic,
            "t",
        )
    };
    assert_eq!(from(HOST), Decision::AllowedByAcl);
    assert_eq!(from("::ffff:10.0.0.1"), Decision::AllowedByAcl);
    assert_eq!(from("10.0.0.2"), Decision::NoMatch);
    assert_eq!(from("::1"), Decision::NoMatch);
}

#[test]
fn prefixes_match_at_every_length_and_on_character_boundaries() {
    let acls = set([
        prefixed(allow("User:alice", Operation::Read, "a")),
        prefixed(allow("User:bob", Operation::Read, "añ")),
    ]);
    assert_eq!(
        decide(&acls, "User:alice", Operation::Read, "añb"),
        Decision::AllowedByAcl
    );
    assert_eq!(
        decide(&acls, "User:bob", Operation::Read, "añb"),
        Decision::AllowedByAcl
    );
    assert_eq!(
        decide(&acls, "User:bob", Operation::Read, "a€"),
        Decision::NoMatch
    );
    assert_eq!(
        decide(&acls, "User:alice", Operation::Read, "b"),
        Decision::NoMatch
    );
}

#[test]
fn super_users_and_system_principals_need_no_binding_and_cannot_be_denied() {
    let acls = Arc::new(set([deny("User:*", Operation::All, "*")]));
    let admin = Principal::user("admin").unwrap();
    let authorizer = Authorizer::new(acls, Arc::new(HashSet::from([admin.clone()])));
    let ask = |principal: &Principal| {
        authorizer.authorize(
            principal,
            host(),
            Operation::Write,
            ResourceType::Topic,
            "t",
        )
    };
    assert_eq!(ask(&admin), Decision::SuperUser);
    assert_eq!(
        ask(&Principal::system("palisade-operator").unwrap()),
        Decision::System
    );
    assert_eq!(
        ask(&Principal::user("palisade-operator").unwrap()),
        Decision::DeniedByAcl
    );
    assert_eq!(ask(&Principal::anonymous()), Decision::DeniedByAcl);
    assert!(Decision::SuperUser.is_allowed() && Decision::System.is_allowed());
    assert!(!Decision::NoMatch.is_allowed() && !Decision::DeniedByAcl.is_allowed());
}

#[test]
fn authorized_operations_are_a_bit_field_of_kafkas_codes() {
    let acls = Arc::new(set([allow("User:alice", Operation::Read, "t")]));
    let authorizer = Authorizer::new(acls, Arc::default());
    let alice = Principal::user("alice").unwrap();
    let bits = authorizer.authorized_operations(&alice, host(), ResourceType::Topic, "t");
    assert_eq!(bits, (1 << 3) | (1 << 8));
}

#[test]
fn any_topic_will_do_unless_every_allowed_one_is_denied() {
    let may = |bindings: Vec<AclBinding>| {
        set(bindings)
            .authorize_by_resource_type("User:alice", host(), Operation::Write, ResourceType::Topic)
            .is_allowed()
    };
    let write = Operation::Write;
    assert!(!may(vec![]));
    assert!(may(vec![allow("User:alice", write, "t")]));
    assert!(may(vec![allow("User:*", Operation::All, "*")]));
    // A wildcard denial ends it, a wildcard permission survives every narrower denial.
    assert!(!may(vec![
        allow("User:alice", write, "t"),
        deny("User:alice", write, "*")
    ]));
    assert!(may(vec![
        allow("User:alice", write, "*"),
        prefixed(deny("User:alice", write, "t"))
    ]));
    assert!(!may(vec![
        allow("User:alice", write, "t"),
        deny("User:alice", Operation::All, "t")
    ]));
    assert!(!may(vec![
        allow("User:alice", write, "topic"),
        prefixed(deny("User:alice", write, "to"))
    ]));
    assert!(may(vec![
        prefixed(allow("User:alice", write, "t")),
        prefixed(deny("User:alice", write, "to"))
    ]));
    assert!(!may(vec![
        prefixed(allow("User:alice", write, "to")),
        prefixed(deny("User:alice", write, "t"))
    ]));
    // A literal denial does not cover a prefix of the same name.
    assert!(may(vec![
        prefixed(allow("User:alice", write, "t")),
        deny("User:alice", write, "t")
    ]));
    // Nothing is implied here.
    assert!(!may(vec![allow("User:alice", Operation::Read, "t")]));
    assert!(!may(vec![allow("User:bob", write, "t")]));
}

#[test]
fn removing_says_what_was_removed_and_leaves_the_rest_working() {
    let mut acls = set([
        allow("User:alice", Operation::Read, "a"),
        prefixed(allow("User:alice", Operation::Read, "ab")),
        allow("User:bob", Operation::Read, "a"),
    ]);
    assert!(!acls.insert(allow("User:bob", Operation::Read, "a")));
    let filter = AclFilter {
        principal: Some("User:alice".to_owned()),
        ..AclFilter::ANY
    };
    assert_eq!(acls.remove(&filter).len(), 2);
    assert_eq!(acls.len(), 1);
    assert_eq!(
        decide(&acls, "User:alice", Operation::Read, "abc"),
        Decision::NoMatch
    );
    assert_eq!(
        decide(&acls, "User:bob", Operation::Read, "a"),
        Decision::AllowedByAcl
    );
    assert!(acls.remove(&filter).is_empty());
}

/// The rules, written as plainly as can be: look at every binding.
fn model(
    bindings: &BTreeSet<AclBinding>,
    principal: &str,
    address: IpAddr,
    operation: Operation,
    resource_type: ResourceType,
    name: &str,
) -> Decision {
    let applies = |binding: &&AclBinding| {
        binding.resource_type == resource_type
            && (binding.principal == principal || binding.principal == "User:*")
            && (binding.host == "*" || binding.host == address.to_string())
            && match binding.pattern {
                PatternType::Literal => {
                    binding.resource_name == name || binding.resource_name == "*"
                }
                PatternType::Prefixed => name.starts_with(&binding.resource_name),
            }
    };
    let applying: Vec<&AclBinding> = bindings.iter().filter(applies).collect();
    let denies = |binding: &&&AclBinding| {
        binding.permission == Permission::Deny
            && [Operation::All, operation].contains(&binding.operation)
    };
    let implied: &[Operation] = match operation {
        Operation::Describe => &[
            Operation::Read,
            Operation::Write,
            Operation::Delete,
            Operation::Alter,
        ],
        Operation::DescribeConfigs => &[Operation::AlterConfigs],
        _ => &[],
    };
    let allows = |binding: &&&AclBinding| {
        binding.permission == Permission::Allow
            && ([Operation::All, operation].contains(&binding.operation)
                || implied.contains(&binding.operation))
    };
    if applying.iter().any(|binding| denies(&binding)) {
        Decision::DeniedByAcl
    } else if applying.iter().any(|binding| allows(&binding)) {
        Decision::AllowedByAcl
    } else {
        Decision::NoMatch
    }
}

fn any_binding() -> impl Strategy<Value = AclBinding> {
    (
        prop::sample::select(vec![ResourceType::Topic, ResourceType::Group]),
        prop::sample::select(vec!["*", "a", "ab", "abc", "b"]),
        prop::sample::select(vec![PatternType::Literal, PatternType::Prefixed]),
        prop::sample::select(vec!["User:*", "User:alice", "User:bob"]),
        prop::sample::select(vec!["*", "10.0.0.1", "10.0.0.2"]),
        prop::sample::select(Operation::ALL.to_vec()),
        prop::sample::select(vec![Permission::Allow, Permission::Deny]),
    )
        .prop_map(
            |(resource_type, name, pattern, principal, host, operation, permission)| AclBinding {
                resource_type,
                resource_name: name.to_owned(),
                pattern,
                principal: principal.to_owned(),
                host: host.to_owned(),
                operation,
                permission,
            },
        )
}

proptest! {
    #[test]
    fn the_index_decides_as_a_walk_over_all_bindings(
        bindings in prop::collection::btree_set(any_binding(), 0..20),
        removed in prop::collection::vec(any_binding(), 0..5),
        principal in prop::sample::select(vec!["User:alice", "User:bob", "User:carol", "User:*"]),
        address in prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        name in prop::sample::select(vec!["a", "ab", "abc", "abcd", "b", "c", "*"]),
    ) {
        let mut bindings = bindings;
        let mut acls: AclSet = bindings.iter().cloned().collect();
        for pattern in removed {
            let filter = AclFilter {
                resource_name: Some(pattern.resource_name),
                operation: Some(pattern.operation),
                ..AclFilter::ANY
            };
            acls.remove(&filter);
            bindings.retain(|binding| !filter.selects(binding));
        }
        let bytes = postcard::to_allocvec(&acls).unwrap();
        let restored: AclSet = postcard::from_bytes(&bytes).unwrap();
        prop_assert_eq!(&restored, &acls);
        let address: IpAddr = address.parse().unwrap();
        for operation in Operation::ALL {
            for resource_type in [ResourceType::Topic, ResourceType::Group, ResourceType::Cluster] {
                let expected = model(&bindings, principal, address, operation, resource_type, name);
                let decided = restored.authorize(principal, address, operation, resource_type, name);
                prop_assert_eq!(decided, expected);
            }
        }
    }

    #[test]
    fn whoever_may_write_a_topic_may_write_some_topic(
        bindings in prop::collection::btree_set(any_binding(), 0..12),
        name in prop::sample::select(vec!["a", "ab", "abc", "abcd", "b", "zzz"]),
    ) {
        let acls: AclSet = bindings.into_iter().collect();
        let one = acls.authorize("User:alice", host(), Operation::Write, ResourceType::Topic, name);
        let any = acls.authorize_by_resource_type(
            "User:alice", host(), Operation::Write, ResourceType::Topic,
        );
        if one.is_allowed() {
            prop_assert!(any.is_allowed());
        }
    }
}
