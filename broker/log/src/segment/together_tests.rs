//! Many logs synced with their volume.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use palisade_seal::{DirectoryProvider, FileKeys};
use parking_lot::Mutex;

use super::{FrameMeta, PartitionLog, PartitionPlace, PartitionState, Rolling, sync_together};
use crate::{
    LeaderEpoch, LogError, Offset, PartitionIndex, TopicId,
    fs::{FileSystem, RealFs, Volume},
    testing::MemoryFs,
};

const ROLLING: Rolling = Rolling {
    bytes: u64::MAX,
    age_ms: i64::MAX,
};
const LOGS: i32 = 5;

/// Some logs below one directory.
struct Bench {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    keys: Arc<FileKeys>,
    topic: TopicId,
    _kek: tempfile::TempDir,
}

impl Bench {
    fn new(fs: impl FileSystem, dir: &Path) -> Self {
        let kek = tempfile::tempdir().unwrap();
        let provider = DirectoryProvider::create(kek.path().join("kek")).unwrap();
        Self {
            fs: Arc::new(fs),
            dir: dir.to_path_buf(),
            keys: Arc::new(FileKeys::new(Arc::new(provider))),
            topic: TopicId::random(),
            _kek: kek,
        }
    }

    fn open(&self, partition: i32, state: &PartitionState) -> PartitionLog {
        let place = PartitionPlace {
            dir: self.dir.join(format!("p{partition}")),
            topic: self.topic,
            partition: PartitionIndex(partition),
        };
        PartitionLog::open(place, state, Arc::clone(&self.fs), Arc::clone(&self.keys)).unwrap()
    }

    /// Logs with a batch each.
    fn filled(&self) -> Vec<PartitionLog> {
        let logs = (0..LOGS).map(|partition| self.open(partition, &PartitionState::default()));
        logs.inspect(|log| append(log, 0)).collect()
    }

    fn volume(&self) -> Box<dyn Volume> {
        self.fs.volume(&self.dir).unwrap().unwrap()
    }
}

fn append(log: &PartitionLog, base: i64) {
    let meta = FrameMeta {
        base_offset: Offset(base),
        last_offset: Offset(base),
        leader_epoch: LeaderEpoch(1),
        max_timestamp: 1,
        record_count: 1,
    };
    let payload = Bytes::from(vec![7; 100]);
    log.append(meta, payload, ROLLING, 1000).unwrap();
}

fn all(logs: &[PartitionLog]) -> Vec<&PartitionLog> {
    logs.iter().collect()
}

#[test]
fn what_is_synced_together_is_there_after_a_crash() {
    let disk = MemoryFs::new();
    let bench = Bench::new(disk.clone(), Path::new("/d"));
    let logs = bench.filled();
    let left_out = bench.open(LOGS, &PartitionState::default());
    append(&left_out, 0);
    let volume = bench.volume();

    // A segment and a directory each.
    let synced = sync_together(volume.as_ref(), &all(&logs), 2 * LOGS as usize).unwrap();
    assert_eq!(synced, 2 * LOGS as usize);
    for log in &logs {
        assert!(!log.sync(ROLLING, 1000).unwrap(), "nothing was left");
    }
    // Of what comes later nothing is kept.
    for log in &logs {
        append(log, 1);
    }
    let states: Vec<_> = logs.iter().map(PartitionLog::state).collect();
    disk.crash(|_| 0);
    for (partition, state) in (0..).zip(&states) {
        let kept = disk.content(&bench.dir.join(format!("p{partition}/{:020}.seg", 0)));
        let length = state.segments.first().unwrap().length;
        let kept = kept.unwrap().len() as u64;
        assert!(kept > 0 && kept < length, "{kept} of {length} bytes");
    }
}

#[test]
fn a_few_files_are_not_worth_it() {
    let disk = MemoryFs::new();
    let bench = Bench::new(disk.clone(), Path::new("/d"));
    let logs = bench.filled();
    let before = disk.syncs();
    let synced = sync_together(bench.volume().as_ref(), &all(&logs), 2 * LOGS as usize + 1);
    assert_eq!((synced.unwrap(), disk.syncs()), (0, before));
    for log in &logs {
        assert!(log.sync(ROLLING, 1000).unwrap());
    }
}

#[test]
fn the_file_that_could_not_be_written_says_so_after_its_volume_did() {
    for nth in 0..LOGS {
        let disk = MemoryFs::new();
        let bench = Bench::new(disk.clone(), Path::new("/d"));
        let logs = bench.filled();
        disk.fail_sync_after(u64::try_from(nth).unwrap());
        sync_together(bench.volume().as_ref(), &all(&logs), 1).unwrap_err();
        let mut failed = Vec::new();
        for (partition, log) in (0..).zip(&logs) {
            match log.sync(ROLLING, 1000) {
                Ok(synced) => assert!(synced, "nobody may rely on the sync that failed"),
                Err(LogError::SyncFailed { .. }) => failed.push(partition),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(failed, [nth]);
        // It never takes part again.
        let log = logs.get(usize::try_from(nth).unwrap()).unwrap();
        sync_together(bench.volume().as_ref(), &[log], 1).unwrap();
        log.sync(ROLLING, 1000).unwrap_err();
    }
}

#[test]
fn a_real_volume_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(RealFs, dir.path());
    let logs = bench.filled();
    // `None` on kernels that would not report what failed.
    if let Some(volume) = bench.fs.volume(dir.path()).unwrap() {
        let synced = sync_together(volume.as_ref(), &all(&logs), 1).unwrap();
        assert_eq!(synced, 2 * LOGS as usize);
        for log in &logs {
            assert!(!log.sync(ROLLING, 1000).unwrap());
        }
    }
}

/// A volume whose sync begins, and lasts until it is told.
#[derive(Debug)]
struct Slow {
    begun: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Volume for Slow {
    fn sync(&self) -> io::Result<()> {
        self.begun.send(()).unwrap();
        self.go_on.lock().recv().unwrap();
        Ok(())
    }
}

#[test]
fn who_comes_second_waits_and_what_is_appended_meanwhile_needs_another_sync() {
    let bench = Bench::new(MemoryFs::new(), Path::new("/d"));
    let logs = bench.filled();
    let ((begun, has_begun), (go_on, may_go_on)) = (channel(), channel());
    let slow = Slow {
        begun,
        go_on: Mutex::new(may_go_on),
    };
    let (second, second_is_done) = channel();
    let (first, last) = (logs.first().unwrap(), logs.last().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| sync_together(&slow, &all(&logs), 1).unwrap());
        has_begun.recv().unwrap();
        append(last, 1);
        scope.spawn(move || second.send(first.sync(ROLLING, 1000).unwrap()).unwrap());
        let early = second_is_done.recv_timeout(Duration::from_millis(100));
        assert!(early.is_err(), "the other sync is not done yet");
        go_on.send(()).unwrap();
        assert!(!second_is_done.recv().unwrap(), "it was synced meanwhile");
    });
    assert!(last.sync(ROLLING, 1000).unwrap());
}
