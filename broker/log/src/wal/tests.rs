#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::{
    fs,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use palisade_seal::DirectoryProvider;

use super::*;
use crate::testing::FaultFs;

mod space;

pub(super) fn keys() -> Arc<FileKeys> {
    static KEYS: LazyLock<Arc<FileKeys>> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        Arc::new(FileKeys::new(Arc::new(
            DirectoryProvider::create(dir.path()).unwrap(),
        )))
    });
    Arc::clone(&KEYS)
}

pub(super) fn record(shard: u32, index: u64, text: &str) -> WalRecord {
    WalRecord {
        shard: ShardId(shard),
        kind: 1,
        index,
        meta: format!("meta of {text}").into_bytes(),
        payload: Bytes::from(text.to_owned()),
    }
}

pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) fs: FaultFs,
    failures: Arc<AtomicUsize>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            fs: FaultFs::new(),
            failures: Arc::default(),
        }
    }

    fn options(&self) -> WalOptions {
        let failures = Arc::clone(&self.failures);
        WalOptions {
            fs: Arc::new(self.fs.clone()),
            file_bytes: 64 << 10,
            on_failure: Arc::new(move |_| {
                failures.fetch_add(1, Ordering::SeqCst);
            }),
            ..WalOptions::new(self.dir.path())
        }
    }

    pub(super) fn open(&self) -> (Wal, Vec<WalRecord>) {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<(Wal, Vec<WalRecord>), LogError> {
        Wal::open(self.options(), keys())
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("wal-"))
            .collect();
        names.sort();
        names
    }

    fn path(&self, number: u64) -> PathBuf {
        self.options().path_of(number)
    }

    /// Offset of the frame that holds a record with this payload.
    fn frame_of(&self, path: &Path, payload: &str) -> u64 {
        let bytes = fs::read(path).unwrap();
        let at = bytes
            .windows(payload.len())
            .position(|window| window == payload.as_bytes())
            .unwrap() as u64;
        at / BLOCK * BLOCK
    }
}

fn append(wal: &Wal, records: Vec<WalRecord>) -> Result<(), WalError> {
    let (sender, receiver) = mpsc::channel();
    wal.append(records, move |result| sender.send(result).unwrap());
    receiver.recv_timeout(Duration::from_secs(20)).unwrap()
}

fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(offset).unwrap()] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fills files with records of 4 KiB until there are `files` of them; returns the last index.
fn fill(bench: &Bench, wal: &Wal, shard: u32, from: u64, files: usize) -> u64 {
    let mut index = from;
    loop {
        append(wal, vec![record(shard, index, &"x".repeat(4096))]).unwrap();
        if bench.files().len() >= files {
            return index;
        }
        index += 1;
    }
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let bench = Bench::new();
    let (wal, records) = bench.open();
    assert_eq!(records, []);
    let written = vec![
        record(1, 1, "one"),
        record(2, 1, "other"),
        record(1, 2, "two"),
    ];
    append(&wal, written[..1].to_vec()).unwrap();
    append(&wal, written[1..].to_vec()).unwrap();
    drop(wal);
    let (wal, records) = bench.open();
    assert_eq!(records, written);
    append(&wal, vec![record(1, 3, "three")]).unwrap();
    drop(wal);
    assert_eq!(bench.open().1.len(), 4);
}

#[test]
fn nothing_readable_is_on_the_disk_but_payloads() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    append(&wal, vec![record(1, 1, "payload-is-ciphertext")]).unwrap();
    drop(wal);
    let bytes = fs::read(bench.path(1)).unwrap();
    let contains = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(contains(b"payload-is-ciphertext"));
    assert!(!contains(b"meta of"));
}

#[test]
fn many_writers_share_a_sync_and_are_called_back_in_order() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let before = bench.fs.syncs();
    let (sender, receiver) = mpsc::channel();
    for index in 0..1000 {
        let sender = sender.clone();
        wal.append(vec![record(1, index, "x")], move |result| {
            sender.send((index, result)).unwrap();
        });
    }
    for index in 0..1000 {
        assert_eq!(
            receiver.recv_timeout(Duration::from_secs(20)).unwrap(),
            (index, Ok(()))
        );
    }
    let syncs = bench.fs.syncs() - before;
    assert!(syncs < 500, "{syncs} syncs for 1000 appends");
    assert_eq!(wal.stats().records, 1000);
}

#[test]
fn released_files_are_used_again_and_what_stood_in_them_is_never_read() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let mut index = 0;
    for _ in 0..5 {
        index = fill(&bench, &wal, 1, index + 1, 3);
        wal.release(ShardId(1), index);
        eventually("files are freed", || bench.files().len() == 1);
    }
    let made: Vec<_> = fs::read_dir(bench.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".log"))
        .collect();
    assert!(made.len() <= 6, "{made:?}");
    append(&wal, vec![record(1, index + 1, "kept")]).unwrap();
    drop(wal);
    let (wal, records) = bench.open();
    assert_eq!(records, [record(1, index + 1, "kept")]);
    drop(wal);
}

#[test]
fn a_release_survives_a_restart_and_one_shard_pins_the_files_of_all() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    append(&wal, vec![record(9, 1, "pinned")]).unwrap();
    let last = fill(&bench, &wal, 1, 1, 3);
    wal.release(ShardId(1), last);
    append(&wal, vec![record(1, last + 1, "after")]).unwrap();
    assert_eq!(bench.files().len(), 3);
    drop(wal);

    let (wal, records) = bench.open();
    assert_eq!(
        records,
        [record(9, 1, "pinned"), record(1, last + 1, "after")]
    );
    wal.release(ShardId(9), 1);
    eventually("files are freed", || bench.files().len() == 1);
}

#[test]
fn sticky_records_outlive_their_files_and_only_the_newest_counts() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let vote = |text: &str| WalRecord {
        kind: WalRecord::STICKY,
        payload: Bytes::new(),
        ..record(1, 0, text)
    };
    append(&wal, vec![vote("old")]).unwrap();
    append(&wal, vec![vote("new")]).unwrap();
    let mut last = 0;
    for _ in 0..2 {
        last = fill(&bench, &wal, 1, last + 1, 3);
        wal.release(ShardId(1), last);
        eventually("files are freed", || bench.files().len() == 1);
    }
    drop(wal);
    assert_eq!(bench.open().1, [vote("new")]);
}

#[test]
fn a_torn_tail_is_cut_and_writing_goes_on() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    append(&wal, vec![record(1, 1, "one")]).unwrap();
    append(&wal, vec![record(1, 2, "torn")]).unwrap();
    drop(wal);
    let offset = bench.frame_of(&bench.path(1), "torn");
    for at in [offset, offset + 9, offset + 30, offset + 40] {
        flip(&bench.path(1), at);
        let (wal, records) = bench.open();
        assert_eq!(records, [record(1, 1, "one")]);
        append(&wal, vec![record(1, 2, "torn")]).unwrap();
        drop(wal);
        assert_eq!(bench.open().1.len(), 2);
    }
}

/// It would count as torn if it were too large for what is configured.
#[test]
fn a_batch_from_before_files_were_made_smaller_is_read() {
    let bench = Bench::new();
    let larger = WalOptions {
        file_bytes: 256 << 10,
        ..bench.options()
    };
    let (wal, _) = Wal::open(larger, keys()).unwrap();
    let large = record(1, 1, &"x".repeat(40 << 10));
    append(&wal, vec![large.clone()]).unwrap();
    drop(wal);
    assert_eq!(bench.open().1, [large]);
}

/// What was cut off is not written over when the next batch goes into the next file.
#[test]
fn a_torn_tail_is_no_damage_when_its_file_is_not_the_last_any_more() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let first: Vec<_> = (1..=3)
        .map(|index| record(1, index, &"y".repeat(7 << 10)))
        .collect();
    for one in &first {
        append(&wal, vec![one.clone()]).unwrap();
    }
    append(&wal, vec![record(1, 4, "torn")]).unwrap();
    drop(wal);
    flip(&bench.path(1), bench.frame_of(&bench.path(1), "torn") + 40);
    let (wal, records) = bench.open();
    assert_eq!(records, first);
    // The file has no room left for it.
    let large = record(1, 4, &"x".repeat(11 << 10));
    append(&wal, vec![large.clone()]).unwrap();
    assert!(bench.path(2).exists(), "it went into the first file");
    drop(wal);
    let all = [first, vec![large]].concat();
    assert_eq!(bench.open().1, all);
}

#[test]
fn a_bad_frame_before_others_is_corruption_with_file_and_offset() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    append(&wal, vec![record(1, 1, "first")]).unwrap();
    append(&wal, vec![record(1, 2, "second")]).unwrap();
    drop(wal);
    let offset = bench.frame_of(&bench.path(1), "first");
    // Marker, nonce, position, lengths, payload, meta: wherever it is hit.
    for at in [0, 9, 25, 29, 33, 37, 60] {
        flip(&bench.path(1), offset + at);
        let error = bench.try_open().unwrap_err();
        match &error {
            LogError::Corrupt {
                file,
                offset: found,
                ..
            } => {
                assert_eq!((file, *found), (&bench.path(1), offset));
            }
            other => panic!("{other}"),
        }
        let message = error.to_string();
        assert!(
            message.contains(&format!(
                "wal-0000000000000001.log is corrupt at byte {offset}:"
            )) && message.contains("but a later batch is readable at byte"),
            "{message}"
        );
        flip(&bench.path(1), offset + at);
    }
    assert_eq!(bench.open().1.len(), 2);
}

#[test]
fn frames_missing_at_the_end_of_an_older_file_are_corruption() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let last = fill(&bench, &wal, 1, 1, 2);
    drop(wal);
    let path = bench.path(1);
    let mut bytes = fs::read(&path).unwrap();
    let block = usize::try_from(BLOCK).unwrap();
    let marker = bytes[block..block + 8].to_vec();
    let start = block
        * bytes
            .chunks(block)
            .rposition(|chunk| chunk.starts_with(&marker))
            .unwrap();
    bytes[start..].fill(0);
    fs::write(&path, bytes).unwrap();
    let message = bench.try_open().unwrap_err().to_string();
    assert!(
        last > 2 && message.contains("are missing") && message.contains("wal-0000000000000001.log"),
        "{message}"
    );
}

#[test]
fn a_missing_file_and_an_exchanged_file_are_corruption() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    fill(&bench, &wal, 1, 1, 3);
    drop(wal);
    let aside = bench.dir.path().join("aside");
    fs::rename(bench.path(2), &aside).unwrap();
    let message = bench.try_open().unwrap_err().to_string();
    assert!(
        message.contains("wal-0000000000000002.log is corrupt at byte 0: the file is missing"),
        "{message}"
    );

    fs::copy(bench.path(3), bench.path(2)).unwrap();
    let message = bench.try_open().unwrap_err().to_string();
    assert!(
        message.contains(
            "wal-0000000000000002.log is corrupt at byte 0: file header failed authentication"
        ),
        "{message}"
    );

    fs::rename(&aside, bench.path(2)).unwrap();
    bench.open();
}

#[test]
fn a_missing_or_wrong_key_is_not_called_corruption() {
    let bench = Bench::new();
    drop(bench.open());
    let other = tempfile::tempdir().unwrap();
    let provider = DirectoryProvider::create(other.path()).unwrap();
    let error =
        Wal::open(bench.options(), Arc::new(FileKeys::new(Arc::new(provider)))).unwrap_err();
    assert!(matches!(error, LogError::Key { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("cannot use the key of") && message.contains("restore it (as `"),
        "{message}"
    );
}

#[test]
fn a_second_process_is_kept_out() {
    let bench = Bench::new();
    let (_wal, _) = bench.open();
    let message = bench.try_open().unwrap_err().to_string();
    assert!(
        message.contains("lock: another process is using it"),
        "{message}"
    );
}

#[test]
fn a_failed_sync_or_write_ends_the_process_and_acknowledges_nothing() {
    for inject in [
        FaultFs::fail_syncs as fn(&FaultFs, bool),
        FaultFs::fail_writes,
    ] {
        let bench = Bench::new();
        let (wal, _) = bench.open();
        append(&wal, vec![record(1, 1, "one")]).unwrap();
        inject(&bench.fs, true);
        let error = append(&wal, vec![record(1, 2, "two")]).unwrap_err();
        assert!(
            matches!(&error, WalError::Failed(reason) if reason.starts_with("injected")),
            "{error}"
        );
        assert_eq!(bench.failures.load(Ordering::SeqCst), 1);
        inject(&bench.fs, false);
        // Not even after the disk works again.
        assert!(matches!(
            append(&wal, vec![record(1, 3, "three")]),
            Err(WalError::Failed(_))
        ));
        drop(wal);
        let indexes: Vec<_> = bench.open().1.iter().map(|record| record.index).collect();
        assert!(indexes == [1] || indexes == [1, 2], "{indexes:?}");
    }
}

#[test]
fn what_no_file_can_hold_is_refused_at_once() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let limit = wal.append_limit();
    let overhead = record(1, 1, "").cost();
    let fits = WalRecord {
        payload: vec![0; limit - overhead].into(),
        ..record(1, 1, "")
    };
    let exceeds = WalRecord {
        payload: vec![0; limit - overhead + 1].into(),
        ..record(1, 1, "")
    };
    assert_eq!(
        append(&wal, vec![exceeds]),
        Err(WalError::TooLarge {
            bytes: limit + 1,
            limit
        })
    );
    append(&wal, vec![fits]).unwrap();
    let own = WalRecord {
        kind: WalRecord::RELEASED,
        ..record(1, 1, "")
    };
    assert!(matches!(append(&wal, vec![own]), Err(WalError::Invalid(_))));
    let sticky = WalRecord {
        kind: WalRecord::STICKY,
        ..record(1, 1, "payload")
    };
    assert!(matches!(
        append(&wal, vec![sticky]),
        Err(WalError::Invalid(_))
    ));
}

#[test]
fn impossible_sizes_are_refused() {
    let bench = Bench::new();
    for file_bytes in [0, 4096, 100_000, u64::MAX] {
        let options = WalOptions {
            file_bytes,
            ..bench.options()
        };
        let message = Wal::open(options, keys()).unwrap_err().to_string();
        assert!(
            message.contains("is not possible; choose a multiple of 4096"),
            "{message}"
        );
    }
}

#[test]
fn a_full_queue_makes_appenders_wait() {
    let bench = Bench::new();
    let options = WalOptions {
        queue_bytes: 8192,
        ..bench.options()
    };
    let (wal, _) = Wal::open(options, keys()).unwrap();
    let wal = Arc::new(wal);
    let done = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..4)
        .map(|shard| {
            let (wal, done) = (Arc::clone(&wal), Arc::clone(&done));
            std::thread::spawn(move || {
                for index in 0..50 {
                    let done = Arc::clone(&done);
                    wal.append(
                        vec![record(shard, index, &"x".repeat(2000))],
                        move |result| {
                            result.unwrap();
                            done.fetch_add(1, Ordering::SeqCst);
                        },
                    );
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    drop(wal);
    assert_eq!(done.load(Ordering::SeqCst), 200);
    assert_eq!(bench.open().1.len(), 200);
}

#[test]
fn a_panicking_callback_is_not_silent() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    wal.append(vec![record(1, 1, "x")], |_| panic!("on purpose"));
    eventually("the failure is noticed", || {
        bench.failures.load(Ordering::SeqCst) == 1
    });
    assert!(matches!(
        append(&wal, vec![record(1, 2, "x")]),
        Err(WalError::Failed(_))
    ));
}

#[test]
fn a_shard_that_is_forgotten_begins_anew_and_frees_its_files() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let vote = |text: &str| WalRecord {
        kind: WalRecord::STICKY,
        payload: Bytes::new(),
        ..record(1, 0, text)
    };
    append(&wal, vec![vote("old"), record(2, 1, "stays")]).unwrap();
    let last = fill(&bench, &wal, 1, 1, 3);
    // Not done yet when the shard is forgotten: it must not hit what comes after.
    wal.release(ShardId(1), last);
    let (sender, receiver) = mpsc::channel();
    let forget = |keep: Vec<WalRecord>| {
        let sender = sender.clone();
        wal.forget(ShardId(1), keep, move |result| sender.send(result).unwrap());
        let done = receiver.recv_timeout(Duration::from_secs(20));
        done.unwrap().unwrap();
    };
    let foreign = WalRecord {
        shard: ShardId(2),
        ..vote("another shard's")
    };
    forget(vec![vote("kept"), record(1, 5, "not sticky"), foreign]);
    drop(wal);
    let (wal, found) = bench.open();
    assert_eq!(found, [vote("kept"), record(2, 1, "stays")]);
    let (sender, receiver) = mpsc::channel();
    wal.forget(ShardId(1), Vec::new(), move |result| {
        sender.send(result).unwrap();
    });
    let done = receiver.recv_timeout(Duration::from_secs(20));
    done.unwrap().unwrap();
    drop(wal);
    let (wal, found) = bench.open();
    assert_eq!(found, [record(2, 1, "stays")]);

    append(&wal, vec![record(1, 1, "anew")]).unwrap();
    wal.release(ShardId(2), 1);
    eventually("the older files are free", || bench.files().len() == 1);
    drop(wal);
    let (wal, found) = bench.open();
    assert_eq!(
        found,
        [record(1, 1, "anew")],
        "below what had been released before"
    );
    append(&wal, vec![vote("new")]).unwrap();
    fill(&bench, &wal, 1, 2, 2);
    drop(wal);
    assert_eq!(bench.open().1[0], vote("new"));
}
