//! What the broker counts, in Prometheus' text format on the admin port.

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// `{listener="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByListener {
    pub(crate) listener: String,
}

/// `{listener="...",reason="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByReason {
    pub(crate) listener: String,
    pub(crate) reason: &'static str,
}

/// `{api="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByApi {
    pub(crate) api: &'static str,
}

/// `{api="...",error="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByError {
    pub(crate) api: &'static str,
    pub(crate) error: String,
}

/// `{mechanism="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByMechanism {
    pub(crate) mechanism: &'static str,
}

/// `{operation="...",resource="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByPermission {
    pub(crate) operation: String,
    pub(crate) resource: &'static str,
}

/// `{kek="...",item="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByKek {
    pub(crate) kek: String,
    pub(crate) item: &'static str,
}

/// `{quota="..."}`
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByQuota {
    pub(crate) quota: &'static str,
}

/// Every metric of the broker. Labels come from configuration and the protocol, never from a client's free text, so that nobody
/// can make their number grow.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    pub(crate) connections: Family<ByListener, Gauge>,
    pub(crate) connections_accepted: Family<ByListener, Counter>,
    pub(crate) connections_refused: Family<ByReason, Counter>,
    pub(crate) tls_handshake_failures: Family<ByListener, Counter>,
    pub(crate) requests: Family<ByApi, Counter>,
    pub(crate) request_seconds: Family<ByApi, Histogram, fn() -> Histogram>,
    pub(crate) malformed_requests: Family<ByListener, Counter>,
    pub(crate) errors: Family<ByError, Counter>,
    pub(crate) produce_bytes: Counter,
    pub(crate) fetch_bytes: Counter,
    pub(crate) authentications: Family<ByMechanism, Counter>,
    pub(crate) authentication_failures: Family<ByMechanism, Counter>,
    pub(crate) authorization_denied: Family<ByPermission, Counter>,
    pub(crate) throttle_milliseconds: Family<ByQuota, Counter>,
    pub(crate) certificate_expiry_seconds: Family<ByListener, Gauge>,
    pub(crate) problems: Gauge,
    pub(crate) quarantined_files: Gauge,
    pub(crate) damaged_segments_found: Counter,
    pub(crate) damaged_segments_repaired: Counter,
    pub(crate) repair_bytes: Counter,
    pub(crate) repair_handovers: Counter,
    pub(crate) scrubbed_bytes: Counter,
    pub(crate) topics: Gauge,
    pub(crate) partitions: Gauge,
    pub(crate) wal_syncs: Counter,
    pub(crate) wal_bytes: Counter,
    pub(crate) wal_sync_microseconds: Counter,
    pub(crate) wal_files: Gauge,
    pub(crate) config_reload_failures: Counter,
    pub(crate) kek_items: Family<ByKek, Gauge>,
    pub(crate) kek_settled: Gauge,
    pub(crate) key_rotation_segments_left: Gauge,
    pub(crate) key_rotation_bytes_left: Gauge,
    pub(crate) cleaner_bytes: Counter,
    pub(crate) cleaner_failing: Gauge,
    pub(crate) topics_shredding: Gauge,
    pub(crate) topics_shredded: Counter,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("palisade")),
            connections: Family::default(),
            connections_accepted: Family::default(),
            connections_refused: Family::default(),
            tls_handshake_failures: Family::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            malformed_requests: Family::default(),
            errors: Family::default(),
            produce_bytes: Counter::default(),
            fetch_bytes: Counter::default(),
            authentications: Family::default(),
            authentication_failures: Family::default(),
            authorization_denied: Family::default(),
            throttle_milliseconds: Family::default(),
            certificate_expiry_seconds: Family::default(),
            problems: Gauge::default(),
            quarantined_files: Gauge::default(),
            damaged_segments_found: Counter::default(),
            damaged_segments_repaired: Counter::default(),
            repair_bytes: Counter::default(),
            repair_handovers: Counter::default(),
            scrubbed_bytes: Counter::default(),
            topics: Gauge::default(),
            partitions: Gauge::default(),
            wal_syncs: Counter::default(),
            wal_bytes: Counter::default(),
            wal_sync_microseconds: Counter::default(),
            wal_files: Gauge::default(),
            config_reload_failures: Counter::default(),
            kek_items: Family::default(),
            kek_settled: Gauge::default(),
            key_rotation_segments_left: Gauge::default(),
            key_rotation_bytes_left: Gauge::default(),
            cleaner_bytes: Counter::default(),
            cleaner_failing: Gauge::default(),
            topics_shredding: Gauge::default(),
            topics_shredded: Counter::default(),
        };
        metrics.register();
        metrics.register_keys();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock();
        let r = &mut *registry;
        r.register(
            "connections",
            "Client connections open now",
            self.connections.clone(),
        );
        r.register(
            "connections_accepted",
            "Connections accepted",
            self.connections_accepted.clone(),
        );
        r.register(
            "connections_refused",
            "Connections refused by a limit or quota, or while the other brokers are not heard",
            self.connections_refused.clone(),
        );
        r.register(
            "tls_handshake_failures",
            "TLS handshakes that failed",
            self.tls_handshake_failures.clone(),
        );
        r.register(
            "requests",
            "Requests served, by Kafka API",
            self.requests.clone(),
        );
        r.register(
            "request_seconds",
            "Time from a decoded request to its answer, waiting included",
            self.request_seconds.clone(),
        );
        r.register(
            "malformed_requests",
            "Connections closed because of a malformed request",
            self.malformed_requests.clone(),
        );
        r.register(
            "errors",
            "Errors in answers, by Kafka API and error name",
            self.errors.clone(),
        );
        r.register(
            "produce_bytes",
            "Bytes of record batches accepted",
            self.produce_bytes.clone(),
        );
        r.register(
            "fetch_bytes",
            "Bytes of record batches sent to consumers",
            self.fetch_bytes.clone(),
        );
        r.register(
            "authentications",
            "Successful authentications",
            self.authentications.clone(),
        );
        r.register(
            "authentication_failures",
            "Failed authentications",
            self.authentication_failures.clone(),
        );
        r.register(
            "authorization_denied",
            "Operations denied",
            self.authorization_denied.clone(),
        );
        r.register(
            "throttle_milliseconds",
            "Time that clients were told to wait, by quota",
            self.throttle_milliseconds.clone(),
        );
        r.register(
            "certificate_expiry_seconds",
            "Seconds until the certificate of a listener expires",
            self.certificate_expiry_seconds.clone(),
        );
        r.register(
            "problems",
            "Problems that /status reports now",
            self.problems.clone(),
        );
        r.register(
            "quarantined_files",
            "Files set aside as corrupt that wait to be repaired",
            self.quarantined_files.clone(),
        );
        r.register(
            "damaged_segments_found",
            "Damaged segments that were found and taken out of service",
            self.damaged_segments_found.clone(),
        );
        r.register(
            "damaged_segments_repaired",
            "Damaged segments that were replaced by what another replica has",
            self.damaged_segments_repaired.clone(),
        );
        r.register(
            "repair_bytes",
            "Bytes of files that were replaced because of damage",
            self.repair_bytes.clone(),
        );
        r.register(
            "repair_handovers",
            "Leaderships that were given up because of damage",
            self.repair_handovers.clone(),
        );
        r.register(
            "scrubbed_bytes",
            "Bytes of sealed segments that were looked through for damage",
            self.scrubbed_bytes.clone(),
        );
        r.register("topics", "Topics", self.topics.clone());
        r.register(
            "partitions",
            "Partitions of all topics",
            self.partitions.clone(),
        );
        r.register(
            "wal_syncs",
            "Calls of fdatasync for records of the write-ahead log",
            self.wal_syncs.clone(),
        );
        r.register(
            "wal_bytes",
            "Bytes written to the write-ahead log",
            self.wal_bytes.clone(),
        );
        r.register(
            "wal_sync_microseconds",
            "Time in fdatasync of the write-ahead log",
            self.wal_sync_microseconds.clone(),
        );
        r.register(
            "wal_files",
            "Files of the write-ahead log that hold something needed",
            self.wal_files.clone(),
        );
        r.register(
            "config_reload_failures",
            "Changed configuration files that were refused",
            self.config_reload_failures.clone(),
        );
    }

    fn register_keys(&self) {
        let mut registry = self.registry.lock();
        let r = &mut *registry;
        r.register(
            "kek_items",
            "Things on this broker that are wrapped under a key-encryption key",
            self.kek_items.clone(),
        );
        r.register(
            "kek_settled",
            "1 when everything on this broker is known to be wrapped under the current key-encryption key",
            self.kek_settled.clone(),
        );
        r.register(
            "key_rotation_segments_left",
            "Segments that are sealed under an older version of their topic's key",
            self.key_rotation_segments_left.clone(),
        );
        r.register(
            "key_rotation_bytes_left",
            "Bytes of segments that are sealed under an older version of their topic's key",
            self.key_rotation_bytes_left.clone(),
        );
        r.register(
            "cleaner_bytes",
            "Bytes that the cleaner has written in place of others: compacted, or sealed anew",
            self.cleaner_bytes.clone(),
        );
        r.register(
            "cleaner_failing",
            "Partitions that the cleaner could not clean when it tried last",
            self.cleaner_failing.clone(),
        );
        r.register(
            "topics_shredding",
            "Deleted topics whose wrapped keys are still in the metadata checkpoint",
            self.topics_shredding.clone(),
        );
        r.register(
            "topics_shredded",
            "Topics deleted since the start whose keys no checkpoint here holds any more",
            self.topics_shredded.clone(),
        );
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }

    /// Counts a wait that a quota imposed.
    pub(crate) fn throttled(&self, quota: &'static str, wait: Duration) {
        if !wait.is_zero() {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            self.throttle_milliseconds
                .get_or_create(&ByQuota { quota })
                .inc_by(millis);
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metrics_render_with_their_prefix_and_labels() {
        let metrics = Metrics::new();
        metrics
            .requests
            .get_or_create(&ByApi { api: "Fetch" })
            .inc();
        metrics.throttled("producer_byte_rate", Duration::from_millis(250));
        let text = metrics.render().unwrap();
        assert!(
            text.contains("palisade_requests_total{api=\"Fetch\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("palisade_throttle_milliseconds_total{quota=\"producer_byte_rate\"} 250"),
            "{text}"
        );
    }
}
