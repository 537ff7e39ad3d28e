//! What is sent when the sender has compacted its partitions.

use palisade_log::segment::{Cleaned, PartitionLog};

use super::*;
use crate::slot::Partition;

fn partition(replica: &Replica) -> Arc<Partition> {
    let slot = replica.machine().data.slot(key(1)).unwrap();
    slot.partition().unwrap()
}

/// Takes every batch out of the closed segments that `keeps` refuses.
fn compact(log: &PartitionLog, tombstones: i64, keeps: impl Fn(i64) -> bool) {
    log.close_active();
    for segment in log.closed_segments() {
        let mut rewrite = log.rewrite(std::slice::from_ref(&segment)).unwrap();
        loop {
            let batches = rewrite.next(1000).unwrap();
            if batches.is_empty() {
                break;
            }
            for (meta, payload) in batches {
                if keeps(meta.base_offset.0) {
                    let meta = FrameMeta {
                        record_count: 1,
                        ..meta
                    };
                    rewrite.put(&meta, &payload, None).unwrap();
                }
            }
        }
        let cleaned = Cleaned {
            until: segment.end,
            tombstones: Offset(tombstones),
        };
        rewrite.commit(cleaned).unwrap();
        log.set_cleaned(cleaned);
    }
}

/// One with 60 batches, and one with the first 20 of them.
fn pair() -> (Replica, Replica) {
    let (mut ahead, mut behind) = (Replica::new(), Replica::new());
    let mut commands = vec![create(key(1))];
    commands.extend(many(key(1), 0, 20));
    ahead.apply(&commands);
    behind.apply(&commands);
    ahead.apply(&many(key(1), 40, 40));
    (ahead, behind)
}

fn batches(replica: &Replica) -> Vec<(FrameMeta, Bytes)> {
    let state = replica.state();
    state.1.values().next().unwrap().4.clone()
}

fn transfer(ahead: &Replica, behind: &mut Replica) {
    let snapshot = ahead.machine().snapshot().unwrap();
    let place = ahead.machine().applied().unwrap();
    let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
    behind.machine_mut().install(place, incoming).unwrap();
}

#[test]
fn an_empty_replica_gets_what_is_left() {
    for keeps in [
        (|base| base % 8 == 2 || base == 118) as fn(i64) -> bool,
        |base| base == 118,
        |base| !(4..=100).contains(&base),
    ] {
        let (ahead, _) = pair();
        compact(&partition(&ahead).log, 0, keeps);
        install(&ahead, &mut Replica::new());
    }
}

#[test]
fn a_replica_that_is_behind_keeps_its_own_and_gets_what_is_left_of_the_rest() {
    for first in [40, 42, 118] {
        for more in [0, 5] {
            let (mut ahead, mut behind) = pair();
            let own = batches(&behind);
            compact(&partition(&ahead).log, 0, |base| base >= first);
            let snapshot = ahead.machine().snapshot().unwrap();
            let place = ahead.machine().applied().unwrap();
            let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
            // Applied here while it was on its way.
            behind.apply(&many(key(1), 40, more));
            let own = [own, batches(&behind).split_off(20)].concat();
            behind.machine_mut().install(place, incoming).unwrap();
            let end = 40 + more * 2;
            let rest = batches(&ahead)
                .into_iter()
                .filter(|(meta, _)| meta.base_offset.0 >= end);
            let expected: Vec<_> = own.into_iter().chain(rest).collect();
            assert_eq!(batches(&behind), expected);
            behind.open();
            assert_eq!(batches(&behind), expected);
            let later = many(key(1), 120, 3);
            ahead.apply(&later);
            behind.apply(&later);
            assert_eq!(batches(&behind).len(), expected.len() + 3);
            assert!(partition(&behind).log.quarantined().is_empty());
        }
    }
}

#[test]
fn who_may_hold_what_a_removed_tombstone_deleted_gets_all_anew() {
    let (ahead, mut behind) = pair();
    compact(&partition(&ahead).log, 41, |base| base > 41);
    transfer(&ahead, &mut behind);
    assert_eq!(behind.state(), ahead.state());
    assert_eq!(partition(&behind).log.cleaned().tombstones, Offset(41));
    let (ahead, mut behind) = pair();
    compact(&partition(&ahead).log, 40, |base| base > 41);
    transfer(&ahead, &mut behind);
    assert_eq!(batches(&behind).len(), 20 + 39, "it has seen the tombstone");
}

#[test]
fn tombstones_that_are_removed_while_it_is_sent_end_the_transfer() {
    let mut ahead = Replica::new();
    ahead.apply(&[create(key(1))]);
    let large: Vec<_> = (0..3).map(|n| append(key(1), n * 2, 2, 900_000)).collect();
    ahead.apply(&large);
    let empty = Replica::new();
    let snapshot = ahead.machine().snapshot().unwrap();
    let (_, have) = empty.machine().receive(snapshot.description()).unwrap();
    let (_, cursor) = snapshot.chunk(&have, 0).unwrap().unwrap();
    assert!(cursor < 6);
    compact(&partition(&ahead).log, 6, |base| base == 4);
    assert!(snapshot.chunk(&have, cursor).is_err());
    install(&ahead, &mut Replica::new());
}

#[test]
fn the_last_batch_may_be_compacted_away_before_it_is_sent() {
    for behind_is_empty in [false, true] {
        let (mut ahead, behind) = pair();
        let mut behind = if behind_is_empty {
            Replica::new()
        } else {
            behind
        };
        let snapshot = ahead.machine().snapshot().unwrap();
        let place = ahead.machine().applied().unwrap();
        let later = many(key(1), 120, 3);
        ahead.apply(&later);
        compact(&partition(&ahead).log, 0, |base| base >= 122);
        let incoming = send(&snapshot, behind.machine(), usize::MAX).unwrap();
        behind.machine_mut().install(place, incoming).unwrap();
        assert_eq!(partition(&behind).log.end_offset(), Offset(120));
        behind.open();
        behind.apply(&later);
        assert_eq!(
            batches(&behind).last(),
            batches(&ahead)
                .last()
                .map(|(meta, payload)| {
                    (
                        FrameMeta {
                            record_count: 2,
                            ..*meta
                        },
                        payload.clone(),
                    )
                })
                .as_ref()
        );
    }
}
