//! The ceiling: a TLS server that acknowledges produce requests and stores nothing.
//!
//! What the generator reaches against it is what librdkafka, TLS and loopback leave for any broker on this machine. It speaks
//! ApiVersions, Metadata and Produce, without a login, and runs in a process of its own as brokers do.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiKey, ApiVersionsResponse, BrokerId, MetadataRequest, MetadataResponse, ProduceRequest,
        ProduceResponse, TopicName,
        api_versions_response::ApiVersion,
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
        produce_response::{PartitionProduceResponse, TopicProduceResponse},
    },
    protocol::{Decodable, StrBytes, decode_request_header_from_buffer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{frames, pki::Pki};

/// What is offered: key, lowest and highest version. Below version 10 of Produce there are names, not ids.
const OFFERED: [(ApiKey, i16, i16); 3] = [
    (ApiKey::Produce, 3, 9),
    (ApiKey::Metadata, 1, 9),
    (ApiKey::ApiVersions, 0, 3),
];
const UNSUPPORTED_VERSION: i16 = 35;

/// Serves on these ports, one per broker that it plays, until it is ended.
pub fn serve(ports: &[u16], tls: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let acceptor = TlsAcceptor::from(Pki::open(tls).server()?);
    let ports: Arc<[u16]> = ports.into();
    runtime.block_on(async {
        let mut listeners = tokio::task::JoinSet::new();
        for &port in ports.iter() {
            let socket = TcpListener::bind(("127.0.0.1", port))
                .await
                .with_context(|| format!("cannot bind port {port}"))?;
            listeners.spawn(accept(socket, acceptor.clone(), Arc::clone(&ports)));
        }
        while listeners.join_next().await.is_some() {}
        Ok(())
    })
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ports: Arc<[u16]>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (acceptor, ports) = (acceptor.clone(), Arc::clone(&ports));
        tokio::spawn(async move {
            // A client that goes away ends its connection; that is no error here.
            let _ = connection(socket, acceptor, &ports).await;
        });
    }
}

async fn connection(socket: TcpStream, acceptor: TlsAcceptor, ports: &[u16]) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = acceptor.accept(socket).await?;
    let mut buffer = BytesMut::with_capacity(2 << 20);
    loop {
        while let Some(frame) = take_frame(&mut buffer)? {
            if let Some(answer) = answer(frame, ports)? {
                stream.write_all(&answer).await?;
                stream.flush().await?;
            }
        }
        buffer.reserve(256 << 10);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// One whole frame without its length, when it is there.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(head) = buffer.first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*head) as usize;
    if length > frames::LARGEST {
        bail!("a frame of {length} bytes");
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// The answer to one request; none to a produce request that wants none.
fn answer(mut frame: Bytes, ports: &[u16]) -> Result<Option<Vec<u8>>> {
    if frame.len() < 8 {
        bail!("a frame without a header");
    }
    // Clients begin with a version of ApiVersions that we may not know: the answer to that is in version 0.
    if let (Some([0, 18]), Some([high, low])) = (frame.get(..2), frame.get(2..4)) {
        let version = i16::from_be_bytes([*high, *low]);
        let correlation = frame
            .get(4..8)
            .and_then(|bytes| bytes.first_chunk().copied());
        let correlation = i32::from_be_bytes(correlation.context("a frame without a header")?);
        let offered = OFFERED
            .iter()
            .map(|(key, min, max)| {
                ApiVersion::default()
                    .with_api_key(*key as i16)
                    .with_min_version(*min)
                    .with_max_version(*max)
            })
            .collect();
        let known = version <= 3;
        let response = ApiVersionsResponse::default()
            .with_api_keys(offered)
            .with_error_code(if known { 0 } else { UNSUPPORTED_VERSION });
        let version = if known { version } else { 0 };
        return frames::answer(&response, version, correlation).map(Some);
    }
    let header = decode_request_header_from_buffer(&mut frame)?;
    let (version, correlation) = (header.request_api_version, header.correlation_id);
    match ApiKey::try_from(header.request_api_key) {
        Ok(ApiKey::Produce) => {
            let request = ProduceRequest::decode(&mut frame, version)?;
            if request.acks == 0 {
                return Ok(None);
            }
            frames::answer(&acknowledge(&request), version, correlation).map(Some)
        }
        Ok(ApiKey::Metadata) => {
            let request = MetadataRequest::decode(&mut frame, version)?;
            frames::answer(&metadata(&request, ports), version, correlation).map(Some)
        }
        _ => bail!("a request that is not offered"),
    }
}

fn acknowledge(request: &ProduceRequest) -> ProduceResponse {
    let responses = request
        .topic_data
        .iter()
        .map(|topic| {
            let partitions = topic
                .partition_data
                .iter()
                .map(|data| PartitionProduceResponse::default().with_index(data.index))
                .collect();
            TopicProduceResponse::default()
                .with_name(topic.name.clone())
                .with_partition_responses(partitions)
        })
        .collect();
    ProduceResponse::default().with_responses(responses)
}

fn metadata(request: &MetadataRequest, ports: &[u16]) -> MetadataResponse {
    let broker = |id: usize| BrokerId(i32::try_from(id).unwrap_or(0));
    let brokers = ports
        .iter()
        .enumerate()
        .map(|(id, port)| {
            MetadataResponseBroker::default()
                .with_node_id(broker(id))
                .with_host(StrBytes::from_static_str("localhost"))
                .with_port(i32::from(*port))
        })
        .collect();
    let topics = request
        .topics
        .iter()
        .flatten()
        .filter_map(|topic| topic.name.clone())
        .map(|name| {
            let partitions = (0..partitions_of(&name))
                .map(|index| {
                    let leader = broker(usize::try_from(index).unwrap_or(0) % ports.len().max(1));
                    MetadataResponsePartition::default()
                        .with_partition_index(index)
                        .with_leader_id(leader)
                        .with_replica_nodes(vec![leader])
                        .with_isr_nodes(vec![leader])
                })
                .collect();
            MetadataResponseTopic::default()
                .with_name(Some(name))
                .with_partitions(partitions)
        })
        .collect();
    MetadataResponse::default()
        .with_brokers(brokers)
        .with_cluster_id(Some(StrBytes::from_static_str("sink")))
        .with_controller_id(broker(0))
        .with_topics(topics)
}

/// Every topic exists, with as many partitions as its name ends in.
fn partitions_of(topic: &TopicName) -> i32 {
    topic
        .rsplit('-')
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(1)
        .clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kafka_protocol::messages::{ApiVersionsRequest, metadata_request::MetadataRequestTopic};

    use super::*;

    fn answered(request: Vec<u8>) -> Bytes {
        let frame = Bytes::from(request).split_off(4);
        Bytes::from(answer(frame, &[7, 8, 9]).unwrap().unwrap()).split_off(4)
    }

    #[test]
    fn a_topic_has_the_partitions_its_name_says_on_all_brokers() {
        let name = TopicName(StrBytes::from_static_str("load-6"));
        let topic = MetadataRequestTopic::default().with_name(Some(name));
        let request = MetadataRequest::default().with_topics(Some(vec![topic]));
        let bytes = answered(frames::request(&request, 9, 1).unwrap());
        let metadata = frames::response::<MetadataRequest>(bytes, 9).unwrap();
        let leaders: Vec<i32> = metadata.topics[0]
            .partitions
            .iter()
            .map(|partition| partition.leader_id.0)
            .collect();
        assert_eq!(leaders, [0, 1, 2, 0, 1, 2]);
        assert_eq!(metadata.brokers[2].port, 9);
    }

    #[test]
    fn a_frame_is_taken_only_when_it_is_whole() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 2, 1][..]);
        assert_eq!(take_frame(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(&[2, 0]);
        assert_eq!(take_frame(&mut buffer).unwrap().unwrap(), [1, 2][..]);
        assert_eq!(buffer.len(), 1);
        assert!(take_frame(&mut BytesMut::from(&[255, 0, 0, 0][..])).is_err());
    }

    #[test]
    fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
        let request = ApiVersionsRequest::default();
        let mut bytes = frames::request(&request, 3, 5).unwrap();
        bytes[7] = 99;
        let response = frames::response::<ApiVersionsRequest>(answered(bytes), 0).unwrap();
        assert_eq!(response.error_code, UNSUPPORTED_VERSION);
    }
}
