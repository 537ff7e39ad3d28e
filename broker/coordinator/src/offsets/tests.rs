#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{collection::vec as many, prelude::*};

use super::*;

const DAY: i64 = 86_400_000;

fn partition(topic: u128, index: i32) -> TopicPartition {
    TopicPartition {
        topic: Uuid::from_u128(topic),
        partition: index,
    }
}

fn offset(offset: i64, committed_at: i64) -> CommittedOffset {
    CommittedOffset {
        offset,
        leader_epoch: NO_LEADER_EPOCH,
        metadata: String::new(),
        committed_at,
        expires_at: None,
    }
}

fn commit(group: &str, at: TopicPartition, value: CommittedOffset) -> OffsetCommand {
    OffsetCommand::Commit {
        group: group.to_owned(),
        offsets: vec![(at, value)],
    }
}

fn record(generation: i32, assignment: &[u8]) -> GroupRecord {
    GroupRecord {
        generation,
        protocol_type: "consumer".to_owned(),
        protocol: "range".to_owned(),
        leader: "m".to_owned(),
        members: vec![MemberRecord {
            member: "m".to_owned(),
            instance: None,
            client_id: "c".to_owned(),
            client_host: "/h".to_owned(),
            session_timeout_ms: 300,
            rebalance_timeout_ms: 2,
            protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
            assignment: Bytes::copy_from_slice(assignment),
        }],
    }
}

fn set(group: &str, record: Option<GroupRecord>) -> OffsetCommand {
    OffsetCommand::set_group(group.to_owned(), 7, record.map(Box::new))
}

#[test]
fn the_last_commit_counts_and_groups_are_apart() {
    let mut store = OffsetStore::new();
    store.apply(commit("a", partition(1, 0), offset(5, 10)));
    store.apply(commit("a", partition(1, 0), offset(7, 11)));
    store.apply(commit("b", partition(1, 0), offset(2, 12)));
    assert_eq!(store.get("a", partition(1, 0)).unwrap().offset, 7);
    assert_eq!(store.get("b", partition(1, 0)).unwrap().offset, 2);
    assert_eq!(store.get("a", partition(1, 1)), None);
    assert_eq!(store.groups().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_group_goes_with_its_last_offset() {
    let mut store = OffsetStore::new();
    store.apply(commit("a", partition(1, 0), offset(5, 10)));
    store.apply(commit("a", partition(2, 0), offset(5, 10)));
    let delete = |topic| OffsetCommand::Delete {
        group: "a".to_owned(),
        partitions: vec![partition(topic, 0)],
    };
    assert_eq!(store.apply(delete(1)), 1);
    assert!(store.contains("a"));
    assert_eq!(store.apply(delete(1)), 0);
    assert_eq!(store.apply(delete(2)), 1);
    assert!(!store.contains("a"));
}

#[test]
fn a_deleted_topic_takes_the_offsets_of_every_group_along() {
    let mut store = OffsetStore::new();
    for group in ["a", "b"] {
        store.apply(commit(group, partition(1, 0), offset(5, 10)));
    }
    store.apply(commit("b", partition(2, 0), offset(5, 10)));
    let topic = Uuid::from_u128(1);
    assert_eq!(store.apply(OffsetCommand::DropTopic { topic }), 2);
    assert_eq!(store.groups().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn an_offset_expires_after_the_later_of_commit_and_last_use() {
    let mut store = OffsetStore::new();
    store.apply(commit("a", partition(1, 0), offset(5, 0)));
    let unknown = |_| Some(i64::MIN);
    assert!(store.expired("a", DAY - 1, DAY, unknown).is_empty());
    assert_eq!(store.expired("a", DAY, DAY, unknown).len(), 1);
    assert!(store.expired("a", 10 * DAY, DAY, |_| None).is_empty());
    assert!(store.expired("a", DAY, DAY, |_| Some(5)).is_empty());
    assert_eq!(store.expired("a", DAY + 5, DAY, |_| Some(5)).len(), 1);
}

#[test]
fn of_a_group_expires_what_is_old_and_of_a_topic_that_it_does_not_use() {
    let mut store = OffsetStore::new();
    for (group, topic, committed_at) in [("a", 1, 0), ("a", 2, 3), ("a", 3, DAY), ("b", 1, 0)] {
        store.apply(commit(group, partition(topic, 0), offset(5, committed_at)));
    }
    store.apply(commit("c", partition(1, 0), offset(5, DAY)));
    let old = |now| store.groups_with_old(now, DAY).collect::<Vec<_>>();
    assert!(old(DAY - 1).is_empty());
    assert_eq!(old(DAY), ["a", "b"]);
    assert_eq!(old(2 * DAY), ["a", "b", "c"]);
    let uses_the_first = |topic: Uuid| (topic != Uuid::from_u128(1)).then_some(i64::MIN);
    let expired = OffsetCommand::Expire {
        group: "a".to_owned(),
        offsets: vec![(partition(2, 0), 3)],
    };
    let now = DAY + 3;
    assert_eq!(store.expired("a", now, DAY, uses_the_first), [expired]);
    assert!(store.expired("b", now, DAY, uses_the_first).is_empty());
    assert!(store.expired("d", now, DAY, |_| Some(i64::MIN)).is_empty());
}

#[test]
fn an_offset_with_its_own_expiry_follows_that() {
    let mut store = OffsetStore::new();
    let own = CommittedOffset {
        expires_at: Some(100),
        ..offset(5, 0)
    };
    store.apply(commit("a", partition(1, 0), own));
    let unknown = |_| Some(i64::MIN);
    assert!(store.expired("a", 99, DAY, unknown).is_empty());
    assert_eq!(store.expired("a", 100, DAY, unknown).len(), 1);
    assert_eq!(store.groups_with_old(99, DAY).count(), 0);
    assert_eq!(store.groups_with_old(100, DAY).count(), 1);
}

#[test]
fn a_commit_that_overtakes_its_expiry_survives() {
    let mut store = OffsetStore::new();
    store.apply(commit("a", partition(1, 0), offset(5, 0)));
    let expiry = store.expired("a", DAY, DAY, |_| Some(i64::MIN));
    store.apply(commit("a", partition(1, 0), offset(6, DAY)));
    for command in expiry {
        assert_eq!(store.apply(command), 0);
    }
    assert_eq!(store.get("a", partition(1, 0)).unwrap().offset, 6);
}

#[test]
fn a_large_group_expires_in_several_commands() {
    let mut store = OffsetStore::new();
    for index in 0..2500 {
        store.apply(commit("a", partition(1, index), offset(5, 0)));
    }
    let expiry = store.expired("a", DAY, DAY, |_| Some(i64::MIN));
    assert_eq!(expiry.len(), 3);
    let removed: usize = expiry.into_iter().map(|command| store.apply(command)).sum();
    assert_eq!(removed, 2500);
    assert!(!store.contains("a"));
}

#[test]
fn a_record_is_set_replaced_and_forgotten() {
    let mut store = OffsetStore::new();
    assert_eq!(store.apply(set("a", Some(record(1, b"all")))), 1);
    assert_eq!(store.apply(set("a", Some(record(2, b"half")))), 1);
    store.apply(set("b", Some(record(5, b""))));
    assert_eq!(store.record("a"), Some(&record(2, b"half")));
    let groups: Vec<&str> = store.records().map(|(group, _)| group).collect();
    assert_eq!(groups, ["a", "b"]);
    assert_eq!(store.groups().count(), 0, "these have no offsets");
    assert!(store.contains("a"));
    store.apply(set("a", None));
    assert_eq!(store.record("a"), None);
    assert!(!store.contains("a"));
    let topic = Uuid::from_u128(1);
    store.apply(OffsetCommand::DropTopic { topic });
    assert!(store.contains("b"), "topics are nothing to a record");
    let group = "b".to_owned();
    store.apply(OffsetCommand::DeleteGroup { group });
    assert_eq!(store, OffsetStore::new());
}

#[test]
fn a_record_outlives_the_last_offset_of_its_group() {
    let mut store = OffsetStore::new();
    store.apply(commit("a", partition(1, 0), offset(5, 10)));
    store.apply(set("a", Some(record(1, b"all"))));
    let topic = Uuid::from_u128(1);
    store.apply(OffsetCommand::DropTopic { topic });
    assert_eq!(store.groups().count(), 0);
    assert!(store.contains("a"));
}

#[test]
fn a_record_that_is_too_large_is_not_kept() {
    let command = |bytes: usize| set("a", Some(record(1, &vec![0; bytes])));
    let is_kept = |command: &OffsetCommand| matches!(command, OffsetCommand::SetGroup { record, .. } if record.is_some());
    let most = (0..1000)
        .map(|less| command(MAX_RECORD_BYTES - less))
        .find(is_kept)
        .unwrap();
    assert!(most.encode().unwrap().len() <= MAX_RECORD_BYTES);
    assert!(most.encode().unwrap().len() > MAX_RECORD_BYTES - 1000);
    let mut store = OffsetStore::new();
    store.apply(most);
    assert!(store.contains("a"));
    // What was kept of an earlier generation must not stay in its place.
    store.apply(command(MAX_RECORD_BYTES));
    assert!(!store.contains("a"));
}

#[test]
fn a_store_without_records_is_written_as_the_first_version_reads_it() {
    let mut store = OffsetStore::new();
    store.apply(commit("a", partition(1, 0), offset(5, 10)));
    let first = store.encode().unwrap();
    assert_eq!(first.first(), Some(&1));
    assert_eq!(OffsetStore::decode(&first).unwrap(), store);
    store.apply(set("a", Some(record(1, b"all"))));
    let second = store.encode().unwrap();
    assert_eq!(second.first(), Some(&2));
    assert_eq!(OffsetStore::decode(&second).unwrap(), store);
    store.apply(set("a", None));
    assert_eq!(store.encode().unwrap(), first);
    assert_eq!(
        OffsetStore::decode(&[3, 0]),
        Err(OffsetDecodeError::Format(3))
    );
}

#[test]
fn only_a_record_belongs_to_a_term() {
    assert_eq!(set("a", None).term(), Some(7));
    assert_eq!(commit("a", partition(1, 0), offset(5, 10)).term(), None);
}

#[test]
fn bytes_that_are_no_command_are_refused_and_say_why() {
    assert_eq!(OffsetCommand::decode(&[]), Err(OffsetDecodeError::Empty));
    assert_eq!(
        OffsetCommand::decode(&[9, 1, 2]),
        Err(OffsetDecodeError::Format(9))
    );
    assert!(matches!(
        OffsetCommand::decode(&[COMMAND_FORMAT, 77]),
        Err(OffsetDecodeError::Malformed(_))
    ));
    assert_eq!(
        OffsetDecodeError::Format(9).to_string(),
        "offset format 9 is unknown: written by a newer version of the broker"
    );
}

#[test]
fn the_encoding_of_a_command_does_not_change() {
    // These bytes are on disks: a change here needs a new format byte and a reader for the old one.
    let command = OffsetCommand::Commit {
        group: "g".to_owned(),
        offsets: vec![(partition(1, 2), offset(3, 4))],
    };
    let mut expected = vec![1, 0, 1, b'g', 1, 16];
    expected.extend(1_u128.to_be_bytes());
    expected.extend([4, 6, 1, 0, 8, 0]);
    assert_eq!(command.encode().unwrap(), expected);

    assert_eq!(
        set("g", None).encode().unwrap(),
        [2, 5, 1, b'g', 7, 0],
        "format, kind, group, term, no record"
    );
    let mut expected = vec![2, 5, 1, b'g', 7, 1, 6];
    for text in ["consumer", "range", "m"] {
        expected.push(u8::try_from(text.len()).unwrap());
        expected.extend(text.as_bytes());
    }
    expected.extend([1, 1, b'm', 0, 1, b'c', 2, b'/', b'h']);
    // Session and rebalance timeout, then one protocol and the assignment.
    expected.extend([0xac, 2, 2, 1, 5]);
    expected.extend(b"range");
    expected.push(6);
    expected.extend(b"topics");
    expected.extend([3, b'a', b'l', b'l']);
    let command = set("g", Some(record(3, b"all")));
    assert_eq!(command.encode().unwrap(), expected);
}

fn any_command() -> impl Strategy<Value = OffsetCommand> {
    let group = "[ab]";
    let at = (1_u128..3, 0..3_i32).prop_map(|(topic, index)| partition(topic, index));
    let value = (0..100_i64, 0..5_i64, proptest::option::of(0..9_i64)).prop_map(
        |(position, committed_at, expires_at)| CommittedOffset {
            expires_at,
            ..offset(position, committed_at)
        },
    );
    prop_oneof![
        4 => (group, many((at.clone(), value), 0..4))
            .prop_map(|(group, offsets)| OffsetCommand::Commit { group, offsets }),
        1 => (group, many(at.clone(), 0..4))
            .prop_map(|(group, partitions)| OffsetCommand::Delete { group, partitions }),
        1 => group.prop_map(|group| OffsetCommand::DeleteGroup { group }),
        1 => (group, many((at, 0..5_i64), 0..4))
            .prop_map(|(group, offsets)| OffsetCommand::Expire { group, offsets }),
        1 => (1_u128..3).prop_map(|topic| OffsetCommand::DropTopic { topic: Uuid::from_u128(topic) }),
        2 => (group, proptest::option::of((1..9_i32).prop_map(|it| record(it, b"part"))))
            .prop_map(|(group, record)| set(&group, record)),
    ]
}

/// The same commands on a flat map, written as plainly as can be.
fn model(commands: &[OffsetCommand]) -> BTreeMap<(String, TopicPartition), CommittedOffset> {
    let mut map = BTreeMap::new();
    for command in commands.iter().cloned() {
        match command {
            OffsetCommand::Commit { group, offsets } => {
                for (at, value) in offsets {
                    map.insert((group.clone(), at), value);
                }
            }
            OffsetCommand::Delete { group, partitions } => {
                map.retain(|(own, at), _| *own != group || !partitions.contains(at));
            }
            OffsetCommand::DeleteGroup { group } => map.retain(|(own, _), _| *own != group),
            OffsetCommand::Expire { group, offsets } => {
                map.retain(|(own, at), value: &mut CommittedOffset| {
                    *own != group || !offsets.contains(&(*at, value.committed_at))
                });
            }
            OffsetCommand::DropTopic { topic } => map.retain(|(_, at), _| at.topic != topic),
            OffsetCommand::SetGroup { .. } => {}
        }
    }
    map
}

/// The records after the same commands.
fn model_of_records(commands: &[OffsetCommand]) -> BTreeMap<String, GroupRecord> {
    let mut map = BTreeMap::new();
    for command in commands.iter().cloned() {
        match command {
            OffsetCommand::SetGroup {
                group,
                record: Some(record),
                ..
            } => drop(map.insert(group, *record)),
            OffsetCommand::SetGroup { group, .. } | OffsetCommand::DeleteGroup { group } => {
                map.remove(&group);
            }
            _ => {}
        }
    }
    map
}

proptest! {
    #[test]
    fn any_history_gives_what_the_model_gives(
        commands in proptest::collection::vec(any_command(), 0..40),
    ) {
        let mut store = OffsetStore::new();
        for command in &commands {
            store.apply(OffsetCommand::decode(&command.encode().unwrap()).unwrap());
        }
        let flat: BTreeMap<(String, TopicPartition), CommittedOffset> = store
            .groups
            .iter()
            .flat_map(|(group, offsets)| {
                offsets.iter().map(|(at, value)| ((group.clone(), *at), value.clone()))
            })
            .collect();
        prop_assert_eq!(flat, model(&commands));
        prop_assert_eq!(&store.records, &model_of_records(&commands));
        prop_assert!(store.groups.values().all(|offsets| !offsets.is_empty()));
        prop_assert_eq!(OffsetStore::decode(&store.encode().unwrap()).unwrap(), store);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = OffsetCommand::decode(&bytes);
        let _ = OffsetStore::decode(&bytes);
    }
}
