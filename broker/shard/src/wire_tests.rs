#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use openraft::EntryPayload;
use proptest::prelude::*;

use super::*;
use crate::{
    Command,
    raft_types::{Entry, Membership},
};

fn leader(term: u64) -> Vote {
    Vote {
        leader_id: LeaderId { term, voted_for: 7 },
        committed: true,
    }
}

fn payload() -> impl Strategy<Value = EntryPayload<Command, u64, ()>> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..60);
    prop_oneof![
        Just(EntryPayload::Blank),
        (bytes(), bytes())
            .prop_map(|(meta, payload)| EntryPayload::Normal(Command::new(meta, payload))),
        Just(EntryPayload::Membership(
            Membership::new(vec![BTreeSet::from([1, 2])], BTreeSet::from([1, 2, 3])).unwrap()
        )),
    ]
}

fn request(
    prev: Option<u64>,
    payloads: Vec<EntryPayload<Command, u64, ()>>,
) -> AppendEntriesRequest<Types<()>> {
    let first = prev.map_or(0, |index| index + 1);
    AppendEntriesRequest {
        vote: leader(9),
        prev_log_id: prev.map(|index| log_id(3, index)),
        leader_commit: Some(log_id(2, 1)),
        entries: payloads
            .into_iter()
            .zip(first..)
            .map(|(payload, index)| Entry {
                log_id: log_id(4, index),
                payload,
            })
            .collect(),
    }
}

/// The same bytes in other pieces.
fn recut(message: Message, piece: usize) -> Message {
    let joined = message.payload.concat();
    Message {
        payload: joined.chunks(piece).map(Bytes::copy_from_slice).collect(),
        ..message
    }
}

proptest! {
    #[test]
    fn an_append_reads_back_equal_however_it_was_cut(
        prev in proptest::option::of(0_u64..1 << 40),
        payloads in proptest::collection::vec(payload(), 0..12),
        session in any::<u64>(),
        piece in 1_usize..100,
    ) {
        let request = request(prev, payloads);
        let sent = recut(append(APPEND, session, &request), piece);
        let (got, read) = read_append::<()>(sent).unwrap();
        prop_assert_eq!(got, session);
        prop_assert_eq!(read.vote, request.vote);
        prop_assert_eq!(read.prev_log_id, request.prev_log_id);
        prop_assert_eq!(read.leader_commit, request.leader_commit);
        prop_assert!(read.entries == request.entries);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut head in proptest::collection::vec(any::<u8>(), 0..200),
        payload in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        if let Some(version) = head.first_mut() {
            *version = VERSION;
        }
        let message = Message { kind: 0, head: head.into(), payload: vec![payload.into()] };
        let _ = read_append::<()>(message.clone());
        let _ = read_appended(&message);
        let _ = read_vote::<()>(&message);
        let _ = read_voted::<()>(&message);
        let _ = read_transfer::<()>(&message);
        let _ = read_begin(message.clone()).map(|begin| begin.transfer);
        let _ = read_part(message.clone()).map(|part| part.sequence);
        let _ = read_with_vote(&message);
        let _ = read_refused(&message);
    }

    #[test]
    fn a_damaged_append_is_refused_or_another_append(
        payloads in proptest::collection::vec(payload(), 1..6),
        place in any::<prop::sample::Index>(),
        bit in 0_u32..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let sent = append(APPEND, 1, &request(Some(5), payloads));
        let mut head = sent.head.to_vec();
        let place = place.index(head.len());
        head[place] ^= 1 << bit;
        let _ = read_append::<()>(Message { head: head.into(), ..sent.clone() });
        let cut = cut.index(sent.head.len());
        let short = Message { head: sent.head.slice(..cut), ..sent };
        prop_assert!(read_append::<()>(short).is_err());
    }
}

#[test]
fn payloads_are_not_copied_when_they_are_sent_nor_when_they_come_in_one_piece() {
    let bulk = Bytes::from(vec![1; 1000]);
    let command = Command::new(Bytes::new(), bulk.clone());
    let sent = append(
        APPEND,
        1,
        &request(Some(1), vec![EntryPayload::Normal(command)]),
    );
    assert_eq!(sent.payload[0].as_ptr(), bulk.as_ptr());
    let (_, read) = read_append::<()>(sent).unwrap();
    let EntryPayload::Normal(command) = &read.entries[0].payload else {
        unreachable!("a command was sent");
    };
    assert_eq!(command.payload.as_ptr(), bulk.as_ptr());
}

#[test]
fn what_no_leader_would_send_is_refused() {
    let refused = |change: &dyn Fn(&mut AppendEntriesRequest<Types<()>>)| {
        let mut request = request(Some(1), vec![EntryPayload::Blank, EntryPayload::Blank]);
        change(&mut request);
        read_append::<()>(append(APPEND, 1, &request))
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused(&|r| r.vote = leader(3)).contains("terms"));
    assert!(refused(&|r| r.entries[1].log_id = log_id(3, 3)).contains("terms"));
    assert!(refused(&|r| r.prev_log_id = Some(log_id(5, 1))).contains("terms"));
    assert!(refused(&|r| r.prev_log_id = Some(log_id(1, u64::MAX))).contains("index"));
    assert!(refused(&|r| r.vote.committed = false).contains("elected"));
}

#[test]
fn answers_and_small_messages_read_back_equal() {
    for answer in [
        Appended::Through(None),
        Appended::Through(Some(log_id(1, 2))),
        Appended::Conflict(log_id(3, 4)),
        Appended::HigherVote(leader(5)),
    ] {
        assert_eq!(read_appended(&appended(&answer)).unwrap(), answer);
    }
    let candidate = Vote {
        committed: false,
        ..leader(4)
    };
    let mut request = VoteRequest::<Types<()>>::new(candidate, Some(log_id(3, 9)));
    request.leadership_transfer = true;
    assert_eq!(read_vote::<()>(&vote(VOTE, &request)).unwrap(), request);
    let response = VoteResponse::<Types<()>>::new(candidate, None, true);
    assert_eq!(read_voted::<()>(&voted(&response)).unwrap(), response);
    let request = TransferLeaderRequest::<Types<()>>::new(leader(4), 3, Some(log_id(4, 8)));
    assert_eq!(read_transfer::<()>(&transfer(&request)).unwrap(), request);
    assert_eq!(
        read_with_vote(&with_vote(INSTALLED, &leader(1))).unwrap(),
        leader(1)
    );
    assert_eq!(read_refused(&refused("why")), "why");
}

#[test]
fn a_snapshots_beginning_and_parts_read_back_equal() {
    let membership = Membership::new(
        vec![BTreeSet::from([1]), BTreeSet::from([1, 2])],
        BTreeSet::from([1, 2, 3]),
    )
    .unwrap();
    let place = Place {
        last_log_id: Some(log_id(4, 50)),
        last_membership: StoredMembership::new(Some(log_id(2, 7)), membership),
    };
    let sent = begin(11, &leader(4), &place, Bytes::from_static(b"description"));
    let read = read_begin(recut(sent, 3)).unwrap();
    assert_eq!((read.transfer, read.vote), (11, leader(4)));
    assert_eq!(read.place, place);
    assert_eq!(&read.description[..], b"description");
    assert!(
        read_begin(begin(1, &leader(3), &place, Bytes::new())).is_err(),
        "a leader of term 3 knows nothing of term 4"
    );
    let sent = part(
        SNAPSHOT_PART,
        Part {
            transfer: 11,
            sequence: 5,
            bytes: Bytes::from_static(b"bulk"),
        },
    );
    let read = read_part(recut(sent, 1)).unwrap();
    assert_eq!((read.transfer, read.sequence), (11, 5));
    assert_eq!(&read.bytes[..], b"bulk");
}
