use std::io::{self, BufRead, BufReader, Read};

use super::RecordError;

/// Magic of snappy-java's stream format, which Java clients wrap their blocks in; others send one bare block.
pub(super) const XERIAL_MAGIC: &[u8; 8] = &[0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// Magic, version and compatible version.
const XERIAL_HEADER: usize = 16;
/// A snappy copy element of three bytes makes 64: nothing expands further, so a larger claim is a lie.
const SNAPPY_MAX_RATIO: usize = 22;
/// zstd's largest standard window, which level 22 names in its header. Its pages are only touched as far as there is output.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER: usize = 16 << 10;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Not compressed.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Snappy, bare or in snappy-java's stream format.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard (RFC 8878); KIP-110.
    Zstd,
}

impl Codec {
    pub(super) fn from_id(id: i16) -> Result<Self, RecordError> {
        Ok(match id {
            0 => Self::None,
            1 => Self::Gzip,
            2 => Self::Snappy,
            3 => Self::Lz4,
            4 => Self::Zstd,
            other => return Err(RecordError::UnknownCodec(other)),
        })
    }

    /// The name that `compression.type` uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Runs `walk` over the decompressed records, at most `limit` bytes of them.
    pub(super) fn decompressed<T>(
        self,
        block: &[u8],
        limit: u64,
        walk: impl FnOnce(&mut dyn BufRead) -> Result<T, StreamError>,
    ) -> Result<T, RecordError> {
        let outcome = match self {
            Self::None => walk(&mut { block }),
            Self::Gzip => walk(&mut buffered(
                flate2::bufread::MultiGzDecoder::new(block),
                limit,
            )),
            Self::Snappy if block.starts_with(XERIAL_MAGIC) => {
                walk(&mut Limited::new(XerialReader::new(block), limit))
            }
            Self::Snappy => snappy_block(block, limit)
                .map_err(StreamError::Io)
                .and_then(|records| walk(&mut records.as_slice())),
            Self::Lz4 => lz4_frame(block, limit, walk),
            Self::Zstd => zstd_reader(block)
                .map_err(StreamError::Io)
                .and_then(|reader| walk(&mut buffered(reader, limit))),
        };
        outcome.map_err(|error| match error {
            StreamError::Record(error) => error,
            StreamError::Io(error)
                if error.get_ref().is_some_and(|inner| inner.is::<PastLimit>()) =>
            {
                RecordError::ExpandsTooFar { limit }
            }
            StreamError::Io(error) => RecordError::Decompression {
                codec: self.name(),
                reason: error.to_string(),
            },
        })
    }
}

/// What can go wrong while records are walked: the stream under them, or the records.
pub(super) enum StreamError {
    Io(io::Error),
    Record(RecordError),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<RecordError> for StreamError {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the output limit is reached")]
struct PastLimit;

fn buffered<R: Read>(reader: R, limit: u64) -> Limited<BufReader<R>> {
    Limited::new(BufReader::with_capacity(BUFFER, reader), limit)
}

fn zstd_reader(block: &[u8]) -> io::Result<zstd::stream::read::Decoder<'static, &[u8]>> {
    let mut reader = zstd::stream::read::Decoder::with_buffer(block)?;
    reader.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(reader)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Decompresses one bare snappy block, whose length it states itself: believed only as far as the format can expand.
fn snappy_block(block: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let stated = snap::raw::decompress_len(block).map_err(invalid)?;
    if stated > block.len().saturating_mul(SNAPPY_MAX_RATIO) {
        return Err(invalid(
            "it states a length that its bytes cannot expand to",
        ));
    }
    if stated as u64 > limit {
        return Err(invalid(PastLimit));
    }
    snap::raw::Decoder::new()
        .decompress_vec(block)
        .map_err(invalid)
}

/// Walks what is in one whole LZ4 frame. The decoder takes the end of its input for the end of a frame, and stops at the end of the first of several; clients
/// fail where the mark of the end is missing, and differ in what they make of bytes behind it.
fn lz4_frame<T>(
    block: &[u8],
    limit: u64,
    walk: impl FnOnce(&mut dyn BufRead) -> Result<T, StreamError>,
) -> Result<T, StreamError> {
    let mut input = Input {
        rest: block,
        is_short: false,
    };
    let walked = walk(&mut Limited::new(
        lz4_flex::frame::FrameDecoder::new(&mut input),
        limit,
    ))?;
    match input {
        Input { is_short: true, .. } => Err(invalid("its frame has no end").into()),
        Input { rest: [], .. } => Ok(walked),
        Input { .. } => Err(invalid("bytes follow its frame").into()),
    }
}

/// Knows whether more was asked of it than there is.
struct Input<'a> {
    rest: &'a [u8],
    is_short: bool,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.is_short |= self.rest.is_empty() && !buffer.is_empty();
        self.rest.read(buffer)
    }
}

/// Fails once more than `limit` bytes were produced.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R> Limited<R> {
    fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<R: BufRead> Read for Limited<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Limited<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let ready = self.inner.fill_buf()?;
        if self.left == 0 && !ready.is_empty() {
            return Err(invalid(PastLimit));
        }
        let allowed = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(ready.len());
        Ok(&ready[..allowed])
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count as u64);
        self.inner.consume(count);
    }
}

/// snappy-java's stream: after the header, blocks of `i32 length, bare snappy block`.
struct XerialReader<'a> {
    rest: &'a [u8],
    block: Vec<u8>,
    at: usize,
}

impl<'a> XerialReader<'a> {
    fn new(stream: &'a [u8]) -> Self {
        Self {
            rest: stream.get(XERIAL_HEADER..).unwrap_or_default(),
            block: Vec::new(),
            at: 0,
        }
    }

    fn next_block(&mut self) -> io::Result<()> {
        let (length, rest) = self
            .rest
            .split_first_chunk::<4>()
            .ok_or_else(|| invalid("a block length is cut short"))?;
        let length = usize::try_from(i32::from_be_bytes(*length))
            .map_err(|_| invalid("a block has a negative length"))?;
        let (block, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| invalid("a block is cut short"))?;
        // The whole output is limited by the caller; one block is limited by what its bytes can expand to.
        self.block = snappy_block(block, u64::MAX)?;
        self.at = 0;
        self.rest = rest;
        Ok(())
    }
}

impl Read for XerialReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for XerialReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.block.len() && !self.rest.is_empty() {
            self.next_block()?;
        }
        Ok(self.block.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.block.len());
    }
}
