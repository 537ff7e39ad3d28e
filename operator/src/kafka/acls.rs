//! ACL bindings: describe, create, delete.

use kafka_protocol::{
    messages::{
        CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest, DescribeAclsResponse,
        create_acls_request::AclCreation, delete_acls_request::DeleteAclsFilter,
    },
    protocol::StrBytes,
};

use super::{AdminClient, KafkaError, error::check};

/// `ANY` of every enumeration, in a filter.
const ANY: i8 = 1;

/// Declares an enumeration with its Kafka codes.
macro_rules! coded {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant = $code),* }

        impl $name {
            /// The code on the wire.
            #[must_use]
            pub const fn code(self) -> i8 {
                self as i8
            }

            /// What a code on the wire means, if this client knows it.
            #[must_use]
            pub const fn from_code(code: i8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

coded! {
    /// What an ACL protects.
    ResourceType {
        /// A topic.
        Topic = 2,
        /// A consumer group.
        Group = 3,
        /// The cluster itself.
        Cluster = 4,
        /// A transactional id.
        TransactionalId = 5,
        /// A delegation token.
        DelegationToken = 6,
        /// A user.
        User = 7,
    }
}
coded! {
    /// How the resource's name is compared.
    PatternType {
        /// Equal, or `*`.
        Literal = 3,
        /// Starts with.
        Prefixed = 4,
    }
}
coded! {
    /// What is done to the resource.
    Operation {
        /// Every operation.
        All = 2,
        /// Read.
        Read = 3,
        /// Write.
        Write = 4,
        /// Create.
        Create = 5,
        /// Delete.
        Delete = 6,
        /// Alter.
        Alter = 7,
        /// Describe.
        Describe = 8,
        /// What brokers do to each other.
        ClusterAction = 9,
        /// Read configuration.
        DescribeConfigs = 10,
        /// Write configuration.
        AlterConfigs = 11,
        /// Produce with an idempotent producer.
        IdempotentWrite = 12,
        /// Make delegation tokens for others.
        CreateTokens = 13,
        /// See delegation tokens of others.
        DescribeTokens = 14,
    }
}
coded! {
    /// Which way a binding decides. `Deny` sorts first and wins.
    Permission {
        /// Refuse.
        Deny = 2,
        /// Admit.
        Allow = 3,
    }
}

/// One binding, as the brokers store it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AclBinding {
    /// Which way it decides.
    pub permission: Permission,
    /// `User:<name>`.
    pub principal: String,
    /// What it protects.
    pub resource_type: ResourceType,
    /// How `resource_name` is compared.
    pub pattern: PatternType,
    /// Name, prefix, or `*`.
    pub resource_name: String,
    /// What is done.
    pub operation: Operation,
    /// Address, or `*`.
    pub host: String,
}

impl std::fmt::Display for AclBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} {:?} on {:?} {:?} {:?} from {} for {}",
            self.permission,
            self.operation,
            self.pattern,
            self.resource_type,
            self.resource_name,
            self.host,
            self.principal
        )
    }
}

impl AdminClient {
    /// The bindings of one principal (exact match).
    ///
    /// # Errors
    /// When the brokers do not answer or refuse, or answer with codes this client does not know: acting on half a list would delete the other half.
    pub async fn describe_acls(&self, principal: &str) -> Result<Vec<AclBinding>, KafkaError> {
        const API: &str = "DescribeAcls";
        // The generated default of a nullable text is an empty one, which would match nothing.
        let request = DescribeAclsRequest::default()
            .with_resource_type_filter(ANY)
            .with_resource_name_filter(None)
            .with_host_filter(None)
            .with_pattern_type_filter(ANY)
            .with_principal_filter(Some(StrBytes::from_string(principal.to_owned())))
            .with_operation(ANY)
            .with_permission_type(ANY);
        let answer = self.call(API, &request, |answer| answer.error_code).await?;
        check(API, answer.error_code, answer.error_message.as_ref())?;
        bindings(&answer)
    }

    /// Adds bindings. Adding one that exists changes nothing.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn create_acls(&self, bindings: &[AclBinding]) -> Result<(), KafkaError> {
        const API: &str = "CreateAcls";
        if bindings.is_empty() {
            return Ok(());
        }
        let creations = bindings
            .iter()
            .map(|binding| {
                AclCreation::default()
                    .with_resource_type(binding.resource_type.code())
                    .with_resource_name(StrBytes::from_string(binding.resource_name.clone()))
                    .with_resource_pattern_type(binding.pattern.code())
                    .with_principal(StrBytes::from_string(binding.principal.clone()))
                    .with_host(StrBytes::from_string(binding.host.clone()))
                    .with_operation(binding.operation.code())
                    .with_permission_type(binding.permission.code())
            })
            .collect();
        let request = CreateAclsRequest::default().with_creations(creations);
        let answer = self
            .call(API, &request, |answer| {
                answer.results.first().map_or(0, |result| result.error_code)
            })
            .await?;
        complete(API, answer.results.len(), bindings.len())?;
        answer
            .results
            .iter()
            .try_for_each(|result| check(API, result.error_code, result.error_message.as_ref()))
    }

    /// Removes exactly these bindings. Removing one that does not exist changes nothing.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn delete_acls(&self, bindings: &[AclBinding]) -> Result<(), KafkaError> {
        const API: &str = "DeleteAcls";
        if bindings.is_empty() {
            return Ok(());
        }
        let filters = bindings
            .iter()
            .map(|binding| {
                DeleteAclsFilter::default()
                    .with_resource_type_filter(binding.resource_type.code())
                    .with_resource_name_filter(Some(StrBytes::from_string(
                        binding.resource_name.clone(),
                    )))
                    .with_pattern_type_filter(binding.pattern.code())
                    .with_principal_filter(Some(StrBytes::from_string(binding.principal.clone())))
                    .with_host_filter(Some(StrBytes::from_string(binding.host.clone())))
                    .with_operation(binding.operation.code())
                    .with_permission_type(binding.permission.code())
            })
            .collect();
        let request = DeleteAclsRequest::default().with_filters(filters);
        let answer = self
            .call(API, &request, |answer| {
                answer
                    .filter_results
                    .first()
                    .map_or(0, |result| result.error_code)
            })
            .await?;
        complete(API, answer.filter_results.len(), bindings.len())?;
        for result in &answer.filter_results {
            check(API, result.error_code, result.error_message.as_ref())?;
            for acl in &result.matching_acls {
                check(API, acl.error_code, acl.error_message.as_ref())?;
            }
        }
        Ok(())
    }
}

/// An answer must speak of everything that was asked, or what it leaves out is unknown.
pub(super) fn complete(api: &'static str, answered: usize, asked: usize) -> Result<(), KafkaError> {
    if answered >= asked {
        return Ok(());
    }
    Err(KafkaError::Malformed {
        api,
        reason: format!("{answered} results for {asked} entries"),
    })
}

fn bindings(answer: &DescribeAclsResponse) -> Result<Vec<AclBinding>, KafkaError> {
    let unknown = |what: &str, code: i8| KafkaError::Malformed {
        api: "DescribeAcls",
        reason: format!("{what} code {code} is newer than this operator"),
    };
    let mut found = Vec::new();
    for resource in &answer.resources {
        let resource_type = ResourceType::from_code(resource.resource_type)
            .ok_or_else(|| unknown("resource type", resource.resource_type))?;
        let pattern = PatternType::from_code(resource.pattern_type)
            .ok_or_else(|| unknown("pattern", resource.pattern_type))?;
        for acl in &resource.acls {
            found.push(AclBinding {
                permission: Permission::from_code(acl.permission_type)
                    .ok_or_else(|| unknown("permission", acl.permission_type))?,
                principal: acl.principal.to_string(),
                resource_type,
                pattern,
                resource_name: resource.resource_name.to_string(),
                operation: Operation::from_code(acl.operation)
                    .ok_or_else(|| unknown("operation", acl.operation))?,
                host: acl.host.to_string(),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kafka_protocol::messages::describe_acls_response::{AclDescription, DescribeAclsResource};

    use super::*;

    fn answer(operation: i8) -> DescribeAclsResponse {
        DescribeAclsResponse::default().with_resources(vec![
            DescribeAclsResource::default()
                .with_resource_type(2)
                .with_pattern_type(3)
                .with_resource_name(StrBytes::from_static_str("orders"))
                .with_acls(vec![
                    AclDescription::default()
                        .with_principal(StrBytes::from_static_str("User:alice"))
                        .with_host(StrBytes::from_static_str("*"))
                        .with_operation(operation)
                        .with_permission_type(3),
                ]),
        ])
    }

    #[test]
    fn an_answer_becomes_bindings() {
        let found = bindings(&answer(4)).unwrap();
        assert_eq!(
            found[0].to_string(),
            "Allow Write on Literal Topic \"orders\" from * for User:alice"
        );
    }

    #[test]
    fn an_unknown_operation_fails_the_whole_answer() {
        let message = bindings(&answer(99)).unwrap_err().to_string();
        assert_eq!(
            message,
            "the answer to DescribeAcls is malformed: operation code 99 is newer than this operator"
        );
    }

    #[test]
    fn deny_sorts_before_allow() {
        assert!(Permission::Deny < Permission::Allow);
    }
}
