#![allow(clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use palisade_log::TopicId;
use palisade_seal::{DirectoryProvider, KeyProvider as _, SecretKey};

use super::*;
use crate::{ConfigOp, ConfigResource, MetadataCommand};

fn keys(directory: &Path) -> Arc<FileKeys> {
    let path = directory.join("kek");
    let provider = if path.exists() {
        DirectoryProvider::load(&path)
    } else {
        DirectoryProvider::create(&path)
    };
    Arc::new(FileKeys::new(Arc::new(provider.unwrap())))
}

fn open(directory: &Path) -> Result<(MetadataMachine, watch::Receiver<Arc<Image>>), OpenError> {
    MetadataMachine::open(directory.join("metadata"), keys(directory))
}

const fn at(index: u64) -> LogPosition {
    LogPosition { term: 3, index }
}

fn bootstrap() -> Command {
    let command = MetadataCommand::Bootstrap {
        cluster_id: "marker-cluster".to_owned(),
        data_shards: 4,
    };
    Command::new(command.encode().unwrap(), Vec::new())
}

#[test]
fn a_checkpoint_brings_back_the_image_and_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, follower) = open(directory.path()).unwrap();
    assert_eq!(machine.applied(), None);
    machine.blank(at(1));
    machine.apply(at(2), bootstrap()).unwrap();
    assert_eq!(follower.borrow().version, 1);
    assert_eq!(machine.checkpoint().unwrap(), at(2));
    // What is applied after the checkpoint comes again from the log.
    machine.blank(at(3));
    let before = machine.image().clone();
    drop(machine);
    let (machine, follower) = open(directory.path()).unwrap();
    assert_eq!(machine.applied(), Some(at(2)));
    assert_eq!(*machine.image(), before);
    assert_eq!(**follower.borrow(), before);
}

#[test]
fn the_checkpoint_shows_nothing_of_its_content() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, _follower) = open(directory.path()).unwrap();
    machine.apply(at(1), bootstrap()).unwrap();
    machine.checkpoint().unwrap();
    let bytes = fs::read(directory.path().join("metadata/checkpoint")).unwrap();
    let marker = b"marker-cluster";
    assert!(!bytes.windows(marker.len()).any(|window| window == marker));
}

#[test]
fn a_damaged_checkpoint_is_an_error_with_the_file_name_at_every_byte() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, _follower) = open(directory.path()).unwrap();
    machine.apply(at(1), bootstrap()).unwrap();
    machine.checkpoint().unwrap();
    let file = directory.path().join("metadata/checkpoint");
    let intact = fs::read(&file).unwrap();
    for position in 0..intact.len() {
        let mut damaged = intact.clone();
        damaged[position] ^= 1;
        fs::write(&file, &damaged).unwrap();
        let error = open(directory.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains("metadata/checkpoint"), "{error}");
    }
    for length in 0..intact.len() {
        fs::write(&file, &intact[..length]).unwrap();
        assert!(
            open(directory.path()).is_err(),
            "{length} bytes were taken for a checkpoint"
        );
    }
    fs::write(&file, &intact).unwrap();
    assert!(open(directory.path()).is_ok());
}

#[test]
fn another_key_does_not_open_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, _follower) = open(directory.path()).unwrap();
    machine.apply(at(1), bootstrap()).unwrap();
    machine.checkpoint().unwrap();
    fs::remove_dir_all(directory.path().join("kek")).unwrap();
    assert!(matches!(
        open(directory.path()),
        Err(OpenError::Seal { .. })
    ));
}

#[test]
fn entries_that_are_no_commands_are_refused_and_the_machine_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, follower) = open(directory.path()).unwrap();
    for (index, meta) in [vec![], vec![2, 200], vec![2]].into_iter().enumerate() {
        let outcome = machine.apply(at(index as u64), Command::new(meta, Vec::new()));
        assert!(matches!(outcome, Err(MetadataError::Malformed(_))));
    }
    let with_payload = Command::new(bootstrap().meta, vec![1]);
    assert!(machine.apply(at(5), with_payload).is_err());
    assert_eq!(*machine.image(), Image::new());
    assert_eq!(follower.borrow().version, 0);
    machine.apply(at(6), bootstrap()).unwrap();
    assert_eq!(machine.applied(), Some(at(6)));
}

/// Going on without it, this broker would have other metadata than the rest of the cluster.
#[test]
fn an_entry_of_a_newer_version_ends_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, _follower) = open(directory.path()).unwrap();
    let entry = Command::new(vec![99, 1], Vec::new());
    let ended = catch_unwind(AssertUnwindSafe(|| machine.apply(at(1), entry)));
    let reason = ended.unwrap_err().downcast::<String>().unwrap();
    assert!(
        reason.contains("entry 1 of the metadata cannot be read") && reason.contains("format 99"),
        "{reason}"
    );
}

#[test]
fn a_checkpoint_that_cannot_be_written_says_so_and_can_be_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, _follower) = open(directory.path()).unwrap();
    let nothing = machine.checkpoint().unwrap_err().to_string();
    assert!(nothing.contains("nothing has been applied"), "{nothing}");
    machine.apply(at(1), bootstrap()).unwrap();
    let metadata = directory.path().join("metadata");
    fs::remove_dir_all(&metadata).unwrap();
    let error = machine.checkpoint().unwrap_err().to_string();
    assert!(error.contains("metadata/checkpoint"), "{error}");
    fs::create_dir(&metadata).unwrap();
    assert_eq!(machine.checkpoint().unwrap(), at(1));
}

/// What a machine has received when all parts of a snapshot have come.
fn received(machine: &MetadataMachine, snapshot: &dyn Snapshot) -> Box<dyn Incoming> {
    let (mut incoming, have) = machine.receive(snapshot.description()).unwrap();
    for part in parts(snapshot, &have) {
        incoming.chunk(part).unwrap();
    }
    incoming
}

fn parts(snapshot: &dyn Snapshot, have: &[u8]) -> Vec<Bytes> {
    let (mut parts, mut cursor) = (Vec::new(), 0);
    while let Some((part, next)) = snapshot.chunk(have, cursor).unwrap() {
        parts.push(part);
        cursor = next;
    }
    parts
}

#[test]
fn a_snapshot_replaces_the_state_of_another_and_is_durable_there() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut sender, _follower) = open(here.path()).unwrap();
    sender.apply(at(1), bootstrap()).unwrap();
    sender.blank(at(7));
    let snapshot = sender.snapshot().unwrap();
    let before = sender.image().clone();
    // The sender goes on; what was taken does not change.
    sender.apply(at(8), bootstrap()).unwrap();

    let (mut receiver, follower) = open(there.path()).unwrap();
    let incoming = received(&receiver, &*snapshot);
    assert_eq!(
        (receiver.applied(), receiver.image().version),
        (None, 0),
        "nothing is taken over yet"
    );
    receiver.install(at(7), incoming).unwrap();
    assert_eq!(receiver.applied(), Some(at(7)));
    assert_eq!(*receiver.image(), before);
    assert_eq!(**follower.borrow(), before);
    drop(receiver);
    let (receiver, _follower) = open(there.path()).unwrap();
    assert_eq!(
        (receiver.applied(), receiver.image()),
        (Some(at(7)), &before)
    );
}

#[test]
fn an_image_that_is_longer_than_a_part_comes_in_several() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut sender, _follower) = open(here.path()).unwrap();
    let long = MetadataCommand::AlterConfigs {
        resource: ConfigResource::Brokers,
        replace: false,
        ops: vec![ConfigOp::Set {
            name: "long".to_owned(),
            value: "x".repeat(2 * PART + 5),
        }],
    };
    let long = Command::new(long.encode().unwrap(), Vec::new());
    sender.apply(at(1), long).unwrap();
    let snapshot = sender.snapshot().unwrap();
    assert_eq!(snapshot.description().len(), 9);
    let sizes: Vec<usize> = parts(&*snapshot, &[]).iter().map(Bytes::len).collect();
    assert_eq!((sizes.len(), sizes[0], sizes[1]), (3, PART, PART));
    let (mut receiver, _follower) = open(there.path()).unwrap();
    let incoming = received(&receiver, &*snapshot);
    receiver.install(at(1), incoming).unwrap();
    assert_eq!(receiver.image(), sender.image());
}

#[test]
fn the_image_that_a_broker_of_the_first_version_sends_is_taken() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut sender, _follower) = open(here.path()).unwrap();
    sender.apply(at(1), bootstrap()).unwrap();
    let whole = Bytes::from(sender.image().encode().unwrap());
    let (mut receiver, _follower) = open(there.path()).unwrap();
    let (incoming, _have) = receiver.receive(whole.clone()).unwrap();
    receiver.install(at(1), incoming).unwrap();
    assert_eq!(receiver.image(), sender.image());
    let (mut incoming, _have) = receiver.receive(whole.clone()).unwrap();
    assert!(incoming.chunk(whole).is_err(), "that was all");
    // It takes what is sent to it now for an image, and refuses that.
    let description = sender.snapshot().unwrap().description();
    assert!(matches!(
        Image::decode(&description),
        Err(MetadataError::Format(_))
    ));
}

#[test]
fn a_snapshot_that_makes_no_sense_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, follower) = open(directory.path()).unwrap();
    machine.apply(at(1), bootstrap()).unwrap();
    let before = machine.image().clone();
    let snapshot = machine.snapshot().unwrap();
    let good = snapshot.description();
    for length in 0..good.len() {
        assert!(
            machine.receive(good.slice(..length)).is_err(),
            "{length} bytes were taken for a description"
        );
    }
    let longer = [&good[..], &[0]].concat();
    assert!(machine.receive(longer.into()).is_err());
    let endless = [&[IN_PARTS][..], &(MAX_FILE_BYTES + 1).to_be_bytes()].concat();
    assert!(machine.receive(endless.into()).is_err());
    assert!(check_length(MAX_FILE_BYTES).is_ok());
    assert!(snapshot.chunk(&[], u64::MAX).is_err());

    let whole: Vec<u8> = parts(&*snapshot, &[]).concat();
    let begin = || machine.receive(good.clone()).unwrap().0;
    let too_much = [&whole[..], &[0]].concat();
    assert!(begin().chunk(too_much.into()).is_err());
    let mut incoming = begin();
    incoming.chunk(whole.clone().into()).unwrap();
    assert!(incoming.chunk(Bytes::from_static(b"x")).is_err());
    let mut damaged = whole.clone();
    damaged[0] = 99;
    assert!(begin().chunk(damaged.into()).is_err());
    let mut short = begin();
    let most = whole.len() - 1;
    short.chunk(whole[..most].to_vec().into()).unwrap();
    assert!(machine.install(at(9), short).is_err());

    struct Other;
    impl Incoming for Other {
        fn chunk(&mut self, _part: Bytes) -> Result<(), CheckpointError> {
            Ok(())
        }
        fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
            self
        }
    }
    assert!(machine.install(at(9), Box::new(Other)).is_err());
    // A disk that does not take it leaves the state as it was.
    let incoming = received(&machine, &*snapshot);
    fs::remove_dir_all(directory.path().join("metadata")).unwrap();
    let error = machine.install(at(9), incoming).unwrap_err().to_string();
    assert!(error.contains("metadata/checkpoint"), "{error}");
    assert_eq!((machine.image(), machine.applied()), (&before, Some(at(1))));
    assert_eq!(**follower.borrow(), before);
}

/// A cluster with two topics, whose keys are under the current KEK.
fn topics(machine: &mut MetadataMachine, provider: &DirectoryProvider) -> [TopicId; 2] {
    let mut place = machine.applied().map_or(0, |at| at.index);
    let mut apply = |command: MetadataCommand| {
        place += 1;
        let command = Command::new(command.encode().unwrap(), Vec::new());
        machine.apply(at(place), command).unwrap();
        machine.image().clone()
    };
    apply(MetadataCommand::Bootstrap {
        cluster_id: "c".to_owned(),
        data_shards: 1,
    });
    let image = apply(MetadataCommand::RegisterBroker {
        id: 0,
        incarnation: TopicId::random().0,
        rack: None,
        endpoints: Vec::new(),
    });
    apply(image.new_pool(1, true).unwrap());
    [0, 1].map(|number| {
        let id = TopicId::random();
        apply(MetadataCommand::CreateTopic {
            name: format!("t{number}"),
            id,
            partitions: 1,
            replication_factor: 1,
            config: Default::default(),
            dek: provider
                .wrap(&SecretKey::generate().unwrap(), b"a topic")
                .unwrap(),
        });
        id
    })
}

fn kek_names(machine: &MetadataMachine) -> Vec<String> {
    let keks = machine.report().keks.iter();
    keks.map(|kek| kek.as_str().to_owned()).collect()
}

#[test]
fn a_deleted_topics_key_is_counted_until_a_checkpoint_is_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut machine, _follower) = open(directory.path()).unwrap();
    let provider = DirectoryProvider::load(directory.path().join("kek")).unwrap();
    let [doomed, kept] = topics(&mut machine, &provider);
    let counts = |machine: &MetadataMachine| {
        let report = machine.report();
        (report.shredding, report.shredded)
    };
    assert_eq!(counts(&machine), (0, 0));
    machine.checkpoint().unwrap();
    let key_of = |image: &Image, id| image.topics.get(id).map(|topic| topic.keys.clone());
    assert!(key_of(machine.image(), doomed).is_some());
    let delete = MetadataCommand::DeleteTopic { id: doomed };
    let delete = Command::new(delete.encode().unwrap(), Vec::new());
    machine.apply(at(20), delete.clone()).unwrap();
    assert!(machine.apply(at(21), delete).is_err());
    assert_eq!(counts(&machine), (1, 0));
    // What is on disk still has it.
    let (before, _follower) = open(directory.path()).unwrap();
    assert!(key_of(before.image(), doomed).is_some());
    machine.checkpoint().unwrap();
    assert_eq!(counts(&machine), (0, 1));
    let (after, _follower) = open(directory.path()).unwrap();
    assert_eq!(key_of(after.image(), doomed), None);
    assert!(key_of(after.image(), kept).is_some());
    assert_eq!(after.image().count_keks().values().sum::<u64>(), 1);
}

#[test]
fn a_snapshot_without_a_topic_shreds_it() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut receiver, _follower) = open(there.path()).unwrap();
    let provider = DirectoryProvider::load(there.path().join("kek")).unwrap();
    topics(&mut receiver, &provider);
    receiver.checkpoint().unwrap();
    let (mut sender, _follower) = open(here.path()).unwrap();
    sender.apply(at(30), bootstrap()).unwrap();
    let incoming = received(&receiver, &*sender.snapshot().unwrap());
    receiver.install(at(30), incoming).unwrap();
    assert_eq!(receiver.report().shredded, 2);
    assert_eq!(receiver.image().count_keks(), Default::default());
}

#[test]
fn a_checkpoint_names_every_kek_that_it_needs_until_it_needs_it_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let kek = directory.path().join("kek");
    let provider = Arc::new(DirectoryProvider::create(&kek).unwrap());
    let keys = Arc::new(FileKeys::new(provider.clone()));
    let path = directory.path().join("metadata");
    let (mut machine, _follower) = MetadataMachine::open(&path, keys).unwrap();
    let ids = topics(&mut machine, &provider);
    let old = provider.current();
    machine.checkpoint().unwrap();
    assert_eq!(kek_names(&machine), [old.as_str()]);

    let other = tempfile::tempdir().unwrap();
    let new = DirectoryProvider::create(other.path()).unwrap().current();
    let file = format!("{new}.key");
    fs::copy(other.path().join(&file), kek.join(&file)).unwrap();
    fs::write(kek.join("current"), new.as_str()).unwrap();
    assert!(provider.reload().unwrap());
    // Nothing was applied, and yet there is something to write.
    machine.checkpoint().unwrap();
    let mut both = [old.as_str(), new.as_str()];
    both.sort_unstable();
    assert_eq!(
        kek_names(&machine),
        both,
        "the topics' keys are under the old one"
    );
    let stale: Vec<_> = machine
        .image()
        .keys()
        .filter(|(_, _, key)| key.kek != new)
        .map(|(of, version, key)| {
            let key = provider.unwrap(key, b"a topic").unwrap();
            of.rewrapped(version, provider.wrap(&key, b"a topic").unwrap())
        })
        .collect();
    assert_eq!(stale.len(), ids.len());
    for (index, command) in (40..).zip(stale) {
        let command = Command::new(command.encode().unwrap(), Vec::new());
        machine.apply(at(index), command).unwrap();
    }
    assert_eq!(kek_names(&machine), both, "the file still has them");
    machine.checkpoint().unwrap();
    assert_eq!(kek_names(&machine), [new.as_str()]);
    drop(machine);
    fs::remove_file(kek.join(format!("{old}.key"))).unwrap();
    let provider = Arc::new(DirectoryProvider::load(&kek).unwrap());
    let keys = Arc::new(FileKeys::new(provider.clone()));
    let (machine, _follower) = MetadataMachine::open(&path, keys).unwrap();
    assert_eq!(kek_names(&machine), [new.as_str()]);
    for (_, _, key) in machine.image().keys() {
        provider.unwrap(key, b"a topic").unwrap();
    }
}
