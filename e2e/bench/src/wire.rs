//! A small blocking client: administration, and the moment a broker takes its first record.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        AlterUserScramCredentialsRequest, CreateTopicsRequest, DeleteTopicsRequest,
        MetadataRequest, MetadataResponse, ProduceRequest, SaslAuthenticateRequest,
        SaslHandshakeRequest, TopicName,
        alter_user_scram_credentials_request::ScramCredentialUpsertion,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        delete_topics_request::DeleteTopicState,
        metadata_request::MetadataRequestTopic,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::{Request, StrBytes},
    records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType},
};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use crate::{frames, pki, scram};

/// Longest wait for one answer; making thousands of partitions takes Kafka that long.
const PATIENCE: Duration = Duration::from_secs(180);
const MECHANISM: &str = "SCRAM-SHA-512";
/// SCRAM-SHA-512 in AlterUserScramCredentials.
const SHA_512: i8 = 2;
pub const ITERATIONS: i32 = 4096;

/// A connection to one broker.
#[derive(Debug)]
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    correlation: i32,
}

/// A topic to make.
#[derive(Clone, Debug)]
pub struct NewTopic {
    pub name: String,
    pub partitions: i32,
    pub replication: i16,
}

impl Client {
    /// Connects to a port of loopback with full TLS; a client certificate in the configuration is the login.
    pub fn connect(port: u16, config: Arc<ClientConfig>) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let connection = ClientConnection::new(config, ServerName::try_from("localhost")?)?;
        let mut stream = StreamOwned::new(connection, socket);
        stream
            .conn
            .complete_io(&mut stream.sock)
            .context("the TLS handshake failed")?;
        Ok(Self {
            stream,
            correlation: 0,
        })
    }

    /// Logs in with SCRAM-SHA-512.
    pub fn login(&mut self, password: &str) -> Result<()> {
        let handshake =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(MECHANISM));
        check(self.call(&handshake, 1)?.error_code, "SaslHandshake")?;
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let server_first = self.authenticate(scram::first(pki::CLIENT, &nonce))?;
        self.authenticate(scram::last(pki::CLIENT, password, &nonce, &server_first)?)?;
        Ok(())
    }

    fn authenticate(&mut self, message: String) -> Result<String> {
        let request =
            SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(message.into_bytes()));
        let answer = self.call(&request, 2)?;
        check(answer.error_code, "SaslAuthenticate")?;
        Ok(String::from_utf8(answer.auth_bytes.to_vec())?)
    }

    /// One request and its answer.
    pub fn call<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response> {
        self.correlation += 1;
        self.stream
            .write_all(&frames::request(request, version, self.correlation)?)?;
        self.stream.flush()?;
        let mut length = [0; 4];
        self.stream
            .read_exact(&mut length)
            .context("the broker gave no answer")?;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        if length > frames::LARGEST {
            bail!("the broker announced an answer of {length} bytes");
        }
        let mut body = Vec::new();
        (&mut self.stream)
            .take(length as u64)
            .read_to_end(&mut body)?;
        if body.len() < length {
            bail!("the broker closed the connection within an answer");
        }
        frames::response::<R>(Bytes::from(body), version)
    }

    /// Gives the benchmark's user a SCRAM-SHA-512 password.
    pub fn make_user(&mut self, password: &str) -> Result<()> {
        let salt = uuid::Uuid::new_v4().as_bytes().to_vec();
        let salted = scram::salted(password, &salt, ITERATIONS.unsigned_abs())?;
        let upsertion = ScramCredentialUpsertion::default()
            .with_name(StrBytes::from_static_str(pki::CLIENT))
            .with_mechanism(SHA_512)
            .with_iterations(ITERATIONS)
            .with_salt(Bytes::from(salt))
            .with_salted_password(Bytes::from(salted.to_vec()));
        let request = AlterUserScramCredentialsRequest::default().with_upsertions(vec![upsertion]);
        self.call(&request, 0)?
            .results
            .iter()
            .try_for_each(|result| check(result.error_code, "AlterUserScramCredentials"))
    }

    pub fn create_topic(&mut self, topic: &NewTopic) -> Result<()> {
        // Copies that a majority holds, as a production topic has it; no effect with one.
        let in_sync = (topic.replication + 1) / 2;
        let config = CreatableTopicConfig::default()
            .with_name(StrBytes::from_static_str("min.insync.replicas"))
            .with_value(Some(StrBytes::from_string(in_sync.to_string())));
        let creatable = CreatableTopic::default()
            .with_name(name(&topic.name))
            .with_num_partitions(topic.partitions)
            .with_replication_factor(topic.replication)
            .with_configs(vec![config]);
        let request = CreateTopicsRequest::default()
            .with_topics(vec![creatable])
            .with_timeout_ms(120_000);
        for result in self.call(&request, 7)?.topics {
            if result.error_code != 0 {
                let said = result.error_message.unwrap_or_default();
                check(result.error_code, &format!("CreateTopics ({said})"))?;
            }
        }
        Ok(())
    }

    pub fn delete_topic(&mut self, topic: &str) -> Result<()> {
        let state = DeleteTopicState::default().with_name(Some(name(topic)));
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![state])
            .with_timeout_ms(60_000);
        self.call(&request, 6)?
            .responses
            .iter()
            .try_for_each(|result| check(result.error_code, "DeleteTopics"))
    }

    /// What the broker knows of this topic and of all brokers.
    pub fn metadata(&mut self, topic: Option<&str>) -> Result<MetadataResponse> {
        let topics = topic
            .map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))))
            .into_iter()
            .collect();
        let request = MetadataRequest::default()
            .with_topics(Some(topics))
            .with_allow_auto_topic_creation(false);
        self.call(&request, 9)
    }

    /// Whether every partition of the topic has a leader and all replicas, as this broker sees it.
    pub fn is_ready(&mut self, topic: &NewTopic) -> Result<()> {
        let metadata = self.metadata(Some(&topic.name))?;
        let found = metadata
            .topics
            .first()
            .context("the broker does not know the topic")?;
        check(found.error_code, "Metadata")?;
        let ready = found.partitions.iter().filter(|partition| {
            partition.error_code == 0
                && partition.leader_id.0 >= 0
                && partition.isr_nodes.len() >= usize::from(topic.replication.unsigned_abs())
        });
        let (ready, wanted) = (ready.count(), topic.partitions);
        if i32::try_from(ready)? != wanted {
            bail!("{ready} of {wanted} partitions are led and in sync");
        }
        Ok(())
    }

    /// Writes one record with acks=all to a partition that this broker must lead.
    pub fn produce(&mut self, topic: &str, partition: i32) -> Result<()> {
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(one_record()?));
        let data = TopicProduceData::default()
            .with_name(name(topic))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![data]);
        let answer = self.call(&request, 9)?;
        let partition = answer
            .responses
            .first()
            .and_then(|topic| topic.partition_responses.first())
            .context("an empty answer to Produce")?;
        check(partition.error_code, "Produce")
    }
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

fn check(code: i16, what: &str) -> Result<()> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => bail!("{what}: {error:?}"),
    }
}

fn one_record() -> Result<Bytes> {
    let record = Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: 0,
        sequence: -1,
        timestamp: 0,
        key: None,
        value: Some(Bytes::from_static(b"first")),
        headers: Default::default(),
    };
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, [&record], &options)?;
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_is_a_batch_of_version_2() {
        let bytes = one_record().unwrap();
        assert_eq!(bytes.get(16), Some(&2));
    }

    #[test]
    fn errors_have_kafkas_names() {
        assert!(check(0, "x").is_ok());
        let error = check(6, "Produce").unwrap_err().to_string();
        assert!(error.contains("NotLeaderOrFollower"), "{error}");
    }
}
