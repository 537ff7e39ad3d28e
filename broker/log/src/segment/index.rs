use crate::{Offset, segment::FrameMeta};

/// One entry of the index for at least this many bytes of the file.
const INTERVAL: u64 = 32 << 10;

/// Sparse index of one segment: where to begin looking for an offset or a time. In memory only; made again by reading the frames.
#[derive(Debug, Default)]
pub(super) struct SparseIndex {
    blocks: Vec<Block>,
}

/// Frames that stand together.
#[derive(Clone, Copy, Debug)]
struct Block {
    position: u64,
    base_offset: Offset,
    max_timestamp: i64,
}

impl SparseIndex {
    /// Takes note of the frame at `position`. Frames come in order.
    pub(super) fn add(&mut self, position: u64, frame: &FrameMeta) {
        match self.blocks.last_mut() {
            Some(block) if position.saturating_sub(block.position) < INTERVAL => {
                block.max_timestamp = block.max_timestamp.max(frame.max_timestamp);
            }
            _ => self.blocks.push(Block {
                position,
                base_offset: frame.base_offset,
                max_timestamp: frame.max_timestamp,
            }),
        }
    }

    /// Position of a frame at or before the one that holds `offset`, or is the next one when nothing does.
    pub(super) fn position_of(&self, offset: Offset) -> Option<u64> {
        let after = self
            .blocks
            .partition_point(|block| block.base_offset <= offset);
        self.blocks
            .get(after.saturating_sub(1))
            .map(|block| block.position)
    }

    /// Position at or before the first frame that reaches `timestamp`.
    pub(super) fn position_of_time(&self, timestamp: i64) -> Option<u64> {
        self.blocks
            .iter()
            .find(|block| block.max_timestamp >= timestamp)
            .map(|block| block.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LeaderEpoch;

    #[test]
    fn finds_the_block_to_begin_at() {
        let mut index = SparseIndex::default();
        assert_eq!(index.position_of(Offset(0)), None);
        for n in 0..100 {
            let frame = FrameMeta {
                base_offset: Offset(n * 2),
                last_offset: Offset(n * 2 + 1),
                leader_epoch: LeaderEpoch(1),
                max_timestamp: if n == 50 { 900 } else { n },
                record_count: 2,
            };
            index.add(100 + n as u64 * 10_000, &frame);
        }
        // Blocks begin at frames 0, 4, 8, ...: 40,000 bytes is the first step over the interval.
        assert_eq!(index.blocks.len(), 25);
        assert_eq!(index.position_of(Offset(0)), Some(100));
        assert_eq!(
            index.position_of(Offset(-1)),
            Some(100),
            "the first when none is before"
        );
        assert_eq!(index.position_of(Offset(7)), Some(100));
        assert_eq!(index.position_of(Offset(8)), Some(40_100));
        assert_eq!(index.position_of(Offset(10_000)), Some(960_100));
        assert_eq!(
            index.position_of_time(60),
            Some(480_100),
            "frame 50 stands in the block of frame 48"
        );
        assert_eq!(index.position_of_time(901), None);
    }
}
