//! Client quotas: describe and alter (KIP-546).

use std::collections::BTreeMap;

use kafka_protocol::{
    messages::{
        AlterClientQuotasRequest, DescribeClientQuotasRequest,
        alter_client_quotas_request::{EntityData, EntryData, OpData},
        describe_client_quotas_request::ComponentData,
    },
    protocol::StrBytes,
};

use super::{AdminClient, KafkaError, error::check};

/// Match types of a describe's component.
const MATCH_EXACT: i8 = 0;
const MATCH_DEFAULT: i8 = 1;

/// Limits by Kafka's key, such as `producer_byte_rate`.
pub type QuotaValues = BTreeMap<String, f64>;

/// The name of one part of an entity, or its default.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntityName {
    /// This one.
    Named(String),
    /// Every one that has no quota of its own.
    Default,
}

/// Whom a quota limits: at least one part is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuotaEntity {
    /// A user, as authenticated.
    pub user: Option<EntityName>,
    /// A client id, as the client claims it.
    pub client_id: Option<EntityName>,
    /// An address.
    pub ip: Option<EntityName>,
}

impl QuotaEntity {
    /// The user that it names.
    #[must_use]
    pub fn user_name(&self) -> Option<String> {
        match &self.user {
            Some(EntityName::Named(name)) => Some(name.clone()),
            _ => None,
        }
    }

    fn parts(&self) -> impl Iterator<Item = (&'static str, &EntityName)> {
        [
            ("user", &self.user),
            ("client-id", &self.client_id),
            ("ip", &self.ip),
        ]
        .into_iter()
        .filter_map(|(kind, name)| Some((kind, name.as_ref()?)))
    }
}

impl std::fmt::Display for QuotaEntity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (kind, name)) in self.parts().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match name {
                EntityName::Named(name) => write!(f, "{separator}{kind} {name:?}")?,
                EntityName::Default => write!(f, "{separator}any {kind}")?,
            }
        }
        Ok(())
    }
}

impl AdminClient {
    /// The limits set for exactly this entity; empty when there are none.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn describe_quota(&self, entity: &QuotaEntity) -> Result<QuotaValues, KafkaError> {
        const API: &str = "DescribeClientQuotas";
        let components = entity
            .parts()
            .map(|(kind, name)| {
                let component =
                    ComponentData::default().with_entity_type(StrBytes::from_static_str(kind));
                match name {
                    EntityName::Named(name) => component
                        .with_match_type(MATCH_EXACT)
                        .with_match(Some(StrBytes::from_string(name.clone()))),
                    EntityName::Default => {
                        component.with_match_type(MATCH_DEFAULT).with_match(None)
                    }
                }
            })
            .collect();
        // Strict: entities with further parts are others.
        let request = DescribeClientQuotasRequest::default()
            .with_components(components)
            .with_strict(true);
        let answer = self.call(API, &request, |answer| answer.error_code).await?;
        check(API, answer.error_code, answer.error_message.as_ref())?;
        Ok(answer
            .entries
            .unwrap_or_default()
            .iter()
            .flat_map(|entry| {
                entry
                    .values
                    .iter()
                    .map(|value| (value.key.to_string(), value.value))
            })
            .collect())
    }

    /// Sets the limits of `set` and removes the keys of `removed`.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn alter_quota(
        &self,
        entity: &QuotaEntity,
        set: &QuotaValues,
        removed: &[String],
    ) -> Result<(), KafkaError> {
        const API: &str = "AlterClientQuotas";
        if set.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let parts = entity
            .parts()
            .map(|(kind, name)| {
                EntityData::default()
                    .with_entity_type(StrBytes::from_static_str(kind))
                    .with_entity_name(match name {
                        EntityName::Named(name) => Some(StrBytes::from_string(name.clone())),
                        EntityName::Default => None,
                    })
            })
            .collect();
        let set = set.iter().map(|(key, value)| {
            OpData::default()
                .with_key(StrBytes::from_string(key.clone()))
                .with_value(*value)
                .with_remove(false)
        });
        let removed = removed.iter().map(|key| {
            OpData::default()
                .with_key(StrBytes::from_string(key.clone()))
                .with_value(0.0)
                .with_remove(true)
        });
        let request = AlterClientQuotasRequest::default().with_entries(vec![
            EntryData::default()
                .with_entity(parts)
                .with_ops(set.chain(removed).collect()),
        ]);
        let answer = self
            .call(API, &request, |answer| {
                answer.entries.first().map_or(0, |entry| entry.error_code)
            })
            .await?;
        super::acls::complete(API, answer.entries.len(), 1)?;
        answer
            .entries
            .iter()
            .try_for_each(|entry| check(API, entry.error_code, entry.error_message.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_names_its_parts() {
        let entity = QuotaEntity {
            user: Some(EntityName::Default),
            client_id: Some(EntityName::Named("client-1".to_owned())),
            ip: None,
        };
        assert_eq!(entity.to_string(), "any user, client-id \"client-1\"");
    }
}
