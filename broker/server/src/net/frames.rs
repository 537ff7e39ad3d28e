//! Length-prefixed frames from a stream.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::FutureExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Largest frame of a client that has not authenticated yet: so small that it needs no share of what all connections have together.
pub(crate) const MAX_UNAUTHENTICATED: usize = FREE_BYTES - 4;
/// Largest frame after that; Kafka's `socket.request.max.bytes`.
pub(crate) const MAX_AUTHENTICATED: usize = 100 * 1024 * 1024;
/// Memory that the large frames of all connections may take together.
const BUDGET_BYTES: usize = 256 * 1024 * 1024;
/// Frames up to this size do not count against the budget.
const FREE_BYTES: usize = 64 * 1024;
const UNIT: usize = 1024;
const READ_CHUNK: usize = 16 * 1024;

/// Why a stream gives no further frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The peer closed the connection in the middle of a frame.
    #[error("the client closed the connection inside a frame ({have} of {want} bytes)")]
    Truncated { have: usize, want: usize },
    /// The length prefix is negative or above the limit.
    #[error("frame of {0} bytes is over the limit of {1}")]
    Size(i64, usize),
    /// The first bytes are a TLS handshake, on a port without TLS.
    #[error(
        "the client speaks TLS, but this listener has none: use security.protocol=SASL_PLAINTEXT"
    )]
    TlsOnPlaintext,
    /// The first bytes are HTTP.
    #[error("the client speaks HTTP, but this is a Kafka port")]
    Http,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Memory for large frames, shared by all connections.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_BYTES / UNIT)))
    }
}

/// A frame and its share of the budget.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) share: Option<OwnedSemaphorePermit>,
}

/// Cuts a stream into frames.
#[derive(Debug)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
    budget: Budget,
    share: Option<OwnedSemaphorePermit>,
    max: usize,
}

impl FrameReader {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            buffer: BytesMut::new(),
            budget,
            share: None,
            max: MAX_UNAUTHENTICATED,
        }
    }

    /// Admits large frames from now on.
    pub(crate) fn trust(&mut self) {
        self.max = MAX_AUTHENTICATED;
    }

    /// Whether a part of a frame has arrived.
    pub(crate) fn is_inside(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// One read from the stream; `true` at its end. Cancelling it loses nothing.
    pub(crate) async fn fill<R: AsyncRead + Unpin>(
        &mut self,
        stream: &mut R,
    ) -> Result<bool, FrameError> {
        let wanted = self.announced()?.map_or(4, |length| length + 4);
        if wanted > FREE_BYTES && self.share.is_none() {
            // Fails only when the semaphore is closed, which nobody does.
            self.share = Arc::clone(&self.budget.0)
                .acquire_many_owned(units(wanted))
                .await
                .ok();
        }
        // Room grows with what has arrived, not with what the prefix promises.
        let missing = wanted.saturating_sub(self.buffer.len());
        if missing == 0 {
            return Ok(false);
        }
        self.buffer
            .reserve(missing.min(self.buffer.len().max(READ_CHUNK)));
        let read = match wanted > FREE_BYTES {
            // Not what follows it: that has no share of the budget.
            true => {
                let mut room = (&mut self.buffer).limit(missing);
                stream.read_buf(&mut room).await?
            }
            false => stream.read_buf(&mut self.buffer).await?,
        };
        if read > 0 {
            return Ok(false);
        }
        if self.buffer.is_empty() {
            return Ok(true);
        }
        Err(FrameError::Truncated {
            have: self.buffer.len(),
            want: wanted,
        })
    }

    /// The next frame, if it is complete.
    pub(crate) fn take(&mut self) -> Result<Option<Received>, FrameError> {
        let Some(length) = self.announced()? else {
            return Ok(None);
        };
        if self.buffer.len() < length + 4 {
            return Ok(None);
        }
        if length + 4 > FREE_BYTES && self.share.is_none() {
            // It was read whole, behind a small one. `fill` waits for what is not to be had at once.
            let budget = Arc::clone(&self.budget.0);
            let Ok(share) = budget.try_acquire_many_owned(units(length + 4)) else {
                return Ok(None);
            };
            self.share = Some(share);
        }
        self.buffer.advance(4);
        let bytes = self.buffer.split_to(length).freeze();
        if length + 4 > FREE_BYTES {
            // The rest of the buffer is the same piece of memory, which would outlive the frame and its share of the budget.
            self.buffer = BytesMut::from(self.buffer.as_ref());
        }
        Ok(Some(Received {
            bytes,
            share: self.share.take(),
        }))
    }

    fn announced(&self) -> Result<Option<usize>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = i32::from_be_bytes(*prefix);
        match usize::try_from(length) {
            Ok(length) if length <= self.max => Ok(Some(length)),
            _ if matches!(prefix, [0x16, 3, 0..=4, _]) => Err(FrameError::TlsOnPlaintext),
            _ if matches!(prefix, b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI") => {
                Err(FrameError::Http)
            }
            _ => Err(FrameError::Size(i64::from(length), self.max)),
        }
    }
}

/// A frame's share of the budget.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// What the fuzzer calls: cuts `bytes` as they would come in pieces of `step`, from a client that has authenticated or not, and says how many frames there
/// were.
///
/// # Errors
/// What the connection would be closed for, or what is wrong with the reader.
#[doc(hidden)]
pub fn cut_frames(bytes: &[u8], step: usize, trusted: bool) -> Result<usize, String> {
    let mut frames = 0;
    cut(bytes, step, trusted, |_| frames += 1)?;
    Ok(frames)
}

/// Hands each frame of `bytes` to `each`. The reader is filled and emptied as by a connection.
fn cut(
    bytes: &[u8],
    step: usize,
    trusted: bool,
    mut each: impl FnMut(Received),
) -> Result<(), String> {
    let mut reader = FrameReader::new(Budget::default());
    if trusted {
        reader.trust();
    }
    let mut fed: usize = 0;
    for mut piece in bytes.chunks(step.max(1)) {
        fed += piece.len();
        while !piece.is_empty() {
            match reader.fill(&mut piece).now_or_never() {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
                // The bytes are there, and nobody else has a share of the budget.
                None => return Err("the reader waits for nothing".to_owned()),
            }
            // What is missing takes at most as much as is there, or a chunk; and the buffer may double when that does not fit.
            let held = reader.buffer.capacity();
            if held > 4 * fed + 2 * READ_CHUNK {
                return Err(format!("{held} bytes are held for {fed}"));
            }
            while let Some(frame) = reader.take().map_err(|error| error.to_string())? {
                if frame.bytes.len() > reader.max {
                    return Err(format!(
                        "a frame of {} bytes got through",
                        frame.bytes.len()
                    ));
                }
                if frame.bytes.len() > FREE_BYTES && frame.share.is_none() {
                    return Err("a large frame has no share of the budget".to_owned());
                }
                each(frame);
            }
            let (held, inside) = (reader.buffer.capacity(), reader.buffer.len());
            if held > 4 * inside + 4 * FREE_BYTES {
                return Err(format!("{held} bytes are held for {inside} of a frame"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    async fn frames(mut bytes: &[u8]) -> (Vec<Bytes>, Option<FrameError>) {
        let mut reader = FrameReader::new(Budget::default());
        let mut frames = Vec::new();
        loop {
            match reader.take() {
                Ok(Some(frame)) => frames.push(frame.bytes),
                Ok(None) => match reader.fill(&mut bytes).await {
                    Ok(false) => {}
                    Ok(true) => return (frames, None),
                    Err(error) => return (frames, Some(error)),
                },
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn frames_come_out_whole_and_in_order() {
        let (frames, error) = frames(b"\0\0\0\x03abc\0\0\0\0\0\0\0\x01d").await;
        assert!(error.is_none());
        assert_eq!(frames, ["abc", "", "d"].map(Bytes::from));
    }

    #[tokio::test]
    async fn a_large_frame_takes_its_memory_along() {
        let large = 2 * FREE_BYTES + UNIT;
        let mut stream = [
            &(large as u32).to_be_bytes()[..],
            &vec![7; large],
            b"\0\0\0\x02ab",
        ]
        .concat();
        stream.extend_from_slice(b"\0\0");
        let mut stream = &stream[..];
        let mut reader = FrameReader::new(Budget::default());
        reader.trust();
        let mut frames = Vec::new();
        while !reader.fill(&mut stream).await.unwrap() {
            while let Some(frame) = reader.take().unwrap() {
                frames.push(frame);
                assert!(
                    reader.buffer.capacity() <= FREE_BYTES,
                    "{}",
                    reader.buffer.capacity()
                );
            }
            if stream.is_empty() {
                break;
            }
        }
        let sizes: Vec<_> = frames
            .iter()
            .map(|frame| (frame.bytes.len(), frame.share.is_some()))
            .collect();
        assert_eq!(sizes, [(large, true), (2, false)]);
        assert!(reader.is_inside(), "of the last frame, two bytes are there");
    }

    #[tokio::test]
    async fn what_is_not_a_frame_is_named() {
        let cases: [(&[u8], &str); 6] = [
            (b"\0\0\0\x05abc", "inside a frame (7 of 9 bytes)"),
            (
                b"\xff\xff\xff\xffabc",
                "frame of -1 bytes is over the limit",
            ),
            (
                b"\x7f\xff\xff\xffabc",
                "frame of 2147483647 bytes is over the limit of 65532",
            ),
            (b"\x16\x03\x01\x02\0\x01", "speaks TLS"),
            (b"GET / HTTP/1.1\r\n", "speaks HTTP"),
            (b"\0\0", "inside a frame"),
        ];
        for (bytes, expected) in cases {
            let message = frames(bytes).await.1.unwrap().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[tokio::test]
    async fn a_promise_of_a_large_frame_takes_no_memory() {
        let mut reader = FrameReader::new(Budget::default());
        reader.trust();
        let mut bytes: &[u8] = b"\x06\0\0\0abc";
        reader.fill(&mut bytes).await.unwrap();
        assert!(reader.take().unwrap().is_none());
        assert!(reader.buffer.capacity() < 2 * READ_CHUNK);
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let sizes = [
            0,
            1,
            5_000,
            READ_CHUNK,
            MAX_UNAUTHENTICATED,
            MAX_UNAUTHENTICATED + 1,
            200_000,
            4,
        ];
        let sent: Vec<Vec<u8>> = sizes
            .iter()
            .map(|size| (0..*size).map(|at| (at * 7) as u8).collect())
            .collect();
        let mut bytes = Vec::new();
        for frame in &sent {
            bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(frame);
        }
        for step in [1, 2, 3, 5, 1000, READ_CHUNK, 70_000, bytes.len()] {
            assert_eq!(cut_frames(&bytes, step, true), Ok(sent.len()), "{step}");
            // Kept, so that the reader cannot use their memory again.
            let mut kept = Vec::new();
            cut(&bytes, step, true, |frame| kept.push(frame.bytes)).unwrap();
            assert!(kept == sent, "{step}");
        }
        let error = cut_frames(&bytes, 1000, false).unwrap_err();
        assert_eq!(error, "frame of 65533 bytes is over the limit of 65532");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_hold_no_more_memory_than_has_come(
            parts in prop::collection::vec(
                (
                    prop_oneof![0u32..40, 0u32..70_000, any::<u32>()],
                    prop::collection::vec(any::<u8>(), 0..40),
                ),
                0..8,
            ),
            step in 1usize..50,
            trusted in any::<bool>(),
        ) {
            let bytes: Vec<u8> = parts
                .iter()
                .flat_map(|(length, body)| [&length.to_be_bytes()[..], body.as_slice()].concat())
                .collect();
            for bytes in [bytes.as_slice(), bytes.get(2..).unwrap_or_default()] {
                if let Err(error) = cut_frames(bytes, step, trusted) {
                    prop_assert!(error.contains("the limit") || error.contains("the client"), "{}", error);
                }
            }
        }
    }
}
