//! Liveness: once everything has healed, everybody gets on within a bounded simulated time. Producers finish, all brokers are voters again and have applied the same.

use std::time::Duration;

use palisade_shard::{NodeId, ShardStatus};

/// Its name.
pub const NAME: &str = "liveness";

/// How long it may take.
pub const BOUND: Duration = Duration::from_secs(60);

/// Whether a shard whose replicas should be `expected` has healed.
///
/// # Errors
/// What is missing.
pub fn healed(expected: &[NodeId], replicas: &[(NodeId, ShardStatus)]) -> Result<(), String> {
    for node in expected {
        let Some((_, status)) = replicas.iter().find(|(other, _)| other == node) else {
            return Err(format!("{node} does not run"));
        };
        if status.stopped {
            return Err(format!("the shard has stopped on {node}"));
        }
        if !status.voters.iter().eq(expected) || !status.learners.is_empty() || status.changing {
            return Err(format!("{node} knows other members: {status:?}"));
        }
    }
    let Some((_, leader)) = replicas
        .iter()
        .find(|(node, status)| status.leader == Some(*node))
    else {
        return Err(format!("nobody leads: {replicas:?}"));
    };
    match replicas
        .iter()
        .find(|(_, status)| (status.applied, status.leader) != (leader.last_index, leader.leader))
    {
        Some((node, status)) => Err(format!(
            "{node} is behind: {status:?}; the leader: {leader:?}"
        )),
        None => Ok(()),
    }
}
