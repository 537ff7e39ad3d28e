//! What the operator counts about itself, in the Prometheus text format.

use std::sync::atomic::AtomicI64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    namespace: String,
    cluster: String,
    certificate: String,
}

/// The operator's metrics.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Kind, Counter>,
    failures: Family<Kind, Counter>,
    api_writes: Family<Kind, Counter>,
    broker_writes: Family<Kind, Counter>,
    drift: Family<Kind, Counter>,
    expiry: Family<Certificate, Gauge<i64, AtomicI64>>,
    leading: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("palisade_operator");
        let reconciles = Family::default();
        let failures = Family::default();
        let api_writes = Family::default();
        let broker_writes = Family::default();
        let drift = Family::default();
        let expiry = Family::default();
        let leading = Gauge::default();
        registry.register(
            "reconciles",
            "Reconciles, by kind",
            Family::clone(&reconciles),
        );
        registry.register(
            "reconcile_failures",
            "Reconciles that failed and are tried again, by kind",
            Family::clone(&failures),
        );
        registry.register(
            "api_writes",
            "Writes to the API server, by the kind of object written",
            Family::clone(&api_writes),
        );
        registry.register(
            "broker_writes",
            "Changes sent to brokers, by the kind of resource",
            Family::clone(&broker_writes),
        );
        registry.register(
            "drift_corrected",
            "Differences on brokers that were put right, by the kind of resource",
            Family::clone(&drift),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "End of validity of a certificate",
            Family::clone(&expiry),
        );
        registry.register(
            "leading",
            "1 while this process holds the lease",
            Gauge::clone(&leading),
        );
        Self {
            registry,
            reconciles,
            failures,
            api_writes,
            broker_writes,
            drift,
            expiry,
            leading,
        }
    }
}

impl Metrics {
    /// Counts a reconcile.
    pub fn reconciled(&self, kind: &str) {
        self.reconciles
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// Counts a reconcile that failed.
    pub fn failed(&self, kind: &str) {
        self.failures
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// Counts a write to the API server.
    pub fn api_write(&self, kind: &str) {
        self.api_writes
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// Counts a change sent to brokers.
    pub fn broker_write(&self, kind: &str) {
        self.broker_writes
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// Counts a difference that was put right.
    pub fn drift_corrected(&self, kind: &str) {
        self.drift
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// Records the end of a certificate's validity, in seconds of Unix time.
    pub fn certificate_expiry(
        &self,
        namespace: &str,
        cluster: &str,
        certificate: &str,
        seconds: i64,
    ) {
        let label = Certificate {
            namespace: namespace.to_owned(),
            cluster: cluster.to_owned(),
            certificate: certificate.to_owned(),
        };
        self.expiry.get_or_create(&label).set(seconds);
    }

    /// Says whether this process holds the lease.
    pub fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    /// Everything, as Prometheus reads it.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Writes to the API server so far, over all kinds.
    #[must_use]
    pub fn total_api_writes(&self) -> u64 {
        self.render()
            .lines()
            .filter(|line| line.starts_with("palisade_operator_api_writes_total"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = Metrics::default();
        metrics.api_write("Secret");
        metrics.api_write("Secret");
        metrics.api_write("Service");
        metrics.drift_corrected("Acl");
        assert_eq!(metrics.total_api_writes(), 3);
        assert!(
            metrics
                .render()
                .contains("palisade_operator_drift_corrected_total{kind=\"Acl\"} 1")
        );
    }
}
