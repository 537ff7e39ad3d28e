#![allow(clippy::unwrap_used)]
use std::sync::{Arc, LazyLock};

use palisade_seal::{DirectoryProvider, FileKeys, FileKind};
use proptest::prelude::*;

use super::*;

const LIMITS: FrameLimits = FrameLimits {
    meta: 1024,
    payload: 4096,
};

/// A key of a new file.
fn key() -> FileKey {
    static KEYS: LazyLock<FileKeys> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        FileKeys::new(Arc::new(DirectoryProvider::create(dir.path()).unwrap()))
    });
    KEYS.create(FileKind(*b"PALITEST"), b"1").unwrap().0
}

/// What a reader does at one place of a file.
fn read(key: &FileKey, position: u64, bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), FrameError> {
    let head = FrameHead::parse(key, position, bytes, LIMITS)?;
    let meta = open(key, &head, bytes)?;
    Ok((meta, bytes[head.payload_range()].to_vec()))
}

#[test]
fn a_frame_is_valid_in_its_place_only() {
    let (key, other) = (key(), key());
    let mut bytes = Vec::new();
    let mut writer = FrameWriter::new(&key, LIMITS).unwrap();
    writer
        .append(&mut bytes, 512, [&b"pay"[..], b"load"], b"meta")
        .unwrap();
    assert_eq!(
        read(&key, 512, &bytes).unwrap(),
        (b"meta".to_vec(), b"payload".to_vec())
    );
    assert!(matches!(read(&other, 512, &bytes), Err(FrameError::None)));
    assert_eq!(
        read(&key, 1024, &bytes).unwrap_err().to_string(),
        "the frame says that it belongs at byte 512"
    );
    assert!(matches!(read(&key, 512, &[0; 100]), Err(FrameError::None)));
}

#[test]
fn meta_is_not_readable_and_payload_is_as_given() {
    let mut bytes = Vec::new();
    FrameWriter::new(&key(), LIMITS)
        .unwrap()
        .append(&mut bytes, 0, [&b"ciphertext"[..]], b"marker-in-meta")
        .unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"marker"));
    assert!(bytes.windows(10).any(|window| window == b"ciphertext"));
}

#[test]
fn too_long_is_refused_and_leaves_the_buffer_alone() {
    let key = key();
    let mut bytes = b"before".to_vec();
    let mut writer = FrameWriter::new(&key, LIMITS).unwrap();
    for (payload, meta) in [(4097, 0), (0, 1025)] {
        let error = writer
            .append(&mut bytes, 0, [&vec![0; payload][..]], &vec![0; meta])
            .unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
        assert_eq!(bytes, b"before");
    }
    writer
        .append(&mut bytes, 0, [&vec![0; 4096][..]], &[0; 1024])
        .unwrap();
}

#[test]
fn a_claimed_length_beyond_the_limits_is_refused_before_anything_is_read() {
    let key = key();
    let mut bytes = Vec::new();
    FrameWriter::new(&key, LIMITS)
        .unwrap()
        .append(&mut bytes, 0, [], b"m")
        .unwrap();
    bytes[HEAD_LEN - 4..HEAD_LEN].copy_from_slice(&u32::MAX.to_be_bytes());
    let message = read(&key, 0, &bytes).unwrap_err().to_string();
    assert_eq!(
        message,
        "the frame claims 1 + 4294967295 bytes, at most 1024 + 4096 are written"
    );
}

proptest! {
    #[test]
    fn round_trips(position in any::<u64>(), meta in proptest::collection::vec(any::<u8>(), 0..1024), payload in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let key = key();
        let mut bytes = Vec::new();
        let length = FrameWriter::new(&key, LIMITS).unwrap().append(&mut bytes, position, [&payload[..]], &meta).unwrap();
        prop_assert_eq!(length, bytes.len());
        prop_assert_eq!(length, FRAME_OVERHEAD + meta.len() + payload.len());
        prop_assert_eq!(read(&key, position, &bytes).unwrap(), (meta, payload));
    }

    #[test]
    fn any_changed_bit_or_cut_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let key = key();
        let mut bytes = Vec::new();
        FrameWriter::new(&key, LIMITS).unwrap().append(&mut bytes, 0, [&b"payload"[..]], b"meta").unwrap();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << bit;
        }
        prop_assert!(read(&key, 0, &bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), position in any::<u64>()) {
        let key = key();
        let mut framed = key.marker().to_vec();
        framed.extend_from_slice(&bytes);
        prop_assert!(read(&key, position, &framed).is_err());
    }
}
