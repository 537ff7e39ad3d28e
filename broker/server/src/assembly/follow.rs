//! What a running broker follows: files that change under it, credentials that are withdrawn, and time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use palisade_config::BrokerConfig;
use palisade_coordinator::{group::TopicUse, offsets::OffsetCommand};
use palisade_log::{ShardId, TopicId};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Plan, State, start::super_users};
use crate::{api::offsets::now_ms, broker::Broker, session::Sessions};

/// How often files are looked at: a mounted Secret is replaced by swapping a link, which raises no event that could be relied on.
const FILES: Duration = Duration::from_millis(500);
/// How often it is looked whether the log of the metadata has gone on since their last checkpoint: until there is another it holds on to the write-ahead log, with
/// everything that the data shards have written since.
const CHECKPOINTS: Duration = Duration::from_secs(2);
/// After one that failed, as on a full disk, the next one is not tried earlier.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Checkpoints of large metadata take no more than one part in so many of the time.
const CHECKPOINT_SHARE: u32 = 50;
/// How often offsets are looked through for ones that have expired.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// Offsets that a group does not use any more are kept so long; Kafka's `offsets.retention.minutes`.
const OFFSET_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often it is looked which groups are coordinated here: leadership is announced a moment after who leads.
const COORDINATORS: Duration = Duration::from_secs(1);
/// Groups without members and offsets are shown so long.
const IDLE_GROUPS: Duration = Duration::from_secs(10 * 60);

/// Follows the configuration, the TLS files and the keys.
pub(super) async fn files(plan: Plan, state: Arc<State>, stopping: CancellationToken) {
    let mut ticks = interval(FILES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (plan, state) = (plan.clone(), Arc::clone(&state));
        // File systems can be slow, and the threads of the runtime are for clients.
        let looked = tokio::task::spawn_blocking(move || {
            for endpoint in state.endpoints.values() {
                endpoint.refresh();
            }
            configuration(&plan, &state);
            keys(&state);
        });
        if let Err(error) = looked.await {
            warn!(%error, "looking at the configured files failed");
        }
    }
}

fn keys(state: &State) {
    let problem = match state.provider.reload() {
        Ok(changed) => {
            if changed {
                info!("loaded new key-encryption keys");
            }
            None
        }
        Err(error) => Some(format!(
            "the key provider does not answer, the keys in memory stay in use: {error}"
        )),
    };
    if state.config.set_key_problem(problem.clone())
        && let Some(problem) = problem
    {
        warn!(problem, "keys cannot be reloaded");
    }
}

/// Super users change while the broker runs; anything else needs a restart, and says so.
fn configuration(plan: &Plan, state: &State) {
    let refuse = |problem: String| {
        if state.config.set_problem(Some(problem.clone())) {
            state.broker.metrics.config_reload_failures.inc();
            warn!(problem, "the changed configuration is not in effect");
        }
    };
    let next = match plan.read() {
        Ok(next) => next,
        Err(error) => {
            return refuse(format!(
                "the configuration cannot be loaded, the old one stays in effect: {error}"
            ));
        }
    };
    let current = state.config.effective();
    if next == *current {
        state.config.set_problem(None);
        return;
    }
    let reloadable = BrokerConfig {
        version: next.version.clone(),
        super_users: next.super_users.clone(),
        ..(*current).clone()
    };
    if next != reloadable {
        let version = &next.version;
        return refuse(format!(
            "configuration version `{version}` changes more than super users, which needs a restart"
        ));
    }
    match super_users(&next, &plan.file) {
        Ok(users) => {
            state.broker.super_users.store(Arc::new(users));
            info!(version = %next.version, super_users = ?next.super_users, "loaded a new configuration");
            state.config.replace(next);
        }
        Err(error) => refuse(error.to_string()),
    }
}

/// Ends the sessions of users whose credential is withdrawn.
pub(super) async fn credentials(
    broker: Arc<Broker>,
    sessions: Arc<Sessions>,
    stopping: CancellationToken,
) {
    let mut images = broker.images.clone();
    let mut known = Arc::clone(&images.borrow_and_update().scram);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = images.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        let scram = Arc::clone(&images.borrow_and_update().scram);
        if !Arc::ptr_eq(&known, &scram) {
            let ended = sessions.end_unless(|user, mechanism| scram.get(user, mechanism).is_some());
            if ended > 0 {
                info!(ended, "ended sessions whose credential was withdrawn");
            }
            known = scram;
        }
    }
}

/// Takes up the groups of the shards that this broker leads, whose members' sessions run from then on, and gives up those whose shard another broker leads now:
/// their members find the new coordinator.
pub(super) async fn coordinators(broker: Arc<Broker>, stopping: CancellationToken) {
    let mut leaders = broker.data.leaders();
    loop {
        broker.give_up_groups();
        broker.take_up_groups();
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = leaders.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep(COORDINATORS) => {}
        }
    }
}

/// Checkpoints the metadata.
pub(super) async fn checkpoints(broker: Arc<Broker>, stopping: CancellationToken) {
    let metadata = &broker.cluster.metadata;
    let mut pause = CHECKPOINTS;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = CHECKPOINTS;
        let status = metadata.status();
        // Not only commands: a new leader and a change of members are in the log as well.
        if status.applied <= status.checkpoint.unwrap_or(0) {
            continue;
        }
        let begun = Instant::now();
        if let Err(error) = metadata.checkpoint().await {
            warn!(%error, "cannot checkpoint the metadata; the write-ahead log keeps them");
            pause = AFTER_FAILURE;
        }
        pause = pause.max(begun.elapsed().saturating_mul(CHECKPOINT_SHARE));
    }
}

/// Expires offsets, and forgets groups of which nothing is left.
pub(super) async fn housekeeping(broker: Arc<Broker>, stopping: CancellationToken) {
    let mut ticks = interval(HOUSEKEEPING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tenures = Tenures::default();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // What is not in the metadata of a broker that has lost the others may be there all the same.
        if broker.cluster.metadata.leader().borrow().leader.is_some() {
            expire_offsets(&broker, &mut tenures).await;
        }
        forget_groups(&broker);
    }
}

fn forget_groups(broker: &Broker) {
    let idle = broker
        .groups
        .with(|groups, now| groups.idle_for(now, IDLE_GROUPS));
    // Offsets are read without the groups' lock: whoever waits for one must not wait for the other.
    let is_empty = |group: &String| {
        let kept = broker
            .data
            .read_offsets(group, |store| store.contains(group));
        kept.is_ok_and(|kept| !kept)
    };
    let empty: BTreeSet<String> = idle.into_iter().filter(is_empty).collect();
    if !empty.is_empty() {
        broker
            .groups
            .with(|groups, _| groups.forget_idle(|group| empty.contains(group)));
    }
}

/// Since when this broker has coordinated the groups of a shard without a break, as far as it has looked: term, and ms since 1970.
#[derive(Debug, Default)]
struct Tenures(BTreeMap<ShardId, (u64, i64)>);

impl Tenures {
    /// Takes note of the term in which this broker leads a shard now, if it does.
    fn note(&mut self, shard: ShardId, term: Option<u64>, now: i64) {
        match term {
            None => drop(self.0.remove(&shard)),
            Some(term) => {
                let known = self.0.entry(shard).or_insert((term, now));
                if known.0 != term {
                    *known = (term, now);
                }
            }
        }
    }

    fn since(&self, shard: ShardId) -> Option<i64> {
        self.0.get(&shard).map(|(_, since)| *since)
    }
}

async fn expire_offsets(broker: &Broker, tenures: &mut Tenures) {
    let image = broker.image();
    let now = now_ms();
    for shard in broker.data.hosted() {
        tenures.note(shard, broker.data.leads(shard), now);
    }
    let retention = i64::try_from(OFFSET_RETENTION.as_millis()).unwrap_or(i64::MAX);
    let mut old: Vec<String> = Vec::new();
    broker.data.each_offset_store(|_, store| {
        old.extend(store.groups_with_old(now, retention).map(str::to_owned));
    });
    let mut expired = Vec::new();
    for group in old {
        // Once for all offsets of the group, and before they are locked: what its members subscribe to is long to read, and commits would wait.
        let used = broker
            .groups
            .with(|groups, now| groups.topic_use(now, &group));
        let tenure = image
            .shard_of_group(&group)
            .and_then(|shard| tenures.since(shard));
        let since = |topic| match image.topics.get(TopicId(topic)) {
            Some(topic) => unused_since(&used, &topic.name, now, tenure),
            // Of a topic that is gone, nobody uses anything.
            None => Some(i64::MIN),
        };
        let commands = broker
            .data
            .read_offsets(&group, |store| store.expired(&group, now, retention, since));
        // An error: another broker coordinates the group by now, and expires its offsets.
        expired.extend(commands.unwrap_or_default());
    }
    for command in expired {
        let OffsetCommand::Expire { group, .. } = &command else {
            continue;
        };
        let group = group.clone();
        match broker.data.apply_offsets(&group, command).await {
            Ok(forgotten) => debug!(group, forgotten, "offsets expired"),
            Err(error) => {
                debug!(group, %error, "cannot expire offsets now");
                return;
            }
        }
    }
}

/// Since when a group that uses these topics does not use one any more, as the expiry of its offsets wants to know it; `tenure` is since when this broker has
/// coordinated it.
fn unused_since(used: &TopicUse, topic: &str, now: i64, tenure: Option<i64>) -> Option<i64> {
    match used {
        TopicUse::Any => None,
        TopicUse::Only(topics) => (!topics.contains(topic)).then_some(i64::MIN),
        TopicUse::EmptyFor(time) => Some(now - i64::try_from(time.as_millis()).unwrap_or(0)),
        // A rebalance is not kept: its members have had no time to come before this broker coordinated the group.
        TopicUse::Unknown => tenure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_unused_when_nobody_subscribes_to_it_or_since_nobody_is_there() {
        let since = |used: &TopicUse, topic| unused_since(used, topic, 10_000, Some(4000));
        let only = TopicUse::Only(["orders", "clicks"].map(str::to_owned).into());
        assert_eq!(since(&only, "orders"), None);
        assert_eq!(since(&only, "clicks"), None);
        assert_eq!(since(&only, "payments"), Some(i64::MIN));
        assert_eq!(since(&TopicUse::Any, "payments"), None);
        let empty = TopicUse::EmptyFor(Duration::from_secs(3));
        assert_eq!(since(&empty, "orders"), Some(7000));
        assert_eq!(since(&TopicUse::Unknown, "orders"), Some(4000));
        assert_eq!(
            unused_since(&TopicUse::Unknown, "orders", 10_000, None),
            None
        );
    }

    #[test]
    fn a_tenure_begins_anew_with_each_term() {
        let shard = ShardId(3);
        let mut tenures = Tenures::default();
        assert_eq!(tenures.since(shard), None);
        tenures.note(shard, Some(4), 1000);
        tenures.note(shard, Some(4), 2000);
        assert_eq!(tenures.since(shard), Some(1000));
        // Somebody else led between two looks.
        tenures.note(shard, Some(6), 3000);
        assert_eq!(tenures.since(shard), Some(3000));
        tenures.note(shard, None, 4000);
        assert_eq!(tenures.since(shard), None);
    }
}
