//! The load: as much as goes, at a rate, and reading back. Everything is bounded in time.

use std::{
    ops::Range,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    librdkafka::{Consumer, Producer, Sent},
    proc::{CpuMeter, Usage},
    stats::Latencies,
    systems::Access,
};

/// Longest time without any progress.
const STALL: Duration = Duration::from_secs(60);
/// Records queued between two looks at the clock and at deliveries.
const BURST: u64 = 256;

/// Bytes that no compression makes smaller; records are windows of it, so that neighbours differ.
static NOISE: LazyLock<&'static [u8]> = LazyLock::new(|| {
    let mut bytes = vec![0; 8 << 20];
    // Without randomness all records are alike, which hurts nobody: nothing compresses here.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes.leak()
});

/// The payload of the record with this number.
fn payload(number: u64, size: usize) -> &'static [u8] {
    let noise: &'static [u8] = &NOISE;
    let windows = (noise.len() / size).max(1) as u64;
    let from = usize::try_from(number % windows).unwrap_or(0) * size;
    noise.get(from..from + size).unwrap_or(noise)
}

/// Who is loaded.
#[derive(Clone, Debug)]
pub struct Target {
    pub access: Access,
    /// The brokers' processes.
    pub pids: Vec<u32>,
}

/// Which partition a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One after the other, of so many per topic.
    InTurn(i32),
    /// As librdkafka does for records without a key: it stays with one for 10 ms. Of several topics, one is written to at a time, for about as long: with a record to
    /// each in turn, batches would be smaller by as much as there are topics, and what is compared would be that.
    Sticky,
}

/// Records that go to one topic before it is the next one's turn.
const RUN: u64 = 640;

/// How long to run before, and while, measuring.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub warm: Duration,
    pub measure: Duration,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Stream {
    pub topics: Vec<String>,
    pub choice: Choice,
    pub size: usize,
}

impl Stream {
    fn partition(&self, number: u64) -> (usize, i32) {
        let topics = self.topics.len().max(1) as u64;
        let (topic, partition) = match self.choice {
            Choice::Sticky => (number / RUN % topics, -1),
            Choice::InTurn(count) => {
                let count = u64::from(count.unsigned_abs()).max(1);
                let partition = i32::try_from(number / topics % count).unwrap_or(0);
                (number % topics, partition)
            }
        };
        (usize::try_from(topic).unwrap_or(0), partition)
    }
}

/// A stream at full speed.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    /// Records acknowledged, or read, while measuring.
    pub records: u64,
    /// Records that librdkafka gave up.
    pub failed: u64,
    pub megabytes_per_second: f64,
    /// CPU of all brokers per record.
    pub broker_micros_per_record: f64,
    pub usage: Usage,
}

impl Throughput {
    fn new(records: u64, bytes: u64, failed: u64, usage: Usage) -> Self {
        Self {
            records,
            failed,
            megabytes_per_second: bytes as f64 / 1e6 / usage.elapsed.as_secs_f64(),
            broker_micros_per_record: usage.brokers * 1e6 / records as f64,
            usage,
        }
    }
}

fn producer(access: &Access, stream: &Stream) -> Result<Producer> {
    let mut settings = access.settings();
    for (key, value) in [
        ("acks", "all"),
        // Deep enough that brokers never wait, small enough to be flat in memory.
        ("queue.buffering.max.messages", "200000"),
        ("queue.buffering.max.kbytes", "131072"),
        ("message.timeout.ms", "60000"),
        // Only matters while brokers start.
        ("reconnect.backoff.ms", "20"),
        ("reconnect.backoff.max.ms", "200"),
    ] {
        settings.push((key.to_owned(), value.to_owned()));
    }
    Producer::new(&settings, &stream.topics)
}

fn consumer(access: &Access, topic: &str, partitions: i32) -> Result<Consumer> {
    let mut settings = access.settings();
    for (key, value) in [
        // A consumer must have a group id, though it joins none.
        ("group.id", "bench"),
        ("enable.auto.commit", "false"),
        // librdkafka's defaults, written down since latency hangs on them: an answer as soon as there is a record.
        ("fetch.min.bytes", "1"),
        ("fetch.wait.max.ms", "500"),
        // By default 1 s: a pause of the generator, when it did not keep up for a moment.
        ("fetch.queue.backoff.ms", "10"),
    ] {
        settings.push((key.to_owned(), value.to_owned()));
    }
    Consumer::new(&settings, topic, partitions)
}

/// Sends as fast as the brokers acknowledge, with librdkafka's default batching.
pub fn produce(target: &Target, stream: &Stream, timing: Timing) -> Result<Throughput> {
    let producer = producer(&target.access, stream)?;
    let start = Instant::now();
    let (mut sent, mut acknowledged, mut failed) = (0, 0_u64, 0_u64);
    let mut meter: Option<(CpuMeter, u64)> = None;
    let mut progress = Instant::now();
    let result = loop {
        let full = send_burst(&producer, stream, &mut sent, u64::MAX)?;
        let before = acknowledged;
        producer.poll(if full { 5 } else { 0 }, |delivery| {
            if delivery.acknowledged {
                acknowledged += 1;
            } else {
                failed += 1;
            }
        })?;
        if acknowledged > before {
            progress = Instant::now();
        } else if progress.elapsed() > STALL {
            bail!("no record was acknowledged for {STALL:?} ({failed} failed)");
        }
        match &meter {
            None if start.elapsed() >= timing.warm => {
                meter = Some((CpuMeter::start(&target.pids)?, acknowledged));
            }
            Some((meter, from)) if start.elapsed() >= timing.warm + timing.measure => {
                let records = acknowledged - from;
                let bytes = records * stream.size as u64;
                break Throughput::new(records, bytes, failed, meter.usage()?);
            }
            _ => {}
        }
    };
    producer.purge()?;
    if result.records == 0 {
        bail!("no record was acknowledged while measuring ({failed} failed)");
    }
    Ok(result)
}

/// Queues some records; true when the queue is full.
fn send_burst(producer: &Producer, stream: &Stream, sent: &mut u64, limit: u64) -> Result<bool> {
    for _ in 0..BURST {
        if *sent >= limit {
            return Ok(true);
        }
        let (topic, partition) = stream.partition(*sent);
        match producer.send(topic, partition, payload(*sent, stream.size), 0)? {
            Sent::Queued => *sent += 1,
            Sent::Full => return Ok(true),
        }
    }
    Ok(false)
}

/// Sends so many records and waits until all are acknowledged.
pub fn fill(target: &Target, stream: &Stream, records: u64) -> Result<()> {
    let producer = producer(&target.access, stream)?;
    let (mut sent, mut acknowledged, mut failed) = (0, 0_u64, 0_u64);
    let mut progress = Instant::now();
    while acknowledged < records {
        let full = send_burst(&producer, stream, &mut sent, records)?;
        let before = acknowledged;
        producer.poll(if full { 5 } else { 0 }, |delivery| {
            if delivery.acknowledged {
                acknowledged += 1;
            } else {
                failed += 1;
            }
        })?;
        if failed > 0 {
            producer.purge()?;
            bail!("{failed} records were not acknowledged");
        }
        if acknowledged > before {
            progress = Instant::now();
        } else if progress.elapsed() > STALL {
            producer.purge()?;
            bail!("no record was acknowledged for {STALL:?}");
        }
    }
    Ok(())
}

/// Reads so many records from the beginning, timed from the first one to the last.
pub fn consume(target: &Target, topic: &str, partitions: i32, records: u64) -> Result<Throughput> {
    let mut consumer = consumer(&target.access, topic, partitions)?;
    let (mut read, mut bytes) = (0_u64, 0_u64);
    let mut meter: Option<(CpuMeter, u64, u64)> = None;
    let mut progress = Instant::now();
    while read < records {
        let before = read;
        consumer.poll(100, |_, payload| {
            read += 1;
            bytes += payload.len() as u64;
        })?;
        if read > before {
            progress = Instant::now();
            if meter.is_none() {
                meter = Some((CpuMeter::start(&target.pids)?, read, bytes));
            }
        } else if progress.elapsed() > STALL {
            bail!("only {read} of {records} records were read");
        }
    }
    let (meter, first_records, first_bytes) = meter.context("nothing was read")?;
    Ok(Throughput::new(
        read - first_records,
        bytes - first_bytes,
        0,
        meter.usage()?,
    ))
}

/// Latencies of a stream at a fixed rate.
#[derive(Clone, Debug)]
pub struct Paced {
    pub latencies: Latencies,
    pub usage: Usage,
}

/// The moments at which records are due, whether or not earlier ones were delayed: a broker that stalls is not asked less.
struct Schedule {
    start: Instant,
    /// The record that is due at the start.
    first: u64,
    nanos_per_record: u64,
}

impl Schedule {
    fn new(start: Instant, first: u64, per_second: u32) -> Self {
        Self {
            start,
            first,
            nanos_per_record: 1_000_000_000 / u64::from(per_second.max(1)),
        }
    }

    fn due(&self, number: u64) -> Instant {
        let before = number.saturating_sub(self.first);
        self.start + Duration::from_nanos(before * self.nanos_per_record)
    }

    /// Microseconds from when the record was due until this moment.
    fn lateness(&self, number: u64, seen: Instant) -> u32 {
        let late = seen.saturating_duration_since(self.due(number));
        u32::try_from(late.as_micros()).unwrap_or(u32::MAX)
    }
}

/// Numbers of the records that only warm up, and of those that are measured.
fn numbers(timing: Timing, per_second: u32) -> (Range<u64>, Range<u64>) {
    let count = |time: Duration| (time.as_secs_f64() * f64::from(per_second)) as u64;
    let first = count(timing.warm);
    (0..first, first..first + count(timing.measure))
}

/// Waits until nothing is under way, so that what is measured does not begin with what was left before.
fn drain(what: &str, left: impl Fn() -> u64) -> Result<()> {
    let start = Instant::now();
    while left() > 0 {
        if start.elapsed() > STALL {
            let left = left();
            bail!("{left} records were not {what} {STALL:?} after the last");
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Sends at a rate, with librdkafka's default batching (`linger.ms=5`); latency is from the moment a record is due until its acknowledgement is seen.
pub fn produce_paced(
    target: &Target,
    stream: &Stream,
    per_second: u32,
    timing: Timing,
) -> Result<Paced> {
    let producer = producer(&target.access, stream)?;
    let (warm, measured) = numbers(timing, per_second);
    let first = measured.start;
    // Made when all that is before it has been acknowledged.
    let schedule: OnceLock<Schedule> = OnceLock::new();
    let finished = AtomicBool::new(false);
    let outstanding = AtomicU64::new(0);
    thread::scope(|scope| {
        let poller = scope.spawn(|| {
            let (mut latencies, mut failed) = (Vec::new(), 0_u64);
            while !finished.load(Ordering::Acquire) {
                producer.poll(50, |delivery| {
                    outstanding.fetch_sub(1, Ordering::AcqRel);
                    if !delivery.acknowledged {
                        failed += 1;
                    } else if delivery.tag >= first
                        && let Some(schedule) = schedule.get()
                    {
                        latencies.push(schedule.lateness(delivery.tag, Instant::now()));
                    }
                })?;
            }
            anyhow::Ok((latencies, failed))
        });
        let send = |schedule: &Schedule, numbers: Range<u64>| {
            for number in numbers {
                sleep_until(schedule.due(number));
                outstanding.fetch_add(1, Ordering::AcqRel);
                let (topic, partition) = stream.partition(number);
                if producer.send(topic, partition, payload(number, stream.size), number)?
                    == Sent::Full
                {
                    bail!("the brokers are too slow for {per_second} records per second");
                }
            }
            Ok(())
        };
        let acknowledged = || drain("acknowledged", || outstanding.load(Ordering::Acquire));
        let pace = || {
            send(&Schedule::new(Instant::now(), 0, per_second), warm)?;
            acknowledged()?;
            let meter = CpuMeter::start(&target.pids)?;
            let schedule =
                schedule.get_or_init(|| Schedule::new(Instant::now(), first, per_second));
            send(schedule, measured)?;
            let usage = meter.usage()?;
            acknowledged()?;
            anyhow::Ok(usage)
        };
        let paced = pace();
        finished.store(true, Ordering::Release);
        let polled = joined(poller.join());
        producer.purge()?;
        let (usage, (latencies, failed)) = (paced?, polled?);
        // A record that was given up has no latency: without it, the others' would look better than it was.
        if failed > 0 {
            bail!("{failed} records were not acknowledged");
        }
        Ok(Paced {
            latencies: Latencies::new(latencies),
            usage,
        })
    })
}

/// Sends to one topic at a rate and reads at the same time; latency is from the moment a record is due until the consumer has it.
pub fn end_to_end(
    target: &Target,
    stream: &Stream,
    partitions: i32,
    per_second: u32,
    timing: Timing,
) -> Result<Paced> {
    let producer = producer(&target.access, stream)?;
    let topic = stream.topics.first().context("no topic")?;
    let mut consumer = consumer(&target.access, topic, partitions)?;
    let (warm, measured) = numbers(timing, per_second);
    let (first, total) = (measured.start, measured.end);
    // Made when all that is before it has been read.
    let schedule: OnceLock<Schedule> = OnceLock::new();
    let read = AtomicU64::new(0);
    let left = |until: u64| until.saturating_sub(read.load(Ordering::Acquire));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut latencies = Vec::new();
            let mut progress = Instant::now();
            while left(total) > 0 && progress.elapsed() < STALL / 2 {
                consumer.poll(50, |received, payload| {
                    progress = received;
                    read.fetch_add(1, Ordering::AcqRel);
                    let number = payload.first_chunk().copied().map(u64::from_be_bytes);
                    if let Some(number) = number.filter(|number| *number >= first)
                        && let Some(schedule) = schedule.get()
                    {
                        latencies.push(schedule.lateness(number, received));
                    }
                })?;
            }
            anyhow::Ok(latencies)
        });
        let send = |schedule: &Schedule, numbers: Range<u64>| {
            let mut record = payload(0, stream.size).to_vec();
            for number in numbers {
                sleep_until(schedule.due(number));
                if let Some(head) = record.first_chunk_mut() {
                    *head = number.to_be_bytes();
                }
                let (topic, partition) = stream.partition(number);
                if producer.send_copy(topic, partition, &record, number)? == Sent::Full {
                    bail!("the brokers are too slow for {per_second} records per second");
                }
                producer.poll(0, |_| {})?;
            }
            Ok(())
        };
        let pace = || {
            send(&Schedule::new(Instant::now(), 0, per_second), warm)?;
            drain("read", || left(first))?;
            let meter = CpuMeter::start(&target.pids)?;
            let schedule =
                schedule.get_or_init(|| Schedule::new(Instant::now(), first, per_second));
            send(schedule, measured)?;
            meter.usage()
        };
        let paced = pace();
        let latencies = joined(reader.join());
        producer.purge()?;
        let (usage, latencies) = (paced?, latencies?);
        let lost = left(total);
        if lost > 0 {
            bail!("{lost} of {total} records were not read");
        }
        Ok(Paced {
            latencies: Latencies::new(latencies),
            usage,
        })
    })
}

fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| bail!("a thread of the load generator failed"))
}

fn sleep_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(topics: usize, choice: Choice) -> Stream {
        Stream {
            topics: vec!["t".to_owned(); topics],
            choice,
            size: 100,
        }
    }

    #[test]
    fn records_in_turn_reach_every_partition_of_every_topic() {
        let stream = stream(2, Choice::InTurn(3));
        let all: Vec<_> = (0..7).map(|number| stream.partition(number)).collect();
        assert_eq!(
            all,
            [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 0)]
        );
        assert_eq!(self::stream(1, Choice::Sticky).partition(9), (0, -1));
        let topics: Vec<_> = [0, RUN - 1, RUN, 2 * RUN]
            .map(|number| self::stream(2, Choice::Sticky).partition(number).0)
            .into();
        assert_eq!(topics, [0, 0, 1, 0]);
    }

    #[test]
    fn payloads_have_their_size_and_differ() {
        for size in [100, 1024, 10_240] {
            assert_eq!(payload(u64::MAX, size).len(), size);
            assert_ne!(payload(0, size), payload(1, size));
        }
    }

    #[test]
    fn a_late_generator_does_not_move_the_schedule() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 0, 500);
        assert_eq!(schedule.due(500), start + Duration::from_secs(1));
        let late = start + Duration::from_millis(1003);
        assert_eq!(schedule.lateness(500, late), 3000);
        assert_eq!(schedule.lateness(502, start), 0);
        // What is measured begins anew.
        let later = start + Duration::from_secs(9);
        assert_eq!(Schedule::new(later, 700, 500).due(700), later);
    }

    #[test]
    fn throughput_is_per_second_and_cpu_per_record() {
        let usage = Usage {
            elapsed: Duration::from_secs(2),
            brokers: 1.0,
            generator: 0.5,
            others: 0.0,
        };
        let result = Throughput::new(100_000, 100_000_000, 0, usage);
        assert!((result.megabytes_per_second - 50.0).abs() < 1e-9);
        assert!((result.broker_micros_per_record - 10.0).abs() < 1e-9);
    }
}
