//! Bounds what a decoder may allocate.
//!
//! The generated decoders reserve room for as many elements as a length on the wire announces. In the flexible versions of the protocol (KIP-482),
//! the only ones this client speaks, every such length is an unsigned varint, and a valid one never exceeds the bytes that remain, because each
//! element takes at least one. [`Guarded`] sits below the decoder, reads each varint along with it and fails the decoding on the first that lies.

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::buf::ByteBuf;

/// A buffer that refuses varints larger than what is left in it.
pub(super) struct Guarded {
    bytes: Bytes,
    value: u64,
    shift: u32,
}

impl Guarded {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            value: 0,
            shift: 0,
        }
    }

    fn track(&mut self, byte: u8) -> Result<(), TryGetError> {
        self.value |= u64::from(byte & 0x7f)
            .checked_shl(self.shift)
            .unwrap_or(u64::MAX);
        self.shift += 7;
        if byte & 0x80 != 0 && self.shift < 35 {
            return Ok(());
        }
        let announced = std::mem::take(&mut self.value).saturating_sub(1);
        self.shift = 0;
        let available = self.bytes.remaining();
        match usize::try_from(announced) {
            Ok(announced) if announced <= available => Ok(()),
            _ => Err(TryGetError {
                requested: usize::try_from(announced).unwrap_or(usize::MAX),
                available,
            }),
        }
    }
}

impl Buf for Guarded {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.bytes.try_get_u8()?;
        self.track(byte)?;
        Ok(byte)
    }
}

impl ByteBuf for Guarded {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.bytes.split_to(size)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{
            DescribeAclsResponse,
            describe_acls_response::{AclDescription, DescribeAclsResource},
        },
        protocol::{Decodable, Encodable, StrBytes},
    };

    use super::*;

    fn encoded() -> Bytes {
        let answer = DescribeAclsResponse::default().with_resources(vec![
            DescribeAclsResource::default()
                .with_resource_name(StrBytes::from_static_str("orders"))
                .with_acls(vec![
                    AclDescription::default()
                        .with_principal(StrBytes::from_static_str("User:alice")),
                    AclDescription::default().with_principal(StrBytes::from_static_str("User:bob")),
                ]),
        ]);
        let mut buffer = BytesMut::new();
        answer.encode(&mut buffer, 3).unwrap();
        buffer.freeze()
    }

    #[test]
    fn a_valid_answer_decodes() {
        let answer = DescribeAclsResponse::decode(&mut Guarded::new(encoded()), 3).unwrap();
        assert_eq!(answer.resources[0].acls.len(), 2);
    }

    #[test]
    fn an_announced_length_beyond_the_frame_is_refused_before_it_is_reserved() {
        // Throttle time, error code, no message, then an array of four billion resources.
        let bytes =
            Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3]);
        assert!(DescribeAclsResponse::decode(&mut Guarded::new(bytes), 3).is_err());
    }

    #[test]
    fn no_truncation_and_no_flipped_byte_panics() {
        let good = encoded();
        for end in 0..good.len() {
            let _ = DescribeAclsResponse::decode(&mut Guarded::new(good.slice(..end)), 3);
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut bad = good.to_vec();
                bad[end] = value;
                let _ = DescribeAclsResponse::decode(&mut Guarded::new(bad.into()), 3);
            }
        }
    }
}
