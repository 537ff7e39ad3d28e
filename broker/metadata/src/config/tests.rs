#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn set(name: &str, value: &str) -> ConfigOp {
    ConfigOp::Set {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

#[test]
fn the_table_is_sorted_unique_documented_and_its_defaults_are_valid() {
    let names: Vec<&str> = TOPIC_CONFIGS.iter().map(|config| config.name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names, sorted);
    let broker_names: Vec<&str> = TOPIC_CONFIGS
        .iter()
        .filter_map(|config| config.broker_name)
        .collect();
    let distinct: BTreeSet<&&str> = broker_names.iter().collect();
    assert_eq!(distinct.len(), broker_names.len());
    for config in TOPIC_CONFIGS {
        assert!(!config.doc.is_empty(), "{}", config.name);
        // The replicas of a throttle are an empty list, which is the one thing they may be.
        assert_eq!(config.check(config.default), Ok(()), "{}", config.name);
    }
}

#[test]
fn values_are_checked_and_the_message_says_what_they_may_be() {
    for (name, value, message) in [
        (
            "retention.ms",
            "-2",
            "invalid value `-2` for configuration retention.ms: must be between -1 and 9223372036854775807",
        ),
        (
            "retention.ms",
            "1d",
            "invalid value `1d` for configuration retention.ms: must be an integer",
        ),
        (
            "min.insync.replicas",
            "0",
            "invalid value `0` for configuration min.insync.replicas: must be between 1 and 2147483647",
        ),
        (
            "cleanup.policy",
            "shred",
            "invalid value `shred` for configuration cleanup.policy: must be one or more of delete, compact",
        ),
        (
            "cleanup.policy",
            "",
            "invalid value `` for configuration cleanup.policy: must be one or more of delete, compact",
        ),
        (
            "message.timestamp.type",
            "Now",
            "invalid value `Now` for configuration message.timestamp.type: must be one of CreateTime, LogAppendTime",
        ),
        (
            "min.cleanable.dirty.ratio",
            "1.5",
            "invalid value `1.5` for configuration min.cleanable.dirty.ratio: must be a number between 0 and 1",
        ),
        (
            "min.cleanable.dirty.ratio",
            "NaN",
            "invalid value `NaN` for configuration min.cleanable.dirty.ratio: must be a number between 0 and 1",
        ),
        (
            "unclean.leader.election.enable",
            "true",
            "configuration unclean.leader.election.enable cannot be changed from `false`: only a replica with every acknowledged record can lead",
        ),
        (
            "compression.type",
            "zstd",
            "configuration compression.type cannot be changed from `producer`: batches are stored as the producer compressed them, since they are sealed whole",
        ),
        ("foo", "1", "unknown topic config name: foo"),
    ] {
        let error = Namespace::Topic.check(&map(&[(name, value)])).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    for (name, value) in [
        ("retention.ms", "-1"),
        ("cleanup.policy", "compact,delete"),
        ("cleanup.policy", " compact , delete "),
        ("compression.type", "producer"),
        ("min.cleanable.dirty.ratio", "0.25"),
    ] {
        assert_eq!(
            Namespace::Topic.check(&map(&[(name, value)])),
            Ok(()),
            "{name}"
        );
    }
}

#[test]
fn a_value_is_not_longer_than_any_config_needs() {
    let padded = |bytes: usize| format!("{:>bytes$}", "5");
    let check = |name: &str, value: &str| Namespace::Topic.check(&map(&[(name, value)]));
    assert_eq!(check("retention.ms", &padded(256)), Ok(()));
    let error = check("retention.ms", &padded(257)).unwrap_err().to_string();
    assert!(
        error.ends_with("for configuration retention.ms: must have at most 256 bytes"),
        "{error}"
    );
    assert!(check("cleanup.policy", &"delete,".repeat(100)).is_err());
}

#[test]
fn brokers_have_their_own_names() {
    assert_eq!(
        Namespace::Broker.check(&map(&[("log.retention.ms", "5")])),
        Ok(())
    );
    let error = Namespace::Broker
        .check(&map(&[("retention.ms", "5")]))
        .unwrap_err();
    assert_eq!(
        error,
        ConfigError::UnknownBrokerConfig("retention.ms".to_owned())
    );
    assert!(
        Namespace::Topic
            .check(&map(&[("log.retention.ms", "5")]))
            .is_err()
    );
}

#[test]
fn lags_that_contradict_each_other_are_refused() {
    let pair = |least, most| {
        map(&[
            ("min.compaction.lag.ms", least),
            ("max.compaction.lag.ms", most),
        ])
    };
    assert!(matches!(
        Namespace::Topic.check(&pair("10", "5")),
        Err(ConfigError::Contradiction(_))
    ));
    assert_eq!(Namespace::Topic.check(&pair("5", "5")), Ok(()));
    // Blanks around a number are no way past it.
    assert!(Namespace::Topic.check(&pair(" 10", "5 ")).is_err());
    let of_brokers = map(&[
        ("log.cleaner.min.compaction.lag.ms", "10"),
        ("log.cleaner.max.compaction.lag.ms", "5"),
    ]);
    assert!(Namespace::Broker.check(&of_brokers).is_err());
}

#[test]
fn operations_change_what_they_name_and_nothing_else() {
    let current = map(&[("retention.ms", "1"), ("segment.bytes", "2000")]);
    let altered = |replace, ops: &[ConfigOp]| Namespace::Topic.altered(&current, replace, ops);
    assert_eq!(
        altered(false, &[set("retention.ms", "5")]),
        map(&[("retention.ms", "5"), ("segment.bytes", "2000")])
    );
    let delete = ConfigOp::Delete {
        name: "segment.bytes".to_owned(),
    };
    assert_eq!(altered(false, &[delete]), map(&[("retention.ms", "1")]));
    assert_eq!(
        altered(true, &[set("retention.bytes", "5")]),
        map(&[("retention.bytes", "5")])
    );
}

#[test]
fn lists_are_appended_to_and_subtracted_from_starting_at_the_default() {
    let name = || "cleanup.policy".to_owned();
    let append = |value: &str| ConfigOp::Append {
        name: name(),
        value: value.to_owned(),
    };
    let subtract = |value: &str| ConfigOp::Subtract {
        name: name(),
        value: value.to_owned(),
    };
    let policy = |current: &[(&str, &str)], op: ConfigOp| {
        Namespace::Topic
            .altered(&map(current), false, &[op])
            .remove("cleanup.policy")
            .unwrap()
    };
    assert_eq!(policy(&[], append("compact")), "delete,compact");
    assert_eq!(policy(&[], append("delete")), "delete");
    assert_eq!(
        policy(&[("cleanup.policy", "compact")], append("delete, compact")),
        "compact,delete"
    );
    assert_eq!(
        policy(&[("cleanup.policy", "compact,delete")], subtract("delete")),
        "compact"
    );
    assert_eq!(policy(&[], subtract("delete")), "");
}

#[test]
fn operations_by_themselves_are_checked() {
    let check = |ops: &[ConfigOp]| Namespace::Topic.check_ops(ops);
    assert_eq!(
        check(&[set("retention.ms", "1"), set("retention.ms", "2")]),
        Err(ConfigError::Duplicate("retention.ms".to_owned()))
    );
    let append = ConfigOp::Append {
        name: "retention.ms".to_owned(),
        value: "1".to_owned(),
    };
    assert_eq!(
        check(&[append]),
        Err(ConfigError::NotAList("retention.ms".to_owned()))
    );
    assert_eq!(
        check(&[set("foo\n", "1")]),
        Err(ConfigError::UnknownTopicConfig("foo".to_owned()))
    );
    assert_eq!(
        check(&[ConfigOp::Delete {
            name: "of.an.older.version".to_owned()
        }]),
        Ok(())
    );
}

#[test]
fn a_topic_wins_over_the_brokers_and_they_over_the_default() {
    let definition = Namespace::Topic.find("retention.ms").unwrap();
    let topic = map(&[("retention.ms", "1")]);
    let brokers = map(&[("log.retention.ms", "2")]);
    let none = BTreeMap::new();
    let found = |topic, brokers| {
        let effective: Effective<'_> = definition.effective(topic, brokers);
        (effective.as_i64(), effective.source.code())
    };
    assert_eq!(found(&topic, &brokers), (1, 1));
    assert_eq!(found(&none, &brokers), (2, 3));
    assert_eq!(found(&none, &none), (604_800_000, 5));
}

#[test]
fn settings_are_numbers_with_no_limit_as_none() {
    use crate::{Image, Topic};
    let mut image = Image::new();
    let mut topic = Topic {
        id: palisade_log::TopicId::random(),
        name: "t".to_owned(),
        partitions: vec![],
        replication_factor: 1,
        config: BTreeMap::new(),
        keys: BTreeMap::new(),
    };
    let defaults = image.topic_settings(&topic);
    assert_eq!(defaults.retention, Some(Duration::from_secs(7 * 24 * 3600)));
    assert_eq!(defaults.retention_bytes, None);
    assert_eq!(defaults.max_message_bytes, 1_048_588);
    assert_eq!(defaults.timestamp_type, TimestampType::CreateTime);
    assert_eq!(
        defaults.cleanup,
        CleanupPolicy {
            delete: true,
            compact: false
        }
    );
    topic.config = map(&[
        ("retention.ms", "-1"),
        ("retention.bytes", "4096"),
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "LogAppendTime"),
    ]);
    image.broker_configs = std::sync::Arc::new(map(&[("message.max.bytes", "77")]));
    let settings = image.topic_settings(&topic);
    assert_eq!(settings.retention, None);
    assert_eq!(settings.retention_bytes, Some(4096));
    assert_eq!(
        settings.cleanup,
        CleanupPolicy {
            delete: false,
            compact: true
        }
    );
    assert_eq!(settings.timestamp_type, TimestampType::LogAppendTime);
    assert_eq!(settings.max_message_bytes, 77);
}

proptest! {
    #[test]
    fn arbitrary_names_and_values_never_panic(name in ".{0,40}", value in ".{0,40}", index in 0..TOPIC_CONFIGS.len()) {
        let _ = Namespace::Topic.check(&map(&[(&name, &value)]));
        let _ = TOPIC_CONFIGS[index].check(&value);
        let ops = [ConfigOp::Append { name: name.clone(), value: value.clone() }, ConfigOp::Subtract { name, value }];
        let _ = Namespace::Topic.altered(&BTreeMap::new(), false, &ops);
    }
}
