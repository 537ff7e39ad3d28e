//! Apache Kafka's own tools against `palisade-broker dev`: what an administrator types must do what it does on Kafka.
//!
//! Steps of each test: start a broker in an empty directory, borrow a JVM, run the tools as the administrator whose files `dev` wrote
//! (or as a user made with them), look at what they print.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::Result;
use palisade_e2e::tools::{Broker, Java, Kcat, tool, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// The SQL of topics: create, list, describe, alter, delete, and what is refused with which words.
#[test]
fn topics_are_created_described_grown_and_deleted() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    let mut topics = |arguments: &[&str]| java.tool(tool::TOPICS, &admin, arguments);

    topics(&[
        "--create",
        "--topic",
        "orders",
        "--partitions",
        "3",
        "--config",
        "retention.ms=86400000",
    ])?
    .success()?;
    topics(&["--create", "--topic", "orders"])?.refused("already exists")?;
    topics(&["--create", "--topic", "orders", "--if-not-exists"])?.success()?;
    topics(&[
        "--create",
        "--topic",
        "odd",
        "--config",
        "retention.millis=1",
    ])?
    .refused("retention.millis")?;
    topics(&[
        "--create",
        "--topic",
        "odd",
        "--config",
        "retention.ms=soon",
    ])?
    .refused("retention.ms")?;
    topics(&["--create", "--topic", "odd", "--replication-factor", "3"])?
        .refused("replication factor")?;
    topics(&["--create", "--topic", "or/ders"])?.refused("contains one or more characters")?;

    let described = wait_until("every partition has a leader", PATIENCE, || {
        let described = topics(&["--describe", "--topic", "orders"])?
            .success()?
            .stdout;
        anyhow::ensure!(!described.contains("Leader: none"), "{described}");
        Ok(described)
    })?;
    assert!(described.contains("PartitionCount: 3"), "{described}");
    assert!(described.contains("retention.ms=86400000"), "{described}");
    assert_eq!(described.matches("Leader: ").count(), 3, "{described}");

    topics(&["--alter", "--topic", "orders", "--partitions", "5"])?.success()?;
    topics(&["--describe", "--topic", "orders"])?
        .success()?
        .says("PartitionCount: 5")?;
    topics(&["--alter", "--topic", "orders", "--partitions", "2"])?.refused("5")?;

    topics(&["--create", "--topic", "invoices"])?.success()?;
    let listed = topics(&["--list"])?.success()?.stdout;
    let listed: BTreeSet<&str> = listed.lines().collect();
    assert!(
        listed.is_superset(&BTreeSet::from(["invoices", "orders"])),
        "{listed:?}"
    );

    topics(&["--delete", "--topic", "orders"])?.success()?;
    topics(&["--delete", "--topic", "orders"])?.refused("Topic 'orders' does not exist")?;
    topics(&["--describe", "--topic", "orders"])?.refused("Topic 'orders' does not exist")?;
    wait_until("the deleted topic is not listed", PATIENCE, || {
        let listed = topics(&["--list"])?.success()?.stdout;
        anyhow::ensure!(listed.lines().all(|name| name != "orders"), "{listed}");
        Ok(())
    })
}

/// An allowed prefix with a denied name below it, as a real client sees it; nothing else is allowed.
#[test]
fn acls_allow_a_prefix_and_deny_wins_over_it() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    let alice = broker.user(&mut java, "alice")?;
    let alice = Kcat::new(&alice)?;
    for topic in ["user-events", "user-secrets", "payments"] {
        java.tool(tool::TOPICS, &admin, &["--create", "--topic", topic])?
            .success()?;
    }
    alice
        .produce("user-events", "too early", &[])?
        .refused("topic authorization failed")?;

    let allow = [
        "--add",
        "--allow-principal",
        "User:alice",
        "--producer",
        "--topic",
        "user-",
        "--resource-pattern-type",
        "prefixed",
    ];
    java.tool(tool::ACLS, &admin, &allow)?.success()?;
    let deny = [
        "--add",
        "--deny-principal",
        "User:alice",
        "--operation",
        "Write",
        "--topic",
        "user-secrets",
    ];
    java.tool(tool::ACLS, &admin, &deny)?.success()?;

    alice.produce("user-events", "allowed", &[])?.success()?;
    alice
        .produce("user-secrets", "denied", &[])?
        .refused("topic authorization failed")?;
    alice
        .produce("payments", "not mentioned", &[])?
        .refused("topic authorization failed")?;
    alice
        .consume("user-events", &[])?
        .refused("topic authorization failed")?;
    let seen = Kcat::new(&admin)?
        .consume("user-events", &[])?
        .success()?
        .stdout;
    assert_eq!(seen, "allowed\n");
    assert_eq!(
        Kcat::new(&admin)?
            .consume("user-secrets", &[])?
            .success()?
            .stdout,
        ""
    );

    let listed = java
        .tool(tool::ACLS, &admin, &["--list"])?
        .success()?
        .stdout;
    for part in [
        "ResourcePattern(resourceType=TOPIC, name=user-, patternType=PREFIXED)",
        "(principal=User:alice, host=*, operation=WRITE, permissionType=ALLOW)",
        "ResourcePattern(resourceType=TOPIC, name=user-secrets, patternType=LITERAL)",
        "(principal=User:alice, host=*, operation=WRITE, permissionType=DENY)",
    ] {
        assert!(listed.contains(part), "{part} is not in\n{listed}");
    }
    // Only bindings that match a resource of that name, as `--resource-pattern-type match` asks.
    let matching = [
        "--list",
        "--topic",
        "user-secrets",
        "--resource-pattern-type",
        "match",
    ];
    let matching = java.tool(tool::ACLS, &admin, &matching)?.success()?.stdout;
    assert!(
        matching.contains("name=user-,") && matching.contains("name=user-secrets,"),
        "{matching}"
    );

    let remove = [
        "--remove",
        "--force",
        "--deny-principal",
        "User:alice",
        "--operation",
        "Write",
        "--topic",
        "user-secrets",
    ];
    java.tool(tool::ACLS, &admin, &remove)?.success()?;
    alice
        .produce("user-secrets", "allowed now", &[])?
        .success()?;
    let remove = [
        "--remove",
        "--force",
        "--topic",
        "user-",
        "--resource-pattern-type",
        "prefixed",
    ];
    java.tool(tool::ACLS, &admin, &remove)?.success()?;
    alice
        .produce("user-events", "allowed no more", &[])?
        .refused("topic authorization failed")?;
    assert_eq!(
        java.tool(tool::ACLS, &admin, &["--list"])?
            .success()?
            .stdout
            .trim(),
        ""
    );
    // A user without rights may not hand them out.
    let bob = broker.user(&mut java, "bob")?;
    java.tool(tool::ACLS, &bob, &allow)?.says("authoriz")?;
    Ok(())
}

/// SCRAM credentials, quotas and topic configurations by `kafka-configs`.
#[test]
fn configs_change_credentials_quotas_and_topics() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    let alice = Kcat::new(&broker.user(&mut java, "alice")?)?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "orders"])?
        .success()?;
    let mut configs = |arguments: &[&str]| java.tool(tool::CONFIGS, &admin, arguments);

    let users = configs(&["--describe", "--entity-type", "users"])?
        .success()?
        .stdout;
    assert!(
        users.contains("'alice' are SCRAM-SHA-512=iterations=4096"),
        "{users}"
    );
    assert!(!users.contains("alice-secret"), "{users}");
    let remove = [
        "--alter",
        "--entity-type",
        "users",
        "--entity-name",
        "alice",
        "--delete-config",
        "SCRAM-SHA-512",
    ];
    assert_eq!(
        alice.metadata()?["brokers"].as_array().map(Vec::len),
        Some(1)
    );
    configs(&remove)?.success()?;
    // On a busy machine five seconds may pass before there is an answer.
    let outcome = wait_until("alice is answered", PATIENCE, || {
        let outcome = alice.run(&["-L", "-m", "5"], "")?;
        let text = outcome.text();
        anyhow::ensure!(
            outcome.status == 0 || text.to_lowercase().contains("authentication"),
            "{text}"
        );
        Ok(outcome)
    })?;
    outcome.refused("authentication")?;
    configs(&remove)?.refused("alice")?;
    let weak = [
        "--alter",
        "--entity-type",
        "users",
        "--entity-name",
        "weak",
        "--add-config",
        "SCRAM-SHA-256=[iterations=100,password=x]",
    ];
    configs(&weak)?.refused("iterations")?;

    let client = [
        "--entity-type",
        "users",
        "--entity-name",
        "alice",
        "--entity-type",
        "clients",
        "--entity-name",
        "client-1",
    ];
    let limits = "producer_byte_rate=1048576,consumer_byte_rate=2097152,request_percentage=50";
    configs(&[&["--alter", "--add-config", limits], &client[..]].concat())?.success()?;
    let described = configs(&[&["--describe"], &client[..]].concat())?
        .success()?
        .stdout;
    for part in [
        "user-principal 'alice', client-id 'client-1'",
        "producer_byte_rate=1048576.0",
        "consumer_byte_rate=2097152.0",
        "request_percentage=50.0",
    ] {
        assert!(described.contains(part), "{part} is not in\n{described}");
    }
    configs(&[
        "--alter",
        "--entity-type",
        "users",
        "--entity-default",
        "--add-config",
        "producer_byte_rate=512",
    ])?
    .success()?;
    let all = configs(&["--describe", "--entity-type", "users"])?
        .success()?
        .stdout;
    assert!(
        all.contains("the default user-principal") && all.contains("producer_byte_rate=512.0"),
        "{all}"
    );
    let delete = "producer_byte_rate,consumer_byte_rate,request_percentage";
    configs(&[&["--alter", "--delete-config", delete], &client[..]].concat())?.success()?;
    let gone = configs(&[&["--describe"], &client[..]].concat())?
        .success()?
        .stdout;
    assert!(!gone.contains("producer_byte_rate"), "{gone}");
    let odd = [
        "--alter",
        "--entity-type",
        "users",
        "--entity-name",
        "alice",
        "--add-config",
        "producer_byte_rate=-1",
    ];
    configs(&odd)?.refused("producer_byte_rate")?;

    let topic = ["--entity-type", "topics", "--entity-name", "orders"];
    configs(
        &[
            &[
                "--alter",
                "--add-config",
                "retention.ms=3600000,max.message.bytes=2000000",
            ],
            &topic[..],
        ]
        .concat(),
    )?
    .success()?;
    let described = configs(&[&["--describe"], &topic[..]].concat())?
        .success()?
        .stdout;
    assert!(
        described.contains("retention.ms=3600000")
            && described.contains("max.message.bytes=2000000"),
        "{described}"
    );
    configs(&[&["--alter", "--delete-config", "retention.ms"], &topic[..]].concat())?.success()?;
    let described = configs(&[&["--describe"], &topic[..]].concat())?
        .success()?
        .stdout;
    assert!(
        !described.contains("retention.ms=3600000")
            && described.contains("max.message.bytes=2000000"),
        "{described}"
    );
    let all = configs(&[&["--describe", "--all"], &topic[..]].concat())?
        .success()?
        .stdout;
    assert!(all.contains("cleanup.policy=delete"), "{all}");
    configs(
        &[
            &["--alter", "--add-config", "retention.ms=never"],
            &topic[..],
        ]
        .concat(),
    )?
    .refused("retention.ms")?;
    configs(&[
        "--alter",
        "--entity-type",
        "topics",
        "--entity-name",
        "missing",
        "--add-config",
        "retention.ms=1",
    ])?
    .refused("missing")?;
    Ok(())
}

/// Every codec of the console producer, read back by the console consumer, with keys and headers; then offsets, deletion of records,
/// sizes on disk and the identity of the cluster.
#[test]
fn records_go_through_the_console_tools_in_every_codec() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "codecs"])?
        .success()?;
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for (batch, codec) in codecs.iter().enumerate() {
        let lines: String = (0..20)
            .map(|number| format!("codec:{codec}\tkey-{number}\t{codec} {number}\n"))
            .collect();
        let produce = [
            "--topic",
            "codecs",
            "--compression-codec",
            codec,
            "--reader-property",
            "parse.key=true",
            "--reader-property",
            "parse.headers=true",
        ];
        java.feed(tool::CONSOLE_PRODUCER, &admin, &produce, lines.as_bytes())?
            .success()?;
        // It sends its last records as its process ends, which in a shared JVM it does not: the next codec's could come first.
        let sent = format!("codecs:0:{}\n", (batch + 1) * 20);
        wait_until("the records have arrived", PATIENCE, || {
            let offset = java
                .tool(tool::GET_OFFSETS, &admin, &["--topic", "codecs"])?
                .success()?
                .stdout;
            anyhow::ensure!(offset == sent, "{offset}");
            Ok(())
        })?;
    }
    let consume = [
        "--topic",
        "codecs",
        "--from-beginning",
        "--max-messages",
        "100",
        "--timeout-ms",
        "40000",
        "--formatter-property",
        "print.key=true",
        "--formatter-property",
        "print.headers=true",
        "--formatter-property",
        "print.offset=true",
    ];
    let seen = java
        .tool(tool::CONSOLE_CONSUMER, &admin, &consume)?
        .success()?
        .stdout;
    let expected: String = codecs
        .iter()
        .enumerate()
        .flat_map(|(batch, codec)| {
            (0..20).map(move |number| {
                format!(
                    "Offset:{}\tcodec:{codec}\tkey-{number}\t{codec} {number}\n",
                    batch * 20 + number
                )
            })
        })
        .collect();
    assert_eq!(seen, expected);

    let mut offset_at = |time: &str| -> Result<String> {
        Ok(java
            .tool(
                tool::GET_OFFSETS,
                &admin,
                &["--topic", "codecs", "--time", time],
            )?
            .success()?
            .stdout)
    };
    assert_eq!(offset_at("latest")?, "codecs:0:100\n");
    assert_eq!(offset_at("earliest")?, "codecs:0:0\n");
    assert_eq!(offset_at("0")?, "codecs:0:0\n");
    let plan = broker.scratch().join("delete.json");
    fs::write(
        &plan,
        r#"{"version":1,"partitions":[{"topic":"codecs","partition":0,"offset":30}]}"#,
    )?;
    let plan = plan.display().to_string();
    let deleted = java
        .tool(tool::DELETE_RECORDS, &admin, &["--offset-json-file", &plan])?
        .success()?;
    deleted.says("partition: codecs-0\tlow_watermark: 30")?;
    let mut offset_at = |time: &str| -> Result<String> {
        Ok(java
            .tool(
                tool::GET_OFFSETS,
                &admin,
                &["--topic", "codecs", "--time", time],
            )?
            .success()?
            .stdout)
    };
    assert_eq!(offset_at("earliest")?, "codecs:0:30\n");
    let first = Kcat::new(&admin)?
        .consume("codecs", &["-c", "1", "-f", "%o %s\n"])?
        .success()?;
    assert_eq!(first.stdout, "30 gzip 10\n");

    let dirs = java
        .tool(
            tool::LOG_DIRS,
            &admin,
            &["--describe", "--topic-list", "codecs"],
        )?
        .success()?
        .stdout;
    let json: serde_json::Value = serde_json::from_str(dirs.lines().last().unwrap_or_default())?;
    let partition = &json["brokers"][0]["logDirs"][0]["partitions"][0];
    assert_eq!(partition["partition"], "codecs-0", "{dirs}");
    assert!(partition["size"].as_u64() > Some(0), "{dirs}");
    let cluster = java
        .tool(tool::CLUSTER, &admin, &["cluster-id"])?
        .success()?
        .stdout;
    assert!(
        cluster
            .trim()
            .strip_prefix("Cluster ID: ")
            .is_some_and(|id| !id.is_empty() && id != "null"),
        "{cluster}"
    );
    // The tool gives the broker five seconds.
    wait_until("the broker says what it speaks", PATIENCE, || {
        let versions = java
            .tool(tool::API_VERSIONS, &admin, &[])?
            .success()?
            .stdout;
        // librdkafka drops compression silently from a broker that does not offer Produce from version 0 on.
        for part in [
            "Produce(0): 0 to ",
            "Fetch(1): 4 to ",
            "CreateAcls(30): ",
            "IncrementalAlterConfigs(44): ",
            "AlterUserScramCredentials(51): ",
        ] {
            anyhow::ensure!(versions.contains(part), "{part} is not in\n{versions}");
        }
        Ok(())
    })
}

/// A group is listed, described with its lag, moved, and deleted; one that is not there is said not to be.
#[test]
fn consumer_groups_are_described_reset_and_deleted() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "events", "--partitions", "2"],
    )?
    .success()?;
    let kcat = Kcat::new(&admin)?;
    kcat.produce("events", "a\nb\nc\nd\n", &["-p", "0"])?
        .success()?;
    kcat.produce("events", "e\nf\n", &["-p", "1"])?.success()?;
    let read = [
        "--topic",
        "events",
        "--group",
        "readers",
        "--from-beginning",
        "--max-messages",
        "6",
        "--timeout-ms",
        "40000",
    ];
    let seen = java
        .tool(tool::CONSOLE_CONSUMER, &admin, &read)?
        .success()?
        .stdout;
    assert_eq!(
        seen.lines().collect::<BTreeSet<_>>(),
        BTreeSet::from(["a", "b", "c", "d", "e", "f"])
    );
    kcat.produce("events", "g\n", &["-p", "1"])?.success()?;

    let mut groups = |arguments: &[&str]| {
        let arguments = [arguments, &["--timeout", "30000"]].concat();
        java.tool(tool::CONSUMER_GROUPS, &admin, &arguments)
    };
    let listed = groups(&["--list"])?.success()?.stdout;
    assert!(listed.lines().any(|name| name == "readers"), "{listed}");
    let described = groups(&["--describe", "--group", "readers"])?
        .success()?
        .stdout;
    let lags: BTreeSet<Vec<&str>> = described
        .lines()
        .filter(|line| line.starts_with("readers"))
        .map(|line| line.split_whitespace().skip(1).take(5).collect())
        .collect();
    assert_eq!(
        lags,
        BTreeSet::from([
            vec!["events", "0", "4", "4", "0"],
            vec!["events", "1", "2", "3", "1"]
        ]),
        "{described}"
    );
    groups(&["--describe", "--group", "readers", "--state"])?
        .success()?
        .says("Empty")?;
    groups(&[
        "--reset-offsets",
        "--group",
        "readers",
        "--topic",
        "events",
        "--to-offset",
        "1",
        "--execute",
    ])?
    .success()?;
    let described = groups(&["--describe", "--group", "readers", "--offsets"])?
        .success()?
        .stdout;
    let current: Vec<&str> = described
        .lines()
        .filter(|line| line.starts_with("readers"))
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    assert_eq!(current, ["1", "1"], "{described}");
    let again = kcat
        .consume_group("readers", &["events"], &[])?
        .success()?
        .stdout;
    assert_eq!(
        again.lines().collect::<BTreeSet<_>>(),
        BTreeSet::from(["b", "c", "d", "f", "g"])
    );

    groups(&[
        "--delete-offsets",
        "--group",
        "readers",
        "--topic",
        "events:0",
    ])?
    .success()?;
    let described = groups(&["--describe", "--group", "readers", "--offsets"])?
        .success()?
        .stdout;
    // Partition and committed offset, where there is one.
    let committed: Vec<(&str, &str)> = described
        .lines()
        .filter(|line| line.starts_with("readers"))
        .filter_map(|line| {
            let mut columns = line.split_whitespace().skip(2);
            Some((columns.next()?, columns.next()?))
        })
        .filter(|(_, offset)| *offset != "-")
        .collect();
    assert_eq!(committed, [("1", "3")], "{described}");
    groups(&["--delete", "--group", "readers"])?.success()?;
    let listed = groups(&["--list"])?.success()?.stdout;
    assert!(listed.lines().all(|name| name != "readers"), "{listed}");
    groups(&["--delete", "--group", "nobody"])?.says("nobody")?;
    Ok(())
}
