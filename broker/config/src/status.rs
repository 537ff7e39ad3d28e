//! What a broker says of itself on `GET /status` of its admin port. The operator copies it into the status of resources, so every
//! field is something the broker has loaded, never something it was told.

use serde::{Deserialize, Serialize};

/// The state of one broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// Kafka broker id.
    pub broker_id: i32,
    /// Kafka cluster id.
    pub cluster_id: String,
    /// Where it stands; `None` when that is not known.
    #[serde(default)]
    pub rack: Option<String>,
    /// Version of the binary.
    pub version: String,
    /// `version` of the configuration that is in effect.
    pub config_version: String,
    /// True once the broker serves clients.
    pub ready: bool,
    /// Why it is not ready, or what is degraded (full disk, key provider lost, quarantined files); empty when all is well.
    pub problems: Vec<String>,
    /// Leaf certificate of each endpoint, by listener name (`CONTROL` and `ADMIN` among them).
    pub certificates: Vec<EndpointCertificate>,
    /// Trust bundles, by listener name.
    pub trust: Vec<EndpointTrust>,
    /// Id of the key-encryption key in use.
    pub kek_id: String,
    /// Topics of the cluster.
    pub topics: u64,
    /// Partitions of all topics.
    pub partitions: u64,
    /// Client connections open now.
    pub connections: u64,
    /// Files set aside as corrupt: path and byte offset of the bad frame.
    pub quarantined: Vec<QuarantinedFile>,
    /// What becomes of files that are damaged.
    #[serde(default)]
    pub repairs: RepairReport,
    /// The broker that leads the cluster's metadata; `None` while none is known to.
    #[serde(default)]
    pub controller: Option<i32>,
    /// Shards of which this broker hosts a replica, the metadata's (0) among them, by id.
    #[serde(default)]
    pub shards: Vec<ShardReport>,
    /// The other registered brokers, by id.
    #[serde(default)]
    pub peers: Vec<PeerReport>,
    /// Partitions whose shard this broker leads and of which a replica is missing or behind. Over all brokers, each partition is counted once.
    #[serde(default)]
    pub under_replicated_partitions: u64,
    /// The cluster takes this broker's replicas away and gives it no new ones.
    #[serde(default)]
    pub draining: bool,
    /// It is being drained, hosts no replica of a data shard any more and has no vote on the metadata: it can be removed without a loss.
    #[serde(default)]
    pub drained: bool,
    /// The key-encryption keys, and what on this broker needs them; `None` from a version that does not say.
    #[serde(default)]
    pub key_encryption: Option<KeyEncryption>,
    /// Topics of which something on this broker is still sealed under an older version of their key, by name.
    #[serde(default)]
    pub key_rotations: Vec<KeyRotation>,
    /// Topics that were deleted, but whose wrapped keys are still in the metadata checkpoint on this broker's volume.
    #[serde(default)]
    pub shredding_topics: u64,
    /// Topics deleted since the start whose keys are neither in the metadata nor in a checkpoint of them here.
    #[serde(default)]
    pub shredded_topics: u64,
}

/// The key-encryption keys of one broker.
///
/// A key may be destroyed when another is current and no broker lists it under `needed`, with all of them `settled`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyEncryption {
    /// Id of the key that new data is wrapped under.
    pub current: String,
    /// Ids of all keys that the broker has loaded, sorted.
    pub loaded: Vec<String>,
    /// Everything on this broker is known to be wrapped under `current`.
    pub settled: bool,
    /// Every key that something on this broker is wrapped under, by id; `current` among them.
    pub needed: Vec<KekNeeds>,
    /// Segment files whose header was not read since the start: they may need any key.
    pub unknown_segments: u64,
}

/// What is wrapped under one key-encryption key on one broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KekNeeds {
    /// Id of the key.
    pub kek: String,
    /// Segment files.
    pub segments: u64,
    /// Bytes of those segment files.
    pub segment_bytes: u64,
    /// Manifests of data shards.
    pub manifests: u64,
    /// Files of the write-ahead log.
    pub wal_files: u64,
    /// 1 when it is needed for the metadata checkpoint: the file, or a topic's key in it.
    pub checkpoints: u64,
    /// Versions of topics' keys in the metadata. Each broker counts all of them.
    pub keys: u64,
}

impl KekNeeds {
    /// How many things need the key.
    #[must_use]
    pub const fn items(&self) -> u64 {
        self.segments
            .saturating_add(self.manifests)
            .saturating_add(self.wal_files)
            .saturating_add(self.checkpoints)
            .saturating_add(self.keys)
    }
}

/// How far the move of a topic's data to the newest version of its key has come on one broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRotation {
    /// Name of the topic.
    pub topic: String,
    /// Newest version of its key.
    pub newest: u32,
    /// Oldest version that anything here is sealed under.
    pub oldest: u32,
    /// Segments with something under an older version than the newest.
    pub segments_left: u64,
    /// Bytes of those segments.
    pub bytes_left: u64,
}

/// One replica on this broker. Replicas are named by their broker's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardReport {
    /// The shard; 0 is the cluster's metadata.
    pub id: u32,
    /// How many replicas it is to have; of shard 0 how many brokers are to vote.
    pub replication_factor: u16,
    /// The broker that leads it, as far as this replica knows.
    pub leader: Option<i32>,
    /// The newest term this replica has seen; Kafka's leader epoch.
    pub term: u64,
    /// Brokers that vote, as this replica knows them, by id.
    pub voters: Vec<i32>,
    /// Brokers that follow without a vote: on their way to become voters, or followers of the metadata; by id.
    pub learners: Vec<i32>,
    /// The broker that should lead; of shard 0, which has no preference, the one that does, or -1.
    pub preferred: i32,
    /// This replica has applied all that it knows to be committed, from a leader that it knows; of a leader: every voter has what is committed as well.
    pub caught_up: bool,
    /// Index up to which entries are known to be committed here.
    pub committed: u64,
    /// Index up to which entries are applied here.
    pub applied: u64,
}

/// The connection to another broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerReport {
    /// Its Kafka broker id.
    pub id: i32,
    /// Whether messages can be sent to it now.
    pub connected: bool,
    /// Since when that is so, RFC 3339.
    pub since: String,
    /// The cluster takes its replicas away and gives it no new ones.
    #[serde(default)]
    pub draining: bool,
}

/// The leaf certificate that an endpoint presents now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCertificate {
    /// Listener name.
    pub listener: String,
    /// Serial number, lower-case hex without separators.
    pub serial: String,
    /// SHA-256 of the leaf's DER, lower-case hex.
    pub fingerprint: String,
    /// Issuer, RFC 2253.
    pub issuer: String,
    /// Start of validity, RFC 3339.
    pub not_before: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
}

/// The authorities that an endpoint accepts client certificates from now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTrust {
    /// Listener name.
    pub listener: String,
    /// SHA-256 of each trusted certificate's DER, lower-case hex, sorted.
    pub authorities: Vec<String>,
}

/// Damaged segments since the broker's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairReport {
    /// How many were found, when the broker started or since.
    pub found: u64,
    /// How many were replaced by what another replica has.
    pub repaired: u64,
    /// How many are quarantined now: they wait to be repaired, or no other broker has a copy.
    pub waiting: u64,
}

/// A file that failed authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantinedFile {
    /// Path relative to the data directory.
    pub file: String,
    /// Byte offset of the first bad frame.
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn replication_is_reported_by_these_names_and_may_be_absent() {
        let status = BrokerStatus {
            broker_id: 1,
            controller: Some(0),
            shards: vec![ShardReport {
                id: 5,
                replication_factor: 3,
                leader: Some(1),
                term: 7,
                voters: vec![0, 1, 2],
                learners: vec![3],
                preferred: 1,
                caught_up: true,
                committed: 90,
                applied: 90,
            }],
            peers: vec![PeerReport {
                id: 0,
                connected: true,
                since: "2026-11-24T21:00:00Z".to_owned(),
                draining: false,
            }],
            under_replicated_partitions: 4,
            draining: true,
            drained: false,
            key_encryption: Some(KeyEncryption {
                current: "k2".to_owned(),
                ..KeyEncryption::default()
            }),
            repairs: RepairReport {
                found: 3,
                repaired: 2,
                waiting: 1,
            },
            ..BrokerStatus::default()
        };
        let mut value = serde_json::to_value(&status).unwrap();
        assert_eq!(value["underReplicatedPartitions"], 4);
        assert_eq!(
            value["repairs"],
            serde_json::json!({ "found": 3, "repaired": 2, "waiting": 1 })
        );
        assert_eq!(
            value["shards"][0],
            serde_json::json!({
                "id": 5, "replicationFactor": 3, "leader": 1, "term": 7, "voters": [0, 1, 2], "learners": [3],
                "preferred": 1, "caughtUp": true, "committed": 90, "applied": 90
            })
        );
        assert_eq!(
            serde_json::from_value::<BrokerStatus>(value.clone()).unwrap(),
            status
        );
        // A broker of a version that knew of no replication.
        let fields = value.as_object_mut().unwrap();
        for name in [
            "controller",
            "shards",
            "peers",
            "underReplicatedPartitions",
            "draining",
            "drained",
            "keyEncryption",
            "keyRotations",
            "shreddingTopics",
            "shreddedTopics",
            "repairs",
        ] {
            assert!(fields.remove(name).is_some(), "{name}");
        }
        let old: BrokerStatus = serde_json::from_value(value).unwrap();
        assert_eq!(
            (old.broker_id, old.controller, old.shards),
            (1, None, Vec::new())
        );
    }
}
