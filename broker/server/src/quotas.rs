//! Client quotas at work: meters of this broker over the limits in the metadata.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use palisade_security::quota::{
    QuotaKey, QuotaMeters, QuotaSet, RateMeter, SAMPLE_WINDOW, SAMPLES,
};
use parking_lot::Mutex;

/// Addresses whose connection rate is remembered; beyond it the idle ones are forgotten.
const MAX_ADDRESSES: usize = 10_000;

/// The meters of all clients of this broker.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    meters: Mutex<QuotaMeters>,
    connections: Mutex<HashMap<IpAddr, RateMeter>>,
}

/// Who is metered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    pub(crate) user: &'a str,
    pub(crate) client_id: &'a str,
}

impl Quotas {
    /// Counts `amount` of `key` and says how long the client has to wait; zero without a limit.
    pub(crate) fn record(
        &self,
        set: &QuotaSet,
        client: Client<'_>,
        key: QuotaKey,
        amount: f64,
    ) -> Duration {
        match set.limit(key, client.user, client.client_id) {
            None => Duration::ZERO,
            Some(limit) => self
                .meters
                .lock()
                .record(Instant::now(), key, &limit, amount),
        }
    }

    /// How much a client may use in a whole window, the most that it can ever have at once; `None`: no limit.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "limits are positive, and one beyond the range is none"
    )]
    pub(crate) fn window(
        &self,
        set: &QuotaSet,
        client: Client<'_>,
        key: QuotaKey,
    ) -> Option<usize> {
        let window = SAMPLE_WINDOW * (SAMPLES - 1);
        let limit = set.limit(key, client.user, client.client_id)?;
        Some((limit.value * window.as_secs_f64()) as usize)
    }

    /// Takes back what was counted.
    pub(crate) fn take_back(&self, set: &QuotaSet, client: Client<'_>, key: QuotaKey, amount: f64) {
        if let Some(limit) = set.limit(key, client.user, client.client_id) {
            self.meters
                .lock()
                .take_back(Instant::now(), key, &limit, amount);
        }
    }

    /// Whether so many partitions may be created or deleted (KIP-599); see [`QuotaMeters::mutate`].
    pub(crate) fn mutate(
        &self,
        set: &QuotaSet,
        client: Client<'_>,
        partitions: u32,
        strict: bool,
    ) -> Result<Duration, Duration> {
        match set.limit(
            QuotaKey::ControllerMutationRate,
            client.user,
            client.client_id,
        ) {
            None => Ok(Duration::ZERO),
            Some(limit) => {
                let amount = f64::from(partitions);
                self.meters
                    .lock()
                    .mutate(Instant::now(), &limit, amount, strict)
            }
        }
    }

    /// Counts a connection of an address and says how long it has to wait.
    pub(crate) fn connection(&self, set: &QuotaSet, host: IpAddr) -> Duration {
        let Some(limit) = set.connection_rate(host) else {
            return Duration::ZERO;
        };
        let now = Instant::now();
        let mut connections = self.connections.lock();
        if connections.len() >= MAX_ADDRESSES {
            connections.retain(|_, meter| meter.rate(now) > 0.0);
        }
        let meter = connections.entry(host).or_default();
        meter.record(now, 1.0);
        meter.throttle(now, limit)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_security::quota::QuotaEntity;

    use super::*;

    fn set(parts: &[(&str, &str)], key: QuotaKey, value: f64) -> QuotaSet {
        let parts = parts
            .iter()
            .map(|(kind, name)| ((*kind).to_owned(), Some((*name).to_owned())));
        let mut set = QuotaSet::new();
        let entity = QuotaEntity::from_parts(parts).unwrap();
        set.alter(&entity, &[(key, Some(value))]).unwrap();
        set
    }

    fn client(client_id: &str) -> Client<'_> {
        Client {
            user: "alice",
            client_id,
        }
    }

    #[test]
    fn only_the_client_over_its_limit_waits() {
        let quotas = Quotas::default();
        let set = set(
            &[("client-id", "client-1")],
            QuotaKey::ProducerByteRate,
            1000.0,
        );
        let record = |client_id, amount| {
            quotas.record(&set, client(client_id), QuotaKey::ProducerByteRate, amount)
        };
        assert_eq!(record("client-1", 100.0), Duration::ZERO);
        assert!(record("client-1", 100_000.0) > Duration::from_secs(1));
        assert_eq!(record("client-2", 100_000.0), Duration::ZERO);
    }

    #[test]
    fn what_a_window_allows_may_be_used_at_once_and_no_more() {
        let quotas = Quotas::default();
        let key = QuotaKey::ConsumerByteRate;
        let set = set(&[("client-id", "client-1")], key, 1000.0);
        assert_eq!(quotas.window(&set, client("client-2"), key), None);
        assert_eq!(quotas.window(&set, client("client-1"), key), Some(10_000));
        let record = |amount| quotas.record(&set, client("client-1"), key, amount);
        assert_eq!(record(10_000.0), Duration::ZERO);
        assert!(record(500.0) > Duration::ZERO);
    }

    #[test]
    fn an_address_that_connects_too_often_waits() {
        let quotas = Quotas::default();
        let set = set(&[("ip", "10.0.0.1")], QuotaKey::ConnectionCreationRate, 1.0);
        let host = "10.0.0.1".parse().unwrap();
        let waits: Vec<Duration> = (0..50).map(|_| quotas.connection(&set, host)).collect();
        assert_eq!(waits.first(), Some(&Duration::ZERO));
        assert!(waits.last().is_some_and(|wait| !wait.is_zero()));
        assert_eq!(
            quotas.connection(&set, "10.0.0.2".parse().unwrap()),
            Duration::ZERO
        );
    }
}
