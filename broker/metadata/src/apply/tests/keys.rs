//! Versions of keys.

use super::*;

#[test]
fn key_versions_follow_each_other_and_the_newest_stays() {
    let mut image = cluster();
    image.apply(create("t", 1, 1)).unwrap();
    let set = |version, byte| MetadataCommand::SetTopicKey {
        id: id(1),
        version: DekVersion(version),
        key: key(byte),
    };
    let drop = |version| MetadataCommand::DropTopicKey {
        id: id(1),
        version: DekVersion(version),
    };
    assert!(matches!(
        refused(&image, set(3, 3)),
        MetadataError::KeyVersion { found: 3, .. }
    ));
    image.apply(set(1, 9)).unwrap();
    image.apply(set(2, 2)).unwrap();
    let topic = image.topics.by_name("t").unwrap();
    assert_eq!(topic.current_key(), Some((DekVersion(2), &key(2))));
    assert_eq!(topic.keys.get(&DekVersion(1)), Some(&key(9)));
    assert!(matches!(
        refused(&image, drop(2)),
        MetadataError::KeyVersion { .. }
    ));
    image.apply(drop(1)).unwrap();
    assert!(matches!(
        refused(&image, drop(1)),
        MetadataError::KeyVersion { .. }
    ));
    let system = |version| MetadataCommand::SetSystemKey {
        version: DekVersion(version),
        key: key(5),
    };
    assert!(matches!(
        refused(&image, system(2)),
        MetadataError::KeyVersion { .. }
    ));
    image.apply(system(1)).unwrap();
    image.apply(system(2)).unwrap();
    assert_eq!(image.system_keys.len(), 2);
}

#[test]
fn a_new_key_never_takes_the_place_of_another() {
    let mut image = cluster();
    image.apply(create("t", 1, 1)).unwrap();
    let add = |version, byte| MetadataCommand::AddTopicKey {
        id: id(1),
        version: DekVersion(version),
        key: key(byte),
    };
    for version in [0, 1] {
        assert!(matches!(
            refused(&image, add(version, 2)),
            MetadataError::KeyVersion { .. }
        ));
    }
    image.apply(add(5, 2)).unwrap();
    // The second of two proposals: something may be sealed under the first.
    assert!(matches!(
        refused(&image, add(5, 3)),
        MetadataError::KeyVersion { found: 5, .. }
    ));
    let topic = image.topics.by_name("t").unwrap();
    assert_eq!(topic.current_key(), Some((DekVersion(5), &key(2))));
    for version in 6..=103 {
        image.apply(add(version, 4)).unwrap();
    }
    assert!(matches!(
        refused(&image, add(104, 4)),
        MetadataError::KeyVersion { .. }
    ));
    let encoded = add(2, 9).encode().unwrap();
    assert_eq!(
        encoded[..2],
        [3, 18],
        "older brokers must refuse it as unknown"
    );
    assert_eq!(MetadataCommand::decode(&encoded).unwrap(), add(2, 9));
}

#[test]
fn a_key_is_due_when_the_configuration_wants_a_newer_one() {
    let mut image = cluster();
    image.apply(create("t", 1, 1)).unwrap();
    image.apply(create("other", 2, 1)).unwrap();
    let want = |version: &str| MetadataCommand::AlterConfigs {
        resource: ConfigResource::Topic(id(1)),
        replace: false,
        ops: vec![ConfigOp::Set {
            name: "palisade.key.version".to_owned(),
            value: version.to_owned(),
        }],
    };
    let due = |image: &Image| image.keys_due().collect::<Vec<_>>();
    assert_eq!(due(&image), []);
    image.apply(want("1")).unwrap();
    assert_eq!(due(&image), []);
    image.apply(want("3")).unwrap();
    assert_eq!(due(&image), [(id(1), DekVersion(3))]);
    image
        .apply(MetadataCommand::AddTopicKey {
            id: id(1),
            version: DekVersion(3),
            key: key(7),
        })
        .unwrap();
    assert_eq!(due(&image), []);
    // No way back: an older key is never used again.
    image.apply(want("2")).unwrap();
    assert_eq!(due(&image), []);
    assert!(image.admit(&want("0")).is_err() && image.admit(&want("two")).is_err());
}

#[test]
fn a_version_that_no_key_can_get_is_not_admitted() {
    let mut image = cluster();
    image.apply(create("t", 1, 1)).unwrap();
    let want = |version: u32| MetadataCommand::AlterConfigs {
        resource: ConfigResource::Topic(id(1)),
        replace: false,
        ops: vec![ConfigOp::Set {
            name: "palisade.key.version".to_owned(),
            value: version.to_string(),
        }],
    };
    assert!(image.admit(&want(1001)).is_ok());
    assert_eq!(
        image.admit(&want(1002)).unwrap_err().to_string(),
        "invalid value `1002` for configuration palisade.key.version: must be at most 1001: 1000 above the newest version of the key"
    );
    for version in 2..=100 {
        image
            .apply(MetadataCommand::AddTopicKey {
                id: id(1),
                version: DekVersion(version),
                key: key(2),
            })
            .unwrap();
    }
    assert!(image.admit(&want(100)).is_ok());
    assert_eq!(
        image.admit(&want(101)).unwrap_err().to_string(),
        "invalid value `101` for configuration palisade.key.version: must be at most 100: 100 versions of the key are still in use"
    );
    // What was stored before stays out of the way of other changes.
    image.apply(want(5000)).unwrap();
    let other = MetadataCommand::AlterConfigs {
        resource: ConfigResource::Topic(id(1)),
        replace: false,
        ops: vec![ConfigOp::Set {
            name: "retention.ms".to_owned(),
            value: "5".to_owned(),
        }],
    };
    assert!(image.admit(&other).is_ok());
}
