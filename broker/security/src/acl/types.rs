//! The parts of a binding, with Kafka's numeric codes.

use std::{borrow::Cow, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::name::{NameError, check_user_name};

/// The name that stands for every name, in a resource, a host and a principal (`User:*`).
pub const WILDCARD: &str = "*";
/// The only name that a resource of type [`ResourceType::Cluster`] has.
pub const CLUSTER_NAME: &str = "kafka-cluster";
/// Longest resource name in a binding; topic names have 249 at most, groups and transactional ids are free text.
const MAX_RESOURCE_NAME_BYTES: usize = 4096;

/// What is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ResourceType {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// The cluster itself.
    Cluster,
    /// A producer's transactional id.
    TransactionalId,
    /// A delegation token.
    DelegationToken,
    /// A user.
    User,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 6] = [
        Self::Topic,
        Self::Group,
        Self::Cluster,
        Self::TransactionalId,
        Self::DelegationToken,
        Self::User,
    ];

    /// Kafka's code.
    #[must_use]
    pub const fn code(self) -> i8 {
        match self {
            Self::Topic => 2,
            Self::Group => 3,
            Self::Cluster => 4,
            Self::TransactionalId => 5,
            Self::DelegationToken => 6,
            Self::User => 7,
        }
    }

    /// The type with this code; `None` for unknown codes and for `ANY` (1), which only filters have.
    #[must_use]
    pub fn from_code(code: i8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// The operations that make sense on this type: what `authorized_operations` of an answer may hold.
    #[must_use]
    pub const fn operations(self) -> &'static [Operation] {
        use Operation as O;
        match self {
            Self::Topic => &[
                O::Read,
                O::Write,
                O::Create,
                O::Delete,
                O::Alter,
                O::Describe,
                O::DescribeConfigs,
                O::AlterConfigs,
            ],
            Self::Group => &[
                O::Read,
                O::Delete,
                O::Describe,
                O::DescribeConfigs,
                O::AlterConfigs,
            ],
            Self::Cluster => &[
                O::Create,
                O::Alter,
                O::Describe,
                O::ClusterAction,
                O::DescribeConfigs,
                O::AlterConfigs,
                O::IdempotentWrite,
            ],
            Self::TransactionalId => &[O::Write, O::Describe, O::TwoPhaseCommit],
            Self::DelegationToken => &[O::Describe],
            Self::User => &[O::CreateTokens, O::DescribeTokens],
        }
    }
}

/// How the name of a binding is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PatternType {
    /// The name itself, or `*` for every name.
    Literal,
    /// Every name that starts so.
    Prefixed,
}

impl PatternType {
    /// Kafka's code.
    #[must_use]
    pub const fn code(self) -> i8 {
        match self {
            Self::Literal => 3,
            Self::Prefixed => 4,
        }
    }

    /// The type with this code; `None` for unknown codes and for `ANY` (1) and `MATCH` (2), which only filters have.
    #[must_use]
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            3 => Some(Self::Literal),
            4 => Some(Self::Prefixed),
            _ => None,
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// Every operation.
    All,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Create.
    Create,
    /// Delete.
    Delete,
    /// Alter.
    Alter,
    /// Describe.
    Describe,
    /// What brokers do among themselves.
    ClusterAction,
    /// Read configurations.
    DescribeConfigs,
    /// Change configurations.
    AlterConfigs,
    /// Write idempotently (cluster; replaced by `Write` on a topic since Kafka 2.8).
    IdempotentWrite,
    /// Make delegation tokens for a user.
    CreateTokens,
    /// See the delegation tokens of a user.
    DescribeTokens,
    /// Two-phase commit (KIP-939).
    TwoPhaseCommit,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 14] = [
        Self::All,
        Self::Read,
        Self::Write,
        Self::Create,
        Self::Delete,
        Self::Alter,
        Self::Describe,
        Self::ClusterAction,
        Self::DescribeConfigs,
        Self::AlterConfigs,
        Self::IdempotentWrite,
        Self::CreateTokens,
        Self::DescribeTokens,
        Self::TwoPhaseCommit,
    ];

    /// Kafka's code; also the bit of `authorized_operations`.
    #[must_use]
    pub const fn code(self) -> i8 {
        match self {
            Self::All => 2,
            Self::Read => 3,
            Self::Write => 4,
            Self::Create => 5,
            Self::Delete => 6,
            Self::Alter => 7,
            Self::Describe => 8,
            Self::ClusterAction => 9,
            Self::DescribeConfigs => 10,
            Self::AlterConfigs => 11,
            Self::IdempotentWrite => 12,
            Self::CreateTokens => 13,
            Self::DescribeTokens => 14,
            Self::TwoPhaseCommit => 15,
        }
    }

    /// The operation with this code; `None` for unknown codes and for `ANY` (1), which only filters have.
    #[must_use]
    pub fn from_code(code: i8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// Whether a binding that allows `self` allows `wanted` too.
    #[must_use]
    pub const fn implies(self, wanted: Self) -> bool {
        match wanted {
            Self::Describe => matches!(
                self,
                Self::All | Self::Describe | Self::Read | Self::Write | Self::Delete | Self::Alter
            ),
            Self::DescribeConfigs => {
                matches!(self, Self::All | Self::DescribeConfigs | Self::AlterConfigs)
            }
            _ => matches!(self, Self::All) || self.code() == wanted.code(),
        }
    }

    /// Whether a binding that denies `self` denies `wanted`: nothing is implied here.
    #[must_use]
    pub const fn covers(self, wanted: Self) -> bool {
        matches!(self, Self::All) || self.code() == wanted.code()
    }
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Permission {
    /// Wins over every `Allow`.
    Deny,
    /// Permits.
    Allow,
}

impl Permission {
    /// Kafka's code.
    #[must_use]
    pub const fn code(self) -> i8 {
        match self {
            Self::Deny => 2,
            Self::Allow => 3,
        }
    }

    /// The permission with this code; `None` for unknown codes and for `ANY` (1), which only filters have.
    #[must_use]
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            2 => Some(Self::Deny),
            3 => Some(Self::Allow),
            _ => None,
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AclBinding {
    /// What is protected.
    pub resource_type: ResourceType,
    /// Its name, a prefix, or `*`.
    pub resource_name: String,
    /// How the name is compared.
    pub pattern: PatternType,
    /// Who, as `User:<name>`, or `User:*` for everyone.
    pub principal: String,
    /// From where: an IP address as text, or `*`.
    pub host: String,
    /// What is done.
    pub operation: Operation,
    /// Allow or deny.
    pub permission: Permission,
}

/// Why a binding is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BindingError {
    /// A code that is unknown, or stands for several things at once.
    #[error(
        "{what} {code} cannot be used in an ACL: it is unknown, or matches several and belongs in a filter"
    )]
    Code {
        /// Which code.
        what: Cow<'static, str>,
        /// Its value.
        code: i8,
    },
    /// No resource name.
    #[error("the resource name is empty")]
    EmptyName,
    /// A resource name that is too long or has control characters.
    #[error(
        "the resource name is longer than {MAX_RESOURCE_NAME_BYTES} bytes or contains control characters"
    )]
    ResourceName,
    /// A cluster with another name.
    #[error("the only resource of type Cluster is `{CLUSTER_NAME}`")]
    ClusterName,
    /// Not `User:<name>`.
    #[error("the principal of an ACL is written `User:<name>`, or `User:*` for everyone")]
    Principal,
    /// The principal's name is not allowed.
    #[error("the principal of an ACL is not usable: {0}")]
    PrincipalName(#[from] NameError),
    /// Neither `*` nor an address.
    #[error("the host of an ACL is `*` or an IP address; names and networks are not resolved")]
    Host,
}

impl AclBinding {
    /// A binding from the codes of a `CreateAcls` request, checked.
    ///
    /// # Errors
    /// [`BindingError`] that says what cannot be in a binding.
    pub fn from_codes(
        resource_type: i8,
        resource_name: String,
        pattern: i8,
        principal: String,
        host: String,
        operation: i8,
        permission: i8,
    ) -> Result<Self, BindingError> {
        let code = |what: &'static str, code| BindingError::Code {
            what: what.into(),
            code,
        };
        let binding = Self {
            resource_type: ResourceType::from_code(resource_type)
                .ok_or_else(|| code("resource type", resource_type))?,
            resource_name,
            pattern: PatternType::from_code(pattern)
                .ok_or_else(|| code("pattern type", pattern))?,
            principal,
            host,
            operation: Operation::from_code(operation)
                .ok_or_else(|| code("operation", operation))?,
            permission: Permission::from_code(permission)
                .ok_or_else(|| code("permission", permission))?,
        };
        binding.check()?;
        Ok(binding)
    }

    /// Checks names, principal and host.
    ///
    /// # Errors
    /// [`BindingError`] with the first thing that is wrong.
    pub fn check(&self) -> Result<(), BindingError> {
        if self.resource_name.is_empty() {
            return Err(BindingError::EmptyName);
        }
        if self.resource_name.len() > MAX_RESOURCE_NAME_BYTES
            || self.resource_name.chars().any(char::is_control)
        {
            return Err(BindingError::ResourceName);
        }
        if self.resource_type == ResourceType::Cluster && self.resource_name != CLUSTER_NAME {
            return Err(BindingError::ClusterName);
        }
        let name = self
            .principal
            .strip_prefix("User:")
            .ok_or(BindingError::Principal)?;
        check_user_name(name)?;
        if self.host != WILDCARD && self.host.parse::<IpAddr>().is_err() {
            return Err(BindingError::Host);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_code_converts_both_ways_and_any_is_never_accepted() {
        for code in i8::MIN..=i8::MAX {
            assert_eq!(
                ResourceType::from_code(code).map(ResourceType::code),
                (2..=7).contains(&code).then_some(code)
            );
            assert_eq!(
                Operation::from_code(code).map(Operation::code),
                (2..=15).contains(&code).then_some(code)
            );
            assert_eq!(
                PatternType::from_code(code).map(PatternType::code),
                (3..=4).contains(&code).then_some(code)
            );
            assert_eq!(
                Permission::from_code(code).map(Permission::code),
                (2..=3).contains(&code).then_some(code)
            );
        }
    }

    #[test]
    fn only_allowing_bindings_imply_describing() {
        for operation in Operation::ALL {
            let implied = matches!(
                operation,
                Operation::Read
                    | Operation::Write
                    | Operation::Delete
                    | Operation::Alter
                    | Operation::Describe
                    | Operation::All
            );
            assert_eq!(operation.implies(Operation::Describe), implied);
            assert_eq!(
                operation.covers(Operation::Describe),
                matches!(operation, Operation::Describe | Operation::All)
            );
        }
        assert!(Operation::AlterConfigs.implies(Operation::DescribeConfigs));
        assert!(!Operation::Alter.implies(Operation::DescribeConfigs));
        assert!(!Operation::Read.implies(Operation::Write));
    }

    fn codes(name: &str, principal: &str, host: &str) -> Result<AclBinding, BindingError> {
        AclBinding::from_codes(2, name.into(), 3, principal.into(), host.into(), 3, 3)
    }

    #[test]
    fn a_binding_is_checked_part_by_part() {
        assert!(codes("t", "User:alice", "*").is_ok());
        assert!(codes("*", "User:*", "10.0.0.1").is_ok());
        assert!(codes("t", "User:O=\"a\",CN=b", "::1").is_ok());
        assert_eq!(codes("", "User:a", "*"), Err(BindingError::EmptyName));
        assert_eq!(
            codes("a\nb", "User:a", "*"),
            Err(BindingError::ResourceName)
        );
        assert_eq!(codes("t", "alice", "*"), Err(BindingError::Principal));
        assert_eq!(codes("t", "System:x", "*"), Err(BindingError::Principal));
        assert_eq!(
            codes("t", "User:a", "host.example"),
            Err(BindingError::Host)
        );
        assert_eq!(codes("t", "User:a", ""), Err(BindingError::Host));
        assert!(matches!(
            codes("t", "User:a\nb", "*"),
            Err(BindingError::PrincipalName(_))
        ));
        assert_eq!(
            AclBinding::from_codes(4, "other".into(), 3, "User:a".into(), "*".into(), 3, 3),
            Err(BindingError::ClusterName)
        );
        assert_eq!(
            AclBinding::from_codes(1, "t".into(), 3, "User:a".into(), "*".into(), 3, 3),
            Err(BindingError::Code {
                what: "resource type".into(),
                code: 1
            })
        );
        assert_eq!(
            AclBinding::from_codes(2, "t".into(), 2, "User:a".into(), "*".into(), 3, 3)
                .unwrap_err()
                .to_string(),
            "pattern type 2 cannot be used in an ACL: it is unknown, or matches several and belongs in a filter"
        );
    }
}
