//! A broker that has lost the others serves no client.
//!
//! It would not hear that a user was removed or that an ACL has changed. And clients that reach it would stay with it: they ask the broker that they have just
//! spoken to who leads (librdkafka the one that is least idle, the Java client one that is connected), and this one does not know. Without a connection to it, they
//! ask another. Brokers and the operator are let in by the control port all the time.
//!
//! Leaders are what a broker hears of others: there is one only with a majority. A broker that hears none of the metadata, and none of a shard that others have
//! too, has lost them, or they have removed it. While the metadata alone have no majority, the data go on.

use std::{convert::Infallible, sync::Arc, time::Duration};

use palisade_shard::NodeId;
use tokio::{select, sync::watch::error::RecvError, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Cluster;

/// Silence was waited for already when a leader is not known any more: this is for its successor to be elected.
const GRACE: Duration = Duration::from_secs(3);

/// Whether the others are heard, by the `leader` of the metadata and those of the data shards here, each with how many replicas the shard has. What has one replica
/// leads itself, and says nothing.
pub(super) fn is_in_touch(
    me: NodeId,
    leader: Option<NodeId>,
    data: impl IntoIterator<Item = (Option<NodeId>, usize)>,
) -> bool {
    let says_so = |(leader, replicas): (Option<NodeId>, usize)| {
        leader.is_some_and(|leader| leader != me || replicas > 1)
    };
    leader.is_some() || data.into_iter().any(says_so)
}

/// Keeps clients out while the others are not heard, until the broker stops.
pub(crate) async fn run(cluster: Arc<Cluster>, stopping: CancellationToken) {
    // A broker that is alone has nobody to lose.
    if cluster.peers.is_none() {
        return;
    }
    select! {
        () = stopping.cancelled() => {}
        // The cluster is not there any more.
        Err(_) = follow(&cluster) => {}
    }
}

async fn follow(cluster: &Cluster) -> Result<Infallible, RecvError> {
    let mut in_touch = cluster.in_touch.subscribe();
    loop {
        in_touch.wait_for(|in_touch| !*in_touch).await?;
        let back = in_touch.wait_for(|in_touch| *in_touch);
        if let Ok(back) = timeout(GRACE, back).await {
            back?;
            continue;
        }
        cluster.isolated.send_replace(true);
        warn!(
            "the other brokers are not heard any more: closing clients' connections, and taking none until they are"
        );
        in_touch.wait_for(|in_touch| *in_touch).await?;
        cluster.isolated.send_replace(false);
        info!("the other brokers are heard again: serving clients");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_heard_by_leaders_that_need_them() {
        let (me, other) = (NodeId::of(0, 1), NodeId::of(1, 1));
        assert!(is_in_touch(me, Some(me), []));
        assert!(is_in_touch(me, Some(other), []));
        assert!(!is_in_touch(me, None, []));
        // The metadata have lost their majority, and a shard has one.
        assert!(is_in_touch(me, None, [(None, 3), (Some(me), 3)]));
        assert!(is_in_touch(me, None, [(Some(other), 3)]));
        assert!(!is_in_touch(me, None, [(None, 3), (Some(me), 1)]));
    }
}
