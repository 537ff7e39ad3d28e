//! Writes what should be kept of groups, beside the requests that change them: they may be given up by their clients at any moment.

use std::{sync::Arc, time::Instant};

use futures::{StreamExt as _, stream::FuturesUnordered};
use palisade_coordinator::{group::Keep, offsets::OffsetCommand};
use palisade_data::{DataError, DataPlane};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{GroupRuntime, unsaved::Outcome};
use crate::broker::Broker;

/// Most records that are being written. Each waits for its own shard alone.
const AT_ONCE: usize = 64;

/// A record to be written.
struct Write {
    group: String,
    /// Number of the change, see `Unsaved`.
    number: u64,
    term: u64,
    command: OffsetCommand,
}

impl GroupRuntime {
    /// Writes records until the broker stops.
    pub(crate) async fn keep(self: Arc<Self>, broker: Arc<Broker>, stopping: CancellationToken) {
        let mut writes = FuturesUnordered::new();
        loop {
            while writes.len() < AT_ONCE
                && let Some(next) = self.next_write(&broker)
            {
                writes.push(write(Arc::clone(&broker.data), next));
            }
            // With all hands full, the end of a write comes first.
            let at = self.state.lock().unsaved.next_retry();
            let at = at.filter(|_| writes.len() < AT_ONCE);
            let retry = async {
                match at {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.unsaved.notified() => {}
                () = retry => {}
                Some((group, number, outcome)) = writes.next(), if !writes.is_empty() => {
                    self.settle(&group, number, outcome);
                }
            }
        }
    }

    fn settle(&self, group: &str, number: u64, outcome: Outcome) {
        let now = Instant::now();
        let effects = {
            let mut state = self.state.lock();
            state.unsaved.settle(now, group, number, outcome)
        };
        self.deliver(effects);
    }

    /// What to write now, if there is something.
    fn next_write(&self, broker: &Broker) -> Option<Write> {
        loop {
            let (group, number) = self.state.lock().unsaved.next(Instant::now())?;
            // If this broker has not led the shard all the time, its groups are loaded anew by this, and what changed before means nothing.
            if broker.coordinates(&group).is_none() {
                self.settle(&group, number, Outcome::Moved);
                continue;
            }
            if !broker.all_read_group_records() {
                self.settle(&group, number, Outcome::Postponed);
                continue;
            }
            let shard = broker.image().shard_of_group(&group);
            let (keep, term) = {
                let state = self.state.lock();
                let loaded = self.loaded.read();
                let term = shard.and_then(|shard| loaded.get(&shard).copied());
                (state.groups.keep(&group), term)
            };
            let record = match keep {
                Keep::Generation(record) => Some(record),
                Keep::Nothing => None,
                Keep::AsItIs => {
                    self.settle(&group, number, Outcome::Rebalancing);
                    continue;
                }
            };
            let Some(term) = term else {
                self.settle(&group, number, Outcome::Moved);
                continue;
            };
            return Some(Write {
                command: OffsetCommand::set_group(group.clone(), term, record),
                group,
                number,
                term,
            });
        }
    }
}

async fn write(data: Arc<DataPlane>, write: Write) -> (String, u64, Outcome) {
    let Write {
        group,
        number,
        term,
        command,
    } = write;
    let written = match data.apply_offsets(&group, command).await {
        // Larger than what the write-ahead log takes: as with what is too large to be kept.
        Err(DataError::Record(_)) => {
            let nothing = OffsetCommand::set_group(group.clone(), term, None);
            data.apply_offsets(&group, nothing).await
        }
        written => written,
    };
    let outcome = match written {
        // Of another term than it was meant for.
        Ok(0) => Outcome::Failed,
        Ok(_) => Outcome::Kept,
        Err(error) => {
            debug!(group, %error, "the members of a group cannot be recorded now");
            Outcome::Failed
        }
    };
    (group, number, outcome)
}
