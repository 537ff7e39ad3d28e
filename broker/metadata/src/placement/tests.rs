#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn node(broker: usize) -> NodeId {
    NodeId::of(i32::try_from(broker).unwrap(), 7)
}

/// Brokers from 0 on, each with the number of its rack; 9 stands for none.
fn sites(racks: &[u8]) -> Vec<Site> {
    let rack = |number: u8| (number < 9).then(|| format!("r{number}"));
    (0..)
        .zip(racks)
        .map(|(broker, number)| Site {
            node: node(broker),
            rack: rack(*number),
        })
        .collect()
}

fn shards(replication_factor: u16, placed: Vec<Vec<NodeId>>) -> BTreeMap<ShardId, ShardInfo> {
    let infos = placed
        .into_iter()
        .map(|nodes| ShardInfo::new(replication_factor, nodes));
    (1..).map(ShardId).zip(infos).collect()
}

/// A new pool of so many shards for each of these brokers.
fn pool_on(sites: &[Site], replication_factor: u16, per_broker: u32) -> Vec<Vec<NodeId>> {
    let count = sites.len() * usize::try_from(per_broker).unwrap();
    place_pool(sites, replication_factor, count)
}

/// Balances the shards over these brokers.
fn settle(shards: &mut BTreeMap<ShardId, ShardInfo>, sites: &[Site]) {
    for assignment in rebalance(sites, shards) {
        let shard = shards.get_mut(&assignment.shard).unwrap();
        assert_eq!(shard.generation, assignment.generation);
        assert!(shard.assign(assignment.replicas), "nothing was changed");
    }
}

fn lists(shards: &BTreeMap<ShardId, ShardInfo>, replication_factor: u16) -> Vec<Vec<NodeId>> {
    shards
        .values()
        .filter(|shard| shard.replication_factor == replication_factor)
        .map(|shard| shard.replicas.clone())
        .collect()
}

/// Replicas of each broker.
fn loads(sites: &[Site], placed: &[Vec<NodeId>]) -> Vec<usize> {
    let of = |site: &Site| {
        placed
            .iter()
            .flatten()
            .filter(|node| **node == site.node)
            .count()
    };
    sites.iter().map(of).collect()
}

fn leads(sites: &[Site], placed: &[Vec<NodeId>]) -> Vec<usize> {
    let first: Vec<Vec<NodeId>> = placed.iter().map(|nodes| vec![nodes[0]]).collect();
    loads(sites, &first)
}

fn spread(counts: &[usize]) -> usize {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

fn racks_of(sites: &[Site]) -> BTreeMap<Option<String>, Vec<usize>> {
    let mut racks: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (at, site) in sites.iter().enumerate() {
        racks.entry(site.rack.clone()).or_default().push(at);
    }
    racks
}

/// Every rule that a pool has to keep, whatever came before.
fn check(sites: &[Site], replication_factor: u16, placed: &[Vec<NodeId>]) {
    let racks = racks_of(sites);
    let sizes: Vec<usize> = racks.values().map(Vec::len).collect();
    let wanted = usize::from(replication_factor);
    let cap = (1..)
        .find(|cap| sizes.iter().map(|size| size.min(cap)).sum::<usize>() >= wanted)
        .unwrap();
    for nodes in placed {
        let distinct: BTreeSet<&NodeId> = nodes.iter().collect();
        assert_eq!((nodes.len(), distinct.len()), (wanted, wanted));
        for members in racks.values() {
            let here = members
                .iter()
                .filter(|at| nodes.contains(&sites[**at].node))
                .count();
            assert!(here <= cap, "{here} replicas in a rack, {cap} will do");
        }
    }
    let counts = loads(sites, placed);
    assert_eq!(counts.iter().sum::<usize>(), placed.len() * wanted);
    // Racks of one size have no reason to differ.
    for size in &sizes {
        let alike: Vec<usize> = racks
            .values()
            .filter(|members| members.len() == *size)
            .flatten()
            .map(|at| counts[*at])
            .collect();
        assert!(spread(&alike) <= 1, "{counts:?} in {sizes:?}");
    }
    if sizes.iter().all(|size| *size == sizes[0]) {
        assert!(spread(&counts) <= 1, "replicas: {counts:?}");
        let leaders = leads(sites, placed);
        assert!(spread(&leaders) <= 1, "leaders: {leaders:?}");
    }
}

/// How many replicas have no place any more that they had.
fn moves(before: &[Vec<NodeId>], after: &[Vec<NodeId>]) -> usize {
    before
        .iter()
        .zip(after)
        .map(|(before, after)| before.iter().filter(|node| !after.contains(node)).count())
        .sum()
}

/// Every way to choose this many of so many brokers, in order.
fn choices(brokers: usize, replicas: usize) -> Vec<Vec<usize>> {
    if replicas == 0 {
        return vec![vec![]];
    }
    (0..brokers)
        .flat_map(|last| {
            let with = move |mut begin: Vec<usize>| {
                begin.push(last);
                begin
            };
            choices(last, replicas - 1).into_iter().map(with)
        })
        .collect()
}

/// Of all ways to place these shards that the racks allow: the least sum of squares of the brokers' replicas, and the fewest moves to get there.
fn best(sites: &[Site], replicas: usize, before: &[Vec<NodeId>]) -> (usize, usize) {
    let racks = racks_of(sites);
    let crowd = |choice: &Vec<usize>| {
        let here = |members: &Vec<usize>| choice.iter().filter(|at| members.contains(at)).count();
        racks.values().map(here).max().unwrap()
    };
    let all = choices(sites.len(), replicas);
    let cap = all.iter().map(crowd).min().unwrap();
    let allowed: Vec<Vec<usize>> = all
        .into_iter()
        .filter(|choice| crowd(choice) == cap)
        .collect();
    // The fewest moves to each distribution of replicas, shard by shard.
    let mut reached = BTreeMap::from([(vec![0_usize; sites.len()], 0_usize)]);
    for shard in before {
        let mut next: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
        for (counts, moves) in &reached {
            for choice in &allowed {
                let mut counts = counts.clone();
                choice.iter().for_each(|at| counts[*at] += 1);
                let stays = choice
                    .iter()
                    .filter(|at| shard.contains(&sites[**at].node))
                    .count();
                let moves = moves + replicas - stays;
                let known = next.entry(counts).or_insert(moves);
                *known = moves.min(*known);
            }
        }
        reached = next;
    }
    let squares = |counts: &[usize]| counts.iter().map(|count| count * count).sum::<usize>();
    reached
        .iter()
        .map(|(counts, moves)| (squares(counts), *moves))
        .min()
        .unwrap()
}

#[test]
fn three_brokers_lead_as_much_as_each_other_and_every_shard_is_everywhere() {
    let sites = sites(&[9, 9, 9]);
    let placed = pool_on(&sites, 3, 4);
    assert_eq!(placed.len(), 12);
    check(&sites, 3, &placed);
    assert_eq!(leads(&sites, &placed), [4, 4, 4]);
    assert_eq!(pool_on(&sites, 4, 4), Vec::<Vec<NodeId>>::new());
    assert_eq!(pool_on(&[], 1, 4), Vec::<Vec<NodeId>>::new());
}

#[test]
fn a_lone_broker_has_every_shard() {
    let placed = pool_on(&sites(&[9]), 1, 4);
    assert_eq!(placed, vec![vec![node(0)]; 4]);
}

#[test]
fn each_of_three_racks_has_one_replica() {
    let sites = sites(&[0, 0, 1, 1, 2, 2]);
    for nodes in pool_on(&sites, 3, 4) {
        let racks: BTreeSet<i32> = nodes.iter().map(|node| node.broker() / 2).collect();
        assert_eq!(racks.len(), 3, "{nodes:?}");
    }
}

#[test]
fn any_two_brokers_share_about_as_many_shards() {
    for (brokers, replication_factor, per_broker) in [
        (4, 3, 4),
        (5, 3, 4),
        (6, 3, 4),
        (7, 3, 4),
        (9, 3, 4),
        (12, 3, 8),
        (6, 2, 4),
        (8, 5, 4),
    ] {
        let sites = sites(&vec![9; brokers]);
        let placed = pool_on(&sites, replication_factor, per_broker);
        let mut most = 0;
        let mut least = usize::MAX;
        for one in 0..brokers {
            for other in one + 1..brokers {
                let shared = placed
                    .iter()
                    .filter(|nodes| nodes.contains(&node(one)) && nodes.contains(&node(other)))
                    .count();
                most = most.max(shared);
                least = least.min(shared);
            }
        }
        assert!(
            most - least <= 2,
            "{brokers} brokers, {replication_factor} replicas: {least} to {most}"
        );
    }
}

#[test]
fn a_broker_that_is_added_gets_its_share_from_the_others_and_nothing_else_moves() {
    let three = sites(&[9, 9, 9]);
    let mut shards = shards(3, pool_on(&three, 3, 4));
    let four = sites(&[9, 9, 9, 9]);
    let before = lists(&shards, 3);
    settle(&mut shards, &four);
    let after = lists(&shards, 3);
    check(&four, 3, &after);
    assert_eq!(moves(&before, &after), 9);
    assert!(rebalance(&four, &shards).is_empty());
}

#[test]
fn a_pool_that_does_not_fit_stays_as_it_is() {
    let three = sites(&[9, 9, 9]);
    let placed = shards(3, pool_on(&three, 3, 4));
    assert!(rebalance(&three[..2], &placed).is_empty());
    assert!(rebalance(&[], &placed).is_empty());
}

#[test]
fn odd_replicas_of_several_pools_go_to_different_brokers() {
    let sites = sites(&[9, 9, 9, 9]);
    let mut shards = BTreeMap::new();
    // Every pool has one shard too many for its brokers to have the same, and all begin at the same place.
    for (id, replication_factor) in [(1, 1), (2, 2), (3, 3)] {
        let nodes = (0..usize::from(replication_factor)).map(node).collect();
        shards.insert(ShardId(id), ShardInfo::new(replication_factor, nodes));
    }
    settle(&mut shards, &sites);
    let all: Vec<Vec<NodeId>> = shards
        .values()
        .map(|shard| shard.replicas.clone())
        .collect();
    assert_eq!(spread(&loads(&sites, &all)), 1);
    assert_eq!(spread(&leads(&sites, &all)), 1);
}

#[test]
fn the_metadata_have_an_odd_number_of_voters_spread_over_racks() {
    let voters = |racks: &[u8]| -> Vec<i32> {
        let voters = shard0_voters(&sites(racks));
        voters.into_iter().map(NodeId::broker).collect()
    };
    assert_eq!(voters(&[]), [0; 0]);
    assert_eq!(voters(&[9]), [0]);
    assert_eq!(voters(&[9, 9]), [0]);
    assert_eq!(voters(&[9, 9, 9]), [0, 1, 2]);
    assert_eq!(voters(&[9, 9, 9, 9]), [0, 1, 2]);
    assert_eq!(voters(&[9; 7]), [0, 1, 2, 3, 4]);
    assert_eq!(voters(&[0, 0, 0, 1]), [0, 1, 3]);
    assert_eq!(voters(&[2, 2, 1, 0]), [0, 2, 3]);
    assert_eq!(voters(&[0, 0, 0, 1, 1, 2, 2]), [0, 1, 3, 4, 5]);
    // Five would lose their majority with the first rack.
    assert_eq!(voters(&[0, 0, 0, 1, 2]), [0, 3, 4]);
    assert_eq!(voters(&[0, 0, 0, 0, 0, 1, 2]), [0, 5, 6]);
    // So would three.
    assert_eq!(voters(&[0, 0, 0, 0, 1]), [0, 1, 2, 3, 4]);
}

fn any_racks() -> impl Strategy<Value = Vec<u8>> {
    let equal = (1..5_u8, 1..4_usize)
        .prop_map(|(racks, size)| (0..racks).flat_map(|rack| vec![rack; size]).collect());
    prop_oneof![
        prop::collection::vec(Just(9), 1..11),
        equal,
        prop::collection::vec(prop::sample::select(vec![0, 1, 2, 3, 9]), 1..11),
    ]
}

/// Shards that were placed without any plan.
fn scattered(brokers: usize, replication_factor: u16, seeds: &[u64]) -> Vec<Vec<NodeId>> {
    let all = choices(brokers, usize::from(replication_factor));
    let count = u64::try_from(all.len()).unwrap();
    seeds
        .iter()
        .map(|seed| {
            let choice = &all[usize::try_from(seed % count).unwrap()];
            let mut nodes: Vec<NodeId> = choice.iter().copied().map(node).collect();
            let first = seed / count % u64::from(replication_factor);
            nodes.rotate_left(usize::try_from(first).unwrap());
            nodes
        })
        .collect()
}

proptest! {
    #[test]
    fn a_new_pool_keeps_every_rule(racks in any_racks(), replication_factor in 1..6_u16, per_broker in 1..5_u32) {
        let sites = sites(&racks);
        let placed = pool_on(&sites, replication_factor, per_broker);
        if usize::from(replication_factor) > sites.len() {
            prop_assert!(placed.is_empty());
        } else {
            prop_assert_eq!(placed.len(), sites.len() * per_broker as usize);
            check(&sites, replication_factor, &placed);
        }
    }

    #[test]
    fn a_cluster_that_grows_and_shrinks_keeps_every_rule_and_then_rests(
        racks in any_racks(),
        present in prop::collection::vec(prop::collection::vec(any::<bool>(), 11), 1..5),
        factors in prop::collection::btree_set(1..5_u16, 1..3),
        per_broker in 1..4_u32,
    ) {
        let everyone = sites(&racks);
        let mut shards = BTreeMap::new();
        let mut id = 0;
        for replication_factor in &factors {
            for nodes in pool_on(&everyone, *replication_factor, per_broker) {
                id += 1;
                shards.insert(ShardId(id), ShardInfo::new(*replication_factor, nodes));
            }
        }
        for present in present {
            let here: Vec<Site> = everyone
                .iter()
                .zip(&present)
                .filter(|(_, present)| **present)
                .map(|(site, _)| site.clone())
                .collect();
            let before = shards.clone();
            settle(&mut shards, &here);
            for replication_factor in &factors {
                let placed = lists(&shards, *replication_factor);
                if usize::from(*replication_factor) <= here.len() && !placed.is_empty() {
                    // This includes that those who are not here have nothing.
                    check(&here, *replication_factor, &placed);
                } else {
                    prop_assert_eq!(placed, lists(&before, *replication_factor));
                }
            }
            prop_assert_eq!(rebalance(&here, &shards), vec![]);
        }
    }

    #[test]
    fn nothing_moves_that_need_not(
        racks in any_racks(),
        seeds in prop::collection::vec(any::<u64>(), 1..7),
        most in 1..4_u16,
        present in 1..6_usize,
    ) {
        let everyone = sites(&racks);
        let here = &everyone[everyone.len().saturating_sub(present)..];
        let replication_factor = most.min(u16::try_from(here.len()).unwrap());
        let mut shards = shards(replication_factor, scattered(everyone.len(), replication_factor, &seeds));
        let before = lists(&shards, replication_factor);
        settle(&mut shards, here);
        let after = lists(&shards, replication_factor);
        let squares: usize = loads(here, &after).iter().map(|count| count * count).sum();
        let (least, fewest) = best(here, usize::from(replication_factor), &before);
        prop_assert_eq!(squares, least);
        prop_assert_eq!(moves(&before, &after), fewest);
    }

    #[test]
    fn scattered_replicas_are_put_in_order(
        racks in any_racks(),
        seeds in prop::collection::vec(any::<u64>(), 1..30),
        most in 1..4_u16,
    ) {
        let sites = sites(&racks);
        let replication_factor = most.min(u16::try_from(sites.len()).unwrap());
        let mut shards = shards(replication_factor, scattered(sites.len(), replication_factor, &seeds));
        settle(&mut shards, &sites);
        check(&sites, replication_factor, &lists(&shards, replication_factor));
        prop_assert_eq!(rebalance(&sites, &shards), vec![]);
    }

    #[test]
    fn voters_are_odd_at_most_five_and_no_rack_has_more_than_it_must(racks in any_racks()) {
        let sites = sites(&racks);
        let voters = shard0_voters(&sites);
        prop_assert_eq!(voters.len() % 2, 1);
        let here: Vec<usize> = racks_of(&sites)
            .values()
            .map(|members| members.iter().filter(|at| voters.contains(&sites[**at].node)).count())
            .collect();
        let full = |(members, here): (&Vec<usize>, &usize)| members.len() == *here;
        let most = here.iter().max().unwrap();
        // Three of five or more, where five would be three in one rack and one in each of two others.
        let mut sizes: Vec<usize> = racks_of(&sites).values().map(Vec::len).collect();
        sizes.sort_unstable();
        let fewer = matches!(sizes[..], [1, 1, largest] if largest >= 3);
        let wanted = if fewer { 3 } else { sites.len().min(5) };
        prop_assert!(voters.len() <= wanted && voters.len() + 2 > wanted);
        for (members, count) in racks_of(&sites).values().zip(&here) {
            prop_assert!(full((members, count)) || count + 1 >= *most);
        }
    }
}
