//! From bytes to requests and from responses to bytes.
//!
//! Decoding is the work of `kafka-protocol`; what is here keeps it safe for bytes from strangers: the versions are checked first,
//! then the lengths in header and body ([`walk`]), and a panic of a decoder becomes an error of that one request.

mod body;
mod fetch;
mod shapes;
pub(crate) mod versions;
mod walk;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, RequestKind, ResponseHeader, ResponseKind},
    protocol::{Decodable, Encodable},
};

pub(crate) use body::{Body, Part, Source};
pub(crate) use fetch::{Records, encode_fetch};
pub use walk::WalkError;

/// Why a frame is not a request that the broker answers; the connection is closed and the message logged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The frame is shorter than a request header.
    #[error("a frame of {0} bytes is too short for a request header")]
    ShortHeader(usize),
    /// Not an API key of Kafka, or one that this broker does not serve.
    #[error("unknown or unsupported api key {0}")]
    UnknownApi(i16),
    /// An API that the broker serves, in a version that it does not.
    #[error("{api:?} version {version} is not supported: this broker speaks {min} to {max}")]
    UnsupportedVersion {
        /// The API.
        api: ApiKey,
        /// The version of the request.
        version: i16,
        /// Lowest version served.
        min: i16,
        /// Highest version served.
        max: i16,
    },
    /// A length in the request is wrong.
    #[error("malformed {api:?} version {version}: {error}")]
    Lengths {
        /// The API.
        api: ApiKey,
        /// The version of the request.
        version: i16,
        /// What is wrong.
        error: WalkError,
    },
    /// The request does not decode.
    #[error("malformed {api:?} version {version}: {message}")]
    Malformed {
        /// The API.
        api: ApiKey,
        /// The version of the request.
        version: i16,
        /// What is wrong.
        message: String,
    },
    /// A response that the version of the request has no room for: a defect of the broker.
    #[error("cannot encode the answer to {api:?} version {version}: {message}")]
    Encode {
        /// The API.
        api: ApiKey,
        /// The version of the request.
        version: i16,
        /// What is wrong.
        message: String,
    },
}

/// One decoded request.
#[derive(Debug)]
pub struct Request {
    /// The API.
    pub api: ApiKey,
    /// Version of request and answer.
    pub version: i16,
    /// Echoed in the answer.
    pub correlation_id: i32,
    /// What the client calls itself; empty when it does not.
    pub client_id: String,
    /// The request proper. Its bytes share the frame's memory.
    pub body: RequestKind,
}

/// What a frame holds.
#[derive(Debug)]
pub enum Frame {
    /// A request to serve.
    Request(Box<Request>),
    /// ApiVersions in a version from the future: Kafka answers it with version 0 and `UNSUPPORTED_VERSION`, so that the client
    /// can ask again.
    FutureApiVersions {
        /// Echoed in the answer.
        correlation_id: i32,
    },
}

/// Decodes one frame (without its length prefix).
///
/// # Errors
/// [`CodecError`]; never panics, and never allocates more than the frame's own size justifies.
pub fn decode_request(mut frame: Bytes) -> Result<Frame, CodecError> {
    let size = frame.len();
    let mut head = frame.get(..8).ok_or(CodecError::ShortHeader(size))?;
    let key = head.get_i16();
    let version = head.get_i16();
    let correlation_id = head.get_i32();
    let api = ApiKey::try_from(key).map_err(|()| CodecError::UnknownApi(key))?;
    let supported = versions::supported(api).ok_or(CodecError::UnknownApi(key))?;
    if !(supported.accept_min..=supported.max).contains(&version) {
        if api == ApiKey::ApiVersions {
            return Ok(Frame::FutureApiVersions { correlation_id });
        }
        return Err(CodecError::UnsupportedVersion {
            api,
            version,
            min: supported.accept_min,
            max: supported.max,
        });
    }
    let malformed = |message: String| CodecError::Malformed {
        api,
        version,
        message,
    };
    let header_version = api.request_header_version(version);
    let shape = shapes::shape(api).ok_or(CodecError::UnknownApi(key))?;
    walk::walk(shape, version, header_version >= 2, &frame).map_err(|error| {
        CodecError::Lengths {
            api,
            version,
            error,
        }
    })?;
    // The tagged fields of the header, which have no meaning, are let go of at once.
    let client_id = guarded(|| RequestHeader::decode(&mut frame, header_version))
        .map_err(malformed)?
        .client_id;
    let body = guarded(|| RequestKind::decode(api, &mut frame, version)).map_err(malformed)?;
    Ok(Frame::Request(Box::new(Request {
        api,
        version,
        correlation_id,
        client_id: client_id.map(|id| id.to_string()).unwrap_or_default(),
        body,
    })))
}

/// Runs a decoder; a panic in it is an error like any other.
fn guarded<T>(decode: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the decoder panicked".to_owned()),
    }
}

/// Encodes an answer with its length prefix.
///
/// # Errors
/// [`CodecError::Encode`] when a field is set that this version has not.
pub(crate) fn encode_response(
    api: ApiKey,
    version: i16,
    correlation_id: i32,
    body: &ResponseKind,
) -> Result<BytesMut, CodecError> {
    let failed = |message: String| CodecError::Encode {
        api,
        version,
        message,
    };
    let mut out = BytesMut::with_capacity(256);
    out.put_i32(0);
    ResponseHeader::default()
        .with_correlation_id(correlation_id)
        .encode(&mut out, api.response_header_version(version))
        .map_err(|error| failed(error.to_string()))?;
    body.encode(&mut out, version)
        .map_err(|error| failed(error.to_string()))?;
    let length =
        i32::try_from(out.len() - 4).map_err(|_| failed("larger than 2 GiB".to_owned()))?;
    if let Some(prefix) = out.first_chunk_mut::<4>() {
        *prefix = length.to_be_bytes();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::{walk::MAX_ELEMENTS, *};

    /// A Metadata request for all topics, of version 12.
    const ALL_TOPICS: &[u8] = b"\0\x01\0\0";

    fn varint(out: &mut BytesMut, mut value: usize) {
        while value >= 0x80 {
            out.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.put_u8(value as u8);
    }

    /// Metadata of version 12 behind a client id and so many tagged fields that nobody knows.
    fn tagged(tags: usize, body: &[u8]) -> Bytes {
        let mut rest = BytesMut::from(&b"\0\x04test"[..]);
        varint(&mut rest, tags);
        for tag in 0..tags {
            varint(&mut rest, tag);
            rest.put_slice(b"\x01x");
        }
        rest.put_slice(body);
        frame(3, 12, &rest)
    }

    fn frame(key: i16, version: i16, rest: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_i16(key);
        out.put_i16(version);
        out.put_i32(7);
        out.extend_from_slice(rest);
        out.freeze()
    }

    #[test]
    fn refusals_name_their_reason() {
        let cases = [
            (Bytes::from_static(b"abc"), "too short"),
            (
                frame(999, 0, b"\xff\xff"),
                "unknown or unsupported api key 999",
            ),
            (
                frame(68, 0, b"\xff\xff"),
                "unknown or unsupported api key 68",
            ),
            (
                frame(0, 2, b"\xff\xff"),
                "Produce version 2 is not supported: this broker speaks 3 to 13",
            ),
            (
                frame(3, 99, b"\xff\xff"),
                "Metadata version 99 is not supported",
            ),
            (
                frame(3, 1, b"\xff\xff\x00\x06\x00\x00"),
                "field `topics` announces 393216 elements",
            ),
            (
                frame(3, 1, b"\xff\xff\x7f\xff\xff\xff"),
                "more than 400000 elements",
            ),
            (frame(3, 1, b"\x7f\xff"), "malformed Metadata version 1"),
        ];
        for (frame, expected) in cases {
            let message = decode_request(frame).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn unknown_tagged_fields_of_a_header_are_ignored_up_to_the_limit() {
        for tags in [0, 3, MAX_ELEMENTS] {
            let Frame::Request(request) = decode_request(tagged(tags, ALL_TOPICS)).unwrap() else {
                panic!("not a request");
            };
            assert_eq!(
                (request.api, request.version, request.correlation_id),
                (ApiKey::Metadata, 12, 7)
            );
            assert_eq!(request.client_id, "test");
            let RequestKind::Metadata(body) = request.body else {
                panic!("not Metadata");
            };
            assert!(body.topics.is_none() && body.allow_auto_topic_creation);
        }
        // One too many in the header, and one too many in header and body together.
        for frame in [
            tagged(MAX_ELEMENTS + 1, ALL_TOPICS),
            tagged(MAX_ELEMENTS, b"\x02"),
        ] {
            assert_eq!(
                decode_request(frame).unwrap_err().to_string(),
                "malformed Metadata version 12: the request has more than 400000 elements"
            );
        }
    }

    #[test]
    fn a_header_that_ends_early_is_refused_by_field() {
        let whole = tagged(2, ALL_TOPICS);
        assert!(decode_request(whole.clone()).is_ok());
        for size in 0..whole.len() {
            assert!(decode_request(whole.slice(..size)).is_err(), "{size}");
        }
        let cases = [
            (9, "field `client_id` needs 2 bytes but only 1 are left"),
            (12, "field `client_id` needs 4 bytes but only 2 are left"),
            (
                14,
                "field `tagged fields` needs 1 bytes but only 0 are left",
            ),
            (15, "field `tag` needs 1 bytes but only 0 are left"),
            (16, "field `tag size` needs 1 bytes but only 0 are left"),
            (17, "field `tagged field` needs 1 bytes but only 0 are left"),
        ];
        for (size, expected) in cases {
            let message = decode_request(whole.slice(..size)).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("malformed Metadata version 12: {expected}")
            );
        }
        // A client id of -2 bytes.
        let message = decode_request(frame(3, 12, b"\xff\xfe\0"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "malformed Metadata version 12: field `client_id` has the negative length -2"
        );
    }

    /// Tagged fields are announced that are not there: the count alone decides.
    #[test]
    fn every_flexible_header_is_limited_those_before_authentication_too() {
        let mut rest = BytesMut::from(&b"\xff\xff"[..]);
        varint(&mut rest, MAX_ELEMENTS + 1);
        let mut limited = Vec::new();
        for api in versions::SUPPORTED {
            for version in api.accept_min..=api.max {
                if api.key.request_header_version(version) < 2 {
                    continue;
                }
                let error = decode_request(frame(api.key as i16, version, &rest)).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!(
                        "malformed {:?} version {version}: the request has more than 400000 elements",
                        api.key
                    )
                );
                limited.push((api.key, version));
            }
        }
        // SaslHandshake has no flexible version.
        let early = [
            ApiKey::ApiVersions,
            ApiKey::SaslHandshake,
            ApiKey::SaslAuthenticate,
        ];
        limited.retain(|(key, _)| early.contains(key));
        assert_eq!(
            limited,
            [
                (ApiKey::ApiVersions, 3),
                (ApiKey::ApiVersions, 4),
                (ApiKey::SaslAuthenticate, 2)
            ]
        );
    }

    #[test]
    fn a_future_api_versions_is_not_an_error() {
        let decoded = decode_request(frame(18, 77, b"")).unwrap();
        assert!(matches!(
            decoded,
            Frame::FutureApiVersions { correlation_id: 7 }
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_decoder(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), key in -1i16..80, version in -1i16..20) {
            drop(decode_request(Bytes::from(bytes.clone())));
            drop(decode_request(frame(key, version, &bytes)));
        }
    }
}
