//! Keys that are replaced while the broker runs: nothing waits for it, everything can be read afterwards, and nothing needs the old key.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use palisade_config::{
    KeyProviderConfig,
    status::{KekNeeds, KeyEncryption},
};
use palisade_e2e::{
    progress::say,
    tools::{Access, Broker, Cluster, Java, Kcat, Tally, tool, wait_until},
};

/// Looking happens every second, and a checkpoint is written at once; the limit only ends a hang.
const SETTLING: Duration = Duration::from_secs(60);
/// The cleaner looks every 15 seconds, and a checkpoint follows within ten.
const SEALING: Duration = Duration::from_secs(120);
/// How the verifiable producer reports an acknowledgement.
const SUCCESS: &str = "producer_send_success";

/// The key-encryption key is replaced twice under load, the second time by one with a longer name. Each time nothing needs the old one soon afterwards; it is
/// destroyed, the broker killed and started without it, and at the end every acknowledged record is there.
#[test]
fn a_key_encryption_key_is_replaced_under_load_and_destroyed() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "kept", "--partitions", "3"],
    )?
    .success()?;
    let properties = broker.scratch().join("producer.properties");
    let settings =
        "retries=2147483647\nenable.idempotence=true\ndelivery.timeout.ms=120000\nlinger.ms=2\n";
    fs::write(
        &properties,
        fs::read_to_string(&admin.properties)? + settings,
    )?;
    let access = Access {
        properties,
        ..admin.clone()
    };
    let log = broker.scratch().join("producer.log");
    let arguments = ["--topic", "kept", "--throughput", "1000", "--acks", "-1"];
    let mut producer = Java::background(tool::VERIFIABLE_PRODUCER, &access, &arguments, &log)?;
    let mut tally = Tally::new(&log, SUCCESS);
    let mut more = |count: usize| -> Result<()> {
        let before = tally.count()?;
        wait_until("more is acknowledged", Duration::from_secs(60), || {
            let now = tally.count()?;
            ensure!(now >= before + count, "{now} of {}", before + count);
            Ok(())
        })
    };
    more(1000)?;

    let KeyProviderConfig::Directory { path: directory } = broker.config()?.storage.key_provider;
    for new in ["kek-second00", "the-third-key-has-a-longer-name"] {
        let old = fs::read_to_string(directory.join("current"))?
            .trim()
            .to_owned();
        // What is settled is looked at every ten seconds only.
        let needs = wait_until("the old key is needed for everything", SETTLING, || {
            let keys = settled(&broker, &old)?;
            let needs = needs_of(&keys, &old);
            ensure!(
                needs.segments > 0 && needs.wal_files > 0 && needs.manifests > 0 && needs.keys == 1,
                "{keys:?}"
            );
            Ok(needs)
        })?;
        // As a Secret is changed: the key is there before it is made the current one.
        let key: [u8; 32] = random()?;
        fs::write(
            directory.join(format!("{new}.key")),
            BASE64_STANDARD.encode(key),
        )?;
        fs::write(directory.join("current"), new)?;
        let began = Instant::now();
        let after = settled(&broker, new)?;
        say(format_args!(
            "from {old} to {new}: settled after {} ms; {} segments ({} bytes), {} files of the write-ahead log, {} manifests",
            began.elapsed().as_millis(),
            needs.segments,
            needs.segment_bytes,
            needs.wal_files,
            needs.manifests
        ));
        assert!(after.loaded.contains(&old) && after.loaded.contains(&new.to_owned()));
        assert_eq!(needs_of(&after, &old), KekNeeds::default(), "{after:?}");
        assert!(needs_of(&after, new).segments >= needs.segments);
        assert_eq!(broker.metric("palisade_kek_settled")?, 1.0);
        more(500)?;

        broker.kill();
        for file in wrapped_files(broker.data_dir())? {
            let bytes = fs::read(&file)?;
            let header = bytes.get(..300).unwrap_or(&bytes);
            assert!(
                contains(header, new.as_bytes()) && !contains(header, old.as_bytes()),
                "{} is not under {new} alone",
                file.display()
            );
        }
        fs::remove_file(directory.join(format!("{old}.key")))?;
        broker.launch()?;
        more(500)?;
        wait_until("all is well", SETTLING, || {
            let problems = broker.status()?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
            Ok(())
        })?;
    }
    producer.terminate(Duration::from_secs(30))?;

    let stored = Kcat::new(&admin)?
        .consume("kept", &["-f", "%p %o %s\n"])?
        .success()?
        .stdout;
    let stored: BTreeMap<(i64, i64), &str> = stored
        .lines()
        .map(|line| record(line).expect("partition, offset, value"))
        .collect();
    let acknowledged = acknowledged(&producer.log());
    assert!(acknowledged.len() > 3000);
    for (place, value) in &acknowledged {
        assert_eq!(
            stored.get(place),
            Some(&value.as_str()),
            "acknowledged at partition and offset {place:?}"
        );
    }
    assert_eq!(broker.status()?.quarantined, Vec::new());
    Ok(())
}

/// Three brokers move to another key-encryption key together, topics' keys by proposals of the leader; each starts again without the old one.
#[test]
fn a_cluster_moves_to_another_key_encryption_key() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    for topic in ["one", "two", "three"] {
        let create = ["--create", "--topic", topic, "--partitions", "2"];
        let replicas = ["--replication-factor", "3"];
        java.tool(tool::TOPICS, &admin, &[&create[..], &replicas].concat())?
            .success()?;
    }
    let kcat = Kcat::new(&admin)?;
    let lines: String = (0..500).map(|n| format!("record {n}\n")).collect();
    kcat.produce("one", &lines, &["-p", "0"])?.success()?;
    let directory = cluster.scratch().join("kek");
    let key: [u8; 32] = random()?;
    fs::write(directory.join("new.key"), BASE64_STANDARD.encode(key))?;
    fs::write(directory.join("current"), "new")?;
    let began = Instant::now();
    wait_until("all brokers are settled", SETTLING, || {
        for id in 0..3 {
            let keys = cluster.status(id)?.key_encryption.context("keys")?;
            ensure!(keys.settled && keys.current == "new", "{id}: {keys:?}");
            ensure!(needs_of(&keys, "new").keys == 3, "{id}: {keys:?}");
        }
        Ok(())
    })?;
    say(format_args!(
        "three brokers settled after {} ms",
        began.elapsed().as_millis()
    ));
    kcat.produce("two", &lines, &["-p", "1"])?.success()?;
    fs::remove_file(directory.join("e2e.key"))?;
    for id in 0..3 {
        cluster.kill(id);
        cluster.launch(id)?;
    }
    for (topic, partition) in [("one", "0"), ("two", "1")] {
        let read = kcat.consume(topic, &["-p", partition])?.success()?.stdout;
        assert_eq!(read, lines);
    }
    for id in 0..3 {
        wait_until("all is well", SETTLING, || {
            let status = cluster.status(id)?;
            ensure!(
                status.problems.is_empty() && status.quarantined.is_empty(),
                "{id}: {:?}, {:?}",
                status.problems,
                status.quarantined
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// A key that is taken away while something needs it is missed at once, not at the next start.
#[test]
fn a_key_that_is_taken_away_too_early_is_missed() -> Result<()> {
    let broker = Broker::start()?;
    Java::lease()?
        .tool(
            tool::TOPICS,
            &broker.admin(),
            &["--create", "--topic", "kept"],
        )?
        .success()?;
    let KeyProviderConfig::Directory { path: directory } = broker.config()?.storage.key_provider;
    let old = fs::read_to_string(directory.join("current"))?
        .trim()
        .to_owned();
    settled(&broker, &old)?;
    let key: [u8; 32] = random()?;
    let hidden = broker.scratch().join("hidden.key");
    fs::write(directory.join("next.key"), BASE64_STANDARD.encode(key))?;
    fs::rename(directory.join(format!("{old}.key")), &hidden)?;
    fs::write(directory.join("current"), "next")?;
    wait_until("the key is missed", SETTLING, || {
        let problems = broker.status()?.problems;
        ensure!(
            problems
                .iter()
                .any(|problem| problem.contains(&old) && problem.contains("restore")),
            "{problems:?}"
        );
        Ok(())
    })?;
    fs::rename(&hidden, directory.join(format!("{old}.key")))?;
    settled(&broker, "next")?;
    wait_until("all is well", SETTLING, || {
        let problems = broker.status()?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })
}

/// A topic gets a new key: what is stored is sealed anew, and read as before. This waits longest, and the first by name starts first.
#[test]
fn a_broker_seals_anew_what_is_stored_when_its_topic_gets_a_new_key() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "moved"])?
        .success()?;
    let kcat = Kcat::new(&admin)?;
    let first: String = (0..2000).map(|n| format!("before {n}\n")).collect();
    let second: String = (0..200).map(|n| format!("after {n}\n")).collect();
    kcat.produce("moved", &first, &["-X", "batch.num.messages=100"])?
        .success()?;
    assert_eq!(sealed_under(broker.data_dir())?, [true, false]);
    assert_eq!(broker.status()?.key_rotations, Vec::new());

    let began = Instant::now();
    let alter = [
        "--alter",
        "--entity-type",
        "topics",
        "--entity-name",
        "moved",
        "--add-config",
        "palisade.key.version=2",
    ];
    java.tool(tool::CONFIGS, &admin, &alter)?.success()?;
    let rotation = wait_until("the rotation is seen", SETTLING, || {
        let mut rotations = broker.status()?.key_rotations;
        ensure!(rotations.len() == 1, "{rotations:?}");
        Ok(rotations.remove(0))
    })?;
    assert_eq!(
        (rotation.topic.as_str(), rotation.oldest, rotation.newest),
        ("moved", 1, 2)
    );
    assert!(rotation.segments_left > 0 && rotation.bytes_left > 20_000);
    assert!(broker.metric("palisade_key_rotation_bytes_left")? > 0.0);
    kcat.produce("moved", &second, &[])?.success()?;
    wait_until("everything is sealed anew", SEALING, || {
        let rotations = broker.status()?.key_rotations;
        ensure!(rotations.is_empty(), "{rotations:?}");
        Ok(())
    })?;
    say(format_args!(
        "a topic of {} bytes moved to its second key in {} s",
        rotation.bytes_left,
        began.elapsed().as_secs()
    ));
    assert_eq!(sealed_under(broker.data_dir())?, [false, true]);
    assert_eq!(broker.metric("palisade_key_rotation_bytes_left")?, 0.0);
    let all = first + &second;
    assert_eq!(kcat.consume("moved", &[])?.success()?.stdout, all);
    broker.kill();
    broker.launch()?;
    assert_eq!(kcat.consume("moved", &[])?.success()?.stdout, all);
    assert_eq!(sealed_under(broker.data_dir())?, [false, true]);
    Ok(())
}

/// A deleted topic's key is gone from the metadata and from their checkpoint within seconds, and both are counted.
#[test]
fn a_deleted_topic_is_shredded() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    for topic in ["kept", "doomed"] {
        java.tool(tool::TOPICS, &admin, &["--create", "--topic", topic])?
            .success()?;
    }
    let kcat = Kcat::new(&admin)?;
    for topic in ["kept", "doomed"] {
        kcat.produce(topic, "a record\n", &[])?.success()?;
    }
    let keys = |broker: &Broker| -> Result<u64> {
        let keys = broker.status()?.key_encryption.context("key encryption")?;
        Ok(keys.needed.iter().map(|needs| needs.keys).sum())
    };
    wait_until("both keys are seen", SETTLING, || {
        let keys = keys(&broker)?;
        ensure!(keys == 2, "{keys}");
        Ok(())
    })?;
    // So that there is a checkpoint with both keys.
    broker.stop()?;
    broker.launch()?;
    let checkpoint = broker.data_dir().join("data/metadata/checkpoint");
    let before = fs::read(&checkpoint)?;
    assert_eq!(broker.status()?.shredded_topics, 0);
    java.tool(tool::TOPICS, &admin, &["--delete", "--topic", "doomed"])?
        .success()?;
    wait_until("the key is gone", SETTLING, || {
        let status = broker.status()?;
        ensure!(
            (status.shredded_topics, status.shredding_topics) == (1, 0) && keys(&broker)? == 1,
            "{status:?}"
        );
        Ok(())
    })?;
    assert_eq!(broker.metric("palisade_topics_shredded_total")?, 1.0);
    assert_ne!(fs::read(&checkpoint)?, before);
    broker.kill();
    broker.launch()?;
    assert_eq!(kcat.consume("kept", &[])?.success()?.stdout, "a record\n");
    wait_until("one key is left", SETTLING, || {
        let keys = keys(&broker)?;
        ensure!(keys == 1, "{keys}");
        Ok(())
    })
}

/// Waits until everything is under `current`.
fn settled(broker: &Broker, current: &str) -> Result<KeyEncryption> {
    wait_until("everything is under the current key", SETTLING, || {
        let keys = broker.status()?.key_encryption.context("key encryption")?;
        ensure!(keys.settled && keys.current == current, "{keys:?}");
        Ok(keys)
    })
}

fn needs_of(keys: &KeyEncryption, kek: &str) -> KekNeeds {
    let found = keys.needed.iter().find(|needs| needs.kek == kek);
    found.cloned().unwrap_or_default()
}

/// Every file whose header names a key-encryption key. Files of the write-ahead log that wait to be used again hold nothing.
fn wrapped_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let files = files(directory)?;
    let wrapped = files.into_iter().filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| {
            name.starts_with("wal-")
                || name.ends_with(".seg")
                || name == "manifest"
                || name == "checkpoint"
        })
    });
    let wrapped: Vec<_> = wrapped.collect();
    ensure!(wrapped.len() >= 4, "only {wrapped:?} found");
    Ok(wrapped)
}

/// Whether a segment holds a batch that is sealed under version 1, and one under version 2. A sealed batch begins with its format, 1, and the version as 32
/// bits; chance makes these five bytes once in a terabyte.
fn sealed_under(directory: &Path) -> Result<[bool; 2]> {
    let mut found = [false; 2];
    for path in files(directory)? {
        if path.extension().is_some_and(|extension| extension == "seg") {
            let bytes = fs::read(&path)?;
            for (version, found) in (1..).zip(&mut found) {
                *found |= contains(&bytes, &[1, 0, 0, 0, version]);
            }
        }
    }
    Ok(found)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(bytes)
}

/// `<partition> <offset> <value>`.
fn record(line: &str) -> Option<((i64, i64), &str)> {
    let mut fields = line.splitn(3, ' ');
    let place = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((place, fields.next()?))
}

/// What the verifiable producer says was acknowledged: value by partition and offset.
fn acknowledged(log: &str) -> BTreeMap<(i64, i64), String> {
    log.lines()
        .filter(|line| line.contains(SUCCESS))
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|event| {
            let place = (event["partition"].as_i64()?, event["offset"].as_i64()?);
            Some((place, event["value"].as_str()?.to_owned()))
        })
        .collect()
}
