//! Checks the lengths in a request before it is decoded.
//!
//! The decoders of `kafka-protocol` reserve room for as many array elements as a length on the wire announces, so twenty hostile
//! bytes could ask for gigabytes, and they keep every tagged field that they do not know, those of the header too. This walk goes
//! through the same bytes first, header and body, allocates nothing, and refuses a request whose lengths are not backed by bytes
//! that are there, or that has more elements than any client sends.

use super::shapes::{Field, Kind};

/// Array elements and tagged fields one request may have in all, its header included.
///
/// An element in memory can take fifty times its bytes on the wire; this bounds a request to some tens of megabytes of them.
pub(super) const MAX_ELEMENTS: usize = 400_000;

/// API key, version and correlation id, with which every header begins.
const FIXED_HEADER: usize = 8;

/// Longest string, as in Kafka's clients and brokers, whatever a length on the wire could say.
const MAX_STRING: usize = i16::MAX as usize;

/// Why a request cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The bytes end inside a field.
    #[error("field `{field}` needs {needed} bytes but only {left} are left")]
    Short {
        /// The field.
        field: &'static str,
        /// Bytes that its length announces.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// A string that is longer than any may be.
    #[error("field `{field}` has a string of more than {MAX_STRING} bytes")]
    LongString {
        /// The field.
        field: &'static str,
    },
    /// A length below -1.
    #[error("field `{field}` has the negative length {length}")]
    Negative {
        /// The field.
        field: &'static str,
        /// The length.
        length: i32,
    },
    /// An array announces more elements than bytes are left.
    #[error("field `{field}` announces {elements} elements but only {left} bytes are left")]
    Elements {
        /// The field.
        field: &'static str,
        /// Elements announced.
        elements: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// More elements than a request may have.
    #[error("the request has more than {MAX_ELEMENTS} elements")]
    TooMany,
}

/// Walks one request, header and body, and returns the number of bytes that belong to it.
pub(super) fn walk(
    shape: &'static Kind,
    version: i16,
    flexible: bool,
    frame: &[u8],
) -> Result<usize, WalkError> {
    let mut walker = Walker {
        rest: frame,
        version,
        flexible,
        elements: 0,
    };
    walker.header()?;
    walker.kind("request", shape)?;
    Ok(frame.len() - walker.rest.len())
}

struct Walker<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

impl<'a> Walker<'a> {
    /// A flexible header (version 2) differs by its tagged fields alone: the client id has a length of two bytes in it as well.
    fn header(&mut self) -> Result<(), WalkError> {
        self.take("header", FIXED_HEADER)?;
        let length = self.short_length("client_id")?;
        self.take("client_id", length.unwrap_or(0))?;
        if self.flexible {
            // No tagged field of a header has a meaning yet.
            self.tagged(&[])?;
        }
        Ok(())
    }

    fn kind(&mut self, field: &'static str, kind: &'static Kind) -> Result<(), WalkError> {
        match kind {
            Kind::Fixed(size) => self.take(field, *size).map(drop),
            Kind::Str => {
                let length = if self.flexible {
                    let length = self.compact_length(field)?;
                    if length.is_some_and(|length| length > MAX_STRING) {
                        return Err(WalkError::LongString { field });
                    }
                    length
                } else {
                    self.short_length(field)?
                };
                self.take(field, length.unwrap_or(0)).map(drop)
            }
            Kind::Blob => {
                let length = self.array_length(field)?;
                self.take(field, length.unwrap_or(0)).map(drop)
            }
            Kind::Array(element) => {
                let elements = self.array_length(field)?.unwrap_or(0);
                self.count(elements)?;
                let needed = match element {
                    Kind::Fixed(size) => elements.saturating_mul(*size),
                    _ => elements,
                };
                if needed > self.rest.len() {
                    return Err(WalkError::Elements {
                        field,
                        elements,
                        left: self.rest.len(),
                    });
                }
                for _ in 0..elements {
                    self.kind(field, element)?;
                }
                Ok(())
            }
            Kind::Optional(inner) => {
                let [present] = self.array(field)?;
                if present == 1 {
                    self.kind(field, inner)
                } else {
                    Ok(())
                }
            }
            Kind::Struct(fields, tags) => {
                for inner in *fields {
                    if (inner.since..=inner.until).contains(&self.version) {
                        self.kind(inner.name, &inner.kind)?;
                    }
                }
                if self.flexible {
                    self.tagged(tags)?;
                }
                Ok(())
            }
        }
    }

    fn tagged(&mut self, known: &'static [(u32, Field)]) -> Result<(), WalkError> {
        let count = self.varint("tagged fields")? as usize;
        self.count(count)?;
        for _ in 0..count {
            let tag = self.varint("tag")?;
            let size = self.varint("tag size")? as usize;
            match known.iter().find(|(number, _)| *number == tag) {
                // The decoder reads a tag that it knows by its type, whatever the size says.
                Some((_, field)) if field.since <= self.version => {
                    self.kind(field.name, &field.kind)?;
                }
                _ => drop(self.take("tagged field", size)?),
            }
        }
        Ok(())
    }

    fn count(&mut self, elements: usize) -> Result<(), WalkError> {
        self.elements = self.elements.saturating_add(elements);
        if self.elements > MAX_ELEMENTS {
            return Err(WalkError::TooMany);
        }
        Ok(())
    }

    fn array_length(&mut self, field: &'static str) -> Result<Option<usize>, WalkError> {
        if self.flexible {
            return self.compact_length(field);
        }
        let length = i32::from_be_bytes(self.array(field)?);
        Self::length(field, length)
    }

    fn short_length(&mut self, field: &'static str) -> Result<Option<usize>, WalkError> {
        let length = i16::from_be_bytes(self.array(field)?);
        Self::length(field, i32::from(length))
    }

    fn length(field: &'static str, length: i32) -> Result<Option<usize>, WalkError> {
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) if length == -1 => Ok(None),
            Err(_) => Err(WalkError::Negative { field, length }),
        }
    }

    fn compact_length(&mut self, field: &'static str) -> Result<Option<usize>, WalkError> {
        Ok((self.varint(field)? as usize).checked_sub(1))
    }

    fn varint(&mut self, field: &'static str) -> Result<u32, WalkError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array(field)?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        Ok(value)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WalkError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(field, N)?);
        Ok(bytes)
    }

    fn take(&mut self, field: &'static str, size: usize) -> Result<&'a [u8], WalkError> {
        let Some((head, rest)) = self.rest.split_at_checked(size) else {
            return Err(WalkError::Short {
                field,
                needed: size,
                left: self.rest.len(),
            });
        };
        self.rest = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use bytes::Bytes;
    use kafka_protocol::{
        messages::{ApiKey, RequestHeader, RequestKind},
        protocol::Decodable,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::codec::{shapes::shape, versions};

    fn supported() -> impl Strategy<Value = (ApiKey, i16)> {
        let all: Vec<_> = versions::SUPPORTED
            .iter()
            .flat_map(|api| (api.accept_min..=api.max).map(|version| (api.key, version)))
            .collect();
        proptest::sample::select(all)
    }

    /// Bytes that often look like lengths, so that random input gets deep into a request.
    fn plausible() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            6 => Just(0u8), 4 => Just(1u8), 3 => Just(2u8), 1 => Just(3u8), 1 => Just(0xffu8), 1 => any::<u8>()
        ];
        proptest::collection::vec(byte, 0..200)
    }

    /// A body behind a header that has neither a client id nor tagged fields.
    fn framed(flexible: bool, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; FIXED_HEADER];
        frame.extend_from_slice(&[0xff, 0xff]);
        if flexible {
            frame.push(0);
        }
        frame.extend_from_slice(body);
        frame
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6000))]

        #[test]
        fn what_the_walk_accepts_the_decoder_consumes_to_the_same_byte((api, version) in supported(), body in plausible()) {
            let flexible = api.request_header_version(version) >= 2;
            let frame = framed(flexible, &body);
            let walked = walk(shape(api).unwrap(), version, flexible, &frame);
            if let Ok(size) = walked {
                let mut bytes = Bytes::from(body);
                if RequestKind::decode(api, &mut bytes, version).is_ok() {
                    prop_assert_eq!(frame.len() - bytes.len(), size, "{:?} v{}", api, version);
                }
            } else if body.iter().all(|byte| *byte < 0x80) && (flexible || body.len() < 4) {
                // Lengths are small here, so decoding without the walk is safe: it must fail as well.
                let mut bytes = Bytes::from(body);
                prop_assert!(RequestKind::decode(api, &mut bytes, version).is_err(), "{:?} v{}: {:?}", api, version, walked);
            }
        }

        #[test]
        fn a_header_is_walked_as_the_decoder_reads_it(
            flexible in any::<bool>(),
            client_id in prop_oneof![Just(vec![0xff_u8, 0xff]), Just(vec![0, 1, b'a']), Just(Vec::<u8>::new())],
            rest in plausible(),
        ) {
            let mut frame = vec![0_u8; FIXED_HEADER];
            frame.extend_from_slice(&client_id);
            frame.extend_from_slice(&rest);
            let mut walker = Walker { rest: &frame, version: 0, flexible, elements: 0 };
            let walked = walker.header();
            let left = walker.rest.len();
            // So few bytes are decoded safely, whatever they announce.
            let mut bytes = Bytes::from(frame);
            let decoded = RequestHeader::decode(&mut bytes, if flexible { 2 } else { 1 });
            if walked.is_err() {
                prop_assert!(decoded.is_err(), "{:?}", walked);
            } else if decoded.is_ok() {
                prop_assert_eq!(bytes.len(), left);
            }
        }
    }

    #[test]
    fn every_supported_request_has_a_shape() {
        for api in versions::SUPPORTED {
            assert!(shape(api.key).is_some(), "{:?}", api.key);
        }
    }

    #[test]
    fn a_length_that_no_bytes_back_is_refused_by_name() {
        let refused = |version, flexible, body: &[u8]| {
            let frame = framed(flexible, body);
            walk(shape(ApiKey::Metadata).unwrap(), version, flexible, &frame).unwrap_err()
        };
        let body = 2_000_000_000_i32.to_be_bytes();
        let error = refused(1, false, &body);
        assert_eq!(error, WalkError::TooMany);
        let body = 300_000_i32.to_be_bytes();
        let error = refused(1, false, &body);
        assert_eq!(
            error.to_string(),
            "field `topics` announces 300000 elements but only 0 bytes are left"
        );
        // One topic, whose name announces 40,000 bytes.
        let body = [2, 0xc1, 0xb8, 0x02];
        let error = refused(9, true, &body);
        assert_eq!(
            error.to_string(),
            "field `name` has a string of more than 32767 bytes"
        );
        let body = (-7_i32).to_be_bytes();
        let error = refused(1, false, &body);
        assert_eq!(
            error.to_string(),
            "field `topics` has the negative length -7"
        );
    }
}
