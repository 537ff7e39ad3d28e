//! The sealed frame: what a write-ahead log file and a segment are made of after their header.
//!
//! ```text
//!  0  marker       8   random for each incarnation of the file (FileKey::marker)
//!  8  nonce       12
//! 20  position     8   where in the file the frame begins
//! 28  meta_len     4
//! 32  payload_len  4
//! 36  payload          is ciphertext already
//!     meta             encrypted
//!     tag         16
//! ```
//!
//! The tag covers everything: meta is encrypted; position, lengths and payload are its AAD; marker and nonce are bound
//! because the key and the cipher's nonce follow from them. A frame is therefore valid at one place in one incarnation
//! of one file only. Integers are big-endian.
//!
//! Reading is two steps, so that nothing is allocated for a length that was not checked: [`FrameHead::parse`] on the
//! first [`HEAD_LEN`] bytes, then [`open`] on the [`FrameHead::total_len`] bytes of the frame.

use std::ops::Range;

use palisade_seal::{FileKey, FrameSealer, NONCE_LEN, SealError, TAG_LEN};

/// Bytes that tell a frame's length.
pub const HEAD_LEN: usize = AAD_START + AAD_FIXED;
/// Bytes of a frame besides meta and payload.
pub const FRAME_OVERHEAD: usize = HEAD_LEN + TAG_LEN;

const MARKER_LEN: usize = FileKey::MARKER_LEN;
/// What comes before it is bound by key and nonce.
const AAD_START: usize = MARKER_LEN + NONCE_LEN;
const AAD_FIXED: usize = 8 + 4 + 4;

/// The lengths a reader accepts: whatever exceeds them is damage, not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest meta in bytes.
    pub meta: u32,
    /// Longest payload in bytes.
    pub payload: u32,
}

/// Why the bytes at a place are no frame of this file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// There is no frame of this incarnation here: zeros, the rest of an earlier one, or the end of the file.
    #[error("no frame begins here")]
    None,
    /// A frame begins here, but the bytes end before it does.
    #[error("the frame is cut off: {have} of {want} bytes")]
    Cut {
        /// Bytes that are there.
        have: usize,
        /// Bytes that the frame has.
        want: usize,
    },
    /// A frame begins here, and is not as it was written.
    #[error("{0}")]
    Bad(String),
}

/// The beginning of a frame, checked for plausibility but not yet authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    nonce: [u8; NONCE_LEN],
    meta_len: u32,
    payload_len: u32,
}

impl FrameHead {
    /// Reads the head of the frame that begins at `position` of the file with `key`. Longer `bytes` are fine.
    ///
    /// # Errors
    /// [`FrameError::None`] when the bytes do not begin with the file's marker, otherwise what is wrong.
    pub fn parse(
        key: &FileKey,
        position: u64,
        bytes: &[u8],
        limits: FrameLimits,
    ) -> Result<Self, FrameError> {
        let cut = || FrameError::Cut {
            have: bytes.len(),
            want: HEAD_LEN,
        };
        let (marker, rest) = bytes
            .split_first_chunk::<MARKER_LEN>()
            .ok_or(FrameError::None)?;
        if *marker != key.marker() {
            return Err(FrameError::None);
        }
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(cut)?;
        let (found, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let (meta_len, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (payload_len, _) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let found = u64::from_be_bytes(*found);
        if found != position {
            return Err(FrameError::Bad(format!(
                "the frame says that it belongs at byte {found}"
            )));
        }
        let head = Self {
            nonce: *nonce,
            meta_len: u32::from_be_bytes(*meta_len),
            payload_len: u32::from_be_bytes(*payload_len),
        };
        if head.meta_len > limits.meta || head.payload_len > limits.payload {
            return Err(FrameError::Bad(format!(
                "the frame claims {} + {} bytes, at most {} + {} are written",
                head.meta_len, head.payload_len, limits.meta, limits.payload
            )));
        }
        Ok(head)
    }

    /// Length of the whole frame in bytes.
    #[must_use]
    pub fn total_len(&self) -> usize {
        FRAME_OVERHEAD + self.meta_len as usize + self.payload_len as usize
    }

    /// Where in the frame the payload is.
    #[must_use]
    pub fn payload_range(&self) -> Range<usize> {
        HEAD_LEN..HEAD_LEN + self.payload_len as usize
    }
}

/// Authenticates the frame whose head is `head` and whose first [`FrameHead::total_len`] bytes are in `bytes`; returns
/// its meta, decrypted. The payload is `bytes[head.payload_range()]`.
///
/// # Errors
/// [`FrameError::Cut`] when `bytes` is too short, [`FrameError::Bad`] when it is not as it was written.
pub fn open(key: &FileKey, head: &FrameHead, bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let total = head.total_len();
    let cut = || FrameError::Cut {
        have: bytes.len(),
        want: total,
    };
    let aad = bytes
        .get(AAD_START..head.payload_range().end)
        .ok_or_else(cut)?;
    let sealed = bytes.get(head.payload_range().end..total).ok_or_else(cut)?;
    key.open(head.nonce, aad, sealed)
        .map_err(|error| FrameError::Bad(error.to_string()))
}

/// Builds frames at the end of a buffer, in place: payload parts are copied once, meta is encrypted where it lies.
#[derive(Debug)]
pub struct FrameWriter {
    marker: [u8; MARKER_LEN],
    sealer: FrameSealer,
    limits: FrameLimits,
}

impl FrameWriter {
    /// Begins writing frames to the file of `key`.
    ///
    /// # Errors
    /// As [`FileKey::sealer`].
    pub fn new(key: &FileKey, limits: FrameLimits) -> Result<Self, SealError> {
        Ok(Self {
            marker: key.marker(),
            sealer: key.sealer()?,
            limits,
        })
    }

    /// Appends to `buffer` the frame that will stand at `position` of the file, and returns its length. The payload is
    /// the `payload` parts joined. After an error `buffer` is as it was.
    ///
    /// # Errors
    /// [`SealError::Malformed`] when meta or payload exceeds the limits, [`SealError::Exhausted`].
    pub fn append<'a>(
        &mut self,
        buffer: &mut Vec<u8>,
        position: u64,
        payload: impl IntoIterator<Item = &'a [u8]>,
        meta: &[u8],
    ) -> Result<usize, SealError> {
        let start = buffer.len();
        let written = self.build(buffer, position, payload, meta);
        if written.is_err() {
            buffer.truncate(start);
        }
        written
    }

    fn build<'a>(
        &mut self,
        buffer: &mut Vec<u8>,
        position: u64,
        payload: impl IntoIterator<Item = &'a [u8]>,
        meta: &[u8],
    ) -> Result<usize, SealError> {
        let too_long = |reason: String| SealError::Malformed {
            what: "frame to write",
            reason,
        };
        let start = buffer.len();
        buffer.extend_from_slice(&self.marker);
        buffer.extend_from_slice(&[0; NONCE_LEN]);
        buffer.extend_from_slice(&position.to_be_bytes());
        let meta_len = u32::try_from(meta.len())
            .ok()
            .filter(|length| *length <= self.limits.meta)
            .ok_or_else(|| {
                too_long(format!(
                    "meta of {} bytes, at most {}",
                    meta.len(),
                    self.limits.meta
                ))
            })?;
        buffer.extend_from_slice(&meta_len.to_be_bytes());
        buffer.extend_from_slice(&[0; 4]);
        for part in payload {
            buffer.extend_from_slice(part);
        }
        let meta_start = buffer.len();
        let payload_len = meta_start - start - HEAD_LEN;
        let checked = u32::try_from(payload_len)
            .ok()
            .filter(|length| *length <= self.limits.payload)
            .ok_or_else(|| {
                too_long(format!(
                    "payload of {payload_len} bytes, at most {}",
                    self.limits.payload
                ))
            })?;
        put(buffer, start + HEAD_LEN - 4, &checked.to_be_bytes());
        buffer.extend_from_slice(meta);
        let (authenticated, in_out) = buffer.split_at_mut(meta_start);
        let aad = authenticated.get(start + AAD_START..).unwrap_or_default();
        let (nonce, tag) = self.sealer.seal(aad, in_out)?;
        put(buffer, start + MARKER_LEN, &nonce);
        buffer.extend_from_slice(&tag);
        Ok(buffer.len() - start)
    }
}

/// Overwrites bytes that were put into `buffer` before.
fn put(buffer: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = buffer.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
