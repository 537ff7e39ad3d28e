//! Frames from a stream.

use std::{
    future::{Future, poll_fn},
    io::{Error, ErrorKind},
    pin::pin,
    task::Poll,
};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::frame::{Decoder, Frame, FrameError};

/// Sensible capacity of a [`tokio::io::BufReader`] between TCP and TLS: rustls reads 4 KiB at a time, which would be a system call each.
pub const READ_AHEAD: usize = 64 * 1024;

/// Why a stream gives no further frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("it closed the connection")]
    End,
    #[error("it closed the connection inside a frame")]
    Truncated,
    #[error("what it sends is malformed: {0}")]
    Malformed(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] Error),
}

/// Reads frames.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    decoder: Decoder,
    /// What came behind the bytes that were read last.
    failed: Option<Error>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, max: usize) -> Self {
        Self {
            stream,
            decoder: Decoder::new(max),
            failed: None,
        }
    }

    /// Another limit for the frames that are not taken yet.
    pub(crate) fn limit(&mut self, max: usize) {
        self.decoder.limit(max);
    }

    /// Reads what is there, up to a full buffer; waits when nothing is. Cancelling it loses nothing.
    pub(crate) async fn fill(&mut self) -> Result<(), StreamError> {
        let Self {
            stream,
            decoder,
            failed,
        } = self;
        if let Some(error) = failed.take() {
            return Err(error.into());
        }
        let mut got = 0usize;
        let read = poll_fn(|cx| {
            loop {
                let poll = pin!(stream.read_buf(decoder.room())).poll(cx);
                match poll {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(read)) => {
                        got += read;
                        if decoder.is_full() {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if got > 0 => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        match read.await {
            Ok(()) if got > 0 => Ok(()),
            Ok(()) if decoder.is_inside() => Err(StreamError::Truncated),
            Ok(()) => Err(StreamError::End),
            Err(error) if got > 0 => {
                *failed = Some(error);
                Ok(())
            }
            // TLS without a goodbye, as from a process that was killed.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                if decoder.is_inside() {
                    Err(StreamError::Truncated)
                } else {
                    Err(StreamError::End)
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The next frame, if it has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        Ok(self.decoder.next()?)
    }

    /// Waits for the next frame.
    pub(crate) async fn frame(&mut self) -> Result<Frame, StreamError> {
        loop {
            if let Some(frame) = self.next()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }
}
