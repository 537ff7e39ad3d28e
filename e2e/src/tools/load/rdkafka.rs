//! librdkafka's producer, through kcat.
//!
//! kcat takes a record a line, reports each delivery with partition, offset and broker on standard error (`-vv`), and ends with status 0 only when every line was
//! delivered. Which record a report means it does not say; but what is stored at that offset does.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Acknowledged, PATIENCE, Stored, longest_stall, now, reaches};
use crate::{
    progress::say,
    tools::{Access, Kcat, wait_until},
};

/// Records are given to kcat in such steps.
const STEP: Duration = Duration::from_millis(5);
/// Records a step, 1000 a second.
const BURST: usize = 5;
/// Bytes of a record. kcat reads 128 at a time and takes one record from each: with shorter ones it falls behind its input.
const RECORD: usize = 200;

/// As the Java producer: what a dead network swallows is given up after four seconds and sent again.
const SETTINGS: [&str; 7] = [
    "enable.idempotence=true",
    "acks=all",
    "message.timeout.ms=120000",
    "request.timeout.ms=3000",
    "socket.timeout.ms=4000",
    "reconnect.backoff.max.ms=500",
    "linger.ms=2",
];

/// What the threads around kcat and the test share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// When each record was given to kcat, ms since 1970.
    sent: Mutex<Vec<i64>>,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// What else kcat said.
    said: Mutex<String>,
}

/// An idempotent producer of 1000 records a second, each of which has to be acknowledged in the end.
#[derive(Debug)]
pub struct RdkafkaProducer {
    child: Child,
    topic: &'static str,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl RdkafkaProducer {
    /// Starts it.
    ///
    /// # Errors
    /// When kcat does not start.
    pub fn start(admin: &Access, topic: &'static str) -> Result<Self> {
        let mut command = Kcat::new(admin)?.command();
        command.args(["-P", "-E", "-vv", "-t", topic]);
        for setting in SETTINGS {
            command.args(["-X", setting]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kcat")?;
        let (input, output) = (child.stdin.take(), child.stderr.take());
        let shared = Arc::new(Shared::default());
        // From here on, kcat ends with the value.
        let mut producer = Self {
            child,
            topic,
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let (input, output) = input.zip(output).context("kcat has no pipes")?;
        let fed = Arc::clone(&shared);
        producer
            .threads
            .push(thread::spawn(move || feed(input, &fed)));
        producer
            .threads
            .push(thread::spawn(move || listen(output, &shared)));
        Ok(producer)
    }

    /// Waits for this many more acknowledgements.
    ///
    /// # Errors
    /// When they do not come, with what kcat said.
    pub fn goes_on(&self, more: usize) -> Result<()> {
        self.reaches(self.count() + more)
    }

    /// How many records are acknowledged by now.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.shared.acknowledged).len()
    }

    /// Waits until so many are acknowledged in all.
    ///
    /// # Errors
    /// When they are not, with what kcat said.
    pub fn reaches(&self, count: usize) -> Result<()> {
        reaches(count, || Ok(self.count())).with_context(|| self.describe())
    }

    /// Waits until a broker acknowledges something again.
    ///
    /// # Errors
    /// When it does not, with what kcat said.
    pub fn hears_from(&self, broker: usize) -> Result<()> {
        let since = now();
        reaches(1, || Ok(self.told_by(broker, since))).with_context(|| self.describe())
    }

    /// How many records this broker has acknowledged since then, ms since 1970.
    #[must_use]
    pub fn told_by(&self, broker: usize, since: i64) -> usize {
        let told = lock(&self.shared.acknowledged);
        let own = told.iter().rev().take_while(|told| told.at >= since);
        own.filter(|told| told.broker.and_then(|id| usize::try_from(id).ok()) == Some(broker))
            .count()
    }

    /// Ends it, once everything is delivered.
    ///
    /// # Errors
    /// When a record was given up.
    pub fn stop(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let status = wait_until("kcat has delivered everything", PATIENCE, || {
            self.child.try_wait()?.context("it runs")
        })
        .with_context(|| self.describe())?;
        for thread in self.threads.drain(..) {
            ensure!(thread.join().is_ok(), "a thread beside kcat panicked");
        }
        ensure!(status.success(), "kcat: {status}\n{}", self.describe());
        Ok(())
    }

    /// Ends it, if that has not been done: every record is stored once, where the acknowledgement said, in the order of sending.
    ///
    /// # Errors
    /// When that is not so, or a record was given up.
    pub fn finish(mut self, reader: &Access) -> Result<()> {
        self.stop()?;
        let acknowledged = lock(&self.shared.acknowledged).clone();
        let sent = lock(&self.shared.sent).clone();
        let stored = Stored::read(reader, self.topic)?;
        ensure!(
            acknowledged.len() == sent.len(),
            "{} of {} records were acknowledged\n{}",
            acknowledged.len(),
            sent.len(),
            self.describe()
        );
        stored.check(&acknowledged)?;
        stored.holds_all(sent.len())?;
        say(format_args!(
            "{}: librdkafka: {} acknowledged, {} stored, longest stall {} ms, slowest record {} ms",
            self.topic,
            acknowledged.len(),
            stored.len(),
            longest_stall(&acknowledged),
            slowest(&acknowledged, &stored, &sent)
        ));
        Ok(())
    }

    fn describe(&self) -> String {
        let said = lock(&self.shared.said);
        format!("kcat to {} said:\n{said}", self.topic)
    }
}

impl Drop for RdkafkaProducer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Their pipes are closed by now.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The longest time from giving a record to kcat to its acknowledgement, ms.
fn slowest(acknowledged: &[Acknowledged], stored: &Stored, sent: &[i64]) -> i64 {
    let took = acknowledged.iter().filter_map(|told| {
        let number = stored.at(told.partition, told.offset?)?;
        Some(told.at - sent.get(usize::try_from(number).ok()?)?)
    });
    took.max().unwrap_or(0)
}

/// Gives kcat records until it is to stop, or ends.
fn feed(mut input: ChildStdin, shared: &Shared) {
    let mut next = Instant::now();
    let mut number = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        let mut lines = String::with_capacity(BURST * (RECORD + 1));
        for _ in 0..BURST {
            lines.push_str(&format!("{:x<RECORD$}\n", format!("{number} ")));
            number += 1;
        }
        // Before they are written: nothing is acknowledged that is not counted.
        lock(&shared.sent).extend([now(); BURST]);
        if input.write_all(lines.as_bytes()).is_err() {
            return;
        }
        next += STEP;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Notes what kcat reports until it ends.
fn listen(output: impl Read, shared: &Shared) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        match report(&line) {
            Some(told) => lock(&shared.acknowledged).push(told),
            None => {
                let mut said = lock(&shared.said);
                said.push_str(&line);
                said.push('\n');
            }
        }
    }
}

/// `% Message delivered to partition 3 (offset 17) on broker 1`.
fn report(line: &str) -> Option<Acknowledged> {
    let rest = line.strip_prefix("% Message delivered to partition ")?;
    let (partition, rest) = rest.split_once(" (offset ")?;
    let (offset, broker) = rest.split_once(") on broker ")?;
    Some(Acknowledged {
        at: now(),
        partition: partition.parse().ok()?,
        offset: offset.parse().ok().filter(|offset| *offset >= 0),
        number: None,
        broker: broker.trim().parse().ok(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_report_names_partition_offset_and_broker() {
        let told = report("% Message delivered to partition 3 (offset 17) on broker 1").unwrap();
        assert_eq!(
            (told.partition, told.offset, told.broker),
            (3, Some(17), Some(1))
        );
        // An offset that the broker did not know.
        let told = report("% Message delivered to partition 0 (offset -1001) on broker 2").unwrap();
        assert_eq!((told.offset, told.broker), (None, Some(2)));
        assert!(report("% Delivery failed for message: timed out").is_none());
    }
}
