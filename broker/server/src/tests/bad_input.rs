//! What strangers may send: it ends their connection, and nobody else's.

use std::time::Duration;

use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, MetadataRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::*;

const SOON: Duration = Duration::from_secs(5);

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
