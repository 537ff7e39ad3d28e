//! Clients against `palisade-broker dev`: librdkafka (kcat) and the Java producer, how they log in, what they are refused, and the
//! quotas that slow them down.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use palisade_e2e::tools::{Broker, Java, Kcat, Login, Mechanism, Outcome, run, tool, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// How four seconds of trying to log in ended that were enough to be let in, or to be told `message`: on a busy machine they may not be, and it tries again.
fn told(kcat: &Kcat, message: &str) -> Result<Outcome> {
    wait_until("kcat is answered", PATIENCE, || {
        let outcome = kcat.run(&["-L", "-m", "4"], "")?;
        let text = outcome.text();
        ensure!(
            outcome.status == 0 || text.to_lowercase().contains(message),
            "{text}"
        );
        Ok(outcome)
    })
}

/// Codecs, keys, headers and timestamps through librdkafka, read back as they were sent.
#[test]
fn kcat_produces_and_consumes_in_every_codec() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let kcat = Kcat::new(&admin)?;
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "codecs", "--partitions", "5"],
    )?
    .success()?;
    for (partition, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate() {
        let lines: String = (0..500)
            .map(|number| format!("key-{number}:{codec} {number}\n"))
            .collect();
        let partition = partition.to_string();
        let more = [
            "-p",
            &partition,
            "-z",
            codec,
            "-K:",
            "-H",
            "origin=kcat",
            "-X",
            "linger.ms=50",
        ];
        kcat.produce("codecs", &lines, &more)?.success()?;
        let seen = kcat
            .consume("codecs", &["-p", &partition, "-f", "%k:%s %h\n"])?
            .success()?
            .stdout;
        let expected: String = (0..500)
            .map(|number| format!("key-{number}:{codec} {number} origin=kcat\n"))
            .collect();
        assert!(
            seen == expected,
            "{codec}: {} of {} bytes came back",
            seen.len(),
            expected.len()
        );
    }
    let metadata = kcat.metadata()?;
    assert_eq!(
        metadata["brokers"].as_array().map(Vec::len),
        Some(1),
        "{metadata}"
    );
    assert_eq!(metadata["brokers"][0]["name"], broker.bootstrap());
    wait_until("every partition has a leader", PATIENCE, || {
        let metadata = kcat.metadata()?;
        let topic = metadata["topics"]
            .as_array()
            .and_then(|topics| topics.iter().find(|topic| topic["topic"] == "codecs"));
        let partitions = topic
            .and_then(|topic| topic["partitions"].as_array())
            .context("no topic")?;
        ensure!(
            partitions.len() == 5
                && partitions
                    .iter()
                    .all(|partition| partition["leader"].as_i64() >= Some(0)),
            "{metadata}"
        );
        Ok(())
    })?;
    // Topics are never made by being mentioned.
    let unmade = ["-X", "topic.metadata.propagation.max.ms=500"];
    kcat.produce("unmade", "x\n", &unmade)?
        .refused("unknown topic")?;
    Ok(())
}

/// Two members of a group share the partitions; when one leaves, the other gets all; what was committed is not read again.
#[test]
fn kcat_groups_share_partitions_and_keep_their_place() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let kcat = Kcat::new(&admin)?;
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "work", "--partitions", "4"],
    )?
    .success()?;
    let member = [
        "-q",
        "-u",
        "-X",
        "auto.offset.reset=earliest",
        "-X",
        "session.timeout.ms=30000",
        "-f",
        "%p %s\n",
        "-G",
        "workers",
        "work",
    ];
    let mut members = Vec::new();
    for name in ["one.log", "two.log"] {
        members.push(kcat.background(&member, &broker.scratch().join(name))?);
    }
    let mut round = 0;
    // Records keep coming until both members were seen working: a rebalance takes as long as it takes.
    wait_until("both members get records", Duration::from_secs(60), || {
        round += 1;
        for partition in ["0", "1", "2", "3"] {
            kcat.produce("work", &format!("round-{round}\n"), &["-p", partition])?
                .success()?;
        }
        anyhow::ensure!(
            members.iter().all(|member| !member.log().is_empty()),
            "{:?}",
            members
                .iter()
                .map(|member| member.log())
                .collect::<Vec<_>>()
        );
        Ok(())
    })?;
    let mut leaver = members.pop().context("two members")?;
    leaver.terminate(PATIENCE)?;
    for partition in ["0", "1", "2", "3"] {
        kcat.produce("work", "last\n", &["-p", partition])?
            .success()?;
    }
    let stayer = members.pop().context("two members")?;
    wait_until(
        "the member that stays reads all partitions",
        Duration::from_secs(60),
        || {
            let log = stayer.log();
            let last = log.lines().filter(|line| line.ends_with(" last")).count();
            anyhow::ensure!(last == 4, "{log}");
            Ok(())
        },
    )?;
    let mut stayer = stayer;
    stayer.terminate(PATIENCE)?;
    // Both left and committed: a third reads only what is new.
    kcat.produce("work", "new\n", &["-p", "2"])?.success()?;
    let seen = kcat
        .consume_group("workers", &["work"], &[])?
        .success()?
        .stdout;
    assert_eq!(seen, "new\n");
    Ok(())
}

/// All SASL mechanisms with the right and a wrong password, and a user who does not exist, in two clients.
#[test]
fn passwords_are_checked_by_every_mechanism() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    for mechanism in ["SCRAM-SHA-512", "SCRAM-SHA-256"] {
        let config = format!("{mechanism}=[iterations=4096,password=alice-secret]");
        let alter = [
            "--alter",
            "--entity-type",
            "users",
            "--entity-name",
            "alice",
            "--add-config",
            &config,
        ];
        java.tool(tool::CONFIGS, &admin, &alter)?.success()?;
    }
    let mechanisms = [
        Mechanism::ScramSha512,
        Mechanism::ScramSha256,
        Mechanism::Plain,
    ];
    let is_refused = |name: &str, mechanism: Mechanism, user: &str, password: &str| {
        let wrong = broker.client(name, &Login::password(mechanism, user, password))?;
        let outcome = told(&Kcat::new(&wrong)?, "authentication")?;
        outcome.refused("authentication").map(drop)
    };
    // kcat goes on trying until its time is up, so all of them do it side by side.
    thread::scope(|threads| {
        let mut tried = Vec::new();
        for mechanism in mechanisms {
            for (user, password) in [
                ("alice", "alice-secreT"),
                ("Alice", "alice-secret"),
                ("nobody", "alice-secret"),
            ] {
                let name = format!("wrong-{}", tried.len());
                tried.push(threads.spawn(move || is_refused(&name, mechanism, user, password)));
            }
        }
        tried.into_iter().try_for_each(|login| {
            let panicked = |_| anyhow::anyhow!("the thread of a login panicked");
            login.join().map_err(panicked)?
        })
    })?;
    for mechanism in mechanisms {
        let client = |user: &str, password: &str| {
            broker.client("probe", &Login::password(mechanism, user, password))
        };
        let right = Kcat::new(&client("alice", "alice-secret")?)?;
        assert_eq!(
            right.metadata()?["brokers"].as_array().map(Vec::len),
            Some(1),
            "{mechanism:?}"
        );
        // The Java client tells a refused password from a lost connection; once per mechanism is enough.
        let wrong = client("alice", "not it")?;
        java.tool(tool::TOPICS, &wrong, &["--list"])?
            .refused("authentication failed")?;
        java.tool(tool::TOPICS, &client("alice", "alice-secret")?, &["--list"])?
            .success()?;
    }
    let log = broker.log();
    assert!(
        !log.contains("alice-secret") && !log.contains("not it"),
        "the log shows a password:\n{log}"
    );
    Ok(())
}

/// An authenticated user without any ACL sees and does nothing.
#[test]
fn a_user_without_rights_is_refused_everything() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "user-events"],
    )?
    .success()?;
    Kcat::new(&admin)?
        .produce("user-events", "secret\n", &[])?
        .success()?;
    let mallory = broker.user(&mut java, "mallory")?;
    let kcat = Kcat::new(&mallory)?;
    kcat.produce("user-events", "forged\n", &[])?
        .refused("topic authorization failed")?;
    let read = kcat
        .consume("user-events", &[])?
        .refused("topic authorization failed")?;
    assert!(!read.stdout.contains("secret"), "{}", read.stdout);
    let group = kcat
        .consume_group("analytics-service", &["user-events"], &["-c", "1"])?
        .says("authorization failed")?;
    assert!(!group.stdout.contains("secret"), "{}", group.stdout);
    assert_eq!(kcat.metadata()?["topics"].as_array().map(Vec::len), Some(0));
    java.tool(tool::TOPICS, &mallory, &["--create", "--topic", "mine"])?
        .refused("authorization failed")?;
    java.tool(
        tool::TOPICS,
        &mallory,
        &["--delete", "--topic", "user-events"],
    )?
    .refused("user-events")?;
    let alter = [
        "--alter",
        "--entity-type",
        "users",
        "--entity-name",
        "admin",
        "--add-config",
        "SCRAM-SHA-512=[password=mine]",
    ];
    java.tool(tool::CONFIGS, &mallory, &alter)?
        .refused("authorization")?;
    java.tool(
        tool::CONSUMER_GROUPS,
        &mallory,
        &[
            "--describe",
            "--group",
            "analytics-service",
            "--timeout",
            "30000",
        ],
    )?
    .says("GroupAuthorizationException")?;
    let seen = Kcat::new(&admin)?
        .consume("user-events", &[])?
        .success()?
        .stdout;
    assert_eq!(seen, "secret\n");
    Ok(())
}

/// A quota for one user and client id: the clients are told to wait, another client id of the same user is not.
///
/// What is asserted is what the broker told the clients and counted, not how long anything took.
#[test]
fn quotas_throttle_the_client_they_name() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "load"])?
        .success()?;
    let alice = broker.user(&mut java, "alice")?;
    let allow = [
        "--add",
        "--allow-principal",
        "User:alice",
        "--operation",
        "All",
        "--topic",
        "load",
    ];
    java.tool(tool::ACLS, &admin, &allow)?.success()?;
    let quota = [
        "--alter",
        "--add-config",
        "producer_byte_rate=65536,consumer_byte_rate=65536",
        "--entity-type",
        "users",
        "--entity-name",
        "alice",
        "--entity-type",
        "clients",
        "--entity-name",
        "client-1",
    ];
    java.tool(tool::CONFIGS, &admin, &quota)?.success()?;
    let kcat = Kcat::new(&alice)?;
    // 1.4 MB in batches of 64 KB: more than the rate over Kafka's whole window of ten seconds, so that it is overdrawn whatever the
    // speed of the machine.
    let line = "x".repeat(999);
    let lines: String = (0..1400).map(|_| format!("{line}\n")).collect();
    let more = [
        "-v",
        "-X",
        "batch.size=65536",
        "-X",
        "message.timeout.ms=120000",
    ];
    let free = kcat
        .produce(
            "load",
            &lines,
            &[&more[..], &["-X", "client.id=client-2"]].concat(),
        )?
        .success()?;
    assert!(
        !free.stderr.contains("throttled request"),
        "{}",
        free.stderr
    );
    let held = kcat
        .produce(
            "load",
            &lines,
            &[&more[..], &["-X", "client.id=client-1"]].concat(),
        )?
        .success()?;
    assert!(throttled_ms(&held.stderr) > 0, "{}", held.stderr);
    // It asks for 1 MiB at a time, more than it may have in a whole window.
    let read = ["-v", "-c", "1000", "-X", "client.id=client-1"];
    let read = kcat
        .run(
            &[&["-C", "-t", "load", "-o", "beginning", "-e"], &read[..]].concat(),
            "",
        )?
        .success()?;
    assert!(throttled_ms(&read.stderr) > 0, "{}", read.stderr);

    let perf = [
        "--topic",
        "load",
        "--num-records",
        "1000",
        "--record-size",
        "1000",
        "--throughput",
        "-1",
        "--print-metrics",
        "--command-property",
        "client.id=client-1",
        "batch.size=32768",
        "delivery.timeout.ms=120000",
    ];
    let metrics = java
        .tool(tool::PRODUCER_PERFORMANCE, &alice, &perf)?
        .success()?
        .stdout;
    let throttle = metrics
        .lines()
        .find(|line| line.contains("produce-throttle-time-max"))
        .and_then(|line| line.rsplit(':').next()?.trim().parse::<f64>().ok());
    assert!(throttle > Some(0.0), "{throttle:?} in\n{metrics}");
    Ok(())
}

/// The broker counts what it holds back, by user and client id, for Prometheus.
#[test]
fn the_admin_port_serves_health_and_metrics() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    assert_eq!(broker.http("/healthz")?.0, 200);
    assert_eq!(broker.http("/readyz")?.0, 200);
    // Who holds no certificate of the cluster authority does not see the state.
    let (status, body) = broker.http("/status")?;
    assert!(status == 401 || status == 403, "{status} {body}");
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "counted", "--partitions", "3"],
    )?
    .success()?;
    Kcat::new(&admin)?
        .produce("counted", "one\ntwo\n", &[])?
        .success()?;
    let (status, metrics) = broker.http("/metrics")?;
    assert_eq!(status, 200);
    assert!(metrics.contains("# TYPE palisade_"), "{metrics}");
    assert!(!metrics.contains("counted one"), "{metrics}");
    assert_eq!(broker.http("/nothing")?.0, 404);
    Ok(())
}

/// Certificates: the principal is the subject, and an authority the broker does not trust proves nothing.
#[test]
fn a_client_certificate_is_a_principal() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(
        tool::TOPICS,
        &admin,
        &["--create", "--topic", "user-events"],
    )?
    .success()?;
    let bob = Kcat::new(&broker.client("bob", &Login::Certificate(broker.certificate("bob")?))?)?;
    bob.produce("user-events", "early\n", &[])?
        .refused("topic authorization failed")?;
    let allow = [
        "--add",
        "--allow-principal",
        "User:CN=bob",
        "--operation",
        "Write",
        "--topic",
        "user-events",
    ];
    java.tool(tool::ACLS, &admin, &allow)?.success()?;
    bob.produce("user-events", "signed\n", &[])?.success()?;

    let stranger = Broker::start()?;
    let forged = broker.client("forged", &Login::Certificate(stranger.certificate("bob")?))?;
    let refused = Kcat::new(&forged)?.run(&["-L", "-m", "4"], "")?;
    assert_ne!(refused.status, 0, "{}", refused.text());
    let seen = Kcat::new(&admin)?
        .consume("user-events", &[])?
        .success()?
        .stdout;
    assert_eq!(seen, "signed\n");
    Ok(())
}

/// A client's certificate that has expired is refused, and the broker's log says why. When the broker's own has, the log says so, clients refuse it, and a new one in
/// its place is used without a restart.
#[test]
fn an_expired_certificate_is_refused_and_named() -> Result<()> {
    let broker = Broker::start()?;
    let late = Login::Certificate(broker.certificate_until("late", 2021)?);
    let late = Kcat::new(&broker.client("late", &late)?)?;
    let refused = late.run(&["-L", "-m", "4"], "")?;
    assert_ne!(refused.status, 0, "{}", refused.text());
    wait_until("the log names the reason", PATIENCE, || {
        let log = broker.log();
        let mut lines = log.lines();
        let named = lines.any(|it| it.contains("TLS handshake failed") && it.contains("expired"));
        ensure!(named, "{log}");
        Ok(())
    })?;
    assert!(broker.metric("palisade_tls_handshake_failures_total")? >= 1.0);

    let admin = Kcat::new(&broker.admin())?;
    admin.run(&["-L", "-m", "30"], "")?.success()?;
    let config = broker.config()?;
    let files = config.listeners[0].tls.as_ref().context("TLS is on")?;
    let standing = (fs::read(&files.certificate)?, fs::read(&files.key)?);
    let expired = broker.certificate_until("localhost", 2021)?;
    let replace = |certificate: &[u8], key: &[u8]| -> Result<()> {
        fs::write(&files.certificate, certificate)?;
        Ok(fs::write(&files.key, key)?)
    };
    replace(&fs::read(expired.certificate)?, &fs::read(expired.key)?)?;
    wait_until("the broker says it", PATIENCE, || {
        let log = broker.log();
        ensure!(log.contains("the certificate has expired"), "{log}");
        Ok(())
    })?;
    told(&admin, "certificate verify failed")?.refused("certificate verify failed")?;
    replace(&standing.0, &standing.1)?;
    wait_until("all is well again", PATIENCE, || {
        let problems = broker.status()?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        admin.run(&["-L", "-m", "10"], "")?.success()
    })?;
    Ok(())
}

/// Without TLS nothing is served; with TLS but no login nothing is served either; TLS 1.2 and 1.3 both work, 1.1 does not.
#[test]
fn plaintext_and_anonymous_clients_are_refused() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let plaintext = broker.scratch().join("plaintext.conf");
    fs::write(
        &plaintext,
        format!(
            "bootstrap.servers={}\nsecurity.protocol=PLAINTEXT\n",
            broker.bootstrap()
        ),
    )?;
    let mut access = admin.clone();
    access.librdkafka = plaintext;
    let refused = Kcat::new(&access)?.run(&["-L", "-m", "4"], "")?;
    assert_ne!(refused.status, 0, "{}", refused.text());
    // A well-formed ApiVersions request in the clear gets no Kafka answer, at most a TLS alert.
    let mut socket = TcpStream::connect(("127.0.0.1", broker.port()))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff])?;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert!(
        answer.len() < 32 && answer.first().is_none_or(|byte| *byte == 21),
        "{answer:?}"
    );

    let anonymous = Kcat::new(&broker.client("anonymous", &Login::Anonymous)?)?;
    let refused = anonymous.run(&["-L", "-m", "4"], "")?;
    assert_ne!(refused.status, 0, "{}", refused.text());

    for (version, works) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false)] {
        let mut client = Command::new("openssl");
        client.args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{}", broker.port()),
            "-CAfile",
        ]);
        client.arg(broker.authority()).args([
            "-verify_return_error",
            "-verify_hostname",
            "localhost",
            "-brief",
            version,
        ]);
        // Old versions need the client's own security level lowered, otherwise it would not even ask.
        client.args(["-cipher", "DEFAULT:@SECLEVEL=0"]);
        let outcome = run(&mut client, b"", PATIENCE)?;
        assert_eq!(
            outcome.text().contains("CONNECTION ESTABLISHED"),
            works,
            "{version}: {}",
            outcome.text()
        );
    }
    Ok(())
}

/// The sum of the waits that the broker asked a kcat for.
fn throttled_ms(log: &str) -> u64 {
    log.lines()
        .filter_map(|line| {
            line.split_once("throttled request for ")?
                .1
                .strip_suffix("ms")?
                .parse::<u64>()
                .ok()
        })
        .sum()
}
