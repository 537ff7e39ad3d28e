//! Elections, and what becomes of proposals when the leader changes.

use std::{collections::BTreeSet, time::Instant};

use palisade_shard::{MembersError, ProposeError};

use crate::harness::{Cluster, PATIENCE, command, eventually, timing};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_answers_is_on_all_replicas_in_order() {
    let cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    cluster.propose(leader, 0..2000, 100).await;
    assert_eq!(cluster.agreed().await, (0..2000).collect::<Vec<_>>());
    let status = cluster.replicas[leader].shard().status();
    assert_eq!(status.voters, cluster.ids());
    let all = status.last_index;
    cluster.replicas[leader]
        .shard()
        .replicated(all, 3)
        .await
        .unwrap();
    assert_eq!(cluster.replicas[leader].shard().status().copies(all), 3);
    eventually("all know who leads", || {
        let is_known = cluster.replicas.iter().all(|replica| {
            let view = *replica.shard().leader().borrow();
            (view.leader, view.term) == (Some(cluster.replicas[leader].id), status.term)
        });
        is_known.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::formed(3).await;
    let old = cluster.leader().await;
    cluster.propose(old, 0..100, 100).await;
    cluster.net.isolate(cluster.replicas[old].id, cluster.ids());
    let pending: Vec<_> = (1000..1040)
        .map(|number| cluster.replicas[old].shard().propose(command(number, 100)))
        .collect();
    let new = cluster.leader_among(|place| place != old).await;
    cluster.propose(new, 100..200, 100).await;
    for answer in pending {
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap();
        assert!(
            matches!(answer, Err(ProposeError::NotLeader(_))),
            "{answer:?}"
        );
    }
    eventually("it knows that it leads no more", || {
        let shard = cluster.replicas[old].shard();
        let leads = shard.leadership().borrow().is_some();
        (!leads && shard.leader().borrow().leader.is_none()).then_some(())
    })
    .await;
    cluster.net.heal();
    let agreed = cluster.agreed().await;
    assert_eq!(agreed, (0..200).collect::<Vec<_>>());

    // What was cut off does not come back, whatever the power does and whatever was released.
    for checkpoint in [false, true] {
        if checkpoint {
            cluster.replicas[old].shard().checkpoint().await.unwrap();
        }
        cluster.crash(old, || false).await;
        cluster.restart(old).await;
        assert_eq!(cluster.agreed().await, agreed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_at_once_when_its_connections_break() {
    let mut cluster = Cluster::formed(3).await;
    let old = cluster.leader().await;
    cluster.propose(old, 0..10, 100).await;
    cluster.agreed().await;
    let gone = cluster.replicas[old].id;
    cluster.stop(old).await;
    let begun = Instant::now();
    for replica in cluster.replicas.iter().filter(|replica| replica.runs()) {
        replica.shard().peer_lost(gone);
    }
    let new = cluster.leader_among(|place| place != old).await;
    let took = begun.elapsed();
    assert!(took < timing().election_max / 2, "{took:?}");
    cluster.propose(new, 10..20, 100).await;
    cluster.restart(old).await;
    assert_eq!(cluster.agreed().await, (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_cut_off_does_not_disturb_when_it_is_back() {
    let cluster = Cluster::formed(3).await;
    // A machine that stands still for as long as an election takes has others campaign, with good reason, but not each time; a follower that disturbs does so always.
    let mut terms = Vec::new();
    for attempt in 1..=4 {
        let leader = cluster.leader().await;
        let term = cluster.replicas[leader].shard().status().term;
        let other = (leader + 1) % 3;
        cluster
            .net
            .isolate(cluster.replicas[other].id, cluster.ids());
        let mut view = cluster.replicas[other].shard().leader();
        view.wait_for(|view| view.leader.is_none()).await.unwrap();
        // Long enough for several attempts to be elected.
        tokio::time::sleep(timing().election_max * 4).await;
        let records = (attempt - 1) * 50..attempt * 50;
        cluster
            .propose(
                cluster.leader_among(|place| place != other).await,
                records,
                100,
            )
            .await;
        cluster.net.heal();
        assert_eq!(cluster.agreed().await.len(), attempt as usize * 50);
        tokio::time::sleep(timing().election_max * 2).await;
        let statuses: Vec<_> = cluster
            .replicas
            .iter()
            .map(|replica| replica.shard().status())
            .collect();
        if statuses.iter().all(|status| status.term == term) {
            let leader = Some(cluster.replicas[leader].id);
            assert!(statuses.iter().all(|status| status.leader == leader));
            return;
        }
        terms.push((term, statuses));
    }
    panic!("each time somebody had to campaign: {terms:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_under_load_without_a_lost_or_doubled_answer() {
    let cluster = Cluster::formed(3).await;
    let mut next = 0;
    let mut answered = BTreeSet::new();
    for _ in 0..4 {
        let leader = cluster.leader().await;
        let to = (leader + 1) % 3;
        let shard = cluster.replicas[leader].shard();
        let mut before: std::collections::VecDeque<_> = (next..next + 300)
            .map(|number| (number, shard.propose(command(number, 1000))))
            .collect();
        for (number, answer) in before.drain(..100) {
            assert!(answer.await.unwrap().1 == number && answered.insert(number));
        }
        next += 300;
        let moving = shard.transfer_leadership(cluster.replicas[to].id);
        let during = async {
            let mut answers = Vec::new();
            for number in next..next + 300 {
                answers.push((number, shard.propose(command(number, 1000))));
                tokio::task::yield_now().await;
            }
            answers
        };
        let (moved, during) = tokio::join!(moving, during);
        moved.unwrap();
        next += 300;
        for (number, answer) in before.into_iter().chain(during) {
            match tokio::time::timeout(PATIENCE, answer).await.unwrap() {
                Ok((_, same)) => assert!(same == number && answered.insert(number)),
                Err(ProposeError::NotLeader(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        eventually("the other leads", || {
            let leads = cluster.replicas[to].shard().leadership().borrow().is_some();
            leads.then_some(())
        })
        .await;
    }
    let agreed = cluster.agreed().await;
    let unique: BTreeSet<u64> = agreed.iter().copied().collect();
    assert_eq!(unique.len(), agreed.len(), "nothing twice");
    assert!(answered.is_subset(&unique), "nothing lost");
    assert!(answered.len() >= 400, "{}", answered.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handover_that_is_not_taken_ends_and_the_shard_goes_on() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    let to = (leader + 1) % 3;
    cluster.agreed().await;
    let term = cluster.replicas[leader].shard().status().term;
    // Cut off, so that it neither hears that it is to lead nor is elected by itself when this machine stalls.
    cluster.net.isolate(cluster.replicas[to].id, cluster.ids());
    let moved = cluster.replicas[leader]
        .shard()
        .transfer_leadership(cluster.replicas[to].id)
        .await;
    assert!(matches!(moved, Err(MembersError::TimedOut(_))), "{moved:?}");
    cluster.net.heal();
    // The next leader has a term of its own; it may take more than one election until one stays.
    for number in 0..10 {
        loop {
            let leader = eventually("somebody leads again", || {
                (0..3).find(|place| {
                    let leadership = *cluster.replicas[*place].shard().leadership().borrow();
                    leadership.is_some_and(|leadership| leadership.term > term)
                })
            })
            .await;
            match cluster.replicas[leader]
                .shard()
                .propose(command(number, 10))
                .await
            {
                Ok((_, applied)) => {
                    assert_eq!(applied, number);
                    break;
                }
                Err(ProposeError::NotLeader(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    cluster.net.heal();
    cluster.stop(to).await;
    cluster.restart(to).await;
    // One that was given up may count all the same, so that it is there twice.
    let agreed: BTreeSet<u64> = cluster.agreed().await.into_iter().collect();
    assert_eq!(agreed, (0..10).collect());
}
