//! Disks that are full, damaged or read by someone who should not.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use palisade_log::{LogError, Offset, PartitionIndex};
use palisade_seal::{DirectoryProvider, FileKeys, KeyProvider};

use super::bench::{Bench, Opened, batch, eventually, fetch, produce, read_values, values_of};
use crate::{Acks, DataError, Isolation};

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path))
        } else {
            files.push(path)
        }
    }
    files
}

fn segments(bench: &Bench) -> Vec<PathBuf> {
    let mut files: Vec<_> = files_below(&bench.data_dir())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_produced_can_be_read_from_the_disk() {
    const MARKER: &str = "find-me-if-you-can";
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    for n in 0..20 {
        let mut sent = batch(MARKER, 5).producer(77, 0, n * 5);
        for record in &mut sent.records {
            record.key = Some(MARKER.into());
            record.headers = vec![(MARKER.to_owned(), Some(MARKER.into()))];
        }
        assert!(
            sent.build()
                .windows(MARKER.len())
                .any(|part| part == MARKER.as_bytes()),
            "not compressed"
        );
        produce(&plane, topic, &sent).await.unwrap();
        if n == 10 {
            plane.checkpoint().await.unwrap();
        }
    }
    let command = palisade_coordinator::offsets::OffsetCommand::DeleteGroup {
        group: MARKER.to_owned(),
    };
    plane.apply_offsets(MARKER, command).await.unwrap();
    bench.kill(plane).await;
    let files = files_below(bench.dir.path());
    assert!(
        files.len() >= 5,
        "write-ahead log, manifests, segments: {files:?}"
    );
    for file in files {
        let bytes = fs::read(&file).unwrap();
        assert!(
            !bytes
                .windows(MARKER.len())
                .any(|part| part == MARKER.as_bytes()),
            "found in {}",
            file.display()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_data_disk_stops_producers_only_and_heals() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    produce(&plane, topic, &batch("before", 10)).await.unwrap();
    bench.data_fs.set_space(Some(0));
    // Accepted before anybody knew: committed, so it must stay.
    produce(&plane, topic, &batch("during", 10)).await.unwrap();
    assert!(plane.is_full());
    let error = produce(&plane, topic, &batch("refused", 1))
        .await
        .unwrap_err();
    assert!(matches!(error, DataError::DiskFull), "{error}");
    assert_eq!(
        error.to_string(),
        "the disk is full; records can be read, none can be appended until space is freed"
    );
    assert_eq!(read_values(&plane, topic).len(), 20, "consumers go on");
    assert!(
        plane.checkpoint().await.is_err(),
        "nothing is let go of that is in memory only"
    );

    bench.data_fs.set_space(None);
    eventually("there is space again", || !plane.is_full()).await;
    assert_eq!(
        produce(&plane, topic, &batch("after", 1))
            .await
            .unwrap()
            .base_offset,
        Offset(20)
    );
    plane.checkpoint().await.unwrap();
    bench.kill(plane).await;
    let plane = bench.start().await;
    assert_eq!(read_values(&plane, topic).len(), 21);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_synced_is_written_again_by_the_next_start() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    produce(&plane, topic, &batch("a", 10)).await.unwrap();
    bench.data_fs.fail_syncs(true);
    assert!(plane.checkpoint().await.is_err());
    bench.data_fs.fail_syncs(false);
    let error = plane.checkpoint().await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("what it holds is unknown until a restart writes it again"),
        "{error}"
    );
    bench.kill(plane).await;
    let plane = bench.start().await;
    assert_eq!(read_values(&plane, topic).len(), 10);
    plane.checkpoint().await.unwrap();
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_many_partitions_counts_when_all_of_them_are_synced() {
    const PARTITIONS: i32 = 100;
    let bench = Bench::new();
    let topic = bench.catalog.create(100, |_| {});
    let mut plane = bench.start().await;
    let mut written = 0;
    // Each partition takes two changes of the disk or more, so the disk is gone in the midst of it, or it is not.
    for steps in [Some(60), Some(150), None] {
        for index in 0..PARTITIONS {
            let records = Bytes::from(batch(&format!("{index}-{written}"), 1).build());
            plane
                .produce(topic, PartitionIndex(index), records, Acks::All)
                .await
                .unwrap();
        }
        written += 1;
        bench.data_fs.set_steps(steps);
        assert_eq!(plane.checkpoint().await.is_ok(), steps.is_none());
        // The power fails: what was not synced is lost.
        bench.data_fs.crash(|| false).unwrap();
        bench.kill(plane).await;
        plane = bench.start().await;
        for index in 0..PARTITIONS {
            let end = plane.offsets_of(topic, PartitionIndex(index)).unwrap().1;
            assert_eq!(end, Offset(written), "partition {index}");
            let isolation = Isolation::ReadUncommitted;
            let at = Offset(written - 1);
            let fetched = plane.fetch(topic, PartitionIndex(index), at, 1 << 20, isolation);
            let records = Opened::of(fetched.unwrap()).unwrap().records;
            let value = format!("{index}-{}-0", written - 1);
            assert!(values_of(&records).contains(&value), "partition {index}");
        }
    }
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_a_full_disk_serves_consumers_and_heals() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    for n in 0..10 {
        produce(&plane, topic, &batch(&n.to_string(), 10))
            .await
            .unwrap();
    }
    bench.kill(plane).await;
    bench.data_fs.set_space(Some(1000));
    let plane = bench.start().await;
    assert_eq!(read_values(&plane, topic).len(), 100);
    assert!(matches!(
        produce(&plane, topic, &batch("x", 1)).await,
        Err(DataError::DiskFull)
    ));
    bench.data_fs.set_space(None);
    eventually("there is space again", || !plane.is_full()).await;
    produce(&plane, topic, &batch("x", 1)).await.unwrap();
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_write_ahead_log_stops_producers_only_and_heals() {
    let mut bench = Bench::new();
    bench.wal_file_bytes = 64 << 10;
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    produce(&plane, topic, &batch("before", 10)).await.unwrap();
    bench.wal_fs.set_space(Some(0));
    let mut acknowledged = 10;
    let mut refused = 0;
    for _ in 0..200 {
        match produce(&plane, topic, &batch("x", 50)).await {
            Ok(_) => acknowledged += 50,
            Err(DataError::DiskFull | DataError::OutOfTurn) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if refused >= 3 {
            break;
        }
    }
    assert!(refused >= 3, "the log is full at some point");
    assert!(
        read_values(&plane, topic).len() >= acknowledged,
        "consumers go on"
    );
    bench.wal_fs.set_space(None);
    for _ in 0..3000 {
        if produce(&plane, topic, &batch("after", 1)).await.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let values = read_values(&plane, topic);
    assert_eq!(values.last().map(String::as_str), Some("after-0"));
    assert!(values.len() > acknowledged);
    bench.kill(plane).await;
    let plane = bench.start().await;
    assert_eq!(read_values(&plane, topic), values);
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_reported_with_file_and_offset_and_never_served() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    for n in 0..60 {
        produce(&plane, topic, &batch(&n.to_string(), 40))
            .await
            .unwrap();
    }
    plane.shutdown().await;
    drop(plane);
    let files = segments(&bench);
    assert!(files.len() >= 3, "{files:?}");
    let mut bytes = fs::read(&files[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&files[1], bytes).unwrap();

    let plane = bench.start().await;
    let base: i64 = files[1]
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let next: i64 = files[2]
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let mut served = Vec::new();
    let mut offset = base;
    let error = loop {
        match fetch(&plane, topic, offset) {
            Ok(fetched) => {
                let last = crate::records::batches(&fetched.records)
                    .last()
                    .unwrap()
                    .unwrap()
                    .0
                    .last_offset();
                served.push(last);
                offset = last + 1;
                assert!(offset < next, "the damaged batch was served");
            }
            Err(error) => break error,
        }
    };
    let DataError::Corrupt(message) = &error else {
        panic!("{error}")
    };
    assert!(
        message.contains(&files[1].display().to_string()) && message.contains("is corrupt at byte"),
        "{message}"
    );
    assert!(
        matches!(fetch(&plane, topic, base), Err(DataError::Corrupt(_))),
        "the whole file is out of service"
    );
    let listed = plane.quarantined();
    assert_eq!(
        (listed.len(), listed[0].topic, listed[0].base),
        (1, topic, Offset(base))
    );
    assert!(
        fetch(&plane, topic, 0).is_ok() && fetch(&plane, topic, next).is_ok(),
        "the others are served"
    );
    produce(&plane, topic, &batch("on", 1)).await.unwrap();
    plane.shutdown().await;
    drop(plane);
    let plane = bench.start().await;
    assert_eq!(plane.quarantined().len(), 1, "and it stays so");
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_kek_and_a_lost_manifest_are_refused_with_what_to_do() {
    let bench = Bench::new();
    let topic = bench.catalog.create(1, |_| {});
    let plane = bench.start().await;
    produce(&plane, topic, &batch("a", 1)).await.unwrap();
    plane.shutdown().await;
    drop(plane);
    let other: Arc<dyn KeyProvider> =
        Arc::new(DirectoryProvider::create(bench.dir.path().join("other")).unwrap());
    let setup = crate::shard_data::ShardSetup {
        id: palisade_log::ShardId(1),
        dir: bench.data_dir().join("shard-1"),
        fs: Arc::new(bench.data_fs.clone()),
        keys: Arc::new(FileKeys::new(other)),
        checkpoint_due: Arc::default(),
        checkpoint_bytes: 1,
        segment_bytes: 1,
    };
    let error = crate::machine::DataMachine::open(setup).unwrap_err();
    assert!(
        matches!(error, DataError::Log(LogError::Key { .. })),
        "{error}"
    );
    assert!(
        error.to_string().contains("cannot use the key of"),
        "{error}"
    );

    fs::remove_file(bench.data_dir().join("shard-1/manifest")).unwrap();
    let error = bench.try_start(bench.keys()).await.unwrap_err();
    assert!(error.to_string().ends_with("is gone but partitions are there; restore it, or move the directory away to start without them"), "{error}");
}
