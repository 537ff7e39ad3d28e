//! The frame reader meets arbitrary bytes, and frames that were tampered with: it never panics, and opens a frame only when
//! it is exactly as it was written.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use palisade_log::frame::{self, FrameHead, FrameLimits, FrameWriter};
use palisade_seal::{DirectoryProvider, FileKey, FileKeys, FileKind};

const LIMITS: FrameLimits = FrameLimits {
    meta: 256,
    payload: 1024,
};
const POSITION: u64 = 4096;

struct Written {
    key: FileKey,
    frame: Vec<u8>,
}

static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let provider = Arc::new(DirectoryProvider::create(dir.path()).expect("a key"));
    let (key, _) = FileKeys::new(provider)
        .create(FileKind(*b"PALIFUZZ"), b"")
        .expect("a file key");
    let mut frame = Vec::new();
    FrameWriter::new(&key, LIMITS)
        .and_then(|mut writer| writer.append(&mut frame, POSITION, [&b"payload"[..]], b"meta"))
        .expect("a frame");
    Written { key, frame }
});

fn read(bytes: &[u8]) -> bool {
    FrameHead::parse(&WRITTEN.key, POSITION, bytes, LIMITS)
        .and_then(|head| frame::open(&WRITTEN.key, &head, bytes))
        .is_ok()
}

fuzz_target!(|data: &[u8]| {
    // Bytes that claim to be a frame of this file.
    let mut claimed = WRITTEN.key.marker().to_vec();
    claimed.extend_from_slice(data);
    assert!(!read(&claimed) || claimed.starts_with(&WRITTEN.frame));

    // A frame with some bytes changed: pairs of a position and what is added to the byte there; then cut or extended.
    let mut tampered = WRITTEN.frame.clone();
    for change in data.chunks_exact(2) {
        let at = usize::from(change[0]) % tampered.len();
        tampered[at] = tampered[at].wrapping_add(change[1]);
    }
    if let [length] = data.chunks_exact(2).remainder() {
        tampered.resize(usize::from(*length), 0);
    }
    assert_eq!(read(&tampered), tampered.starts_with(&WRITTEN.frame));
});
