//! How many connections a listener admits.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use palisade_config::ConnectionLimits;
use parking_lot::Mutex;

/// Counts the open connections of one listener.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    limits: ConnectionLimits,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: u32,
    by_ip: HashMap<IpAddr, u32>,
}

/// Why a connection is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `max_connections` is reached.
    Total(u32),
    /// `max_connections_per_ip`, or its exception for this address, is reached.
    PerIp(u32),
}

/// An admitted connection; dropping it gives its place back.
#[derive(Debug)]
pub(crate) struct Place {
    limiter: Arc<Limiter>,
    ip: IpAddr,
}

impl Limiter {
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            open: Mutex::default(),
        }
    }

    /// Admits a connection from an address or says why not.
    pub(crate) fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Place, Refusal> {
        // An IPv4 client of a dual-stack socket is counted as the IPv4 address people write in the configuration.
        let ip = ip.to_canonical();
        let mut open = self.open.lock();
        if let Some(limit) = self
            .limits
            .max_connections
            .filter(|limit| open.total >= *limit)
        {
            return Err(Refusal::Total(limit));
        }
        let overrides = &self.limits.max_connections_per_ip_overrides;
        let per_ip = overrides
            .get(&ip)
            .copied()
            .or(self.limits.max_connections_per_ip);
        let here = open.by_ip.get(&ip).copied().unwrap_or(0);
        if let Some(limit) = per_ip.filter(|limit| here >= *limit) {
            return Err(Refusal::PerIp(limit));
        }
        open.total = open.total.saturating_add(1);
        open.by_ip.insert(ip, here.saturating_add(1));
        Ok(Place {
            limiter: Arc::clone(self),
            ip,
        })
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> u32 {
        self.open.lock().total
    }
}

impl Refusal {
    /// A word for metrics.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Total(_) => "max_connections",
            Self::PerIp(_) => "max_connections_per_ip",
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.limiter.open.lock();
        open.total = open.total.saturating_sub(1);
        if let Some(here) = open.by_ip.get_mut(&self.ip) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                open.by_ip.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn limits_hold_in_total_and_per_address_and_places_come_back() {
        let limiter = Arc::new(Limiter::new(ConnectionLimits {
            max_connections: Some(4),
            max_connections_per_ip: Some(1),
            max_connections_per_ip_overrides: [(ip("10.0.0.9"), 3)].into(),
        }));
        let first = limiter.admit(ip("10.0.0.1")).unwrap();
        assert_eq!(
            limiter.admit(ip("10.0.0.1")).unwrap_err(),
            Refusal::PerIp(1)
        );
        assert_eq!(
            limiter.admit(ip("::ffff:10.0.0.1")).unwrap_err(),
            Refusal::PerIp(1)
        );
        let _many: Vec<_> = (0..3)
            .map(|_| limiter.admit(ip("10.0.0.9")).unwrap())
            .collect();
        assert_eq!(
            limiter.admit(ip("10.0.0.2")).unwrap_err(),
            Refusal::Total(4)
        );
        drop(first);
        assert_eq!(limiter.open(), 3);
        limiter.admit(ip("10.0.0.1")).unwrap();
    }
}
