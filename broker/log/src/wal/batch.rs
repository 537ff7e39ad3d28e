//! A batch of records as the meta and payload of one frame; the format is described in [`super`].

use bytes::Bytes;

use super::WalRecord;
use crate::ShardId;

/// Bytes of meta for each record, besides its own.
pub(super) const RECORD_OVERHEAD: usize = 4 + 1 + 8 + 4 + 4;
/// Bytes of meta for each batch.
pub(super) const BATCH_OVERHEAD: usize = 8 + 4;

/// Begins the meta of a batch in `meta`.
pub(super) fn begin(meta: &mut Vec<u8>, sequence: u64) {
    meta.clear();
    meta.extend_from_slice(&sequence.to_be_bytes());
    meta.extend_from_slice(&[0; 4]);
}

/// Adds a record; its payload must be added to the frame's in the same order. Lengths are within the record limit,
/// which is within `u32`.
pub(super) fn push(meta: &mut Vec<u8>, record: &WalRecord) {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    meta.extend_from_slice(&record.shard.0.to_be_bytes());
    meta.push(record.kind);
    meta.extend_from_slice(&record.index.to_be_bytes());
    meta.extend_from_slice(&length(record.meta.len()));
    meta.extend_from_slice(&length(record.payload.len()));
    meta.extend_from_slice(&record.meta);
}

/// Fills in how many records were added.
pub(super) fn finish(meta: &mut [u8], count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    if let Some(place) = meta.get_mut(8..BATCH_OVERHEAD) {
        place.copy_from_slice(&count.to_be_bytes());
    }
}

/// The sequence number and the records of a batch; payloads share `payload`'s memory.
pub(super) fn decode(meta: &[u8], mut payload: Bytes) -> Result<(u64, Vec<WalRecord>), String> {
    let short = || "a batch ends within a record".to_owned();
    let (sequence, rest) = meta.split_first_chunk::<8>().ok_or_else(short)?;
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let count = u32::from_be_bytes(*count) as usize;
    if count > rest.len() / RECORD_OVERHEAD {
        return Err(format!(
            "a batch claims {count} records in {} bytes",
            rest.len()
        ));
    }
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let (shard, next) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let (kind, next) = next.split_first_chunk::<1>().ok_or_else(short)?;
        let (index, next) = next.split_first_chunk::<8>().ok_or_else(short)?;
        let (meta_len, next) = next.split_first_chunk::<4>().ok_or_else(short)?;
        let (payload_len, next) = next.split_first_chunk::<4>().ok_or_else(short)?;
        let (record_meta, next) = next
            .split_at_checked(u32::from_be_bytes(*meta_len) as usize)
            .ok_or_else(short)?;
        let payload_len = u32::from_be_bytes(*payload_len) as usize;
        if payload_len > payload.len() {
            return Err("a batch's payload is shorter than its records".to_owned());
        }
        let [kind] = *kind;
        records.push(WalRecord {
            shard: ShardId(u32::from_be_bytes(*shard)),
            kind,
            index: u64::from_be_bytes(*index),
            meta: record_meta.to_vec(),
            payload: payload.split_to(payload_len),
        });
        rest = next;
    }
    if !rest.is_empty() || !payload.is_empty() {
        return Err("a batch is longer than its records".to_owned());
    }
    Ok((u64::from_be_bytes(*sequence), records))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn encode(sequence: u64, records: &[WalRecord]) -> (Vec<u8>, Bytes) {
        let mut meta = Vec::new();
        begin(&mut meta, sequence);
        let mut payload = Vec::new();
        for record in records {
            push(&mut meta, record);
            payload.extend_from_slice(&record.payload);
        }
        finish(&mut meta, records.len());
        (meta, payload.into())
    }

    fn record() -> impl Strategy<Value = WalRecord> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        (any::<u32>(), any::<u8>(), any::<u64>(), bytes(), bytes()).prop_map(
            |(shard, kind, index, meta, payload)| WalRecord {
                shard: ShardId(shard),
                kind,
                index,
                meta,
                payload: payload.into(),
            },
        )
    }

    proptest! {
        #[test]
        fn round_trips(sequence in any::<u64>(), records in proptest::collection::vec(record(), 0..20)) {
            let (meta, payload) = encode(sequence, &records);
            prop_assert_eq!(meta.len() + payload.len(), BATCH_OVERHEAD + records.iter().map(WalRecord::cost).sum::<usize>());
            prop_assert_eq!(decode(&meta, payload).unwrap(), (sequence, records));
        }

        #[test]
        fn arbitrary_bytes_never_panic(meta in proptest::collection::vec(any::<u8>(), 0..200), payload in proptest::collection::vec(any::<u8>(), 0..50)) {
            let payload = Bytes::from(payload);
            if let Ok((sequence, records)) = decode(&meta, payload.clone()) {
                prop_assert_eq!(encode(sequence, &records), (meta, payload));
            }
        }

        #[test]
        fn a_cut_batch_is_refused(records in proptest::collection::vec(record(), 1..5), cut in any::<prop::sample::Index>()) {
            let (meta, payload) = encode(1, &records);
            prop_assert!(decode(&meta[..cut.index(meta.len())], payload).is_err());
        }
    }
}
