//! Changing who the replicas are.

use std::collections::BTreeSet;

use palisade_shard::{Formation, MembersError, NodeId};

use crate::harness::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_voter_grows_to_three_and_one_of_them_is_replaced() {
    let mut cluster = Cluster::new(1);
    cluster.start(0, Formation::Alone).await;
    let first = cluster.leader().await;
    cluster.propose(first, 0..1000, 1000).await;
    cluster.join(2).await;
    cluster.join(3).await;
    let three = cluster.ids();
    let shard = std::sync::Arc::clone(cluster.replicas[0].shard());
    shard.set_members(three.clone()).await.unwrap();
    let status = shard.status();
    assert_eq!(
        (status.voters, status.learners),
        (three.clone(), BTreeSet::new())
    );
    shard.set_members(three).await.unwrap();
    cluster.propose(0, 1000..1100, 1000).await;
    assert_eq!(cluster.agreed().await, (0..1100).collect::<Vec<_>>());

    // One is lost for good; another takes its place, and a fourth only listens.
    cluster.stop(1).await;
    cluster.join(4).await;
    cluster.join(5).await;
    let voters = BTreeSet::from([NodeId(1), NodeId(3), NodeId(4)]);
    let learners = BTreeSet::from([NodeId(5)]);
    shard
        .set_members_with_learners(voters.clone(), learners.clone())
        .await
        .unwrap();
    cluster.propose(0, 1100..1200, 1000).await;
    let status = shard.status();
    assert_eq!((status.voters, status.learners), (voters, learners));
    assert_eq!(cluster.agreed().await, (0..1200).collect::<Vec<_>>());
    assert!(matches!(
        cluster.replicas[2].shard().set_members(cluster.ids()).await,
        Err(MembersError::NotLeader { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over() {
    let mut cluster = Cluster::formed(3).await;
    let old = cluster.leader().await;
    cluster.propose(old, 0..100, 100).await;
    let mut left = cluster.ids();
    left.remove(&cluster.replicas[old].id);
    let shard = std::sync::Arc::clone(cluster.replicas[old].shard());
    shard.set_members(left.clone()).await.unwrap();
    let new = cluster.leader_among(|place| place != old).await;
    eventually("the old one steps down", || {
        shard.leadership().borrow().is_none().then_some(())
    })
    .await;
    drop(shard);
    cluster.stop(old).await;
    cluster.propose(new, 100..200, 100).await;
    assert_eq!(cluster.replicas[new].shard().status().voters, left);
    assert_eq!(cluster.agreed().await, (0..200).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_replaced_without_knowing_it_says_nothing_of_the_members() {
    let cluster = Cluster::formed(4).await;
    let old = cluster.leader().await;
    let all = cluster.ids();
    let leaves = (old + 1) % 4;
    let gone = cluster.replicas[leaves].id;
    let shard = cluster.replicas[old].shard();
    assert_eq!(shard.confirmed_members().await.unwrap().voters, all);
    let mut rest = all.clone();
    rest.remove(&gone);
    shard.set_members(rest.clone()).await.unwrap();
    let members = shard.confirmed_members().await.unwrap();
    assert_eq!((members.voters, members.learners), (rest, BTreeSet::new()));
    let follower = cluster.replicas[(old + 2) % 4].shard();
    assert!(matches!(
        follower.confirmed_members().await,
        Err(MembersError::NotLeader { .. })
    ));

    // The others add it again, which this one does not hear of: all that it knows by itself is that it leads, and that it has let go.
    cluster.net.isolate(cluster.replicas[old].id, all.clone());
    let (asked, new) = tokio::join!(shard.confirmed_members(), async {
        let new = cluster.leader_among(|place| place != old).await;
        let new = cluster.replicas[new].shard();
        // The one that is cut off cannot catch up, and need not: it is a voter already.
        new.set_members(all.clone()).await.unwrap();
        new
    });
    assert!(!shard.status().voters.contains(&gone));
    for said in [asked, shard.confirmed_members().await] {
        assert!(
            matches!(
                said,
                Err(MembersError::Unconfirmed(_) | MembersError::NotLeader { .. })
            ),
            "{said:?}"
        );
    }
    assert_eq!(new.confirmed_members().await.unwrap().voters, all);
}
