//! Random histories of commands, and what must hold after each of them.

use proptest::prelude::*;

use super::*;

fn any_node() -> impl Strategy<Value = NodeId> {
    (0..3_i32, prop::sample::select(vec![1, 7, 7, 7]))
        .prop_map(|(broker, incarnation)| NodeId::of(broker, incarnation))
}

fn any_command() -> impl Strategy<Value = MetadataCommand> {
    let topic = || (1_u128..5).prop_map(id);
    let name = prop::sample::select(vec!["a", "b.c", "b_c", "d", "bad name"]);
    prop_oneof![
        1 => Just(bootstrap()),
        1 => (-1..3_i32).prop_map(register),
        1 => (0..3_i32, 1..4_u128).prop_map(|(id, incarnation)| MetadataCommand::RegisterBroker {
            id,
            incarnation: Uuid::from_u128(incarnation << 96),
            rack: None,
            endpoints: Vec::new(),
        }),
        1 => (-1..3_i32, 0..8_u8).prop_map(|(id, reads)| MetadataCommand::Register {
            id,
            incarnation: Uuid::from_u128(7 << 96),
            rack: None,
            endpoints: Vec::new(),
            reads,
        }),
        1 => (0..3_i32).prop_map(|id| MetadataCommand::UnregisterBroker { id }),
        1 => (0..3_i32, any::<bool>()).prop_map(|(id, draining)| MetadataCommand::SetDraining { id, draining }),
        2 => (0..4_u16, prop::collection::vec(prop::collection::vec(any_node(), 1..3), 0..4), any::<bool>())
            .prop_map(|(replication_factor, replicas, for_groups)| {
                MetadataCommand::CreatePool { replication_factor, replicas, for_groups }
            }),
        3 => (0..8_u32, 0..3_u32, prop::collection::vec(any_node(), 1..3)).prop_map(|(shard, generation, replicas)| {
            MetadataCommand::AssignShard { shard: ShardId(shard), generation, replicas }
        }),
        4 => (name, 1_u128..5, 0..6_u32).prop_map(|(name, topic, partitions)| create(name, topic, partitions)),
        2 => topic().prop_map(|id| MetadataCommand::DeleteTopic { id }),
        2 => (topic(), 0..12_u32).prop_map(|(id, total)| MetadataCommand::CreatePartitions { id, total }),
        2 => (topic(), any::<bool>(), "[a-z.]{1,8}", "[0-9]{1,4}").prop_map(|(id, replace, name, value)| {
            MetadataCommand::AlterConfigs {
                resource: ConfigResource::Topic(id),
                replace,
                ops: vec![ConfigOp::Append { name, value }],
            }
        }),
        2 => prop::sample::select(vec!["a", "", "*"])
            .prop_map(|name| MetadataCommand::CreateAcls { bindings: vec![binding(name)] }),
        1 => Just(MetadataCommand::DeleteAcls { filters: vec![AclFilter::ANY] }),
        2 => (prop::sample::select(vec!["alice", ""]), any::<bool>()).prop_map(|(user, delete)| {
            let mechanism = ScramMechanism::Sha256;
            MetadataCommand::AlterScram {
                user: user.to_owned(),
                upserts: if delete { vec![] } else { vec![credential(mechanism, 1)] },
                deletions: if delete { vec![mechanism] } else { vec![] },
            }
        }),
        1 => (-5..5_i32).prop_map(|value| MetadataCommand::AlterQuotas {
            entity: QuotaEntity::User(EntityName::Default),
            changes: vec![(QuotaKey::ConsumerByteRate, Some(f64::from(value)))],
        }),
        1 => any::<u32>().prop_map(|count| MetadataCommand::AllocateProducerIds { count }),
        1 => (topic(), 0..4_u32).prop_map(|(id, version)| MetadataCommand::SetTopicKey {
            id, version: DekVersion(version), key: key(3),
        }),
        1 => (topic(), 0..4_u32).prop_map(|(id, version)| MetadataCommand::DropTopicKey {
            id, version: DekVersion(version),
        }),
        1 => (topic(), 0..6_u32).prop_map(|(id, version)| MetadataCommand::AddTopicKey {
            id, version: DekVersion(version), key: key(5),
        }),
        1 => (0..4_u16).prop_map(|replication_factor| MetadataCommand::RetirePool { replication_factor }),
        1 => (0..8_u32, 0..3_u32).prop_map(|(shard, generation)| MetadataCommand::ShardSettled {
            shard: ShardId(shard), generation,
        }),
        1 => (0..4_u32).prop_map(|version| MetadataCommand::SetSystemKey {
            version: DekVersion(version), key: key(4),
        }),
    ]
}

/// What must hold of every image, whatever happened.
fn check(image: &Image) {
    let topics = image.topics.iter().count();
    assert_eq!(topics, image.topics.len());
    let partitions: usize = image
        .topics
        .iter()
        .map(|topic| topic.partitions.len())
        .sum();
    assert_eq!(partitions, image.topics.partition_count());
    for (replication_factor, pool) in image.pools.iter() {
        for shard in pool {
            assert_eq!(image.shards[shard].replication_factor, *replication_factor);
        }
    }
    let mut said = image.reads.keys();
    assert!(said.all(|id| image.brokers.contains_key(id)));
    let pooled: Vec<ShardId> = image.pools.values().flatten().copied().collect();
    assert_eq!(pooled.len(), image.shards.len());
    let kept = image.cluster.iter().flat_map(|one| &one.group_shards);
    assert!(kept.into_iter().all(|shard| pooled.contains(shard)));
    for shard in image.shards.values() {
        let brokers: BTreeSet<i32> = shard.replicas.iter().map(|node| node.broker()).collect();
        assert_eq!(brokers.len(), usize::from(shard.replication_factor));
        assert_eq!(brokers.len(), shard.replicas.len());
        for node in &shard.replicas {
            assert_eq!(
                image.node_of(node.broker()),
                Some(*node),
                "a replica on no registered node"
            );
        }
        // Only the very first replicas may form a shard, or a sole one that is left with nothing.
        assert!(shard.generation > 0 || shard.founders == shard.replicas);
    }
    for topic in image.topics.iter() {
        assert_eq!(
            image.topics.by_name(&topic.name).map(|found| found.id),
            Some(topic.id)
        );
        assert_eq!(image.topics.colliding(&topic.name), None);
        assert!(topic.current_key().is_some());
        let pool = &image.pools[&topic.replication_factor];
        assert!(topic.partitions.iter().all(|shard| pool.contains(shard)));
    }
    assert!(
        image
            .scram
            .users()
            .all(|user| image.scram.of_user(user).count() > 0)
    );
}

proptest! {
    #[test]
    fn every_broker_that_applies_the_same_entries_has_the_same_image(
        commands in prop::collection::vec(any_command(), 0..60),
        checkpoint in 0_usize..60,
    ) {
        let mut one = Image::new();
        let mut other = Image::new();
        for (index, command) in commands.iter().enumerate() {
            let entry = command.encode().unwrap();
            prop_assert_eq!(&MetadataCommand::decode(&entry).unwrap(), command);
            let before = one.clone();
            let outcome = one.apply_entry(&entry);
            if outcome.is_err() {
                prop_assert_eq!(&one, &before);
                prop_assert!(before.admit(command).is_err());
            } else {
                prop_assert_eq!(one.version, before.version + 1);
            }
            // The other is restarted from its checkpoint in the middle.
            if index == checkpoint {
                other = Image::decode(&other.encode().unwrap()).unwrap();
            }
            prop_assert_eq!(other.apply_entry(&entry), outcome);
            check(&one);
        }
        prop_assert_eq!(one, other);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut entry = vec![2];
        entry.extend(&bytes);
        let mut image = cluster();
        let _ = image.apply_entry(&entry);
        let _ = Image::decode(&bytes);
        let _ = Image::decode(&entry);
        check(&image);
    }
}
