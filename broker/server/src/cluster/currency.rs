//! Whether this broker's copy of the metadata is that of the cluster now.

use std::{sync::Arc, time::Duration};

use palisade_metadata::MetadataMachine;
use palisade_shard::{LeaderView, Shard, ShardStatus};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The leader has to have been heard for so long without a break: the first second after a start it is only remembered.
const STEADY: Duration = Duration::from_secs(5);

/// Since when the leader of the metadata is heard of.
#[derive(Debug, Default)]
pub(crate) struct Currency(Mutex<Option<Instant>>);

impl Currency {
    /// Follows the leader of `metadata` until the shard is gone.
    pub(crate) fn of(metadata: &Shard<MetadataMachine>) -> Arc<Self> {
        let mut leader = metadata.leader();
        let currency = Arc::new(Self::default());
        let followed = Arc::clone(&currency);
        followed.note(*leader.borrow_and_update());
        tokio::spawn(async move {
            while leader.changed().await.is_ok() {
                followed.note(*leader.borrow_and_update());
            }
            followed.note(LeaderView::default());
        });
        currency
    }

    fn note(&self, view: LeaderView) {
        let mut since = self.0.lock();
        let known = *since;
        *since = view.leader.map(|_| known.unwrap_or_else(Instant::now));
    }

    /// Whether nothing is missing here that the cluster had agreed on when the leader was last heard.
    pub(crate) fn holds(&self, metadata: &ShardStatus) -> bool {
        let since = *self.0.lock();
        since.is_some_and(|since| since.elapsed() >= STEADY)
            && metadata.applied >= metadata.committed
    }
}

#[cfg(test)]
mod tests {
    use palisade_shard::NodeId;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn metadata_are_current_when_their_leader_is_heard_for_a_while() {
        let currency = Currency::default();
        let status = ShardStatus::default();
        let heard = LeaderView {
            term: 3,
            leader: Some(NodeId::of(1, 1)),
        };
        assert!(!currency.holds(&status));
        currency.note(heard);
        assert!(!currency.holds(&status));
        tokio::time::advance(STEADY).await;
        assert!(currency.holds(&status));
        let behind = ShardStatus {
            committed: 7,
            ..ShardStatus::default()
        };
        assert!(!currency.holds(&behind));
        // Another leader at once is no break, silence is one.
        currency.note(LeaderView { term: 4, ..heard });
        assert!(currency.holds(&status));
        currency.note(LeaderView::default());
        currency.note(heard);
        assert!(!currency.holds(&status));
    }
}
