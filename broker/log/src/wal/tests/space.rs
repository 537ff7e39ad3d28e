//! A full disk, and those who wait for space.

use super::*;

#[test]
fn a_full_disk_refuses_writers_and_heals() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    bench.fs.set_space(Some(0));
    let mut index = 0;
    let refused = loop {
        index += 1;
        match append(&wal, vec![record(1, index, &"x".repeat(4096))]) {
            Ok(()) => assert!(index < 100),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, WalError::Full);
    assert!(wal.is_full());
    assert_eq!(
        append(&wal, vec![record(1, index, &"x".repeat(4096))]),
        Err(WalError::Full)
    );

    bench.fs.set_space(None);
    eventually("there is space", || !wal.is_full());
    append(&wal, vec![record(1, index, "after")]).unwrap();
    drop(wal);
    let (_, records) = bench.open();
    let indexes: Vec<_> = records.iter().map(|record| record.index).collect();
    assert_eq!(indexes, (1..=index).collect::<Vec<_>>());
    assert_eq!(&*records.last().unwrap().payload, b"after");
    assert_eq!(bench.failures.load(Ordering::SeqCst), 0);
}

#[test]
fn those_who_wait_for_space_keep_their_order_and_a_release_makes_space() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let mut index = fill(&bench, &wal, 1, 1, 2);
    bench.fs.set_space(Some(0));
    while append(&wal, vec![record(1, index + 1, &"x".repeat(4096))]).is_ok() {
        index += 1;
    }
    let (sender, receiver) = mpsc::channel();
    for next in 1..=3 {
        let sender = sender.clone();
        wal.append_waiting(
            vec![record(1, index + next, &"y".repeat(4096))],
            move |result| {
                sender.send((next, result)).unwrap();
            },
        );
    }
    assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err());
    assert_eq!(
        append(&wal, vec![record(2, 1, &"z".repeat(4096))]),
        Err(WalError::Full)
    );
    wal.release(ShardId(1), index);
    for next in 1..=3 {
        assert_eq!(
            receiver.recv_timeout(Duration::from_secs(20)).unwrap(),
            (next, Ok(()))
        );
    }
    drop(wal);
    let indexes: Vec<_> = bench.open().1.iter().map(|record| record.index).collect();
    assert_eq!(indexes, [index + 1, index + 2, index + 3]);
}

#[test]
fn those_who_wait_for_space_are_not_blocked_by_a_full_queue() {
    let bench = Bench::new();
    let options = WalOptions {
        queue_bytes: 8192,
        ..bench.options()
    };
    let (wal, _) = Wal::open(options, keys()).unwrap();
    bench.fs.set_space(Some(0));
    while append(&wal, vec![record(1, 1, &"x".repeat(4096))]).is_ok() {}
    let (sender, receiver) = mpsc::channel();
    for index in 0..20 {
        let sender = sender.clone();
        wal.append_waiting(vec![record(1, index, &"y".repeat(4096))], move |result| {
            sender.send(result).unwrap();
        });
    }
    assert!(receiver.try_recv().is_err(), "there is no space yet");
    bench.fs.set_space(None);
    for _ in 0..20 {
        assert_eq!(
            receiver.recv_timeout(Duration::from_secs(20)).unwrap(),
            Ok(())
        );
    }
}

#[test]
fn closing_does_not_wait_for_space() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    bench.fs.set_space(Some(0));
    while append(&wal, vec![record(1, 1, &"x".repeat(4096))]).is_ok() {}
    let (sender, receiver) = mpsc::channel();
    wal.append_waiting(vec![record(1, 2, &"y".repeat(4096))], move |result| {
        sender.send(result).unwrap()
    });
    drop(wal);
    assert!(receiver.recv().unwrap().is_err());
}

#[test]
fn what_a_full_disk_left_of_a_frame_is_no_damage_in_a_file_that_is_not_the_last_any_more() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    for index in 1..=3 {
        append(&wal, vec![record(1, index, &"x".repeat(6_000))]).unwrap();
    }
    bench.fs.fill_up_within_writes(true);
    let refused = append(&wal, vec![record(1, 4, &"y".repeat(4_500))]);
    assert_eq!(refused, Err(WalError::Full));
    bench.fs.fill_up_within_writes(false);
    // It does not fit into the rest of the file.
    append(&wal, vec![record(1, 5, &"z".repeat(11_000))]).unwrap();
    assert_eq!(bench.files().len(), 2);
    drop(wal);
    let indexes: Vec<_> = bench.open().1.iter().map(|record| record.index).collect();
    assert_eq!(indexes, [1, 2, 3, 5]);
}

#[test]
fn a_file_that_is_not_needed_any_more_has_no_header() {
    let bench = Bench::new();
    let (wal, _) = bench.open();
    let last = fill(&bench, &wal, 1, 1, 4);
    wal.release(ShardId(1), last);
    eventually("files are freed", || bench.files().len() == 1);
    let spares = || -> Vec<PathBuf> {
        let entries = fs::read_dir(bench.dir.path()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.to_str().unwrap().contains("/spare-"))
            .collect()
    };
    let is_erased = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes[..BLOCK as usize].iter().all(|byte| *byte == 0)
    };
    eventually("headers are written over", || {
        let spares = spares();
        // One is made ahead, the others were in use.
        spares.len() >= 3 && spares.iter().all(is_erased)
    });
}
