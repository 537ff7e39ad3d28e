//! Encoded answers, of which parts may be made while they are sent.

use bytes::BytesMut;

/// An encoded answer with its length prefix.
#[derive(Debug, Default)]
pub(crate) struct Body(Vec<Part>);

/// A part of an answer.
#[derive(Debug)]
pub(crate) enum Part {
    /// Bytes that are there.
    Ready(BytesMut),
    /// Exactly so many bytes that are made when it is their turn.
    Later(usize, Box<dyn Source>),
}

/// What makes bytes of an answer.
pub(crate) trait Source: Send + std::fmt::Debug {
    /// Appends some bytes; `false` when there are none left.
    ///
    /// # Errors
    /// Why there are no more although there should be: the connection has to be closed then.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, String>;
}

impl Body {
    /// Adds what comes next.
    pub(crate) fn push(&mut self, part: Part) {
        self.0.push(part);
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> usize {
        let lengths = self.0.iter().map(|part| match part {
            Part::Ready(bytes) => bytes.len(),
            Part::Later(length, _) => *length,
        });
        lengths.fold(0, usize::saturating_add)
    }

    /// The parts in order.
    pub(crate) fn into_parts(self) -> Vec<Part> {
        self.0
    }

    /// Overwrites the first bytes of the first part.
    pub(super) fn set_prefix(&mut self, prefix: [u8; 4]) {
        if let Some(Part::Ready(bytes)) = self.0.first_mut()
            && let Some(place) = bytes.first_chunk_mut()
        {
            *place = prefix;
        }
    }
}

impl From<BytesMut> for Body {
    fn from(bytes: BytesMut) -> Self {
        Self(vec![Part::Ready(bytes)])
    }
}
