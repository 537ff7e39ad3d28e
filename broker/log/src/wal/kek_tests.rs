//! A write-ahead log that moves to another KEK.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use palisade_seal::{DirectoryProvider, FileKeys, KekId};

use super::{
    tests::record,
    {Wal, WalOptions, WalRecord},
};
use crate::ShardId;

fn options(dir: &Path) -> WalOptions {
    WalOptions {
        file_bytes: 64 << 10,
        ..WalOptions::new(dir.join("wal"))
    }
}

fn append(wal: &Wal, records: Vec<WalRecord>) {
    let (sender, receiver) = mpsc::channel();
    wal.append(records, move |result| sender.send(result).unwrap());
    let result = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    result.unwrap();
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Adds a key and makes it the current one.
fn rotate(kek: &Path, provider: &DirectoryProvider) -> KekId {
    let other = tempfile::tempdir().unwrap();
    let new = DirectoryProvider::create(other.path()).unwrap().ids()[0].clone();
    let file = format!("{new}.key");
    fs::copy(other.path().join(&file), kek.join(&file)).unwrap();
    fs::write(kek.join("current"), new.as_str()).unwrap();
    assert!(provider.reload().unwrap());
    new
}

#[test]
fn an_old_kek_can_be_removed_once_a_new_file_is_begun_and_the_old_ones_were_released() {
    let dir = tempfile::tempdir().unwrap();
    let kek = dir.path().join("kek");
    let provider = Arc::new(DirectoryProvider::create(&kek).unwrap());
    let old = provider.ids()[0].clone();
    let keys = Arc::new(FileKeys::new(provider.clone()));
    let (wal, _) = Wal::open(options(dir.path()), keys).unwrap();
    let sticky = WalRecord {
        kind: WalRecord::STICKY,
        payload: Vec::new().into(),
        ..record(2, 0, "vote")
    };
    append(&wal, vec![record(1, 1, "one"), sticky.clone()]);
    assert_eq!(wal.keks(), BTreeMap::from([(old.clone(), 1)]));
    // Nothing is to be left: nothing is.
    wal.renew();
    append(&wal, vec![record(1, 2, "two")]);
    assert_eq!(wal.keks(), BTreeMap::from([(old.clone(), 1)]));

    let new = rotate(&kek, &provider);
    append(&wal, vec![record(1, 3, "three")]);
    assert_eq!(wal.keks(), BTreeMap::from([(old.clone(), 1)]));
    wal.renew();
    let both = BTreeMap::from([(old.clone(), 1), (new.clone(), 1)]);
    eventually("a file under the new key", || wal.keks() == both);
    append(&wal, vec![record(1, 4, "four")]);
    drop(wal);

    // After a restart it is known which file is under which key, and everything is there.
    let open = || {
        let provider = Arc::new(DirectoryProvider::load(&kek).unwrap());
        Wal::open(options(dir.path()), Arc::new(FileKeys::new(provider)))
    };
    let (wal, records) = open().unwrap();
    assert_eq!(wal.keks(), both);
    assert_eq!(records.len(), 5);
    wal.release(ShardId(1), 3);
    let only = BTreeMap::from([(new, 1)]);
    eventually("the old file is released", || wal.keks() == only);
    drop(wal);
    fs::remove_file(kek.join(format!("{old}.key"))).unwrap();
    let (wal, records) = open().unwrap();
    assert_eq!(records, [sticky, record(1, 4, "four")]);
    assert_eq!(wal.keks(), only);
}

#[test]
fn without_a_new_file_the_old_key_is_missed_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let kek = dir.path().join("kek");
    let provider = Arc::new(DirectoryProvider::create(&kek).unwrap());
    let old = provider.ids()[0].clone();
    let keys = Arc::new(FileKeys::new(provider.clone()));
    let (wal, _) = Wal::open(options(dir.path()), keys).unwrap();
    append(&wal, vec![record(1, 1, "one")]);
    rotate(&kek, &provider);
    drop(wal);
    fs::remove_file(kek.join(format!("{old}.key"))).unwrap();
    let provider = Arc::new(DirectoryProvider::load(&kek).unwrap());
    let error = Wal::open(options(dir.path()), Arc::new(FileKeys::new(provider))).unwrap_err();
    assert!(error.to_string().contains(old.as_str()), "{error}");
}
