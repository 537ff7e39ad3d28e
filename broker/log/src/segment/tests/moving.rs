//! Logs that take over others, and logs that are gone while somebody reads them.

use super::*;

impl Bench {
    fn place_at(&self, dir: &str) -> PartitionPlace {
        PartitionPlace {
            dir: self.dir.path().join(dir),
            ..self.place()
        }
    }

    fn empty(&self, dir: &str, start: i64, end: i64) -> PartitionLog {
        PartitionLog::empty(
            self.place_at(dir),
            Offset(start),
            Offset(end),
            Arc::new(self.fs.clone()),
            Arc::clone(&self.keys),
        )
    }

    /// A log in `dir` with batches of two from `from` on.
    fn staged(&self, dir: &str, from: i64, batches: i64) -> PartitionLog {
        let log = self.empty(dir, from, from);
        for n in 0..batches {
            append(&log, &batch(from + n * 2, 2, 1000));
        }
        log
    }
}

fn expected(batches: i64) -> Vec<(FrameMeta, Bytes)> {
    (0..batches).map(|n| batch(n * 2, 2, 1000)).collect()
}

#[test]
fn a_log_takes_over_what_was_written_beside_it() {
    let bench = Bench::new();
    let log = filled(&bench, 5);
    let before = {
        log.sync(ROLLING, 0).unwrap();
        log.state()
    };
    let staged = bench.staged("staged", 10, 9);
    log.adopt(&staged, ROLLING, 0).unwrap();
    assert!(!bench.dir.path().join("staged").exists());
    assert_eq!(read_all(&log).unwrap(), expected(14));
    append(&log, &batch(28, 2, 1000));
    log.sync(ROLLING, 0).unwrap();
    let after = log.state();
    drop(log);

    assert_eq!(read_all(&bench.open(&after)).unwrap(), expected(15));
    // The manifest was not replaced: the old state is all there, and nothing else.
    let old = bench.open(&before);
    assert_eq!(read_all(&old).unwrap(), expected(5));
    assert_eq!(bench.files().len(), before.segments.len());
    append(&old, &batch(10, 2, 1000));
    assert_eq!(read_all(&old).unwrap(), expected(6));
}

#[test]
fn only_what_follows_is_taken_over() {
    let bench = Bench::new();
    let log = filled(&bench, 5);
    for from in [8, 12] {
        let staged = bench.staged("staged", from, 2);
        let error = log.adopt(&staged, ROLLING, 0).unwrap_err();
        assert!(matches!(error, LogError::Invalid(_)), "{error}");
        staged.remove().unwrap();
    }
    let damaged = bench.staged("staged", 10, 2);
    damaged.quarantine(Offset(10), "a test says so");
    assert!(log.adopt(&damaged, ROLLING, 0).is_err());
    assert_eq!(read_all(&log).unwrap(), expected(5));
    assert_eq!(log.end_offset(), Offset(10));
}

#[test]
fn what_waits_in_memory_is_written_before_it_is_taken_over() {
    let bench = Bench::new();
    let log = filled(&bench, 1);
    let staged = bench.staged("staged", 2, 1);
    bench.fs.set_space(Some(0));
    assert!(matches!(
        append(&staged, &batch(4, 2, 1000)),
        Stored::InMemory(_)
    ));
    assert!(log.adopt(&staged, ROLLING, 0).is_err());
    assert_eq!(read_all(&log).unwrap(), expected(1));
    bench.fs.set_space(None);
    log.adopt(&staged, ROLLING, 0).unwrap();
    assert_eq!(read_all(&log).unwrap(), expected(3));
}

#[test]
fn an_empty_log_begins_anywhere_and_touches_nothing_before_the_first_batch() {
    let bench = Bench::new();
    let log = bench.empty("q", 13, 12);
    assert!(!bench.dir.path().join("q").exists());
    append(&log, &batch(12, 2, 1000));
    assert_eq!(
        (log.start_offset(), log.end_offset()),
        (Offset(13), Offset(14))
    );
    assert_eq!(log.read(Offset(13), 1).unwrap(), [batch(12, 2, 1000)]);
}

#[test]
fn a_state_that_is_advanced_lists_what_an_advanced_log_has() {
    let bench = Bench::new();
    let log = filled(&bench, 20);
    for to in [0, 1, 7, 8, 9, 31, 40, 99] {
        let advanced = log.state().advanced_to(Offset(to));
        log.advance_start(Offset(to));
        assert_eq!(advanced, log.state(), "to {to}");
    }
}

#[test]
fn readers_of_what_was_removed_find_nothing_and_report_no_damage() {
    let bench = Bench::new();
    let log = filled(&bench, 20);
    // Closed, so that reading opens the file again.
    log.sync(ROLLING, 0).unwrap();
    log.close_idle();
    log.close_idle();
    log.remove().unwrap();
    assert!(log.is_removed());
    assert_eq!(log.read(Offset(0), 1000).unwrap(), []);
    assert_eq!(log.offset_for_timestamp(0, Offset(0)).unwrap(), None);
    log.quarantine(Offset(0), "must not be renamed");
    assert!(log.quarantined().is_empty());
    log.flush(ROLLING, 0).unwrap();
    log.sync(ROLLING, 0).unwrap();
    assert!(!bench.dir.path().join("p").exists());
}

#[test]
fn records_that_expire_under_a_reader_are_no_damage() {
    let bench = Bench::new();
    let log = filled(&bench, 400);
    log.sync(ROLLING, 0).unwrap();
    std::thread::scope(|scope| {
        let log = &log;
        for _ in 0..2 {
            scope.spawn(move || {
                let mut from = Offset(0);
                while from < log.end_offset() {
                    let found = log.read(from, 1).unwrap();
                    from = found.last().map_or(log.start_offset(), |(meta, _)| {
                        Offset(meta.last_offset.0 + 1)
                    });
                }
            });
        }
        for to in (0..790).step_by(10) {
            log.close_idle();
            log.close_idle();
            log.advance_start(Offset(to));
        }
    });
    assert!(log.quarantined().is_empty());
}
