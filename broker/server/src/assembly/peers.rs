//! The connections to other brokers.

use std::{sync::Arc, time::Duration};

use palisade_config::{BrokerConfig, CONTROL_LISTENER, Seed};
use palisade_metadata::Image;
use palisade_peer::{Connector, Directory, Limits, PeerAddress, PeerOptions, Peers};
use tokio::sync::watch;

use super::{start::Endpoints, storage::Opened};
use crate::{error::StartError, tls::Endpoint};

/// Messages are answered within a sync of a disk.
const ANSWER: Duration = Duration::from_secs(10);
/// Installing a snapshot writes as much as it carried.
const SNAPSHOT: Duration = Duration::from_secs(120);

/// Where brokers are: as they registered, else as the seeds say.
struct Book {
    images: watch::Receiver<Arc<Image>>,
    seeds: Vec<Seed>,
}

impl Directory for Book {
    fn address(&self, broker: i32) -> Option<PeerAddress> {
        let image = Arc::clone(&self.images.borrow());
        let registered = image
            .brokers
            .get(&broker)
            .and_then(|broker| broker.endpoint(CONTROL_LISTENER))
            .map(|endpoint| PeerAddress {
                host: endpoint.host.clone(),
                port: endpoint.port,
            });
        registered.or_else(|| {
            self.seeds
                .iter()
                .find(|seed| seed.id == broker)
                .and_then(Seed::host_and_port)
                .map(|(host, port)| PeerAddress {
                    host: host.to_owned(),
                    port,
                })
        })
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
