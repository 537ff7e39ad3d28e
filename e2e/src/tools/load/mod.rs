//! Idempotent producers that run while something happens to the brokers, and what must be true afterwards: everything that was acknowledged is stored where the
//! acknowledgement said, nothing is stored twice, and every partition is in the order of sending.

mod java;
mod rdkafka;
mod stored;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};

use super::wait_until;

pub use java::JavaProducer;
pub use rdkafka::RdkafkaProducer;
pub use stored::Stored;

/// For what the producers wait for: the slowest faults take some seconds to be noticed.
const PATIENCE: Duration = Duration::from_secs(60);

/// That a record is stored, as its producer was told.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    /// When the producer was told, ms since 1970.
    at: i64,
    partition: i64,
    /// `None` where the broker could only say that the record had been stored before.
    offset: Option<i64>,
    /// Which of its producer's records it is, counted from 0, where that is reported.
    number: Option<u64>,
    /// The broker that said so, where that is reported.
    broker: Option<i32>,
}

/// Now, in milliseconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

/// Waits until so many have been counted.
fn reaches(wanted: usize, mut count: impl FnMut() -> Result<usize>) -> Result<()> {
    wait_until("records are acknowledged", PATIENCE, || {
        let now = count()?;
        ensure!(now >= wanted, "{now} of {wanted}");
        Ok(())
    })
}

/// The longest time without an acknowledgement, ms.
fn longest_stall(acknowledged: &[Acknowledged]) -> i64 {
    let pairs = acknowledged.windows(2);
    pairs.map(|pair| pair[1].at - pair[0].at).max().unwrap_or(0)
}
