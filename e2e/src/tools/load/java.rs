//! Apache Kafka's own producer.

use std::{
    fs,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Acknowledged, Stored, longest_stall, reaches};
use crate::{
    progress::say,
    tools::{Access, Background, Cluster, Java, Tally, tool},
};

/// A request that a dead network swallows is given up after this time, so that a test need not wait for Kafka's thirty seconds.
const SETTINGS: &str = "retries=2147483647\nenable.idempotence=true\ndelivery.timeout.ms=120000\nrequest.timeout.ms=4000\nlinger.ms=2\n";

/// How it reports an acknowledgement.
const SUCCESS: &str = "producer_send_success";

/// Kafka's verifiable producer: 2000 records a second, every acknowledgement reported.
#[derive(Debug)]
pub struct JavaProducer {
    process: Background,
    acknowledgements: Mutex<Tally>,
    topic: &'static str,
}

impl JavaProducer {
    /// Starts it.
    ///
    /// # Errors
    /// When Java does not start.
    pub fn start(cluster: &Cluster, admin: &Access, topic: &'static str) -> Result<Self> {
        let properties = cluster.scratch().join(format!("{topic}.properties"));
        fs::write(
            &properties,
            fs::read_to_string(&admin.properties)? + SETTINGS,
        )?;
        let access = Access {
            properties,
            ..admin.clone()
        };
        let log = cluster.scratch().join(format!("{topic}.log"));
        let arguments = ["--topic", topic, "--throughput", "2000", "--acks", "-1"];
        let process = Java::background(tool::VERIFIABLE_PRODUCER, &access, &arguments, &log)?;
        Ok(Self {
            process,
            acknowledgements: Mutex::new(Tally::new(&log, SUCCESS)),
            topic,
        })
    }

    /// Waits for this many more acknowledgements.
    ///
    /// # Errors
    /// When they do not come.
    pub fn goes_on(&self, more: usize) -> Result<()> {
        self.reaches(self.count()? + more)
    }

    /// How many records are acknowledged by now.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn count(&self) -> Result<usize> {
        self.acknowledgements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count()
    }

    /// Waits until so many are acknowledged in all.
    ///
    /// # Errors
    /// When they are not.
    pub fn reaches(&self, count: usize) -> Result<()> {
        reaches(count, || self.count())
            .with_context(|| format!("the Java producer to {}", self.topic))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it had to give a record up.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(30))?;
        let mut errors = self.events("producer_send_error");
        errors.retain(|event| {
            let text = event.to_string();
            !text.contains("Producer closed while send in progress")
        });
        ensure!(errors.is_empty(), "{errors:#?}");
        Ok(())
    }

    /// Ends it, if that has not been done; nothing it was told is missing, nothing is there twice or in another order.
    ///
    /// # Errors
    /// When that is not so, or it had to give a record up.
    pub fn finish(mut self, reader: &Access) -> Result<()> {
        self.stop()?;
        let acknowledged = self.acknowledged()?;
        let stored = Stored::read(reader, self.topic)?;
        stored.check(&acknowledged).with_context(|| {
            format!(
                "{} acknowledged to the Java producer of {}, {} stored",
                acknowledged.len(),
                self.topic,
                stored.len()
            )
        })?;
        say(format_args!(
            "{}: Java: {} acknowledged, {} stored, longest stall {} ms",
            self.topic,
            acknowledged.len(),
            stored.len(),
            longest_stall(&acknowledged)
        ));
        Ok(())
    }

    fn events(&self, name: &str) -> Vec<serde_json::Value> {
        let log = self.process.log();
        log.lines()
            .filter(|line| line.contains(name))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    fn acknowledged(&self) -> Result<Vec<Acknowledged>> {
        let events = self.events(SUCCESS);
        let told = events.iter().map(|event| {
            let number = |name: &str| event[name].as_i64();
            Some(Acknowledged {
                at: number("timestamp")?,
                partition: number("partition")?,
                offset: number("offset").filter(|offset| *offset >= 0),
                number: Some(event["value"].as_str()?.parse().ok()?),
                broker: None,
            })
        });
        told.collect::<Option<_>>()
            .context("an acknowledgement lacks a field")
    }
}
