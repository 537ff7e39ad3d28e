//! What only the leader of shard 0 does: it names the cluster, makes the pools of shards, keeps the members of shard 0 in line with the brokers that are
//! registered, and moves replicas when brokers come, go or drain.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use palisade_log::ShardId;
use palisade_metadata::{Image, MetadataCommand};
use palisade_shard::NodeId;
use tokio::{
    select,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Cluster, replicas::heir};

const STEP: Duration = Duration::from_millis(250);
/// Replicas of the shards that keep committed offsets, when there are as many brokers.
const GROUP_REPLICAS: usize = 3;

/// What a cluster is named and made of when it is new.
#[derive(Clone, Debug)]
pub(crate) struct Founding {
    pub(crate) cluster_id: String,
    pub(crate) data_shards: u32,
    /// Brokers that have to be registered before the first pool is made, so that it is spread over all of them.
    pub(crate) brokers: usize,
}

/// The next change that the metadata need, one at a time: each is decided on the state that the last one left.
///
/// Replicas are moved only of shards that have a leader (`led`): nobody else could hand them over. A pool is made on brokers that can work with it (`able`).
pub(super) fn next(
    image: &Image,
    founding: &Founding,
    led: impl Fn(ShardId) -> bool,
    able: &BTreeSet<i32>,
) -> Option<MetadataCommand> {
    if image.cluster.is_none() {
        return Some(MetadataCommand::Bootstrap {
            cluster_id: founding.cluster_id.clone(),
            data_shards: founding.data_shards,
        });
    }
    if image.pools.is_empty() {
        if image.brokers.len() < founding.brokers {
            return None;
        }
        let replicas = founding.brokers.clamp(1, GROUP_REPLICAS);
        // Refused only with fewer brokers than replicas, some of them draining: then there will be more one day.
        let replicas = u16::try_from(replicas).unwrap_or(1);
        return image
            .new_pool_among(replicas, true, |broker| able.contains(&broker))
            .ok();
    }
    let mut moves = image.rebalance().into_iter();
    moves.find(|assigned| led(assigned.shard)).map(Into::into)
}

/// Members of shard 0: voters, and everyone else as learners, because every broker answers from its own copy of the metadata.
pub(super) fn members(image: &Image, me: NodeId) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let mut voters = image.metadata_voters();
    if voters.is_empty() {
        voters.insert(me);
    }
    let learners = image
        .brokers
        .values()
        .map(palisade_metadata::BrokerRegistration::node)
        .filter(|node| !voters.contains(node))
        .collect();
    (voters, learners)
}

/// Runs until the broker stops.
pub(crate) async fn run(cluster: Arc<Cluster>, founding: Founding, stopping: CancellationToken) {
    let mut images = cluster.images.clone();
    let mut leadership = cluster.metadata.leadership();
    let mut steps = interval(STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Beside the decisions: it waits for as long as a broker is down that it needs.
    let mut lining_up = None;
    loop {
        select! {
            () = stopping.cancelled() => return,
            () = ended(&mut lining_up) => {
                lining_up = None;
                continue;
            }
            changed = images.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            changed = leadership.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = steps.tick() => {}
        }
        if !cluster.is_controller() {
            lining_up = None;
            continue;
        }
        if cluster.is_full() {
            // No change of members gets anywhere either, and while one waits nothing is handed over.
            lining_up = None;
            if relieve(&cluster).await {
                continue;
            }
        }
        let image = Arc::clone(&images.borrow_and_update());
        let led = |shard| cluster.leader(shard).is_some();
        if let Some(command) = next(&image, &founding, led, &cluster.able()) {
            match cluster.decide(&command).await {
                Ok(_) => info!(?command, "the controller changed the metadata"),
                Err(error) => warn!(
                    ?error,
                    ?command,
                    "the controller cannot change the metadata"
                ),
            }
        }
        if lining_up.is_none() {
            lining_up = Some(line_up(&cluster, &founding).boxed());
        }
    }
}

/// Waits for the end of what goes on, or for ever.
async fn ended(going_on: &mut Option<BoxFuture<'_, ()>>) {
    match going_on {
        Some(going_on) => going_on.await,
        None => std::future::pending().await,
    }
}

/// Has a voter with space lead the metadata: no change of them can be written here. True when it does.
async fn relieve(cluster: &Cluster) -> bool {
    let status = cluster.metadata.status();
    let voters: Vec<NodeId> = status.voters.iter().copied().collect();
    let Some(heir) = heir(cluster.me, &voters, &status, &cluster.able()) else {
        return false;
    };
    match cluster.metadata.transfer_leadership(heir).await {
        Ok(()) => {
            warn!(to = %heir, "leadership of the metadata was handed over, because the disk is full");
            true
        }
        Err(error) => {
            debug!(to = %heir, %error, "leadership of the metadata was not handed over");
            false
        }
    }
}

/// Brings the members of shard 0 in line.
async fn line_up(cluster: &Cluster, founding: &Founding) {
    let image = cluster.image();
    // While the founders register, the members are those that formed the shard. Later, some of them may have been removed.
    if image.pools.is_empty() && image.brokers.len() < founding.brokers {
        return;
    }
    let (voters, learners) = members(&image, cluster.me);
    let status = cluster.metadata.status();
    if status.voters == voters && status.learners == learners {
        return;
    }
    // A leader that is to lose its vote hands over first, so that nobody waits for an election; whoever is next goes on with this.
    if !voters.contains(&cluster.me) {
        let staying: Vec<NodeId> = voters.iter().copied().collect();
        if let Some(heir) = heir(cluster.me, &staying, &status, &cluster.able())
            && cluster.metadata.transfer_leadership(heir).await.is_ok()
        {
            return;
        }
    }
    let wanted = (voters.clone(), learners.clone());
    let mut images = cluster.images.clone();
    // A broker that is waited for may be drained meanwhile, or forgotten.
    let others = async {
        let is_other = |image: &Arc<Image>| members(image, cluster.me) != wanted;
        drop(images.wait_for(is_other).await);
    };
    select! {
        changed = cluster.metadata.set_members_with_learners(voters, learners) => {
            if let Err(error) = changed {
                debug!(%error, "cannot change the members of the metadata shard yet");
            }
        }
        () = others => debug!("the metadata shard is to have other members now"),
    }
}
