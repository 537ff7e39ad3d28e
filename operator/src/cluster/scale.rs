//! Fewer brokers: which one leaves, and how far it is.
//!
//! ```text
//! Drain    the last broker is told to give everything away, and the others take it
//! Wait     until it says that it has nothing left
//! Stop     the StatefulSet loses it; its pod ends
//! Forget   the other brokers forget it; then the next one is drained
//! Restore  the spec asks for it again: it is given its share
//! ```
//!
//! Nothing is remembered from one step to the next: whether a broker is registered and drained is what the leader of the metadata says, and how many there are is
//! what the StatefulSet says. So a step that was interrupted is taken again, and asking for more brokers at any moment leads back.

use std::collections::{BTreeMap, BTreeSet};

use palisade_config::status::BrokerStatus;

use super::{config::FOUNDERS, observe::BrokerView};

/// The shard of the metadata.
const METADATA: u32 = 0;

/// What is known of the brokers.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Brokers that the spec asks for.
    pub wanted: i32,
    /// Brokers of the StatefulSet; as many as are asked for when there is none.
    pub standing: i32,
    /// What they said, by ordinal.
    pub brokers: &'a [BrokerView],
    /// Ordinals of the pods that exist.
    pub pods: &'a BTreeSet<i32>,
}

/// The next thing to do about the number of brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: there are as many as asked for, or more are about to come.
    Settled,
    /// A broker is to stay although it is drained.
    Restore(i32),
    /// A broker is to give everything to the others.
    Drain(i32),
    /// A broker leaves and is not done yet: why.
    Wait(i32, String),
    /// A broker has nothing left: its pod goes.
    Stop(i32),
    /// A broker's pod is gone, or does not answer: the others are to forget it, which they refuse while it has anything.
    Forget(i32),
    /// So few brokers cannot be: what to write instead.
    Refuse(String),
}

/// The registered brokers and whether each is drained, as the leader of the metadata says; `None` when it does not answer.
///
/// Who was replaced and cannot know it, because it is cut off from the others, takes itself for the leader still: the newest term counts.
#[must_use]
pub fn registered(brokers: &[BrokerView]) -> Option<BTreeMap<i32, bool>> {
    let leaders = answers(brokers).filter(|status| status.controller == Some(status.broker_id));
    let leader = leaders.max_by_key(|status| {
        let metadata = status.shards.iter().find(|shard| shard.id == METADATA);
        metadata.map(|shard| shard.term)
    })?;
    let others = leader.peers.iter().map(|peer| (peer.id, peer.draining));
    Some(
        others
            .chain([(leader.broker_id, leader.draining)])
            .collect(),
    )
}

/// Brokers that anybody who answers has heard of, registered still or not.
pub fn known(brokers: &[BrokerView]) -> impl Iterator<Item = i32> + '_ {
    answers(brokers).flat_map(|status| {
        let peers = status.peers.iter().map(|peer| peer.id);
        peers.chain([status.broker_id])
    })
}

fn answers(brokers: &[BrokerView]) -> impl Iterator<Item = &BrokerStatus> {
    brokers
        .iter()
        .filter_map(|broker| broker.status.as_ref().ok())
}

/// What to do next.
#[must_use]
pub fn next(seen: Seen<'_>) -> Step {
    let founders = FOUNDERS.min(seen.standing);
    if seen.wanted < founders {
        return Step::Refuse(format!(
            "spec.brokers.replicas is {}, and the first {founders} of the {} brokers cannot be removed: write {founders} or more",
            seen.wanted, seen.standing
        ));
    }
    let last = seen.standing - 1;
    let Some(registered) = registered(seen.brokers) else {
        return if seen.wanted < seen.standing {
            let why = "the broker that leads the metadata does not answer";
            Step::Wait(last, why.to_owned())
        } else {
            Step::Settled
        };
    };
    let mut staying = registered.range(0..seen.wanted);
    if let Some((id, _)) = staying.find(|(_, draining)| **draining) {
        return Step::Restore(*id);
    }
    // Of a broker that was stopped, or lost its place in some other way: no two leave at once.
    let gone = seen.wanted.max(seen.standing);
    if let Some((id, draining)) = registered.range(gone..).next_back() {
        return match draining {
            _ if seen.pods.contains(id) => Step::Wait(*id, "its pod is stopping".to_owned()),
            true => Step::Forget(*id),
            false => Step::Drain(*id),
        };
    }
    if seen.wanted >= seen.standing {
        return Step::Settled;
    }
    match registered.get(&last) {
        // It never came up, or was forgotten while it did not answer; unless whoever says so has not heard of it yet.
        None => match replicas_on(last, seen.brokers) {
            0 => Step::Stop(last),
            _ => Step::Wait(last, "the others do not know it yet".to_owned()),
        },
        Some(false) => Step::Drain(last),
        Some(true) => leaving(last, seen.brokers),
    }
}

/// A broker that was told to give everything away.
fn leaving(id: i32, seen_by: &[BrokerView]) -> Step {
    let view = usize::try_from(id).ok().and_then(|id| seen_by.get(id));
    match view.map(|view| &view.status) {
        Some(Ok(status)) if status.drained => Step::Stop(id),
        Some(Ok(_)) => {
            let data = replicas_on(id, seen_by);
            Step::Wait(id, format!("{data} replicas are left on it"))
        }
        Some(Err(_)) | None => Step::Forget(id),
    }
}

/// Replicas of data shards that a broker has, as far as it answers.
fn replicas_on(id: i32, brokers: &[BrokerView]) -> usize {
    let mut statuses = answers(brokers);
    let status = statuses.find(|status| status.broker_id == id);
    let shards = status.into_iter().flat_map(|status| &status.shards);
    shards.filter(|shard| shard.id != METADATA).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_config::status::{BrokerStatus, PeerReport, ShardReport};

    use super::*;

    /// What all of `standing` brokers say when those of `ids` are registered and those of `draining` are drained; broker 1 leads the metadata.
    fn brokers(standing: i32, ids: &[i32], draining: &[i32]) -> Vec<BrokerView> {
        let view = |id: i32| BrokerView {
            pod: format!("events-{id}"),
            status: Ok(BrokerStatus {
                broker_id: id,
                controller: Some(1),
                draining: draining.contains(&id),
                peers: ids
                    .iter()
                    .filter(|other| **other != id)
                    .map(|other| PeerReport {
                        id: *other,
                        connected: true,
                        since: String::new(),
                        draining: draining.contains(other),
                    })
                    .collect(),
                ..BrokerStatus::default()
            }),
        };
        (0..standing).map(view).collect()
    }

    fn decide(wanted: i32, standing: i32, brokers: &[BrokerView]) -> Step {
        let pods = (0..standing).collect();
        next(Seen {
            wanted,
            standing,
            brokers,
            pods: &pods,
        })
    }

    #[test]
    fn as_many_as_asked_for_need_nothing() {
        assert_eq!(decide(3, 3, &brokers(3, &[0, 1, 2], &[])), Step::Settled);
        assert_eq!(decide(5, 3, &brokers(3, &[0, 1, 2], &[])), Step::Settled);
        assert_eq!(decide(1, 1, &[]), Step::Settled, "before anything runs");
    }

    #[test]
    fn the_last_broker_is_drained_first_and_stopped_only_when_it_says_that_it_has_nothing() {
        let ids = [0, 1, 2, 3, 4];
        assert_eq!(decide(3, 5, &brokers(5, &ids, &[])), Step::Drain(4));
        let mut seen = brokers(5, &ids, &[4]);
        let last = seen[4].status.as_mut().unwrap();
        last.shards = vec![
            ShardReport {
                id: 7,
                replication_factor: 3,
                leader: None,
                term: 1,
                voters: vec![],
                learners: vec![],
                preferred: 0,
                caught_up: true,
                committed: 1,
                applied: 1,
            };
            2
        ];
        let left = Step::Wait(4, "2 replicas are left on it".to_owned());
        assert_eq!(decide(3, 5, &seen), left);
        seen[4].status.as_mut().unwrap().drained = true;
        assert_eq!(decide(3, 5, &seen), Step::Stop(4));
    }

    #[test]
    fn the_next_one_waits_until_the_last_is_stopped_and_forgotten() {
        let seen = brokers(4, &[0, 1, 2, 3, 4], &[4]);
        let stopping = (0..5).collect();
        let with = |pods| {
            next(Seen {
                wanted: 3,
                standing: 4,
                brokers: &seen,
                pods,
            })
        };
        let waits = Step::Wait(4, "its pod is stopping".to_owned());
        assert_eq!(with(&stopping), waits);
        assert_eq!(with(&(0..4).collect()), Step::Forget(4));
        assert_eq!(
            decide(3, 4, &brokers(4, &[0, 1, 2, 3], &[])),
            Step::Drain(3)
        );
    }

    #[test]
    fn asking_for_more_again_restores_who_was_leaving() {
        let ids = [0, 1, 2, 3, 4];
        assert_eq!(decide(5, 5, &brokers(5, &ids, &[4])), Step::Restore(4));
        // Already stopped, and wanted again: its pod comes back, and it keeps what it still has.
        assert_eq!(decide(5, 4, &brokers(4, &ids, &[4])), Step::Restore(4));
        // Fewer leave than before: the one that stays goes first.
        assert_eq!(decide(4, 5, &brokers(5, &ids, &[3, 4])), Step::Restore(3));
    }

    #[test]
    fn who_formed_the_cluster_stays() {
        let seen = brokers(4, &[0, 1, 2, 3], &[]);
        assert_eq!(
            decide(2, 4, &seen),
            Step::Refuse(
                "spec.brokers.replicas is 2, and the first 3 of the 4 brokers cannot be removed: write 3 or more".to_owned()
            )
        );
        assert!(matches!(
            decide(1, 2, &brokers(2, &[0, 1], &[])),
            Step::Refuse(_)
        ));
    }

    #[test]
    fn without_the_leader_of_the_metadata_nothing_is_known_and_nobody_stops() {
        let mut seen = brokers(4, &[0, 1, 2, 3], &[3]);
        seen[3].status.as_mut().unwrap().drained = true;
        seen[1].status = Err("no answer within 3 s".to_owned());
        let why = "the broker that leads the metadata does not answer";
        assert_eq!(decide(3, 4, &seen), Step::Wait(3, why.to_owned()));
        assert_eq!(decide(4, 4, &seen), Step::Settled);
    }

    #[test]
    fn a_leader_of_the_past_is_not_believed() {
        let metadata = |term| ShardReport {
            id: METADATA,
            replication_factor: 3,
            leader: None,
            term,
            voters: vec![],
            learners: vec![],
            preferred: 0,
            caught_up: true,
            committed: 1,
            applied: 1,
        };
        let mut seen = brokers(4, &[0, 1, 2, 3], &[]);
        seen[1].status.as_mut().unwrap().shards = vec![metadata(7)];
        // Broker 0 is cut off, takes itself for the leader and has never heard of broker 3.
        let past = seen[0].status.as_mut().unwrap();
        past.controller = Some(0);
        past.peers.retain(|peer| peer.id != 3);
        past.shards = vec![metadata(6)];
        assert_eq!(decide(3, 4, &seen), Step::Drain(3));
        // The other one does not answer: what broker 3 says of itself counts.
        seen[1].status = Err("no answer within 3 s".to_owned());
        let last = seen[3].status.as_mut().unwrap();
        last.shards = vec![ShardReport {
            id: 4,
            ..metadata(1)
        }];
        let why = "the others do not know it yet".to_owned();
        assert_eq!(decide(3, 4, &seen), Step::Wait(3, why));
        assert!(known(&seen).any(|id| id == 3));
    }

    #[test]
    fn one_that_does_not_answer_goes_when_the_others_can_forget_it() {
        let mut seen = brokers(4, &[0, 1, 2, 3], &[3]);
        seen[3].status = Err("no answer within 3 s".to_owned());
        assert_eq!(decide(3, 4, &seen), Step::Forget(3));
        // They have.
        assert_eq!(decide(3, 4, &brokers(4, &[0, 1, 2], &[])), Step::Stop(3));
    }

    #[test]
    fn one_that_is_registered_without_a_place_is_drained_before_it_is_forgotten() {
        let pods = (0..3).collect();
        let decide = |draining: &[i32]| {
            next(Seen {
                wanted: 3,
                standing: 3,
                brokers: &brokers(3, &[0, 1, 2, 3], draining),
                pods: &pods,
            })
        };
        assert_eq!(decide(&[]), Step::Drain(3));
        assert_eq!(decide(&[3]), Step::Forget(3));
    }
}
