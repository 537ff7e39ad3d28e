//! What waits to be written on a connection, and the loop that writes it.

use std::{
    collections::VecDeque,
    io::{Error, ErrorKind, IoSlice},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::Notify,
    time::timeout,
};

use crate::frame::{Frame, What};

/// Frames are written together up to this size.
const BATCH: usize = 256 * 1024;
/// Parts of messages that are smaller are copied together, larger ones are written from where they are.
const INLINE: usize = 2 * 1024;
const SLICES: usize = 64;

/// Frames that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Bytes of frames that are not written, also of the batch that is being written.
    bytes: usize,
    /// The writer waits.
    idle: bool,
    closed: bool,
}

/// Why a frame is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// So many bytes wait already.
    Waiting(usize),
    /// The connection ends.
    Closed,
}

impl Outbox {
    /// Queues a frame unless more than `limit` bytes would wait. One frame is always admitted.
    pub(crate) fn push(&self, frame: Frame, limit: usize) -> Result<(), Full> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Full::Closed);
        }
        let bytes = queue.bytes.saturating_add(frame.len());
        if queue.bytes > 0 && bytes > limit {
            return Err(Full::Waiting(queue.bytes));
        }
        queue.bytes = bytes;
        queue.frames.push_back(frame);
        let wake = std::mem::take(&mut queue.idle);
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// What is queued is still written, then the writer ends.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_one();
    }

    /// Takes back what is not being written yet and does not please.
    pub(crate) fn retain(&self, keep: impl Fn(&Frame) -> bool) {
        let mut queue = self.queue.lock();
        let mut removed = 0;
        queue.frames.retain(|frame| {
            let keep = keep(frame);
            if !keep {
                removed += frame.len();
            }
            keep
        });
        queue.bytes -= removed;
    }

    /// Moves what waits into the batch; false when nothing more comes.
    fn drain(&self, batch: &mut Batch) -> bool {
        let mut queue = self.queue.lock();
        queue.bytes = queue.bytes.saturating_sub(batch.taken);
        batch.taken = 0;
        while batch.taken < BATCH {
            let Some(frame) = queue.frames.pop_front() else {
                break;
            };
            batch.taken += frame.len();
            batch.frames.push(frame);
        }
        queue.idle = batch.frames.is_empty();
        !(queue.closed && batch.frames.is_empty())
    }
}

/// Bytes on their way into the stream.
#[derive(Debug, Default)]
struct Batch {
    frames: Vec<Frame>,
    /// Bytes of the frames, which count as waiting until the next batch.
    taken: usize,
    scratch: BytesMut,
    parts: VecDeque<Bytes>,
}

impl Batch {
    fn lay_out(&mut self) -> Result<(), Error> {
        for frame in std::mem::take(&mut self.frames) {
            let Some(header) = frame.header() else {
                return Err(Error::new(ErrorKind::InvalidInput, "a frame is too large"));
            };
            self.scratch.extend_from_slice(&header);
            self.part(frame.message.head);
            for part in frame.message.payload {
                self.part(part);
            }
        }
        self.cut();
        Ok(())
    }

    fn part(&mut self, part: Bytes) {
        if part.len() < INLINE {
            self.scratch.extend_from_slice(&part);
        } else {
            self.cut();
            self.parts.push_back(part);
        }
    }

    fn cut(&mut self) {
        if !self.scratch.is_empty() {
            self.parts.push_back(self.scratch.split().freeze());
        }
    }

    /// Writes everything.
    async fn write<W: AsyncWrite + Unpin>(&mut self, stream: &mut W) -> Result<(), Error> {
        while !self.parts.is_empty() {
            let mut written = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut count = 0;
                for (slice, part) in slices.iter_mut().zip(&self.parts) {
                    *slice = IoSlice::new(part);
                    count += 1;
                }
                stream.write_vectored(&slices[..count]).await?
            };
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            while let Some(part) = self.parts.front_mut() {
                if part.len() > written {
                    part.advance(written);
                    break;
                }
                written -= part.len();
                self.parts.pop_front();
            }
        }
        Ok(())
    }
}

/// Writes what is queued until the outbox is closed and empty; shows life when there is nothing to write.
pub(crate) async fn write_loop<W: AsyncWrite + Unpin>(
    outbox: &Outbox,
    stream: &mut W,
    keep_alive: Duration,
) -> Result<(), Error> {
    let mut batch = Batch::default();
    let mut flushed = true;
    loop {
        let open = outbox.drain(&mut batch);
        if batch.frames.is_empty() {
            if !flushed {
                stream.flush().await?;
                flushed = true;
                continue;
            }
            if !open {
                // A peer that does not take the end of the stream has the connection closed all the same.
                return stream.shutdown().await;
            }
            if timeout(keep_alive, outbox.wake.notified()).await.is_ok() {
                continue;
            }
            batch.frames.push(Frame::bare(What::Ping, 0));
        }
        batch.lay_out()?;
        batch.write(stream).await?;
        flushed = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use palisade_shard::Message;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::frame::Decoder;

    fn frame(correlation: u64, payload: &[usize]) -> Frame {
        Frame {
            what: What::Request,
            channel: 1,
            correlation,
            message: Message {
                kind: 1,
                head: Bytes::from_static(b"head"),
                payload: payload
                    .iter()
                    .map(|length| Bytes::from(vec![7; *length]))
                    .collect(),
            },
        }
    }

    #[test]
    fn the_limit_is_in_bytes_and_one_frame_always_fits() {
        let outbox = Outbox::default();
        outbox.push(frame(1, &[1000]), 10).unwrap();
        let waiting = outbox.bytes();
        assert!(waiting > 1000);
        assert_eq!(
            outbox.push(frame(2, &[1000]), 2000),
            Err(Full::Waiting(waiting))
        );
        outbox.push(frame(2, &[1000]), 3000).unwrap();
        outbox.retain(|frame| frame.correlation == 2);
        assert_eq!(outbox.bytes(), waiting);

        let mut batch = Batch::default();
        assert!(outbox.drain(&mut batch));
        assert_eq!((batch.frames.len(), outbox.bytes()), (1, waiting));
        batch.frames.clear();
        assert!(outbox.drain(&mut batch));
        assert_eq!(outbox.bytes(), 0);
        outbox.close();
        assert_eq!(outbox.push(frame(3, &[]), 10), Err(Full::Closed));
        assert!(!outbox.drain(&mut batch));
    }

    #[tokio::test]
    async fn what_is_queued_before_the_end_is_written_in_order() {
        let outbox = Outbox::default();
        for correlation in 0..100 {
            let payload = [10, INLINE + 5, 3, 40_000];
            outbox
                .push(frame(correlation, &payload), usize::MAX)
                .unwrap();
        }
        outbox.close();
        // The pipe is smaller than a part, so that writes are cut everywhere.
        let (mut far, mut near) = tokio::io::duplex(1500);
        let write = async {
            write_loop(&outbox, &mut near, Duration::from_secs(60))
                .await
                .unwrap();
            drop(near);
        };
        let read = async {
            let mut decoder = Decoder::new(1 << 20);
            let mut seen = 0;
            while far.read_buf(decoder.room()).await.unwrap() > 0 {
                while let Some(frame) = decoder.next().unwrap() {
                    assert_eq!(frame.correlation, seen);
                    assert_eq!(frame.message.len(), 4 + 10 + INLINE + 5 + 3 + 40_000);
                    seen += 1;
                }
            }
            assert!(!decoder.is_inside());
            seen
        };
        assert_eq!(tokio::join!(write, read).1, 100);
    }
}
