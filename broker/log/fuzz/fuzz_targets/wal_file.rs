//! A write-ahead log whose file was tampered with is opened: it never panics, and gives back a beginning of what was written
//! or refuses with an error.
#![no_main]

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, LazyLock, mpsc},
};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use palisade_log::{LogError, ShardId, Wal, WalOptions, WalRecord};
use palisade_seal::{DirectoryProvider, FileKeys};

/// In memory where there is such a place: the disk is not what is tested.
static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
    .expect("a temporary directory")
});

static KEYS: LazyLock<Arc<FileKeys>> = LazyLock::new(|| {
    let provider = DirectoryProvider::create(DIR.path().join("kek")).expect("a key");
    Arc::new(FileKeys::new(Arc::new(provider)))
});

struct Written {
    records: Vec<WalRecord>,
    file: PathBuf,
    bytes: Vec<u8>,
}

fn open() -> Result<(Wal, Vec<WalRecord>), LogError> {
    let options = WalOptions {
        file_bytes: 64 << 10,
        ..WalOptions::new(DIR.path().join("wal"))
    };
    Wal::open(options, Arc::clone(&KEYS))
}

static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
    let (wal, _) = open().expect("a new log");
    let records: Vec<_> = (1..=6u64)
        .map(|index| WalRecord {
            shard: ShardId(1),
            kind: 1,
            index,
            meta: vec![0; 10],
            payload: Bytes::from(vec![0xa5; 900 * index as usize]),
        })
        .collect();
    for record in &records {
        let (sender, receiver) = mpsc::channel();
        wal.append(vec![record.clone()], move |result| {
            sender.send(result).expect("somebody waits");
        });
        receiver.recv().expect("an answer").expect("it is written");
    }
    drop(wal);
    let file = DIR.path().join("wal/wal-0000000000000001.log");
    let bytes = fs::read(&file).expect("the file");
    Written {
        records,
        file,
        bytes,
    }
});

fuzz_target!(|data: &[u8]| {
    let written = &*WRITTEN;
    let mut bytes = written.bytes.clone();
    // Quadruples: what to do, where, with which byte.
    for change in data.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([change[1], change[2]]));
        match change[0] % 4 {
            0 => bytes.truncate(at.max(1)),
            // Heads of frames, where it matters most: they begin at multiples of 4096.
            1 => {
                let head = (at >> 6 << 12) | (at & 0x3f);
                if let Some(byte) = bytes.get_mut(head) {
                    *byte = change[3];
                }
            }
            2 => {
                let half = bytes.len() / 2;
                bytes.copy_within(0..at.min(half), half);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= change[3];
                }
            }
        }
    }
    fs::write(&written.file, &bytes).expect("the file can be written");
    if let Ok((_, found)) = open() {
        assert!(
            written.records.starts_with(&found),
            "found what was not written: {found:?}"
        );
    }
});
