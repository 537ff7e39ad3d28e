//! Every place at which the power can fail: a log without threads on a disk in memory, cut off after each number of operations.

#![allow(clippy::unwrap_used)]
use std::{path::Path, sync::Arc};

use parking_lot::Mutex;

use super::{
    Wal, WalOptions, WalRecord,
    tests::{keys, record},
};
use crate::{ShardId, testing::MemoryFs};

fn options(fs: &MemoryFs) -> WalOptions {
    WalOptions {
        fs: Arc::new(fs.clone()),
        file_bytes: 64 << 10,
        on_failure: Arc::new(|_| {}),
        pumped: Some(Arc::new(|| {})),
        ..WalOptions::new("/wal")
    }
}

/// Appends until the power fails or all is written; returns the highest index that was acknowledged.
fn write(fs: &MemoryFs, from: u64) -> u64 {
    let acknowledged = Arc::new(Mutex::new(0));
    let Ok((wal, _)) = Wal::open(options(fs), keys()) else {
        return 0;
    };
    for index in from..from + 24 {
        let seen = Arc::clone(&acknowledged);
        let text = format!("{index:04096}");
        wal.append_waiting(vec![record(1, index, &text)], move |result| {
            if result.is_ok() {
                *seen.lock() = index;
            }
        });
        if index % 3 == 0 {
            wal.pump();
        }
        if index == from + 12 {
            wal.release(ShardId(1), from + 4);
        }
        if fs.is_off() {
            break;
        }
    }
    wal.pump();
    *acknowledged.lock()
}

fn indexes(records: &[WalRecord]) -> Vec<u64> {
    records.iter().map(|record| record.index).collect()
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_fails() {
    for operations in 0..120 {
        for seed in 0..3u64 {
            let fs = MemoryFs::new();
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + operations;
            let mut choose = move |most: u64| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                match seed {
                    0 => 0,
                    1 => most,
                    _ => (random >> 33) % (most + 1),
                }
            };
            fs.fail_power_after(operations);
            let acknowledged = write(&fs, 1);
            fs.crash(&mut choose);

            let (wal, found) = Wal::open(options(&fs), keys()).unwrap();
            let found = indexes(&found);
            assert!(
                found.windows(2).all(|pair| pair[0] + 1 == pair[1]),
                "no gaps: {found:?}"
            );
            let last = found.last().copied().unwrap_or(0);
            assert!(
                acknowledged <= last,
                "after {operations} operations (seed {seed}): {acknowledged} was acknowledged, {last} is the last"
            );
            drop(wal);
            assert!(write(&fs, last + 1) == last + 24, "it goes on");
        }
    }
}

#[test]
fn a_pumped_log_writes_when_it_is_told_to() {
    let fs = MemoryFs::new();
    let (wal, _) = Wal::open(options(&fs), keys()).unwrap();
    let done = Arc::new(Mutex::new(None));
    let told = Arc::clone(&done);
    wal.append(vec![record(1, 1, "one")], move |result| {
        *told.lock() = Some(result);
    });
    assert_eq!(*done.lock(), None);
    wal.pump();
    assert_eq!(*done.lock(), Some(Ok(())));
    assert!(
        fs.content(Path::new("/wal/wal-0000000000000001.log"))
            .is_some()
    );
}

/// That these tests can fail: a disk that only says that it has synced.
#[test]
fn a_disk_that_lies_loses_what_was_acknowledged() {
    let fs = MemoryFs::new();
    assert_eq!(write(&fs, 1), 24);
    fs.lie_about_syncs(true);
    assert_eq!(write(&fs, 25), 48);
    fs.crash(|_| 0);
    let found = Wal::open(options(&fs), keys()).map(|(_, found)| indexes(&found));
    assert!(found.is_err() || found.unwrap().last() < Some(&48));
}
