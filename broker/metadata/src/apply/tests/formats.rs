//! Formats of commands and images, and brokers that do not read all of them.

use super::*;

/// The registration of a broker that says what it reads.
fn says(broker: i32, reads: u8) -> MetadataCommand {
    let MetadataCommand::RegisterBroker {
        id,
        incarnation,
        rack,
        endpoints,
    } = register(broker)
    else {
        panic!("not a registration")
    };
    MetadataCommand::Register {
        id,
        incarnation,
        rack,
        endpoints,
        reads,
    }
}

fn retire() -> MetadataCommand {
    MetadataCommand::RetirePool {
        replication_factor: 2,
    }
}

#[test]
fn a_command_waits_for_every_broker_that_would_stop_at_it() {
    let mut image = cluster();
    let add = MetadataCommand::AddTopicKey {
        id: id(1),
        version: DekVersion(2),
        key: key(2),
    };
    for command in [
        says(2, 3),
        says(1, 3),
        pool(2, &[&[0, 1]]),
        create("t", 1, 1),
    ] {
        image.apply(command).unwrap();
    }
    let unread = |broker| MetadataError::NotReadByAll {
        broker,
        format: 4,
        reads: 3,
    };
    assert_eq!(image.admit(&retire()), Err(unread(1)));
    assert_eq!(image.dry_run(&retire()), Err(unread(1)));
    assert_eq!(
        unread(1).to_string(),
        "broker 1 reads metadata commands up to format 3, not 4: upgrade it, or remove it from the cluster, then try again"
    );
    // What they read is admitted, and what is in the log is applied: every broker decides the same.
    assert!(image.admit(&add).is_ok());
    assert!(image.clone().apply(retire()).is_ok());
    // How brokers register waits for nobody.
    assert!(image.admit(&says(3, 6)).is_ok());

    image.apply(says(1, 4)).unwrap();
    assert_eq!(image.admit(&retire()), Err(unread(2)));
    let mut upgraded = image.clone();
    upgraded.apply(says(2, 6)).unwrap();
    assert!(upgraded.admit(&retire()).is_ok());
    let drain = MetadataCommand::SetDraining {
        id: 2,
        draining: true,
    };
    image.apply(drain).unwrap();
    assert_eq!(image.admit(&retire()), Err(unread(2)));
    image
        .apply(MetadataCommand::UnregisterBroker { id: 2 })
        .unwrap();
    assert!(image.admit(&retire()).is_ok());
    assert_eq!(*image.reads, BTreeMap::from([(1, 4)]));
    // Whatever a broker says, it can be removed.
    image.apply(says(1, 0)).unwrap();
    let drain = MetadataCommand::SetDraining {
        id: 1,
        draining: false,
    };
    assert!(image.admit(&drain).is_ok());
}

#[test]
fn a_broker_that_does_not_say_what_it_reads_reads_format_5() {
    let mut image = cluster();
    let unread = MetadataError::NotReadByAll {
        broker: 0,
        format: 6,
        reads: 5,
    };
    assert_eq!(image.check_read_by_all(5), Ok(()));
    assert_eq!(image.check_read_by_all(6), Err(unread.clone()));
    image.apply(says(0, 6)).unwrap();
    assert_eq!(image.check_read_by_all(6), Ok(()));
    // It has gone back to a version of before.
    image.apply(register(0)).unwrap();
    assert_eq!(image.check_read_by_all(6), Err(unread));
    assert_eq!(Image::new().check_read_by_all(6), Ok(()));
}

#[test]
fn a_broker_that_says_what_it_reads_is_registered_like_others() {
    let (mut one, mut other) = (cluster(), cluster());
    assert_eq!(one.apply(register(1)), other.apply(says(1, 6)));
    assert_eq!(*other.reads, BTreeMap::from([(1, 6)]));
    assert!(matches!(
        refused(&other, says(-1, 6)),
        MetadataError::InvalidBroker { id: -1, .. }
    ));
    other.reads = Arc::default();
    assert_eq!(one, other);
}

#[test]
fn a_registration_reads_back_equal_and_a_newer_format_is_refused() {
    let mut bytes = says(1, 6).encode().unwrap();
    assert_eq!(
        bytes[..2],
        [6, 21],
        "older brokers must refuse it as unknown"
    );
    assert_eq!(bytes[0], MetadataCommand::NEWEST_FORMAT);
    assert_eq!(MetadataCommand::decode(&bytes).unwrap(), says(1, 6));
    bytes[0] = 7;
    assert_eq!(
        MetadataCommand::decode(&bytes),
        Err(MetadataError::Format(7))
    );
}

#[test]
fn an_image_is_written_in_the_oldest_format_that_has_room_for_it() {
    let mut first = cluster();
    first.apply(register(1)).unwrap();
    first.apply(pool(2, &[&[0, 1]])).unwrap();
    first.apply(create("t", 1, 1)).unwrap();
    let mut retired = first.clone();
    retired.apply(retire()).unwrap();
    let mut said = first.clone();
    said.apply(says(1, 6)).unwrap();
    let mut both = retired.clone();
    both.apply(says(1, 6)).unwrap();
    for (image, format) in [(&first, 2), (&retired, 3), (&said, 4), (&both, 4)] {
        let bytes = image.encode().unwrap();
        assert_eq!(bytes[0], format);
        assert_eq!(Image::decode(&bytes).unwrap(), *image);
    }
    both.apply(register(1)).unwrap();
    assert_eq!(both.encode().unwrap()[0], 3);
    // All that there was in the first version.
    let fields = (
        first.version,
        &first.cluster,
        &first.topics,
        &first.acls,
        &first.scram,
        &first.quotas,
        &first.broker_configs,
        &first.brokers,
        &first.shards,
        &first.pools,
        &first.system_keys,
        first.next_producer_id,
    );
    assert_eq!(
        first.encode().unwrap(),
        postcard::to_extend(&fields, vec![2_u8]).unwrap()
    );
}
