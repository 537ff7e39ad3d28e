//! Telling other brokers who leads what: every change at once, everything to a peer that has just come up.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use palisade_data::DataPlane;
use palisade_peer::PeerEvent;
use tokio::{
    select,
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{Cluster, messages::Question};

/// Everything is told this often as well: a message may be lost.
const REPEAT: Duration = Duration::from_secs(5);

/// Runs until the broker stops.
pub(crate) async fn run(cluster: Arc<Cluster>, data: Arc<DataPlane>, stopping: CancellationToken) {
    let mut own = data.leaders();
    let mut metadata = cluster.metadata.leader();
    let mut full = cluster.full.subscribe();
    let mut is_full = cluster.is_full();
    let mut events = cluster.peers.as_ref().map(|peers| peers.events());
    let mut repeat = interval(REPEAT);
    repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    cluster.learn_own(&data);
    loop {
        let event = async {
            match &mut events {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        select! {
            () = stopping.cancelled() => return,
            changed = own.changed() => {
                if changed.is_err() {
                    return;
                }
                if cluster.learn_own(&data) {
                    tell(&cluster);
                }
            }
            changed = metadata.changed() => {
                if changed.is_err() {
                    return;
                }
                if cluster.learn_own(&data) {
                    tell(&cluster);
                }
            }
            changed = full.changed() => {
                if changed.is_err() {
                    return;
                }
                if std::mem::replace(&mut is_full, cluster.is_full()) != is_full {
                    tell(&cluster);
                }
            }
            event = event => match event {
                Ok(PeerEvent::Up(node)) => {
                    cluster.saw(node, true);
                    tell(&cluster);
                }
                Ok(PeerEvent::Lost(node)) => {
                    cluster.saw(node, false);
                    cluster.leaders_changed.send_modify(|count| *count += 1);
                }
                // Its process has ended: whoever follows it need not wait for a silence.
                Ok(PeerEvent::Gone(node)) => {
                    cluster.metadata.peer_lost(node);
                    data.peer_lost(node);
                }
                Err(RecvError::Lagged(_)) => tell(&cluster),
                Err(RecvError::Closed) => events = None,
            },
            _ = repeat.tick() => tell(&cluster),
        }
    }
}

pub(super) fn tell(cluster: &Cluster) {
    let Some(peers) = &cluster.peers else {
        return;
    };
    let is_unfit = cluster.is_full() || cluster.leaving.load(Ordering::Relaxed);
    let message = Question::Leaders(cluster.known_leaders(), is_unfit).encode();
    // Those too that were never met: the first message makes the connection.
    for broker in cluster.image().brokers.keys().copied() {
        if broker != cluster.me.broker() {
            let sent = peers.call_cluster(broker, message.clone());
            // Who does not hear it now hears it when it is back, or with the next repetition.
            tokio::spawn(async move { drop(sent.await) });
        }
    }
}
