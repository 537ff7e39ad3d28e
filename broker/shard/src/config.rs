//! Who a replica is and how its shard is run.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use palisade_log::ShardId;

/// Identity of a broker in Raft: its Kafka id and the incarnation of its data directory. A broker that comes back with an empty volume is another node, for it
/// has forgotten what it voted for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The node of a broker (its id is not negative) whose data directory has this incarnation.
    #[must_use]
    pub const fn of(broker: i32, incarnation: u32) -> Self {
        Self(((broker as u32 as u64) << 32) | incarnation as u64)
    }

    /// The Kafka id of the broker.
    #[must_use]
    pub const fn broker(self) -> i32 {
        (self.0 >> 32) as u32 as i32
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "broker {} ({:08x})", self.broker(), self.0 & 0xffff_ffff)
    }
}

/// How a shard is run.
#[derive(Clone, Copy, Debug)]
pub struct ShardConfig {
    /// Which shard.
    pub id: ShardId,
    /// This broker.
    pub node: NodeId,
    /// Most bytes of proposals that wait to be applied; more are refused with [`ProposeError::Busy`].
    pub pending_bytes: usize,
    /// Bytes of applied entries that stay in memory for replicas that are a little behind. Those further behind are sent a snapshot.
    pub tail_bytes: usize,
    /// When a leader is given up and replaced.
    pub timing: Timing,
}

/// What a shard waits for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader shows that it is there.
    pub heartbeat: Duration,
    /// A replica that has not heard of the leader for a time between this and `election_max` campaigns.
    pub election_min: Duration,
    /// See `election_min`.
    pub election_max: Duration,
    /// How long a replica that is to become a voter may take to catch up, and a change of members or of the leader to be agreed on.
    pub change: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Timing {
    /// A heartbeat every 150 ms, an election after 500 to 1000 ms without one, two minutes for a change of members.
    pub const DEFAULT: Self = Self {
        heartbeat: Duration::from_millis(150),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        change: Duration::from_secs(120),
    };
}

impl ShardConfig {
    /// A shard with the default limits: 64 MiB of waiting proposals, a tail of 8 MiB.
    #[must_use]
    pub const fn new(id: ShardId, node: NodeId) -> Self {
        Self {
            id,
            node,
            pending_bytes: 64 << 20,
            tail_bytes: 8 << 20,
            timing: Timing::DEFAULT,
        }
    }
}

/// The engine's settings.
///
/// The engine counts an election timeout from the end of the leader's lease, and the lease is as long as the longest election timeout: so both are about half
/// of what a shard is configured with.
pub(crate) fn engine_config(config: &ShardConfig) -> Result<Config, String> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timing = &config.timing;
    let heartbeat = millis(timing.heartbeat).max(2);
    let lease = (millis(timing.election_max) / 2).max(4);
    let shortest = millis(timing.election_min)
        .saturating_sub(lease)
        .clamp(lease / 2, lease - 1);
    Config {
        cluster_name: format!("shard-{}", config.id),
        heartbeat_interval: heartbeat,
        // Entries show that the leader is there as well as a heartbeat does.
        heartbeat_min_interval: Some(heartbeat / 3),
        election_timeout_min: shortest,
        election_timeout_max: lease,
        // A replica that was cut off asks whether it would be elected before it makes others vote.
        enable_pre_vote: Some(true),
        // Bytes are what limits a request.
        max_payload_entries: 4096,
        // The log is purged where the tail begins, and only there.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // A start is a new term: the term is the leader epoch under which offsets are given out and batches are sealed.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
    .validate()
    .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_leader_is_given_up_between_the_limits() {
        let config = ShardConfig::new(ShardId(1), NodeId(1));
        let engine = engine_config(&config).unwrap();
        let lease = engine.election_timeout_max;
        assert_eq!((engine.election_timeout_min, lease), (250, 500));
        let timing = Timing {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(100),
            election_max: Duration::from_millis(150),
            ..Timing::DEFAULT
        };
        assert!(
            engine_config(&ShardConfig { timing, ..config }).is_err(),
            "a heartbeat that comes too late is no heartbeat"
        );
    }

    #[test]
    fn a_node_id_has_the_broker_and_its_incarnation() {
        let node = NodeId::of(7, 0xdead_beef);
        assert_eq!(node.broker(), 7);
        assert_eq!(node.to_string(), "broker 7 (deadbeef)");
    }
}
