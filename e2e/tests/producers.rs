//! Idempotent producers with many batches in flight against `palisade-broker dev`: nothing is lost, nothing comes twice, the order is kept.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use palisade_e2e::tools::{Broker, Java, Kcat, tool};

/// Distinct records by partition from two producers at once: the order within a partition is kept.
#[test]
fn producers_side_by_side_keep_their_order() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "ordered", "--partitions", "2"],
    )?
    .success()?;
    let kcat = Kcat::new(&admin)?;
    std::thread::scope(|scope| {
        let producers: Vec<_> = ["left", "right"]
            .into_iter()
            .map(|name| {
                let kcat = &kcat;
                scope.spawn(move || -> Result<()> {
                    let lines: String = (0..5000)
                        .map(|number| format!("{name} {number}\n"))
                        .collect();
                    kcat.produce(
                        "ordered",
                        &lines,
                        &[
                            "-X",
                            "enable.idempotence=true",
                            "-X",
                            "batch.num.messages=100",
                        ],
                    )?
                    .success()?;
                    Ok(())
                })
            })
            .collect();
        producers
            .into_iter()
            .try_for_each(|producer| producer.join().expect("a producer does not panic"))
    })?;
    let seen = kcat
        .consume("ordered", &["-f", "%p %s\n"])?
        .success()?
        .stdout;
    let mut last: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let mut distinct = BTreeSet::new();
    for line in seen.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [partition, name, number] = fields[..] else {
            panic!("{line}")
        };
        let number: i64 = number.parse()?;
        let before = last.insert((partition, name), number).unwrap_or(-1);
        assert!(
            before < number,
            "{name} {number} came after {before} in partition {partition}"
        );
        distinct.insert((name, number));
    }
    assert_eq!((distinct.len(), seen.lines().count()), (10_000, 10_000));
    Ok(())
}

/// The verifiable pair: an idempotent producer whose every record is acknowledged, a consumer that commits what it read.
#[test]
fn verifiable_producer_and_consumer_agree() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "verified", "--partitions", "4"],
    )?
    .success()?;
    // Both do their last work in hooks of the JVM: each needs one of its own.
    let alone = |class: &str, arguments: &[&str]| -> Result<String> {
        let mut tool = Java::background(class, &admin, arguments, &broker.scratch().join(class))?;
        let status = tool.wait(Duration::from_secs(60))?;
        anyhow::ensure!(
            status == 0,
            "{class} ended with status {status}:\n{}",
            tool.log()
        );
        Ok(tool.log())
    };
    let produced = alone(
        tool::VERIFIABLE_PRODUCER,
        &["--topic", "verified", "--max-messages", "2000"],
    )?;
    let acknowledged = events(&produced, "producer_send_success").count();
    assert_eq!(acknowledged, 2000, "{produced}");

    let consume = [
        "--topic",
        "verified",
        "--group-id",
        "verifiers",
        "--max-messages",
        "2000",
        "--reset-policy",
        "earliest",
    ];
    let consumed = alone(tool::VERIFIABLE_CONSUMER, &consume)?;
    let read: u64 = events(&consumed, "records_consumed")
        .filter_map(|event| event["count"].as_u64())
        .sum();
    assert_eq!(read, 2000, "{consumed}");
    assert!(
        events(&consumed, "offsets_committed").any(|event| event["success"] == true),
        "no offset was committed:\n{consumed}"
    );
    Ok(())
}

/// The performance tool: many batches in flight from one idempotent producer, nothing lost and nothing twice.
#[test]
fn the_performance_tool_loses_nothing() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "load", "--partitions", "6"],
    )?
    .success()?;
    let perf = [
        "--topic",
        "load",
        "--num-records",
        "50000",
        "--record-size",
        "200",
        "--throughput",
        "-1",
        "--command-property",
        "acks=all",
    ];
    java.tool(tool::PRODUCER_PERFORMANCE, &admin, &perf)?
        .success()?
        .says("50000 records sent")?;
    let offsets = java
        .tool(tool::GET_OFFSETS, &admin, &["--topic", "load"])?
        .success()?
        .stdout;
    let total: u64 = offsets
        .lines()
        .filter_map(|line| line.rsplit(':').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(total, 50_000, "{offsets}");
    Ok(())
}

/// The JSON lines of a verifiable tool with this name.
fn events<'a>(output: &'a str, name: &'a str) -> impl Iterator<Item = serde_json::Value> + 'a {
    output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(move |event| event["name"] == name)
}
