#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use super::*;
use crate::{command::BrokerEndpoint, config::ConfigError};
use palisade_log::{ShardId, TopicId};
use palisade_seal::{DekVersion, KekId, WrappedKey};
use palisade_security::{
    acl::{Operation, PatternType, Permission, ResourceType},
    quota::{EntityName, QuotaEntity, QuotaKey},
};
use palisade_shard::NodeId;
use uuid::Uuid;

mod formats;
mod history;
mod keys;
mod shards;

fn key(byte: u8) -> WrappedKey {
    WrappedKey {
        kek: KekId::new("k1").unwrap(),
        check: [byte; 8],
        nonce: [byte; 12],
        ciphertext: vec![byte; 48],
    }
}

fn id(value: u128) -> TopicId {
    TopicId(Uuid::from_u128(value))
}

fn register(broker: i32) -> MetadataCommand {
    MetadataCommand::RegisterBroker {
        id: broker,
        incarnation: Uuid::from_u128(7 << 96),
        rack: None,
        endpoints: vec![BrokerEndpoint {
            listener: "internal".to_owned(),
            host: "localhost".to_owned(),
            port: 9094,
        }],
    }
}

fn bootstrap() -> MetadataCommand {
    MetadataCommand::Bootstrap {
        cluster_id: "c1".to_owned(),
        data_shards: 3,
    }
}

fn create(name: &str, topic: u128, partitions: u32) -> MetadataCommand {
    MetadataCommand::CreateTopic {
        name: name.to_owned(),
        id: id(topic),
        partitions,
        replication_factor: 1,
        config: BTreeMap::new(),
        dek: key(1),
    }
}

/// The first data directory of a broker, in the shards.
fn node(broker: i32) -> NodeId {
    crate::node_of(broker, Uuid::from_u128(7 << 96))
}

fn pool(replication_factor: u16, replicas: &[&[i32]]) -> MetadataCommand {
    let shard = |brokers: &&[i32]| brokers.iter().copied().map(node).collect();
    MetadataCommand::CreatePool {
        replication_factor,
        replicas: replicas.iter().map(shard).collect(),
        for_groups: true,
    }
}

/// A cluster of one broker with three data shards.
fn cluster() -> Image {
    let mut image = Image::new();
    for command in [bootstrap(), register(0), pool(1, &[&[0], &[0], &[0]])] {
        image.apply(command).unwrap();
    }
    image
}

/// Applies the command to a copy and asserts that a refusal changed nothing.
fn refused(image: &Image, command: MetadataCommand) -> MetadataError {
    let mut copy = image.clone();
    let error = copy.apply(command.clone()).unwrap_err();
    assert_eq!(copy, *image, "a refused command changed something");
    assert_eq!(image.admit(&command).unwrap_err(), error);
    error
}

#[test]
fn a_cluster_is_bootstrapped_once() {
    let image = cluster();
    let mut again = image.clone();
    again.apply(bootstrap()).unwrap();
    assert_eq!(again.cluster, image.cluster);
    let other = MetadataCommand::Bootstrap {
        cluster_id: "c2".to_owned(),
        data_shards: 3,
    };
    assert_eq!(
        refused(&image, other).to_string(),
        "the data belongs to cluster `c1`, the configuration says `c2`: use the volume of this cluster, or correct node.cluster_id"
    );
    let shards = MetadataCommand::Bootstrap {
        cluster_id: "c1".to_owned(),
        data_shards: 4,
    };
    assert_eq!(
        refused(&image, shards).to_string(),
        "the cluster has 3 data shards a broker, the configuration says 4: storage.data_shards cannot change after the first start"
    );
    for (cluster_id, data_shards) in [("", 1), ("a b", 1), ("c", 0), ("c", 5000)] {
        let odd = MetadataCommand::Bootstrap {
            cluster_id: cluster_id.to_owned(),
            data_shards,
        };
        assert!(
            Image::new().admit(&odd).is_err(),
            "{cluster_id} {data_shards}"
        );
    }
    let mut early = Image::new();
    early.apply(register(0)).unwrap();
    assert_eq!(
        refused(&early, create("t", 1, 1)),
        MetadataError::NotBootstrapped
    );
}

#[test]
fn partitions_go_round_the_shards_over_all_topics() {
    let mut image = cluster();
    let shards = |image: &mut Image, command| match image.apply(command).unwrap() {
        MetadataResponse::Partitions { shards, .. } => {
            shards.into_iter().map(|shard| shard.0).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(shards(&mut image, create("a", 1, 4)), [1, 2, 3, 1]);
    assert_eq!(shards(&mut image, create("b", 2, 1)), [2]);
    let grow = MetadataCommand::CreatePartitions {
        id: id(1),
        total: 6,
    };
    assert_eq!(shards(&mut image, grow), [1, 2, 3, 1, 3, 1]);
    let topic = image.topics.by_name("a").unwrap();
    assert_eq!(
        topic.shard(palisade_log::PartitionIndex(4)),
        Some(ShardId(3))
    );
    assert_eq!(topic.shard(palisade_log::PartitionIndex(6)), None);
    assert_eq!(topic.shard(palisade_log::PartitionIndex(-1)), None);
    assert_eq!(image.topics.partition_count(), 7);
}

#[test]
fn topics_that_cannot_be_created() {
    let mut image = cluster();
    image.apply(create("a.b", 1, 1)).unwrap();
    assert_eq!(
        refused(&image, create("a.b", 2, 1)),
        MetadataError::TopicExists("a.b".to_owned())
    );
    assert_eq!(
        refused(&image, create("other", 1, 1)),
        MetadataError::TopicExists("other".to_owned())
    );
    assert_eq!(
        refused(&image, create("a_b", 2, 1)),
        MetadataError::TopicCollision {
            name: "a_b".to_owned(),
            existing: "a.b".to_owned()
        }
    );
    assert!(matches!(
        refused(&image, create("a b", 2, 1)),
        MetadataError::TopicName(_)
    ));
    assert!(matches!(
        refused(&image, create("t", 2, 0)),
        MetadataError::Partitions(_)
    ));
    assert!(matches!(
        refused(&image, create("t", 2, 10_001)),
        MetadataError::Partitions(_)
    ));
    assert!(matches!(
        refused(&image, create("t", 2, u32::MAX)),
        MetadataError::Partitions(_)
    ));
    let MetadataCommand::CreateTopic {
        name,
        id,
        partitions,
        config,
        dek,
        ..
    } = create("t", 2, 1)
    else {
        panic!("not a topic")
    };
    for replication_factor in [0, 2] {
        let command = MetadataCommand::CreateTopic {
            name: name.clone(),
            id,
            partitions,
            replication_factor,
            config: config.clone(),
            dek: dek.clone(),
        };
        let wanted = replication_factor;
        assert_eq!(
            refused(&image, command),
            MetadataError::ReplicationFactor {
                wanted,
                brokers: 1,
                draining: 0
            }
        );
    }
}

#[test]
fn a_deleted_topic_leaves_its_name_free_and_its_key_destroyed() {
    let mut image = cluster();
    image.apply(create("a.b", 1, 2)).unwrap();
    let deleted = image
        .apply(MetadataCommand::DeleteTopic { id: id(1) })
        .unwrap();
    assert_eq!(
        deleted,
        MetadataResponse::TopicDeleted {
            name: "a.b".to_owned()
        }
    );
    assert_eq!((image.topics.len(), image.topics.partition_count()), (0, 0));
    let bytes = image.encode().unwrap();
    assert!(
        !bytes.windows(48).any(|window| window == [1; 48]),
        "the wrapped key is still there"
    );
    assert_eq!(
        refused(&image, MetadataCommand::DeleteTopic { id: id(1) }),
        MetadataError::UnknownTopic(id(1))
    );
    image.apply(create("a_b", 2, 1)).unwrap();
}

#[test]
fn partitions_only_grow() {
    let mut image = cluster();
    image.apply(create("t", 1, 3)).unwrap();
    let total = |total| MetadataCommand::CreatePartitions { id: id(1), total };
    assert_eq!(
        refused(&image, total(3)).to_string(),
        "topic already has 3 partition(s)"
    );
    assert_eq!(
        refused(&image, total(2)).to_string(),
        "the topic t currently has 3 partition(s); 2 would not be an increase"
    );
    assert!(matches!(
        refused(&image, total(10_001)),
        MetadataError::Partitions(_)
    ));
    let unknown = MetadataCommand::CreatePartitions {
        id: id(9),
        total: 4,
    };
    assert_eq!(refused(&image, unknown), MetadataError::UnknownTopic(id(9)));
}

#[test]
fn a_registration_fences_the_one_before() {
    let mut image = cluster();
    let epoch = |image: &mut Image, command| match image.apply(command).unwrap() {
        MetadataResponse::BrokerRegistered { epoch } => epoch,
        other => panic!("{other:?}"),
    };
    let first = image.brokers.get(&0).unwrap().epoch;
    let second = epoch(&mut image, register(0));
    let other = epoch(&mut image, register(1));
    assert!(first < second && second < other);
    for command in [
        MetadataCommand::SetDraining {
            id: 1,
            draining: true,
        },
        MetadataCommand::UnregisterBroker { id: 1 },
    ] {
        image.apply(command).unwrap();
    }
    assert!(epoch(&mut image, register(1)) > other);
    assert_eq!(
        refused(&image, MetadataCommand::UnregisterBroker { id: 5 }),
        MetadataError::UnknownBroker(5)
    );
    assert!(matches!(
        refused(&image, register(-1)),
        MetadataError::InvalidBroker { id: -1, .. }
    ));
    let broker = image.brokers.get(&0).unwrap();
    assert_eq!(broker.endpoint("internal").unwrap().port, 9094);
    assert_eq!(broker.endpoint("external"), None);
}

#[test]
fn configs_are_checked_on_admission_and_only_merged_afterwards() {
    let mut image = cluster();
    image.apply(create("t", 1, 1)).unwrap();
    let alter = |name: &str, value: &str| MetadataCommand::AlterConfigs {
        resource: ConfigResource::Topic(id(1)),
        replace: false,
        ops: vec![ConfigOp::Set {
            name: name.to_owned(),
            value: value.to_owned(),
        }],
    };
    assert!(matches!(
        image.admit(&alter("retention.ms", "soon")),
        Err(MetadataError::Config(ConfigError::Value { .. }))
    ));
    assert!(matches!(
        image.admit(&alter("nonsense", "1")),
        Err(MetadataError::Config(ConfigError::UnknownTopicConfig(_)))
    ));
    let entry = image.admit(&alter("retention.ms", "5000")).unwrap();
    image.apply_entry(&entry).unwrap();
    let topic = image.topics.by_name("t").unwrap();
    assert_eq!(
        image.topic_config(topic, "retention.ms").unwrap().value,
        "5000"
    );
    assert_eq!(
        image.topic_configs(topic).count(),
        crate::config::TOPIC_CONFIGS.len()
    );
    assert_eq!(image.topic_config(topic, "nonsense"), None);
    // What two values mean together counts in whatever order they are set.
    let entry = image.admit(&alter("max.compaction.lag.ms", "5")).unwrap();
    image.apply_entry(&entry).unwrap();
    for value in ["10", " 10"] {
        assert!(
            matches!(
                image.admit(&alter("min.compaction.lag.ms", value)),
                Err(MetadataError::Config(ConfigError::Contradiction(_)))
            ),
            "{value:?}"
        );
    }
    assert!(image.admit(&alter("min.compaction.lag.ms", "5")).is_ok());
    // A value that a newer version knew stays out of the way of other changes.
    image.apply(alter("of.a.newer.version", "1")).unwrap();
    assert!(image.admit(&alter("retention.ms", "6000")).is_ok());
    let brokers = MetadataCommand::AlterConfigs {
        resource: ConfigResource::Brokers,
        replace: false,
        ops: vec![ConfigOp::Set {
            name: "log.retention.bytes".to_owned(),
            value: "9".to_owned(),
        }],
    };
    let entry = image.admit(&brokers).unwrap();
    image.apply_entry(&entry).unwrap();
    let topic = image.topics.by_name("t").unwrap();
    assert_eq!(image.topic_settings(topic).retention_bytes, Some(9));
    let unknown = MetadataCommand::AlterConfigs {
        resource: ConfigResource::Topic(id(9)),
        replace: false,
        ops: vec![],
    };
    assert_eq!(refused(&image, unknown), MetadataError::UnknownTopic(id(9)));
}

#[test]
fn a_topic_with_a_wrong_config_is_not_admitted() {
    let MetadataCommand::CreateTopic {
        name,
        id,
        partitions,
        replication_factor,
        dek,
        ..
    } = create("t", 1, 1)
    else {
        panic!("not a topic")
    };
    let command = MetadataCommand::CreateTopic {
        name,
        id,
        partitions,
        replication_factor,
        config: BTreeMap::from([("segment.bytes".to_owned(), "-5".to_owned())]),
        dek,
    };
    assert!(matches!(
        cluster().admit(&command),
        Err(MetadataError::Config(_))
    ));
}

fn binding(name: &str) -> AclBinding {
    AclBinding {
        resource_type: ResourceType::Topic,
        resource_name: name.to_owned(),
        pattern: PatternType::Literal,
        principal: "User:alice".to_owned(),
        host: "*".to_owned(),
        operation: Operation::Read,
        permission: Permission::Allow,
    }
}

#[test]
fn acls_are_added_and_removed_and_a_wrong_one_stops_all() {
    let mut image = cluster();
    let add = |names: &[&str]| MetadataCommand::CreateAcls {
        bindings: names.iter().map(|name| binding(name)).collect(),
    };
    assert_eq!(
        image.apply(add(&["a", "b"])),
        Ok(MetadataResponse::AclsCreated { added: 2 })
    );
    assert_eq!(
        image.apply(add(&["b", "c"])),
        Ok(MetadataResponse::AclsCreated { added: 1 })
    );
    assert!(matches!(
        refused(&image, add(&["d", ""])),
        MetadataError::Acl(_)
    ));
    let named = |name: &str| AclFilter {
        resource_name: Some(name.to_owned()),
        ..AclFilter::ANY
    };
    let delete = MetadataCommand::DeleteAcls {
        filters: vec![named("a"), named("a"), AclFilter::ANY],
    };
    let removed = vec![vec![binding("a")], vec![], vec![binding("b"), binding("c")]];
    assert_eq!(
        image.apply(delete),
        Ok(MetadataResponse::AclsDeleted { removed })
    );
    assert!(image.acls.is_empty());
}

fn credential(mechanism: ScramMechanism, salt: u8) -> ScramCredential {
    let length = mechanism.hash_len();
    ScramCredential::from_salted_password(mechanism, &[salt; 16], 4096, &vec![salt; length])
        .unwrap()
}

#[test]
fn credentials_of_a_user_change_together_or_not_at_all() {
    use ScramMechanism::{Sha256, Sha512};
    let mut image = cluster();
    let alter = |user: &str, upserts: Vec<ScramCredential>, deletions: Vec<ScramMechanism>| {
        MetadataCommand::AlterScram {
            user: user.to_owned(),
            upserts,
            deletions,
        }
    };
    let both = vec![credential(Sha256, 1), credential(Sha512, 2)];
    image.apply(alter("alice", both, vec![])).unwrap();
    assert_eq!(
        image.scram.get("alice", Sha256),
        Some(&credential(Sha256, 1))
    );
    assert_eq!(image.scram.any("alice"), Some(&credential(Sha512, 2)));
    assert_eq!(image.scram.of_user("alice").count(), 2);
    assert_eq!(
        refused(
            &image,
            alter("alice", vec![credential(Sha256, 3)], vec![Sha256])
        ),
        MetadataError::DuplicateCredential {
            user: "alice".to_owned(),
            mechanism: Sha256
        }
    );
    assert_eq!(
        refused(
            &image,
            alter("bob", vec![credential(Sha512, 3)], vec![Sha256])
        )
        .to_string(),
        "user `bob` has no SCRAM-SHA-256 credential to delete"
    );
    assert!(matches!(
        refused(&image, alter("a\nb", vec![], vec![])),
        MetadataError::UserName(_)
    ));
    assert!(matches!(
        refused(&image, alter("", vec![], vec![])),
        MetadataError::UserName(_)
    ));
    image
        .apply(alter("alice", vec![], vec![Sha256, Sha512]))
        .unwrap();
    assert!(!image.scram.contains("alice"));
    assert_eq!(image.scram.users().count(), 0);
}

#[test]
fn quotas_are_changed_and_wrong_ones_refused() {
    let mut image = cluster();
    let entity = QuotaEntity::User(EntityName::Named("alice".to_owned()));
    let alter = |value| MetadataCommand::AlterQuotas {
        entity: entity.clone(),
        changes: vec![(QuotaKey::ProducerByteRate, value)],
    };
    image.apply(alter(Some(1024.0))).unwrap();
    let limit = image
        .quotas
        .limit(QuotaKey::ProducerByteRate, "alice", "any");
    assert_eq!(limit.unwrap().value, 1024.0);
    assert!(matches!(
        refused(&image, alter(Some(-1.0))),
        MetadataError::Quota(_)
    ));
    image.apply(alter(None)).unwrap();
    assert!(image.quotas.is_empty());
}

#[test]
fn producer_ids_are_given_out_once() {
    let mut image = cluster();
    let allocate = |count| MetadataCommand::AllocateProducerIds { count };
    let block = |first| Ok(MetadataResponse::ProducerIds { first, count: 1000 });
    assert_eq!(image.apply(allocate(1000)), block(0));
    assert_eq!(image.apply(allocate(1000)), block(1000));
    assert_eq!(refused(&image, allocate(0)), MetadataError::ProducerIds(0));
    image.next_producer_id = i64::MAX - 5;
    assert_eq!(
        refused(&image, allocate(1000)),
        MetadataError::ProducerIds(1000)
    );
}

#[test]
fn a_groups_shard_never_changes() {
    let image = cluster();
    let cluster = image.cluster.unwrap();
    // Offsets lie where these values say: another function would lose them.
    let shards: Vec<u32> = ["", "g", "analytics-service", "group-1"]
        .iter()
        .map(|group| cluster.shard_of_group(group).unwrap().0)
        .collect();
    let expected: Vec<u32> = ["", "g", "analytics-service", "group-1"]
        .iter()
        .map(|group| {
            let mut hash: u64 = 14_695_981_039_346_656_037;
            for byte in group.as_bytes() {
                hash ^= u64::from(*byte);
                hash = hash.wrapping_mul(1_099_511_628_211);
            }
            u32::try_from(1 + hash % 3).unwrap()
        })
        .collect();
    assert_eq!(shards, expected);
}

#[test]
fn the_encoding_of_a_command_does_not_change() {
    // These bytes are on disks: a change here needs a new format byte and a reader for the old one.
    let bytes = MetadataCommand::AllocateProducerIds { count: 300 }
        .encode()
        .unwrap();
    assert_eq!(bytes, [2, 14, 172, 2]);
    let bytes = MetadataCommand::DeleteTopic { id: id(1) }.encode().unwrap();
    let mut expected = vec![2, 7, 16];
    expected.extend(1_u128.to_be_bytes());
    assert_eq!(bytes, expected);
    let bytes = bootstrap().encode().unwrap();
    assert_eq!(bytes, [2, 0, 2, b'c', b'1', 3]);
    let bytes = MetadataCommand::AssignShard {
        shard: ShardId(3),
        generation: 1,
        replicas: vec![NodeId(5)],
    };
    assert_eq!(bytes.encode().unwrap(), [2, 5, 3, 1, 1, 5]);
}

#[test]
fn entries_that_are_no_commands_are_refused() {
    let mut image = cluster();
    let before = image.clone();
    for (entry, message) in [
        (vec![], "a metadata command is malformed: it is empty"),
        (
            vec![7, 1],
            "metadata command format 7 is unknown: written by a newer version of the broker",
        ),
        (
            vec![2, 14, 5, 0],
            "a metadata command is malformed: 1 bytes follow its end",
        ),
    ] {
        assert_eq!(image.apply_entry(&entry).unwrap_err().to_string(), message);
    }
    assert!(image.apply_entry(&[2, 250, 1]).is_err());
    assert_eq!(image, before);
}
