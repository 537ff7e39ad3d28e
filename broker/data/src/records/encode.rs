//! Compresses the records of a batch again after some were taken out, the way its producer had done.

use std::io::{self, Write};

use super::{Codec, codec::XERIAL_MAGIC};

/// Version and compatible version of snappy-java's stream, after its magic.
const XERIAL_VERSIONS: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// Bytes in one block of snappy-java's stream, its default.
const XERIAL_BLOCK: usize = 32 << 10;

/// Takes plain records and makes the block of a batch.
pub(super) enum Encoder {
    None(Vec<u8>),
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    /// Snappy, which compresses blocks as a whole: one bare one, or many in snappy-java's stream.
    Snappy {
        plain: Vec<u8>,
        stream: Option<Vec<u8>>,
    },
    Lz4(lz4_flex::frame::FrameEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// For the codec of a batch whose records were `block`.
    pub(super) fn like(codec: Codec, block: &[u8]) -> io::Result<Self> {
        Ok(match codec {
            Codec::None => Self::None(Vec::new()),
            Codec::Gzip => Self::Gzip(flate2::write::GzEncoder::new(
                Vec::new(),
                flate2::Compression::default(),
            )),
            Codec::Snappy => Self::Snappy {
                plain: Vec::new(),
                stream: block
                    .starts_with(XERIAL_MAGIC)
                    .then(|| [XERIAL_MAGIC.as_slice(), &XERIAL_VERSIONS].concat()),
            },
            Codec::Lz4 => Self::Lz4(lz4_flex::frame::FrameEncoder::new(Vec::new())),
            Codec::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(
                Vec::new(),
                zstd::DEFAULT_COMPRESSION_LEVEL,
            )?),
        })
    }

    /// The block.
    pub(super) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::None(block) => Ok(block),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Snappy {
                plain,
                stream: None,
            } => compress(&plain),
            Self::Snappy {
                plain,
                stream: Some(mut stream),
            } => {
                if !plain.is_empty() {
                    put_block(&mut stream, &plain)?;
                }
                Ok(stream)
            }
            Self::Lz4(encoder) => encoder.finish().map_err(io::Error::other),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(block) => block.extend_from_slice(bytes),
            Self::Gzip(encoder) => return encoder.write(bytes),
            Self::Lz4(encoder) => return encoder.write(bytes),
            Self::Zstd(encoder) => return encoder.write(bytes),
            Self::Snappy { plain, stream } => {
                plain.extend_from_slice(bytes);
                if let Some(stream) = stream {
                    let whole = plain.len() - plain.len() % XERIAL_BLOCK;
                    for block in plain.get(..whole).unwrap_or_default().chunks(XERIAL_BLOCK) {
                        put_block(stream, block)?;
                    }
                    plain.drain(..whole);
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn compress(plain: &[u8]) -> io::Result<Vec<u8>> {
    snap::raw::Encoder::new()
        .compress_vec(plain)
        .map_err(io::Error::other)
}

fn put_block(stream: &mut Vec<u8>, plain: &[u8]) -> io::Result<()> {
    let block = compress(plain)?;
    let length = i32::try_from(block.len()).map_err(io::Error::other)?;
    stream.extend_from_slice(&length.to_be_bytes());
    stream.extend_from_slice(&block);
    Ok(())
}
