//! What strangers may send: it ends their connection, and nobody else's.

use std::time::Duration;

use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, DescribeConfigsRequest, DescribeGroupsRequest, FetchRequest,
    GroupId, ListOffsetsRequest, MetadataRequest,
    describe_configs_request::DescribeConfigsResource,
    fetch_request::{FetchPartition, FetchTopic},
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    metadata_request::MetadataRequestTopic,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::*;

const SOON: Duration = Duration::from_secs(30);

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_ends_its_own_connection_only() {
    let broker = TestBroker::start().await;
    let mut bystander = broker.admin().await;
    let malformed: [&[u8]; 7] = [
        // Shorter than a header.
        &frame(b"abc"),
        // An API that does not exist, and one that is not served.
        &frame(b"\x03\xe7\0\0\0\0\0\x01\xff\xff"),
        &frame(b"\0\x44\0\0\0\0\0\x01\xff\xff"),
        // Metadata from the future.
        &frame(b"\0\x03\0\x63\0\0\0\x01\xff\xff"),
        // Metadata v1 with two billion topics in no bytes.
        &frame(b"\0\x03\0\x01\0\0\0\x01\xff\xff\x7f\xff\xff\xff"),
        // Frames of impossible size.
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
    ];
    for bytes in malformed {
        let mut client = broker.admin().await;
        client.write(bytes).await;
        let answer = timeout(SOON, client.frame())
            .await
            .expect("the broker must close");
        assert!(answer.is_none(), "{bytes:?}");
        let metadata = bystander
            .call(ApiKey::Metadata, 12, &MetadataRequest::default())
            .await;
        assert_eq!(metadata.brokers.len(), 1);
    }
}

/// An answer that grew with every repetition could be made as large as the broker's memory.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_twice_is_answered_once() {
    let broker = TestBroker::start().await;
    let mut admin = broker.admin().await;
    assert_eq!(create_topic(&mut admin, "events").await, 0);
    let name = || TopicName("events".into());

    let asked = MetadataRequestTopic::default().with_name(Some(name()));
    let request = MetadataRequest::default().with_topics(Some(vec![asked; 3]));
    let answer = admin.call(ApiKey::Metadata, 12, &request).await;
    assert_eq!(answer.topics.len(), 1);

    let partition = ListOffsetsPartition::default().with_timestamp(-1);
    let asked = ListOffsetsTopic::default()
        .with_name(name())
        .with_partitions(vec![partition; 3]);
    let request = ListOffsetsRequest::default().with_topics(vec![asked; 2]);
    let answer = admin.call(ApiKey::ListOffsets, 7, &request).await;
    let topics = answer.topics.iter();
    assert_eq!(topics.map(|topic| topic.partitions.len()).sum::<usize>(), 1);

    let asked = FetchTopic::default()
        .with_topic(name())
        .with_partitions(vec![FetchPartition::default(); 3]);
    let request = FetchRequest::default().with_topics(vec![asked; 2]);
    let answer = admin.call(ApiKey::Fetch, 12, &request).await;
    let topics = answer.responses.iter();
    assert_eq!(topics.map(|topic| topic.partitions.len()).sum::<usize>(), 1);

    let request = DescribeGroupsRequest::default().with_groups(vec![GroupId("one".into()); 3]);
    let answer = admin.call(ApiKey::DescribeGroups, 5, &request).await;
    assert_eq!(answer.groups.len(), 1);

    let asked = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name("events".into());
    let request = DescribeConfigsRequest::default().with_resources(vec![asked; 3]);
    let answer = admin.call(ApiKey::DescribeConfigs, 4, &request).await;
    assert_eq!(answer.results.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_authentication_only_the_handshake_is_served() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    assert!(
        client
            .try_call(ApiKey::Metadata, 12, &MetadataRequest::default())
            .await
            .is_none()
    );
    // A frame that is welcome after authentication is too large before.
    let mut client = broker.connect().await;
    client.write(&(600 * 1024_u32).to_be_bytes()).await;
    assert!(
        timeout(SOON, client.frame())
            .await
            .expect("the broker must close")
            .is_none()
    );
    let mut client = broker.connect().await;
    assert_eq!(
        client.handshake("GSSAPI").await,
        33,
        "UNSUPPORTED_SASL_MECHANISM"
    );
    assert!(client.frame().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn api_versions_from_the_future_is_answered_in_version_0() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    client
        .write(&frame(b"\0\x12\0\x63\0\0\0\x2a\xff\xff\0"))
        .await;
    let answer = client.frame().await.unwrap();
    assert_eq!(
        &answer[..6],
        b"\0\0\0\x2a\0\x23",
        "correlation id and UNSUPPORTED_VERSION"
    );
    let response = client
        .call(ApiKey::ApiVersions, 0, &ApiVersionsRequest::default())
        .await;
    assert_eq!(response.error_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_on_a_tls_port_is_closed() {
    let broker = TestBroker::start().await;
    let mut stream = TcpStream::connect(broker.address("client")).await.unwrap();
    stream
        .write_all(&frame(b"\0\x12\0\0\0\0\0\x01\xff\xff"))
        .await
        .unwrap();
    let read = timeout(SOON, stream.read(&mut [0; 16]))
        .await
        .expect("the broker must close");
    assert!(matches!(read, Ok(0) | Err(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_batch_is_refused_and_the_connection_goes_on() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "events").await, 0);
    let mut damaged = batch(b"value".to_vec()).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let request = produce_request("events", damaged.into());
    let response = client.call(ApiKey::Produce, 9, &request).await;
    let partition = &response.responses[0].partition_responses[0];
    assert_eq!(partition.error_code, 2, "CORRUPT_MESSAGE");
    assert!(
        partition
            .error_message
            .as_ref()
            .unwrap()
            .contains("checksum")
    );
    assert_eq!(
        produce(&mut client, "events", b"good".to_vec())
            .await
            .0
            .base_offset,
        0
    );
}
