//! Hosts what the metadata assigns to this broker. Who leads a shard brings its members in line with the assignment and gives leadership to the replica that
//! the assignment prefers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_metadata::{Image, MetadataCommand, ShardInfo};
use palisade_shard::{Formation, Members, NodeId, ShardStatus};
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
/// Who could write nothing does not lead again before it could for so long: a full disk may have space for a moment.
const RELIEF: Duration = Duration::from_secs(5);
/// Changes of members that go on at a time: each may send a whole replica.
const CHANGES: usize = 4;
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
    /// The leader can write nothing: it hands over to one that can.
    Relieve(NodeId),
    /// The leader hands over, once the target has been fit for a while.
    Prefer(NodeId),
    /// The leader is the sole replica since this generation of the assignment: the metadata are to know when it is all there is of the shard.
    Settle(u32),
}

/// What the leader of a shard has to do. `able` are the brokers that could lead it.
pub(super) fn step(
    me: NodeId,
    assigned: &ShardInfo,
    status: &ShardStatus,
    able: &BTreeSet<i32>,
    draining: &BTreeSet<i32>,
) -> Step {
    let wanted = assigned.voters();
    let fit = |node: &NodeId| {
        *node == me
            || (able.contains(&node.broker())
                && !draining.contains(&node.broker())
                && status
                    .matched
                    .get(node)
                    .is_some_and(|matched| matched.saturating_add(CLOSE) >= status.last_index))
    };
    let mut others = assigned.replicas.iter().filter(|node| **node != me);
    let heir = others.find(|node| status.voters.contains(node) && fit(node));
    if !wanted.contains(&me) {
        return heir.map_or(Step::Members(wanted), |heir| Step::Leave(*heir));
    }
    if let Some(heir) = heir.filter(|_| !able.contains(&me.broker())) {
        return Step::Relieve(*heir);
    }
    // A learner is a replica that is on its way, or one whose leadership ended while it removed itself: either way there is something left to do.
    if wanted != status.voters || !status.learners.is_empty() {
        return Step::Members(wanted);
    }
    match preferred(assigned, draining) {
        Some(preferred) if preferred != me && fit(&preferred) => Step::Prefer(preferred),
        _ if assigned.is_unsettled() => Step::Settle(assigned.generation),
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

/// Those of `hosted` whose shard is no more, which nobody has to be asked about: its number is not used again. What is newer than the metadata here stays.
fn given_up(image: &Image, hosted: &BTreeSet<ShardId>) -> Vec<ShardId> {
    let gone = |shard: &&ShardId| !image.shards.contains_key(shard) && shard.0 <= image.retired;
    hosted.iter().filter(gone).copied().collect()
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
        let mut leader = Leader::new(&cluster, &data);
        loop {
            select! {
                image = steps.next() => match image {
                    Some(_) => leader.begin(),
                    None => return,
                },
                Some(done) = leader.running.next(), if !leader.running.is_empty() => leader.ended(done),
            }
        }
    };
    let watching = async {
        let mut steps = Steps::new(&cluster, &stopping);
        let mut last_full = None;
        while steps.next().await.is_some() {
            if data.cannot_write() {
                last_full = Some(Instant::now());
            }
            let is_full = last_full.is_some_and(|at| at.elapsed() < RELIEF);
            cluster.note_full(cluster.me.broker(), is_full);
        }
    };
    tokio::join!(hosting, leading, watching);
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
    for id in given_up(image, &hosted) {
        match data.unhost(id, std::future::ready(true)).await {
            Ok(_) => info!(shard = %id, "removed a replica of a shard that was given up"),
            Err(error) => {
                warn!(shard = %id, %error, "cannot remove a replica of a shard that was given up");
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

/// What this broker does as the leader of shards: a step of each at a time, beside those of the others. A change of members waits for as long as a broker is down
/// that it needs.
struct Leader<'a> {
    cluster: &'a Cluster,
    data: &'a DataPlane,
    /// Since when the preferred replica of a shard has been fit to lead it.
    fit_since: BTreeMap<ShardId, (NodeId, Instant)>,
    /// Shards with a step that goes on; whether that is a change of members.
    busy: BTreeMap<ShardId, bool>,
    /// Of which shard members were last to be changed: the ones after it come first, so that some that wait in vain do not take every turn.
    changed: Option<ShardId>,
    running: FuturesUnordered<BoxFuture<'a, ShardId>>,
}

impl<'a> Leader<'a> {
    fn new(cluster: &'a Cluster, data: &'a DataPlane) -> Self {
        Self {
            cluster,
            data,
            fit_since: BTreeMap::new(),
            busy: BTreeMap::new(),
            changed: None,
            running: FuturesUnordered::new(),
        }
    }

    fn ended(&mut self, shard: ShardId) {
        self.busy.remove(&shard);
    }

    /// Begins what is to be done now.
    fn begin(&mut self) {
        let image = self.cluster.image();
        let draining = draining(&image);
        for id in after(self.changed, self.data.hosted()) {
            let (Some(shard), Some(status)) = (image.shards.get(&id), self.data.shard_status(id))
            else {
                continue;
            };
            if status.leader != Some(self.cluster.me) {
                self.fit_since.remove(&id);
                continue;
            }
            if self.busy.contains_key(&id) {
                continue;
            }
            let fit = self.cluster.fit(self.data, id);
            let step = self.due(id, step(self.cluster.me, shard, &status, &fit, &draining));
            let changes = matches!(step, Step::Members(_));
            let changing = self.busy.values().filter(|changes| **changes).count();
            if step == Step::None || (changes && changing >= CHANGES) {
                continue;
            }
            if changes {
                self.changed = Some(id);
            }
            self.busy.insert(id, changes);
            let taken = take(self.cluster, self.data, id, step, shard.voters());
            self.running.push(taken.map(move |()| id).boxed());
        }
    }

    /// The step, or nothing while the preferred replica has not been fit for long enough.
    fn due(&mut self, id: ShardId, step: Step) -> Step {
        let Step::Prefer(to) = step else {
            self.fit_since.remove(&id);
            return step;
        };
        let since = self.fit_since.entry(id).or_insert((to, Instant::now()));
        if since.0 != to {
            *since = (to, Instant::now());
        }
        if since.1.elapsed() < PREFERENCE {
            return Step::None;
        }
        self.fit_since.remove(&id);
        step
    }
}

/// All of `shards`, those behind `last` first.
fn after(last: Option<ShardId>, mut shards: Vec<ShardId>) -> Vec<ShardId> {
    let first = shards.partition_point(|shard| last.is_some_and(|last| *shard <= last));
    shards.rotate_left(first);
    shards
}

/// Does what is to be done for one shard. `voters` are those that are assigned.
async fn take(
    cluster: &Cluster,
    data: &DataPlane,
    id: ShardId,
    step: Step,
    voters: BTreeSet<NodeId>,
) {
    let (to, members) = match step {
        Step::None => return,
        Step::Members(voters) => return change_members(cluster, data, id, voters).await,
        Step::Settle(generation) => return settle(cluster, data, id, generation, &voters).await,
        Step::Leave(to) => {
            debug!(shard = %id, %to, "handing over a shard that this broker is to lose");
            (to, Some(voters))
        }
        Step::Relieve(to) => {
            info!(shard = %id, %to, "handing over a shard, because the disk is full");
            (to, None)
        }
        Step::Prefer(to) => {
            debug!(shard = %id, %to, "giving leadership back to the preferred replica");
            (to, None)
        }
    };
    if let Err(error) = data.transfer(id, to).await {
        debug!(shard = %id, %error, "leadership was not handed over");
        if let Some(voters) = members {
            change_members(cluster, data, id, voters).await;
        }
    }
}

/// Tells the metadata that the sole replica of a shard is all there is of it, if that is beyond doubt: a replica of before could lead it otherwise.
async fn settle(
    cluster: &Cluster,
    data: &DataPlane,
    shard: ShardId,
    generation: u32,
    voters: &BTreeSet<NodeId>,
) {
    match data.confirmed_members(shard).await {
        Ok(members) if are_all(voters, &members) => {}
        Ok(_) => return,
        Err(error) => {
            debug!(%shard, %error, "the members of a shard are not confirmed yet");
            return;
        }
    }
    let command = MetadataCommand::ShardSettled { shard, generation };
    match cluster.change(&command).await {
        Ok(_) => debug!(%shard, "the sole replica of a shard may form it from now on"),
        Err(error) => {
            debug!(%shard, %error, "the metadata do not know yet that a shard has settled");
        }
    }
}

/// Whether nobody else than these is a member of a shard, nor on the way in or out.
fn are_all(voters: &BTreeSet<NodeId>, members: &Members) -> bool {
    members.voters == *voters && members.learners.is_empty()
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
    fn who_can_write_nothing_hands_over_to_one_that_can() {
        let none = BTreeSet::new();
        let wanted = shard(&[A, B, C]);
        let members = status(&[A, B, C], &[(B, 4999), (C, 5000)]);
        let relieved = |able: &[i32]| {
            let able = able.iter().copied().collect();
            step(A, &wanted, &members, &able, &none)
        };
        assert_eq!(relieved(&[0, 1, 2]), Step::None);
        assert_eq!(relieved(&[1, 2]), Step::Relieve(B));
        assert_eq!(relieved(&[2]), Step::Relieve(C));
        // Nobody can.
        assert_eq!(relieved(&[]), Step::None);
        let behind = status(&[A, B, C], &[(B, 10), (C, 10)]);
        let able = BTreeSet::from([1, 2]);
        assert_eq!(step(A, &wanted, &behind, &able, &none), Step::None);
    }

    #[test]
    fn only_shards_that_are_gone_for_good_are_removed_unasked() {
        let mut image = Image::new();
        image.retired = 4;
        let shards = BTreeMap::from([(ShardId(2), shard(&[A]))]);
        image.shards = Arc::new(shards);
        let hosted = [1, 2, 4, 5].map(ShardId).into();
        // 2 is there, and 5 is not known here yet.
        assert_eq!(given_up(&image, &hosted), [ShardId(1), ShardId(4)]);
    }

    #[test]
    fn every_shard_has_its_turn() {
        let shards = || [1, 2, 5, 9].map(ShardId).to_vec();
        let turns = |last: Option<u32>| after(last.map(ShardId), shards()).first().copied();
        assert_eq!(turns(None), Some(ShardId(1)));
        assert_eq!(turns(Some(2)), Some(ShardId(5)));
        assert_eq!(turns(Some(3)), Some(ShardId(5)));
        assert_eq!(turns(Some(9)), Some(ShardId(1)));
        assert_eq!(after(Some(ShardId(5)), shards()), [9, 1, 2, 5].map(ShardId));
        assert_eq!(after(Some(ShardId(5)), Vec::new()), []);
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
    fn a_sole_replica_that_was_moved_settles_when_nobody_else_is_left() {
        let able = BTreeSet::from([0, 1]);
        let none = BTreeSet::new();
        let mut sole = shard(&[A]);
        let alone = status(&[A], &[]);
        assert_eq!(step(A, &sole, &alone, &able, &none), Step::None);
        sole.founders.clear();
        sole.generation = 3;
        assert_eq!(step(A, &sole, &alone, &able, &none), Step::Settle(3));
        // The replica of before is still there, as a voter or not.
        let mut listening = alone.clone();
        listening.learners = BTreeSet::from([B]);
        for members in [status(&[A, B], &[]), listening] {
            assert_eq!(
                step(A, &sole, &members, &able, &none),
                Step::Members(sole.voters())
            );
        }
        // The others have the data.
        let mut several = shard(&[A, B, C]);
        several.founders.clear();
        let members = status(&[A, B, C], &[]);
        assert_eq!(step(A, &several, &members, &able, &none), Step::None);
    }

    #[test]
    fn what_is_confirmed_counts_and_not_what_is_believed() {
        let voters = BTreeSet::from([A]);
        let members = |voters: &[NodeId], learners: &[NodeId]| Members {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
        };
        assert!(are_all(&voters, &members(&[A], &[])));
        assert!(!are_all(&voters, &members(&[A, B], &[])));
        assert!(!are_all(&voters, &members(&[A], &[B])));
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
