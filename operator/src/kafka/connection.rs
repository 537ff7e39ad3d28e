//! One connection to one broker: frames, versions, deadlines.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiVersionsRequest, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{KafkaError, error::check, guard::Guarded};

const CLIENT_ID: &str = "palisade-operator";
/// Largest answer that is read. A describe of 100,000 ACLs takes about 8 MiB.
const MAX_FRAME: usize = 32 << 20;
/// First versions with flexible encoding use request header 2; [`Guarded`] needs them.
const FLEXIBLE_HEADER: i16 = 2;

/// Where a broker listens; the host is also the name its certificate must carry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// DNS name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

pub(super) struct Connection {
    endpoint: Endpoint,
    stream: TlsStream<TcpStream>,
    correlation: i32,
    versions: HashMap<i16, (i16, i16)>,
    limit: Duration,
}

impl Connection {
    /// Connects, shakes hands and asks for the versions.
    pub(super) async fn open(
        endpoint: &Endpoint,
        tls: Arc<ClientConfig>,
        limit: Duration,
    ) -> Result<Self, KafkaError> {
        let failed = |source: io::Error| KafkaError::Connect {
            address: endpoint.to_string(),
            source,
        };
        let name = ServerName::try_from(endpoint.host.clone()).map_err(|_| {
            failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a DNS name",
            ))
        })?;
        let connect = async {
            let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(tls).connect(name, tcp).await
        };
        let stream = timeout(limit, connect)
            .await
            .map_err(|_| {
                failed(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no handshake within {} s", limit.as_secs()),
                ))
            })?
            .map_err(failed)?;
        let mut connection = Self {
            endpoint: endpoint.clone(),
            stream,
            correlation: 0,
            versions: HashMap::new(),
            limit,
        };
        connection.learn_versions().await?;
        Ok(connection)
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    async fn learn_versions(&mut self) -> Result<(), KafkaError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(CLIENT_ID))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let answer = self.exchange("ApiVersions", &request, 3).await?;
        check("ApiVersions", answer.error_code, None)?;
        self.versions = answer
            .api_keys
            .iter()
            .map(|range| (range.api_key, (range.min_version, range.max_version)))
            .collect();
        Ok(())
    }

    /// Sends one request in the newest version both sides speak and waits for its answer.
    pub(super) async fn call<R: Request>(
        &mut self,
        api: &'static str,
        request: &R,
    ) -> Result<R::Response, KafkaError> {
        let version = agree(
            self.versions.get(&R::KEY).copied(),
            (R::VERSIONS.min, R::VERSIONS.max),
            |version| R::header_version(version) >= FLEXIBLE_HEADER,
        )
        .ok_or(KafkaError::Unsupported { api })?;
        self.exchange(api, request, version).await
    }

    async fn exchange<R: Request>(
        &mut self,
        api: &'static str,
        request: &R,
        version: i16,
    ) -> Result<R::Response, KafkaError> {
        self.correlation = self.correlation.wrapping_add(1) & i32::MAX;
        let frame = encode(api, request, version, self.correlation)?;
        let address = self.endpoint.to_string();
        let limit = self.limit;
        let answer = timeout(limit, async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await?;
            read_frame(&mut self.stream).await
        })
        .await
        .map_err(|_| KafkaError::Timeout {
            address: address.clone(),
            api,
            limit,
        })?
        .map_err(|source| KafkaError::Lost { address, source })?;
        decode::<R>(api, version, self.correlation, answer)
    }
}

/// The newest version within both ranges for which `usable` holds.
fn agree(
    theirs: Option<(i16, i16)>,
    ours: (i16, i16),
    usable: impl Fn(i16) -> bool,
) -> Option<i16> {
    let (min, max) = theirs?;
    (min.max(ours.0)..=max.min(ours.1))
        .rev()
        .find(|version| usable(*version))
}

fn encode<R: Request>(
    api: &'static str,
    request: &R,
    version: i16,
    correlation: i32,
) -> Result<Bytes, KafkaError> {
    let failed = |error: &dyn std::fmt::Display| KafkaError::Encode {
        api,
        reason: error.to_string(),
    };
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)));
    let mut body = BytesMut::new();
    header
        .encode(&mut body, R::header_version(version))
        .map_err(|error| failed(&error))?;
    request
        .encode(&mut body, version)
        .map_err(|error| failed(&error))?;
    let length = i32::try_from(body.len()).map_err(|error| failed(&error))?;
    let mut frame = BytesMut::with_capacity(body.len() + 4);
    frame.put_i32(length);
    frame.extend_from_slice(&body);
    Ok(frame.freeze())
}

async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Bytes> {
    let announced = stream.read_i32().await?;
    let length = usize::try_from(announced)
        .ok()
        .filter(|length| *length <= MAX_FRAME)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {announced} bytes was announced"),
            )
        })?;
    // Grows as bytes arrive, so an announced length alone reserves nothing.
    let mut frame = Vec::new();
    stream.take(length as u64).read_to_end(&mut frame).await?;
    if frame.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame.into())
}

fn decode<R: Request>(
    api: &'static str,
    version: i16,
    correlation: i32,
    frame: Bytes,
) -> Result<R::Response, KafkaError> {
    let malformed = |reason: String| KafkaError::Malformed { api, reason };
    let mut buffer = Guarded::new(frame);
    let header = ResponseHeader::decode(
        &mut buffer,
        <R::Response as HeaderVersion>::header_version(version),
    )
    .map_err(|error| malformed(error.to_string()))?;
    if header.correlation_id != correlation {
        return Err(malformed(format!(
            "expected correlation id {correlation}, got {}",
            header.correlation_id
        )));
    }
    R::Response::decode(&mut buffer, version).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kafka_protocol::messages::{ApiVersionsResponse, MetadataRequest};

    use super::*;

    #[test]
    fn the_newest_usable_common_version_is_chosen() {
        for (theirs, ours, first_usable, expected) in [
            (Some((0, 13)), (0, 13), 9, Some(13)),
            (Some((0, 10)), (0, 13), 9, Some(10)),
            (Some((0, 8)), (0, 13), 9, None),
            (Some((14, 20)), (0, 13), 9, None),
            (None, (0, 13), 9, None),
        ] {
            assert_eq!(
                agree(theirs, ours, |version| version >= first_usable),
                expected,
                "{theirs:?} {ours:?}"
            );
        }
    }

    #[test]
    fn a_request_carries_its_length_key_version_and_correlation() {
        let frame = encode("Metadata", &MetadataRequest::default(), 12, 7).unwrap();
        assert_eq!(
            i32::from_be_bytes(frame[..4].try_into().unwrap()) as usize,
            frame.len() - 4
        );
        assert_eq!(frame[4..12], [0, 3, 0, 12, 0, 0, 0, 7]);
    }

    #[test]
    fn an_answer_to_another_request_is_refused() {
        let mut body = BytesMut::new();
        body.put_i32(8);
        ApiVersionsResponse::default().encode(&mut body, 3).unwrap();
        let error = decode::<ApiVersionsRequest>("ApiVersions", 3, 7, body.freeze())
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the answer to ApiVersions is malformed: expected correlation id 7, got 8"
        );
    }

    #[tokio::test]
    async fn a_negative_or_huge_frame_is_refused_and_a_short_one_is_an_early_end() {
        let read = |bytes: &'static [u8]| async move {
            read_frame(&mut &bytes[..]).await.unwrap_err().to_string()
        };
        assert_eq!(
            read(&[0xff, 0xff, 0xff, 0xff]).await,
            "a frame of -1 bytes was announced"
        );
        assert_eq!(
            read(&[0x7f, 0xff, 0xff, 0xff]).await,
            "a frame of 2147483647 bytes was announced"
        );
        assert!(read(&[0, 0, 0, 9, 1]).await.contains("end of file"));
    }
}
