//! Answers to Fetch, whose records are not there yet when the answer begins to be sent.
//!
//! The library encodes everything around the records, each structure with an empty array or empty records at its end, in whose place the real ones are put.

use bytes::{BufMut, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, FetchResponse, ResponseHeader},
    protocol::Encodable,
};

use super::{
    CodecError,
    body::{Body, Part, Source},
};

/// First version with compact lengths and tagged fields (KIP-482).
const FLEXIBLE: i16 = 12;

/// Records of one partition.
#[derive(Debug)]
pub(crate) struct Records {
    /// How many bytes come.
    pub(crate) length: usize,
    pub(crate) source: Box<dyn Source>,
}

/// Encodes `response`, all of whose records are empty; `records` has an item for each partition in order, empty ones included.
///
/// # Errors
/// [`CodecError::Encode`] when a field is set that this version has not, or the answer is too large.
pub(crate) fn encode_fetch(
    version: i16,
    correlation_id: i32,
    mut response: FetchResponse,
    records: Vec<Option<Records>>,
) -> Result<Body, CodecError> {
    let failed = |message: String| CodecError::Encode {
        api: ApiKey::Fetch,
        version,
        message,
    };
    let mut writer = Writer {
        out: BytesMut::with_capacity(1024),
        is_flexible: version >= FLEXIBLE,
        version,
    };
    let mut body = Body::default();
    let mut records = records.into_iter();
    writer.out.put_i32(0);
    ResponseHeader::default()
        .with_correlation_id(correlation_id)
        .encode(
            &mut writer.out,
            ApiKey::Fetch.response_header_version(version),
        )
        .map_err(|error| failed(error.to_string()))?;
    let topics = std::mem::take(&mut response.responses);
    writer.open(&response).map_err(failed)?;
    writer.length(topics.len()).map_err(failed)?;
    for mut topic in topics {
        let partitions = std::mem::take(&mut topic.partitions);
        writer.open(&topic).map_err(failed)?;
        writer.length(partitions.len()).map_err(failed)?;
        for partition in partitions {
            writer.open(&partition).map_err(failed)?;
            let (length, source) = match records.next().flatten() {
                Some(Records { length, source }) if length > 0 => (length, Some(source)),
                _ => (0, None),
            };
            writer.length(length).map_err(failed)?;
            if let Some(source) = source {
                body.push(Part::Ready(writer.out.split()));
                body.push(Part::Later(length, source));
            }
            writer.close();
        }
        writer.close();
    }
    writer.close();
    body.push(Part::Ready(writer.out));
    let length = body.len().saturating_sub(4);
    let length = i32::try_from(length).map_err(|_| failed("larger than 2 GiB".to_owned()))?;
    body.set_prefix(length.to_be_bytes());
    Ok(body)
}

struct Writer {
    out: BytesMut,
    is_flexible: bool,
    version: i16,
}

impl Writer {
    /// Encodes a structure that ends with something empty, without that end.
    fn open(&mut self, structure: &impl Encodable) -> Result<(), String> {
        structure
            .encode(&mut self.out, self.version)
            .map_err(|error| error.to_string())?;
        // A length of nothing, and the number of tagged fields.
        let end: &[u8] = match self.is_flexible {
            true => &[1, 0],
            false => &[0; 4],
        };
        if !self.out.ends_with(end) {
            return Err("it does not end with nothing".to_owned());
        }
        self.out.truncate(self.out.len() - end.len());
        Ok(())
    }

    /// The length of an array or of bytes.
    fn length(&mut self, length: usize) -> Result<(), String> {
        let length = i32::try_from(length).map_err(|_| "larger than 2 GiB".to_owned())?;
        if !self.is_flexible {
            self.out.put_i32(length);
            return Ok(());
        }
        // An unsigned varint of one more: nothing is 0 there.
        let mut rest = length.unsigned_abs().saturating_add(1);
        while rest >= 0x80 {
            self.out.put_u8((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.out.put_u8((rest & 0x7f) as u8);
        Ok(())
    }

    /// The end of a structure: no tagged fields.
    fn close(&mut self) {
        if self.is_flexible {
            self.out.put_u8(0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use kafka_protocol::messages::{
        ResponseKind, TopicName,
        fetch_response::{FetchableTopicResponse, PartitionData},
    };
    use uuid::Uuid;

    use super::*;

    #[derive(Debug)]
    struct Given(Vec<Bytes>);

    impl Source for Given {
        fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, String> {
            let part = self.0.pop();
            Ok(part.is_some_and(|part| {
                out.extend_from_slice(&part);
                true
            }))
        }
    }

    fn response(version: i16, sizes: &[Vec<usize>], with: bool) -> FetchResponse {
        let topics = sizes.iter().enumerate().map(|(number, sizes)| {
            let partitions = sizes.iter().enumerate().map(|(index, size)| {
                let records = Bytes::from(vec![7; if with { *size } else { 0 }]);
                let offset = index as i64;
                PartitionData::default()
                    .with_partition_index(i32::try_from(index).unwrap())
                    .with_high_watermark(offset)
                    .with_last_stable_offset(offset)
                    .with_log_start_offset(if version >= 5 { offset } else { -1 })
                    .with_aborted_transactions((index % 2 == 0).then(Vec::new))
                    .with_records(Some(records))
            });
            let topic = FetchableTopicResponse::default().with_partitions(partitions.collect());
            match version >= 13 {
                true => topic.with_topic_id(Uuid::from_u128(number as u128 + 1)),
                false => topic.with_topic(TopicName(format!("topic-{number}").into())),
            }
        });
        FetchResponse::default()
            .with_throttle_time_ms(3)
            .with_responses(topics.collect())
    }

    /// Byte for byte what the library makes when the records are there from the start.
    #[test]
    fn every_version_is_as_the_library_encodes_it() {
        let shapes: [Vec<Vec<usize>>; 5] = [
            vec![],
            vec![vec![]],
            vec![vec![0]],
            vec![vec![1, 0, 127, 128], vec![], vec![0, 300]],
            vec![vec![5], (0..200).collect(), vec![70_000, 0]],
        ];
        for version in 4..=17 {
            for sizes in &shapes {
                let whole = ResponseKind::Fetch(response(version, sizes, true));
                let expected =
                    super::super::encode_response(ApiKey::Fetch, version, 9, &whole).unwrap();
                let records = sizes.iter().flatten().map(|size| {
                    let parts = vec![
                        Bytes::from(vec![7; size / 2]),
                        vec![7; size - size / 2].into(),
                    ];
                    (*size > 0).then(|| Records {
                        length: *size,
                        source: Box::new(Given(parts)),
                    })
                });
                let around = response(version, sizes, false);
                let body = encode_fetch(version, 9, around, records.collect()).unwrap();
                assert_eq!(body.len(), expected.len(), "version {version}");
                let mut sent = Vec::new();
                for part in body.into_parts() {
                    match part {
                        Part::Ready(bytes) => sent.extend_from_slice(&bytes),
                        Part::Later(_, mut source) => while source.next(&mut sent).unwrap() {},
                    }
                }
                assert!(sent == expected, "version {version}");
            }
        }
    }
}
