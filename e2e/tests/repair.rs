//! Damage on a disk, met by real clients: the broker that has it is repaired by the others, and nobody is served anything but what was produced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use palisade_e2e::{
    progress::say,
    tools::{Access, Cluster, Java, Kcat, tool, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "kept";
const PARTITIONS: usize = 3;
/// Records that are produced at a time until every replica has [`SEGMENTS`] of each partition, and how often at most.
const LOT: usize = 10_000;
const LOTS: usize = 24;
const SEGMENTS: usize = 5;
/// Batches of 50 that are produced while damage is met.
const ROUNDS: usize = 40;

/// Three brokers with a topic of many small segments.
struct Setup {
    cluster: Cluster,
    admin: Access,
    java: palisade_e2e::tools::Lease,
    kcat: Kcat,
    /// What a consumer has to read: value by partition and offset.
    expected: BTreeMap<(usize, i64), String>,
}

impl Setup {
    fn new() -> Result<Self> {
        let cluster = Cluster::start(3)?;
        let admin = cluster.admin()?;
        let mut java = Java::lease()?;
        let partitions = PARTITIONS.to_string();
        java.tool(
            tool::TOPICS,
            &admin,
            &[
                "--create",
                "--topic",
                TOPIC,
                "--partitions",
                &partitions,
                "--replication-factor",
                "3",
                "--config",
                "segment.bytes=1048576",
            ],
        )?
        .success()?;
        let kcat = Kcat::new(&admin)?;
        let mut setup = Self {
            cluster,
            admin,
            java,
            kcat,
            expected: BTreeMap::new(),
        };
        let records = setup.fill()?;
        setup.expected = setup.read()?;
        ensure!(setup.expected.len() == records);
        setup.settle()?;
        Ok(setup)
    }

    /// Produces until there are segments to damage on every broker. Who follows cuts them as the topic says a moment after the partition was made, so it is not known
    /// before how many records that takes. Returns how many.
    fn fill(&self) -> Result<usize> {
        for lot in 0..LOTS {
            let lines: String = (0..LOT)
                .map(|number| format!("{lot}-{number} {}\n", "x".repeat(300)))
                .collect();
            self.kcat
                .produce(TOPIC, &lines, &["-X", "batch.num.messages=50"])?
                .success()?;
            let mut fewest = usize::MAX;
            for id in 0..3 {
                for partition in 0..PARTITIONS {
                    fewest =
                        fewest.min(self.segments(id, partition).map_or(0, |files| files.len()));
                }
            }
            if fewest >= SEGMENTS {
                return Ok((lot + 1) * LOT);
            }
        }
        anyhow::bail!("some replica does not cut segments as the topic says")
    }

    fn segments(&self, id: usize, partition: usize) -> Result<Vec<PathBuf>> {
        let dir = self.partition_dir(id, partition)?;
        let mut files: Vec<PathBuf> = fs::read_dir(dir)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.retain(|file| file.extension().is_some_and(|end| end == "seg"));
        files.sort();
        Ok(files)
    }

    /// Reads everything from the start. Whatever kcat takes for an error ends it, and the test.
    fn read(&self) -> Result<BTreeMap<(usize, i64), String>> {
        let outcome = self.kcat.consume(TOPIC, &["-f", "%p %o %s\n"])?.success()?;
        outcome
            .stdout
            .lines()
            .map(|line| {
                let mut fields = line.splitn(3, ' ');
                let mut next = || fields.next().with_context(|| format!("read: {line}"));
                let place = (next()?.parse()?, next()?.parse()?);
                Ok((place, next()?.to_owned()))
            })
            .collect()
    }

    fn reads_all(&self) -> Result<()> {
        let found = self.read()?;
        for (place, value) in &self.expected {
            ensure!(
                found.get(place) == Some(value),
                "at partition and offset {place:?}: {:?}",
                found.get(place)
            );
        }
        Ok(())
    }

    /// Waits until every replica has everything and each shard is led by the broker that should.
    fn settle(&self) -> Result<()> {
        wait_until("replicas and leaders have settled", PATIENCE, || {
            for id in 0..3 {
                let status = self.cluster.status(id)?;
                let settled = status
                    .shards
                    .iter()
                    .filter(|shard| shard.id != 0)
                    .all(|shard| shard.caught_up && shard.leader == Some(shard.preferred));
                ensure!(status.ready && settled, "{:#?}", status.shards);
            }
            Ok(())
        })
    }

    /// The shard of a partition, by where a broker keeps it.
    fn shard(&self, partition: usize) -> Result<u32> {
        let dir = self.partition_dir(0, partition)?;
        let name = dir.parent().and_then(Path::file_name).unwrap_or_default();
        let number = name.to_str().and_then(|name| name.strip_prefix("shard-"));
        Ok(number.context("not in a shard")?.parse()?)
    }

    fn leader(&self, partition: usize) -> Result<usize> {
        let shard = self.shard(partition)?;
        wait_until("somebody leads", PATIENCE, || {
            for id in 0..3 {
                let Ok(status) = self.cluster.status(id) else {
                    continue;
                };
                let of_shard = status.shards.iter().find(|one| one.id == shard);
                let leads = |id: &usize| Some(*id as i32) == of_shard.and_then(|one| one.leader);
                if leads(&id) {
                    return Ok(id);
                }
            }
            anyhow::bail!("nobody leads shard {shard}")
        })
    }

    /// Fails unless `by` leads, as far as another broker knows.
    fn is_led(&self, shard: u32, by: usize, seen_by: usize) -> Result<()> {
        let status = self.cluster.status(seen_by)?;
        let of_shard = status.shards.iter().find(|one| one.id == shard);
        let leader = of_shard.and_then(|one| one.leader);
        ensure!(leader == i32::try_from(by).ok(), "{:#?}", status.shards);
        Ok(())
    }

    fn partition_dir(&self, id: usize, partition: usize) -> Result<PathBuf> {
        let of_partition = |dir: &PathBuf| {
            let name = dir.file_name().and_then(|name| name.to_str());
            let (_, rest) = name?.rsplit_once('-')?;
            Some(rest.split('.').next()? == partition.to_string())
        };
        let data = self.cluster.volume(id).join("data");
        let mut dirs = Vec::new();
        for shard in fs::read_dir(data)? {
            for dir in fs::read_dir(shard?.path())? {
                dirs.push(dir?.path());
            }
        }
        dirs.into_iter()
            .filter(|dir| dir.is_dir())
            .find(|dir| of_partition(dir) == Some(true))
            .context("the partition has no directory")
    }

    /// Flips one bit in the middle of a sealed segment.
    fn damage(&self, id: usize, partition: usize, segment: usize) -> Result<PathBuf> {
        let files = self.segments(id, partition)?;
        ensure!(files.len() > segment + 1, "{files:?}");
        let path = files[segment].clone();
        let file = fs::File::options().read(true).write(true).open(&path)?;
        let middle = file.metadata()?.len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle)?;
        file.write_all_at(&[byte[0] ^ 4], middle)?;
        say(format_args!(
            "broker {id}: flipped a bit at {middle} of {}",
            path.display()
        ));
        Ok(path)
    }

    fn wait_for_repair(&self, id: usize, count: u64) -> Result<()> {
        wait_until("the damage is repaired", PATIENCE, || {
            let status = self.cluster.status(id)?;
            let repairs = status.repairs;
            ensure!(
                (repairs.repaired, repairs.waiting) == (count, 0) && status.quarantined.is_empty(),
                "{repairs:?}, {:?}",
                status.quarantined
            );
            Ok(())
        })
    }
}

/// Damage on a follower, which no client meets: it is found, repaired from the leader, and the follower can then be the one that serves.
#[test]
fn a_damaged_follower_is_repaired_and_serves_what_it_was_given() -> Result<()> {
    let mut setup = Setup::new()?;
    let leader = setup.leader(0)?;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    // The next pass over sealed segments begins soon after a start.
    setup.cluster.stop(follower)?;
    let file = setup.damage(follower, 0, 1)?;
    setup.cluster.launch(follower)?;
    wait_until("the damage is found", PATIENCE, || {
        // Everybody reads everything meanwhile.
        setup.reads_all()?;
        let found = setup.cluster.status(follower)?.repairs.found;
        ensure!(found == 1, "{found}");
        Ok(())
    })?;
    setup.wait_for_repair(follower, 1)?;
    let metric = |name| setup.cluster.metric(follower, name);
    assert_eq!(metric("palisade_damaged_segments_found_total")?, 1.0);
    assert_eq!(metric("palisade_damaged_segments_repaired_total")?, 1.0);
    assert_eq!(metric("palisade_quarantined_files")?, 0.0);
    assert!(metric("palisade_scrubbed_bytes_total")? > 65_536.0);
    let log = setup.cluster.log(follower);
    let name = file.file_name().unwrap().to_str().unwrap();
    for event in ["is damaged", "was repaired"] {
        let told = log
            .lines()
            .any(|line| line.contains(event) && line.contains(name) && line.contains("position"));
        assert!(told, "{event}: {log}");
    }
    setup.reads_all()?;

    // Nobody but the follower can lead: the other one lacks what comes now, and the leader is gone.
    let shard = setup.shard(0)?;
    setup.cluster.kill(other);
    wait_until("a majority takes more", PATIENCE, || {
        let quick = ["-p", "0", "-X", "socket.connection.setup.timeout.ms=2000"];
        let outcome = setup.kcat.produce(TOPIC, "more\n", &quick)?;
        outcome.success().map(|_| ())
    })?;
    wait_until("the leader leads", PATIENCE, || {
        setup.is_led(shard, leader, follower)
    })?;
    setup.cluster.kill(leader);
    setup.cluster.launch(other)?;
    wait_until("the follower leads", PATIENCE, || {
        setup.is_led(shard, follower, follower)
    })?;
    setup.reads_all()?;
    let status = setup.cluster.status(follower)?;
    assert_eq!((status.repairs.found, status.repairs.waiting), (1, 0));
    Ok(())
}

/// Damage on a leader, met by consumers while a producer goes on: another broker serves them, and the one with the damage is whole again when it leads again.
#[test]
fn a_damaged_leader_hands_over_while_clients_go_on() -> Result<()> {
    let mut setup = Setup::new()?;
    let leader = setup.leader(1)?;
    let producer = setup.kcat.clone();
    let produced = std::thread::spawn(move || -> Result<()> {
        for round in 0..ROUNDS {
            let lines: String = (0..50).map(|n| format!("{round}-{n}\n")).collect();
            producer.produce(TOPIC, &lines, &["-p", "1"])?.success()?;
        }
        Ok(())
    });
    setup.damage(leader, 1, 1)?;
    setup.reads_all()?;
    setup.wait_for_repair(leader, 1)?;
    assert_eq!(
        setup
            .cluster
            .metric(leader, "palisade_repair_handovers_total")?,
        1.0
    );
    produced.join().unwrap()?;

    // It leads again, and now Kafka's own consumer meets damage elsewhere in it.
    setup.settle()?;
    assert_eq!(setup.leader(1)?, leader, "preference brings it back");
    setup.reads_all()?;
    assert_eq!(setup.cluster.status(leader)?.repairs.found, 1);
    setup.damage(leader, 1, 3)?;
    let wanted = (setup.expected.len() + ROUNDS * 50).to_string();
    let arguments = [
        "--topic",
        TOPIC,
        "--from-beginning",
        "--max-messages",
        &wanted,
        "--timeout-ms",
        "40000",
    ];
    let read = setup
        .java
        .tool(tool::CONSOLE_CONSUMER, &setup.admin, &arguments)?
        .success()?
        .stdout;
    assert_eq!(read.lines().count().to_string(), wanted);
    setup.wait_for_repair(leader, 2)?;
    setup.settle()?;
    assert_eq!(setup.leader(1)?, leader);
    setup.reads_all()?;
    // What was repaired is what a restart finds.
    setup.cluster.stop(leader)?;
    setup.cluster.launch(leader)?;
    setup.settle()?;
    setup.reads_all()?;
    let status = setup.cluster.status(leader)?;
    assert_eq!((status.repairs.found, status.quarantined), (0, Vec::new()));
    Ok(())
}
