//! Certificates that change, restarts, and what the admin port says.

use std::time::{Duration, Instant};

use kafka_protocol::messages::{
    ApiKey, FetchRequest, GroupId, JoinGroupRequest, MetadataRequest, SyncGroupRequest,
    fetch_request::{FetchPartition, FetchTopic},
    join_group_request::JoinGroupRequestProtocol,
    sync_group_request::SyncGroupRequestAssignment,
};
use tokio::time::sleep;

use super::{keys::wait_for, *};

/// Fetches partition 0 from offset 0, waiting up to `wait`.
async fn fetch(client: &mut Client, topic: &'static str, offset: i64, wait: i32) -> bytes::Bytes {
    let partition = FetchPartition::default()
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default()
        .with_topic(TopicName(topic.into()))
        .with_partitions(vec![partition]);
    let request = FetchRequest::default()
        .with_max_wait_ms(wait)
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
async fn what_was_acknowledged_is_there_after_a_restart() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "events").await, 0);
    assert_eq!(
        produce(&mut client, "events", b"precious".to_vec())
            .await
            .0
            .base_offset,
        0
    );
    let broker = broker.restart().await;
    let mut client = broker.admin().await;
    assert!(contains(
        &fetch(&mut client, "events", 0, 1000).await,
        b"precious"
    ));
    assert_eq!(
        produce(&mut client, "events", b"more".to_vec())
            .await
            .0
            .base_offset,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_waits_for_a_record_and_no_longer() {
    let broker = TestBroker::start().await;
    let mut producer = broker.admin().await;
    assert_eq!(create_topic(&mut producer, "events").await, 0);
    let mut consumer = broker.admin().await;
    let began = Instant::now();
    let waiting = tokio::spawn(async move { fetch(&mut consumer, "events", 0, 60_000).await });
    sleep(Duration::from_millis(300)).await;
    produce(&mut producer, "events", b"news".to_vec()).await;
    assert!(contains(&waiting.await.unwrap(), b"news"));
    // Long before its time is up.
    assert!(began.elapsed() < Duration::from_secs(45));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_produce_requests_keep_their_order() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    assert_eq!(create_topic(&mut client, "events").await, 0);
    let mut all = Vec::new();
    for number in 0..20_u8 {
        let request = produce_request("events", batch(vec![number]));
        all.extend_from_slice(&client.encode(ApiKey::Produce, 9, &request));
    }
    client.write(&all).await;
    for number in 0..20_i64 {
        let answer = client.frame().await.unwrap();
        let mut body = answer.slice(5..);
        let response = <kafka_protocol::messages::ProduceResponse as kafka_protocol::protocol::Decodable>::decode(&mut body, 9).unwrap();
        assert_eq!(
            response.responses[0].partition_responses[0].base_offset,
            number
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_used_without_dropping_connections() {
    let broker = TestBroker::start().await;
    let mut old = broker.admin().await;
    let shown = old.server_certificate();
    std::fs::remove_file(broker.path("tls/server.crt")).unwrap();
    crate::dev::certificates::renew(broker.dir.path()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while broker.connect().await.server_certificate() == shown {
        assert!(Instant::now() < deadline, "the new certificate is not used");
        sleep(Duration::from_millis(100)).await;
    }
    let metadata = old
        .call(ApiKey::Metadata, 12, &MetadataRequest::default())
        .await;
    assert_eq!(metadata.brokers.len(), 1, "the old connection goes on");
    wait_for(&broker, "it is ready and well", |status| {
        status.ready && status.problems.is_empty()
    })
    .await;
    let status = broker.running.state().status();
    let leaf = status
        .certificates
        .iter()
        .find(|leaf| leaf.listener == "client")
        .unwrap();
    let new = broker.connect().await.server_certificate();
    assert_eq!(leaf.fingerprint, crate::tls::sha256_hex(&new));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_one_joins_syncs_and_is_fenced_by_its_generation() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    let protocol = JoinGroupRequestProtocol::default().with_name("range".into());
    let join = JoinGroupRequest::default()
        .with_group_id(GroupId("g".into()))
        .with_session_timeout_ms(60_000)
        .with_rebalance_timeout_ms(60_000)
        .with_protocol_type("consumer".into())
        .with_protocols(vec![protocol]);
    let told = client.call(ApiKey::JoinGroup, 9, &join).await;
    assert_eq!(told.error_code, 79, "MEMBER_ID_REQUIRED");
    let join = join.with_member_id(told.member_id);
    let joined = client.call(ApiKey::JoinGroup, 9, &join).await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    assert_eq!(joined.leader, joined.member_id);
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment("mine".into());
    let sync = SyncGroupRequest::default()
        .with_group_id(join.group_id.clone())
        .with_generation_id(1)
        .with_member_id(joined.member_id.clone())
        .with_protocol_type(Some("consumer".into()))
        .with_protocol_name(Some("range".into()))
        .with_assignments(vec![assignment]);
    let synced = client.call(ApiKey::SyncGroup, 5, &sync).await;
    assert_eq!(
        (synced.error_code, &synced.assignment[..]),
        (0, &b"mine"[..])
    );
    let stale = sync.with_generation_id(7);
    assert_eq!(
        client.call(ApiKey::SyncGroup, 5, &stale).await.error_code,
        22,
        "ILLEGAL_GENERATION"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn super_users_change_with_the_file_and_nothing_else_does() {
    let broker = TestBroker::start().await;
    let file = broker.path("broker.toml");
    let config =
        palisade_config::BrokerConfig::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let wait_for =
        async |wanted: &str, met: &dyn Fn(&palisade_config::status::BrokerStatus) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while !met(&broker.running.state().status()) {
                assert!(Instant::now() < deadline, "{wanted}");
                sleep(Duration::from_millis(100)).await;
            }
        };
    let mut next = config.clone();
    next.version = "2".to_owned();
    next.super_users.push("User:second".to_owned());
    std::fs::write(&file, next.render().unwrap()).unwrap();
    wait_for("version 2 in effect", &|status| {
        status.config_version == "2" && status.problems.is_empty()
    })
    .await;
    let users = broker.running.state().broker.super_users();
    assert!(users.contains(&palisade_security::Principal::user("second").unwrap()));

    next.version = "3".to_owned();
    next.storage.data_shards += 1;
    std::fs::write(&file, next.render().unwrap()).unwrap();
    wait_for("a problem is reported", &|status| {
        status
            .problems
            .iter()
            .any(|problem| problem.contains("needs a restart"))
    })
    .await;
    assert_eq!(broker.running.state().status().config_version, "2");

    std::fs::write(&file, "nonsense").unwrap();
    wait_for("a problem is reported", &|status| {
        status
            .problems
            .iter()
            .any(|problem| problem.contains("the old one stays in effect"))
    })
    .await;
}
