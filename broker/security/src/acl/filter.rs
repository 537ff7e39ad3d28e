//! Filters: what `DescribeAcls` and `DeleteAcls` select.

use serde::{Deserialize, Serialize};

use super::types::{AclBinding, Operation, PatternType, Permission, ResourceType, WILDCARD};

/// How a filter compares resource names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NamePattern {
    /// Bindings of any pattern whose written name is the filter's.
    Any,
    /// Bindings that would apply to a resource of the filter's name: the literal, `*`, and every prefix of it.
    Match,
    /// Bindings of this pattern whose written name is the filter's.
    Exactly(PatternType),
}

/// A selection of bindings; `None` selects any.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AclFilter {
    /// What is protected.
    pub resource_type: Option<ResourceType>,
    /// Its name.
    pub resource_name: Option<String>,
    /// How the name is compared.
    pub pattern: NamePattern,
    /// Who.
    pub principal: Option<String>,
    /// From where.
    pub host: Option<String>,
    /// What is done; exactly this, implications do not count.
    pub operation: Option<Operation>,
    /// Allow or deny.
    pub permission: Option<Permission>,
}

/// A code that is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {code} is unknown")]
pub struct FilterError {
    /// Which code.
    pub what: &'static str,
    /// Its value.
    pub code: i8,
}

const ANY_CODE: i8 = 1;
const MATCH_CODE: i8 = 2;

impl AclFilter {
    /// Selects every binding.
    pub const ANY: Self = Self {
        resource_type: None,
        resource_name: None,
        pattern: NamePattern::Any,
        principal: None,
        host: None,
        operation: None,
        permission: None,
    };

    /// A filter from the codes of a request, where 1 stands for any.
    ///
    /// # Errors
    /// [`FilterError`] for a code that nobody has defined.
    pub fn from_codes(
        resource_type: i8,
        resource_name: Option<String>,
        pattern: i8,
        principal: Option<String>,
        host: Option<String>,
        operation: i8,
        permission: i8,
    ) -> Result<Self, FilterError> {
        Ok(Self {
            resource_type: any_or("resource type", resource_type, ResourceType::from_code)?,
            resource_name,
            pattern: match pattern {
                ANY_CODE => NamePattern::Any,
                MATCH_CODE => NamePattern::Match,
                code => PatternType::from_code(code)
                    .map(NamePattern::Exactly)
                    .ok_or(FilterError {
                        what: "pattern type",
                        code,
                    })?,
            },
            principal,
            host,
            operation: any_or("operation", operation, Operation::from_code)?,
            permission: any_or("permission", permission, Permission::from_code)?,
        })
    }

    /// Whether the filter selects this binding.
    #[must_use]
    pub fn selects(&self, binding: &AclBinding) -> bool {
        self.resource_type
            .is_none_or(|wanted| wanted == binding.resource_type)
            && self.selects_name(binding)
            && self
                .principal
                .as_ref()
                .is_none_or(|wanted| *wanted == binding.principal)
            && self
                .host
                .as_ref()
                .is_none_or(|wanted| *wanted == binding.host)
            && self
                .operation
                .is_none_or(|wanted| wanted == binding.operation)
            && self
                .permission
                .is_none_or(|wanted| wanted == binding.permission)
    }

    fn selects_name(&self, binding: &AclBinding) -> bool {
        if let NamePattern::Exactly(wanted) = self.pattern
            && wanted != binding.pattern
        {
            return false;
        }
        let Some(name) = &self.resource_name else {
            return true;
        };
        let written = &binding.resource_name;
        match (self.pattern, binding.pattern) {
            (NamePattern::Match, PatternType::Literal) => name == written || written == WILDCARD,
            (NamePattern::Match, PatternType::Prefixed) => name.starts_with(written.as_str()),
            (NamePattern::Any | NamePattern::Exactly(_), _) => name == written,
        }
    }
}

fn any_or<T>(
    what: &'static str,
    code: i8,
    from_code: impl Fn(i8) -> Option<T>,
) -> Result<Option<T>, FilterError> {
    if code == ANY_CODE {
        return Ok(None);
    }
    from_code(code).map(Some).ok_or(FilterError { what, code })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn binding(name: &str, pattern: PatternType) -> AclBinding {
        AclBinding {
            resource_type: ResourceType::Topic,
            resource_name: name.to_owned(),
            pattern,
            principal: "User:alice".to_owned(),
            host: WILDCARD.to_owned(),
            operation: Operation::Read,
            permission: Permission::Allow,
        }
    }

    fn named(pattern: i8, name: Option<&str>) -> AclFilter {
        AclFilter::from_codes(2, name.map(str::to_owned), pattern, None, None, 1, 1).unwrap()
    }

    #[test]
    fn match_selects_what_would_apply_and_the_others_what_is_written() {
        use PatternType::{Literal, Prefixed};
        for (filter, written, selected) in [
            (named(2, Some("orders")), binding("orders", Literal), true),
            (named(2, Some("orders")), binding("*", Literal), true),
            (named(2, Some("orders")), binding("ord", Prefixed), true),
            (
                named(2, Some("orders")),
                binding("orders2", Prefixed),
                false,
            ),
            (named(2, Some("orders")), binding("ord", Literal), false),
            (named(1, Some("orders")), binding("*", Literal), false),
            (named(1, Some("orders")), binding("orders", Prefixed), true),
            (named(1, Some("orders")), binding("ord", Prefixed), false),
            (named(3, Some("*")), binding("*", Literal), true),
            (named(3, Some("orders")), binding("orders", Prefixed), false),
            (named(4, Some("ord")), binding("ord", Prefixed), true),
            (named(4, None), binding("ord", Literal), false),
            (named(4, None), binding("ord", Prefixed), true),
            (named(2, None), binding("ord", Prefixed), true),
        ] {
            assert_eq!(filter.selects(&written), selected, "{filter:?} {written:?}");
        }
    }

    #[test]
    fn the_other_parts_must_be_equal_when_given() {
        let written = binding("t", PatternType::Literal);
        assert!(AclFilter::ANY.selects(&written));
        for (filter, selected) in [
            (
                AclFilter {
                    principal: Some("User:alice".into()),
                    ..AclFilter::ANY
                },
                true,
            ),
            (
                AclFilter {
                    principal: Some("User:*".into()),
                    ..AclFilter::ANY
                },
                false,
            ),
            (
                AclFilter {
                    host: Some("10.0.0.1".into()),
                    ..AclFilter::ANY
                },
                false,
            ),
            (
                AclFilter {
                    operation: Some(Operation::Describe),
                    ..AclFilter::ANY
                },
                false,
            ),
            (
                AclFilter {
                    permission: Some(Permission::Deny),
                    ..AclFilter::ANY
                },
                false,
            ),
            (
                AclFilter {
                    resource_type: Some(ResourceType::Group),
                    ..AclFilter::ANY
                },
                false,
            ),
        ] {
            assert_eq!(filter.selects(&written), selected, "{filter:?}");
        }
    }

    #[test]
    fn unknown_codes_are_refused_by_name() {
        let error = AclFilter::from_codes(0, None, 1, None, None, 1, 1).unwrap_err();
        assert_eq!(error.to_string(), "resource type 0 is unknown");
        assert!(AclFilter::from_codes(1, None, 9, None, None, 1, 1).is_err());
        assert!(AclFilter::from_codes(1, None, 1, None, None, 99, 1).is_err());
        assert!(AclFilter::from_codes(1, None, 1, None, None, 1, 0).is_err());
    }
}
