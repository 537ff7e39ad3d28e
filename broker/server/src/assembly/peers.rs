//! The connections to other brokers.

use std::{sync::Arc, time::Duration};

use palisade_config::{BrokerConfig, CONTROL_LISTENER, Seed};
use palisade_metadata::Image;
use palisade_peer::{Connector, Directory, Limits, PeerAddress, PeerOptions, Peers};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{start::Endpoints, storage::Opened};
use crate::{error::StartError, tls::Endpoint};

/// Messages are answered within a sync of a disk.
const ANSWER: Duration = Duration::from_secs(10);
/// Installing a snapshot writes as much as it carried.
const SNAPSHOT: Duration = Duration::from_secs(120);

/// Where brokers are: as they registered, else as the seeds say, else where their name would be next to this broker's.
struct Book {
    images: watch::Receiver<Arc<Image>>,
    seeds: Vec<Seed>,
    /// This broker's id and control port.
    own: (i32, PeerAddress),
}

/// The host of another broker that is named as this one is but for its number, like the pods of a StatefulSet: a broker that is added has not registered yet when
/// it comes for the first time, and its certificate has to be valid for some name that is expected of it. Without a number in the name: the same host.
fn sibling(own: i32, host: &str, broker: i32) -> String {
    let (name, domain) = host.split_once('.').unwrap_or((host, ""));
    match name.rsplit_once('-') {
        Some((prefix, number)) if number.parse() == Ok(own) => {
            let dot = if domain.is_empty() { "" } else { "." };
            format!("{prefix}-{broker}{dot}{domain}")
        }
        _ => host.to_owned(),
    }
}

impl Book {
    fn known(&self, broker: i32) -> Option<PeerAddress> {
        let image = Arc::clone(&self.images.borrow());
        let registered = image
            .brokers
            .get(&broker)
            .and_then(|broker| broker.endpoint(CONTROL_LISTENER))
            .map(|endpoint| PeerAddress {
                host: endpoint.host.clone(),
                port: endpoint.port,
            });
        let seed = || {
            self.seeds
                .iter()
                .find(|seed| seed.id == broker)
                .and_then(Seed::host_and_port)
                .map(|(host, port)| PeerAddress {
                    host: host.to_owned(),
                    port,
                })
        };
        registered.or_else(seed)
    }
}

impl Directory for Book {
    fn address(&self, broker: i32) -> Option<PeerAddress> {
        let (id, address) = &self.own;
        self.known(broker).or_else(|| {
            Some(PeerAddress {
                host: sibling(*id, &address.host, broker),
                port: address.port,
            })
        })
    }

    fn is_member(&self, broker: i32) -> bool {
        self.known(broker).is_some()
    }
}

/// Connects with the certificate that the control port presents now.
struct Certificates {
    control: Arc<Endpoint>,
    first: Arc<rustls::ClientConfig>,
}

impl Connector for Certificates {
    fn config(&self) -> Arc<rustls::ClientConfig> {
        // Whatever is loaded later has one too: it depends on the port alone.
        let current = self.control.current().client.clone();
        current.unwrap_or_else(|| Arc::clone(&self.first))
    }

    fn changes(&self) -> Option<watch::Receiver<()>> {
        Some(self.control.changes())
    }

    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.control.current().trusts(chain)
    }
}

/// An answer that takes longer is not waited for. The end of a snapshot is answered when it is installed.
fn patience(_: u32, kind: u8) -> Duration {
    if palisade_shard::is_snapshot(kind) {
        SNAPSHOT
    } else {
        ANSWER
    }
}

/// Starts connecting to the other brokers; nothing for a broker that is alone.
pub(super) fn start(
    config: &BrokerConfig,
    endpoints: &Endpoints,
    opened: &Opened,
) -> Result<Option<Arc<Peers>>, StartError> {
    if config.cluster.seeds.is_empty() {
        return Ok(None);
    }
    let control = endpoints
        .get(CONTROL_LISTENER)
        .ok_or_else(|| StartError::Storage("there is no control port".to_owned()))?;
    let first = control.current().client.clone().ok_or_else(|| {
        StartError::Storage("the control port cannot connect to peers".to_owned())
    })?;
    let peers = Peers::new(PeerOptions {
        me: opened.me,
        cluster_id: config.node.cluster_id.clone(),
        directory: Arc::new(Book {
            images: opened.images.clone(),
            seeds: config.cluster.seeds.clone(),
            own: (
                opened.me.broker(),
                PeerAddress {
                    host: config.control.advertised_host.clone(),
                    port: config.control.port,
                },
            ),
        }),
        connector: Arc::new(Certificates {
            control: Arc::clone(control),
            first,
        }),
        limits: Limits {
            patience,
            ..Limits::default()
        },
    });
    peers.set_handler(Arc::clone(&opened.desk) as Arc<dyn palisade_peer::Handler>);
    Ok(Some(peers))
}

#[cfg(test)]
mod tests {
    use super::sibling;

    #[test]
    fn a_broker_that_is_added_is_expected_under_the_next_name() {
        let host = "events-0.events-brokers.messaging.svc";
        assert_eq!(sibling(0, host, 3), "events-3.events-brokers.messaging.svc");
        assert_eq!(sibling(12, "kafka-12", 4), "kafka-4");
        // The number is not this broker's: it means something else.
        assert_eq!(sibling(1, "rack-7.example", 4), "rack-7.example");
        assert_eq!(sibling(0, "localhost", 3), "localhost");
    }
}
