//! Topics: create, delete, describe, grow, configure.

use std::collections::BTreeMap;

use kafka_protocol::{
    messages::{
        CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
        IncrementalAlterConfigsRequest, MetadataRequest, TopicName,
        create_partitions_request::CreatePartitionsTopic,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};
use uuid::Uuid;

use super::{AdminClient, KafkaError, acls::complete, error::check};

const TIMEOUT_MS: i32 = 8_000;
const TOPIC_RESOURCE: i8 = 2;
/// `DYNAMIC_TOPIC_CONFIG`: set on the topic itself, not inherited.
const SOURCE_TOPIC: i8 = 1;
const OP_SET: i8 = 0;
const OP_DELETE: i8 = 1;
const UNKNOWN_TOPIC: i16 = 3;

/// A topic as the brokers have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicState {
    /// Its id; a topic made anew under the same name has another.
    pub id: Uuid,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of its first partition.
    pub replication_factor: i16,
    /// Partitions without a leader.
    pub leaderless: usize,
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

impl AdminClient {
    /// The topic, or nothing when there is none of that name. Never creates it.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn describe_topic(&self, name: &str) -> Result<Option<TopicState>, KafkaError> {
        const API: &str = "Metadata";
        let request = MetadataRequest::default()
            .with_allow_auto_topic_creation(false)
            .with_topics(Some(vec![
                MetadataRequestTopic::default().with_name(Some(topic_name(name))),
            ]));
        let answer = self.call(API, &request, |answer| answer.error_code).await?;
        let found = answer.topics.iter().find(|topic| {
            topic
                .name
                .as_ref()
                .is_some_and(|found| found.as_str() == name)
        });
        let Some(topic) = found.filter(|topic| topic.error_code != UNKNOWN_TOPIC) else {
            return Ok(None);
        };
        check(API, topic.error_code, None)?;
        let first = topic
            .partitions
            .iter()
            .min_by_key(|partition| partition.partition_index);
        Ok(Some(TopicState {
            id: topic.topic_id,
            partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
            replication_factor: first
                .and_then(|partition| i16::try_from(partition.replica_nodes.len()).ok())
                .unwrap_or_default(),
            leaderless: topic
                .partitions
                .iter()
                .filter(|partition| partition.leader_id.0 < 0)
                .count(),
        }))
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
        config: &BTreeMap<String, String>,
    ) -> Result<(), KafkaError> {
        const API: &str = "CreateTopics";
        let configs = config
            .iter()
            .map(|(key, value)| {
                CreatableTopicConfig::default()
                    .with_name(StrBytes::from_string(key.clone()))
                    .with_value(Some(StrBytes::from_string(value.clone())))
            })
            .collect();
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(partitions)
            .with_replication_factor(replication_factor)
            .with_configs(configs);
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(TIMEOUT_MS);
        let answer = self
            .call(API, &request, |answer| {
                answer.topics.first().map_or(0, |topic| topic.error_code)
            })
            .await?;
        complete(API, answer.topics.len(), 1)?;
        answer
            .topics
            .iter()
            .try_for_each(|topic| check(API, topic.error_code, topic.error_message.as_ref()))
    }

    /// Deletes a topic and its data. Deleting one that does not exist changes nothing.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn delete_topic(&self, name: &str) -> Result<(), KafkaError> {
        const API: &str = "DeleteTopics";
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![
                DeleteTopicState::default().with_name(Some(topic_name(name))),
            ])
            .with_timeout_ms(TIMEOUT_MS);
        let answer = self
            .call(API, &request, |answer| {
                answer.responses.first().map_or(0, |topic| topic.error_code)
            })
            .await?;
        complete(API, answer.responses.len(), 1)?;
        answer
            .responses
            .iter()
            .filter(|topic| topic.error_code != UNKNOWN_TOPIC)
            .try_for_each(|topic| check(API, topic.error_code, topic.error_message.as_ref()))
    }

    /// Grows a topic to `count` partitions.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn create_partitions(&self, name: &str, count: i32) -> Result<(), KafkaError> {
        const API: &str = "CreatePartitions";
        let topic = CreatePartitionsTopic::default()
            .with_name(topic_name(name))
            .with_count(count)
            .with_assignments(None);
        let request = CreatePartitionsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(TIMEOUT_MS);
        let answer = self
            .call(API, &request, |answer| {
                answer.results.first().map_or(0, |topic| topic.error_code)
            })
            .await?;
        complete(API, answer.results.len(), 1)?;
        answer
            .results
            .iter()
            .try_for_each(|topic| check(API, topic.error_code, topic.error_message.as_ref()))
    }

    /// What is configured on the topic itself (not inherited defaults).
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn describe_topic_config(
        &self,
        name: &str,
    ) -> Result<BTreeMap<String, String>, KafkaError> {
        const API: &str = "DescribeConfigs";
        let resource = DescribeConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(StrBytes::from_string(name.to_owned()))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let answer = self
            .call(API, &request, |answer| {
                answer.results.first().map_or(0, |result| result.error_code)
            })
            .await?;
        complete(API, answer.results.len(), 1)?;
        let mut config = BTreeMap::new();
        for result in &answer.results {
            check(API, result.error_code, result.error_message.as_ref())?;
            for entry in result
                .configs
                .iter()
                .filter(|entry| entry.config_source == SOURCE_TOPIC)
            {
                config.insert(
                    entry.name.to_string(),
                    entry.value.as_deref().unwrap_or_default().to_owned(),
                );
            }
        }
        Ok(config)
    }

    /// Sets the keys of `set` and returns those of `removed` to their defaults.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn alter_topic_config(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        removed: &[String],
    ) -> Result<(), KafkaError> {
        const API: &str = "IncrementalAlterConfigs";
        if set.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let entry = |key: &String, operation: i8, value: Option<&String>| {
            AlterableConfig::default()
                .with_name(StrBytes::from_string(key.clone()))
                .with_config_operation(operation)
                .with_value(value.map(|value| StrBytes::from_string(value.clone())))
        };
        let configs = set
            .iter()
            .map(|(key, value)| entry(key, OP_SET, Some(value)))
            .chain(removed.iter().map(|key| entry(key, OP_DELETE, None)))
            .collect();
        let resource = AlterConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(StrBytes::from_string(name.to_owned()))
            .with_configs(configs);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let answer = self
            .call(API, &request, |answer| {
                answer
                    .responses
                    .first()
                    .map_or(0, |result| result.error_code)
            })
            .await?;
        complete(API, answer.responses.len(), 1)?;
        answer
            .responses
            .iter()
            .try_for_each(|result| check(API, result.error_code, result.error_message.as_ref()))
    }
}
