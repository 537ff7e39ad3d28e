//! Becoming a part of the cluster: naming it when it is new, registering, and hosting what is assigned.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use palisade_config::BrokerConfig;
use palisade_metadata::{BrokerEndpoint, MetadataCommand};
use palisade_security::{ScramCredential, ScramMechanism};
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    BootstrapUser,
    data_dir::DataDir,
    storage::{Storage, storage_error},
};
use crate::{
    cluster::{self, ChangeError, Founding},
    error::StartError,
    net::Listener,
};

const SCRAM_ITERATIONS: u32 = 4096;
/// Pause before a registration is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// A broker serves when every shard that it hosts has a leader; after this long it serves what it can.
const LEADERS: Duration = Duration::from_secs(30);

/// Starts what the leader of shard 0 does.
pub(super) fn found(
    storage: &Storage,
    config: &BrokerConfig,
    stopping: &CancellationToken,
    background: &TaskTracker,
) {
    let founding = Founding {
        cluster_id: config.node.cluster_id.clone(),
        data_shards: config.storage.data_shards,
        brokers: config.cluster.seeds.len().max(1),
    };
    background.spawn(cluster::control(
        Arc::clone(&storage.cluster),
        founding,
        stopping.clone(),
    ));
}

/// Registers this broker, as often as it takes: the cluster may not be formed yet, or have no leader.
pub(super) async fn register(
    storage: &Storage,
    config: &BrokerConfig,
    data_dir: &DataDir,
    listeners: &[(Arc<Listener>, SocketAddr)],
    user: Option<&BootstrapUser>,
) -> Result<(), StartError> {
    let endpoints = listeners
        .iter()
        .map(|(listener, _)| BrokerEndpoint {
            listener: listener.name.clone(),
            host: listener.advertised_host.clone(),
            port: listener.advertised_port,
        })
        .collect();
    let registration = MetadataCommand::Register {
        id: data_dir.identity.node_id,
        incarnation: data_dir.identity.incarnation,
        rack: config.node.rack.clone(),
        endpoints,
        reads: MetadataCommand::NEWEST_FORMAT,
    };
    let began = Instant::now();
    loop {
        match storage.cluster.change(&registration).await {
            Ok(_) => break,
            Err(ChangeError::NotController | ChangeError::Unanswered) => {
                warn!(waited = ?began.elapsed(), "waiting for a leader of the metadata to register with");
            }
            // The leader has not named the cluster yet.
            Err(ChangeError::Refused(palisade_metadata::MetadataError::NotBootstrapped)) => {}
            Err(error) => return Err(storage_error(error)),
        }
        sleep(AGAIN).await;
    }
    match user {
        Some(user) => make_user(storage, user).await,
        None => Ok(()),
    }
}

/// Hosts what is assigned to this broker and waits until it has leaders.
pub(super) async fn host(
    storage: &Storage,
    stopping: &CancellationToken,
    background: &TaskTracker,
) {
    background.spawn(cluster::spread(
        Arc::clone(&storage.cluster),
        Arc::clone(&storage.data),
        stopping.clone(),
    ));
    background.spawn(cluster::watch_isolation(
        Arc::clone(&storage.cluster),
        stopping.clone(),
    ));
    background.spawn(cluster::replicas(
        Arc::clone(&storage.cluster),
        Arc::clone(&storage.data),
        stopping.clone(),
    ));
    let mut leaders = storage.cluster.leaders_changed();
    let mut images = storage.images.clone();
    let served = async {
        while !storage.cluster.is_served(&storage.data) {
            tokio::select! {
                _ = leaders.changed() => {}
                _ = images.changed() => {}
                () = sleep(AGAIN) => {}
            }
        }
    };
    if tokio::time::timeout(LEADERS, served).await.is_err() {
        warn!("not every shard has a leader; serving those that have");
    }
}

async fn make_user(storage: &Storage, user: &BootstrapUser) -> Result<(), StartError> {
    let known = {
        let image = storage.images.borrow();
        let credential = image.scram.get(&user.name, ScramMechanism::Sha512);
        credential.is_some_and(|credential| credential.verify_password(&user.password))
    };
    if known {
        return Ok(());
    }
    let upserts = ScramMechanism::ALL
        .into_iter()
        .map(|mechanism| {
            ScramCredential::from_password(mechanism, &user.password, SCRAM_ITERATIONS)
        })
        .collect::<Result<_, _>>()
        .map_err(storage_error)?;
    storage
        .cluster
        .change(&MetadataCommand::AlterScram {
            user: user.name.clone(),
            upserts,
            deletions: Vec::new(),
        })
        .await
        .map(drop)
        .map_err(storage_error)
}
