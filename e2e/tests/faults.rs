//! Faults of the network and of disks, and ends of processes, on a cluster of three while Apache Kafka's producer and librdkafka's are running: nothing that was
//! acknowledged is lost, nothing is stored twice or out of order, and it is said how long the producers stood still.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use palisade_e2e::{
    progress::say,
    tools::{
        Access, Cluster, Java, JavaProducer, Kcat, Lan, RdkafkaProducer, Site, Stored, Tmpfs,
        fail_next_sync, tool, wait_until,
    },
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
/// What a leader has sent before it is cut off may be read by its client a little later.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// One cluster at a time: four of them and eight producers leave two cores no time to keep to any limit.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both producers, each with a topic of its own.
struct Load {
    java: JavaProducer,
    rdkafka: RdkafkaProducer,
    kcat: Kcat,
    topic: &'static str,
}

impl Load {
    /// Makes the topics, of six partitions with three replicas, and starts the producers.
    fn start(cluster: &Cluster, topics: [&'static str; 2]) -> Result<Self> {
        let admin = cluster.admin()?;
        let mut java = Java::lease()?;
        for topic in topics {
            create(&mut java, &admin, topic, "6")?;
        }
        let load = Self {
            java: JavaProducer::start(cluster, &admin, topics[0])?,
            rdkafka: RdkafkaProducer::start(&admin, topics[1])?,
            kcat: Kcat::new(&admin)?,
            topic: topics[1],
        };
        load.goes_on(2000)?;
        Ok(load)
    }

    /// Both have this many more records acknowledged.
    fn goes_on(&self, more: usize) -> Result<()> {
        // Both are counted before either is waited for: they get on at the same time.
        let (rdkafka, java) = (self.rdkafka.count() + more, self.java.count()? + more);
        self.rdkafka.reaches(rdkafka)?;
        self.java.reaches(java)
    }

    /// Who leads partition 0 of librdkafka's topic.
    fn leader(&self) -> Result<usize> {
        leader(&self.kcat, self.topic)
    }

    /// Ends both; the brokers agree on what there is. Then one of them is killed, so that the others must have it, and everything is read and compared.
    fn finish(mut self, cluster: &mut Cluster, spare: usize) -> Result<()> {
        self.rdkafka.stop()?;
        self.java.stop()?;
        agree(cluster)?;
        cluster.kill(spare);
        let admin = cluster.admin()?;
        self.rdkafka.finish(&admin)?;
        self.java.finish(&admin)
    }
}

fn create(java: &mut Java, admin: &Access, topic: &str, partitions: &str) -> Result<()> {
    let arguments = ["--partitions", partitions, "--replication-factor", "3"];
    java.tool(
        tool::TOPICS,
        admin,
        &[&["--create", "--topic", topic][..], &arguments].concat(),
    )?
    .success()?;
    Ok(())
}

/// Gives leadership back as soon as the preferred brokers can take it; by themselves the others do so seconds later.
fn give_back(admin: &Access) -> Result<()> {
    let mut java = Java::lease()?;
    let arguments = ["--election-type", "preferred", "--all-topic-partitions"];
    wait_until("leadership is given back", PATIENCE, || {
        java.tool(tool::LEADER_ELECTION, admin, &arguments)?
            .success()
            .map(drop)
    })
}

fn leader(kcat: &Kcat, topic: &str) -> Result<usize> {
    wait_until("partition 0 has a leader", PATIENCE, || {
        let metadata = kcat.metadata()?;
        let leader = metadata["topics"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|found| found["topic"] == topic)
            .flat_map(|found| found["partitions"].as_array().into_iter().flatten())
            .find(|partition| partition["partition"] == 0)
            .and_then(|partition| partition["leader"].as_i64());
        let leader = leader.with_context(|| format!("no partition 0 in {metadata}"))?;
        usize::try_from(leader).with_context(|| format!("{metadata}"))
    })
}

/// Clients are not told of a broker that is gone: it is no broker to connect to, leads nothing, and no replica of it is in sync.
fn forgotten(kcat: &Kcat, broker: usize, topic: &str) -> Result<()> {
    wait_until("clients are not told of it", PATIENCE, || {
        let metadata = kcat.metadata()?;
        let list = |of: &Value, name: &str| of[name].as_array().cloned().unwrap_or_default();
        let is_it = |found: &Value| found.as_u64() == Some(broker as u64);
        let mut brokers = list(&metadata, "brokers").into_iter();
        ensure!(!brokers.any(|found| is_it(&found["id"])), "{metadata}");
        let topics = list(&metadata, "topics").into_iter();
        let partitions: Vec<Value> = topics
            .filter(|found| found["topic"] == topic)
            .flat_map(|found| list(&found, "partitions"))
            .collect();
        ensure!(partitions.len() == 6, "{metadata}");
        for partition in partitions {
            let mut in_sync = list(&partition, "isrs").into_iter();
            let named = in_sync.any(|found| is_it(&found["id"])) || is_it(&partition["leader"]);
            ensure!(!named, "{metadata}");
        }
        Ok(())
    })
}

/// All brokers have applied the same of every shard and follow the same leaders.
fn agree(cluster: &Cluster) -> Result<()> {
    wait_until("the brokers agree", PATIENCE, || {
        let mut shards: BTreeMap<u32, BTreeSet<_>> = BTreeMap::new();
        for broker in 0..3 {
            let status = cluster.status(broker)?;
            ensure!(status.ready && status.problems.is_empty(), "{status:#?}");
            for shard in status.shards {
                ensure!(shard.caught_up, "broker {broker}: {shard:#?}");
                let state = (shard.leader, shard.term, shard.applied);
                shards.entry(shard.id).or_default().insert(state);
            }
        }
        ensure!(
            shards.len() > 1 && shards.values().all(|states| states.len() == 1),
            "{shards:#?}"
        );
        Ok(())
    })
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

/// A leader that the others cannot hear acknowledges nothing, whoever can reach it; the others go on without it, and when the network is whole again all agree.
#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing() -> Result<()> {
    let _turn = turn();
    let lan = match Lan::make(3)? {
        Ok(lan) => Arc::new(lan),
        Err(inability) => {
            say(format_args!("LEFT OUT: a cut network: {inability}"));
            return Ok(());
        }
    };
    let site = Site {
        lan: Some(Arc::clone(&lan)),
        ..Site::default()
    };
    let mut cluster = Cluster::start_at(3, &site)?;
    let admin = cluster.admin()?;
    create(&mut *Java::lease()?, &admin, "minority", "6")?;
    create(&mut *Java::lease()?, &admin, "cut-single", "1")?;
    let load = Load::start(&cluster, ["cut-java", "cut-rdkafka"])?;
    // It speaks to one leader only: that is the broker it asks, and would go on to ask, who leads.
    let mut single = RdkafkaProducer::start(&admin, "cut-single")?;
    single.goes_on(1000)?;

    // Between the brokers only: clients reach all three, and one is on the wrong side.
    let victim = leader(&load.kcat, "cut-single")?;
    let alone = Kcat::new(&cluster.admin_of(victim)?)?.beside(&lan, victim);
    lan.part(victim)?;
    say(format_args!("broker {victim} is cut off from the others"));
    let cut = Instant::now();
    let lines: String = (0..100).map(|number| format!("{number}\n")).collect();
    let arguments = ["-vv", "-X", "message.timeout.ms=4000"];
    let refused = alone.produce("minority", &lines, &arguments)?;
    ensure!(
        refused.status != 0 && !refused.text().contains("Message delivered"),
        "a leader without followers acknowledged:\n{}",
        refused.text()
    );
    ensure!(cut.elapsed() > UNDER_WAY, "the cut was too short");
    let since = now();
    wait_until("it keeps clients out", PATIENCE, || {
        let problems = cluster.status(victim)?.problems;
        let told = problems
            .iter()
            .any(|it| it.contains("clients are kept out"));
        ensure!(told, "{problems:?}");
        Ok(())
    })?;
    single.goes_on(1000)?;
    load.goes_on(2000)?;
    let told = load.rdkafka.told_by(victim, since) + single.told_by(victim, since);
    ensure!(
        told == 0,
        "{told} records were acknowledged by broker {victim} alone"
    );
    lan.heal()?;
    load.rdkafka.hears_from(victim)?;
    load.goes_on(1000)?;

    // Nobody reaches it any more.
    let victim = load.leader()?;
    lan.plug(victim, false)?;
    say(format_args!("broker {victim} is cut off from everybody"));
    load.goes_on(3000)?;
    lan.plug(victim, true)?;
    give_back(&admin)?;
    load.rdkafka.hears_from(victim)?;

    // It hears the others, and is not heard.
    let victim = load.leader()?;
    for other in (0..3).filter(|other| *other != victim) {
        lan.drop_packets(victim, other)?;
    }
    say(format_args!(
        "broker {victim} hears the others and is not heard"
    ));
    load.goes_on(3000)?;
    lan.heal()?;
    give_back(&admin)?;
    load.rdkafka.hears_from(victim)?;

    // It has lost one follower and kept the other: nothing needs to change.
    let victim = load.leader()?;
    lan.drop_packets(victim, (victim + 1) % 3)?;
    lan.drop_packets((victim + 1) % 3, victim)?;
    say(format_args!("broker {victim} is cut off from one follower"));
    let since = now();
    load.goes_on(3000)?;
    ensure!(load.rdkafka.told_by(victim, since) > 0, "it leads no more");
    lan.heal()?;

    // What was cut off is needed for every majority in the end, and to read from.
    single.goes_on(1)?;
    single.stop()?;
    load.finish(&mut cluster, (victim + 1) % 3)?;
    single.finish(&cluster.admin()?)?;
    let admin = cluster.admin()?;
    let kept = Stored::read(&admin, "minority")?.len();
    ensure!(
        kept == 0,
        "{kept} records that were never acknowledged are stored"
    );
    Ok(())
}

/// A broker whose disk is full hands over what it leads, the metadata among it, to brokers with space. With space again it catches up by itself and leads again.
#[test]
fn a_full_disk_of_one_broker_costs_no_more_than_a_moment() -> Result<()> {
    let _turn = turn();
    let disk = match Tmpfs::mount(192 << 20)? {
        Ok(disk) => disk,
        Err(inability) => {
            say(format_args!("LEFT OUT: a full disk: {inability}"));
            return Ok(());
        }
    };
    let site = Site {
        volumes: BTreeMap::from([(0, disk.path().to_owned())]),
        ..Site::default()
    };
    let mut cluster = Cluster::start_at(3, &site)?;
    let load = Load::start(&cluster, ["full-java", "full-rdkafka"])?;
    load.rdkafka.hears_from(0)?;

    let filler = disk.path().join("filler");
    disk.fill(&filler, 0)?;
    wait_until("the broker says that its disk is full", PATIENCE, || {
        let problems = cluster.status(0)?.problems;
        let full = problems.iter().any(|it| it.contains("the disk is full"));
        ensure!(full, "{problems:?}");
        Ok(())
    })?;
    say("the disk of broker 0 is full");
    wait_until("it leads nothing", PATIENCE, || {
        let status = cluster.status(0)?;
        let mut led = status.shards.iter().filter(|it| it.leader == Some(0));
        ensure!(led.next().is_none(), "{:#?}", status.shards);
        Ok(())
    })?;
    say("it leads nothing");
    load.goes_on(2000)?;
    std::thread::sleep(UNDER_WAY);
    let since = now();
    load.goes_on(2000)?;
    let told = load.rdkafka.told_by(0, since);
    ensure!(told == 0, "{told} records were acknowledged on a full disk");

    std::fs::remove_file(&filler)?;
    say("the disk of broker 0 has space again");
    load.rdkafka.hears_from(0)?;
    load.goes_on(1000)?;
    load.finish(&mut cluster, 1)
}

/// A failed `fdatasync` ends the process, since nobody knows what is on the disk; the others take over, and it comes back with what it has.
#[test]
fn a_failed_sync_ends_the_broker_and_loses_nothing() -> Result<()> {
    let _turn = turn();
    let mut cluster = Cluster::start(3)?;
    let load = Load::start(&cluster, ["sync-java", "sync-rdkafka"])?;
    let victim = load.leader()?;
    let log = cluster.scratch().join("strace.log");
    let process = cluster.id(victim).context("it runs")?;
    let mut strace = match fail_next_sync(process, &log)? {
        Ok(strace) => strace,
        Err(inability) => {
            say(format_args!("LEFT OUT: a failed sync: {inability}"));
            return Ok(());
        }
    };
    let status = cluster.wait(victim)?;
    say(format_args!("broker {victim} has ended"));
    strace.wait(PATIENCE)?;
    let injected = strace.log();
    ensure!(injected.contains("(INJECTED)"), "{injected}");
    ensure!(
        status == 134,
        "it ended with status {status}:\n{}",
        cluster.log(victim)
    );
    load.goes_on(2000)?;
    cluster.launch(victim)?;
    load.rdkafka.hears_from(victim)?;
    load.goes_on(1000)?;
    load.finish(&mut cluster, (victim + 1) % 3)
}

/// Kill -9 of whoever leads, then a restart of one broker after the other, under both producers.
#[test]
fn killed_leaders_and_a_rolling_restart_cost_neither_client_a_record() -> Result<()> {
    let _turn = turn();
    let mut cluster = Cluster::start(3)?;
    let load = Load::start(&cluster, ["ends-java", "ends-rdkafka"])?;
    for _ in 0..2 {
        let victim = load.leader()?;
        cluster.kill(victim);
        say(format_args!("broker {victim} was killed"));
        load.goes_on(2000)?;
        forgotten(&load.kcat, victim, load.topic)?;
        cluster.launch(victim)?;
        load.goes_on(1000)?;
    }
    for broker in 0..3 {
        cluster.stop(broker)?;
        say(format_args!("broker {broker} was stopped"));
        load.goes_on(1000)?;
        cluster.launch(broker)?;
        load.goes_on(1000)?;
    }
    load.finish(&mut cluster, 0)
}
