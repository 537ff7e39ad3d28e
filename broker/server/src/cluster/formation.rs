//! The first start of a cluster: shard 0 is formed once, and never twice.
//!
//! A broker with an empty directory asks the seeds who they are. If one of them belongs to a cluster, this broker joins it. Only when every seed has answered
//! that it is new as well, and this broker is the first of them, it forms shard 0 with all of them as voters; the others wait to be contacted. So a broker whose
//! volume was wiped finds the others formed and joins under its new incarnation, and a cluster cannot be formed by a part of its seeds.

use std::{collections::BTreeMap, time::Duration};

use palisade_config::Seed;
use palisade_peer::Peers;
use palisade_shard::{Formation, NodeId};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::messages::{Answer, Question};

/// A seed takes longer than this to answer: it is asked again.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(200);
/// After so many rounds without a result it is said what is waited for.
const REPORT: u32 = 25;

/// What a round of questions has found out about a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Silent,
    New(NodeId),
    Formed,
}

/// What follows from what the seeds say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Form(Vec<NodeId>),
    Join,
    Wait,
}

fn verdict(me: NodeId, seeds: &BTreeMap<i32, Found>) -> Verdict {
    if seeds.values().any(|found| *found == Found::Formed) {
        return Verdict::Join;
    }
    let all: Option<Vec<NodeId>> = seeds
        .values()
        .map(|found| match found {
            Found::New(node) => Some(*node),
            Found::Silent | Found::Formed => None,
        })
        .collect();
    match all {
        // Ids are in order: the first seed is the one that forms.
        Some(nodes) if nodes.first() == Some(&me) => Verdict::Form(nodes),
        // Every other seed waits for the first; it need not know more.
        _ if seeds.contains_key(&me.broker()) && seeds.keys().next() != Some(&me.broker()) => {
            Verdict::Join
        }
        _ => Verdict::Wait,
    }
}

/// How shard 0 begins on a broker that has nothing of it.
pub(crate) async fn find_out(me: NodeId, seeds: &[Seed], peers: Option<&Peers>) -> Formation {
    let Some(peers) = peers else {
        return Formation::Alone;
    };
    let mut rounds = 0_u32;
    loop {
        let asked = seeds.iter().map(|seed| async move {
            let found = if seed.id == me.broker() {
                Found::New(me)
            } else {
                ask(peers, seed.id).await
            };
            (seed.id, found)
        });
        let found: BTreeMap<i32, Found> =
            futures::future::join_all(asked).await.into_iter().collect();
        match verdict(me, &found) {
            Verdict::Form(nodes) => {
                info!(brokers = ?found.keys().collect::<Vec<_>>(), "every seed is new: forming the cluster");
                return Formation::Form(nodes.into_iter().collect());
            }
            Verdict::Join => {
                info!("joining the cluster");
                return Formation::Join;
            }
            Verdict::Wait => {}
        }
        rounds += 1;
        if rounds.is_multiple_of(REPORT) {
            let silent: Vec<i32> = found
                .iter()
                .filter(|(_, found)| **found == Found::Silent)
                .map(|(id, _)| *id)
                .collect();
            warn!(
                ?silent,
                "waiting for brokers of cluster.seeds to be reachable before the cluster is formed"
            );
        }
        sleep(ROUND).await;
    }
}

async fn ask(peers: &Peers, broker: i32) -> Found {
    let question = Question::WhoAreYou.encode();
    match timeout(ANSWER, peers.call_cluster(broker, question)).await {
        Ok(Ok(answer)) => match Answer::decode(&answer) {
            Ok(Answer::IAm { formed: true, .. }) => Found::Formed,
            Ok(Answer::IAm { node, .. }) => Found::New(node),
            _ => Found::Silent,
        },
        _ => Found::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn node(broker: i32, incarnation: u32) -> NodeId {
        NodeId::of(broker, incarnation)
    }

    fn seeds(found: [Found; 3]) -> BTreeMap<i32, Found> {
        (0..).zip(found).collect()
    }

    #[test]
    fn only_the_first_seed_forms_and_only_with_all_of_them() {
        let new = |broker| Found::New(node(broker, 7));
        let all = seeds([new(0), new(1), new(2)]);
        assert_eq!(
            verdict(node(0, 7), &all),
            Verdict::Form(vec![node(0, 7), node(1, 7), node(2, 7)])
        );
        assert_eq!(verdict(node(1, 7), &all), Verdict::Join);
        let partial = seeds([new(0), new(1), Found::Silent]);
        assert_eq!(verdict(node(0, 7), &partial), Verdict::Wait);
    }

    #[test]
    fn who_comes_with_an_empty_volume_joins_what_is_there() {
        let found = seeds([Found::New(node(0, 9)), Found::Formed, Found::Silent]);
        assert_eq!(verdict(node(0, 9), &found), Verdict::Join);
    }

    #[test]
    fn a_broker_that_is_no_seed_never_forms() {
        let new = |broker| Found::New(node(broker, 7));
        let all = seeds([new(0), new(1), new(2)]);
        assert_eq!(verdict(node(3, 1), &all), Verdict::Wait);
    }
}
