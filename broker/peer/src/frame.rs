//! Frames: how messages look on a connection.
//!
//! ```text
//! u32  length of all that follows
//! u32  channel
//! u64  correlation: what an answer repeats of its request
//! u8   what it is ([`What`])
//! u8   kind, the message's own
//! u32  length of the head
//!      head, then payload up to the length
//! ```
//!
//! All integers are big endian. A length is compared with the limit before anything is done about it, and memory grows with what has arrived: the payload of a large
//! message is a list of the buffers it arrived in, so that it is neither allocated ahead nor copied.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use palisade_shard::Message;

/// Bytes before the head, with the length.
pub(crate) const HEADER: usize = 22;
/// Bytes before the head that the length counts.
const COUNTED: usize = HEADER - 4;
/// Buffers are made in this size.
pub(crate) const CHUNK: usize = 128 * 1024;
/// With less room than this a buffer is full: a TLS record does not fit.
pub(crate) const MIN_ROOM: usize = 16 * 1024;
/// What is smaller gets memory of its own instead of a part of the buffer: whoever keeps it would keep the whole buffer.
const OWN: usize = CHUNK / 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Wants an answer.
    Request,
    /// Is one.
    Answer,
    /// The request is not answered; `kind` says why.
    Refusal,
    /// Shows life; with a correlation it wants a [`What::Pong`].
    Ping,
    /// All frames before the ping were handed over.
    Pong,
    /// Who is there: the first frame of each side.
    Hello,
    /// The hello is not accepted; the head says why. The connection ends.
    Reject,
}

impl What {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Answer,
        Self::Refusal,
        Self::Ping,
        Self::Pong,
        Self::Hello,
        Self::Reject,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// One frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) what: What,
    pub(crate) channel: u32,
    pub(crate) correlation: u64,
    pub(crate) message: Message,
}

impl Frame {
    /// A frame without a message.
    pub(crate) fn bare(what: What, correlation: u64) -> Self {
        Self {
            what,
            channel: 0,
            correlation,
            message: Message::default(),
        }
    }

    /// Bytes on the connection.
    pub(crate) fn len(&self) -> usize {
        self.message.len().saturating_add(HEADER)
    }

    /// The header; `None` when the frame is too large for one.
    pub(crate) fn header(&self) -> Option<[u8; HEADER]> {
        let length = u32::try_from(self.message.len().checked_add(COUNTED)?).ok()?;
        let head = u32::try_from(self.message.head.len()).ok()?;
        let mut header = [0; HEADER];
        let mut out = header.as_mut_slice();
        out.put_u32(length);
        out.put_u32(self.channel);
        out.put_u64(self.correlation);
        out.put_u8(self.what as u8);
        out.put_u8(self.message.kind);
        out.put_u32(head);
        Some(header)
    }
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes is over the limit of {1}")]
    Large(usize, usize),
    #[error("a frame of {0} bytes is shorter than its header")]
    Short(usize),
    #[error("a head of {0} bytes does not fit its frame of {1}")]
    Head(usize, usize),
    #[error("frame type {0} is unknown")]
    What(u8),
}

/// A header that has arrived.
#[derive(Debug)]
struct Header {
    what: What,
    channel: u32,
    correlation: u64,
    kind: u8,
    head: usize,
    payload: usize,
}

impl Header {
    fn parse(bytes: &[u8; HEADER], max: usize) -> Result<Self, FrameError> {
        let mut bytes = bytes.as_slice();
        let length = usize::try_from(bytes.get_u32()).unwrap_or(usize::MAX);
        if length > max {
            return Err(FrameError::Large(length, max));
        }
        let body = length
            .checked_sub(COUNTED)
            .ok_or(FrameError::Short(length))?;
        let channel = bytes.get_u32();
        let correlation = bytes.get_u64();
        let what = bytes.get_u8();
        let what = What::of(what).ok_or(FrameError::What(what))?;
        let kind = bytes.get_u8();
        let head = usize::try_from(bytes.get_u32()).unwrap_or(usize::MAX);
        let payload = body
            .checked_sub(head)
            .ok_or(FrameError::Head(head, length))?;
        Ok(Self {
            what,
            channel,
            correlation,
            kind,
            head,
            payload,
        })
    }
}

/// A frame whose payload is arriving.
#[derive(Debug)]
struct Partial {
    frame: Frame,
    missing: usize,
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    partial: Option<Partial>,
    max: usize,
}

impl Decoder {
    /// Takes frames of up to `max` bytes (the length field).
    pub(crate) fn new(max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            partial: None,
            max,
        }
    }

    /// Another limit from now on.
    pub(crate) fn limit(&mut self, max: usize) {
        self.max = max;
    }

    /// Where the next bytes go; there is room for [`MIN_ROOM`] at least.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        if self.is_full() {
            // A buffer that is whole again is used again; else a new one is made, of the usual size or, for a large head, twice what has arrived.
            self.buffer.reserve(CHUNK.max(self.buffer.len()));
        }
        &mut self.buffer
    }

    /// Whether frames should be taken before more is read.
    pub(crate) fn is_full(&self) -> bool {
        self.buffer.capacity() - self.buffer.len() < MIN_ROOM
    }

    /// Whether a part of a frame has arrived.
    pub(crate) fn is_inside(&self) -> bool {
        self.partial.is_some() || !self.buffer.is_empty()
    }

    /// The next frame, if it is complete.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => match self.begin()? {
                Some(partial) => partial,
                None => return Ok(None),
            },
        };
        if partial.missing > 0 {
            let have = partial.missing.min(self.buffer.len());
            let payload = &mut partial.frame.message.payload;
            if have == partial.missing && payload.is_empty() && have <= OWN {
                payload.push(Bytes::copy_from_slice(&self.buffer[..have]));
                self.buffer.advance(have);
                partial.missing = 0;
            } else if have == partial.missing || (have > 0 && self.is_full()) {
                payload.push(self.buffer.split_to(have).freeze());
                partial.missing -= have;
            }
        }
        if partial.missing > 0 {
            self.partial = Some(partial);
            return Ok(None);
        }
        Ok(Some(partial.frame))
    }

    /// Header and head.
    fn begin(&mut self) -> Result<Option<Partial>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let header = Header::parse(header, self.max)?;
        if self.buffer.len() - HEADER < header.head {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let head = if header.head <= OWN {
            let head = Bytes::copy_from_slice(&self.buffer[..header.head]);
            self.buffer.advance(header.head);
            head
        } else {
            self.buffer.split_to(header.head).freeze()
        };
        Ok(Some(Partial {
            frame: Frame {
                what: header.what,
                channel: header.channel,
                correlation: header.correlation,
                message: Message {
                    kind: header.kind,
                    head,
                    payload: Vec::new(),
                },
            },
            missing: header.payload,
        }))
    }
}

/// What the fuzzer calls: decodes `bytes` as they would come in pieces of `step`, and says how many frames there were.
///
/// # Errors
/// What the connection would be closed for.
#[doc(hidden)]
pub fn decode_all(bytes: &[u8], step: usize, max: usize) -> Result<usize, String> {
    let mut decoder = Decoder::new(max);
    let mut frames = 0;
    for piece in bytes.chunks(step.max(1)) {
        let mut piece = piece;
        while !piece.is_empty() {
            let room = decoder.room();
            let fits = piece.len().min(room.capacity() - room.len());
            room.extend_from_slice(&piece[..fits]);
            piece = &piece[fits..];
            while let Some(frame) = decoder.next().map_err(|error| error.to_string())? {
                frames += 1;
                if frame.len() > max.saturating_add(4) {
                    return Err(format!("a frame of {} bytes got through", frame.len()));
                }
            }
        }
        let held = decoder.buffer.capacity();
        if held > (bytes.len() + CHUNK) * 2 {
            return Err(format!("{held} bytes are held for {}", bytes.len()));
        }
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut out = frame.header().unwrap().to_vec();
        out.extend_from_slice(&frame.message.head);
        for part in &frame.message.payload {
            out.extend_from_slice(part);
        }
        out
    }

    fn frame(what: What, head: usize, payload: usize) -> Frame {
        Frame {
            what,
            channel: 7,
            correlation: 1 << 40,
            message: Message {
                kind: 3,
                head: (0..head).map(|at| at as u8).collect(),
                payload: vec![(0..payload).map(|at| (at * 7) as u8).collect()],
            },
        }
    }

    fn decode(bytes: &[u8], steps: &[usize], max: usize) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::new(max);
        let mut frames = Vec::new();
        let mut rest = bytes;
        let mut steps = steps.iter().copied().cycle();
        while !rest.is_empty() {
            let room = decoder.room();
            let step = steps.next().unwrap().clamp(1, rest.len());
            let step = step.min(room.capacity() - room.len());
            room.extend_from_slice(&rest[..step]);
            rest = &rest[step..];
            while let Some(frame) = decoder.next()? {
                frames.push(frame);
            }
        }
        assert!(!decoder.is_inside());
        Ok(frames)
    }

    fn joined(parts: &[Bytes]) -> Vec<u8> {
        parts.concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            sizes in prop::collection::vec((0usize..40_000, prop_oneof![0usize..100, 10_000usize..20_000, 100_000usize..400_000]), 1..6),
            steps in prop::collection::vec(1usize..70_000, 1..8),
        ) {
            let sent: Vec<Frame> = sizes
                .iter()
                .zip(What::ALL)
                .map(|((head, payload), what)| frame(what, *head, *payload))
                .collect();
            let bytes: Vec<u8> = sent.iter().flat_map(encoded).collect();
            let got = decode(&bytes, &steps, 1 << 20).unwrap();
            prop_assert_eq!(got.len(), sent.len());
            for (got, sent) in got.iter().zip(&sent) {
                prop_assert_eq!((got.what, got.channel, got.correlation, got.message.kind), (sent.what, sent.channel, sent.correlation, sent.message.kind));
                prop_assert_eq!(&got.message.head, &sent.message.head);
                prop_assert_eq!(joined(&got.message.payload), joined(&sent.message.payload));
                prop_assert!(got.message.payload.len() <= 6, "{} pieces", got.message.payload.len());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), step in 1usize..50) {
            if let Err(error) = decode_all(&bytes, step, 1000) {
                prop_assert!(!error.contains("got through") && !error.contains("are held"), "{}", error);
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let good = encoded(&frame(What::Request, 5, 5));
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            decode(&bad, &[1000], 100).unwrap_err()
        };
        assert_eq!(with(0, &101u32.to_be_bytes()), FrameError::Large(101, 100));
        assert_eq!(with(0, &17u32.to_be_bytes()), FrameError::Short(17));
        assert_eq!(with(16, &[7]), FrameError::What(7));
        assert_eq!(with(18, &11u32.to_be_bytes()), FrameError::Head(11, 28));
        assert_eq!(
            with(0, &u32::MAX.to_be_bytes()),
            FrameError::Large(u32::MAX as usize, 100)
        );
    }

    #[test]
    fn a_promised_length_takes_no_memory() {
        let mut decoder = Decoder::new(1 << 30);
        // One promises a payload, the other a head.
        for (length, head) in [(1u32 << 29, 4u32), (1 << 29, 1 << 28)] {
            let mut header = frame(What::Request, 0, 0).header().unwrap();
            header[..4].copy_from_slice(&length.to_be_bytes());
            header[18..].copy_from_slice(&head.to_be_bytes());
            decoder = Decoder::new(1 << 30);
            decoder.room().extend_from_slice(&header);
            decoder.room().extend_from_slice(b"abcdef");
            assert!(decoder.next().unwrap().is_none());
            assert!(decoder.room().capacity() <= CHUNK);
        }
        assert!(decoder.is_inside());
    }

    #[test]
    fn small_messages_do_not_hold_the_buffer() {
        let mut decoder = Decoder::new(1 << 20);
        let first = encoded(&frame(What::Request, 100, OWN));
        decoder.room().extend_from_slice(&first);
        let kept = decoder.next().unwrap().unwrap();
        // Nothing else refers to the buffer, so its memory is used again.
        assert!(decoder.buffer.try_reclaim(CHUNK));
        drop(kept);
    }
}
