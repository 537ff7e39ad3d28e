//! What the broker promises about the disk: nothing acknowledged is lost, nothing is readable there, nothing damaged is served, and a
//! full disk is an error for producers and no more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use palisade_config::KeyProviderConfig;
use palisade_e2e::{
    progress::say,
    tools::{Access, Broker, Java, Kcat, Tally, Tmpfs, files_containing, tool, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// How the verifiable producer reports an acknowledgement.
const SUCCESS: &str = "producer_send_success";

/// Kill -9 while an idempotent producer has batches in flight, again and again: every acknowledged record is where the acknowledgement
/// said, and none is there twice.
#[test]
fn kill_nine_loses_no_acknowledged_record_and_doubles_none() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "acknowledged", "--partitions", "3"],
    )?
    .success()?;
    // The tool switches retries off; what a program would use is under test.
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
    let arguments = [
        "--topic",
        "acknowledged",
        "--throughput",
        "2000",
        "--acks",
        "-1",
    ];
    let mut producer = Java::background(tool::VERIFIABLE_PRODUCER, &access, &arguments, &log)?;

    let mut tally = Tally::new(&log, SUCCESS);
    for round in 1..=5 {
        let before = tally.count()?;
        wait_until(
            "a thousand more records are acknowledged",
            Duration::from_secs(60),
            || {
                let count = tally.count()?;
                anyhow::ensure!(
                    count >= before + 1000,
                    "{count} of {}:\n{}",
                    before + 1000,
                    tail(&producer.log())
                );
                Ok(())
            },
        )?;
        broker.kill();
        let took = broker.launch()?;
        say(format_args!(
            "kill -9, round {round}: serving again {} ms after the start of the process",
            took.as_millis()
        ));
    }
    let before = tally.count()?;
    wait_until("the producer goes on", Duration::from_secs(60), || {
        anyhow::ensure!(tally.count()? > before, "{}", tail(&producer.log()));
        Ok(())
    })?;
    producer.terminate(Duration::from_secs(30))?;
    let log = producer.log();
    // The tool's own end may catch one send on its way; that is said to it as an error, and no crash of the broker may be.
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("producer_send_error"))
        .filter(|line| !line.contains("Producer closed while send in progress"))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let stored = Kcat::new(&admin)?
        .consume("acknowledged", &["-f", "%p %o %s\n"])?
        .success()?
        .stdout;
    let stored: BTreeMap<(i64, i64), &str> = stored
        .lines()
        .map(|line| record(line).expect("partition, offset, value"))
        .collect();
    let acknowledged = acknowledged(&log);
    assert!(acknowledged.len() > 5000);
    for (place, value) in &acknowledged {
        assert_eq!(
            stored.get(place),
            Some(&value.as_str()),
            "acknowledged at partition and offset {place:?}"
        );
    }
    let values: BTreeSet<&str> = stored.values().copied().collect();
    assert_eq!(values.len(), stored.len(), "records were stored twice");
    Ok(())
}

/// What was produced as key, value and header is nowhere below the data directory: not while the broker runs, not after a clean stop,
/// not after kill -9.
#[test]
fn the_disk_shows_neither_key_nor_value_nor_header() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "sealed"])?
        .success()?;
    let alice = broker.user(&mut java, "alice")?;
    let markers = [
        "marker-key-7f3a",
        "marker-value-91cc",
        "marker-header-d02e",
        "alice-secret",
        "marker-group-55b1",
    ];
    let kcat = Kcat::new(&admin)?;
    let lines: String = (0..500)
        .map(|number| format!("marker-key-7f3a {number}:marker-value-91cc {number}\n"))
        .collect();
    let produce = ["-K:", "-H", "origin=marker-header-d02e"];
    kcat.produce("sealed", &lines, &produce)?.success()?;
    let read = kcat
        .consume_group("marker-group-55b1", &["sealed"], &["-f", "%k:%s %h\n"])?
        .success()?
        .stdout;
    assert_eq!(read.matches("marker-header-d02e").count(), 500);
    drop(alice);

    let clean = |broker: &Broker, when: &str| -> Result<()> {
        // A file that goes away meanwhile cannot be looked at: then all are looked at again.
        let found = wait_until("every file was looked at", PATIENCE, || {
            files_containing(broker.data_dir(), &markers)
        })?;
        assert!(
            found.is_empty(),
            "{when}, in plaintext on the disk: {found:?}"
        );
        Ok(())
    };
    clean(&broker, "while it runs")?;
    broker.kill();
    clean(&broker, "after kill -9")?;
    broker.launch()?;
    broker.stop()?;
    clean(&broker, "after a clean stop")?;
    broker.launch()?;
    let read = kcat
        .consume("sealed", &["-f", "%k:%s\n"])?
        .success()?
        .stdout;
    assert_eq!(read, lines);
    Ok(())
}

/// A second `dev` with the same directory serves the same records, users, rules and group offsets under the same credentials.
#[test]
fn a_second_start_serves_the_same_data() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &[
            "--create",
            "--topic",
            "kept",
            "--partitions",
            "2",
            "--config",
            "retention.ms=86400000",
        ],
    )?
    .success()?;
    let alice = Kcat::new(&broker.user(&mut java, "alice")?)?;
    for allow in [
        ["--operation", "Read", "--group", "g"],
        ["--operation", "All", "--topic", "kept"],
    ] {
        java.tool(
            tool::ACLS,
            &admin,
            &[&["--add", "--allow-principal", "User:alice"], &allow[..]].concat(),
        )?
        .success()?;
    }
    alice
        .produce("kept", "one\ntwo\n", &["-p", "0"])?
        .success()?;
    alice
        .produce("kept", "three\n", &["-p", "1", "-z", "zstd"])?
        .success()?;
    let first = alice.consume_group("g", &["kept"], &[])?.success()?.stdout;
    assert_eq!(
        first.lines().collect::<BTreeSet<_>>(),
        BTreeSet::from(["one", "two", "three"])
    );
    let identity = |java: &mut Java| -> Result<String> {
        Ok(java
            .tool(tool::CLUSTER, &admin, &["cluster-id"])?
            .success()?
            .stdout)
    };
    let before = identity(&mut java)?;

    broker.stop()?;
    let took = broker.launch()?;
    say(format_args!(
        "restart after a clean stop: serving {} ms after the start of the process",
        took.as_millis()
    ));
    assert_eq!(identity(&mut java)?, before);
    java.tool(tool::TOPICS, &admin, &["--describe", "--topic", "kept"])?
        .success()?
        .says("retention.ms=86400000")?;
    let all = alice.consume("kept", &[])?.success()?.stdout;
    assert_eq!(
        all.lines().collect::<BTreeSet<_>>(),
        BTreeSet::from(["one", "two", "three"])
    );
    alice.produce("kept", "four\n", &["-p", "1"])?.success()?;
    // The group goes on where it was: only what is new.
    assert_eq!(
        alice.consume_group("g", &["kept"], &[])?.success()?.stdout,
        "four\n"
    );
    Ok(())
}

/// Another key under the name of the right one: the broker does not start, says which key is wrong and where, and loses nothing.
#[test]
fn a_wrong_key_is_named_and_nothing_is_lost() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "kept"])?
        .success()?;
    let kcat = Kcat::new(&admin)?;
    kcat.produce("kept", "still here\n", &[])?.success()?;
    broker.stop()?;

    let KeyProviderConfig::Directory { path } = broker.config()?.storage.key_provider;
    let current = fs::read_to_string(path.join("current"))?.trim().to_owned();
    let key = path.join(format!("{current}.key"));
    let right = fs::read(&key)?;
    fs::write(&key, "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n")?;
    let (status, log) = broker.launch_refused()?;
    assert_ne!(status, 0);
    assert!(
        log.contains(&current) && log.contains("is not the key that wrapped this data"),
        "{log}"
    );
    assert!(!log.contains("AQIDBAUGBwgJ"), "the log shows a key:\n{log}");

    fs::remove_file(&key)?;
    let (status, log) = broker.launch_refused()?;
    assert_ne!(status, 0);
    assert!(log.contains(&current) && log.contains("kek"), "{log}");

    fs::write(&key, right)?;
    broker.launch()?;
    assert_eq!(kcat.consume("kept", &[])?.success()?.stdout, "still here\n");
    Ok(())
}

/// One byte changed in a segment: the file and the place are reported, nothing from the damaged frame on is served, other topics are.
#[test]
fn a_corrupt_frame_is_reported_with_file_and_offset_and_never_served() -> Result<()> {
    let mut broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    let kcat = Kcat::new(&admin)?;
    for topic in ["damaged", "healthy"] {
        java.tool(tool::TOPICS, &admin, &["--create", "--topic", topic])?
            .success()?;
    }
    let lines: String = (0..400)
        .map(|number| format!("record {number} {}\n", "x".repeat(500)))
        .collect();
    kcat.produce("damaged", &lines, &["-X", "batch.num.messages=20"])?
        .success()?;
    kcat.produce("healthy", "fine\n", &[])?.success()?;
    broker.stop()?;

    let segment = segments(broker.data_dir())?
        .into_iter()
        .max_by_key(|path| fs::metadata(path).map_or(0, |file| file.len()));
    let segment = segment.context("no segment was written")?;
    let mut bytes = fs::read(&segment)?;
    let middle = 100_000;
    bytes[middle] ^= 1;
    fs::write(&segment, &bytes)?;
    let before = broker.log().len();
    broker.launch()?;

    assert_eq!(kcat.consume("healthy", &[])?.success()?.stdout, "fine\n");
    let consume = ["-C", "-t", "damaged", "-o", "beginning", "-e", "-q"];
    let reader = kcat.background(&consume, &broker.scratch().join("damaged.log"))?;
    let name = segment
        .file_name()
        .and_then(|name| name.to_str())
        .context("a name")?;
    let damaged = wait_until("the damage is reported", PATIENCE, || {
        let mut files = broker.status()?.quarantined;
        anyhow::ensure!(files.len() == 1, "{files:?}\n{}", tail(&broker.log()));
        Ok(files.remove(0))
    })?;
    let offset = usize::try_from(damaged.offset)?;
    assert!(damaged.file.contains(name), "{damaged:?}");
    assert!(
        offset <= middle && middle - offset < 20_000,
        "{damaged:?} does not cover byte {middle}"
    );
    // Whoever reads the log sees it, too.
    wait_until("the log says it", PATIENCE, || {
        let log = broker.log();
        let log = log.get(before..).unwrap_or_default();
        let line = log
            .lines()
            .find(|line| line.contains(name) && line.contains(&offset.to_string()));
        anyhow::ensure!(
            line.is_some_and(|line| line.contains("ERROR")),
            "{}",
            tail(log)
        );
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let served: Vec<String> = reader
        .log()
        .lines()
        .filter(|line| line.starts_with("record "))
        .map(str::to_owned)
        .collect();
    let expected: Vec<&str> = lines.lines().collect();
    assert!(served.len() < expected.len(), "everything was served");
    assert!(
        served
            .iter()
            .zip(&expected)
            .all(|(served, expected)| served == expected),
        "a damaged record was served"
    );
    drop(reader);
    // The partition's damage is its own: the broker goes on.
    kcat.produce("healthy", "still fine\n", &[])?.success()?;
    Ok(())
}

/// A full disk: producers get errors, consumers go on, and when there is space again so do the producers. Nothing acknowledged is lost.
#[test]
fn a_full_disk_stops_producers_only_until_there_is_space() -> Result<()> {
    let disk = match Tmpfs::mount(192 << 20)? {
        Ok(disk) => disk,
        Err(inability) => {
            say(format_args!("LEFT OUT: a full disk: {inability}"));
            return Ok(());
        }
    };
    let broker = Broker::start_in(disk.path().join("data"))?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "filling"])?
        .success()?;
    let kcat = Kcat::new(&admin)?;
    let filler = disk.path().join("filler");
    disk.fill(&filler, 12 << 20)?;

    // The chunks cannot be compressed away, and each is acknowledged as a whole or not known to be.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut kept = String::new();
    let mut refused = None;
    for chunk in 0..40 {
        let lines: String = (0..1000)
            .map(|line| format!("{chunk} {line} {}\n", noise(&mut random, 64)))
            .collect();
        let outcome = kcat.produce("filling", &lines, &["-X", "message.timeout.ms=15000"])?;
        if outcome.status != 0 {
            refused = Some(outcome);
            break;
        }
        kept.push_str(&lines);
    }
    let refused = refused.context("40 MB fitted into 12 MB")?;
    refused.says("delivery failed")?;
    wait_until("the broker says that its disk is full", PATIENCE, || {
        let problems = broker.status()?.problems;
        anyhow::ensure!(
            problems
                .iter()
                .any(|problem| problem.contains("the disk is full")),
            "{problems:?}"
        );
        Ok(())
    })?;
    assert_eq!(broker.http("/healthz")?.0, 200);
    let read = kcat.consume("filling", &[])?.success()?.stdout;
    assert!(
        read.starts_with(&kept),
        "{} of {} acknowledged bytes can be read",
        read.len(),
        kept.len()
    );

    fs::remove_file(&filler)?;
    wait_until("producers go on", PATIENCE, || {
        kcat.produce(
            "filling",
            "there is space again\n",
            &["-X", "message.timeout.ms=15000"],
        )?
        .success()
    })?;
    let read = kcat.consume("filling", &[])?.success()?.stdout;
    assert!(read.starts_with(&kept) && read.ends_with("there is space again\n"));
    wait_until("the problem is gone", PATIENCE, || {
        let problems = broker.status()?.problems;
        anyhow::ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })?;
    Ok(())
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

/// The last lines of something long.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// All segment files below a directory.
fn segments(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(segments(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "seg") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Sixteen hexadecimal digits a word, from a xorshift generator.
fn noise(state: &mut u64, words: usize) -> String {
    (0..words)
        .map(|_| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            format!("{state:016x}")
        })
        .collect()
}
