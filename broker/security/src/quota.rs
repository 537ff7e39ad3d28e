//! Client quotas: which limit applies to a client, and how long it waits when it exceeds it, as in Apache Kafka.

mod meter;
mod set;

pub use meter::{QuotaMeters, RateMeter, SAMPLE_WINDOW, SAMPLES, TokenBucket};
pub use set::{Bucket, EntityName, Limit, QuotaEntity, QuotaError, QuotaKey, QuotaSet};
