#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, sync::LazyLock};

use openraft::EntryPayload;
use palisade_log::WalOptions;
use palisade_seal::{DirectoryProvider, FileKeys};
use tempfile::TempDir;

use super::*;
use crate::{Command, raft_types::Membership};

const SHARD: ShardId = ShardId(4);

fn keys() -> Arc<FileKeys> {
    static KEYS: LazyLock<Arc<FileKeys>> = LazyLock::new(|| {
        let dir = TempDir::new().unwrap();
        let provider = DirectoryProvider::create(dir.path()).unwrap();
        Arc::new(FileKeys::new(Arc::new(provider)))
    });
    Arc::clone(&KEYS)
}

fn open(dir: &TempDir, applied: Option<(u64, u64)>) -> Result<LogStore, ShardError> {
    let options = WalOptions {
        file_bytes: 1 << 20,
        ..WalOptions::new(dir.path().to_owned())
    };
    let (wal, records) = Wal::open(options, keys()).unwrap();
    let applied = applied.map(|(term, index)| LogPosition { term, index });
    LogStore::recover(SHARD, Arc::new(wal), records, applied)
}

fn members() -> StoredMembership {
    let membership = Membership::new(vec![BTreeSet::from([1])], BTreeSet::from([1])).unwrap();
    StoredMembership::new(Some(log_id(0, 0)), membership)
}

/// Appends entries and waits until they are durable.
async fn append(log: &LogStore, term: u64, indexes: std::ops::Range<u64>) {
    let records: Vec<_> = indexes
        .map(|index| Entry {
            log_id: log_id(term, index),
            payload: EntryPayload::Normal(Command::new(vec![1; 10], vec![])),
        })
        .map(|entry| {
            let record = codec::entry_record(SHARD, &entry);
            log.state.lock().cache.append(entry);
            record
        })
        .collect();
    log.write(records).await.unwrap();
}

async fn cut(log: &mut LogStore, keep: Option<LogId>) {
    RaftLogStorage::<Types<()>>::truncate_after(log, keep)
        .await
        .unwrap();
}

async fn purge(log: &mut LogStore, at: LogId) {
    RaftLogStorage::<Types<()>>::purge(log, at).await.unwrap();
}

/// The log ids from the first entry on.
fn ids(log: &LogStore) -> Vec<(u64, u64)> {
    let state = log.state.lock();
    let range = state.cache.range(state.first(), u64::MAX, usize::MAX);
    range
        .unwrap()
        .iter()
        .map(|entry| (entry.log_id.leader_id.term, entry.log_id.index))
        .collect()
}

#[tokio::test]
async fn entries_that_were_cut_off_do_not_come_back_behind_one_that_was_released() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, None).unwrap();
    append(&log, 1, 0..10).await;
    cut(&mut log, Some(log_id(1, 5))).await;
    append(&log, 2, 6..7).await;
    log.release(log_id(2, 6), members()).await.unwrap();
    drop(log);
    let log = open(&dir, Some((2, 6))).unwrap();
    assert_eq!(ids(&log), []);
    assert_eq!(log.log_id_at(6), Some(log_id(2, 6)));
    append(&log, 2, 7..9).await;
    drop(log);
    let log = open(&dir, Some((2, 6))).unwrap();
    assert_eq!(ids(&log), [(2, 7), (2, 8)]);
    assert_eq!(log.membership_at(8), members());
}

#[tokio::test]
async fn entries_of_a_later_term_than_a_snapshot_do_not_come_back_behind_it_when_they_conflicted() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, None).unwrap();
    append(&log, 1, 0..3).await;
    append(&log, 3, 3..8).await;
    // A leader of term 5 has (2, 4), which was committed after all.
    cut(&mut log, Some(log_id(1, 2))).await;
    log.installing(log_id(2, 4), members()).await.unwrap();
    log.release(log_id(2, 4), members()).await.unwrap();
    purge(&mut log, log_id(2, 4)).await;
    drop(log);
    let log = open(&dir, Some((2, 4))).unwrap();
    assert_eq!(ids(&log), []);
    assert_eq!(log.log_id_at(4), Some(log_id(2, 4)));
}

#[tokio::test]
async fn a_snapshot_whose_installation_was_interrupted_is_found_done_or_not_begun() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, None).unwrap();
    append(&log, 1, 0..10).await;
    log.installing(log_id(2, 50), members()).await.unwrap();
    drop(log);
    // Before the state machine was replaced.
    let log = open(&dir, Some((1, 4))).unwrap();
    assert_eq!(ids(&log).len(), 10);
    assert_eq!(log.released_through(), None);
    drop(log);
    // After.
    let log = open(&dir, Some((2, 50))).unwrap();
    assert_eq!(ids(&log), []);
    assert_eq!(log.log_id_at(50), Some(log_id(2, 50)));
    log.settle().await.unwrap();
    append(&log, 2, 51..53).await;
    drop(log);
    // And when the state machine has gone on.
    let log = open(&dir, Some((2, 52))).unwrap();
    assert_eq!(ids(&log), [(2, 51), (2, 52)]);
    assert_eq!(log.membership_at(52), members());
}

#[tokio::test]
async fn what_is_released_stays_for_replicas_until_it_is_purged() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, None).unwrap();
    append(&log, 1, 0..10).await;
    log.keep(usize::MAX / 2);
    log.applied(9);
    log.release(log_id(1, 9), members()).await.unwrap();
    assert_eq!(ids(&log).len(), 10);
    log.unwanted(4);
    let lag = |log: &LogStore, index| log.lag(Some(log_id(1, index)));
    assert_eq!((lag(&log, 3), lag(&log, 4)), (Lag::Large, Lag::Small));
    assert_eq!(log.lag(None), Lag::Large);
    purge(&mut log, log_id(1, 4)).await;
    assert_eq!(ids(&log)[0], (1, 5));
    assert_eq!(
        lag(&log, 3),
        Lag::Small,
        "it is told to send a snapshot now"
    );
}

#[tokio::test]
async fn what_a_deleted_replica_promised_outlives_it_until_the_next_one_has_as_much() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir, None).unwrap();
    let vote = Vote {
        leader_id: crate::raft_types::LeaderId {
            term: 3,
            voted_for: 7,
        },
        committed: true,
    };
    RaftLogStorage::<Types<()>>::save_vote(&mut log, &vote)
        .await
        .unwrap();
    append(&log, 2, 0..4).await;
    cut(&mut log, Some(log_id(2, 1))).await;
    append(&log, 3, 2..3).await;
    let promise = log.promise();
    assert!(is_kept(&promise));
    // Something was still under way.
    log.release(log_id(3, 2), members()).await.unwrap_err();
    let (done, forgotten) = oneshot::channel();
    let keep = promise.clone();
    log.wal
        .forget(SHARD, keep, |outcome| done.send(outcome).unwrap());
    forgotten.await.unwrap().unwrap();
    drop(log);

    let options = WalOptions {
        file_bytes: 1 << 20,
        ..WalOptions::new(dir.path().to_owned())
    };
    let (wal, records) = Wal::open(options, keys()).unwrap();
    drop(wal);
    assert_eq!(records, promise);
    assert_eq!(kept(SHARD, records).unwrap(), promise, "as often as asked");
    let log = open(&dir, None).unwrap();
    let voted = log.vote().unwrap();
    assert_eq!((voted.leader_id, voted.committed), (vote.leader_id, false));
    assert_eq!(log.lacks(), Some(log_id(3, 2)));
    append(&log, 2, 0..3).await;
    assert_eq!(
        log.lacks(),
        Some(log_id(3, 2)),
        "as long, but of an older term"
    );
    append(&log, 3, 3..4).await;
    assert_eq!(log.lacks(), None);
}

#[test]
fn a_snapshot_that_was_being_installed_counts_as_promised() {
    let place = Purged {
        at: log_id(4, 90),
        membership: members(),
    };
    let records = vec![codec::installing_record(SHARD, &place)];
    let promise = kept(SHARD, records).unwrap();
    assert_eq!(promise, [codec::promised_record(SHARD, &log_id(4, 90))]);
}
