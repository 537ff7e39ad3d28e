//! Keeping the log's tail in memory short.
//!
//! The engine purges only what a snapshot covers. A snapshot of the present state can be had at any time, so it is told of one, and then to purge up to where
//! the tail is to begin. Replicas that are about to be sent something before that keep it from doing so; their streams are ended ([`crate::network`]).

use std::{sync::Arc, time::Duration};

use openraft::{Raft, async_runtime::watch::WatchReceiver};

use crate::{
    StateMachine,
    engine::{Machine, Shared},
    raft_types::Types,
};

/// How long to wait for the engine before looking again.
const PATIENCE: Duration = Duration::from_millis(200);

/// Trims the tail whenever it is too long, until the shard stops.
pub(crate) async fn trim<S: StateMachine>(
    raft: Raft<Types<S::Response>, Machine<S>>,
    shared: Arc<Shared<S>>,
) {
    let log = &shared.log;
    loop {
        log.surplus.notified().await;
        while let Some(through) = log.too_much() {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            let is_known = wait_for_snapshot(&raft, through).await;
            if !is_known {
                continue;
            }
            log.unwanted(through);
            if raft.trigger().purge_log(through).await.is_err() {
                return;
            }
            while log.purged_through() < Some(through) {
                let trimmed = tokio::time::timeout(PATIENCE, log.trimmed.notified()).await;
                if trimmed.is_err() {
                    break;
                }
            }
        }
    }
}

/// Waits until the engine knows of a snapshot that covers `through`; `false` when it takes too long.
async fn wait_for_snapshot<S: StateMachine>(
    raft: &Raft<Types<S::Response>, Machine<S>>,
    through: u64,
) -> bool {
    let mut metrics = raft.data_metrics();
    let known = async {
        loop {
            let snapshot = metrics.borrow_and_update().snapshot;
            if snapshot.is_some_and(|at| at.index >= through) {
                return true;
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    };
    matches!(tokio::time::timeout(PATIENCE, known).await, Ok(true))
}
