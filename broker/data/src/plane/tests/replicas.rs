//! Shards that several brokers keep.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use palisade_log::{Offset, TopicId};
use palisade_shard::{Formation, NodeId};
use tokio::time::{Instant, timeout};

use super::{
    bench::{Opened, P0, batch, eventually, fetch, produce, read_values},
    cluster::{Cluster, SHARD},
};
use crate::{Access, Acks, DataError, Isolation, records::builder::TestBatch};

/// Produces like a client: to whoever leads, again and again, until it is acknowledged.
pub(super) async fn produce_somewhere(
    cluster: &Cluster,
    topic: TopicId,
    sent: &TestBatch,
) -> Offset {
    for _ in 0..1500 {
        let plane = cluster.plane(cluster.leader(SHARD).await);
        let answer = plane.produce(topic, P0, Bytes::from(sent.build()), Acks::All);
        match timeout(Duration::from_secs(30), answer).await {
            Ok(Ok(appended)) => return appended.base_offset,
            Ok(Err(DataError::NotLeader | DataError::OutOfTurn | DataError::Stopped)) => {}
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => panic!("no answer"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody takes it");
}

pub(super) fn same_everywhere(cluster: &Cluster, topic: TopicId) -> usize {
    let first = cluster.sealed(0, topic);
    for at in 1..cluster.brokers.len() {
        assert_eq!(cluster.sealed(at, topic), first, "broker {at}");
    }
    first.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_leader_takes_is_read_everywhere() {
    let cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    for n in 0..50 {
        produce_somewhere(&cluster, topic, &batch(&n.to_string(), 3)).await;
    }
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 50);
    let leader = cluster.leader(SHARD).await;
    let read = |at: usize, offset| {
        let isolation = Isolation::ReadUncommitted;
        cluster
            .plane(at)
            .fetch_replica(topic, P0, Offset(offset), 1 << 20, isolation)
            .and_then(Opened::of)
    };
    let wanted = fetch(&cluster.plane(leader), topic, 0).unwrap();
    for at in 0..3 {
        let plane = cluster.plane(at);
        eventually("it is ready", || plane.is_ready()).await;
        assert_eq!(read(at, 0).unwrap().records, wanted.records);
        assert_eq!(
            plane.offsets_here(topic, P0).unwrap(),
            (Offset(0), Offset(150))
        );
        let error = read(at, 151).unwrap_err();
        assert!(
            matches!(error, DataError::OffsetNotAvailable { .. }),
            "{error}"
        );
        if at != leader {
            assert!(matches!(fetch(&plane, topic, 0), Err(DataError::NotLeader)));
            let refused = produce(&plane, topic, &batch("x", 1)).await;
            assert!(matches!(refused, Err(DataError::NotLeader)));
        }
        eventually("it knows who leads", || {
            let view = plane.leaders().borrow()[&SHARD];
            view.leader == Some(cluster.brokers[leader].id)
        })
        .await;
    }
    // Who waits at a follower hears of what comes.
    let follower = cluster.plane((leader + 1) % 3);
    let waits = tokio::spawn(async move {
        let until = Instant::now() + Duration::from_secs(60);
        follower
            .wait_for_data_by(Access::Replica, &[(topic, P0, Offset(150))], 1, until)
            .await;
    });
    produce_somewhere(&cluster, topic, &batch("more", 1)).await;
    timeout(Duration::from_secs(30), waits)
        .await
        .unwrap()
        .unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_producers_lose_and_repeat_nothing_when_leaders_die() {
    let mut cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    let mut sequence = 0;
    for round in 0..3 {
        for _ in 0..20 {
            let sent = batch(&sequence.to_string(), 1).producer(7, 0, sequence);
            assert_eq!(
                produce_somewhere(&cluster, topic, &sent).await,
                Offset(i64::from(sequence))
            );
            sequence += 1;
        }
        let leader = cluster.leader(SHARD).await;
        // Some are on their way when it dies: whatever became of them, they are sent again.
        let plane = cluster.plane(leader);
        let sent: Vec<_> = (0..5)
            .map(|n| batch(&(sequence + n).to_string(), 1).producer(7, 0, sequence + n))
            .collect();
        let answers: Vec<_> = sent
            .iter()
            .map(|sent| plane.produce(topic, P0, Bytes::from(sent.build()), Acks::All))
            .collect();
        drop(plane);
        cluster.kill(leader).await;
        for answer in answers {
            let ended = timeout(Duration::from_secs(30), answer).await;
            assert!(
                ended.is_ok(),
                "round {round}: a producer waits for a dead leader"
            );
        }
        for sent in &sent {
            assert_eq!(
                produce_somewhere(&cluster, topic, sent).await,
                Offset(i64::from(sequence)),
                "round {round}"
            );
            sequence += 1;
        }
        cluster.start(leader).await;
        cluster.settled(SHARD).await;
    }
    let leader = cluster.plane(cluster.leader(SHARD).await);
    let expected: Vec<_> = (0..sequence).map(|n| format!("{n}-0")).collect();
    assert_eq!(read_values(&leader, topic), expected);
    same_everywhere(&cluster, topic);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_at_a_leader_that_is_cut_off_is_told() {
    let cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    produce_somewhere(&cluster, topic, &batch("a", 1)).await;
    let old = cluster.leader(SHARD).await;
    let plane = cluster.plane(old);
    let waits = {
        let plane = Arc::clone(&plane);
        tokio::spawn(async move {
            let until = Instant::now() + Duration::from_secs(60);
            plane
                .wait_for_data(&[(topic, P0, Offset(1))], 1, until)
                .await;
        })
    };
    cluster.cut(old);
    // It has no majority: nothing is acknowledged by it any more.
    let lost = plane.produce(topic, P0, Bytes::from(batch("lost", 1).build()), Acks::All);
    let new = cluster.leader(SHARD).await;
    assert_ne!(new, old);
    assert_eq!(
        produce(&cluster.plane(new), topic, &batch("b", 1))
            .await
            .unwrap()
            .base_offset,
        Offset(1)
    );
    cluster.heal();
    let outcome = timeout(Duration::from_secs(30), lost).await.unwrap();
    assert!(matches!(outcome, Err(DataError::NotLeader)), "{outcome:?}");
    timeout(Duration::from_secs(30), waits)
        .await
        .unwrap()
        .unwrap();
    cluster.settled(SHARD).await;
    assert_eq!(
        read_values(&cluster.plane(cluster.leader(SHARD).await), topic),
        ["a-0", "b-0"]
    );

    // What it promised then does not leak into its next term.
    let current = cluster.leader(SHARD).await;
    if current != old {
        let to = cluster.brokers[old].id;
        let failed = cluster.plane(current).transfer_all(|_| Some(to)).await;
        assert!(
            failed.iter().all(|(shard, _)| *shard != SHARD),
            "{failed:?}"
        );
        eventually("it leads again", || plane.leads(SHARD).is_some()).await;
    }
    assert_eq!(
        produce(&plane, topic, &batch("c", 1))
            .await
            .unwrap()
            .base_offset,
        Offset(2)
    );
    cluster.shutdown().await;
}

/// Produces more than stays in memory, and has everybody who runs release it.
async fn produce_beyond_the_tail(cluster: &Cluster, topic: TopicId) {
    for n in 0..80 {
        produce_somewhere(cluster, topic, &batch(&n.to_string(), 40)).await;
    }
    for broker in &cluster.brokers {
        if let Some(plane) = &broker.plane {
            plane.checkpoint().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_an_empty_volume_is_rebuilt_to_the_byte() {
    let mut cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    produce_somewhere(&cluster, topic, &batch("a", 5).producer(7, 0, 0)).await;
    produce_beyond_the_tail(&cluster, topic).await;
    let lost = (cluster.leader(SHARD).await + 1) % 3;
    cluster.kill(lost).await;
    cluster.wipe(lost);
    cluster.start(lost).await;
    assert_eq!(cluster.plane(lost).hosted(), []);
    for shard in [1, 2] {
        let shard = palisade_log::ShardId(shard);
        let formation = palisade_shard::Formation::Join;
        cluster.plane(lost).host(shard, formation).await.unwrap();
        let voters = cluster.brokers.iter().map(|broker| broker.id).collect();
        let leader = cluster.plane(cluster.leader(shard).await);
        leader.set_members(shard, voters).await.unwrap();
    }
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 81);
    // It is as good as the others: it can lead, and knows the producers.
    let leader = cluster.leader(SHARD).await;
    let to = cluster.brokers[lost].id;
    let failed = cluster.plane(leader).transfer_all(|_| Some(to)).await;
    assert!(
        failed.iter().all(|(shard, _)| *shard != SHARD),
        "{failed:?}"
    );
    let plane = cluster.plane(lost);
    eventually("it leads", || plane.leads(SHARD).is_some()).await;
    let again = produce(&plane, topic, &batch("a", 5).producer(7, 0, 0)).await;
    assert_eq!(again.unwrap().base_offset, Offset(0));
    // What was received is on its disk.
    drop(plane);
    cluster.kill(lost).await;
    cluster.start(lost).await;
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 81);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_is_sent_only_what_it_lacks() {
    let mut cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    let gone = cluster.catalog.create(1, |_| {});
    for topic in [topic, gone] {
        produce_somewhere(&cluster, topic, &batch("a", 5)).await;
    }
    cluster.settled(SHARD).await;
    let away = (cluster.leader(SHARD).await + 1) % 3;
    cluster.kill(away).await;
    cluster.catalog.delete(gone);
    let late = cluster.catalog.create(1, |_| {});
    produce_somewhere(&cluster, late, &batch("late", 1)).await;
    produce_beyond_the_tail(&cluster, topic).await;
    let leader = cluster.plane(cluster.leader(SHARD).await);
    eventually("the deleted topic is gone", || {
        leader.log_sizes().iter().all(|size| size.topic != gone)
    })
    .await;
    cluster.start(away).await;
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 81);
    assert_eq!(same_everywhere(&cluster, late), 1);
    let plane = cluster.plane(away);
    assert!(plane.log_sizes().iter().all(|size| size.topic != gone));
    assert!(plane.quarantined().is_empty());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_gone_on_every_replica() {
    let cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    produce_somewhere(&cluster, topic, &batch("a", 5)).await;
    cluster.settled(SHARD).await;
    let dirs = || {
        cluster
            .brokers
            .iter()
            .flat_map(|broker| std::fs::read_dir(broker.bench.data_dir().join("shard-1")).unwrap())
            .filter(|entry| entry.as_ref().unwrap().path().is_dir())
            .count()
    };
    assert_eq!(dirs(), 3);
    cluster.catalog.delete(topic);
    eventually("its files are gone", || dirs() == 0).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_copies_than_a_majority_are_waited_for() {
    let cluster = Cluster::form(3).await;
    let topic = cluster
        .catalog
        .create(1, |settings| settings.min_insync_replicas = 3);
    produce_somewhere(&cluster, topic, &batch("a", 1)).await;
    let leader = cluster.leader(SHARD).await;
    let plane = cluster.plane(leader);
    cluster.cut((leader + 1) % 3);
    let mut answer =
        Box::pin(plane.produce(topic, P0, Bytes::from(batch("b", 1).build()), Acks::All));
    assert!(
        timeout(Duration::from_millis(700), &mut answer)
            .await
            .is_err(),
        "two of three have it"
    );
    let one = plane.produce(topic, P0, Bytes::from(batch("c", 1).build()), Acks::Leader);
    timeout(Duration::from_secs(30), one)
        .await
        .unwrap()
        .unwrap();
    cluster.heal();
    let outcome = timeout(Duration::from_secs(30), answer).await.unwrap();
    assert!(
        matches!(&outcome, Ok(appended) if appended.base_offset == Offset(1))
            || matches!(outcome, Err(DataError::NotLeader)),
        "{outcome:?}"
    );
    cluster
        .catalog
        .change(topic, |settings| settings.min_insync_replicas = 4);
    let leader = cluster.plane(cluster.leader(SHARD).await);
    let error = produce(&leader, topic, &batch("d", 1)).await.unwrap_err();
    assert!(
        matches!(error, DataError::NotEnoughReplicas { have: 3, need: 4 }),
        "{error}"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_moves_away_and_comes_back() {
    let mut cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    produce_somewhere(&cluster, topic, &batch("a", 5)).await;
    let leader = cluster.leader(SHARD).await;
    let leaves = (leader + 1) % 3;
    let all: BTreeSet<_> = cluster.brokers.iter().map(|broker| broker.id).collect();
    let mut rest = all.clone();
    rest.remove(&cluster.brokers[leaves].id);
    cluster
        .plane(leader)
        .set_members(SHARD, rest)
        .await
        .unwrap();
    let plane = cluster.plane(leaves);
    assert!(plane.unhost(SHARD, async { true }).await.unwrap());
    drop(plane);
    assert_eq!(cluster.plane(leaves).hosted(), [palisade_log::ShardId(2)]);
    let dir = cluster.brokers[leaves].bench.data_dir();
    assert!(!dir.join("shard-1").exists() && !dir.join("shard-1.removed").exists());
    produce_somewhere(&cluster, topic, &batch("b", 5)).await;
    // Also after a restart nothing of it is left.
    cluster.kill(leaves).await;
    cluster.start(leaves).await;
    assert_eq!(cluster.plane(leaves).hosted(), [palisade_log::ShardId(2)]);
    let plane = cluster.plane(leaves);
    plane.host(SHARD, Formation::Join).await.unwrap();
    let leader = cluster.plane(cluster.leader(SHARD).await);
    leader.set_members(SHARD, all).await.unwrap();
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 2);
    drop(plane);
    cluster.kill(leaves).await;
    cluster.start(leaves).await;
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 2);
    cluster.shutdown().await;
}

/// One was away while records were committed and a replica that had them moved away. That one comes back empty, and both are alone: by the members that the first one knows
/// they are a majority, and it must not be elected, for the records would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_back_empty_elects_nobody_who_lacks_what_it_had() {
    tokio::join!(
        comes_back_empty(Restart::Never),
        comes_back_empty(Restart::Within),
        comes_back_empty(Restart::Before),
        comes_back_empty(Restart::After)
    );
}

/// When the broker of a replica that is deleted and comes back ends and starts again.
#[derive(PartialEq, Eq)]
enum Restart {
    Never,
    /// While the replica is being deleted.
    Within,
    /// Before it comes back.
    Before,
    After,
}

async fn comes_back_empty(restart: Restart) {
    let mut cluster = Cluster::form(3).await;
    cluster.add(NodeId::of(3, 1));
    cluster.start(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    let leader = cluster.leader(SHARD).await;
    let (leaves, away, comes) = ((leader + 1) % 3, (leader + 2) % 3, 3);
    cluster.cut(away);
    produce_somewhere(&cluster, topic, &batch("a", 5)).await;
    cluster
        .plane(comes)
        .host(SHARD, Formation::Join)
        .await
        .unwrap();
    let rest = BTreeSet::from([leader, comes].map(|at| cluster.brokers[at].id));
    let leads = cluster.plane(leader);
    leads.set_members(SHARD, rest).await.unwrap();
    drop(leads);
    if restart == Restart::Within {
        cluster.kill(leaves).await;
        let dir = cluster.brokers[leaves].bench.data_dir();
        std::fs::rename(dir.join("shard-1"), dir.join("shard-1.removed")).unwrap();
        cluster.start(leaves).await;
        assert!(!dir.join("shard-1.removed").exists());
    } else {
        let plane = cluster.plane(leaves);
        assert!(plane.unhost(SHARD, async { true }).await.unwrap());
    }
    if restart == Restart::Before {
        cluster.kill(leaves).await;
        cluster.start(leaves).await;
    }
    cluster.cut(leader);
    cluster.cut(comes);
    let plane = cluster.plane(leaves);
    plane.host(SHARD, Formation::Join).await.unwrap();
    drop(plane);
    if restart == Restart::After {
        cluster.kill(leaves).await;
        cluster.start(leaves).await;
    }
    cluster.let_in(away);
    // An election would take one second.
    for _ in 0..30 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        for at in [leaves, away] {
            assert_eq!(cluster.plane(at).leads(SHARD), None);
        }
    }
    cluster.heal();
    let leads = cluster.plane(cluster.leader(SHARD).await);
    let all: BTreeSet<_> = cluster.brokers.iter().map(|broker| broker.id).collect();
    leads.set_members(SHARD, all).await.unwrap();
    drop(leads);
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 1);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_still_counted_on_stays_and_promises_nothing_while_that_is_asked() {
    let cluster = Cluster::form(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    produce_somewhere(&cluster, topic, &batch("a", 5)).await;
    cluster.settled(SHARD).await;
    let leader = cluster.leader(SHARD).await;
    let asks = (leader + 1) % 3;
    let (plane, leads) = (cluster.plane(asks), cluster.plane(leader));
    let asked = async {
        let before = plane.shard_status(SHARD).unwrap().last_index;
        produce_somewhere(&cluster, topic, &batch("b", 5)).await;
        assert_eq!(plane.shard_status(SHARD).unwrap().last_index, before);
        let members = leads.confirmed_members(SHARD).await.unwrap();
        !members.voters.contains(&cluster.brokers[asks].id)
    };
    assert!(!plane.unhost(SHARD, asked).await.unwrap());
    cluster.settled(SHARD).await;
    assert_eq!(same_everywhere(&cluster, topic), 2);
    drop((plane, leads));
    cluster.shutdown().await;
}

/// Replicas go round four brokers, the leader's too, while records are produced; each is deleted as soon as it is let go of, and made anew when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_go_round_the_brokers_and_nothing_is_lost() {
    let mut cluster = Cluster::form(3).await;
    cluster.add(NodeId::of(3, 1));
    cluster.start(3).await;
    let topic = cluster.catalog.create(1, |_| {});
    let mut spare = 3;
    for round in 0..8 {
        produce_beyond_the_tail(&cluster, topic).await;
        let leaves = (spare + 1) % 4;
        let comes = cluster.plane(spare);
        comes.host(SHARD, Formation::Join).await.unwrap();
        let stay: BTreeSet<NodeId> = (0..4)
            .filter(|at| *at != leaves)
            .map(|at| cluster.brokers[at].id)
            .collect();
        let leader = cluster.leader(SHARD).await;
        if leader == leaves {
            let heir = (0..4).find(|at| *at != leaves && *at != spare).unwrap();
            let to = cluster.brokers[heir].id;
            cluster.plane(leader).transfer(SHARD, to).await.unwrap();
        }
        let leads = cluster.plane(cluster.leader(SHARD).await);
        leads.set_members(SHARD, stay.clone()).await.unwrap();
        let let_go = async {
            let members = leads.confirmed_members(SHARD).await.unwrap();
            members.voters == stay && members.learners.is_empty()
        };
        let left = cluster.plane(leaves);
        assert!(left.unhost(SHARD, let_go).await.unwrap(), "round {round}");
        produce_somewhere(&cluster, topic, &batch("last", 1)).await;
        let wanted = leads.shard_status(SHARD).unwrap().last_index;
        eventually("the new replica has everything", || {
            let status = comes.shard_status(SHARD).unwrap();
            status.applied >= wanted
        })
        .await;
        let count = cluster.sealed(spare, topic).len();
        assert_eq!(count, (round + 1) * 81);
        spare = leaves;
    }
    cluster.shutdown().await;
}
