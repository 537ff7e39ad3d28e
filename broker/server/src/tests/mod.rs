//! The broker in this process, and a client of a few lines that says exactly what the tests want it to say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod bad_input;
mod client;
mod groups;
mod keys;
mod lifecycle;
mod ports;
mod topics;

use std::{net::SocketAddr, path::Path};

use client::Client;
use kafka_protocol::{
    messages::{
        ApiKey, CreateTopicsRequest, ProduceRequest, TopicName,
        create_topics_request::CreatableTopic,
        produce_request::{PartitionProduceData, TopicProduceData},
        produce_response::PartitionProduceResponse,
    },
    records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType},
};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::{
    assembly::{Plan, Running, start},
    dev::{DevOptions, prepare},
};

/// A development broker in a directory of its own.
struct TestBroker {
    dir: TempDir,
    running: Running,
    password: Zeroizing<String>,
}

impl TestBroker {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (running, password) = boot(dir.path()).await;
        Self {
            dir,
            running,
            password,
        }
    }

    /// Stops it as SIGTERM does and starts it again over the same directory.
    async fn restart(self) -> Self {
        self.running.stop().await;
        let (running, password) = boot(self.dir.path()).await;
        Self {
            dir: self.dir,
            running,
            password,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn address(&self, listener: &str) -> SocketAddr {
        self.running.addresses[listener]
    }

    async fn connect(&self) -> Client {
        Client::connect(self.address("client"), &self.path("ca.crt"), None).await
    }

    async fn admin(&self) -> Client {
        let mut client = self.connect().await;
        client.plain("admin", &self.password).await.unwrap();
        client
    }

    async fn user(&self, name: &str, password: &str) -> Client {
        let mut client = self.connect().await;
        client.plain(name, password).await.unwrap();
        client
    }
}

async fn boot(dir: &Path) -> (Running, Zeroizing<String>) {
    let options = DevOptions {
        data_dir: dir.to_owned(),
        port: 0,
        admin_port: Some(0),
    };
    let prepared = prepare(&options).unwrap();
    let password = prepared.admin.password.clone();
    let plan = Plan {
        file: prepared.config_file,
        hostname: "dev-0".to_owned(),
        rack: None,
        user: Some(prepared.admin),
    };
    (start(&plan).await.unwrap(), password)
}

async fn create_topic(client: &mut Client, name: &'static str) -> i16 {
    let topic = CreatableTopic::default()
        .with_name(TopicName(name.into()))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]);
    let response = client.call(ApiKey::CreateTopics, 7, &request).await;
    response.topics[0].error_code
}

/// A batch of one record.
fn batch(value: Vec<u8>) -> bytes::Bytes {
    let record = Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: 0,
        sequence: -1,
        timestamp: crate::api::offsets::now_ms(),
        key: Some("key".into()),
        value: Some(value.into()),
        headers: Default::default(),
    };
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut bytes = bytes::BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, [&record], &options).unwrap();
    bytes.freeze()
}

fn produce_request(topic: &'static str, records: bytes::Bytes) -> ProduceRequest {
    let partition = PartitionProduceData::default().with_records(Some(records));
    let topic = TopicProduceData::default()
        .with_name(TopicName(topic.into()))
        .with_partition_data(vec![partition]);
    ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(60_000)
        .with_topic_data(vec![topic])
}

/// Produces one record; the partition's answer and the throttle time.
async fn produce(
    client: &mut Client,
    topic: &'static str,
    value: Vec<u8>,
) -> (PartitionProduceResponse, i32) {
    let request = produce_request(topic, batch(value));
    let response = client.call(ApiKey::Produce, 9, &request).await;
    let partition = response.responses[0].partition_responses[0].clone();
    (partition, response.throttle_time_ms)
}
