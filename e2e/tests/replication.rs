//! Several brokers, real processes and real clients: what one broker's end, halt or loss costs, and that nothing acknowledged is lost by it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "replication/groups.rs"]
mod groups;
#[path = "replication/removal.rs"]
mod removal;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use palisade_e2e::{
    progress::say,
    tools::{Access, Cluster, Java, JavaProducer as Producer, Kcat, tool, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn create(java: &mut Java, admin: &Access, topic: &str) -> Result<()> {
    java.tool(
        tool::TOPICS,
        admin,
        &[
            "--create",
            "--topic",
            topic,
            "--partitions",
            "6",
            "--replication-factor",
            "3",
        ],
    )?
    .success()?;
    Ok(())
}

/// The broker that leads partition 0 of a topic, as Kafka's own tool shows it.
fn leader(java: &mut Java, admin: &Access, topic: &str) -> Result<usize> {
    wait_until("partition 0 has a leader", PATIENCE, || {
        let shown = java
            .tool(tool::TOPICS, admin, &["--describe", "--topic", topic])?
            .success()?
            .stdout;
        shown
            .lines()
            .find(|line| line.contains("Partition: 0"))
            .and_then(|line| {
                line.split("Leader: ")
                    .nth(1)?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .with_context(|| format!("no leader of partition 0 in\n{shown}"))
    })
}

/// Waits until a broker has its share of the replicas, and they are whole.
fn takes_its_share(cluster: &Cluster, id: usize) -> Result<()> {
    wait_until("replicas have moved to the new broker", PATIENCE, || {
        let status = cluster.status(id)?;
        let data = status.shards.iter().filter(|shard| shard.id != 0);
        let settled = data
            .clone()
            .all(|shard| shard.caught_up && !shard.learners.contains(&status.broker_id));
        ensure!(data.count() >= 3 && settled, "{:#?}", status.shards);
        Ok(())
    })
}

/// Three brokers form a cluster, spread a topic with three replicas, and Kafka's tools show it as they show their own.
#[test]
fn three_brokers_form_a_cluster_that_kafkas_tools_understand() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "spread")?;
    // The brokers share leadership: each leads what is assigned to it first, soon after the shards are formed.
    wait_until("every broker leads some partitions", PATIENCE, || {
        let shown = java
            .tool(tool::TOPICS, &admin, &["--describe", "--topic", "spread"])?
            .success()?
            .stdout;
        ensure!(shown.contains("ReplicationFactor: 3"), "{shown}");
        let field = |line: &str, name: &str| -> Option<String> {
            Some(
                line.split(name)
                    .nth(1)?
                    .split_whitespace()
                    .next()?
                    .to_owned(),
            )
        };
        let partitions: Vec<&str> = shown
            .lines()
            .filter(|line| line.contains("Partition: "))
            .collect();
        let leaders: BTreeSet<String> = partitions
            .iter()
            .filter_map(|line| field(line, "Leader: "))
            .collect();
        ensure!(partitions.len() == 6, "{shown}");
        ensure!(leaders.iter().eq(["0", "1", "2"]), "{shown}");
        let in_sync =
            |line: &&str| field(line, "Isr: ").is_some_and(|isr| isr.split(',').count() == 3);
        ensure!(partitions.iter().all(in_sync), "{shown}");
        Ok(())
    })?;

    // A topic with more replicas than brokers is refused as Kafka refuses it.
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "wide", "--replication-factor", "5"],
    )?
    .refused("replication factor")?;

    let kcat = Kcat::new(&admin)?;
    let lines: String = (0..1000).map(|number| format!("{number}\n")).collect();
    kcat.produce("spread", &lines, &[])?.success()?;
    let read = kcat
        .consume_group("readers", &["spread"], &[])?
        .success()?
        .stdout;
    let seen: BTreeSet<&str> = read.lines().collect();
    assert_eq!(seen.len(), 1000);
    java.tool(
        tool::CONSUMER_GROUPS,
        &admin,
        &["--describe", "--group", "readers", "--timeout", "30000"],
    )?
    .success()?
    .says("spread")?;
    every_broker_describes_the_quorum(&cluster, &mut java)?;
    consumers_read_in_their_rack(&cluster, &admin, &mut java)?;
    leadership_goes_back_when_it_is_asked_for(&mut cluster, &admin, &mut java)
}

/// `kafka-metadata-quorum`, of whichever broker: those that do not lead ask the one that does.
fn every_broker_describes_the_quorum(cluster: &Cluster, java: &mut Java) -> Result<()> {
    for id in 0..3 {
        let admin = cluster.admin_of(id)?;
        let mut quorum = |arguments: &[&str]| -> Result<String> {
            let outcome = java.subcommand(tool::METADATA_QUORUM, &admin, arguments)?;
            Ok(outcome.success()?.stdout)
        };
        wait_until("all voters have everything", PATIENCE, || {
            let status = quorum(&["describe", "--status"])?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim)
                    .with_context(|| format!("{name} {status}"))
            };
            ensure!(field("ClusterId:")? == "e2e-cluster", "{status}");
            ensure!(["0", "1", "2"].contains(&field("LeaderId:")?), "{status}");
            ensure!(field("HighWatermark:")?.parse::<u64>()? > 5, "{status}");
            ensure!(field("MaxFollowerLag:")? == "0", "{status}");
            let voters = field("CurrentVoters:")?;
            for voter in 0..3 {
                ensure!(voters.contains(&format!("\"id\": {voter}")), "{status}");
            }
            let replicas = quorum(&["describe", "--replication"])?;
            let with = |role: &str| replicas.lines().filter(|line| line.contains(role)).count();
            ensure!((with("Leader"), with("Follower")) == (1, 2), "{replicas}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A consumer that names its rack reads from the replica there and not from the leader (KIP-392): librdkafka's and Kafka's own.
fn consumers_read_in_their_rack(cluster: &Cluster, admin: &Access, java: &mut Java) -> Result<()> {
    let near = (leader(java, admin, "spread")? + 1) % 3;
    let rack = format!("client.rack=rack-{near}");
    let sent = || -> Result<Vec<f64>> {
        let sent = |id| cluster.metric(id, "palisade_fetch_bytes_total");
        (0..3).map(sent).collect()
    };
    let kcat = Kcat::new(admin)?;
    let lines: String = (0..200).map(|number| format!("near {number}\n")).collect();
    kcat.produce("spread", &lines, &["-p", "0"])?.success()?;
    let mut read = |with_kcat: bool| -> Result<usize> {
        let outcome = if with_kcat {
            kcat.consume("spread", &["-p", "0", "-X", &rack])?
        } else {
            let arguments = [
                "--topic",
                "spread",
                "--partition",
                "0",
                "--offset",
                "earliest",
                "--max-messages",
                "200",
                "--timeout-ms",
                "40000",
                "--command-property",
                &rack,
            ];
            java.tool(tool::CONSOLE_CONSUMER, admin, &arguments)?
        };
        Ok(outcome.success()?.stdout.lines().count())
    };
    for with_kcat in [true, false] {
        // A leader that does not know yet that the other one has everything serves by itself.
        wait_until("the records come from the near replica", PATIENCE, || {
            let before = sent()?;
            let count = read(with_kcat)?;
            let grown: Vec<bool> = before
                .iter()
                .zip(sent()?)
                .map(|(before, after)| after > *before)
                .collect();
            let wanted: Vec<bool> = (0..3).map(|id| id == near).collect();
            ensure!(
                count >= 200 && grown == wanted,
                "{count} records, near {near}, sent by {grown:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// `kafka-leader-election` brings leadership back at once that a restart has moved, rather than seconds later.
fn leadership_goes_back_when_it_is_asked_for(
    cluster: &mut Cluster,
    admin: &Access,
    java: &mut Java,
) -> Result<()> {
    let elect = |java: &mut Java, arguments: &[&str]| {
        let preferred = [&["--election-type", "preferred"], arguments].concat();
        java.tool(tool::LEADER_ELECTION, admin, &preferred)
    };
    let first = ["--topic", "spread", "--partition", "0"];
    // What has moved on a busy machine is given back by the first of these.
    wait_until("it is led by whom it should be", PATIENCE, || {
        elect(java, &first)?
            .says("Valid replica already elected")
            .map(drop)
    })?;
    let preferred = leader(java, admin, "spread")?;
    elect(java, &["--topic", "spread", "--partition", "77"])?.refused("does not exist")?;
    // Whoever leads when it is asked gives it back: on a slow machine that need not be who followed first.
    let gave_back = |cluster: &Cluster| -> usize {
        let others = (0..3).filter(|id| *id != preferred);
        others
            .map(|id| {
                let log = cluster.log(id);
                log.matches("because a client asked for it").count()
            })
            .sum()
    };
    for _ in 0..5 {
        cluster.stop(preferred)?;
        wait_until("another broker leads", PATIENCE, || {
            let now = leader(java, admin, "spread")?;
            ensure!(now != preferred, "still {now}");
            Ok(())
        })?;
        cluster.launch(preferred)?;
        let before = gave_back(cluster);
        let mut said = String::new();
        wait_until("it was elected, or was given back", PATIENCE, || {
            said = elect(java, &first)?.success()?.stdout;
            Ok(())
        })?;
        wait_until("everybody knows that it leads", PATIENCE, || {
            let now = leader(java, admin, "spread")?;
            ensure!(now == preferred, "{now} leads: {said}");
            Ok(())
        })?;
        // On a slow machine it may have been given back without being asked for.
        if said.contains("Successfully completed leader election (PREFERRED)") {
            return wait_until("a log says why", PATIENCE, || {
                let after = gave_back(cluster);
                let logs = (0..3).map(|id| format!("broker {id}:\n{}", cluster.log(id)));
                ensure!(after > before, "{}", logs.collect::<String>());
                Ok(())
            });
        }
    }
    anyhow::bail!("leadership was always given back before it was asked for")
}

/// Kill -9 of the broker that leads, under load, again and again.
#[test]
fn a_killed_leader_loses_nothing_and_is_replaced() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "killed")?;
    let producer = Producer::start(&cluster, &admin, "killed")?;
    producer.goes_on(2000)?;
    for round in 1..=3 {
        let victim = leader(&mut java, &admin, "killed")?;
        cluster.kill(victim);
        producer.goes_on(2000)?;
        let took = cluster.launch(victim)?;
        say(format_args!(
            "round {round}: broker {victim} was killed and serves again {} ms after its start",
            took.as_millis()
        ));
        producer.goes_on(1000)?;
    }
    producer.finish(&admin)
}

/// SIGTERM, one broker after the other, each back before the next: what an upgrade does.
#[test]
fn a_rolling_restart_costs_no_record() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "rolled")?;
    let producer = Producer::start(&cluster, &admin, "rolled")?;
    producer.goes_on(2000)?;
    for id in 0..3 {
        cluster.stop(id)?;
        producer.goes_on(500)?;
        cluster.launch(id)?;
        producer.goes_on(500)?;
    }
    producer.finish(&admin)
}

/// A leader that stands still (SIGSTOP) is replaced; when it goes on, it finds that it leads no more and nothing of its own counts.
#[test]
fn a_halted_leader_is_replaced_and_fenced() -> Result<()> {
    let cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "halted")?;
    let producer = Producer::start(&cluster, &admin, "halted")?;
    producer.goes_on(2000)?;
    let victim = leader(&mut java, &admin, "halted")?;
    cluster.freeze(victim, true)?;
    producer.goes_on(2000)?;
    cluster.freeze(victim, false)?;
    producer.goes_on(2000)?;
    producer.finish(&admin)
}

/// A broker whose volume was lost comes back as another incarnation, is given everything again, and can then be the one that is left to answer.
#[test]
fn a_wiped_broker_is_rebuilt_from_the_others() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "rebuilt")?;
    let kcat = Kcat::new(&admin)?;
    let lines: String = (0..20_000)
        .map(|number| format!("{number} {}\n", "x".repeat(200)))
        .collect();
    kcat.produce("rebuilt", &lines, &[])?.success()?;
    cluster.kill(2);
    cluster.wipe(2)?;
    cluster.launch(2)?;
    wait_until("the new replicas have caught up", PATIENCE, || {
        let status = cluster.status(2)?;
        ensure!(
            status.ready
                && status.shards.len() >= 2
                && status
                    .shards
                    .iter()
                    .all(|shard| shard.caught_up && !shard.learners.contains(&2)),
            "{:#?}",
            status.shards
        );
        Ok(())
    })?;
    // With another broker gone, what was rebuilt is needed for every majority.
    cluster.kill(0);
    let read = kcat.consume("rebuilt", &[])?.success()?.stdout;
    assert_eq!(read.lines().count(), 20_000);
    kcat.produce("rebuilt", "more\n", &[])?.success()?;
    Ok(())
}

/// A fourth broker is given its share of the replicas while a producer runs, and what it was given is whole.
#[test]
fn a_broker_that_is_added_takes_its_share() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "grown")?;
    let producer = Producer::start(&cluster, &admin, "grown")?;
    producer.goes_on(2000)?;
    let added = cluster.add()?;
    takes_its_share(&cluster, added)?;
    producer.goes_on(2000)?;
    producer.finish(&admin)
}

/// A cluster of one broker takes in two more: each gets a vote on the metadata, topics may have three replicas then, and the first broker may be killed.
#[test]
fn one_broker_grows_to_three() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    cluster.add()?;
    cluster.add()?;
    wait_until("all three vote on the metadata", PATIENCE, || {
        let status = cluster.status(0)?;
        let metadata = status.shards.iter().find(|shard| shard.id == 0);
        let voters = metadata.map(|shard| shard.voters.clone());
        ensure!(voters == Some(vec![0, 1, 2]), "{voters:?}");
        Ok(())
    })?;
    let admin = cluster.admin()?;
    create(&mut *Java::lease()?, &admin, "wide")?;
    let producer = Producer::start(&cluster, &admin, "wide")?;
    producer.goes_on(2000)?;
    cluster.kill(0);
    producer.goes_on(2000)?;
    cluster.launch(0)?;
    producer.goes_on(1000)?;
    producer.finish(&cluster.admin()?)
}
