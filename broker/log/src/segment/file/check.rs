//! Looking whether a file is still what was written, without anybody having asked for what is in it.

use super::{FRAME, Segment};
use crate::LogError;

impl Segment {
    /// Checks about `max_bytes` from the frame at `position` on, at least one entry; 0 is the beginning of the file. Returns where to go on; `None` at the end.
    ///
    /// Neither the file nor an index of it is kept: a whole volume is read this way.
    pub(in super::super) fn check(
        &self,
        position: u64,
        max_bytes: usize,
    ) -> Result<Option<u64>, LogError> {
        let handle = {
            let _no_header_is_written = self.handle.lock();
            self.open()?
        };
        let mut position = position.max(handle.frames_begin);
        let end = self.length();
        let want = |bytes: usize, position: u64| {
            usize::try_from(end.saturating_sub(position))
                .unwrap_or(usize::MAX)
                .min(bytes)
        };
        let mut chunk = self.chunk_with(&handle, position, want(max_bytes.max(FRAME), position))?;
        let mut checked = 0usize;
        while position < end {
            let head = match chunk.get(checked..checked.saturating_add(FRAME)) {
                Some(head) => head,
                // The rest of the chunk is the beginning of a frame, or the file ends within one.
                None if checked > 0 => return Ok(Some(position)),
                None => chunk.as_ref(),
            };
            let entry = self.parse_with(&handle, position, head)?;
            let whole = FRAME.saturating_add(entry.payload_len as usize);
            if checked == 0 && chunk.len() < whole {
                chunk = self.chunk_with(&handle, position, want(whole, position))?;
            }
            let Some(payload) = chunk.get(checked + FRAME..checked.saturating_add(whole)) else {
                return Ok(Some(position));
            };
            if !entry.fits(payload) {
                return Err(self.corrupt(position, "the payload does not fit its frame"));
            }
            checked = checked.saturating_add(whole);
            position = position.saturating_add(whole as u64);
        }
        Ok(None)
    }
}
