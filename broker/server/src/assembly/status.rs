//! What the broker says of itself: readiness, problems, certificates.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use palisade_config::{
    BrokerConfig,
    status::{
        BrokerStatus, EndpointCertificate, EndpointTrust, KekNeeds, KeyRotation, QuarantinedFile,
        RepairReport, ShardReport,
    },
};
use palisade_log::{ShardId, Wal};
use palisade_seal::{DirectoryProvider, KeyProvider as _};
use palisade_shard::{NodeId, ShardStatus};
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::start::Endpoints;
use crate::{
    broker::Broker,
    keys::Keeper,
    metrics::{ByKek, ByListener},
    net::Listener,
    tls::Leaf,
};

/// The configuration in effect, and what is wrong with the file now.
#[derive(Debug)]
pub(crate) struct LiveConfig {
    inner: Mutex<(Arc<BrokerConfig>, Option<String>, Option<String>)>,
}

impl LiveConfig {
    pub(super) fn new(config: BrokerConfig) -> Self {
        Self {
            inner: Mutex::new((Arc::new(config), None, None)),
        }
    }

    /// The configuration in effect.
    pub(super) fn effective(&self) -> Arc<BrokerConfig> {
        Arc::clone(&self.inner.lock().0)
    }

    pub(super) fn replace(&self, config: BrokerConfig) {
        let mut inner = self.inner.lock();
        inner.0 = Arc::new(config);
        inner.1 = None;
    }

    /// Says what is wrong with the file; `true` when that is news.
    pub(super) fn set_problem(&self, problem: Option<String>) -> bool {
        let mut inner = self.inner.lock();
        let news = inner.1 != problem;
        inner.1 = problem;
        news
    }

    /// Says what is wrong with the keys; `true` when that is news.
    pub(super) fn set_key_problem(&self, problem: Option<String>) -> bool {
        let mut inner = self.inner.lock();
        let news = inner.2 != problem;
        inner.2 = problem;
        news
    }

    fn problems(&self) -> Vec<String> {
        let inner = self.inner.lock();
        [&inner.1, &inner.2]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

/// Everything that status is made of.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) broker: Arc<Broker>,
    pub(super) endpoints: Endpoints,
    pub(super) listeners: Vec<Arc<Listener>>,
    pub(super) config: LiveConfig,
    pub(super) provider: Arc<DirectoryProvider>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) stopping: CancellationToken,
    pub(super) wal: Arc<Wal>,
}

impl State {
    /// The TLS side of the admin port.
    pub(crate) fn admin_endpoint(&self) -> Option<&Arc<crate::tls::Endpoint>> {
        self.endpoints.get(super::start::ADMIN)
    }

    /// Whether `/metrics` is for everyone.
    pub(crate) fn anonymous_metrics(&self) -> bool {
        self.config.effective().admin.anonymous_metrics
    }

    /// Whether clients are served, and why not.
    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        if self.stopping.is_cancelled() {
            Err("stopping")
        } else if *self.broker.cluster.isolated().borrow() {
            Err("the other brokers are not heard, so that clients are kept out")
        } else if !self.broker.data.is_ready() {
            Err("not every shard has a leader and is up to date here")
        } else if !self.broker.cluster.is_served(&self.broker.data) {
            Err("not every replica that is assigned to this broker is one of its shard yet")
        } else {
            Ok(())
        }
    }

    /// What is degraded now.
    pub(crate) fn problems(&self) -> Vec<String> {
        let now = OffsetDateTime::now_utc();
        let mut problems = self.config.problems();
        if let Err(reason) = self.readiness() {
            problems.push(format!("not ready: {reason}"));
        }
        if self.wal.is_full() || self.broker.data.is_full() {
            problems
                .push("the disk is full: producers are refused until space is freed".to_owned());
        }
        problems.extend(self.keeper.seen().problems);
        problems.extend(
            self.endpoints
                .values()
                .filter_map(|endpoint| endpoint.problem(now)),
        );
        problems.extend(self.broker.data.quarantined().iter().map(|file| {
            let (path, at) = (file.file.display(), file.position);
            format!(
                "{path} is corrupt at byte {at} and set aside: {}",
                file.reason
            )
        }));
        problems
    }

    /// `/status`.
    pub(crate) fn status(&self) -> BrokerStatus {
        let image = self.broker.image();
        let config = self.config.effective();
        let current = self
            .endpoints
            .values()
            .map(|endpoint| (endpoint.name(), endpoint.current()));
        let certificates = current
            .clone()
            .map(|(name, loaded)| EndpointCertificate {
                listener: name.to_owned(),
                serial: loaded.leaf.serial.clone(),
                fingerprint: loaded.leaf.fingerprint.clone(),
                issuer: loaded.leaf.issuer.clone(),
                not_before: Leaf::rfc3339(loaded.leaf.not_before),
                not_after: Leaf::rfc3339(loaded.leaf.not_after),
            })
            .collect();
        let trust = current
            .map(|(name, loaded)| EndpointTrust {
                listener: name.to_owned(),
                authorities: loaded.trust.authorities.clone(),
            })
            .collect();
        let quarantined = self.broker.data.quarantined();
        let seen = self.keeper.seen();
        let repairs = self.broker.data.repair_stats();
        BrokerStatus {
            broker_id: self.broker.node_id,
            cluster_id: self.broker.cluster_id.clone(),
            // As it is registered: a change in the file takes effect with the next start.
            rack: image
                .brokers
                .get(&self.broker.node_id)
                .and_then(|broker| broker.rack.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_version: config.version.clone(),
            ready: self.readiness().is_ok(),
            problems: self.problems(),
            certificates,
            trust,
            kek_id: self.provider.current().as_str().to_owned(),
            topics: image.topics.len() as u64,
            partitions: image.topics.partition_count() as u64,
            connections: self.connections(),
            controller: self.broker.cluster.controller(),
            shards: self.shards(),
            peers: self.broker.cluster.peers(),
            under_replicated_partitions: self.broker.cluster.under_replicated(&self.broker.data),
            draining: image
                .brokers
                .get(&self.broker.node_id)
                .is_some_and(|broker| broker.draining),
            drained: self.broker.cluster.is_drained(&self.broker.data),
            key_encryption: Some(seen.keys),
            key_rotations: seen.rotations,
            shredding_topics: seen.shredding,
            shredded_topics: seen.shredded,
            repairs: RepairReport {
                found: repairs.found,
                repaired: repairs.repaired,
                waiting: quarantined.len() as u64,
            },
            quarantined: quarantined
                .iter()
                .map(|file| QuarantinedFile {
                    file: file.file.display().to_string(),
                    offset: file.position,
                })
                .collect(),
        }
    }

    fn shards(&self) -> Vec<ShardReport> {
        let image = self.broker.image();
        let metadata = self.broker.cluster.metadata.status();
        let data = self.broker.data.hosted().into_iter();
        let data = data.filter_map(|id| Some((id, self.broker.data.shard_status(id)?)));
        std::iter::once((ShardId::METADATA, metadata))
            .chain(data)
            .map(|(id, status)| {
                let info = image.shards.get(&id);
                let replicas = info.map_or(status.voters.len(), |info| info.replicas.len());
                let leader = status.leader.map_or(-1, NodeId::broker);
                ShardReport {
                    replication_factor: u16::try_from(replicas).unwrap_or(u16::MAX),
                    preferred: info
                        .and_then(palisade_metadata::ShardInfo::preferred)
                        .map_or(leader, NodeId::broker),
                    ..report(id, self.broker.cluster.me, &status)
                }
            })
            .collect()
    }

    fn connections(&self) -> u64 {
        self.listeners
            .iter()
            .map(|listener| u64::from(listener.limiter.open()))
            .sum()
    }

    fn refresh_key_metrics(&self) {
        let metrics = &self.broker.metrics;
        let seen = self.keeper.seen();
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        // A key that is gone is not shown any more; one that is there and not needed shows zeros.
        metrics.kek_items.clear();
        let unneeded = seen.keys.loaded.iter().filter(|kek| {
            let mut needed = seen.keys.needed.iter();
            !needed.any(|needs| needs.kek == **kek)
        });
        let zeros = unneeded.map(|kek| KekNeeds {
            kek: kek.clone(),
            ..KekNeeds::default()
        });
        for needs in zeros.chain(seen.keys.needed.iter().cloned()) {
            for (item, count) in [
                ("segment", needs.segments),
                ("manifest", needs.manifests),
                ("wal_file", needs.wal_files),
                ("checkpoint", needs.checkpoints),
                ("key", needs.keys),
            ] {
                let kek = needs.kek.clone();
                let labels = ByKek { kek, item };
                metrics.kek_items.get_or_create(&labels).set(gauge(count));
            }
        }
        metrics
            .kek_settled
            .set(i64::from(u8::from(seen.keys.settled)));
        let left = |of: fn(&KeyRotation) -> u64| {
            let sum = seen.rotations.iter().map(of);
            gauge(sum.fold(0u64, u64::saturating_add))
        };
        metrics
            .key_rotation_segments_left
            .set(left(|rotation| rotation.segments_left));
        metrics
            .key_rotation_bytes_left
            .set(left(|rotation| rotation.bytes_left));
        let cleaner = self.broker.data.cleaner_stats();
        metrics
            .cleaner_bytes
            .inner()
            .store(cleaner.bytes_written, Ordering::Relaxed);
        metrics.cleaner_failing.set(gauge(cleaner.failing));
        metrics.topics_shredding.set(gauge(seen.shredding));
        metrics
            .topics_shredded
            .inner()
            .store(seen.shredded, Ordering::Relaxed);
    }

    /// Brings the metrics that are read, not counted, up to date.
    pub(crate) fn refresh_metrics(&self) {
        let metrics = &self.broker.metrics;
        let now = OffsetDateTime::now_utc();
        for (name, endpoint) in &self.endpoints {
            let left = endpoint.current().leaf.not_after - now;
            let labels = ByListener {
                listener: name.clone(),
            };
            metrics
                .certificate_expiry_seconds
                .get_or_create(&labels)
                .set(left.whole_seconds());
        }
        let image = self.broker.image();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.problems.set(count(self.problems().len()));
        metrics
            .quarantined_files
            .set(count(self.broker.data.quarantined().len()));
        let repairs = self.broker.data.repair_stats();
        for (counter, value) in [
            (&metrics.damaged_segments_found, repairs.found),
            (&metrics.damaged_segments_repaired, repairs.repaired),
            (&metrics.repair_bytes, repairs.bytes),
            (&metrics.repair_handovers, repairs.handed_over),
            (&metrics.scrubbed_bytes, repairs.scrubbed),
        ] {
            counter.inner().store(value, Ordering::Relaxed);
        }
        metrics.topics.set(count(image.topics.len()));
        metrics
            .partitions
            .set(count(image.topics.partition_count()));
        self.refresh_key_metrics();
        let wal = self.wal.stats();
        metrics
            .wal_syncs
            .inner()
            .store(wal.batches, Ordering::Relaxed);
        metrics
            .wal_bytes
            .inner()
            .store(wal.bytes, Ordering::Relaxed);
        metrics
            .wal_sync_microseconds
            .inner()
            .store(wal.sync_nanos / 1000, Ordering::Relaxed);
        metrics
            .wal_files
            .set(i64::try_from(wal.files).unwrap_or(i64::MAX));
    }
}

fn report(id: ShardId, me: NodeId, status: &ShardStatus) -> ShardReport {
    let brokers = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.broker()).collect();
    let member = status.voters.contains(&me) || status.learners.contains(&me);
    let led = status.leader == Some(me);
    let everyone = status.copies(status.committed) == status.voters.len();
    ShardReport {
        id: id.0,
        replication_factor: 0,
        preferred: -1,
        leader: status.leader.map(NodeId::broker),
        term: status.term,
        voters: brokers(&status.voters),
        learners: brokers(&status.learners),
        committed: status.committed,
        applied: status.applied,
        caught_up: member
            && status.leader.is_some()
            && status.applied >= status.committed
            && (!led || everyone),
    }
}
