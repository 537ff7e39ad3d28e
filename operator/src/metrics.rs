//! What the operator counts about itself, in the Prometheus text format.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::AtomicI64},
};

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
    /// The labels in `expiry`, by namespace and name of the cluster.
    certificates: Mutex<BTreeMap<(String, String), Vec<Certificate>>>,
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
            certificates: Mutex::default(),
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

    /// Records the end of validity, in seconds of Unix time, of all of a cluster's certificates by name; what it had before and is not among them is forgotten.
    pub fn certificate_expiries(&self, namespace: &str, cluster: &str, ends: &[(&str, i64)]) {
        let labels: Vec<Certificate> = ends
            .iter()
            .map(|(certificate, _)| Certificate {
                namespace: namespace.to_owned(),
                cluster: cluster.to_owned(),
                certificate: (*certificate).to_owned(),
            })
            .collect();
        for (label, (_, seconds)) in labels.iter().zip(ends) {
            self.expiry.get_or_create(label).set(*seconds);
        }
        let place = (namespace.to_owned(), cluster.to_owned());
        let mut held = self
            .certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let former = if labels.is_empty() {
            held.remove(&place)
        } else {
            held.insert(place, labels.clone())
        };
        for label in former.unwrap_or_default() {
            if !labels.contains(&label) {
                self.expiry.remove(&label);
            }
        }
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
    fn certificates_that_are_gone_are_not_counted_down() {
        let metrics = Metrics::default();
        let shown = || metrics.render().matches("certificate=").count();
        metrics.certificate_expiries("messaging", "events", &[("events-0", 1), ("events-1", 2)]);
        metrics.certificate_expiries("messaging", "other", &[("other-0", 1)]);
        assert_eq!(shown(), 3);
        metrics.certificate_expiries("messaging", "events", &[("events-0", 3)]);
        assert_eq!(shown(), 2);
        assert!(!metrics.render().contains("events-1"));
        metrics.certificate_expiries("messaging", "events", &[]);
        assert_eq!(shown(), 1);
    }

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
