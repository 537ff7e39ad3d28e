//! Length-prefixed frames from a stream.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
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
            let units = u32::try_from(wanted.div_ceil(UNIT)).unwrap_or(u32::MAX);
            // Fails only when the semaphore is closed, which nobody does.
            self.share = Arc::clone(&self.budget.0)
                .acquire_many_owned(units)
                .await
                .ok();
        }
        // Room grows with what has arrived, not with what the prefix promises.
        let missing = wanted.saturating_sub(self.buffer.len());
        self.buffer
            .reserve(missing.min(self.buffer.len().max(READ_CHUNK)));
        let read = stream.read_buf(&mut self.buffer).await?;
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
        self.buffer.advance(4);
        let bytes = self.buffer.split_to(length).freeze();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
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
}
