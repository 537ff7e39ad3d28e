//! The decision on a request: super users and system principals first, then the bindings.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use super::{
    set::AclSet,
    types::{Operation, ResourceType},
};
use crate::principal::Principal;

/// What was decided, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// A broker or the operator.
    System,
    /// A super user.
    SuperUser,
    /// A binding allows it, and none denies it.
    AllowedByAcl,
    /// A binding denies it.
    DeniedByAcl,
    /// No binding says anything of it, so it is refused.
    NoMatch,
}

impl Decision {
    /// Whether the request may go on.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::System | Self::SuperUser | Self::AllowedByAcl)
    }

    /// The reason in a few words, for the audit trail.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::System => "system principal",
            Self::SuperUser => "super user",
            Self::AllowedByAcl => "allowed by an ACL",
            Self::DeniedByAcl => "denied by an ACL",
            Self::NoMatch => "no ACL matches",
        }
    }
}

/// The bindings and the super users of a moment. Cheap to clone: a connection takes one per request.
#[derive(Clone, Debug, Default)]
pub struct Authorizer {
    acls: Arc<AclSet>,
    super_users: Arc<HashSet<Principal>>,
}

impl Authorizer {
    /// An authorizer over these bindings and super users.
    #[must_use]
    pub const fn new(acls: Arc<AclSet>, super_users: Arc<HashSet<Principal>>) -> Self {
        Self { acls, super_users }
    }

    /// Whether `principal`, connected from `host`, may do `operation` on the resource.
    #[must_use]
    pub fn authorize(
        &self,
        principal: &Principal,
        host: IpAddr,
        operation: Operation,
        resource_type: ResourceType,
        name: &str,
    ) -> Decision {
        self.above_acls(principal).unwrap_or_else(|| {
            self.acls
                .authorize(&principal.to_string(), host, operation, resource_type, name)
        })
    }

    /// Whether there is any resource of this type that `principal` may do `operation` on, existing or not.
    #[must_use]
    pub fn authorize_by_resource_type(
        &self,
        principal: &Principal,
        host: IpAddr,
        operation: Operation,
        resource_type: ResourceType,
    ) -> Decision {
        self.above_acls(principal).unwrap_or_else(|| {
            self.acls.authorize_by_resource_type(
                &principal.to_string(),
                host,
                operation,
                resource_type,
            )
        })
    }

    /// The `authorized_operations` field of an answer: bit `code` for each operation that is allowed (KIP-430).
    #[must_use]
    pub fn authorized_operations(
        &self,
        principal: &Principal,
        host: IpAddr,
        resource_type: ResourceType,
        name: &str,
    ) -> i32 {
        resource_type
            .operations()
            .iter()
            .filter(|operation| {
                self.authorize(principal, host, **operation, resource_type, name)
                    .is_allowed()
            })
            .fold(0, |bits, operation| bits | (1 << operation.code()))
    }

    fn above_acls(&self, principal: &Principal) -> Option<Decision> {
        if principal.is_system() {
            Some(Decision::System)
        } else if self.super_users.contains(principal) {
            Some(Decision::SuperUser)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
