use crate::{LeaderEpoch, Offset};

/// What the log knows of a batch without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Offset of the last record.
    pub last_offset: Offset,
    /// Epoch of the leader that sealed it.
    pub leader_epoch: LeaderEpoch,
    /// Latest timestamp, ms; -1 when there is none.
    pub max_timestamp: i64,
    /// Number of records.
    pub record_count: u32,
}

/// Length of the tag that a sealed payload ends with.
pub(super) const TAG: usize = palisade_seal::TAG_LEN;

/// A frame's meta: what is known of the batch, and what binds the payload behind the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryMeta {
    pub(super) frame: FrameMeta,
    pub(super) payload_len: u32,
    payload_crc: u32,
    payload_tag: [u8; TAG],
}

impl EntryMeta {
    pub(super) const LEN: usize = 8 + 8 + 4 + 8 + 4 + 4 + 4 + TAG;

    /// `None` when the payload is too short to be sealed or too long for a frame.
    pub(super) fn new(frame: FrameMeta, payload: &[u8]) -> Option<Self> {
        Some(Self {
            frame,
            payload_len: u32::try_from(payload.len()).ok()?,
            payload_crc: crc_fast::crc32_iscsi(payload),
            payload_tag: *payload.last_chunk()?,
        })
    }

    /// Whether `payload` is the one that was written with this meta.
    pub(super) fn fits(&self, payload: &[u8]) -> bool {
        payload.last_chunk() == Some(&self.payload_tag)
            && crc_fast::crc32_iscsi(payload) == self.payload_crc
    }

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let fields: [&[u8]; 8] = [
            &self.frame.base_offset.0.to_be_bytes(),
            &self.frame.last_offset.0.to_be_bytes(),
            &self.frame.leader_epoch.0.to_be_bytes(),
            &self.frame.max_timestamp.to_be_bytes(),
            &self.frame.record_count.to_be_bytes(),
            &self.payload_len.to_be_bytes(),
            &self.payload_crc.to_be_bytes(),
            &self.payload_tag,
        ];
        let mut rest = out.as_mut_slice();
        for field in fields {
            let (place, after) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = after;
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let meta = Self {
            frame: FrameMeta {
                base_offset: Offset(i64::from_be_bytes(take(&mut rest)?)),
                last_offset: Offset(i64::from_be_bytes(take(&mut rest)?)),
                leader_epoch: LeaderEpoch(i32::from_be_bytes(take(&mut rest)?)),
                max_timestamp: i64::from_be_bytes(take(&mut rest)?),
                record_count: u32::from_be_bytes(take(&mut rest)?),
            },
            payload_len: u32::from_be_bytes(take(&mut rest)?),
            payload_crc: u32::from_be_bytes(take(&mut rest)?),
            payload_tag: take(&mut rest)?,
        };
        rest.is_empty().then_some(meta)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*field)
}
