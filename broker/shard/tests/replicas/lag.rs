//! Replicas that are behind.

use std::sync::atomic::Ordering;

use crate::harness::{Cluster, eventually};

const SNAPSHOT_BEGIN: u8 = 6;
const SNAPSHOT_PART: u8 = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_for_a_moment_catches_up_from_the_tail() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    cluster.propose(leader, 0..500, 1000).await;
    let other = (leader + 1) % 3;
    cluster.stop(other).await;
    cluster.propose(leader, 500..1000, 1000).await;
    cluster.replicas[leader].shard().checkpoint().await.unwrap();
    cluster.propose(leader, 1000..1100, 1000).await;
    cluster.restart(other).await;
    assert_eq!(cluster.agreed().await, (0..1100).collect::<Vec<_>>());
    assert_eq!(
        cluster.net.delivered(SNAPSHOT_BEGIN),
        0,
        "the tail has it all"
    );
}

/// One test, because what was sent is counted for the whole process, and no other test sends snapshots on purpose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_far_behind_gets_a_snapshot_of_what_it_lacks_also_after_an_interruption()
{
    let mut cluster = Cluster::new(3);
    cluster.tail = 1 << 20;
    let voters = cluster.ids();
    for place in 0..3 {
        cluster
            .start(place, palisade_shard::Formation::Form(voters.clone()))
            .await;
    }
    let leader = cluster.leader().await;
    cluster.propose(leader, 0..1000, 100).await;
    cluster.agreed().await;
    let other = (leader + 1) % 3;
    cluster.stop(other).await;
    for round in 0..8 {
        let first = 1000 + round * 500;
        cluster.propose(leader, first..first + 500, 4000).await;
    }
    eventually("the log is trimmed", || {
        let status = cluster.replicas[leader].shard().status();
        status.purged.filter(|purged| *purged > 2000)
    })
    .await;
    let before = cluster.sent.load(Ordering::Relaxed);
    // At first no part arrives.
    cluster.net.poison(SNAPSHOT_PART);
    cluster.restart(other).await;
    eventually("a snapshot is begun, twice", || {
        (cluster.net.delivered(SNAPSHOT_BEGIN) >= 2).then_some(())
    })
    .await;
    assert!(
        cluster.replicas[other].numbers().len() <= 1000,
        "what is received in part changes nothing"
    );
    let wasted = cluster.sent.load(Ordering::Relaxed);
    cluster.net.heal();
    assert_eq!(cluster.agreed().await, (0..5000).collect::<Vec<_>>());
    let sent = cluster.sent.load(Ordering::Relaxed);
    assert!(wasted > before);
    assert!(
        sent - wasted < 2 * 4100,
        "{} numbers were sent, where 4000 were lacking",
        sent - wasted
    );
    // What was installed is there after a loss of power, and the log goes on from there.
    cluster.propose(leader, 5000..5100, 10).await;
    cluster.agreed().await;
    cluster.crash(other, || false).await;
    cluster.restart(other).await;
    assert_eq!(cluster.agreed().await, (0..5100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_of_a_lone_voter_stays_short() {
    let cluster = Cluster::formed(1).await;
    for round in 0..10 {
        let first = round * 500;
        cluster.propose(0, first..first + 500, 2000).await;
    }
    eventually("the log is trimmed", || {
        let status = cluster.replicas[0].shard().status();
        status.purged.filter(|purged| *purged > 3000)
    })
    .await;
}
