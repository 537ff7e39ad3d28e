//! Partition segments against a model, and one test for each kind of trouble.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod moving;
mod repair;

use std::{fs, path::Path, sync::Arc};

use crate::{
    LeaderEpoch, LogError, Offset, PartitionIndex, TopicId,
    segment::{FrameMeta, PartitionLog, PartitionPlace, PartitionState, Rolling, Stored},
    testing::FaultFs,
};
use bytes::Bytes;
use palisade_seal::{DirectoryProvider, FileKeys, KeyProvider};
use proptest::prelude::*;

const ROLLING: Rolling = Rolling {
    bytes: 4096,
    age_ms: i64::MAX,
};

struct Bench {
    dir: tempfile::TempDir,
    fs: FaultFs,
    keys: Arc<FileKeys>,
    topic: TopicId,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let provider: Arc<dyn KeyProvider> =
            Arc::new(DirectoryProvider::create(dir.path().join("kek")).unwrap());
        Self {
            dir,
            fs: FaultFs::default(),
            keys: Arc::new(FileKeys::new(provider)),
            topic: TopicId::random(),
        }
    }

    fn place(&self) -> PartitionPlace {
        PartitionPlace {
            dir: self.dir.path().join("p"),
            topic: self.topic,
            partition: PartitionIndex(3),
        }
    }

    fn open(&self, state: &PartitionState) -> PartitionLog {
        PartitionLog::open(
            self.place(),
            state,
            Arc::new(self.fs.clone()),
            Arc::clone(&self.keys),
        )
        .unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path().join("p"))
            .map(|dir| {
                dir.map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }
}

fn batch(base: i64, count: i64, size: usize) -> (FrameMeta, Bytes) {
    let meta = FrameMeta {
        base_offset: Offset(base),
        last_offset: Offset(base + count - 1),
        leader_epoch: LeaderEpoch(1),
        max_timestamp: base * 10,
        record_count: count as u32,
    };
    let fill = base as u8;
    (
        meta,
        Bytes::from(
            (0..size.max(16))
                .map(|n| fill.wrapping_add(n as u8))
                .collect::<Vec<_>>(),
        ),
    )
}

fn append(log: &PartitionLog, (meta, payload): &(FrameMeta, Bytes)) -> Stored {
    log.append(*meta, payload.clone(), ROLLING, 1000).unwrap()
}

fn filled(bench: &Bench, batches: i64) -> PartitionLog {
    let log = bench.open(&PartitionState::default());
    for n in 0..batches {
        assert!(matches!(
            append(&log, &batch(n * 2, 2, 1000)),
            Stored::OnDisk
        ));
    }
    log
}

fn read_all(log: &PartitionLog) -> Result<Vec<(FrameMeta, Bytes)>, LogError> {
    let mut all = Vec::new();
    let mut from = log.start_offset();
    while from < log.end_offset() {
        let part = log.read(from, 2500)?;
        from = Offset(part.last().expect("progress").0.last_offset.0 + 1);
        all.extend(part);
    }
    Ok(all)
}

fn damage(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn rolls_by_size_and_reads_across_segments() {
    let bench = Bench::new();
    let log = filled(&bench, 20);
    assert!(bench.files().len() >= 4, "{:?}", bench.files());
    let all = read_all(&log).unwrap();
    assert_eq!(
        all,
        (0..20).map(|n| batch(n * 2, 2, 1000)).collect::<Vec<_>>()
    );
    assert_eq!(
        log.read(Offset(7), 1).unwrap(),
        vec![batch(6, 2, 1000)],
        "the batch that holds the offset, whole"
    );
    assert!(log.read(Offset(40), 1).unwrap().is_empty());
    assert_eq!(
        log.offset_for_timestamp(141, Offset(0)).unwrap(),
        Some(Offset(16))
    );
    assert_eq!(log.offset_for_timestamp(381, Offset(0)).unwrap(), None);
    assert_eq!(log.max_timestamp(), Some(380));
}

#[test]
fn rolls_by_age_so_that_old_records_can_expire() {
    let bench = Bench::new();
    let log = bench.open(&PartitionState::default());
    let rolling = Rolling {
        bytes: u64::MAX,
        age_ms: 100,
    };
    for (n, now) in [(0, 1000), (1, 1099), (2, 1100), (3, 1150)] {
        let (meta, payload) = batch(n, 1, 50);
        log.append(meta, payload, rolling, now).unwrap();
    }
    let bases: Vec<_> = log
        .state()
        .segments
        .iter()
        .map(|segment| segment.base.0)
        .collect();
    assert_eq!(bases, [0, 2]);
}

#[test]
fn a_batch_larger_than_segment_and_window_comes_back() {
    let bench = Bench::new();
    let log = bench.open(&PartitionState::default());
    let large = [batch(0, 1, 300_000), batch(1, 1, 40), batch(2, 1, 200_000)];
    large
        .iter()
        .for_each(|entry| assert!(matches!(append(&log, entry), Stored::OnDisk)));
    assert_eq!(log.read(Offset(0), 10).unwrap(), large[..1]);
    log.sync(ROLLING, 0).unwrap();
    let again = bench.open(&log.state());
    assert_eq!(read_all(&again).unwrap(), large);
}

#[test]
fn what_is_not_in_order_is_refused() {
    let bench = Bench::new();
    let log = filled(&bench, 1);
    for (meta, payload) in [batch(3, 1, 50), batch(0, 1, 50)] {
        let error = log.append(meta, payload, ROLLING, 0).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("does not follow a log that ends at 2"),
            "{error}"
        );
    }
}

#[test]
fn a_restart_comes_back_to_the_manifest_and_no_further() {
    let bench = Bench::new();
    let log = filled(&bench, 5);
    log.sync(ROLLING, 0).unwrap();
    let manifest = log.state();
    for n in 5..20 {
        append(&log, &batch(n * 2, 2, 1000));
    }
    drop(log);
    let log = bench.open(&manifest);
    assert_eq!(log.end_offset(), Offset(10));
    assert_eq!(read_all(&log).unwrap().len(), 5);
    for n in 5..9 {
        append(&log, &batch(n * 2, 2, 700));
    }
    assert_eq!(read_all(&log).unwrap().len(), 9);
    assert_eq!(
        bench.open(&PartitionState::default()).end_offset(),
        Offset(0)
    );
    assert!(
        bench.files().is_empty(),
        "a log that no manifest lists leaves nothing"
    );
}

#[test]
fn start_advances_by_retention_and_never_back() {
    let bench = Bench::new();
    let log = filled(&bench, 20);
    let before = bench.files().len();
    assert_eq!(log.retention_start(i64::MAX, None, None), None);
    let start = log.retention_start(0, None, Some(9000)).unwrap();
    assert_eq!(log.advance_start(start), start);
    assert!(
        log.size() >= 9000 && log.size() < 9000 + 2 * ROLLING.bytes,
        "{}",
        log.size()
    );
    assert!(bench.files().len() < before);
    assert_eq!(log.advance_start(Offset(1)), start, "never back");
    assert_eq!(log.offset_for_timestamp(0, Offset(0)).unwrap(), Some(start));
    assert_eq!(
        log.advance_start(Offset(i64::MAX)),
        Offset(40),
        "never past the end"
    );
    assert_eq!((log.size(), bench.files().len()), (0, 0));
    append(&log, &batch(40, 2, 1000));
    assert_eq!(read_all(&log).unwrap(), vec![batch(40, 2, 1000)]);
}

#[test]
fn segments_removed_after_the_manifest_are_no_trouble_at_the_next_start() {
    let bench = Bench::new();
    let log = filled(&bench, 20);
    log.sync(ROLLING, 0).unwrap();
    let manifest = log.state();
    log.advance_start(Offset(20));
    drop(log);
    let log = bench.open(&manifest);
    assert!(
        matches!(log.read(Offset(0), 1), Err(LogError::Corrupt { .. })),
        "gone, until the log says why"
    );
    log.advance_start(Offset(20));
    assert!(log.quarantined().is_empty());
    assert_eq!(log.read(Offset(20), 1).unwrap(), vec![batch(20, 2, 1000)]);
}

#[test]
fn damage_anywhere_quarantines_the_segment_and_only_that() {
    for (at, what) in [
        (200u64, "first frame"),
        (1500, "payload"),
        (2000, "a later one"),
    ] {
        let bench = Bench::new();
        let log = filled(&bench, 20);
        log.sync(ROLLING, 0).unwrap();
        let log = bench.open(&log.state());
        let file = bench.dir.path().join("p").join(&bench.files()[0]);
        damage(&file, at);
        let error = match read_all(&log) {
            Err(error) => error,
            Ok(all) => panic!("{what}: {} batches were served", all.len()),
        };
        let LogError::Corrupt {
            file: named,
            offset,
            ..
        } = &error
        else {
            panic!("{what}: {error}")
        };
        assert_eq!((named, *offset <= at), (&file, true), "{what}: {error}");
        let listed = log.quarantined();
        assert_eq!(listed.len(), 1, "{what}");
        assert!(
            listed[0]
                .file
                .to_string_lossy()
                .ends_with(".seg.quarantined")
                && listed[0].file.exists()
        );
        assert!(
            log.read(Offset(0), 1)
                .unwrap_err()
                .to_string()
                .contains("is quarantined")
        );
        let rest = log.read(listed[0].end, 1).unwrap();
        assert_eq!(
            rest[0].0.base_offset, listed[0].end,
            "{what}: the next segment is served"
        );
        // Appending goes on, and the mark outlives a restart, with and without a new manifest.
        append(&log, &batch(40, 2, 100));
        log.sync(ROLLING, 0).unwrap();
        let again = bench.open(&log.state());
        assert_eq!(again.quarantined(), listed);
        assert_eq!(again.read(Offset(40), 1).unwrap(), vec![batch(40, 2, 100)]);
    }
}

#[test]
fn damage_in_the_active_segment_lets_appends_go_on_in_a_new_one() {
    let bench = Bench::new();
    let log = filled(&bench, 2);
    log.sync(ROLLING, 0).unwrap();
    let log = bench.open(&log.state());
    damage(&bench.dir.path().join("p").join(&bench.files()[0]), 200);
    assert!(matches!(append(&log, &batch(4, 2, 100)), Stored::OnDisk));
    assert_eq!(log.quarantined().len(), 1);
    assert_eq!(log.read(Offset(4), 1).unwrap(), vec![batch(4, 2, 100)]);
    assert!(log.read(Offset(0), 1).is_err());
}

#[test]
fn a_segment_put_in_place_of_another_is_refused() {
    let bench = Bench::new();
    let log = filled(&bench, 20);
    log.sync(ROLLING, 0).unwrap();
    let (state, files) = (log.state(), bench.files());
    let dir = bench.dir.path().join("p");
    fs::copy(dir.join(&files[1]), dir.join(&files[0])).unwrap();
    let log = bench.open(&state);
    assert!(matches!(
        log.read(Offset(0), 1),
        Err(LogError::Corrupt { .. })
    ));
}

#[test]
fn a_shortened_file_is_damage() {
    let bench = Bench::new();
    let log = filled(&bench, 2);
    log.sync(ROLLING, 0).unwrap();
    let state = log.state();
    let path = bench.dir.path().join("p").join(&bench.files()[0]);
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    let log = bench.open(&state);
    assert_eq!(log.quarantined().len(), 1);
    assert!(
        log.read(Offset(0), 1)
            .unwrap_err()
            .to_string()
            .contains("bytes were written")
    );
}

#[test]
fn another_kek_is_a_key_error_and_quarantines_nothing() {
    let bench = Bench::new();
    let log = filled(&bench, 2);
    log.sync(ROLLING, 0).unwrap();
    let state = log.state();
    let other: Arc<dyn KeyProvider> =
        Arc::new(DirectoryProvider::create(bench.dir.path().join("other")).unwrap());
    let log = PartitionLog::open(
        bench.place(),
        &state,
        Arc::new(bench.fs.clone()),
        Arc::new(FileKeys::new(other)),
    )
    .unwrap();
    let error = log.read(Offset(0), 1).unwrap_err();
    assert!(matches!(error, LogError::Key { .. }), "{error}");
    assert!(
        error.to_string().starts_with("cannot use the key of"),
        "{error}"
    );
    assert!(log.quarantined().is_empty());
}

#[test]
fn a_full_disk_keeps_batches_in_memory_until_there_is_space() {
    let bench = Bench::new();
    let log = filled(&bench, 3);
    bench.fs.set_space(Some(500));
    for n in 3..8 {
        match append(&log, &batch(n * 2, 2, 1000)) {
            Stored::InMemory(error) => assert!(n > 3 || error.is_full(), "{error}"),
            Stored::OnDisk => panic!("batch {n} was written to a full disk"),
        }
    }
    assert_eq!(log.backlog(), 5000);
    assert_eq!(
        read_all(&log).unwrap().len(),
        8,
        "everything stays readable"
    );
    assert_eq!(
        log.offset_for_timestamp(140, Offset(0)).unwrap(),
        Some(Offset(14))
    );
    assert!(log.sync(ROLLING, 0).unwrap_err().is_full());
    bench.fs.set_space(None);
    log.sync(ROLLING, 0).unwrap();
    assert_eq!(log.backlog(), 0);
    assert_eq!(
        read_all(&bench.open(&log.state())).unwrap(),
        (0..8).map(|n| batch(n * 2, 2, 1000)).collect::<Vec<_>>()
    );
}

#[test]
fn what_is_written_beside_a_sync_is_for_the_next_one() {
    let bench = Bench::new();
    let log = bench.open(&PartitionState::default());
    append(&log, &batch(0, 1, 100));
    assert!(log.sync(ROLLING, 0).unwrap());
    assert!(!log.sync(ROLLING, 0).unwrap());
    let segment = Arc::clone(&log.inner.read().segments[0]);
    bench.fs.before_writes(move || {
        segment.sync().unwrap();
    });
    append(&log, &batch(1, 1, 100));
    log.sync(ROLLING, 0).unwrap();
    let (state, written) = (log.state(), read_all(&log).unwrap());
    drop(log);
    bench.fs.crash(|| false).unwrap();
    let log = bench.open(&state);
    assert!(log.quarantined().is_empty());
    assert_eq!(read_all(&log).unwrap(), written);
}

#[test]
fn a_failed_sync_is_not_trusted_again_before_a_restart() {
    let bench = Bench::new();
    let log = filled(&bench, 3);
    log.sync(ROLLING, 0).unwrap();
    let manifest = log.state();
    let syncs = || bench.fs.syncs();
    let before = syncs();
    log.sync(ROLLING, 0).unwrap();
    assert_eq!(syncs(), before, "nothing to do");

    append(&log, &batch(6, 2, 1000));
    bench.fs.fail_syncs(true);
    let error = log.sync(ROLLING, 0).unwrap_err();
    assert!(matches!(error, LogError::SyncFailed { .. }), "{error}");
    bench.fs.fail_syncs(false);
    let error = log.sync(ROLLING, 0).unwrap_err();
    assert!(
        error.to_string().contains("an earlier sync of it failed"),
        "{error}"
    );

    let log = bench.open(&manifest);
    append(&log, &batch(6, 2, 1000));
    log.sync(ROLLING, 0).unwrap();
    assert!(syncs() > before);
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        count: i64,
        size: usize,
    },
    Read {
        from: prop::sample::Index,
        max: usize,
    },
    Time(prop::sample::Index),
    Advance(prop::sample::Index),
    Checkpoint,
    Crash,
    Space(bool),
    CloseIdle,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1i64..5, 16usize..3000).prop_map(|(count, size)| Step::Append { count, size }),
        4 => (any::<prop::sample::Index>(), 0usize..6000).prop_map(|(from, max)| Step::Read { from, max }),
        2 => any::<prop::sample::Index>().prop_map(Step::Time),
        1 => any::<prop::sample::Index>().prop_map(Step::Advance),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Crash),
        1 => any::<bool>().prop_map(Step::Space),
        1 => Just(Step::CloseIdle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// A vector of batches is the model; a crash takes both back to the last manifest.
    #[test]
    fn behaves_as_a_vector_of_batches(steps in proptest::collection::vec(any_step(), 1..120)) {
        let bench = Bench::new();
        let mut log = bench.open(&PartitionState::default());
        let (mut model, mut start, mut end) = (Vec::<(FrameMeta, Bytes)>::new(), 0i64, 0i64);
        let mut saved = (PartitionState::default(), model.clone(), 0i64, 0i64);
        for step in steps {
            match step {
                Step::Append { count, size } => {
                    let entry = batch(end, count, size);
                    append(&log, &entry);
                    end += count;
                    model.push(entry);
                }
                Step::Read { from, max } => {
                    let from = start + from.index((end - start + 1) as usize) as i64;
                    let got = log.read(Offset(from), max).unwrap();
                    let expected: Vec<_> = model.iter().filter(|(meta, _)| meta.last_offset.0 >= from).take(got.len()).cloned().collect();
                    prop_assert_eq!(got.is_empty(), from == end);
                    prop_assert_eq!(got, expected);
                }
                Step::Time(at) => {
                    let wanted = at.index(end as usize + 1) as i64 * 10;
                    let expected = model.iter().find(|(meta, _)| meta.max_timestamp >= wanted && meta.last_offset.0 >= start);
                    prop_assert_eq!(log.offset_for_timestamp(wanted, Offset(0)).unwrap(), expected.map(|(meta, _)| meta.base_offset));
                }
                Step::Advance(to) => {
                    start = start.max(to.index(end as usize + 1) as i64);
                    prop_assert_eq!(log.advance_start(Offset(start)), Offset(start));
                }
                Step::Checkpoint => {
                    if log.sync(ROLLING, 0).is_ok() {
                        saved = (log.state(), model.clone(), start, end);
                    }
                }
                Step::Crash => {
                    // What the manifest does not know of comes again from the write-ahead log, the removals too.
                    let replay: Vec<_> = model[saved.1.len()..].to_vec();
                    log = bench.open(&saved.0);
                    replay.iter().for_each(|entry| { append(&log, entry); });
                    log.advance_start(Offset(start));
                    prop_assert!(log.quarantined().is_empty());
                }
                Step::Space(full) => bench.fs.set_space(full.then_some(2000)),
                Step::CloseIdle => log.close_idle(),
            }
            prop_assert_eq!((log.start_offset(), log.end_offset()), (Offset(start), Offset(end)));
        }
    }
}
