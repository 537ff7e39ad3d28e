//! Key-encryption keys that are replaced, topics that get a new key, and topics that are shredded.

use std::{
    fs,
    time::{Duration, Instant},
};

use kafka_protocol::messages::{
    ApiKey, DeleteTopicsRequest, FetchRequest, IncrementalAlterConfigsRequest,
    fetch_request::{FetchPartition, FetchTopic},
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use palisade_config::status::BrokerStatus;
use palisade_data::dek_context;
use palisade_metadata::{ConfigOp, ConfigResource, MetadataCommand};
use palisade_seal::{DekVersion, DirectoryProvider, SecretKey};
use palisade_shard::Command;
use tokio::time::sleep;

use super::*;

pub(super) async fn wait_for(
    broker: &TestBroker,
    wanted: &str,
    met: impl Fn(&BrokerStatus) -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = broker.running.state().status();
        if met(&status) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{wanted}: {:?} {:?} {:?}",
            status.key_encryption,
            status.key_rotations,
            status.problems
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Adds a key under this name and makes it the current one; the name of the one before.
fn rotate(directory: &Path, name: &str) -> String {
    let other = tempfile::tempdir().unwrap();
    let made = DirectoryProvider::create(other.path()).unwrap().ids()[0].clone();
    let old = fs::read_to_string(directory.join("current")).unwrap();
    fs::copy(
        other.path().join(format!("{made}.key")),
        directory.join(format!("{name}.key")),
    )
    .unwrap();
    fs::write(directory.join("current"), name).unwrap();
    old.trim().to_owned()
}

async fn all(client: &mut Client, topic: &'static str) -> bytes::Bytes {
    let partition = FetchPartition::default()
        .with_fetch_offset(0)
        .with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default()
        .with_topic(TopicName(topic.into()))
        .with_partitions(vec![partition]);
    let request = FetchRequest::default()
        .with_max_wait_ms(1000)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_topics(vec![topic]);
    let response = client.call(ApiKey::Fetch, 12, &request).await;
    let partition = &response.responses[0].partitions[0];
    assert_eq!(partition.error_code, 0);
    partition.records.clone().unwrap_or_default()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_kek_is_not_needed_any_more_soon_after_another_is_current() {
    let mut broker = TestBroker::start().await;
    let directory = broker.path("kek");
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "events").await, 0);
    produce(&mut client, "events", b"first".to_vec()).await;
    for name in ["kek-2nd-name", "one-with-a-much-longer-name"] {
        wait_for(&broker, "settled at first", |status| {
            status
                .key_encryption
                .as_ref()
                .is_some_and(|keys| keys.settled)
        })
        .await;
        let old = rotate(&directory, name);
        wait_for(&broker, "settled under the new key", |status| {
            status.kek_id == name
                && status.key_encryption.as_ref().is_some_and(|keys| {
                    keys.settled && keys.needed.iter().all(|needs| needs.kek == name)
                })
        })
        .await;
        produce(&mut client, "events", name.as_bytes().to_vec()).await;
        fs::remove_file(directory.join(format!("{old}.key"))).unwrap();
        broker = broker.restart().await;
        client = broker.admin().await;
        let records = all(&mut client, "events").await;
        assert!(contains(&records, b"first") && contains(&records, name.as_bytes()));
    }
    wait_for(&broker, "no problem is left", |status| {
        status.problems.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_made_when_the_configuration_asks_for_it() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "events").await, 0);
    produce(&mut client, "events", b"under the first".to_vec()).await;
    let config = AlterableConfig::default()
        .with_name("palisade.key.version".into())
        .with_value(Some("4".into()));
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name("events".into())
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let response = client
        .call(ApiKey::IncrementalAlterConfigs, 1, &request)
        .await;
    assert_eq!(response.responses[0].error_code, 0);
    wait_for(&broker, "the rotation is reported", |status| {
        status.key_rotations.iter().any(|rotation| {
            rotation.topic == "events"
                && (rotation.oldest, rotation.newest) == (1, 4)
                && rotation.segments_left == 1
                && rotation.bytes_left > 0
        })
    })
    .await;
    produce(&mut client, "events", b"under the fourth".to_vec()).await;
    let records = all(&mut client, "events").await;
    assert!(contains(&records, b"under the first") && contains(&records, b"under the fourth"));
    let broker = broker.restart().await;
    let records = all(&mut broker.admin().await, "events").await;
    assert!(contains(&records, b"under the first") && contains(&records, b"under the fourth"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_can_have_no_key_any_more_keeps_none_from_the_others() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    for name in ["a", "b"] {
        assert_eq!(create_topic(&mut client, name).await, 0);
    }
    let state = &broker.running.state().broker;
    let ids = ["a", "b"].map(|name| state.image().topics.by_name(name).unwrap().id);
    for version in 2..=100 {
        let key = SecretKey::generate().unwrap();
        let add = MetadataCommand::AddTopicKey {
            id: ids[0],
            version: DekVersion(version),
            key: state.provider.wrap(&key, &dek_context(ids[0])).unwrap(),
        };
        state.change(&add).await.unwrap();
    }
    // No request gets so far: what is logged here was not admitted.
    for id in ids {
        let want = MetadataCommand::AlterConfigs {
            resource: ConfigResource::Topic(id),
            replace: false,
            ops: vec![ConfigOp::Set {
                name: "palisade.key.version".to_owned(),
                value: "200".to_owned(),
            }],
        };
        let command = Command::new(want.encode().unwrap(), Vec::new());
        let proposed = state.cluster.metadata.propose(command).await;
        proposed.unwrap().unwrap();
    }
    let newest = |id| {
        let image = state.image();
        let topic = image.topics.get(id).unwrap();
        topic.current_key().map(|(version, _)| version)
    };
    wait_for(&broker, "the other topic has its new key", |_| {
        newest(ids[1]) == Some(DekVersion(200))
    })
    .await;
    assert_eq!(newest(ids[0]), Some(DekVersion(100)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_counted_when_its_key_has_left_the_volume() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "doomed").await, 0);
    produce(&mut client, "doomed", b"secret".to_vec()).await;
    // A checkpoint that has the key.
    let metadata = &broker.running.state().broker.cluster.metadata;
    metadata.checkpoint().await.unwrap();
    assert_eq!(broker.running.state().status().shredded_topics, 0);
    let request = DeleteTopicsRequest::default().with_topic_names(vec![TopicName("doomed".into())]);
    let response = client.call(ApiKey::DeleteTopics, 5, &request).await;
    assert_eq!(response.responses[0].error_code, 0);
    wait_for(&broker, "the topic is shredded", |status| {
        (status.shredded_topics, status.shredding_topics) == (1, 0)
    })
    .await;
    let left = metadata.read(|machine| machine.image().count_keks());
    assert!(left.is_empty(), "{left:?}");
    broker.running.state().refresh_metrics();
    let text = broker.running.state().broker.metrics.render().unwrap();
    assert!(text.contains("palisade_topics_shredded_total 1"), "{text}");
}
