//! The bindings of a cluster, indexed so that a decision looks only at the ones that could apply.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use super::{
    authorizer::Decision,
    filter::AclFilter,
    types::{AclBinding, Operation, PatternType, Permission, ResourceType, WILDCARD},
};

const EVERYONE: &str = "User:*";

/// A set of bindings. Serialised as the sorted list of them; the index is rebuilt when it is read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "BTreeSet<AclBinding>", into = "BTreeSet<AclBinding>")]
pub struct AclSet {
    bindings: BTreeSet<AclBinding>,
    index: HashMap<ResourceType, TypeIndex>,
}

#[derive(Clone, Debug, Default)]
struct TypeIndex {
    literal: HashMap<String, ByPrincipal>,
    prefixed: HashMap<String, ByPrincipal>,
    /// How many distinct prefixes there are of each length in bytes: the lengths worth looking up.
    prefix_lengths: BTreeMap<usize, usize>,
}

type ByPrincipal = HashMap<String, Vec<Entry>>;

#[derive(Clone, Copy, Debug)]
struct Entry {
    host: Host,
    operation: Operation,
    permission: Permission,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Any,
    Address(IpAddr),
    /// Not an address: applies to nobody. Bindings are checked before they get here, so only an old file has one.
    Nowhere,
}

impl Host {
    fn parse(text: &str) -> Self {
        if text == WILDCARD {
            return Self::Any;
        }
        text.parse::<IpAddr>().map_or(Self::Nowhere, |address| {
            Self::Address(address.to_canonical())
        })
    }

    fn covers(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Address(own) => own == address,
            Self::Nowhere => false,
        }
    }
}

impl AclSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a binding; `false` when it was there.
    pub fn insert(&mut self, binding: AclBinding) -> bool {
        if !self.bindings.insert(binding.clone()) {
            return false;
        }
        self.index
            .entry(binding.resource_type)
            .or_default()
            .insert(&binding);
        true
    }

    /// Removes what the filter selects, and says what that was, in order.
    pub fn remove(&mut self, filter: &AclFilter) -> Vec<AclBinding> {
        let removed: Vec<AclBinding> = self.matching(filter).cloned().collect();
        for binding in &removed {
            self.bindings.remove(binding);
        }
        let touched: BTreeSet<ResourceType> = removed
            .iter()
            .map(|binding| binding.resource_type)
            .collect();
        for resource_type in touched {
            let mut rebuilt = TypeIndex::default();
            for binding in &self.bindings {
                if binding.resource_type == resource_type {
                    rebuilt.insert(binding);
                }
            }
            self.index.insert(resource_type, rebuilt);
        }
        removed
    }

    /// What the filter selects, in order.
    pub fn matching<'a>(&'a self, filter: &'a AclFilter) -> impl Iterator<Item = &'a AclBinding> {
        self.bindings
            .iter()
            .filter(move |binding| filter.selects(binding))
    }

    /// Every binding, in order.
    pub fn iter(&self) -> impl Iterator<Item = &AclBinding> {
        self.bindings.iter()
    }

    /// How many bindings there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    /// What the bindings say of `principal` (as `User:<name>`) from `host` doing `operation` on one resource.
    #[must_use]
    pub fn authorize(
        &self,
        principal: &str,
        host: IpAddr,
        operation: Operation,
        resource_type: ResourceType,
        name: &str,
    ) -> Decision {
        let Some(index) = self.index.get(&resource_type) else {
            return Decision::NoMatch;
        };
        let host = host.to_canonical();
        let mut allowed = false;
        for group in index.applying(name) {
            for entry in of_principal(group, principal) {
                if !entry.host.covers(host) {
                    continue;
                }
                match entry.permission {
                    Permission::Deny if entry.operation.covers(operation) => {
                        return Decision::DeniedByAcl;
                    }
                    Permission::Allow if entry.operation.implies(operation) => allowed = true,
                    Permission::Deny | Permission::Allow => {}
                }
            }
        }
        if allowed {
            Decision::AllowedByAcl
        } else {
            Decision::NoMatch
        }
    }

    /// Whether there is a resource of this type that the principal may do `operation` on: some allowing pattern that no
    /// denying pattern covers whole. As in Kafka, nothing is implied here and resources need not exist.
    #[must_use]
    pub fn authorize_by_resource_type(
        &self,
        principal: &str,
        host: IpAddr,
        operation: Operation,
        resource_type: ResourceType,
    ) -> Decision {
        let Some(index) = self.index.get(&resource_type) else {
            return Decision::NoMatch;
        };
        let host = host.to_canonical();
        let says = |group: &ByPrincipal, permission: Permission| {
            of_principal(group, principal).any(|entry| {
                entry.permission == permission
                    && entry.host.covers(host)
                    && entry.operation.covers(operation)
            })
        };
        let names = |groups: &HashMap<String, ByPrincipal>, permission| -> HashSet<String> {
            groups
                .iter()
                .filter(|(_, group)| says(group, permission))
                .map(|(name, _)| name.clone())
                .collect()
        };
        let denied_literals = names(&index.literal, Permission::Deny);
        if denied_literals.contains(WILDCARD) {
            return Decision::DeniedByAcl;
        }
        let allowed_literals = names(&index.literal, Permission::Allow);
        if allowed_literals.contains(WILDCARD) {
            return Decision::AllowedByAcl;
        }
        let denied_prefixes = names(&index.prefixed, Permission::Deny);
        let dominated = |name: &str| {
            name.char_indices()
                .map(|(at, character)| at + character.len_utf8())
                .filter_map(|end| name.get(..end))
                .any(|prefix| denied_prefixes.contains(prefix))
        };
        let literal = allowed_literals
            .iter()
            .any(|name| !denied_literals.contains(name) && !dominated(name));
        let prefixed = || {
            names(&index.prefixed, Permission::Allow)
                .iter()
                .any(|name| !dominated(name))
        };
        if literal || prefixed() {
            Decision::AllowedByAcl
        } else {
            Decision::NoMatch
        }
    }
}

impl TypeIndex {
    fn insert(&mut self, binding: &AclBinding) {
        let groups = match binding.pattern {
            PatternType::Literal => &mut self.literal,
            PatternType::Prefixed => {
                if !self.prefixed.contains_key(&binding.resource_name) {
                    *self
                        .prefix_lengths
                        .entry(binding.resource_name.len())
                        .or_default() += 1;
                }
                &mut self.prefixed
            }
        };
        groups
            .entry(binding.resource_name.clone())
            .or_default()
            .entry(binding.principal.clone())
            .or_default()
            .push(Entry {
                host: Host::parse(&binding.host),
                operation: binding.operation,
                permission: binding.permission,
            });
    }

    /// The groups of bindings whose pattern matches `name`.
    fn applying<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ByPrincipal> {
        let wildcard = (name != WILDCARD)
            .then(|| self.literal.get(WILDCARD))
            .flatten();
        let prefixes = self
            .prefix_lengths
            .range(..=name.len())
            .filter_map(move |(length, _)| name.get(..*length))
            .filter_map(|prefix| self.prefixed.get(prefix));
        self.literal
            .get(name)
            .into_iter()
            .chain(wildcard)
            .chain(prefixes)
    }
}

fn of_principal<'a>(
    group: &'a ByPrincipal,
    principal: &'a str,
) -> impl Iterator<Item = &'a Entry> + use<'a> {
    let everyone = (principal != EVERYONE)
        .then(|| group.get(EVERYONE))
        .flatten();
    group.get(principal).into_iter().chain(everyone).flatten()
}

/// By the bindings: the index says the same again.
impl PartialEq for AclSet {
    fn eq(&self, other: &Self) -> bool {
        self.bindings == other.bindings
    }
}

impl Eq for AclSet {}

impl From<BTreeSet<AclBinding>> for AclSet {
    fn from(bindings: BTreeSet<AclBinding>) -> Self {
        let mut index: HashMap<ResourceType, TypeIndex> = HashMap::new();
        for binding in &bindings {
            index
                .entry(binding.resource_type)
                .or_default()
                .insert(binding);
        }
        Self { bindings, index }
    }
}

impl From<AclSet> for BTreeSet<AclBinding> {
    fn from(set: AclSet) -> Self {
        set.bindings
    }
}

impl FromIterator<AclBinding> for AclSet {
    fn from_iter<I: IntoIterator<Item = AclBinding>>(bindings: I) -> Self {
        Self::from(bindings.into_iter().collect::<BTreeSet<_>>())
    }
}
