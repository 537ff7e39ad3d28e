//! Brokers, shards and where they are.

use super::*;

/// Brokers 0 to 3 and a pool of two shards with three replicas each.
fn four() -> Image {
    let mut image = Image::new();
    image.apply(bootstrap()).unwrap();
    for broker in 0..4 {
        image.apply(register(broker)).unwrap();
    }
    image.apply(pool(3, &[&[0, 1, 2], &[1, 2, 3]])).unwrap();
    image
}

fn again(broker: i32, incarnation: u128) -> MetadataCommand {
    MetadataCommand::RegisterBroker {
        id: broker,
        incarnation: Uuid::from_u128(incarnation),
        rack: None,
        endpoints: Vec::new(),
    }
}

fn assign(shard: u32, generation: u32, brokers: &[i32]) -> MetadataCommand {
    MetadataCommand::AssignShard {
        shard: ShardId(shard),
        generation,
        replicas: brokers.iter().copied().map(node).collect(),
    }
}

fn replicated(replication_factor: u16) -> MetadataCommand {
    let MetadataCommand::CreateTopic {
        name,
        id,
        partitions,
        config,
        dek,
        ..
    } = create("t", 1, 3)
    else {
        panic!("not a topic")
    };
    MetadataCommand::CreateTopic {
        name,
        id,
        partitions,
        replication_factor,
        config,
        dek,
    }
}

fn brokers(image: &Image, shard: u32) -> Vec<i32> {
    let shard = &image.shards[&ShardId(shard)];
    shard.replicas.iter().map(|node| node.broker()).collect()
}

#[test]
fn a_pool_is_made_once_and_its_shards_are_numbered_on() {
    let mut image = four();
    let shards = |shards: &[u32]| MetadataResponse::Pool {
        shards: shards.iter().copied().map(ShardId).collect(),
    };
    assert_eq!(image.apply(pool(1, &[&[3]])), Ok(shards(&[3])));
    let before = image.shards.clone();
    assert_eq!(image.apply(pool(3, &[&[0, 1, 3]])), Ok(shards(&[1, 2])));
    assert_eq!(image.shards, before);
    assert_eq!(image.pools[&3], [ShardId(1), ShardId(2)]);
    let info = &image.shards[&ShardId(2)];
    assert_eq!(info.preferred(), Some(node(1)));
    assert_eq!((info.generation, info.replication_factor), (0, 3));
    assert_eq!(info.formation(node(3)), Some(info.voters()));
    assert_eq!(info.formation(node(0)), None);
}

#[test]
fn groups_go_to_the_first_pool_that_is_made_for_them_and_stay_there() {
    let mut image = Image::new();
    image.apply(bootstrap()).unwrap();
    image.apply(register(0)).unwrap();
    assert_eq!(image.shard_of_group("g"), None);
    let for_topics = MetadataCommand::CreatePool {
        replication_factor: 1,
        replicas: vec![vec![node(0)]],
        for_groups: false,
    };
    image.apply(for_topics).unwrap();
    assert_eq!(image.shard_of_group("g"), None);
    // The pool is there already, and now it is for groups as well.
    image.apply(pool(1, &[&[0], &[0]])).unwrap();
    assert_eq!(image.shard_of_group("g"), Some(ShardId(1)));
    image.apply(register(1)).unwrap();
    image.apply(pool(2, &[&[0, 1]])).unwrap();
    assert_eq!(image.cluster.as_ref().unwrap().group_shards, [ShardId(1)]);
}

#[test]
fn pools_that_cannot_be() {
    let mut image = four();
    let reason = |command| match refused(&image, command) {
        MetadataError::Replicas(reason) => reason,
        other => panic!("{other:?}"),
    };
    let count = "a shard of replication factor 2 has that many, each on another broker";
    assert_eq!(reason(pool(2, &[&[0, 1], &[0]])), count);
    assert_eq!(reason(pool(2, &[&[0, 0]])), count);
    assert_eq!(reason(pool(2, &[])), "a pool has at least one shard");
    assert_eq!(
        reason(pool(2, &[&[0, 9]])),
        "broker 9 (00000007) is not registered"
    );
    assert!(matches!(
        refused(&image, pool(5, &[&[0, 1, 2, 3, 4]])),
        MetadataError::ReplicationFactor {
            wanted: 5,
            brokers: 4,
            ..
        }
    ));
    image.apply(again(0, 8 << 96)).unwrap();
    assert_eq!(
        refused(&image, pool(2, &[&[0, 1]])).to_string(),
        "these replicas are not usable: broker 0 (00000007) is not the current data directory of its broker"
    );
    let mut early = Image::new();
    early.apply(register(0)).unwrap();
    assert_eq!(
        refused(&early, pool(1, &[&[0]])),
        MetadataError::NotBootstrapped
    );
}

#[test]
fn topics_go_to_the_pool_of_their_replication_factor() {
    let mut image = four();
    assert_eq!(
        image.apply(replicated(3)),
        Ok(MetadataResponse::Partitions {
            id: id(1),
            shards: vec![ShardId(1), ShardId(2), ShardId(1)]
        })
    );
    image
        .apply(MetadataCommand::DeleteTopic { id: id(1) })
        .unwrap();
    assert_eq!(
        refused(&image, replicated(2)).to_string(),
        "there are no shards of replication factor 2 yet; retry"
    );
    assert_eq!(
        refused(&image, replicated(5)).to_string(),
        "Unable to replicate the partition 5 time(s): The target replication factor of 5 cannot be reached because only 4 broker(s) are registered."
    );
    assert_eq!(
        refused(&image, replicated(0)).to_string(),
        "Unable to replicate the partition 0 time(s): Invalid replication factor 0: the replication factor must be positive."
    );
    image
        .apply(MetadataCommand::SetDraining {
            id: 0,
            draining: true,
        })
        .unwrap();
    assert_eq!(
        refused(&image, replicated(4)).to_string(),
        "Unable to replicate the partition 4 time(s): The target replication factor of 4 cannot be reached because only 3 broker(s) are registered (1 more are being drained)."
    );
    image.apply(pool(1, &[&[2]])).unwrap();
    image.apply(replicated(1)).unwrap();
    assert_eq!(
        image.topics.by_name("t").unwrap().partitions,
        [ShardId(3); 3]
    );
}

#[test]
fn an_assignment_holds_unless_another_came_before() {
    let mut image = four();
    assert_eq!(
        image.apply(assign(1, 0, &[3, 1, 2])),
        Ok(MetadataResponse::ShardAssigned { generation: 1 })
    );
    assert_eq!(brokers(&image, 1), [3, 1, 2]);
    assert_eq!(
        refused(&image, assign(1, 0, &[0, 1, 2])).to_string(),
        "shard 1 is at generation 1, not 0: it has been assigned anew meanwhile"
    );
    assert_eq!(
        image.apply(assign(1, 1, &[3, 1, 2])),
        Ok(MetadataResponse::ShardAssigned { generation: 1 }),
        "nothing changed"
    );
    assert_eq!(
        refused(&image, assign(9, 0, &[0, 1, 2])),
        MetadataError::UnknownShard(ShardId(9))
    );
    for wrong in [&[0, 1][..], &[0, 1, 1], &[0, 1, 7]] {
        assert!(matches!(
            refused(&image, assign(1, 1, wrong)),
            MetadataError::Replicas(_)
        ));
    }
}

#[test]
fn only_the_first_replicas_form_a_shard() {
    let mut image = four();
    // Another leader is no other group.
    image.apply(assign(1, 0, &[1, 0, 2])).unwrap();
    let info = &image.shards[&ShardId(1)];
    assert_eq!(info.generation, 1);
    assert_eq!(info.formation(node(0)), Some(info.voters()));
    // One that was removed and comes back with an empty disk must not take itself for a founder.
    image.apply(assign(1, 1, &[1, 3, 2])).unwrap();
    image.apply(assign(1, 2, &[1, 0, 2])).unwrap();
    let info = &image.shards[&ShardId(1)];
    assert_eq!(info.formation(node(0)), None);
    assert_eq!(info.formation(node(1)), None);
}

#[test]
fn a_wiped_broker_takes_the_place_of_its_former_self_but_does_not_form_the_group() {
    let mut image = four();
    image.apply(again(1, 9 << 96)).unwrap();
    let new = NodeId::of(1, 9);
    assert_eq!(image.node_of(1), Some(new));
    for shard in [1, 2] {
        let info = &image.shards[&ShardId(shard)];
        assert_eq!(info.generation, 1);
        assert!(info.replicas.contains(&new) && !info.replicas.contains(&node(1)));
        assert_eq!(info.formation(new), None);
    }
    assert_eq!(brokers(&image, 2), [1, 2, 3], "the place stays the same");
    // The others may not have formed it yet.
    let founders = image.shards[&ShardId(1)].formation(node(0)).unwrap();
    assert_eq!(founders, BTreeSet::from([node(0), node(1), node(2)]));
    // The same directory again changes nothing.
    let before = image.shards.clone();
    image.apply(again(1, 9 << 96)).unwrap();
    assert_eq!(image.shards, before);
}

#[test]
fn a_sole_replica_that_was_wiped_begins_anew() {
    let mut image = cluster();
    image.apply(again(0, 9 << 96)).unwrap();
    let info = &image.shards[&ShardId(1)];
    assert_eq!(
        (info.generation, info.formation(NodeId::of(0, 9))),
        (1, Some(info.voters()))
    );
    // But not when it has been moved: the data may still be on their way from the broker that had them.
    image.apply(register(1)).unwrap();
    image.apply(assign(2, 1, &[1])).unwrap();
    image.apply(again(1, 5 << 96)).unwrap();
    assert_eq!(image.shards[&ShardId(2)].formation(NodeId::of(1, 5)), None);
}

#[test]
fn a_sole_replica_that_was_moved_begins_anew_when_it_is_known_to_be_alone() {
    let mut image = cluster();
    let settled = |shard, generation| MetadataCommand::ShardSettled {
        shard: ShardId(shard),
        generation,
    };
    let nothing = |shard| MetadataError::NothingToSettle(ShardId(shard));
    image.apply(register(1)).unwrap();
    assert_eq!(refused(&image, settled(2, 0)), nothing(2));
    image.apply(assign(2, 0, &[1])).unwrap();
    assert_eq!(
        refused(&image, settled(2, 0)).to_string(),
        "shard 2 is at generation 1, not 0: it has been assigned anew meanwhile"
    );
    let unsettled = image.clone();
    assert_eq!(image.apply(settled(2, 1)), Ok(MetadataResponse::Done));
    let info = &image.shards[&ShardId(2)];
    assert_eq!(
        (info.generation, info.formation(node(1))),
        (1, Some(info.voters()))
    );
    assert_eq!(refused(&image, settled(2, 1)), nothing(2));
    for (image, begins) in [(&image, true), (&unsettled, false)] {
        let mut image = image.clone();
        image.apply(again(1, 5 << 96)).unwrap();
        let info = &image.shards[&ShardId(2)];
        assert_eq!(info.replicas, [NodeId::of(1, 5)]);
        assert_eq!(info.formation(NodeId::of(1, 5)).is_some(), begins);
    }
    // The next move begins with the same doubt.
    image.apply(assign(2, 1, &[0])).unwrap();
    assert_eq!(image.shards[&ShardId(2)].formation(node(0)), None);

    let mut image = four();
    image.apply(assign(1, 0, &[0, 1, 3])).unwrap();
    assert_eq!(refused(&image, settled(1, 1)), nothing(1));
    assert_eq!(
        refused(&image, settled(9, 0)),
        MetadataError::UnknownShard(ShardId(9))
    );
    let bytes = settled(3, 1).encode().unwrap();
    assert_eq!(bytes, [5, 20, 3, 1]);
    assert_eq!(MetadataCommand::decode(&bytes).unwrap(), settled(3, 1));
}

#[test]
fn a_directory_that_cannot_be_told_from_the_last_is_refused() {
    let image = four();
    let twin = again(1, (7 << 96) + 1);
    assert!(matches!(
        refused(&image, twin),
        MetadataError::InvalidBroker { id: 1, .. }
    ));
}

#[test]
fn a_broker_leaves_only_empty() {
    let mut image = four();
    let leave = |id| MetadataCommand::UnregisterBroker { id };
    assert_eq!(
        refused(&image, leave(1)).to_string(),
        "broker 1 still has 2 shard replica(s): drain it first"
    );
    assert_eq!(refused(&image, leave(9)), MetadataError::UnknownBroker(9));
    image.apply(register(4)).unwrap();
    // It has nothing, but the next moment could give it something.
    assert_eq!(refused(&image, leave(4)), MetadataError::NotDraining(4));
    let drain = MetadataCommand::SetDraining {
        id: 4,
        draining: true,
    };
    image.apply(drain).unwrap();
    image.apply(leave(4)).unwrap();
    assert_eq!(image.node_of(4), None);
}

#[test]
fn a_broker_that_replicas_need_is_not_drained() {
    let mut image = four();
    let drain = |id, draining| MetadataCommand::SetDraining { id, draining };
    image.apply(drain(3, true)).unwrap();
    assert_eq!(
        refused(&image, drain(2, true)).to_string(),
        "broker 2 cannot be drained: 2 broker(s) would be left, and there are shards of replication factor 3"
    );
    // Saying it again is no change, and taking it back makes room for another.
    image.apply(drain(3, true)).unwrap();
    image.apply(drain(3, false)).unwrap();
    image.apply(drain(2, true)).unwrap();
}

#[test]
fn shards_that_nothing_uses_make_room_for_a_broker_to_leave() {
    let mut image = four();
    let wide = MetadataCommand::CreatePool {
        replication_factor: 4,
        replicas: vec![(0..4).map(node).collect(); 2],
        for_groups: false,
    };
    let retire = |replication_factor| MetadataCommand::RetirePool { replication_factor };
    let drain = MetadataCommand::SetDraining {
        id: 3,
        draining: true,
    };
    let before = image.encode().unwrap();
    image.apply(wide.clone()).unwrap();
    image.apply(replicated(4)).unwrap();
    // A topic is in the way, and then nothing but its shards.
    assert_eq!(image.room_to_leave(3), []);
    assert_eq!(refused(&image, retire(4)), MetadataError::PoolInUse(4));
    image
        .apply(MetadataCommand::DeleteTopic { id: id(1) })
        .unwrap();
    assert!(matches!(
        refused(&image, drain.clone()),
        MetadataError::BrokerNeeded {
            replication_factor: 4,
            ..
        }
    ));
    assert_eq!(image.room_to_leave(3), [retire(4)]);
    let mut drained = image.clone();
    drained.apply(retire(4)).unwrap();
    drained.apply(drain).unwrap();
    assert_eq!(drained.shards.len(), 2);
    assert_eq!(refused(&drained, retire(4)), MetadataError::NoPool(4));
    // Not what keeps committed offsets, however few brokers are left.
    assert_eq!(refused(&drained, retire(3)), MetadataError::PoolInUse(3));
    assert_eq!(drained.room_to_leave(2), []);

    // The numbers of the shards are not used again, not by a broker that starts from a checkpoint either.
    image.apply(retire(4)).unwrap();
    assert_eq!(image.retired, 4);
    let bytes = image.encode().unwrap();
    assert_eq!((before[0], bytes[0]), (2, 3));
    let mut image = Image::decode(&bytes).unwrap();
    image.apply(wide).unwrap();
    assert_eq!(image.pools[&4], [ShardId(5), ShardId(6)]);
    assert_eq!(Image::decode(&before).unwrap().retired, 0);
    assert_eq!(retire(4).encode().unwrap(), [4, 19, 4]);
}

#[test]
fn draining_moves_everything_away_and_lasts_over_restarts() {
    let mut image = four();
    let drain = |id, draining| MetadataCommand::SetDraining { id, draining };
    assert_eq!(
        refused(&image, drain(9, true)),
        MetadataError::UnknownBroker(9)
    );
    image.apply(drain(1, true)).unwrap();
    image.apply(register(1)).unwrap();
    assert!(image.brokers[&1].draining, "a restart does not end it");
    // A replica that is there may stay where it is, a new one may not come.
    image.apply(assign(1, 0, &[1, 0, 2])).unwrap();
    for assignment in image.rebalance() {
        image.apply(assignment.into()).unwrap();
    }
    assert_eq!(image.shards_on(1).count(), 0);
    assert_eq!(image.rebalance(), vec![]);
    let generation = image.shards[&ShardId(1)].generation;
    assert_eq!(
        refused(&image, assign(1, generation, &[0, 1, 2])).to_string(),
        "these replicas are not usable: broker 1 (00000007) is being drained"
    );
    assert!(!image.sites().iter().any(|site| site.node == node(1)));
    image
        .apply(MetadataCommand::UnregisterBroker { id: 1 })
        .unwrap();
    image.apply(register(1)).unwrap();
    assert!(!image.brokers[&1].draining, "it is another broker now");
}

#[test]
fn a_pool_is_placed_on_the_brokers_there_are() {
    let mut image = four();
    let command = image.new_pool(2, false).unwrap();
    let entry = image.admit(&command).unwrap();
    image.apply_entry(&entry).unwrap();
    // Three shards a broker, as the cluster was bootstrapped.
    assert_eq!(image.pools[&2].len(), 12);
    assert!(matches!(
        image.new_pool(5, false),
        Err(MetadataError::ReplicationFactor { .. })
    ));
    assert_eq!(
        Image::new().new_pool(1, false),
        Err(MetadataError::NotBootstrapped)
    );
    assert_eq!(image.metadata_voters().len(), 3);
}

#[test]
fn a_pool_is_placed_on_brokers_that_are_alive_when_they_are_enough() {
    let with = |alive: &[i32]| {
        let mut image = four();
        let command = image.new_pool_among(2, false, |broker| alive.contains(&broker));
        image.apply(command.unwrap()).unwrap();
        image
    };
    let users = |image: &Image| -> BTreeSet<i32> {
        let shards = image.pools[&2].iter();
        shards.flat_map(|shard| brokers(image, shard.0)).collect()
    };
    let all = BTreeSet::from([0, 1, 2, 3]);
    assert_eq!(users(&with(&[0, 1, 2, 3])), all);
    let mut spared = with(&[0, 2]);
    assert_eq!(users(&spared), BTreeSet::from([0, 2]));
    // As many as with all brokers, who get their share later.
    assert_eq!(spared.pools[&2].len(), 12);
    for assignment in spared.rebalance() {
        spared.apply(assignment.into()).unwrap();
    }
    assert_eq!(users(&spared), all);
    // One broker is too few for two replicas.
    assert_eq!(users(&with(&[1])), all);
}

#[test]
fn errors_and_answers_travel_as_they_are() {
    let mut image = four();
    image.apply(replicated(3)).unwrap();
    let errors = [
        MetadataError::NotDraining(3),
        refused(&image, assign(1, 5, &[0, 1, 2])),
        refused(&image, assign(1, 0, &[0, 1])),
        refused(&image, MetadataCommand::UnregisterBroker { id: 0 }),
        refused(&image, register(-1)),
        refused(&image, create("a b", 2, 1)),
        refused(
            &image,
            MetadataCommand::CreateAcls {
                bindings: vec![binding("")],
            },
        ),
        MetadataError::Config(ConfigError::Fixed {
            name: "a".into(),
            default: "b".into(),
            reason: "c".into(),
        }),
        MetadataError::Quota(palisade_security::quota::QuotaError::NotPositive(
            QuotaKey::ProducerByteRate,
        )),
        MetadataError::KeyVersion {
            found: 1,
            reason: "x".into(),
        },
        MetadataError::NotReadByAll {
            broker: 2,
            format: 6,
            reads: 5,
        },
        super::super::limit("brokers", 5),
    ];
    for error in errors {
        let bytes = postcard::to_stdvec(&error).unwrap();
        let read: MetadataError = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(read, error);
        assert_eq!(read.to_string(), error.to_string());
    }
    let delete = MetadataCommand::DeleteAcls {
        filters: vec![AclFilter::ANY],
    };
    for answer in [
        image.apply(delete).unwrap(),
        image.apply(register(2)).unwrap(),
    ] {
        let bytes = postcard::to_stdvec(&answer).unwrap();
        assert_eq!(
            postcard::from_bytes::<MetadataResponse>(&bytes).unwrap(),
            answer
        );
    }
}
