//! A broker that has lost the others serves no client.
//!
//! It would not hear that a user was removed or that an ACL has changed. And clients that reach it would stay with it: they ask the broker that they have just
//! spoken to who leads (librdkafka the one that is least idle, the Java client one that is connected), and this one does not know. Without a connection to it, they
//! ask another. Brokers and the operator are let in by the control port all the time.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use palisade_shard::NodeId;
use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Cluster;

/// Peers may lose their connections at a time and come back: by then, silence was already waited for.
const GRACE: Duration = Duration::from_secs(1);

/// Whether fewer than a majority of the voters can be reached. Without voters nothing is known yet.
pub(super) fn is_isolated(
    voters: &BTreeSet<NodeId>,
    can_be_reached: impl Fn(NodeId) -> bool,
) -> bool {
    let reached = voters
        .iter()
        .filter(|voter| can_be_reached(**voter))
        .count();
    !voters.is_empty() && reached <= voters.len() / 2
}

/// Says whether this broker has lost the others, until it stops.
pub(crate) async fn run(cluster: Arc<Cluster>, stopping: CancellationToken) {
    // A broker that is alone has nobody to lose.
    let Some(mut peers) = cluster.peers.as_ref().map(|peers| peers.connected()) else {
        return;
    };
    let mut lost_since = None;
    loop {
        peers.borrow_and_update();
        let is_isolated = *cluster.isolated.borrow();
        match (cluster.has_lost_the_others(), lost_since) {
            (true, None) => lost_since = Some(Instant::now()),
            (false, _) if is_isolated => {
                lost_since = None;
                cluster.isolated.send_replace(false);
                info!("a majority of the metadata's voters can be reached again: serving clients");
            }
            (false, _) => lost_since = None,
            (true, Some(since)) if !is_isolated && since.elapsed() >= GRACE => {
                cluster.isolated.send_replace(true);
                warn!(
                    "no majority of the metadata's voters can be reached: closing clients' connections, and taking none until it can"
                );
            }
            (true, Some(_)) => {}
        }
        let due = lost_since.filter(|_| !*cluster.isolated.borrow());
        let due = async {
            match due {
                Some(since) => sleep_until(since + GRACE).await,
                None => std::future::pending().await,
            }
        };
        select! {
            () = stopping.cancelled() => return,
            changed = peers.changed() => if changed.is_err() {
                return;
            },
            () = due => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isolated(voters: &[i32], reached: &[i32]) -> bool {
        let voters = voters.iter().map(|id| NodeId::of(*id, 1)).collect();
        is_isolated(&voters, |node| reached.contains(&node.broker()))
    }

    #[test]
    fn less_than_a_majority_is_isolation() {
        assert!(isolated(&[0, 1, 2], &[0]));
        assert!(!isolated(&[0, 1, 2], &[0, 2]));
        // Two of which one is gone elect nobody.
        assert!(isolated(&[0, 1], &[0]));
        assert!(!isolated(&[0], &[0]));
        // A broker without a vote: it reaches none of those that have one, or enough.
        assert!(isolated(&[0, 1, 2], &[7]));
        assert!(!isolated(&[0, 1, 2], &[7, 1, 2]));
        assert!(!isolated(&[], &[]));
    }
}
