//! Requests and responses of the Kafka protocol as bytes.

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};

/// Larger answers are a fault: they would be read into memory.
pub const LARGEST: usize = 256 << 20;

/// A request with its length in front.
pub fn request<R: Request>(request: &R, version: i16, correlation: i32) -> Result<Vec<u8>> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_static_str("bench")));
    let mut body = BytesMut::new();
    header.encode(&mut body, R::header_version(version))?;
    request.encode(&mut body, version)?;
    framed(&body)
}

/// The response to a request, without its length.
pub fn response<R: Request>(mut bytes: Bytes, version: i16) -> Result<R::Response> {
    ResponseHeader::decode(&mut bytes, R::Response::header_version(version))?;
    R::Response::decode(&mut bytes, version)
}

/// A response with its length in front.
pub fn answer<R: Encodable + HeaderVersion>(
    response: &R,
    version: i16,
    correlation: i32,
) -> Result<Vec<u8>> {
    let header = ResponseHeader::default().with_correlation_id(correlation);
    let mut body = BytesMut::new();
    header.encode(&mut body, R::header_version(version))?;
    response.encode(&mut body, version)?;
    framed(&body)
}

fn framed(body: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(body.len()).context("a frame is too long")?;
    Ok([&length.to_be_bytes(), body].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kafka_protocol::{
        messages::{SaslHandshakeRequest, SaslHandshakeResponse},
        protocol::decode_request_header_from_buffer,
    };

    use super::*;

    #[test]
    fn a_request_and_its_answer_survive_the_wire() {
        let sent = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str("X"));
        let bytes = request(&sent, 1, 7).unwrap();
        let mut body = Bytes::from(bytes).split_off(4);
        let header = decode_request_header_from_buffer(&mut body).unwrap();
        assert_eq!((header.correlation_id, header.request_api_key), (7, 17));
        assert_eq!(SaslHandshakeRequest::decode(&mut body, 1).unwrap(), sent);

        let answered = SaslHandshakeResponse::default().with_error_code(33);
        let bytes = Bytes::from(answer(&answered, 1, 7).unwrap()).split_off(4);
        let read = response::<SaslHandshakeRequest>(bytes, 1).unwrap();
        assert_eq!(read.error_code, 33);
    }
}
