//! Builds batches as a producer would. Tests only: a broker never makes records of its own.

#![allow(clippy::unwrap_used)]

use std::io::Write;

use super::{Codec, HEADER_LEN};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestRecord {
    pub(crate) timestamp: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl TestRecord {
    pub(crate) fn new(timestamp: i64, key: &str, value: &str) -> Self {
        Self {
            timestamp,
            key: Some(key.into()),
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct TestBatch {
    pub(crate) codec: i16,
    pub(crate) xerial: bool,
    pub(crate) extra_attributes: i16,
    pub(crate) producer: (i64, i16, i32),
    pub(crate) records: Vec<TestRecord>,
}

impl TestBatch {
    pub(crate) fn new(records: Vec<TestRecord>) -> Self {
        Self {
            codec: 0,
            xerial: false,
            extra_attributes: 0,
            producer: (-1, -1, -1),
            records,
        }
    }

    pub(crate) fn codec(mut self, codec: Codec) -> Self {
        self.codec = match codec {
            Codec::None => 0,
            Codec::Gzip => 1,
            Codec::Snappy => 2,
            Codec::Lz4 => 3,
            Codec::Zstd => 4,
        };
        self
    }

    pub(crate) fn producer(mut self, id: i64, epoch: i16, sequence: i32) -> Self {
        self.producer = (id, epoch, sequence);
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let base = self.records.first().map_or(0, |record| record.timestamp);
        let max = self
            .records
            .iter()
            .map(|record| record.timestamp)
            .max()
            .unwrap_or(-1);
        let mut plain = Vec::new();
        for (delta, record) in self.records.iter().enumerate() {
            let mut body = vec![0];
            varint(&mut body, record.timestamp - base);
            varint(&mut body, delta as i64);
            field(&mut body, record.key.as_deref());
            field(&mut body, record.value.as_deref());
            varint(&mut body, record.headers.len() as i64);
            for (name, value) in &record.headers {
                field(&mut body, Some(name.as_bytes()));
                field(&mut body, value.as_deref());
            }
            varint(&mut plain, body.len() as i64);
            plain.extend_from_slice(&body);
        }
        let block = self.compress(&plain);
        self.raw(base, max, self.records.len() as i32, &block)
    }

    /// A batch around any block, with a matching checksum.
    pub(crate) fn raw(&self, base: i64, max: i64, count: i32, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + block.len());
        out.extend_from_slice(&0i64.to_be_bytes());
        out.extend_from_slice(&((HEADER_LEN - 12 + block.len()) as i32).to_be_bytes());
        out.extend_from_slice(&(-1i32).to_be_bytes());
        out.push(2);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.codec | self.extra_attributes).to_be_bytes());
        out.extend_from_slice(&(count - 1).to_be_bytes());
        out.extend_from_slice(&base.to_be_bytes());
        out.extend_from_slice(&max.to_be_bytes());
        out.extend_from_slice(&self.producer.0.to_be_bytes());
        out.extend_from_slice(&self.producer.1.to_be_bytes());
        out.extend_from_slice(&self.producer.2.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(block);
        fix_checksum(&mut out);
        out
    }

    pub(crate) fn compress(&self, plain: &[u8]) -> Vec<u8> {
        match self.codec {
            1 => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            2 if self.xerial => {
                let mut out = vec![
                    0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1,
                ];
                for chunk in plain.chunks(1 << 15) {
                    let block = snap::raw::Encoder::new().compress_vec(chunk).unwrap();
                    out.extend_from_slice(&(block.len() as i32).to_be_bytes());
                    out.extend_from_slice(&block);
                }
                out
            }
            2 => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
            3 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            4 => zstd::stream::encode_all(plain, 3).unwrap(),
            _ => plain.to_vec(),
        }
    }
}

pub(crate) fn fix_checksum(batch: &mut [u8]) {
    let crc = crc_fast::crc32_iscsi(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

pub(crate) fn varint(out: &mut Vec<u8>, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

fn field(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint(out, -1),
        Some(bytes) => {
            varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}
