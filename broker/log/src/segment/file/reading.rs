//! Reading a segment: entries by offset and by time.

use bytes::Bytes;

use super::{
    super::{
        FrameMeta,
        index::SparseIndex,
        meta::{EntryMeta, TAG},
    },
    FRAME, Found, Handle, LIMITS, Segment,
};
use crate::{
    LogError, Offset,
    frame::{self, FrameHead},
};

/// How much is read at once while looking for a frame.
const WINDOW: usize = 64 << 10;

impl Segment {
    /// Reads the entries from the one that holds `from`, up to about `max_bytes` of payload, at least one when there is any.
    pub(in super::super) fn read(
        &self,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<(FrameMeta, Bytes)>, LogError> {
        self.ensure_index()?;
        let Some(begin) = self
            .index
            .read()
            .as_ref()
            .and_then(|index| index.position_of(from))
        else {
            return Ok(Vec::new());
        };
        let Some(first) = self.find(begin, |entry| entry.frame.last_offset >= from)? else {
            return Ok(Vec::new());
        };
        let first_len = FRAME + first.entry.payload_len as usize;
        let available = usize::try_from(self.length() - first.position).unwrap_or(usize::MAX);
        let chunk = self.chunk(first.position, available.min(max_bytes.max(first_len)))?;
        let mut entries = Vec::new();
        let mut at = 0usize;
        while let Some(head) = chunk.get(at..at.saturating_add(FRAME)) {
            let position = first.position + at as u64;
            let entry = self.parse(position, head)?;
            let payload = at + FRAME..at + FRAME + entry.payload_len as usize;
            if payload.end > chunk.len() {
                break;
            }
            at = payload.end;
            let payload = chunk.slice(payload);
            if !entry.fits(&payload) {
                return Err(self.corrupt(position, "the payload does not fit its frame"));
            }
            entries.push((entry.frame, payload));
        }
        Ok(entries)
    }

    /// The first frame that reaches `timestamp` and does not lie before `start`.
    pub(in super::super) fn find_time(
        &self,
        timestamp: i64,
        start: Offset,
    ) -> Result<Option<FrameMeta>, LogError> {
        self.ensure_index()?;
        let Some(begin) = self
            .index
            .read()
            .as_ref()
            .and_then(|index| index.position_of_time(timestamp))
        else {
            return Ok(None);
        };
        let found = self.find(begin, |entry| {
            entry.frame.max_timestamp >= timestamp && entry.frame.last_offset >= start
        })?;
        Ok(found.map(|found| found.entry.frame))
    }

    /// Walks frames from the one at `position` to the first that is `wanted`.
    pub(super) fn find(
        &self,
        position: u64,
        wanted: impl Fn(&EntryMeta) -> bool,
    ) -> Result<Option<Found>, LogError> {
        let mut found = None;
        self.walk(position, |at| {
            found = wanted(&at.entry).then_some(at);
            found.is_none()
        })?;
        Ok(found)
    }

    /// Calls `visit` for every frame from `position` on, until it returns false.
    pub(super) fn walk(
        &self,
        mut position: u64,
        mut visit: impl FnMut(Found) -> bool,
    ) -> Result<(), LogError> {
        let length = self.length();
        let (mut window, mut window_at) = (Bytes::new(), 0u64);
        while position < length {
            let head = |window: &Bytes, window_at: u64| {
                let at = usize::try_from(position.checked_sub(window_at)?).ok()?;
                window
                    .get(at..at.checked_add(FRAME)?)
                    .map(|_| window.slice(at..at + FRAME))
            };
            let bytes = match head(&window, window_at) {
                Some(bytes) => bytes,
                None => {
                    let want = usize::try_from(length - position)
                        .unwrap_or(WINDOW)
                        .min(WINDOW);
                    window = self.chunk(position, want)?;
                    window_at = position;
                    window.slice(..FRAME.min(window.len()))
                }
            };
            let entry = self.parse(position, &bytes)?;
            if !visit(Found { position, entry }) {
                break;
            }
            position = position.saturating_add(FRAME as u64 + u64::from(entry.payload_len));
        }
        Ok(())
    }

    pub(super) fn parse(&self, position: u64, bytes: &[u8]) -> Result<EntryMeta, LogError> {
        self.parse_with(&*self.handle()?, position, bytes)
    }

    pub(super) fn parse_with(
        &self,
        handle: &Handle,
        position: u64,
        bytes: &[u8],
    ) -> Result<EntryMeta, LogError> {
        let corrupt = |reason: String| self.corrupt(position, &reason);
        let head = FrameHead::parse(&handle.key, position, bytes, LIMITS)
            .map_err(|error| corrupt(error.to_string()))?;
        let meta =
            frame::open(&handle.key, &head, bytes).map_err(|error| corrupt(error.to_string()))?;
        let entry =
            EntryMeta::decode(&meta).ok_or_else(|| corrupt("its meta is malformed".to_owned()))?;
        let end = position.saturating_add(FRAME as u64 + u64::from(entry.payload_len));
        if (entry.payload_len as usize) < TAG || end > self.length() {
            return Err(corrupt(format!(
                "the payload of {} bytes ends outside of the log",
                entry.payload_len
            )));
        }
        Ok(entry)
    }

    /// Reads exactly `want` bytes that lie before `length`.
    pub(super) fn chunk(&self, position: u64, want: usize) -> Result<Bytes, LogError> {
        self.chunk_with(&*self.handle()?, position, want)
    }

    pub(super) fn chunk_with(
        &self,
        handle: &Handle,
        position: u64,
        want: usize,
    ) -> Result<Bytes, LogError> {
        let mut buffer = vec![0; want];
        let read = handle
            .file
            .read_full_at(&mut buffer, position)
            .map_err(LogError::io(
                "read",
                &self.around.path(self.base, self.generation),
            ))?;
        if read < want {
            return Err(self.corrupt(
                position.saturating_add(read as u64),
                "the file ends here, before the log does",
            ));
        }
        Ok(Bytes::from(buffer))
    }

    pub(super) fn ensure_index(&self) -> Result<(), LogError> {
        if self.index.read().is_some() {
            return Ok(());
        }
        let mut slot = self.index.write();
        if slot.is_none() {
            let mut index = SparseIndex::default();
            let begin = self.handle()?.frames_begin;
            self.walk(begin, |found| {
                index.add(found.position, &found.entry.frame);
                true
            })?;
            *slot = Some(index);
        }
        Ok(())
    }
}
