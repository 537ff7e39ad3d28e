//! Bytes that no client sends, to the real binary over TLS: it says what was wrong, closes that connection, and serves the others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use palisade_config::BrokerConfig;
use palisade_e2e::{
    progress::say,
    tools::{Answer, Broker, Java, Kcat, RawClient, tool, wait_until},
};

const PRODUCE: i16 = 0;
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;

/// The broker closed the connection and logged this.
fn closed_with(broker: &Broker, client: &mut RawClient, message: &str) -> Result<()> {
    let rest = client.rest()?;
    anyhow::ensure!(rest.is_empty(), "{message}: the broker answered {rest:?}");
    wait_until("the broker's log says why", Duration::from_secs(30), || {
        let log = broker.log();
        anyhow::ensure!(log.contains(message), "`{message}` is not in\n{log}");
        Ok(())
    })
}

/// Frames whose length is wrong, before and after a login, never reserve what they announce.
#[test]
fn frames_of_impossible_length_are_refused_unread() -> Result<()> {
    let broker = Broker::start()?;
    let id = broker.id().context("it runs")?;
    for (length, message) in [
        (
            i32::MAX,
            "frame of 2147483647 bytes is over the limit of 65532",
        ),
        (-1, "frame of -1 bytes is over the limit"),
        (65_533, "frame of 65533 bytes is over the limit of 65532"),
    ] {
        let mut client = broker.raw()?;
        client.send(&length.to_be_bytes())?;
        closed_with(&broker, &mut client, message)?;
    }
    let mut client = broker.raw_admin()?;
    client.send(&(100 * 1024 * 1024 + 1_i32).to_be_bytes())?;
    closed_with(
        &broker,
        &mut client,
        "frame of 104857601 bytes is over the limit of 104857600",
    )?;
    let mut client = broker.raw()?;
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    closed_with(
        &broker,
        &mut client,
        "the client speaks HTTP, but this is a Kafka port",
    )?;
    let mut client = broker.raw()?;
    client.send_frame(&[0, 18])?;
    closed_with(
        &broker,
        &mut client,
        "a frame of 2 bytes is too short for a request header",
    )?;

    // Fifty clients that announce 90 MB each and send a few bytes.
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut client = broker.raw_admin()?;
        client.send(&(90 * 1024 * 1024_i32).to_be_bytes())?;
        client.send(&[0; 64])?;
        waiting.push(client);
    }
    let resident = resident_bytes(id)?;
    assert!(resident < 512 << 20, "{resident} bytes are resident");
    drop(waiting);
    assert_eq!(broker.id(), Some(id));
    Kcat::new(&broker.admin())?.metadata()?;
    Ok(())
}

/// API keys and versions that the broker does not have.
#[test]
fn unknown_apis_and_versions_are_named() -> Result<()> {
    let broker = Broker::start()?;
    let mut client = broker.raw_admin()?;
    client.send_frame(&header(9999, 0))?;
    closed_with(&broker, &mut client, "unknown or unsupported api key 9999")?;
    let mut client = broker.raw_admin()?;
    client.send_frame(&header(-5, 3))?;
    closed_with(&broker, &mut client, "unknown or unsupported api key -5")?;
    let mut client = broker.raw_admin()?;
    client.send_frame(&header(METADATA, 77))?;
    closed_with(
        &broker,
        &mut client,
        "Metadata version 77 is not supported: this broker speaks 0 to ",
    )?;
    // ApiVersions is where clients learn what is spoken: an unknown version of it is answered in version 0 (KIP-511).
    let mut client = broker.raw()?;
    let answer = client.request(API_VERSIONS, 99, &[])?.frame()?;
    assert_eq!(answer.get(4..6), Some(&[0, 35][..]), "{answer:?}");
    let apis = client.request(API_VERSIONS, 0, &[])?.frame()?;
    assert_eq!(apis.get(4..6), Some(&[0, 0][..]), "{apis:?}");
    Ok(())
}

/// Requests before a login, and logins that are none.
#[test]
fn nothing_is_served_before_authentication() -> Result<()> {
    let broker = Broker::start()?;
    let mut client = broker.raw()?;
    client.send_frame(&[&header(METADATA, 1)[..], &[0xff; 4]].concat())?;
    closed_with(&broker, &mut client, "Metadata before authentication")?;
    let mut client = broker.raw()?;
    client.send_frame(&[&header(36, 0)[..], &[0, 0, 0, 1, 0]].concat())?;
    assert_closed_or_refused(client.answer()?, "SaslAuthenticate before SaslHandshake");

    let mut client = broker.raw()?;
    let unknown = client.request(17, 1, b"\x00\x06GSSAPI")?.frame()?;
    assert_eq!(unknown.get(4..6), Some(&[0, 33][..]), "{unknown:?}");
    for message in [
        &b""[..],
        b"\0",
        b"\0\0\0",
        b"no zero bytes",
        b"\0admin",
        b"\0admin\0",
        &[0xff; 300],
        b"n,,n=admin,r=x",
    ] {
        let mut client = broker.raw()?;
        let handshake = client.request(17, 1, b"\x00\x05PLAIN")?.frame()?;
        assert_eq!(handshake.get(4..6), Some(&[0, 0][..]));
        let length = u32::try_from(message.len())?.to_be_bytes();
        assert_closed_or_refused(
            client.request(36, 0, &[&length, message].concat())?,
            "PLAIN",
        );
    }
    for message in [
        &b"n,,n=admin"[..],
        b"p=tls-unique,,n=admin,r=x",
        b"n,,n=,r=x",
        b"n,,n=admin,r=",
        &[b'x'; 9000],
        &[0xc3, 0x28],
    ] {
        let mut client = broker.raw()?;
        let handshake = client.request(17, 1, b"\x00\x0dSCRAM-SHA-512")?.frame()?;
        assert_eq!(handshake.get(4..6), Some(&[0, 0][..]));
        let length = u32::try_from(message.len())?.to_be_bytes();
        assert_closed_or_refused(
            client.request(36, 0, &[&length, message].concat())?,
            "SCRAM",
        );
    }
    broker.raw_admin()?;
    Ok(())
}

/// Bodies that do not decode: absurd counts, negative lengths, and bytes cut off.
#[test]
fn malformed_bodies_are_named_and_reserve_nothing() -> Result<()> {
    let broker = Broker::start()?;
    let id = broker.id().context("it runs")?;
    for (body, message) in [
        (
            &[0x7f, 0xff, 0xff, 0xff][..],
            "malformed Metadata version 1",
        ),
        (&[0, 0, 0, 2, 0, 1, b'a'], "malformed Metadata version 1"),
        (&[0, 0, 0, 1, 0x80, 0, b'a'], "malformed Metadata version 1"),
    ] {
        let mut client = broker.raw_admin()?;
        client.send_frame(&[&header(METADATA, 1)[..], body].concat())?;
        closed_with(&broker, &mut client, message)?;
    }
    let resident = resident_bytes(id)?;
    assert!(resident < 512 << 20, "{resident} bytes are resident");
    Ok(())
}

/// A batch whose checksum is wrong is refused with CORRUPT_MESSAGE and not stored.
#[test]
fn a_batch_with_a_wrong_checksum_is_not_stored() -> Result<()> {
    let broker = Broker::start()?;
    let admin = broker.admin();
    let mut java = Java::lease()?;
    java.tool(tool::TOPICS, &admin, &["--create", "--topic", "checked"])?
        .success()?;
    let mut client = broker.raw_admin()?;
    let good = batch(b"good");
    assert_eq!(
        produce(&mut client, &good)?,
        0,
        "the batch is right as it is"
    );
    for position in [17, 21, 60, good.len() - 1] {
        let mut bad = good.clone();
        *bad.get_mut(position).context("a position in the batch")? ^= 0x20;
        let code = produce(&mut client, &bad)?;
        // CORRUPT_MESSAGE, or INVALID_RECORD where the length of a part is what was changed.
        assert!(
            code == 2 || code == 87,
            "byte {position} changed: error code {code}"
        );
    }
    let seen = Kcat::new(&admin)?
        .consume("checked", &[])?
        .success()?
        .stdout;
    assert_eq!(seen, "good\n");
    Ok(())
}

/// Configurations that contradict themselves or the data: the broker does not start and says what to write instead.
#[test]
fn a_configuration_that_cannot_work_is_refused_at_start() -> Result<()> {
    let mut broker = Broker::start()?;
    broker.stop()?;
    let mut refused = |message: &str, change: fn(&mut BrokerConfig)| -> Result<()> {
        broker.configure(change)?;
        let (status, log) = broker.launch_refused()?;
        anyhow::ensure!(
            status != 0 && log.contains(message),
            "`{message}` is not in\n{log}"
        );
        Ok(())
    };
    refused("PLAIN", |config| config.listeners[0].tls = None)?;
    refused("node.cluster_id", |config| {
        config.node.cluster_id = "another".to_owned()
    })?;
    refused("no listener is configured", |config| {
        config.listeners.clear()
    })?;
    refused("missing.crt", |config| {
        if let Some(tls) = &mut config.listeners[0].tls {
            tls.certificate = "/nowhere/missing.crt".into();
        }
    })?;
    Ok(())
}

/// Frames from a fixed sequence of random numbers, with and without the beginning of a valid header: the broker is the same process at the end. It closes a
/// connection at the first malformed frame, so each frame has one of its own; read is what the broker counted as malformed, or answered.
#[test]
fn random_frames_never_end_the_broker() -> Result<()> {
    const FRAMES: u32 = 300;
    let broker = Broker::start()?;
    let id = broker.id().context("it runs")?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut answered = 0_u32;
    for _ in 0..FRAMES {
        let length = usize::try_from(random() % 200)?;
        let mut frame: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[0]).collect();
        if random() % 4 != 0 && frame.len() >= 4 {
            let key = u8::try_from(random() % 76)?;
            frame.splice(..4, [0, key, 0, u8::try_from(random() % 14)?]);
        }
        let mut client = broker.raw_admin()?;
        client.send_frame(&frame)?;
        // A request that happens to be valid may also wait for something.
        if matches!(client.answer(), Ok(Answer::Frame(_))) {
            answered += 1;
        }
    }
    let malformed = broker.metric("palisade_malformed_requests_total")?;
    say(format_args!(
        "of {FRAMES} frames {malformed} were malformed and {answered} answered"
    ));
    assert!(
        malformed + f64::from(answered) >= f64::from(FRAMES) * 0.95,
        "{malformed} of {FRAMES} frames were malformed and {answered} answered:\n{}",
        broker.log()
    );
    // A process that has ended and was not waited for has no memory.
    resident_bytes(id).with_context(|| broker.log())?;
    assert!(!broker.log().contains("panicked"), "{}", broker.log());
    Kcat::new(&broker.admin())?.metadata()?;
    Ok(())
}

fn assert_closed_or_refused(answer: Answer, what: &str) {
    if let Answer::Frame(frame) = answer {
        let code = frame
            .get(4..6)
            .map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
        assert!(code.is_some_and(|code| code != 0), "{what}: {frame:?}");
    }
}

/// A request header of version 1: API key, version, correlation id, client id.
fn header(key: i16, version: i16) -> Vec<u8> {
    [
        &key.to_be_bytes()[..],
        &version.to_be_bytes(),
        &[0, 0, 0, 7],
        &[0, 3],
        b"raw",
    ]
    .concat()
}

/// Produces one batch to partition 0 of `checked` with version 3; the partition's error code.
fn produce(client: &mut RawClient, batch: &[u8]) -> Result<i16> {
    let length = u32::try_from(batch.len())?.to_be_bytes();
    let body = [
        &[0xff, 0xff][..],   // no transactional id
        &[0xff, 0xff],       // acks: all
        &[0, 0, 0x27, 0x10], // ten seconds
        &[0, 0, 0, 1, 0, 7], // one topic
        b"checked",
        &[0, 0, 0, 1, 0, 0, 0, 0], // one partition: 0
        &length,
        batch,
    ]
    .concat();
    let answer = client.request(PRODUCE, 3, &body)?.frame()?;
    // Correlation id, topics, name, partitions, index: 4 + 4 + (2 + 7) + 4 + 4 bytes.
    let code = answer.get(25..27).context("a short answer")?;
    Ok(i16::from_be_bytes([code[0], code[1]]))
}

/// A record batch (magic 2, uncompressed) with one record without key.
fn batch(value: &[u8]) -> Vec<u8> {
    let zigzag = |number: usize| u8::try_from(number * 2).expect("a small number");
    let record = [&[0, 0, 0, 1, zigzag(value.len())][..], value, &[0]].concat();
    let checked = [
        &[0, 0][..],                          // attributes
        &[0, 0, 0, 0],                        // last offset delta
        &1_700_000_000_000_i64.to_be_bytes(), // first timestamp
        &1_700_000_000_000_i64.to_be_bytes(), // last timestamp
        &(-1_i64).to_be_bytes(),              // no producer id
        &(-1_i16).to_be_bytes(),
        &(-1_i32).to_be_bytes(),
        &1_u32.to_be_bytes(), // one record
        &[zigzag(record.len())],
        &record,
    ]
    .concat();
    let length = u32::try_from(4 + 1 + 4 + checked.len()).expect("a small batch");
    [
        &0_i64.to_be_bytes()[..],
        &length.to_be_bytes(),
        &(-1_i32).to_be_bytes(),
        &[2],
        &crc32c(&checked).to_be_bytes(),
        &checked,
    ]
    .concat()
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    })
}

/// Resident memory of a process.
fn resident_bytes(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .context("no VmRSS")?;
    Ok(kilobytes * 1024)
}
