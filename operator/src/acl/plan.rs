//! What differs between the rules wanted for a principal and the bindings that brokers hold, and in which order it is changed.

use std::{collections::BTreeSet, fmt};

use palisade_crds::{AclOperation, AclPermission, AclResourceType, AclRule};

use crate::kafka::acls::{AclBinding, Operation, PatternType, Permission, ResourceType};

/// A change of a principal's bindings, in the order in which it is carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Added first.
    pub new_denies: Vec<AclBinding>,
    /// Removed second.
    pub withdrawn_allows: Vec<AclBinding>,
    /// Added third.
    pub new_allows: Vec<AclBinding>,
    /// Removed last.
    pub withdrawn_denies: Vec<AclBinding>,
}

impl Change {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.new_denies.is_empty()
            && self.withdrawn_allows.is_empty()
            && self.new_allows.is_empty()
            && self.withdrawn_denies.is_empty()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        let added = self
            .new_denies
            .iter()
            .chain(&self.new_allows)
            .map(|binding| format!("+ {binding}"));
        let removed = self
            .withdrawn_allows
            .iter()
            .chain(&self.withdrawn_denies)
            .map(|binding| format!("- {binding}"));
        let all: Vec<_> = added.chain(removed).collect();
        f.write_str(
            &all.iter()
                .take(SHOWN)
                .cloned()
                .collect::<Vec<_>>()
                .join("; "),
        )?;
        if all.len() > SHOWN {
            write!(f, " and {} more", all.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// The bindings of a principal's rules: one for each resource, operation and host.
#[must_use]
pub fn bindings(principal: &str, rules: &[AclRule]) -> BTreeSet<AclBinding> {
    let mut bindings = BTreeSet::new();
    for rule in rules {
        for operation in &rule.operations {
            for host in &rule.hosts {
                bindings.insert(AclBinding {
                    permission: match rule.permission {
                        AclPermission::Allow => Permission::Allow,
                        AclPermission::Deny => Permission::Deny,
                    },
                    principal: principal.to_owned(),
                    resource_type: resource_type(rule.resource.type_),
                    pattern: match rule.resource.pattern {
                        palisade_crds::PatternType::Literal => PatternType::Literal,
                        palisade_crds::PatternType::Prefixed => PatternType::Prefixed,
                    },
                    resource_name: rule.resource.resource_name().to_owned(),
                    operation: operation_of(*operation),
                    host: host.clone(),
                });
            }
        }
    }
    bindings
}

const fn resource_type(of: AclResourceType) -> ResourceType {
    match of {
        AclResourceType::Topic => ResourceType::Topic,
        AclResourceType::Group => ResourceType::Group,
        AclResourceType::Cluster => ResourceType::Cluster,
        AclResourceType::TransactionalId => ResourceType::TransactionalId,
        AclResourceType::DelegationToken => ResourceType::DelegationToken,
        AclResourceType::User => ResourceType::User,
    }
}

const fn operation_of(operation: AclOperation) -> Operation {
    match operation {
        AclOperation::All => Operation::All,
        AclOperation::Read => Operation::Read,
        AclOperation::Write => Operation::Write,
        AclOperation::Create => Operation::Create,
        AclOperation::Delete => Operation::Delete,
        AclOperation::Alter => Operation::Alter,
        AclOperation::Describe => Operation::Describe,
        AclOperation::ClusterAction => Operation::ClusterAction,
        AclOperation::DescribeConfigs => Operation::DescribeConfigs,
        AclOperation::AlterConfigs => Operation::AlterConfigs,
        AclOperation::IdempotentWrite => Operation::IdempotentWrite,
        AclOperation::CreateTokens => Operation::CreateTokens,
        AclOperation::DescribeTokens => Operation::DescribeTokens,
    }
}

/// What turns the bindings held into the bindings wanted. A revocation in force is the User's and is left to it; a part of one is a rule like any other, for a
/// User puts all of it into force at once.
#[must_use]
pub fn plan(wanted: &BTreeSet<AclBinding>, held: &BTreeSet<AclBinding>) -> Change {
    let mut change = Change::default();
    let is_left = |binding: &AclBinding| {
        is_revocation(binding)
            && revocation(&binding.principal)
                .iter()
                .all(|part| held.contains(part))
    };
    for binding in wanted.difference(held) {
        match binding.permission {
            Permission::Deny => change.new_denies.push(binding.clone()),
            Permission::Allow => change.new_allows.push(binding.clone()),
        }
    }
    for binding in held.difference(wanted).filter(|binding| !is_left(binding)) {
        match binding.permission {
            Permission::Deny => change.withdrawn_denies.push(binding.clone()),
            Permission::Allow => change.withdrawn_allows.push(binding.clone()),
        }
    }
    change
}

/// What stops a principal whatever else is allowed, its open sessions included: brokers authorise every request anew, and a Deny always wins.
#[must_use]
pub fn revocation(principal: &str) -> Vec<AclBinding> {
    [
        (ResourceType::Topic, "*"),
        (ResourceType::Group, "*"),
        (ResourceType::TransactionalId, "*"),
        (ResourceType::Cluster, "kafka-cluster"),
    ]
    .into_iter()
    .map(|(resource_type, name)| AclBinding {
        permission: Permission::Deny,
        principal: principal.to_owned(),
        resource_type,
        pattern: PatternType::Literal,
        resource_name: name.to_owned(),
        operation: Operation::All,
        host: "*".to_owned(),
    })
    .collect()
}

/// Whether a binding is one of those of [`revocation`].
#[must_use]
pub fn is_revocation(binding: &AclBinding) -> bool {
    binding.permission == Permission::Deny && revocation(&binding.principal).contains(binding)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn rule(permission: &str, name: &str, operations: &[&str]) -> AclRule {
        serde_json::from_value(json!({
            "resource": { "type": "Topic", "name": name }, "operations": operations, "permission": permission
        }))
        .unwrap()
    }

    fn set(rules: &[AclRule]) -> BTreeSet<AclBinding> {
        bindings("User:alice", rules)
    }

    #[test]
    fn a_rule_becomes_a_binding_for_each_operation_and_host() {
        let mut rule = rule("Allow", "orders", &["Read", "Describe"]);
        rule.hosts = vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
        assert_eq!(set(&[rule]).len(), 4);
        let cluster: AclRule = serde_json::from_value(
            json!({ "resource": { "type": "Cluster" }, "operations": ["Create"] }),
        )
        .unwrap();
        let binding = set(&[cluster]).into_iter().next().unwrap();
        assert_eq!(
            (binding.resource_name.as_str(), binding.host.as_str()),
            ("kafka-cluster", "*")
        );
    }

    #[test]
    fn what_stands_is_not_changed() {
        let rules = set(&[rule("Allow", "orders", &["Read"])]);
        assert!(plan(&rules, &rules).is_empty());
    }

    /// Whether a set of bindings lets alice do something to a topic.
    fn allows(held: &BTreeSet<AclBinding>, topic: &str, operation: Operation) -> bool {
        let matches = |permission| {
            held.iter().any(|binding| {
                binding.permission == permission
                    && binding.resource_name == topic
                    && binding.operation == operation
            })
        };
        !matches(Permission::Deny) && matches(Permission::Allow)
    }

    #[test]
    fn at_no_moment_is_something_allowed_that_neither_set_allows() {
        let sets = [
            vec![
                rule("Allow", "a", &["Read", "Write"]),
                rule("Deny", "b", &["Read"]),
            ],
            vec![
                rule("Allow", "b", &["Read"]),
                rule("Deny", "a", &["Write"]),
                rule("Allow", "a", &["Write"]),
            ],
            vec![rule("Deny", "a", &["Read"]), rule("Allow", "a", &["Read"])],
            vec![],
            vec![rule("Allow", "b", &["Read", "Write"])],
        ];
        for old in &sets {
            for new in &sets {
                let (old, new) = (set(old), set(new));
                let change = plan(&new, &old);
                let mut held = old.clone();
                let moments = [
                    (&change.new_denies, true),
                    (&change.withdrawn_allows, false),
                    (&change.new_allows, true),
                    (&change.withdrawn_denies, false),
                ];
                for (batch, add) in moments {
                    for binding in batch {
                        if add {
                            held.insert(binding.clone())
                        } else {
                            held.remove(binding)
                        };
                        for topic in ["a", "b"] {
                            for operation in [Operation::Read, Operation::Write] {
                                let allowed = allows(&held, topic, operation);
                                assert!(
                                    !allowed
                                        || allows(&old, topic, operation)
                                        || allows(&new, topic, operation),
                                    "{change}"
                                );
                            }
                        }
                    }
                }
                assert_eq!(held, new);
            }
        }
    }

    #[test]
    fn a_revocation_in_force_is_left_to_the_user() {
        let held: BTreeSet<_> = revocation("User:alice").into_iter().collect();
        assert!(plan(&BTreeSet::new(), &held).is_empty());
        assert!(held.iter().all(is_revocation));
        assert!(
            !set(&[rule("Deny", "*", &["Read"])])
                .iter()
                .any(is_revocation)
        );
    }

    #[test]
    fn a_rule_that_denies_everything_is_withdrawn_with_its_object() {
        let held = set(&[rule("Deny", "*", &["All"])]);
        assert!(held.iter().all(is_revocation));
        let change = plan(&BTreeSet::new(), &held);
        assert_eq!(
            change.withdrawn_denies,
            held.into_iter().collect::<Vec<_>>()
        );
    }
}
