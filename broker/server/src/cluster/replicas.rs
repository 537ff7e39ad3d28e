//! Hosts what the metadata assigns to this broker. Who leads a shard brings its members in line with the assignment and gives leadership to the replica that
//! the assignment prefers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_metadata::{Image, ShardInfo};
use palisade_shard::{Formation, NodeId, ShardStatus};
use tokio::{
    select,
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Cluster;

/// How often assignments and members are compared, besides at every change of the metadata.
const STEP: Duration = Duration::from_millis(500);
/// Leadership goes back to the preferred replica when it has been fit for it this long: a broker that comes and goes must not drag leaders along.
const PREFERENCE: Duration = Duration::from_secs(5);
/// A follower this many entries behind the end is fit to lead at once.
const CLOSE: u64 = 1000;

/// What is to be done about one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    None,
    /// The leader changes the voters.
    Members(BTreeSet<NodeId>),
    /// The leader is to lose its replica: it hands over to one that stays, which then changes the voters, so that nobody waits for an election.
    Leave(NodeId),
    /// The leader hands over, once the target has been fit for a while.
    Prefer(NodeId),
}

/// What the leader of a shard has to do.
pub(super) fn step(
    me: NodeId,
    assigned: &ShardInfo,
    status: &ShardStatus,
    alive: &BTreeSet<i32>,
    draining: &BTreeSet<i32>,
) -> Step {
    let wanted = assigned.voters();
    let fit = |node: &NodeId| {
        *node == me
            || (alive.contains(&node.broker())
                && !draining.contains(&node.broker())
                && status
                    .matched
                    .get(node)
                    .is_some_and(|matched| matched.saturating_add(CLOSE) >= status.last_index))
    };
    if !wanted.contains(&me) {
        let mut staying = assigned.replicas.iter();
        let heir = staying.find(|node| status.voters.contains(node) && fit(node));
        return heir.map_or(Step::Members(wanted), |heir| Step::Leave(*heir));
    }
    // A learner is a replica that is on its way, or one whose leadership ended while it removed itself: either way there is something left to do.
    if wanted != status.voters || !status.learners.is_empty() {
        return Step::Members(wanted);
    }
    match preferred(assigned, draining) {
        Some(preferred) if preferred != me && fit(&preferred) => Step::Prefer(preferred),
        _ => Step::None,
    }
}

/// The replica that the assignment wants to lead, among those that stay.
pub(super) fn preferred(assigned: &ShardInfo, draining: &BTreeSet<i32>) -> Option<NodeId> {
    let mut replicas = assigned.replicas.iter();
    replicas
        .find(|node| !draining.contains(&node.broker()))
        .copied()
}

/// The replica that is best fit to lead when `me` stops: one that can be reached and lacks the least.
pub(super) fn heir(
    me: NodeId,
    replicas: &[NodeId],
    status: &ShardStatus,
    alive: &BTreeSet<i32>,
) -> Option<NodeId> {
    replicas
        .iter()
        .filter(|node| **node != me && alive.contains(&node.broker()))
        .filter(|node| status.voters.contains(node))
        .max_by_key(|node| status.matched.get(node).copied().unwrap_or(0))
        .copied()
}

/// How a replica that is hosted from now on begins, when there is nothing of it on the disk.
fn formation(me: NodeId, assigned: &ShardInfo) -> Formation {
    assigned
        .formation(me)
        .map_or(Formation::Join, Formation::Form)
}

/// What this broker is to host.
pub(super) fn assigned(me: NodeId, image: &Image) -> BTreeMap<ShardId, &ShardInfo> {
    image
        .shards
        .iter()
        .filter(|(_, shard)| shard.replicas.contains(&me))
        .map(|(id, shard)| (*id, shard))
        .collect()
}

/// Brokers that are to lose what they have.
pub(super) fn draining(image: &Image) -> BTreeSet<i32> {
    let brokers = image.brokers.values().filter(|broker| broker.draining);
    brokers.map(|broker| broker.id).collect()
}

/// Runs until the broker stops.
///
/// Hosting waits for no change of members: whoever makes one waits for the replica that another broker has to host, which may be making one as well.
pub(crate) async fn run(cluster: Arc<Cluster>, data: Arc<DataPlane>, stopping: CancellationToken) {
    let hosting = async {
        let mut steps = Steps::new(&cluster, &stopping);
        while let Some(image) = steps.next().await {
            end_if_stopped(&cluster, &data);
            host(&cluster, &data, &image).await;
        }
    };
    let leading = async {
        let mut steps = Steps::new(&cluster, &stopping);
        let mut fit_since = BTreeMap::new();
        while steps.next().await.is_some() {
            lead(&cluster, &data, &mut fit_since).await;
        }
    };
    tokio::join!(hosting, leading);
}

/// When assignments are looked at.
struct Steps<'a> {
    images: watch::Receiver<Arc<Image>>,
    ticks: Interval,
    stopping: &'a CancellationToken,
}

impl<'a> Steps<'a> {
    fn new(cluster: &Cluster, stopping: &'a CancellationToken) -> Self {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            images: cluster.images.clone(),
            ticks,
            stopping,
        }
    }

    /// The metadata to act on; `None` when the broker stops.
    async fn next(&mut self) -> Option<Arc<Image>> {
        select! {
            () = self.stopping.cancelled() => return None,
            changed = self.images.changed() => changed.ok()?,
            _ = self.ticks.tick() => {}
        }
        Some(Arc::clone(&self.images.borrow_and_update()))
    }
}

/// A replica whose shard has stopped (its disk failed while a snapshot was installed, or an entry could not be applied) would be dead for as long as the process
/// lives, and what is in its memory may be half of a change. The next process reads the disk, or stops as well and says why.
fn end_if_stopped(cluster: &Cluster, data: &DataPlane) {
    let metadata = (ShardId::METADATA, Some(cluster.metadata.status()));
    let hosted = data.hosted().into_iter();
    let hosted = hosted.map(|id| (id, data.shard_status(id)));
    for (shard, status) in std::iter::once(metadata).chain(hosted) {
        if status.is_some_and(|status| status.stopped) {
            error!(%shard, "a shard has stopped; ending the process, so that the next one recovers it from the disk");
            std::process::abort();
        }
    }
}

/// Starts the replicas that are assigned to this broker and not here yet, and removes those that belong elsewhere now.
pub(crate) async fn host(cluster: &Cluster, data: &DataPlane, image: &Image) {
    let wanted = assigned(cluster.me, image);
    let hosted: BTreeSet<ShardId> = data.hosted().into_iter().collect();
    for (id, shard) in &wanted {
        if !hosted.contains(id) {
            match data.host(*id, formation(cluster.me, shard)).await {
                Ok(()) => debug!(shard = %id, "hosting a replica"),
                Err(error) => {
                    warn!(shard = %id, %error, "cannot host a replica that is assigned to this broker")
                }
            }
        }
    }
    // Only when the shard itself has let go of this replica: until then its vote counts. A replica that was removed is not told of it, so the leader is asked, and
    // asked again when this replica can promise nothing more.
    let moved: BTreeSet<ShardId> = hosted
        .into_iter()
        .filter(|id| image.shards.contains_key(id) && !wanted.contains_key(id))
        .collect();
    if moved.is_empty() {
        return;
    }
    for id in cluster.let_go_of_me(&moved).await {
        let one = BTreeSet::from([id]);
        let let_go = async { cluster.let_go_of_me(&one).await.contains(&id) };
        match data.unhost(id, let_go).await {
            Ok(true) => info!(shard = %id, "removed a replica that has moved to other brokers"),
            Ok(false) => {}
            Err(error) => warn!(shard = %id, %error, "cannot remove a replica that has moved away"),
        }
    }
}

/// Changes the members, unless the assignment changes first: a replica that is not assigned any more may never come to be hosted, so waiting for it would keep
/// everything else from being done.
async fn change_members(
    cluster: &Cluster,
    data: &DataPlane,
    shard: ShardId,
    voters: BTreeSet<NodeId>,
) {
    let mut images = cluster.images.clone();
    let wanted = voters.clone();
    let reassigned = async {
        let is_other = |image: &Arc<Image>| {
            let assigned = image.shards.get(&shard);
            assigned.is_none_or(|assigned| assigned.voters() != wanted)
        };
        drop(images.wait_for(is_other).await);
    };
    select! {
        changed = data.set_members(shard, voters) => {
            if let Err(error) = changed {
                debug!(%shard, %error, "cannot change the members of a shard yet");
            }
        }
        () = reassigned => debug!(%shard, "the members that a shard was to have are others now"),
    }
}

async fn lead(
    cluster: &Cluster,
    data: &DataPlane,
    fit_since: &mut BTreeMap<ShardId, (NodeId, Instant)>,
) {
    for id in data.hosted() {
        // Each step may take its time: the next one follows what is assigned by then.
        let image = cluster.image();
        let (Some(shard), Some(status)) = (image.shards.get(&id), data.shard_status(id)) else {
            continue;
        };
        if status.leader != Some(cluster.me) {
            fit_since.remove(&id);
            continue;
        }
        let fit = cluster.fit(data, id);
        match step(cluster.me, shard, &status, &fit, &draining(&image)) {
            Step::None => {
                fit_since.remove(&id);
            }
            Step::Members(voters) => change_members(cluster, data, id, voters).await,
            Step::Leave(to) => {
                debug!(shard = %id, %to, "handing over a shard that this broker is to lose");
                if let Err(error) = data.transfer(id, to).await {
                    debug!(shard = %id, %error, "leadership was not handed over");
                    change_members(cluster, data, id, shard.voters()).await;
                }
            }
            Step::Prefer(to) => {
                let since = fit_since.entry(id).or_insert((to, Instant::now()));
                if since.0 != to {
                    *since = (to, Instant::now());
                } else if since.1.elapsed() >= PREFERENCE {
                    fit_since.remove(&id);
                    debug!(shard = %id, %to, "giving leadership back to the preferred replica");
                    if let Err(error) = data.transfer(id, to).await {
                        debug!(shard = %id, %error, "leadership was not handed over");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: NodeId = NodeId::of(0, 1);
    const B: NodeId = NodeId::of(1, 1);
    const C: NodeId = NodeId::of(2, 1);

    fn shard(replicas: &[NodeId]) -> ShardInfo {
        ShardInfo {
            replication_factor: 3,
            replicas: replicas.to_vec(),
            generation: 0,
            founders: replicas.to_vec(),
        }
    }

    fn status(voters: &[NodeId], matched: &[(NodeId, u64)]) -> ShardStatus {
        ShardStatus {
            leader: Some(A),
            voters: voters.iter().copied().collect(),
            matched: matched.iter().copied().collect(),
            last_index: 5000,
            ..ShardStatus::default()
        }
    }

    #[test]
    fn members_come_before_preference() {
        let alive = BTreeSet::from([0, 1, 2]);
        let none = BTreeSet::new();
        let moved = shard(&[B, C, NodeId::of(3, 1)]);
        assert_eq!(
            step(A, &moved, &status(&[A, B, C], &[]), &alive, &none),
            Step::Members(BTreeSet::from([B, C, NodeId::of(3, 1)]))
        );
    }

    #[test]
    fn a_leader_that_is_to_leave_hands_over_first() {
        let alive = BTreeSet::from([0, 1, 2, 3]);
        let draining = BTreeSet::from([0]);
        let new = NodeId::of(3, 1);
        let moved = shard(&[new, B, C]);
        // Not to the one that comes: it has nothing yet.
        let leaving = status(&[A, B, C], &[(B, 100), (C, 5000)]);
        assert_eq!(step(A, &moved, &leaving, &alive, &draining), Step::Leave(C));
        let behind = status(&[A, B, C], &[(B, 100), (C, 100)]);
        assert_eq!(
            step(A, &moved, &behind, &alive, &draining),
            Step::Members(moved.voters())
        );
    }

    #[test]
    fn a_former_replica_is_let_go_of() {
        let alive = BTreeSet::from([0, 1, 2, 3]);
        let none = BTreeSet::new();
        let wanted = shard(&[A, B, C]);
        let mut members = status(&[A, B, C], &[]);
        members.learners = BTreeSet::from([NodeId::of(3, 1)]);
        assert_eq!(
            step(A, &wanted, &members, &alive, &none),
            Step::Members(wanted.voters())
        );
    }

    #[test]
    fn leadership_goes_to_the_preferred_replica_when_it_is_fit() {
        let alive = BTreeSet::from([0, 1, 2]);
        let none = BTreeSet::new();
        let wanted = shard(&[B, A, C]);
        let fit = status(&[A, B, C], &[(B, 4500), (C, 5000)]);
        assert_eq!(step(A, &wanted, &fit, &alive, &none), Step::Prefer(B));
        let behind = status(&[A, B, C], &[(B, 100), (C, 5000)]);
        assert_eq!(step(A, &wanted, &behind, &alive, &none), Step::None);
        let gone = BTreeSet::from([0, 2]);
        assert_eq!(step(A, &wanted, &fit, &gone, &none), Step::None);
    }

    #[test]
    fn a_draining_broker_leads_nothing_for_long() {
        let alive = BTreeSet::from([0, 1, 2]);
        let draining = BTreeSet::from([0]);
        let wanted = shard(&[A, B, C]);
        let fit = status(&[A, B, C], &[(B, 5000), (C, 5000)]);
        assert_eq!(step(A, &wanted, &fit, &alive, &draining), Step::Prefer(B));
    }
}
