//! What requests about topics and configs are answered when something about them is wrong: as Kafka answers them, since clients act on it.

use kafka_protocol::messages::{
    AlterClientQuotasRequest, AlterConfigsRequest, ApiKey, DeleteTopicsRequest,
    DescribeConfigsRequest, IncrementalAlterConfigsRequest,
    alter_client_quotas_request::{EntityData, EntryData, OpData},
    alter_configs_request as replacing,
    create_topics_request::CreatableTopicConfig,
    delete_topics_request::DeleteTopicState,
    describe_configs_request::DescribeConfigsResource,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};

use super::*;

const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const TOPIC_ALREADY_EXISTS: i16 = 36;
const INVALID_REPLICATION_FACTOR: i16 = 38;
const INVALID_CONFIG: i16 = 40;
const INVALID_REQUEST: i16 = 42;
const THROTTLING_QUOTA_EXCEEDED: i16 = 89;
const TOPIC: i8 = 2;
const SET: i8 = 0;
const SUBTRACT: i8 = 3;

/// The code, the message and the throttle time that creating a topic is answered with.
async fn create(client: &mut Client, topic: CreatableTopic) -> (i16, String, i32) {
    let request = CreateTopicsRequest::default().with_topics(vec![topic]);
    let response = client.call(ApiKey::CreateTopics, 7, &request).await;
    let topic = &response.topics[0];
    let message = topic.error_message.clone().unwrap_or_default();
    (
        topic.error_code,
        message.to_string(),
        response.throttle_time_ms,
    )
}

fn topic(name: &'static str, partitions: i32, replication_factor: i16) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(TopicName(name.into()))
        .with_num_partitions(partitions)
        .with_replication_factor(replication_factor)
}

/// A change of one config of a topic.
fn change(
    topic: &'static str,
    name: &'static str,
    operation: i8,
    value: Option<&'static str>,
) -> AlterConfigsResource {
    let config = AlterableConfig::default()
        .with_name(name.into())
        .with_config_operation(operation)
        .with_value(value.map(Into::into));
    AlterConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(topic.into())
        .with_configs(vec![config])
}

async fn alter(client: &mut Client, resources: Vec<AlterConfigsResource>) -> Vec<i16> {
    let request = IncrementalAlterConfigsRequest::default().with_resources(resources);
    let response = client
        .call(ApiKey::IncrementalAlterConfigs, 1, &request)
        .await;
    let responses = response.responses.iter();
    responses.map(|response| response.error_code).collect()
}

async fn config(client: &mut Client, topic: &'static str, name: &str) -> String {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(topic.into());
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let response = client.call(ApiKey::DescribeConfigs, 4, &request).await;
    let mut configs = response.results[0].configs.iter();
    let found = configs.find(|config| &*config.name == name).unwrap();
    found.value.clone().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_exists_is_said_to_exist_whatever_else_is_wrong() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "events").await, 0);
    let (code, message, _) = create(&mut client, topic("events", 1, 3)).await;
    assert_eq!(
        (code, message.as_str()),
        (TOPIC_ALREADY_EXISTS, "Topic 'events' already exists.")
    );
    let (code, _, _) = create(&mut client, topic("others", 1, 3)).await;
    assert_eq!(code, INVALID_REPLICATION_FACTOR);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_refused_costs_nothing() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "events").await, 0);
    let entity = EntityData::default()
        .with_entity_type("user".into())
        .with_entity_name(Some("admin".into()));
    let rate = OpData::default()
        .with_key("controller_mutation_rate".into())
        .with_value(1.0);
    let entry = EntryData::default()
        .with_entity(vec![entity])
        .with_ops(vec![rate]);
    let request = AlterClientQuotasRequest::default().with_entries(vec![entry]);
    let response = client.call(ApiKey::AlterClientQuotas, 1, &request).await;
    assert_eq!(response.entries[0].error_code, 0);
    let setting = CreatableTopicConfig::default()
        .with_name("retention.ms".into())
        .with_value(Some("soon".into()));
    let wrong = topic("wrong", 100, 1).with_configs(vec![setting]);
    for topic in [topic("events", 100, 1), wrong] {
        let (code, _, throttled) = create(&mut client, topic).await;
        assert!(
            [TOPIC_ALREADY_EXISTS, INVALID_CONFIG].contains(&code),
            "{code}"
        );
        assert_eq!(throttled, 0);
    }
    // The whole window is there still, and then it is used up.
    assert_eq!(create(&mut client, topic("large", 100, 1)).await.0, 0);
    let (code, _, throttled) = create(&mut client, topic("more", 100, 1)).await;
    assert_eq!(code, THROTTLING_QUOTA_EXCEEDED);
    assert!(throttled > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_without_a_value_is_refused() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    let without = |name: &'static str| {
        CreatableTopicConfig::default()
            .with_name(name.into())
            .with_value(None)
    };
    let wrong =
        topic("events", 1, 1).with_configs(vec![without("retention.ms"), without("segment.bytes")]);
    let (code, message, _) = create(&mut client, wrong).await;
    assert_eq!(
        (code, message.as_str()),
        (
            INVALID_CONFIG,
            "Null value not supported for topic configs: retention.ms, segment.bytes"
        )
    );
    assert_eq!(create_topic(&mut client, "events").await, 0);
    let null = change("events", "retention.ms", SET, None);
    assert_eq!(alter(&mut client, vec![null]).await, [INVALID_REQUEST]);
    let config = replacing::AlterableConfig::default()
        .with_name("retention.ms".into())
        .with_value(None);
    let resource = replacing::AlterConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name("events".into())
        .with_configs(vec![config]);
    let request = AlterConfigsRequest::default().with_resources(vec![resource.clone()]);
    let response = client.call(ApiKey::AlterConfigs, 2, &request).await;
    assert_eq!(response.responses[0].error_code, INVALID_REQUEST);
    let request =
        AlterConfigsRequest::default().with_resources(vec![resource.with_configs(vec![]); 2]);
    let response = client.call(ApiKey::AlterConfigs, 2, &request).await;
    let codes: Vec<i16> = response
        .responses
        .iter()
        .map(|response| response.error_code)
        .collect();
    assert_eq!(codes, [INVALID_REQUEST; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_changes_twice_it_does_not_change() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    for name in ["events", "others"] {
        assert_eq!(create_topic(&mut client, name).await, 0);
    }
    let set = |topic, value| change(topic, "retention.ms", SET, Some(value));
    let twice = vec![set("events", "5"), set("others", "6"), set("events", "7")];
    assert_eq!(
        alter(&mut client, twice).await,
        [INVALID_REQUEST, 0, INVALID_REQUEST]
    );
    assert_eq!(
        config(&mut client, "events", "retention.ms").await,
        "604800000"
    );
    assert_eq!(config(&mut client, "others", "retention.ms").await, "6");
    let mut same = set("events", "5");
    same.configs.extend(set("events", "6").configs);
    assert_eq!(alter(&mut client, vec![same]).await, [INVALID_REQUEST]);

    let image = broker.running.state().broker.image();
    let id = image.topics.by_name("events").unwrap().id.0;
    let by_name = DeleteTopicState::default().with_name(Some(TopicName("events".into())));
    let by_id = DeleteTopicState::default()
        .with_name(None)
        .with_topic_id(id);
    for (state, message) in [
        (by_name, "Duplicate topic name."),
        (by_id, "Duplicate topic id."),
    ] {
        let request = DeleteTopicsRequest::default().with_topics(vec![state; 2]);
        let response = client.call(ApiKey::DeleteTopics, 6, &request).await;
        assert_eq!(response.responses.len(), 1);
        let response = &response.responses[0];
        assert_eq!(response.error_code, INVALID_REQUEST);
        assert_eq!(response.error_message.as_deref(), Some(message));
    }
    let names = ["nobody", "events"].map(|name| TopicName(name.into()));
    let request = DeleteTopicsRequest::default().with_topic_names(names.to_vec());
    let response = client.call(ApiKey::DeleteTopics, 5, &request).await;
    let codes: Vec<i16> = response
        .responses
        .iter()
        .map(|response| response.error_code)
        .collect();
    assert_eq!(codes, [UNKNOWN_TOPIC_OR_PARTITION, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_changes_at_the_same_time_each_is_checked_on_what_the_last_one_left() {
    let broker = TestBroker::start().await;
    let (mut one, mut other) = (broker.admin().await, broker.admin().await);
    assert_eq!(create_topic(&mut one, "events").await, 0);
    let policy = "cleanup.policy";
    for _ in 0..10 {
        let both = change("events", policy, SET, Some("delete,compact"));
        assert_eq!(alter(&mut one, vec![both]).await, [0]);
        let without = |item| vec![change("events", policy, SUBTRACT, Some(item))];
        let (first, second) = tokio::join!(
            alter(&mut one, without("delete")),
            alter(&mut other, without("compact"))
        );
        let mut codes = [first, second].concat();
        codes.sort_unstable();
        assert_eq!(codes, [0, INVALID_CONFIG]);
        assert_ne!(config(&mut one, "events", policy).await, "");
    }
}
