//! Stopping: ports first, then what is under way, then everything durable.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};

use super::Running;

/// Connections get so long to finish.
const CONNECTIONS: Duration = Duration::from_secs(5);
/// Background tasks get so long.
const BACKGROUND: Duration = Duration::from_secs(2);

impl Running {
    /// Finishes what clients have begun, makes everything durable and stops.
    pub(crate) async fn stop(self) {
        // Leadership first, while everything still works: clients find the next leaders at once and nobody waits for an election.
        self.state
            .broker
            .cluster
            .hand_over(&self.state.broker.data)
            .await;
        self.stopping.cancel();
        self.tasks.close();
        if timeout(CONNECTIONS, self.tasks.wait()).await.is_err() {
            info!(
                connections = self.tasks.len(),
                "closing connections that did not finish in time"
            );
        }
        self.state.broker.data.shutdown().await;
        let metadata = &self.state.broker.cluster.metadata;
        if let Err(error) = metadata.checkpoint().await {
            warn!(%error, "cannot checkpoint the metadata; the next start replays the write-ahead log");
        }
        metadata.shutdown().await;
        self.stopped.cancel();
        self.background.close();
        if timeout(BACKGROUND, self.background.wait()).await.is_err() {
            warn!("background tasks did not stop in time");
        }
    }
}
